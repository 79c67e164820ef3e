"""What becomes of events while SQS and the network fail."""

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from botocore.config import Config
from hypothesis import HealthCheck, example, given, settings, strategies as st

from fastapi_events import BaseEventHandler, Event, EventBus, Failure, ForwardError
from fastapi_events.handlers.aws import SQSForwardHandler

from .moto import CREDENTIALS, MotoServer, Queue
from .proxy import Fault, FaultProxy

IMPATIENT = Config(connect_timeout=1, read_timeout=0.4)

Waves = list[list[list[str]]]  # waves of requests at once, of events, each with its group


class Kept(BaseEventHandler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event[Any]] = []

    async def handle(self, event: Event[object]) -> None:
        self.events.append(event)


faults = st.one_of(
    st.builds(Fault, st.sampled_from(["throttled", "forbidden", "unavailable", "reset", "reset after"])),
    st.builds(Fault, st.sampled_from(["hang", "hang after"]), seconds=st.just(0.5)),
    st.builds(Fault, st.just("slow"), seconds=st.sampled_from([0.05, 0.5])),
    st.builds(Fault, st.just("partial"), st.frozensets(st.integers(0, 9), min_size=1), st.booleans()),
)
waves = st.lists(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=5), min_size=1, max_size=2
)


async def send(url: str, proxy: FaultProxy, waves: Waves, retry_for: float) -> tuple[Waves, Kept, list[Failure]]:
    """Dispatch the events; return their ids in the shape of `waves`, the dead letters, and the failures reported."""
    dead_letters = Kept()
    failures: list[Failure] = []
    handler = SQSForwardHandler(
        proxy.url(url),
        endpoint_url=proxy.endpoint,
        config=IMPATIENT,
        linger=0.01,
        retry_for=retry_for,
        message_group_id=lambda event: event.payload,
        **CREDENTIALS,
    )

    async def request(bus: EventBus, groups: list[str]) -> list[str]:
        async with bus.scope():
            return [bus.dispatch("order.placed", group).id for group in groups]

    async with EventBus([handler], dead_letters=dead_letters, on_error=failures.append) as bus:
        ids = [list(await asyncio.gather(*(request(bus, groups) for groups in wave))) for wave in waves]
    return ids, dead_letters, failures


def in_order(waves: Waves, ids: Waves, group: str, without: Iterable[str]) -> list[list[list[str]]]:
    """Return the ids of one group, in the shape of `waves`."""
    left_out = set(without)
    return [
        [
            [event for event, of in zip(request_ids, request, strict=True) if of == group and event not in left_out]
            for request_ids, request in zip(wave_ids, wave, strict=True)
        ]
        for wave_ids, wave in zip(ids, waves, strict=True)
    ]


def check_order(waves: Waves, ids: Waves, arrived: list[str], rejected: list[str]) -> None:
    """Each request's events of a group are in order, and a wave's behind the wave's before."""
    place = {event: number for number, event in enumerate(arrived)}
    for group in "abc":
        last_of_wave_before = -1
        for wave in in_order(waves, ids, group, rejected):
            places = [[place[event] for event in request] for request in wave]
            assert all(numbers == sorted(numbers) for numbers in places)
            assert all(number > last_of_wave_before for numbers in places for number in numbers)
            last_of_wave_before = max((number for numbers in places for number in numbers), default=last_of_wave_before)


@pytest.mark.parametrize("kind", ["", ".fifo"], ids=["standard", "fifo"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@example(waves=[[["a"] * 6, ["a", "b"]]], plan=[Fault("partial", frozenset({0}))] * 3, retry_for=8.0)
@example(waves=[[["a"] * 3]], plan=[Fault("reset after")] * 2, retry_for=8.0)
@example(waves=[[["a"] * 3, ["b"] * 3]], plan=[Fault("unavailable")] * 30, retry_for=0.3)
@given(waves=waves, plan=st.lists(faults, max_size=6), retry_for=st.sampled_from([8.0, 0.3]))
def test_every_event_arrives_or_is_a_dead_letter_with_its_reason(
    moto: MotoServer, proxy: FaultProxy, kind: str, waves: Waves, plan: list[Fault], retry_for: float
) -> None:
    client = moto.client("sqs")
    queue = Queue(client, uuid.uuid4().hex + kind)
    proxy.faults.extend(plan)

    ids, dead_letters, failures = asyncio.run(send(queue.url, proxy, waves, retry_for))

    proxy.faults.clear()
    proxy.wait_until_quiet()  # moto forgets the id of a message that was taken out, and would take a late one again
    arrived = [Event.from_json(message["Body"]).id for message in queue.messages()]
    client.delete_queue(QueueUrl=queue.url)
    client.close()
    dispatched = [event for wave in ids for request in wave for event in request]
    rejected = [letter.id for letter in dead_letters.events]
    assert set(arrived) | set(rejected) == set(dispatched)
    assert len(rejected) == len(set(rejected))
    assert all(letter.headers["dlmessage"] for letter in dead_letters.events)
    assert [failure.event.id for failure in failures] == rejected
    for failure in failures:
        assert isinstance(failure.exception, ForwardError)
        assert any(event.id == failure.event.id and reason for event, reason in failure.exception.rejected)
    if kind == ".fifo":
        assert len(arrived) == len(set(arrived))
        # of one that was given up nobody knows whether it arrived after all, and when
        check_order(waves, ids, arrived, rejected)


@pytest.mark.parametrize(
    "kind", ["throttled", "forbidden", "unavailable", "hang", "hang after", "reset", "reset after", "slow"]
)
async def test_a_call_that_fails_for_now_is_made_again(queue: Queue, proxy: FaultProxy, kind: Any) -> None:
    proxy.faults.append(Fault(kind, seconds=1.0))
    handler = SQSForwardHandler(
        proxy.url(queue.url), endpoint_url=proxy.endpoint, config=IMPATIENT, linger=0.0, **CREDENTIALS
    )

    await handler.handle(("order.placed", 1))
    await handler.stop()

    assert proxy.calls == [1, 1]
    assert {Event.from_json(message["Body"]).payload for message in queue.messages()} == {1}


async def test_what_a_drain_gives_up_is_reported_and_not_sent_again(queue: Queue, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault("hang", seconds=0.5))
    dead_letters = Kept()
    handler = SQSForwardHandler(
        proxy.url(queue.url), endpoint_url=proxy.endpoint, max_batch_size=3, linger=5.0, **CREDENTIALS
    )

    async with EventBus([handler], dead_letters=dead_letters) as bus:
        sent = [bus.dispatch("order.placed", number) for number in range(3)]
        async with asyncio.timeout(20):
            while not proxy.hanging.is_set():
                await asyncio.sleep(0.01)
        sent.append(bus.dispatch("order.placed", "lingers"))
        report = await bus.drain(timeout=0.1)
        for number in range(3, 6):
            bus.dispatch("order.placed", number)

    assert {(left.name, left.id) for left in report.cancelled} == {("order.placed", event.id) for event in sent}
    assert not report.never_started
    assert {letter.payload for letter in dead_letters.events} == {0, 1, 2, "lingers"}
    assert [Event.from_json(message["Body"]).payload for message in queue.messages()] == [3, 4, 5]


async def test_a_shutdown_sends_what_lingers(queue: Queue, moto: MotoServer) -> None:
    handler = SQSForwardHandler(queue.url, endpoint_url=moto.endpoint, linger=0.5, **CREDENTIALS)

    async with EventBus([handler]) as bus:
        bus.dispatch("order.placed", 1)
        report = await bus.stop()

    assert report.complete
    assert len(queue.messages()) == 1
