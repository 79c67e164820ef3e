"""SQSForwardHandler, with a queue in this process; `tests/sqs` has real ones."""

import asyncio
import gc
import inspect
import json
import logging
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from fastapi_events.bus import EventBus
from fastapi_events.errors import ConfigurationError, ForwardError
from fastapi_events.event import Event
from fastapi_events.handlers.aws import SQSForwardHandler

STANDARD = "https://sqs.eu-west-1.amazonaws.com/123456789012/events"
FIFO = STANDARD + ".fifo"
Fault = Callable[[list[dict[str, Any]]], dict[str, Any]]
Threads = Callable[[], set[threading.Thread]]


class FakeSQS:
    """A client and its queue. Each call takes the next of `faults`; when there are none left, all arrives."""

    def __init__(self, *faults: Fault, max_message_bytes: int = 1_048_576) -> None:
        self.calls: list[list[dict[str, Any]]] = []
        self.arrived: list[dict[str, Any]] = []
        self.running = 0
        self.most_running = 0
        self.closed = 0
        self.threads: set[str] = set()
        self._faults = list(faults)
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        entries = [dict(entry) for entry in Entries]
        with self._lock:
            self.calls.append(entries)
            fault = self._faults.pop(0) if self._faults else None
            self.running += 1
            self.most_running = max(self.running, self.most_running)
            self.threads.add(threading.current_thread().name)
        try:
            answer = fault(entries) if fault else success(entries)
        finally:
            with self._lock:
                self.running -= 1
        taken = {entry["Id"] for entry in answer["Successful"]}
        with self._lock:
            self.arrived.extend(entry for entry in entries if entry["Id"] in taken)
        return answer

    def get_queue_attributes(self, *, QueueUrl: str, AttributeNames: Sequence[str]) -> dict[str, Any]:  # noqa: N803
        return {"Attributes": {"MaximumMessageSize": str(self._max_message_bytes)}}

    def close(self) -> None:
        self.closed += 1

    @property
    def payloads(self) -> list[Any]:
        return [json.loads(message["MessageBody"])["data"] for message in self.arrived]


