"""Sync subscribers: hops into worker threads, how many there are, attempts, and threads that outlive their time."""

import asyncio
import contextvars
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest

from fastapi_events import DrainReport, Event, EventBus, Failure, LocalHandler, Retry, dispatch
from tests.virtual_time import run

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class CountingBus(EventBus):
    """Counts the hops into worker threads."""

    hops = 0

    def limiter(self) -> Any:
        self.hops += 1
        return super().limiter()


class Hanging:
    """Stays in its thread until it is let go, for events named "hangs"."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []

    def __call__(self, event: Event[Any]) -> None:
        self.begun.append(event.name)
        if event.name == "hangs":
            assert self.let_go.wait(5)
        self.ended.append(event.name)


def local(*functions: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    for function in functions:
        handler.register(**options)(function)
    return handler


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread does."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


# Hops


async def test_a_sync_subscriber_takes_a_batch_in_one_hop():
    seen: list[tuple[bool, str]] = []

    def subscriber(event: Event[Any]) -> None:
        seen.append((threading.current_thread() is threading.main_thread(), request_id.get()))

    async with CountingBus([local(subscriber)]) as bus:
        async with bus.scope():
            request_id.set("7")
            for _ in range(100):
                dispatch("a")
        assert bus.hops == 1
    assert seen == [(False, "7")] * 100


async def test_with_a_timeout_every_event_has_a_hop_of_its_own():
    async with CountingBus([local(lambda event: None, timeout=5.0)]) as bus:
        async with bus.scope():
            for _ in range(10):
                dispatch("a")
        assert bus.hops == 10


async def test_the_bus_has_no_more_threads_than_it_is_allowed():
    lock = threading.Lock()
    running = most = 0

    def make() -> Callable[..., Any]:
        def subscriber(event: Event[Any]) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)
            with lock:
                running -= 1

        return subscriber

    async with EventBus([local(*(make() for _ in range(8)))], max_threads=2) as bus:
        async with bus.scope():
            for _ in range(3):
                dispatch("a")
        assert bus.stats().delivered == 24
    assert most == 2


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}], ids=["plain", "timeout"])
async def test_sync_subscribers_handle_as_many_at_once_as_they_say(options):
    together = threading.Barrier(3, timeout=5)

    def subscriber(event: Event[Any]) -> None:
        together.wait()

    async with EventBus([local(subscriber, concurrency=3, **options)]) as bus:
        async with bus.scope():
            for _ in range(9):
                dispatch("a")
        assert bus.stats().delivered == 9


async def test_where_no_thread_can_be_had_the_events_failed():
    class Exhausted(EventBus):
        def limiter(self) -> Any:
            raise RuntimeError("can't start new thread")

    failures: list[Failure] = []
    async with Exhausted([local(lambda event: None)], on_error=failures.append) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
        assert (bus.stats().failed, bus.stats().pending) == (2, 0)
    assert [str(failure.exception) for failure in failures] == ["can't start new thread"] * 2


# Attempts


async def test_sync_subscribers_are_tried_again_too():
    starts: list[bool] = []

    def subscriber(event: Event[Any]) -> None:
        starts.append(threading.current_thread() is threading.main_thread())
        if len(starts) < 3:
            raise OSError

    async with EventBus([local(subscriber, retry=Retry(initial=0.0))]) as bus:
        bus.dispatch("a")
        assert (await bus.drain()).delivered == 1
    assert starts == [False] * 3


async def test_a_thread_that_overruns_is_counted_and_nothing_further_starts_until_it_ends(caplog):
    hanging = Hanging()
    failures: list[Failure] = []
    async with EventBus([local(hanging, timeout=0.02)], on_error=failures.append) as bus:
        bus.dispatch("another scope")
        await bus.drain()
        async with bus.scope():
            dispatch("hangs", deliver_on="now")
            dispatch("b", deliver_on="now")
            await until(lambda: failures)
            for _ in range(10):
                await asyncio.sleep(0)
            stats = bus.stats()
            assert hanging.ended == ["another scope"]
            hanging.let_go.set()
        await bus.drain()
        assert (bus.stats().delivered, bus.stats().pending) == (2, 0)
    assert isinstance(failures[0].exception, TimeoutError)
    assert (stats.overrun, stats.failed, stats.pending) == (1, 1, 1)
    assert hanging.ended == ["another scope", "hangs", "b"]
    assert "ended after its timeout, without an error" in caplog.text


async def test_what_comes_later_in_the_scope_waits_for_the_thread_too():
    hanging = Hanging()
    async with EventBus([local(hanging, timeout=0.02)]) as bus:
        async with bus.scope():
            dispatch("hangs", deliver_on="now")
            assert len((await bus.drain()).failed) == 1
            dispatch("b", deliver_on="now")
            await until(lambda: bus.stats().pending)
            for _ in range(10):
                await asyncio.sleep(0)
            assert bus.limiter().borrowed_tokens == 1
            assert hanging.begun == ["hangs"]
            hanging.let_go.set()
    assert hanging.ended == ["hangs", "b"]


async def test_a_thread_that_overruns_keeps_its_place_among_the_threads():
    hanging = Hanging()
    others: list[str] = []
    handler = LocalHandler()
    handler.register("hangs", timeout=0.02)(hanging)
    handler.register("other")(lambda event: others.append(event.name))
    async with EventBus([handler], max_threads=1) as bus:
        async with bus.scope():
            dispatch("hangs")
        bus.dispatch("other")
        for _ in range(10):
            await asyncio.sleep(0)
        assert bus.limiter().borrowed_tokens == 1
        assert others == []
        hanging.let_go.set()
    assert others == ["other"]


async def test_with_concurrency_nothing_starts_while_any_thread_has_overrun():
    gates = {name: threading.Event() for name in ("1", "2")}
    starts: list[str] = []
    failures: list[Failure] = []

    def subscriber(event: Event[Any]) -> None:
        starts.append(event.name)
        if event.name in gates:
            assert gates[event.name].wait(5)

    async with EventBus([local(subscriber, timeout=0.02, concurrency=2)], on_error=failures.append) as bus:
        async with bus.scope():
            for name in ("1", "2", "3", "4"):
                dispatch(name, deliver_on="now")
            await until(lambda: len(failures) == 2)
            gates["1"].set()
            await until(lambda: bus.limiter().borrowed_tokens == 1)
            for _ in range(10):
                await asyncio.sleep(0)
            assert sorted(starts) == ["1", "2"]
            gates["2"].set()
    assert sorted(starts) == ["1", "2", "3", "4"]


async def test_what_a_thread_raises_after_its_time_is_logged(caplog):
    let_go = threading.Event()

    def subscriber(event: Event[Any]) -> None:
        assert let_go.wait(5)
        raise KeyError("late")

    async with EventBus([local(subscriber, timeout=0.02)]) as bus:
        async with bus.scope():
            dispatch("a")
        let_go.set()
        await until(lambda: "ended after its timeout, with KeyError('late')" in caplog.text)
        assert bus.stats().failed == 1


# Plain functions around coroutine functions, as many decorators make them


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(event: Event[Any]) -> Any:
        return function(event)

    return wrapper


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}, {"retry": Retry()}], ids=["plain", "timeout", "retry"])
async def test_a_decorated_coroutine_function_runs_on_the_loop_in_its_chain(options):
    names: list[tuple[str, str | None]] = []

    @decorated
    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        names.append((event.name, event.headers.get("causationid")))
        if event.name == "cause":
            dispatch("effect")

    async with EventBus([local(subscriber, **options)]) as bus:
        async with bus.scope():
            cause = dispatch("cause")
    assert names == [("cause", None), ("effect", cause.id)]


async def test_the_time_limit_holds_for_a_decorated_coroutine_function():
    failures: list[Failure] = []

    @decorated
    async def hangs(event: Event[Any]) -> None:
        await asyncio.get_running_loop().create_future()

    async with EventBus([local(hangs, timeout=0.1)], on_error=failures.append) as bus:
        bus.dispatch("a")
        assert (await bus.drain(timeout=5)).complete
    assert isinstance(failures[0].exception, TimeoutError)


# Drain


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}], ids=["one hop", "hop by hop"])
async def test_what_a_drain_gives_up_never_starts_in_a_thread_that_runs_on(options):
    hanging = Hanging()
    failures: list[tuple[str, int]] = []
    told = lambda failure: failures.append((failure.event.name, failure.attempt))  # noqa: E731
    async with EventBus([local(hanging, **options)], on_error=told) as bus:
        async with bus.scope():
            for name in ("a", "hangs", "b", "c"):
                dispatch(name)
            drain = asyncio.create_task(_drain_when(bus, lambda: len(hanging.begun) == 2))
        report = await drain
        stats = bus.stats()
        hanging.let_go.set()
        await until(lambda: bus.limiter().borrowed_tokens == 0)
        await until(lambda: len(hanging.ended) > 1)
        await asyncio.to_thread(lambda: None)
    assert [left.name for left in report.cancelled] == ["hangs"]
    assert [left.name for left in report.never_started] == ["b", "c"]
    assert failures == [("hangs", 1), ("b", 0), ("c", 0)]
    assert (stats.delivered, stats.cancelled, stats.pending) == (1, 3, 0)
    assert hanging.ended == ["a", "hangs"]


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}], ids=["one hop", "hop by hop"])
async def test_what_a_drain_gives_up_while_it_waits_for_a_thread_never_starts(options):
    first, second = Hanging(), Hanging()
    async with EventBus([local(first, second, **options)], max_threads=1) as bus:
        bus.dispatch("hangs")
        await until(lambda: first.begun or second.begun)
        report = await bus.drain(timeout=0.0)
        first.let_go.set()
        second.let_go.set()
        await until(lambda: bus.limiter().borrowed_tokens == 0)
        for _ in range(10):
            await asyncio.sleep(0.001)
    assert len(report.cancelled + report.never_started) == 2
    assert first.begun + second.begun == ["hangs"]


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}], ids=["one hop", "hop by hop"])
def test_a_drain_does_not_wait_for_a_thread_that_it_gave_up(options):
    hanging = Hanging()

    async def main() -> None:
        async with EventBus([local(hanging, **options)]) as bus:
            bus.dispatch("hangs")
            while not hanging.begun:
                await asyncio.sleep(0)
            report = await bus.drain(timeout=0.0)
            assert asyncio.get_running_loop().time() == 0.0
            assert len(report.cancelled) == 1
            hanging.let_go.set()

    run(main())


async def test_what_a_drain_gives_up_at_the_last_moment_before_it_begins_never_does():
    at_the_door, let_go, left = threading.Event(), threading.Event(), threading.Event()
    begun: list[str] = []

    def hold(frame: types.FrameType, event: str, argument: object) -> Any:
        """Keep the thread from the first line that it runs for the bus."""
        if frame.f_globals["__name__"] != "fastapi_events.scope":
            return None
        at_the_door.set()
        assert let_go.wait(5)
        return lambda frame, event, argument: left.set() if event == "return" else None

    before = threading.gettrace()
    threading.settrace(hold)
    try:
        async with EventBus([local(lambda event: begun.append(event.name), timeout=5.0)]) as bus:
            bus.dispatch("a")
            await until(at_the_door.is_set)
            report = await bus.drain(timeout=0.0)
            assert bus.limiter().borrowed_tokens == 0
            let_go.set()
            await until(left.is_set)
    finally:
        threading.settrace(before)
        let_go.set()
    assert (len(report.cancelled), begun) == (1, [])


async def test_a_decorated_coroutine_function_does_not_begin_after_the_deadline():
    began: list[str] = []
    hanging = threading.Event()
    in_thread: list[str] = []

    async def coroutine_function(event: Event[Any]) -> None:
        began.append(event.name)

    def subscriber(event: Event[Any]) -> Any:
        in_thread.append(event.name)
        if event.name == "hangs":
            assert hanging.wait(5)
        return coroutine_function(event) if event.name == "a" else None

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("hangs")
            dispatch("b")
            drain = asyncio.create_task(_drain_when(bus, lambda: len(in_thread) == 2))
        await drain
        hanging.set()
    assert began == []
    assert in_thread == ["a", "hangs"]
    assert bus.stats().cancelled == 3


async def _drain_when(bus: EventBus, condition: Callable[[], object]) -> DrainReport:
    await until(condition)
    return await bus.drain(timeout=0)


async def test_a_drain_waits_for_what_a_thread_that_it_waits_for_has_dispatched():
    handled: list[str] = []
    may_send, has_sent = threading.Event(), threading.Event()

    def in_thread(event: Event[Any]) -> None:
        assert may_send.wait(5)
        for _ in range(20_000):
            dispatch("caused")
        has_sent.set()

    async def caused(event: Event[Any]) -> None:
        handled.append(event.name)

    handler = LocalHandler()
    handler.register("cause")(in_thread)
    handler.register("caused")(caused)
    async with EventBus([handler]) as bus:
        bus.dispatch("cause")
        drain = asyncio.create_task(bus.drain())
        await asyncio.sleep(0.01)  # it has begun
        may_send.set()
        assert has_sent.wait(30)  # so the loop learns of the thread's end before it has taken all
        assert (await drain).complete
        assert len(handled) == 20_000
