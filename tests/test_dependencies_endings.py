"""What becomes of threads, and of what dependencies opened, when time runs out or somebody cancels."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends

from fastapi_events import Event, EventBus, Failure, LocalHandler, Retry

for_both_generators = pytest.mark.parametrize("is_async", [True, False], ids=["async generator", "sync generator"])


class Session:
    """Can be opened by an async and by a sync generator; writes what becomes of it into a log."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def generator(self, is_async: bool) -> Callable[[], Any]:
        return self.asynchronous if is_async else self.synchronous

    def synchronous(self) -> Iterator[None]:
        self.log.append("open")
        try:
            yield
        except BaseException as error:
            self.log.append(f"roll back after {type(error).__name__}")
            raise
        finally:
            self.log.append("close")

    async def asynchronous(self) -> AsyncIterator[None]:
        self.log.append("open")
        try:
            yield
        except BaseException as error:
            await asyncio.sleep(0)
            self.log.append(f"roll back after {type(error).__name__}")
            raise
        finally:
            self.log.append("close")
            await asyncio.sleep(0)


class Gate:
    """Holds threads back, and counts those that really are inside at once."""

    def __init__(self) -> None:
        self.entered = 0
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def enter(self) -> None:
        with self._lock:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self._open.wait(10)
        with self._lock:
            self.inside -= 1


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread does."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def turns_of_the_loop() -> None:
    """Let everything happen that waits for no thread and no clock, and give threads the time to begin."""
    for _ in range(50):
        await asyncio.sleep(0.001)