def success(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Successful": [{"Id": entry["Id"]} for entry in entries], "Failed": []}


def failing(*positions: int, sender_fault: bool = False) -> Fault:
    """Refuse the entries at these positions."""

    def fault(entries: list[dict[str, Any]]) -> dict[str, Any]:
        failed = {str(position) for position in positions}
        return {
            "Successful": [{"Id": entry["Id"]} for entry in entries if entry["Id"] not in failed],
            "Failed": [
                {"Id": entry["Id"], "Code": "InternalError", "Message": "sorry", "SenderFault": sender_fault}
                for entry in entries
                if entry["Id"] in failed
            ],
        }

    return fault


def raising(error: Exception) -> Fault:
    """Refuse the whole call."""

    def fault(entries: list[dict[str, Any]]) -> dict[str, Any]:
        raise error

    return fault


def client_error(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "SendMessageBatch",
    )


class Gate:
    """A call that takes until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        self.entered.set()
        assert self.opened.wait(20)
        return success(entries)


@asynccontextmanager
async def forwarding(client: FakeSQS, url: str = STANDARD, **options: Any) -> AsyncIterator[SQSForwardHandler]:
    handler = SQSForwardHandler(url, client=client, **options)
    await handler.start()
    yield handler
    await handler.stop()


def events(*payloads: Any, name: str = "order.placed", **options: Any) -> list[Event[Any]]:
    return [Event(name, payload, **options) for payload in payloads]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def threads() -> Threads:
    """Tells which threads of handlers have come since the test began, and are alive."""

    def alive() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("fastapi_events-sqs")}

    before = alive()
    return lambda: alive() - before


def test_the_arguments_and_their_defaults() -> None:
    parameters = inspect.signature(SQSForwardHandler).parameters

    assert [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD] == [
        "queue_url",
        "region_name",
    ]
    assert {name: one.default for name, one in parameters.items() if one.default is not one.empty} == {
        "region_name": None,
        "serializer": None,
        "max_batch_size": 10,
        "message_group_id": None,
        "client": None,
        "attributes": (),
        "linger": 0.02,
        "retry_for": 15.0,
        "threads": 4,
    }
    assert inspect.signature(EventBus).parameters["drain_timeout"].default > parameters["retry_for"].default


@pytest.mark.parametrize(
    "arguments",
    [
        {"queue_url": "events"},
        {"max_batch_size": 0},
        {"max_batch_size": 11},
        {"threads": 0},
        {"linger": -0.1},
        {"linger": 1.0, "retry_for": 1.0},
        {"message_group_id": "two words"},
        {"message_group_id": ""},
        {"message_group_id": 7},
        {"serializer": "json"},
        {"attributes": "tenant"},
        {"client": FakeSQS(), "region_name": "eu-west-1"},
        {"client": FakeSQS(), "endpoint_url": "http://127.0.0.1:1"},
        {"id_generator": str},
    ],
    ids=" and ".join,
)
def test_what_cannot_work_is_refused_where_it_is_set_up(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SQSForwardHandler(**{"queue_url": STANDARD, **arguments})


def test_who_overrides_what_wrote_the_body_in_0_12_is_told() -> None:
    class Old(SQSForwardHandler):
        def format_message(self, event: Any) -> Any: ...

    with pytest.raises(ConfigurationError, match="serializer="):
        Old(STANDARD)


async def test_a_client_that_boto3_cannot_make_is_an_error_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    handler = SQSForwardHandler(STANDARD)

    with pytest.raises(ConfigurationError, match="must specify a region"):
        await handler.start()
    with pytest.raises(ConfigurationError, match="must specify a region"):
        await handler.handle_many(events(1))


async def test_a_message_is_a_cloud_event_with_attributes_to_filter_by() -> None:
    client = FakeSQS()
    event = Event("order.placed", {"id": 1}, headers={"traceparent": "00-ab", "tenant": "t1", "secret": "s"})

    async with forwarding(client, attributes=["tenant", "region"]) as handler:
        await handler.handle(event)

    message = client.arrived[0]
    assert Event.from_json(message["MessageBody"]).id == event.id
    assert message["MessageAttributes"] == {
        "contentType": {"DataType": "String", "StringValue": "application/cloudevents+json"},
        "type": {"DataType": "String", "StringValue": "order.placed"},
        "traceparent": {"DataType": "String", "StringValue": "00-ab"},
        "tenant": {"DataType": "String", "StringValue": "t1"},
    }
    assert "MessageGroupId" not in message


async def test_a_message_has_up_to_ten_attributes() -> None:
    client = FakeSQS()
    chosen = [f"h{number}" for number in range(7)]

    async with forwarding(client, attributes=[*chosen, "traceparent"]) as handler:
        await handler.handle(Event("order.placed", headers=dict.fromkeys([*chosen, "traceparent"], "x")))

    assert set(client.arrived[0]["MessageAttributes"]) == {"contentType", "type", "traceparent", *chosen}


async def test_a_serializer_writes_the_body_and_makes_no_claim_about_its_type() -> None:
    client = FakeSQS()

    async with forwarding(client, serializer=lambda event: json.dumps([event.name, event.payload])) as handler:
        await handler.handle(Event("order.placed", {"id": 1}))

    assert client.arrived[0]["MessageBody"] == '["order.placed", {"id": 1}]'
    assert set(client.arrived[0]["MessageAttributes"]) == {"type"}


async def test_plain_tuples_are_events_too() -> None:
    client = FakeSQS()

    async with forwarding(client) as handler:
        await handler.handle(("order.placed", 1))
        await handler.handle_many([("order.placed", 2), Event("order.placed", 3)])

    assert client.payloads == [1, 2, 3]


@pytest.mark.parametrize(
    "event, options, reason",
    [
        (Event("a", "x" * 2000), {}, r"too large: 2,\d\d\d bytes with its attributes, the queue takes 2,000"),
        (Event("a", "é" * 950), {}, "too large: 2,"),
        (Event("a", "x" * 1700, headers={"tenant": "t" * 200}), {"attributes": ["tenant"]}, "too large"),
        (Event("a", "\ufffe"), {}, r"illegal character U\+FFFE at position \d+ of the body"),
        (Event("a", headers={"tenant": "\x00"}), {"attributes": ["tenant"]}, r"U\+0000 at position 0 of the attribute"),
        (Event("a\x01"), {}, r"illegal character U\+0001 at position 1 of the attribute type"),
        (Event("a", "\ud800"), {}, "cannot be written as a message: PayloadError"),
        (Event("a", object()), {}, "cannot be written as a message: PayloadError"),
        (Event("a"), {"serializer": lambda event: "" if event.name == "a" else "b"}, "returned an empty string"),
        (Event("a"), {"serializer": lambda event: b"" if event.name == "a" else "b"}, "returned bytes"),
        (Event("a"), {"serializer": lambda event: str(1 / (event.name != "a"))}, "ZeroDivisionError"),
        (
            Event("a", headers={f"h{number}": "x" for number in range(9)}),
            {"attributes": [f"h{number}" for number in range(9)]},
            "too many attributes: 11, SQS takes 10",
        ),
        (Event("a b"), {"url": FIFO}, "bad message group id 'a b'"),
        (Event("a", headers={"partitionkey": "x" * 129}), {"url": FIFO}, "bad message group id 'x+'"),
        (Event("a", id="ü"), {"url": FIFO}, "bad event id as deduplication id 'ü'"),
        (Event("a"), {"message_group_id": lambda event: "" if event.name == "a" else "b"}, "bad message group id ''"),
        (Event("a"), {"message_group_id": lambda event: 1 if event.name == "a" else "b"}, "bad message group id 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_sqs_would_refuse_is_refused_before_and_harms_no_other_event(
    event: Event[Any], options: dict[str, Any], reason: str
) -> None:
    client = FakeSQS(max_message_bytes=2000)

    async with forwarding(client, **options) as handler:
        with pytest.raises(ForwardError, match="1 of 3 events did not reach the queue") as raised:
            await handler.handle_many([Event("b", 1), event, Event("b", 2)])

    [rejection] = raised.value.rejected
    assert rejection.event is event
    assert re.search(reason, rejection.reason)
    assert len(client.arrived) == 2


async def test_the_limits_of_sqs_are_used_to_the_last_byte() -> None:
    client = FakeSQS(max_message_bytes=2000)
    overhead = len("contentTypeStringapplication/cloudevents+jsontypeStringa")
    body = Event("a", "").to_json()
    fits = Event("a", "\n\U0001f600é" + "x" * (2000 - overhead - len(body) - len("\\n") - 4 - 2))

    async with forwarding(client) as handler:
        await handler.handle(fits)
        with pytest.raises(ForwardError, match="2,001 bytes"):
            await handler.handle(Event("a", f"{fits.payload}x"))

    assert client.payloads == [fits.payload]


async def test_events_of_many_requests_share_full_calls() -> None:
    client = FakeSQS()

    async with forwarding(client, linger=5.0) as handler:
        async with asyncio.timeout(4):  # full calls do not linger
            await asyncio.gather(*(handler.handle_many(events(number)) for number in range(30)))

    assert [len(call) for call in client.calls] == [10, 10, 10]
    assert sorted(client.payloads) == list(range(30))
    assert [entry["Id"] for entry in client.calls[0]] == [str(number) for number in range(10)]


async def test_a_call_that_does_not_fill_goes_after_the_linger_time() -> None:
    client = FakeSQS()

    async with forwarding(client, linger=0.2) as handler:
        begin = time.monotonic()
        await asyncio.gather(handler.handle_many(events(1, 2)), handler.handle_many(events(3)))
        took = time.monotonic() - begin

    assert [len(call) for call in client.calls] == [3]
    assert 0.2 <= took < 2.0


async def test_without_linger_an_event_goes_at_once() -> None:
    client = FakeSQS()

    async with forwarding(client, linger=0.0) as handler:
        await handler.handle_many(events(1))

    assert client.payloads == [1]


async def test_one_event_a_request_makes_five_times_fewer_calls_than_events() -> None:
    client = FakeSQS()
    requests: list[asyncio.Task[None]] = []

    async with forwarding(client) as handler:
        begin = time.monotonic()
        for number in range(250):  # 500 a second
            await asyncio.sleep(max(0.0, begin + number / 500 - time.monotonic()))
            requests.append(asyncio.create_task(handler.handle_many(events(number))))
        await asyncio.gather(*requests)

    assert sorted(client.payloads) == list(range(250))
    assert len(client.calls) <= 50


async def test_calls_are_packed_by_bytes_too() -> None:
    client = FakeSQS()
    sizes = [300_000] * 4 + [600_000] * 2

    async with forwarding(client) as handler:
        await handler.handle_many(events(*("x" * size for size in sizes)))

    assert sorted(len(call) for call in client.calls) == [1, 2, 3]  # threads may send them in any order
    assert all(sum(len(entry["MessageBody"]) for entry in call) <= 1_048_576 for call in client.calls)


async def test_max_batch_size_bounds_a_call() -> None:
    client = FakeSQS()

    async with forwarding(client, max_batch_size=2) as handler:
        await handler.handle_many(events(*range(5)))

    assert sorted(len(call) for call in client.calls) == [1, 2, 2]


async def test_calls_grow_fuller_while_all_threads_are_busy() -> None:
    gates = [Gate(), Gate()]
    client = FakeSQS(*gates)

    async with forwarding(client, threads=2, linger=0.001) as handler:
        busy = []
        for gate in gates:
            busy.append(asyncio.create_task(handler.handle_many(events("first"))))
            await until(gate.entered.is_set)
        waiting = []
        for number in range(10):
            waiting.append(asyncio.create_task(handler.handle_many(events(number))))
            await asyncio.sleep(0.003)
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*busy, *waiting)

    assert [len(call) for call in client.calls] == [1, 1, 10]
    assert client.most_running == 2


async def test_the_event_loop_runs_on_while_a_huge_delivery_is_prepared() -> None:
    client = FakeSQS()
    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        while True:
            begin = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - begin)

    def slow(event: Event[Any]) -> str:
        time.sleep(0.001)
        return event.name

    async with forwarding(client, serializer=slow) as handler:
        task = asyncio.create_task(heartbeat())
        await asyncio.sleep(0)  # it has begun
        await handler.handle_many(events(*range(500)))
        task.cancel()

    assert len(client.arrived) == 500
    assert longest < 0.25  # of more than 0.5 s of work


async def test_only_the_entries_that_failed_are_sent_again() -> None:
    client = FakeSQS(failing(1, 3))

    async with forwarding(client) as handler:
        await handler.handle_many(events(*range(5)))

    assert [len(call) for call in client.calls] == [5, 2]
    assert sorted(client.payloads) == [0, 1, 2, 3, 4]


async def test_an_entry_that_is_the_senders_fault_is_not_sent_again() -> None:
    client = FakeSQS(failing(1, sender_fault=True))

    async with forwarding(client) as handler:
        with pytest.raises(ForwardError) as raised:
            await handler.handle_many(events(*range(3)))

    assert [(event.payload, reason) for event, reason in raised.value.rejected] == [(1, "InternalError: sorry")]
    assert len(client.calls) == 1


async def test_an_entry_that_the_answer_does_not_mention_is_sent_again() -> None:
    client = FakeSQS(lambda entries: success(entries[1:]))

    async with forwarding(client) as handler:
        await handler.handle_many(events(1, 2))

    assert [len(call) for call in client.calls] == [2, 1]
    assert client.payloads == [2, 1]


@pytest.mark.parametrize(
    "error",
    [
        client_error("RequestThrottled", 400),
        client_error("ThrottlingException", 403),
        client_error("KMS.ThrottlingException", 400),
        client_error("RequestLimitExceeded", 400),
        client_error("", 429),
        client_error("ServiceUnavailable", 503),
        client_error("InternalFailure", 500),
        EndpointConnectionError(endpoint_url="https://sqs"),
    ],
    ids=str,
)
async def test_a_call_that_failed_for_now_is_made_again(error: Exception) -> None:
    client = FakeSQS(raising(error), raising(error))

    async with forwarding(client) as handler:
        await handler.handle_many(events(1, 2))

    assert [len(call) for call in client.calls] == [2, 2, 2]
    assert client.payloads == [1, 2]


async def test_attempts_are_spaced_by_exponential_backoff_with_full_jitter() -> None:
    """Delays are random, from none to 0.1 s, 0.2 s, 0.4 s and so on: each range is seen to be used, by 50 events."""
    times: dict[str, list[float]] = {}

    def fault(entries: list[dict[str, Any]]) -> dict[str, Any]:
        attempts = times.setdefault(entries[0]["MessageBody"], [])
        attempts.append(time.monotonic())
        if len(attempts) <= 4:
            raise client_error("ServiceUnavailable", 503)
        return success(entries)

    client = FakeSQS(*[fault] * 1000)
    async with forwarding(client, max_batch_size=1, threads=20, serializer=lambda event: str(event.payload)) as handler:
        await handler.handle_many(events(*range(50)))

    for attempt in range(4):
        delays = [sent[attempt + 1] - sent[attempt] for sent in times.values()]
        longest = 0.1 * 2.0**attempt
        assert min(delays) < longest / 2
        assert longest / 2 < max(delays) < longest + 0.25  # the machine may be busy


@pytest.mark.parametrize(
    "error, reason",
    [
        (client_error("AccessDenied", 403), "AccessDenied: no"),
        (client_error("AccessDeniedException", 400), "AccessDeniedException: no"),
        (client_error("KmsDisabled", 400), "KmsDisabled: no"),
        (client_error("AWS.SimpleQueueService.NonExistentQueue", 400), "AWS.SimpleQueueService.NonExistentQueue: no"),
        (NoCredentialsError(), "NoCredentialsError: Unable to locate credentials"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
    ],
    ids=str,
)
async def test_a_call_that_failed_for_good_is_not_made_again(error: Exception, reason: str) -> None:
    client = FakeSQS(raising(error))

    async with forwarding(client) as handler:
        with pytest.raises(ForwardError) as raised:
            await handler.handle_many(events(1, 2))

    assert [(event.payload, reason) for event, reason in raised.value.rejected] == [(1, reason), (2, reason)]
    assert len(client.calls) == 1


async def test_a_message_for_which_sqs_refuses_the_whole_call_harms_no_other() -> None:
    def fault(entries: list[dict[str, Any]]) -> dict[str, Any]:
        if any(json.loads(entry["MessageBody"])["data"] == "bad" for entry in entries):
            raise client_error("InvalidMessageContents", 400)
        return success(entries)

    client = FakeSQS(fault, fault, fault, fault)

    async with forwarding(client) as handler:
        with pytest.raises(ForwardError) as raised:
            await handler.handle_many(events(1, "bad", 2))

    assert [event.payload for event, _ in raised.value.rejected] == ["bad"]
    assert sorted(client.payloads) == [1, 2]
    assert [len(call) for call in client.calls] == [3, 1, 1, 1]


async def test_an_event_is_given_up_when_its_time_is_over() -> None:
    client = FakeSQS(*[raising(client_error("ServiceUnavailable", 503))] * 1000)

    async with forwarding(client, retry_for=0.5) as handler:
        begin = time.monotonic()
        with pytest.raises(ForwardError) as raised:
            await handler.handle_many(events(1, 2))
        took = time.monotonic() - begin

    assert [event.payload for event, _ in raised.value.rejected] == [1, 2]
    assert re.fullmatch(r"ServiceUnavailable: no \(attempts: \d+, within 0.5 s\)", raised.value.rejected[0].reason)
    assert len(client.calls) > 1
    assert took < 2.0


async def test_an_event_whose_call_hangs_is_given_up_in_time_and_its_group_waits_for_the_call() -> None:
    gate = Gate()
    client = FakeSQS(gate)

    async with forwarding(client, FIFO, retry_for=0.3) as handler:
        first, second = events(1, 2)
        with pytest.raises(ForwardError, match=r"no answer within 0\.3 s: it may have arrived"):
            await handler.handle(first)
        following = asyncio.create_task(handler.handle(second))
        other_group = handler.handle(Event("other", 3))
        await other_group
        assert len(client.calls) == 2
        gate.opened.set()
        await following

    assert client.payloads == [3, 1, 2]


async def test_an_event_that_waits_for_a_thread_is_given_up_in_time_and_not_sent_afterwards() -> None:
    gate = Gate()
    client = FakeSQS(raising(client_error("ServiceUnavailable", 503)), gate)
    first, second = Event("a", "first"), Event("b", "second")

    async with forwarding(client, FIFO, threads=1, max_batch_size=1, retry_for=0.4) as handler:
        with pytest.raises(ForwardError) as raised:
            await handler.handle_many([first, second])  # the second one's call hangs when the first one is due again
        gate.opened.set()
        await handler.handle_many([Event("a", "third")])  # of the first one's group

    assert raised.value.rejected == (
        (first, "ServiceUnavailable: no (attempts: 1, within 0.4 s)"),
        (second, "no answer within 0.4 s: it may have arrived"),
    )
    assert client.payloads == ["second", "third"]


async def test_a_group_keeps_its_order_through_failures_and_shares_calls_with_others() -> None:
    client = FakeSQS(failing(0), raising(client_error("RequestThrottled", 400)), failing(0))

    async with forwarding(client, FIFO, message_group_id=lambda event: event.payload[0]) as handler:
        await handler.handle_many(events("a1", "b1", "a2", "a3", "b2", "c1"))

    assert [len(call) for call in client.calls[:1]] == [3]
    for group in "abc":
        order = [payload for payload in client.payloads if payload[0] == group]
        assert order == sorted(order)
    assert len(client.payloads) == 6


async def test_a_group_goes_on_behind_an_event_that_was_given_up() -> None:
    client = FakeSQS(failing(0, sender_fault=True))

    async with forwarding(client, FIFO) as handler:
        with pytest.raises(ForwardError) as raised:
            await handler.handle_many(events(1, 2, 3))

    assert [event.payload for event, _ in raised.value.rejected] == [1]
    assert client.payloads == [2, 3]


async def test_a_fifo_queue_gets_the_group_and_the_id_of_each_event() -> None:
    client = FakeSQS()
    plain = Event("order.placed", id="id-1")
    keyed = Event("order.placed", id="id-2", headers={"partitionkey": "customer-7"})

    async with forwarding(client, FIFO, message_group_id=lambda event: event.payload) as handler:
        await handler.handle_many([plain, keyed, Event("order.placed", "mine", id="id-3")])

    assert [(message["MessageDeduplicationId"], message["MessageGroupId"]) for message in client.arrived] == [
        ("id-1", "order.placed"),
        ("id-2", "customer-7"),
        ("id-3", "mine"),
    ]


@pytest.mark.parametrize("group", ["all", lambda event: "all"], ids=["string", "function"])
async def test_a_message_group_of_ones_own_wins_over_the_header(group: Any) -> None:
    client = FakeSQS()

    async with forwarding(client, FIFO, message_group_id=group) as handler:
        await handler.handle_many(events(1, headers={"partitionkey": "customer-7"}))

    assert client.arrived[0]["MessageGroupId"] == "all"


async def test_a_standard_queue_gets_a_group_for_fairness_and_no_order() -> None:
    client = FakeSQS()

    async with forwarding(client, message_group_id="tenant-1") as handler:
        await handler.handle_many(events(1, 2, 3))

    assert [len(call) for call in client.calls] == [3]
    assert {message["MessageGroupId"] for message in client.arrived} == {"tenant-1"}
    assert all("MessageDeduplicationId" not in message for message in client.arrived)


@pytest.mark.parametrize("url", [STANDARD, FIFO])
async def test_what_still_lingers_when_the_caller_is_cancelled_is_not_sent_later(url: str) -> None:
    client = FakeSQS()

    async with forwarding(client, url, linger=0.1) as handler:
        cancelled = asyncio.create_task(handler.handle_many(events(1, 2)))
        kept = asyncio.create_task(handler.handle_many(events(3)))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await kept
        assert (await asyncio.gather(cancelled, return_exceptions=True))[0].__class__ is asyncio.CancelledError

    assert client.payloads == [3]


async def test_what_waits_for_another_attempt_when_the_caller_is_cancelled_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, most: most)  # the third attempt does not follow at once
    client = FakeSQS(failing(0), failing(0), failing(0), failing(0))

    async with forwarding(client, FIFO) as handler:
        cancelled = asyncio.create_task(handler.handle_many(events(1)))
        await until(lambda: len(client.calls) == 2)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        calls = len(client.calls)
        await handler.handle_many(events(2))  # of the same group

    assert [json.loads(entry["MessageBody"])["data"] for call in client.calls[calls:] for entry in call] == [2] * (
        len(client.calls) - calls
    )
    assert client.payloads == [2]


async def test_stop_sends_what_lingers_and_ends_the_threads(threads: Threads) -> None:
    client = FakeSQS()
    handler = SQSForwardHandler(STANDARD, client=client, linger=10.0)
    await handler.start()
    waiting = asyncio.create_task(handler.handle_many(events(1, 2)))
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await handler.stop()
        await waiting

    assert client.payloads == [1, 2]
    assert client.closed == 0  # it is the user's
    await until(lambda: not threads())


async def test_stop_does_not_wait_for_a_call_that_hangs_for_nobody(threads: Threads) -> None:
    gate = Gate()
    client = FakeSQS(gate)
    handler = SQSForwardHandler(STANDARD, client=client, linger=0.0)
    waiting = asyncio.create_task(handler.handle_many(events(1)))
    await until(gate.entered.is_set)
    waiting.cancel()
    await asyncio.wait([waiting])

    async with asyncio.timeout(5):
        await handler.stop()

    assert threads()
    gate.opened.set()
    await until(lambda: not threads())


async def test_a_handler_starts_again_after_a_stop() -> None:
    client = FakeSQS()
    handler = SQSForwardHandler(STANDARD, client=client)
    await handler.stop()  # never started

    for number in range(2):
        await handler.start()
        await handler.start()
        await handler.handle_many(events(number))
        await handler.stop()
        await handler.stop()

    assert client.payloads == [0, 1]


def test_event_loops_one_after_another_may_use_a_handler_that_was_never_started() -> None:
    client = FakeSQS()
    handler = SQSForwardHandler(FIFO, client=client)

    for number in range(3):
        asyncio.run(handler.handle_many(events(number)))
    asyncio.run(handler.stop())

    assert client.payloads == [0, 1, 2]


def test_event_loops_of_several_threads_may_use_one_handler_at_once() -> None:
    client = FakeSQS()
    handler = SQSForwardHandler(STANDARD, client=client)

    async def requests(begin: int) -> None:
        await asyncio.gather(*(handler.handle_many(events(begin + number)) for number in range(25)))

    threads = [threading.Thread(target=lambda begin=begin: asyncio.run(requests(begin))) for begin in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(handler.stop())

    assert sorted(client.payloads) == list(range(100))
    assert len(client.threads) <= 4


def test_a_loop_that_ends_while_a_call_runs_harms_no_later_one() -> None:
    gate = Gate()
    client = FakeSQS(gate)
    handler = SQSForwardHandler(STANDARD, client=client, linger=0.0, threads=1)

    async def leave() -> None:
        task = asyncio.create_task(handler.handle_many(events(1)))
        await until(gate.entered.is_set)
        task.cancel()

    asyncio.run(leave())
    gate.opened.set()
    asyncio.run(handler.handle_many(events(2)))
    asyncio.run(handler.stop())

    assert client.payloads == [1, 2]


async def test_the_threads_of_a_handler_that_is_dropped_end(threads: Threads) -> None:
    await SQSForwardHandler(STANDARD, client=FakeSQS()).handle_many(events(1))

    gc.collect()

    await until(lambda: not threads())


async def test_four_calls_run_at_once_unless_told_otherwise() -> None:
    gates = [Gate() for _ in range(6)]
    client = FakeSQS(*gates)

    async with forwarding(client, linger=0.0, max_batch_size=1) as handler:
        sending = asyncio.create_task(handler.handle_many(events(*range(6))))
        await until(lambda: client.running == 4)
        await asyncio.sleep(0.05)  # time for a fifth
        running = client.running
        for gate in gates:
            gate.opened.set()
        await sending

    assert running == client.most_running == 4


async def test_calls_are_made_in_threads_of_the_handlers_own() -> None:
    client = FakeSQS()

    async with forwarding(client, threads=1) as handler:
        await handler.handle_many(events(*range(100)))

    assert client.threads == {"fastapi_events-sqs-0"}
    assert client.most_running == 1


async def test_a_queue_that_does_not_tell_its_limit_is_taken_for_the_largest(caplog: pytest.LogCaptureFixture) -> None:
    class Silent(FakeSQS):
        def get_queue_attributes(self, *, QueueUrl: str, AttributeNames: Sequence[str]) -> dict[str, Any]:  # noqa: N803
            raise client_error("AccessDenied", 403)

    client = Silent()
    with caplog.at_level(logging.WARNING, logger="fastapi_events"):
        async with forwarding(client) as handler:
            with pytest.raises(ForwardError, match="the queue takes 1,048,576"):
                await handler.handle_many(events(1, "x" * 1_048_576))

    assert client.payloads == [1]
    assert "check the URL, and allow sqs:GetQueueAttributes" in caplog.text


async def test_an_iterable_that_fails_half_way_sends_nothing_that_waits() -> None:
    client = FakeSQS()

    def broken() -> Any:
        yield Event("order.placed", 1)
        raise KeyError("no more")

    async with forwarding(client) as handler:
        with pytest.raises(KeyError):
            await handler.handle_many(broken())

    assert client.calls == []
