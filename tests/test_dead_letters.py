"""What becomes of events that a subscriber finally failed, or that a drain gave up; on virtual time."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fastapi_events import (
    BaseEventHandler,
    Event,
    EventBus,
    Failure,
    FileHandler,
    ForwardError,
    LocalHandler,
    Rejection,
    Retry,
    dispatch,
)
from tests.virtual_time import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Letters(BaseEventHandler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event[Any]] = []

    async def handle(self, event: Event[Any]) -> None:
        self.events.append(event)

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(event.name, event.headers["dlreason"]) for event in self.events]


def local(*functions: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    for function in functions:
        handler.register(**options)(function)
    return handler


async def fails(event: Event[Any]) -> None:
    raise KeyError("no such customer")


async def hangs(event: Event[Any]) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_letter_is_the_event_with_the_reason_in_its_headers():
    letters = Letters()
    async with EventBus([local(fails, retry=Retry(attempts=3))], dead_letters=letters, source="orders") as bus:
        event = bus.dispatch("a", {"x": 1}, subject="7", headers={"tenant": "t"})
        report = await bus.drain()
        stats = bus.stats()
    (letter,) = letters.events
    assert (letter, letter.id, letter.time, letter.source, letter.subject) == (
        event,
        event.id,
        event.time,
        "orders",
        "7",
    )
    assert dict(letter.headers) == {
        "tenant": "t",
        "dlreason": "failed",
        "dlsubscriber": "tests.test_dead_letters.fails",
        "dlattempts": "3",
        "dlerror": "KeyError",
        "dlmessage": "'no such customer'",
    }
    assert Event.from_json(letter.to_json()) == event
    assert (stats.dead_lettered, stats.failed, stats.pending) == (1, 0, 0)
    assert [failed.id for failed in report.failed] == [event.id]


async def test_each_subscriber_that_failed_makes_a_letter_and_hooks_are_told_too():
    letters, failures = Letters(), list[Failure]()
    delivered: list[str] = []

    async def also_fails(event: Event[Any]) -> None:
        raise OSError

    async def succeeds(event: Event[Any]) -> None:
        delivered.append(event.name)

    bus = EventBus([local(fails, succeeds, also_fails)], dead_letters=letters, on_error=failures.append)
    async with bus:
        bus.dispatch("a")
    assert delivered == ["a"]
    assert sorted(event.headers["dlerror"] for event in letters.events) == ["KeyError", "OSError"]
    assert sorted(type(failure.exception).__name__ for failure in failures) == ["KeyError", "OSError"]


async def test_a_letter_has_the_payload_as_it_was_dispatched():
    letters = Letters()

    async def vandal(event: Event[Any]) -> None:
        event.payload["lines"].clear()
        raise KeyError

    async with EventBus([local(vandal)], dead_letters=letters) as bus:
        bus.dispatch("a", {"lines": [1, 2]})
    assert letters.events[0].payload == {"lines": [1, 2]}


async def test_letters_in_a_file_are_read_back(tmp_path):
    file = FileHandler(tmp_path / "dead.jsonl")
    # the file is written in a thread, and virtual time does not wait for threads: so no timer runs meanwhile
    async with EventBus([local(fails)], dead_letters=file) as bus:
        async with bus.scope():
            events = [dispatch("order.placed", {"id": number}) for number in range(3)]
    assert [(event.id, event.payload, event.headers["dlerror"]) for event in file.read()] == [
        (event.id, event.payload, "KeyError") for event in events
    ]


async def test_letters_may_go_to_functions():
    heard: list[tuple[str, str]] = []

    async def on_dead_letter(event: Event[Any]) -> None:
        heard.append((event.name, event.headers["dlreason"]))

    async with EventBus([local(fails)], dead_letters=local(on_dead_letter)) as bus:
        bus.dispatch("a")
    assert heard == [("a", "failed")]


@pytest.mark.parametrize(
    "message", ["x" * 5000, "a lone \ud800 surrogate", "two\nlines"], ids=["long", "surrogate", "lines"]
)
async def test_whatever_the_error_says_the_letter_can_be_written(message, caplog):
    caplog.set_level(logging.CRITICAL, logger="fastapi_events")  # xdist cannot pass a surrogate on in the captured log
    letters = Letters()

    async def subscriber(event: Event[Any]) -> None:
        raise ValueError(message)

    async with EventBus([local(subscriber)], dead_letters=letters) as bus:
        bus.dispatch("a")
    (letter,) = letters.events
    assert len(letter.headers["dlmessage"]) <= 500
    assert Event.from_json(letter.to_json()).headers == letter.headers


async def test_an_error_that_cannot_say_what_it_is_makes_a_letter_all_the_same():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

        __repr__ = __str__

    letters, failures = Letters(), list[Failure]()

    async def subscriber(event: Event[Any]) -> None:
        raise Mute

    async with EventBus([local(subscriber)], dead_letters=letters, on_error=failures.append) as bus:
        bus.dispatch("a")
        bus.dispatch("b")
    assert [letter.name for letter in letters.events] == ["a", "b"]
    assert letters.events[0].headers["dlerror"].endswith("Mute")
    assert len(failures) == 2


class Refusing(BaseEventHandler):
    """Fails as it is told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def handle(self, event: Event[object]) -> None: ...

    async def handle_many(self, events: Iterable[Event[object]]) -> None:
        raise self.error