def local(subscriber: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    handler.register(subscriber, **options)
    return handler


# What is open


@for_both_generators
async def test_the_timeout_of_a_subscriber_reaches_what_it_has_open(is_async: bool) -> None:
    session = Session()
    failures: list[Failure] = []

    async def subscriber(event: Event, _: Annotated[None, Depends(session.generator(is_async))]) -> None:
        await asyncio.Event().wait()

    async with EventBus([local(subscriber, timeout=0.2)], on_error=failures.append) as bus:
        bus.dispatch("order.placed")
        await bus.drain()

    assert session.log == ["open", "roll back after CancelledError", "close"]
    assert [type(failure.exception) for failure in failures] == [TimeoutError]


@for_both_generators
async def test_a_drain_that_gives_a_subscriber_up_reaches_what_it_has_open(is_async: bool) -> None:
    session = Session()
    began = asyncio.Event()

    async def subscriber(event: Event, _: Annotated[None, Depends(session.generator(is_async))]) -> None:
        began.set()
        await asyncio.Event().wait()

    async with EventBus([local(subscriber)]) as bus:
        bus.dispatch("order.placed")
        await began.wait()
        report = await bus.drain(timeout=0)

    assert session.log == ["open", "roll back after CancelledError", "close"]
    assert [left.name for left in report.cancelled] == ["order.placed"]


@for_both_generators
@pytest.mark.parametrize("subscriber_is_async", [True, False], ids=["async", "sync"])
async def test_every_attempt_has_its_own(is_async: bool, subscriber_is_async: bool) -> None:
    session = Session()
    attempts: list[int] = []

    def fail_once() -> None:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise OSError

    def sync_subscriber(event: Event, _: Annotated[None, Depends(session.generator(is_async))]) -> None:
        fail_once()

    async def async_subscriber(event: Event, _: Annotated[None, Depends(session.generator(is_async))]) -> None:
        fail_once()

    subscriber = async_subscriber if subscriber_is_async else sync_subscriber
    async with EventBus([local(subscriber, retry=Retry(initial=0.0))]) as bus:
        bus.dispatch("order.placed")
        assert (await bus.drain()).delivered == 1

    assert session.log == ["open", "roll back after OSError", "close", "open", "close"]


async def test_a_sync_subscriber_that_overruns_keeps_what_it_has_open_until_its_thread_ends() -> None:
    session = Session()
    gate = Gate()
    failures: list[Failure] = []

    def subscriber(event: Event, _: Annotated[None, Depends(session.synchronous)]) -> None:
        gate.enter()

    async with EventBus([local(subscriber, timeout=0.2)], on_error=failures.append) as bus:
        bus.dispatch("order.placed")
        await until(lambda: failures)
        assert session.log == ["open"]
        gate.open()
        await until(lambda: len(session.log) == 2)

    assert session.log == ["open", "close"]
    assert [type(failure.exception) for failure in failures] == [TimeoutError]


@for_both_generators
@pytest.mark.parametrize("subscriber_is_async", [True, False], ids=["async", "sync"])
async def test_whenever_it_is_cancelled_what_was_opened_is_closed(is_async: bool, subscriber_is_async: bool) -> None:
    session, around = Session(), Session()

    def connection(_: Annotated[None, Depends(around.asynchronous)]) -> Iterator[None]:
        yield from session.synchronous()

    async def async_connection(_: Annotated[None, Depends(around.synchronous)]) -> AsyncIterator[None]:
        async for _ in session.asynchronous():
            yield

    chosen = async_connection if is_async else connection

    async def async_subscriber(event: Event, _: Annotated[None, Depends(chosen)]) -> None:
        await asyncio.sleep(0)

    def sync_subscriber(event: Event, _: Annotated[None, Depends(chosen)]) -> None: ...

    subscriber = async_subscriber if subscriber_is_async else sync_subscriber
    handler = local(subscriber)
    for turns in range(30):
        task = asyncio.create_task(handler.handle(Event("order.placed")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await handler.handle(Event("order.placed"))

    for log in (session.log, around.log):
        assert 0 < log.count("open") == log.count("close")


# How many threads


@pytest.mark.parametrize("opens", [True, False], ids=["generator", "function"])
async def test_sync_dependencies_count_against_the_threads_of_the_bus(opens: bool) -> None:
    gate = Gate()

    def dependency() -> None:
        gate.enter()

    def generator() -> Iterator[None]:
        gate.enter()
        yield

    async def subscriber(event: Event, _: Annotated[None, Depends(generator if opens else dependency)]) -> None: ...

    async with EventBus([local(subscriber, concurrency=4)], max_threads=2) as bus, bus.scope():
        for _ in range(4):
            bus.dispatch("order.placed", deliver_on="now")
        await until(lambda: gate.entered == 2)
        await turns_of_the_loop()
        assert gate.entered == 2
        gate.open()

    assert (gate.entered, gate.most) == (4, 2)


@pytest.mark.parametrize("options", [{}, {"timeout": 60.0}, {"retry": Retry()}], ids=["plain", "timeout", "retry"])
async def test_a_thread_that_a_drain_gave_up_keeps_its_place(options: dict[str, Any]) -> None:
    gate = Gate()

    def subscriber(event: Event) -> None:
        gate.enter()

    async with EventBus([local(subscriber, **options)], max_threads=1) as bus:
        bus.dispatch("order.placed")
        await until(lambda: gate.entered)
        await bus.drain(timeout=0)
        bus.dispatch("order.placed")
        await turns_of_the_loop()
        assert gate.entered == 1
        gate.open()
        await bus.drain()

    assert (gate.entered, gate.most) == (2, 1)


async def test_a_thread_whose_caller_was_cancelled_keeps_its_place() -> None:
    gate = Gate()

    def subscriber(event: Event) -> None:
        gate.enter()

    handler = local(subscriber)
    async with EventBus([handler], max_threads=1) as bus:
        async with bus.scope():
            calls = [asyncio.create_task(handler.handle(Event("order.placed"))) for _ in range(3)]
            await until(lambda: gate.entered)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        bus.dispatch("order.placed")
        await turns_of_the_loop()
        assert (gate.entered, bus.limiter().borrowed_tokens) == (1, 1)
        gate.open()
        await bus.drain()
        assert bus.limiter().borrowed_tokens == 0

    assert (gate.entered, gate.most) == (2, 1)


async def test_a_dependency_that_overruns_keeps_its_place_and_who_waits_for_it_never_begins() -> None:
    gate = Gate()
    failures: list[Failure] = []

    def dependency() -> None:
        gate.enter()

    async def subscriber(event: Event, _: Annotated[None, Depends(dependency)]) -> None: ...

    handler = local(subscriber, timeout=0.2, concurrency=3)
    async with EventBus([handler], max_threads=1, on_error=failures.append) as bus:
        async with bus.scope():
            for _ in range(3):
                bus.dispatch("order.placed")
            waiting = asyncio.create_task(until(lambda: len(failures) == 2))  # the third ends when its thread does
            waiting.add_done_callback(lambda _: gate.open())
        await waiting

    assert gate.entered == 1
    assert [type(failure.exception) for failure in failures] == [TimeoutError] * 3


async def test_threads_that_are_left_alone_may_outlive_their_loop() -> None:
    gate = Gate()
    ended = threading.Event()

    def subscriber(event: Event) -> None:
        gate.enter()
        ended.set()

    async def main() -> None:
        bus = EventBus([local(subscriber)], max_threads=1)
        async with bus:
            bus.dispatch("order.placed")
            await until(lambda: gate.entered)
            await bus.drain(timeout=0)

    await asyncio.to_thread(asyncio.run, main())
    gate.open()

    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_drain_that_gives_up_does_not_disturb_what_a_timeout_closes() -> None:
    log: list[str] = []
    closing = asyncio.Event()

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            closing.set()
            await asyncio.sleep(0.02)
            log.append("rolled back")
            raise

    async def subscriber(event: Event, _: Annotated[None, Depends(session)]) -> None:
        await asyncio.Event().wait()

    handler = LocalHandler()
    handler.register(subscriber, timeout=0.02)
    async with EventBus([handler]) as bus:
        bus.dispatch("order.placed")
        await closing.wait()
        report = await bus.drain(timeout=0)

    assert log == ["rolled back"]
    assert [failed.name for failed in report.failed] == ["order.placed"]


@pytest.mark.parametrize("around", [True, False], ids=["within another", "alone"])
async def test_a_drain_that_gives_up_does_not_disturb_what_a_failure_closes(around: bool) -> None:
    log: list[str] = []
    closing = asyncio.Event()

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except LookupError:
            closing.set()
            await asyncio.sleep(0.02)
            log.append("rolled back")
            raise

    async def connection(_: Annotated[None, Depends(session)]) -> AsyncIterator[None]:
        yield

    async def subscriber(event: Event, _: Annotated[None, Depends(connection if around else session)]) -> None:
        if event.payload == "fails":
            raise LookupError
        closing.set()
        await asyncio.Event().wait()

    async with EventBus([local(subscriber)]) as bus:
        bus.dispatch("order.placed", "fails")
        await closing.wait()
        report = await bus.drain(timeout=0)
        closing.clear()
        bus.dispatch("order.placed", "waits")  # which is cancelled as ever
        await closing.wait()
        later = await bus.drain(timeout=0)

    assert log == ["rolled back"]
    assert [failed.name for failed in report.failed] == ["order.placed"]
    assert [left.name for left in later.cancelled] == ["order.placed"]


async def test_after_a_failure_the_next_event_in_the_same_task_can_be_given_up() -> None:
    session = Session()
    waiting = asyncio.Event()

    async def subscriber(event: Event, _: Annotated[None, Depends(session.asynchronous)]) -> None:
        if event.payload == "fails":
            raise LookupError
        waiting.set()
        await asyncio.Event().wait()

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            bus.dispatch("order.placed", "fails", deliver_on="now")
            bus.dispatch("order.placed", "waits", deliver_on="now")
            await waiting.wait()
            report = await bus.drain(timeout=0)

    assert [left.name for left in report.cancelled] == ["order.placed"]
    assert session.log[-2:] == ["roll back after CancelledError", "close"]