class Fatal(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError("disk full"), Fatal("odd"), asyncio.CancelledError("mine")], ids=repr)
async def test_where_the_letter_is_refused_the_log_names_the_event_and_all_goes_on(error, caplog):
    failures: list[Failure] = []
    bus = EventBus([local(fails)], dead_letters=Refusing(error), on_error=failures.append)
    async with bus:
        async with bus.scope():
            first, second = dispatch("a"), dispatch("b")
        stats = bus.stats()
    refused = [record.getMessage() for record in caplog.records if "dead-letter handler failed" in record.getMessage()]
    assert [event.id in message for event, message in zip((first, second), refused, strict=True)] == [True, True]
    assert [failure.event.name for failure in failures] == ["a", "b"]
    assert (stats.failed, stats.dead_lettered, stats.pending) == (2, 0, 0)


# Drain


async def test_what_a_drain_gives_up_goes_to_the_dead_letters_and_not_to_the_log(caplog):
    letters, failures = Letters(), list[Failure]()
    async with EventBus([local(hangs)], dead_letters=letters, on_error=failures.append) as bus:
        async with bus.scope():
            dispatch("runs", deliver_on="now")
            dispatch("waits", deliver_on="now")
            await asyncio.sleep(0.1)
            report = await bus.drain(timeout=3.0)
        stats = bus.stats()
    assert letters.reasons == [("runs", "drained"), ("waits", "drained")]
    assert [letter.headers["dlattempts"] for letter in letters.events] == ["1", "0"]
    assert not report.complete
    assert [failure.event.name for failure in failures] == ["runs", "waits"]
    assert (stats.dead_lettered, stats.cancelled, stats.pending) == (2, 0, 0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("error", [OSError("disk full"), Fatal("odd"), asyncio.CancelledError("mine")], ids=repr)
async def test_where_the_letters_of_a_drain_are_refused_they_are_in_the_log(error, caplog):
    failures: list[Failure] = []
    async with EventBus([local(hangs)], dead_letters=Refusing(error), on_error=failures.append) as bus:
        event = bus.dispatch("a")
        await bus.drain(timeout=1.0)
        stats = bus.stats()
    assert [event.id for record in caplog.records if "lost" in record.getMessage()] == [event.id]
    assert len(failures) == 1
    assert (stats.dead_lettered, stats.cancelled) == (0, 1)


@pytest.mark.parametrize("stubborn", [False, True], ids=["hangs", "hangs on"])
async def test_a_dead_letter_handler_that_hangs_does_not_keep_a_drain(stubborn, caplog):
    let_go = asyncio.Event()

    class Hanging(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    if not stubborn:
                        raise

    async with EventBus([local(hangs)], dead_letters=Hanging()) as bus:
        event = bus.dispatch("a")
        began = asyncio.get_running_loop().time()
        await bus.drain(timeout=1.0)
        assert asyncio.get_running_loop().time() - began < 10.0
        assert (bus.stats().cancelled, bus.stats().pending) == (1, 0)
        assert any("lost" in record.getMessage() and event.id in record.getMessage() for record in caplog.records)
        let_go.set()
        await asyncio.sleep(0)


async def test_a_dead_letter_handler_that_takes_too_long_after_a_deadline_is_ended(caplog):
    ended: list[str] = []

    class Hanging(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            try:
                await hangs(event)
            finally:
                ended.append(event.name)

    async with EventBus([local(hangs)], dead_letters=Hanging()) as bus:
        bus.dispatch("a")
        await bus.drain(timeout=1.0)
        await asyncio.sleep(0)
        assert ended == ["a"]
    assert "the dead-letter handler took longer" in caplog.text
    assert "on_withheld" not in caplog.text


async def test_a_dead_letter_handler_that_hangs_on_a_failure_is_ended_by_the_drain(caplog):
    class Hanging(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            await hangs(event)

    async with EventBus([local(fails)], dead_letters=Hanging()) as bus:
        bus.dispatch("a")
        report = await bus.drain(timeout=1.0)
        stats = bus.stats()
    assert [failed.name for failed in report.failed] == ["a"]
    assert (stats.failed, stats.cancelled, stats.pending) == (1, 0, 0)


async def test_each_rejected_event_is_a_letter_with_its_own_reason():
    class Picky(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            await self.handle_many([event])

        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            rejected = [Rejection(event, f"no {event.name}") for event in events if event.name != "b"]
            raise ForwardError("two of three", rejected)

    letters = Letters()
    async with EventBus([Picky()], dead_letters=letters) as bus, bus.scope():
        for name in "abc":
            bus.dispatch(name)
    reasons = [(letter.name, letter.headers["dlmessage"]) for letter in letters.events]
    assert reasons == [("a", "no a"), ("c", "no c")]
    assert bus.stats().delivered == 1
