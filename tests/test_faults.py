"""Subscribers, hooks and handlers that do what nobody should: all others get their events, and somebody is told."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import itertools
import logging
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fastapi_events import (
    BaseEventHandler,
    BusFullError,
    DrainReport,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    Failure,
    ForwardError,
    LocalHandler,
    NullHandler,
    Retry,
    dispatch,
)
from tests.asgi import lifespan_of, request
from tests.virtual_time import VirtualTimeLoop, run


class Fatal(BaseException):
    """What no library should raise."""


class UnspeakableError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Victim:
    """A subscriber that does no wrong."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def __call__(self, event: Event[Any]) -> None:
        await asyncio.sleep(0)
        self.names.append(event.name)


def local(*functions: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    for function in functions:
        handler.register(**options)(function)
    return handler


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def cancel_worker() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


# What a subscriber may do. "good" events are to be handled whatever happens to the "bad" ones.


async def raises_fatal(event: Event[Any]) -> None:
    if event.name == "bad":
        raise Fatal


async def raises_fatal_late(event: Event[Any]) -> None:
    await asyncio.sleep(0)
    await raises_fatal(event)


async def raises_cancelled(event: Event[Any]) -> None:
    if event.name == "bad":
        raise asyncio.CancelledError


async def awaits_what_was_cancelled(event: Event[Any]) -> None:
    if event.name == "bad":
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


async def raises_generator_exit(event: Event[Any]) -> None:
    if event.name == "bad":
        raise GeneratorExit


async def raises_stop_iteration(event: Event[Any]) -> None:
    if event.name == "bad":
        next(iter(()))


async def raises_stop_async_iteration(event: Event[Any]) -> None:
    if event.name == "bad":
        raise StopAsyncIteration


async def raises_unspeakable(event: Event[Any]) -> None:
    if event.name == "bad":
        raise UnspeakableError


async def raises_groups(event: Event[Any]) -> None:
    if event.name == "bad":
        raise BaseExceptionGroup("several", [Fatal(), KeyError()])


async def cancels_itself(event: Event[Any]) -> None:
    if event.name == "bad":
        cancel_worker()
        await asyncio.sleep(0)


async def cancels_itself_twice(event: Event[Any]) -> None:
    if event.name == "bad":
        cancel_worker()
        cancel_worker()
        await asyncio.sleep(0)


async def cancels_itself_and_raises(event: Event[Any]) -> None:
    if event.name == "bad":
        cancel_worker()
        raise KeyError


async def recurses(event: Event[Any]) -> None:
    if event.name == "bad":
        await recurses(event)


def exits_its_thread(event: Event[Any]) -> None:
    if event.name == "bad":
        sys.exit(3)


def interrupts_its_thread(event: Event[Any]) -> None:
    if event.name == "bad":
        raise KeyboardInterrupt


def raises_fatal_in_a_thread(event: Event[Any]) -> None:
    if event.name == "bad":
        raise Fatal


def raises_cancelled_in_a_thread(event: Event[Any]) -> None:
    if event.name == "bad":
        raise asyncio.CancelledError


def raises_stop_iteration_in_a_thread(event: Event[Any]) -> None:
    if event.name == "bad":
        raise StopIteration


def gives_an_awaitable_that_fails(event: Event[Any]) -> Any:
    return raises_fatal_late(event)


WRONG: list[Callable[..., Any]] = [
    raises_fatal,
    raises_fatal_late,
    raises_cancelled,
    awaits_what_was_cancelled,
    raises_generator_exit,
    raises_stop_iteration,
    raises_stop_async_iteration,
    raises_unspeakable,
    raises_groups,
    cancels_itself,
    cancels_itself_twice,
    cancels_itself_and_raises,
    recurses,
    exits_its_thread,
    interrupts_its_thread,
    raises_fatal_in_a_thread,
    raises_cancelled_in_a_thread,
    raises_stop_iteration_in_a_thread,
    gives_an_awaitable_that_fails,
]


@pytest.mark.parametrize(
    "options",
    [{}, {"timeout": 5.0}, {"retry": Retry(attempts=1)}, {"concurrency": 2}],
    ids=["plain", "timeout", "retry", "concurrency"],
)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda function: function.__name__)
async def test_whatever_a_subscriber_raises_is_its_own_failure(wrong, options):
    before, after, failures = Victim(), Victim(), list[Failure]()
    handler = LocalHandler()
    handler.register(before)
    handler.register(**options)(wrong)
    handler.register(after)
    async with EventBus([handler], on_error=failures.append) as bus:
        async with bus.scope():
            for name in ("good", "bad", "good", "good"):
                dispatch(name)
        assert (await bus.drain()).complete
        stats = bus.stats()
    assert before.names == after.names == ["good", "bad", "good", "good"]
    assert [(failure.event.name, failure.subscriber) for failure in failures] == [
        ("bad", f"{__name__}.{wrong.__name__}")
    ]
    assert (stats.delivered, stats.failed, stats.pending) == (11, 1, 0)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("wrong", WRONG, ids=lambda function: function.__name__)
async def test_nothing_of_it_comes_out_of_an_application(wrong):
    victim = Victim()

    async def endpoint(request: Request) -> Response:
        dispatch("bad")
        dispatch("good")
        return Response("fine")

    app = EventHandlerASGIMiddleware(Route("/", endpoint), [local(wrong, victim)])
    for _ in range(2):
        connection = request(app)
        assert await connection.call is None
        assert connection.types == ["http.response.start", "http.response.body"]
    assert victim.names == ["bad", "good"] * 2
    assert (app.bus.stats().delivered, app.bus.stats().failed) == (6, 2)


@pytest.mark.parametrize("wrong", [raises_fatal_late, cancels_itself, exits_its_thread, raises_cancelled_in_a_thread])
async def test_whatever_it_is_it_may_be_tried_again(wrong):
    starts: list[str] = []

    async def counts(event: Event[Any]) -> None:
        starts.append(event.name)
        await wrong(event)

    def counts_in_a_thread(event: Event[Any]) -> None:
        starts.append(event.name)
        wrong(event)

    subscriber = counts if inspect.iscoroutinefunction(wrong) else counts_in_a_thread
    retry = Retry(attempts=3, initial=0.0, on=BaseException)
    async with EventBus([local(subscriber, retry=retry)]) as bus:
        bus.dispatch("bad")
        await bus.drain()
        assert (bus.stats().failed, bus.stats().retried) == (1, 2)
    assert starts == ["bad"] * 3


@pytest.mark.parametrize(
    "garbage", [None, 42, [1], NotImplemented, object(), Exception("returned")], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_a_subscriber_returns_is_nobodys_business(kind, garbage):
    async def async_subscriber(event: Event[Any]) -> Any:
        return garbage

    def sync_subscriber(event: Event[Any]) -> Any:
        return garbage

    async with EventBus([local(async_subscriber if kind == "async" else sync_subscriber)]) as bus:
        bus.dispatch("a")
        await bus.drain()
        assert bus.stats().delivered == 1


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}], ids=["plain", "timeout"])
async def test_a_subscriber_that_cancels_its_task_and_returns_harms_neither_its_next_event_nor_others(options):
    names: list[str] = []

    async def cancels(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        names.append(event.name)
        if event.name == "bad":
            cancel_worker()

    victim = Victim()
    async with EventBus([local(cancels, victim, **options)]) as bus:
        async with bus.scope():
            for name in ("bad", "good", "good"):
                dispatch(name)
        stats = bus.stats()
    assert names == victim.names == ["bad", "good", "good"]
    assert (stats.delivered, stats.failed) == (6, 0)


async def test_the_hooks_of_a_subscriber_that_cancelled_its_task_are_not_cancelled():
    told: list[str] = []

    class Letters(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            await asyncio.sleep(0)
            told.append("letter")

    async def hook(failure: Failure) -> None:
        await asyncio.sleep(0)
        told.append("hook")

    async def cancels_and_raises(event: Event[Any]) -> None:
        cancel_worker()
        raise KeyError

    async with EventBus([local(cancels_and_raises)], dead_letters=Letters(), on_error=hook) as bus:
        async with bus.scope():
            dispatch("a")
        assert (bus.stats().dead_lettered, bus.stats().failed) == (1, 0)
    assert told == ["letter", "hook"]


async def test_a_subscriber_that_swallows_its_own_cancellation_succeeds():
    async def swallows(event: Event[Any]) -> None:
        cancel_worker()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    victim = Victim()
    async with EventBus([local(swallows, victim)]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
        assert bus.stats().delivered == 4


async def test_tasks_that_somebody_cancels_from_outside_lose_nothing():
    async def waits(event: Event[Any]) -> None:
        await asyncio.sleep(0.01)

    failures: list[Failure] = []
    async with EventBus([local(waits, Victim())], on_error=failures.append) as bus:
        mine = asyncio.all_tasks()
        async with bus.scope():
            for name in "abc":
                dispatch(name, deliver_on="now")
            for _ in range(4):  # before it has begun, at its first step, and later
                for task in asyncio.all_tasks() - mine:
                    task.cancel()
                await asyncio.sleep(0)
        assert (await bus.drain()).complete
        stats = bus.stats()
    assert stats.delivered + stats.failed == 6
    assert len(failures) == stats.failed
    assert stats.pending == 0


async def test_a_batch_whose_report_somebody_cancels_is_reported_to_its_end():
    told: list[str] = []

    class Failing:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            raise OSError("no broker")

    def hook(failure: Failure) -> None:
        told.append(failure.event.name)
        time.sleep(0.006)  # so that the loop has its turn before the next one
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)

    async with EventBus([Failing()], on_error=hook) as bus:
        async with asyncio.timeout(5):
            async with bus.scope():
                for name in "abc":
                    dispatch(name)
        assert (bus.stats().failed, bus.stats().pending) == (3, 0)
    assert told == ["a", "b", "c"]


def test_a_subscriber_that_hangs_keeps_nobody_from_their_events():
    victim = Victim()

    async def main() -> None:
        async with EventBus([local(hangs, victim)], drain_timeout=3.0) as bus:
            async with bus.scope():
                dispatch("a", deliver_on="now")
                dispatch("b", deliver_on="now")
                await asyncio.sleep(1.0)
                assert victim.names == ["a", "b"]
                report = await bus.drain()
        assert (report.delivered, len(report.cancelled), len(report.never_started)) == (0, 1, 1)

    run(main())


async def test_a_subscriber_that_blocks_the_loop_delays_but_loses_nothing():
    victim = Victim()

    async def blocks(event: Event[Any]) -> None:
        time.sleep(0.02)  # noqa: ASYNC251 - that is the fault

    async with EventBus([local(blocks, victim)]) as bus:
        async with bus.scope():
            for _ in range(5):
                dispatch("a")
        assert bus.stats().delivered == 10


async def test_a_subscriber_that_leaves_tasks_and_variables_behind_disturbs_nobody():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="untouched")
    left: list[asyncio.Task[None]] = []
    seen: list[str] = []

    async def litters(event: Event[Any]) -> None:
        variable.set(f"set at {event.name}")
        left.append(asyncio.create_task(asyncio.sleep(0)))
        await asyncio.sleep(0)

    async def looks(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        seen.append(variable.get())

    async with EventBus([local(litters, looks)]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
    await asyncio.wait(left)
    assert seen == ["untouched"] * 2
    assert variable.get() == "untouched"


async def test_a_payload_that_cannot_be_copied_fails_where_it_is_copied():
    class Once:
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there is only one")

    failures: list[Failure] = []
    thing = Once()

    async def first(event: Event[Any]) -> None: ...

    async def second(event: Event[Any]) -> None: ...

    async with EventBus([local(first, second)], on_error=failures.append) as bus:
        async with bus.scope():
            bus.dispatch("a", thing, opaque=True)
            bus.dispatch("b", {"x": 1})
    assert bus.stats().delivered + len(failures) == 4
    assert bus.stats().pending == 0


# Interpreter exits


@pytest.mark.parametrize("exit_", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"retry": Retry(on=BaseException)}], ids=["plain", "retry"])
def test_an_exit_on_the_loop_ends_it_and_what_is_left_is_logged(exit_, options, caplog):
    failures: list[Failure] = []

    async def exits(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        raise exit_

    async def main() -> None:
        async with EventBus([local(exits, **options)], on_error=failures.append) as bus:
            buses.append(bus)
            async with bus.scope():
                dispatch("a")
                dispatch("b")

    buses: list[EventBus] = []
    with pytest.raises(type(exit_)):
        asyncio.run(main())
    assert [(failure.event.name, failure.attempt) for failure in failures] == [("a", 1), ("b", 0)]
    assert len([record for record in caplog.records if "lost" in record.getMessage()]) == 2
    assert (buses[0].stats().cancelled, buses[0].stats().pending) == (2, 0)


@pytest.mark.parametrize("exit_", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_exit_in_a_hook_ends_the_loop_and_loses_nothing_silently(exit_, is_async, caplog):
    async def fails(event: Event[Any]) -> None:
        raise KeyError

    def hook(failure: Failure) -> None:
        if not told:
            told.append(failure.event.name)
            raise exit_

    async def async_hook(failure: Failure) -> None:
        hook(failure)

    async def main() -> None:
        async with bus, bus.scope():
            dispatch("a")
            dispatch("b")

    told: list[str] = []
    bus = EventBus([local(fails)], on_error=async_hook if is_async else hook)
    with pytest.raises(type(exit_)):
        asyncio.run(main())
    assert (bus.stats().failed + bus.stats().cancelled, bus.stats().pending) == (2, 0)
    assert "event b (" in caplog.text


# Loops that end


async def hangs(event: Event[Any]) -> None:
    await asyncio.get_running_loop().create_future()


async def leave(bus: EventBus, *, turns: int) -> None:
    """Dispatch, and end while subscribers run; `async with bus` would have drained."""
    await bus.ensure_open()
    bus.dispatch("a")
    bus.dispatch("b")
    for _ in range(turns):
        await asyncio.sleep(0)


def test_the_end_of_a_loop_under_a_delivery_is_told(caplog):
    failures: list[Failure] = []

    async def hook(failure: Failure) -> None:
        raise AssertionError("there is no loop to run this on")

    bus = EventBus([local(hangs, Victim())], on_error=[failures.append, hook])
    asyncio.run(leave(bus, turns=5))
    assert sorted((failure.event.name, failure.attempt) for failure in failures) == [("a", 1), ("b", 1)]
    assert (bus.stats().delivered, bus.stats().cancelled, bus.stats().pending) == (2, 2, 0)
    assert caplog.text.count("its event loop ended") == 2


def test_the_end_of_a_loop_between_two_events_of_a_delivery_is_told(caplog):
    started: list[str] = []

    async def blocks(event: Event[Any]) -> None:
        started.append(event.name)
        time.sleep(0.006)  # noqa: ASYNC251 - so that the loop has its turn before the next one

    async def block() -> None:
        async with bus.scope():
            for name in "abcde":
                dispatch(name)

    async def main() -> None:
        await bus.ensure_open()
        task = asyncio.create_task(block())
        while not started:
            await asyncio.sleep(0)
        assert not task.done()

    bus = EventBus([local(blocks)])
    asyncio.run(main())
    left = 5 - len(started)
    assert left > 0
    assert (bus.stats().delivered, bus.stats().cancelled, bus.stats().pending) == (len(started), left, 0)
    assert caplog.text.count("its event loop ended") == left


def test_a_loop_that_is_thrown_away_under_a_delivery_is_told(caplog):
    failures: list[Failure] = []
    bus = EventBus([local(hangs)], on_error=failures.append)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave(bus, turns=5))
    loop.close()
    # this would be logged if the process ended now
    assert sorted(event.name for event in bus.unfinished()) == ["a", "b"]
    del bus, loop
    gc.collect()
    assert sorted(failure.event.name for failure in failures) == ["a", "b"]
    assert caplog.text.count("its event loop ended") == 2


async def test_the_age_of_what_waits_for_the_end_of_its_scope_is_known():
    async with EventBus([local(Victim())]) as bus:
        async with bus.scope():
            dispatch("a")
            assert bus.stats().oldest_age > 0.0
        assert bus.stats().oldest_age == 0.0


def test_what_has_only_just_come_and_what_waits_behind_one_that_was_given_up_is_known():
    let_go = asyncio.Event()

    async def stubborn(event: Event[Any]) -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    async def main() -> None:
        async with EventBus([local(stubborn)]) as bus:
            async with bus.scope():
                event = dispatch("a", deliver_on="now")
                assert bus.stats().oldest_age > 0.0
                assert [left.id for left in bus.unfinished()] == [event.id]
                await asyncio.sleep(1.0)
                assert len((await bus.drain(timeout=0.0)).cancelled) == 1
                assert (bus.stats().pending, bus.stats().oldest_age) == (0, 0.0)
                event = dispatch("b", deliver_on="now")
                await asyncio.sleep(1.0)
                assert (bus.stats().pending, bus.stats().oldest_age > 0.0) == (1, True)
                assert [left.id for left in bus.unfinished()] == [event.id]
                let_go.set()
            assert bus.stats().delivered == 1

    run(main())


def test_a_subscriber_that_survives_the_end_of_its_loop_is_given_no_further_event(caplog):
    started: list[str] = []

    async def survives(event: Event[Any]) -> None:
        started.append(event.name)
        with contextlib.suppress(asyncio.CancelledError):
            await hangs(event)

    async def main() -> None:
        await bus.ensure_open()
        block = asyncio.create_task(in_block())
        while not started:
            await asyncio.sleep(0)
        assert not block.done()

    async def in_block() -> None:
        async with bus.scope():
            dispatch("a")
            dispatch("b")

    bus = EventBus([local(survives)])
    asyncio.run(main())
    assert started == ["a"]
    assert (bus.stats().delivered, bus.stats().cancelled, bus.stats().pending) == (1, 1, 0)
    assert caplog.text.count("its event loop ended") == 1


# Hooks


async def hook_fatal(failure: Failure) -> None:
    raise Fatal


async def hook_cancelled(failure: Failure) -> None:
    raise asyncio.CancelledError


async def hook_cancels(failure: Failure) -> None:
    cancel_worker()
    await asyncio.sleep(0)


async def hook_cancels_late(failure: Failure) -> None:
    cancel_worker()


def hook_raises(failure: Failure) -> None:
    raise KeyError("in the hook")


def hook_fatal_sync(failure: Failure) -> None:
    raise Fatal


def hook_awaitable(failure: Failure) -> Any:
    return hook_fatal(failure)


def hook_garbage(failure: Failure) -> Any:
    return object()


@pytest.mark.parametrize(
    "hook",
    [
        hook_fatal,
        hook_cancelled,
        hook_cancels,
        hook_cancels_late,
        hook_raises,
        hook_fatal_sync,
        hook_awaitable,
        hook_garbage,
    ],
    ids=lambda function: function.__name__,
)
async def test_a_hook_that_fails_is_logged_and_all_goes_on(hook, caplog):
    victim = Victim()
    told: list[str] = []

    async def fails(event: Event[Any]) -> None:
        raise KeyError(event.name)

    hooks = [lambda failure: told.append(failure.event.name), hook]
    async with EventBus([local(fails, victim)], on_error=hooks) as bus:
        async with bus.scope():
            for name in "abc":
                dispatch(name)
        stats = bus.stats()
    assert told == victim.names == ["a", "b", "c"]
    assert (stats.delivered, stats.failed, stats.pending) == (3, 3, 0)
    if hook not in (hook_garbage, hook_cancels_late):
        assert "the hook" in caplog.text


async def test_a_hook_that_raises_a_cancellation_of_its_own_keeps_no_other_hook_from_being_told():
    told: list[str] = []

    async def fails(event: Event[Any]) -> None:
        raise KeyError

    hooks = [hook_cancelled, lambda failure: told.append(failure.event.name)]
    async with EventBus([local(fails)], on_error=hooks) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
    assert told == ["a", "b"]


async def test_a_hook_that_cancels_its_task_keeps_none_of_a_batch_from_being_told():
    told: list[str] = []

    class Failing:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            raise OSError("no broker")

    async def hook(failure: Failure) -> None:
        told.append(failure.event.name)
        await hook_cancels(failure)

    async with EventBus([Failing()], on_error=hook) as bus:
        async with asyncio.timeout(5):
            async with bus.scope():
                for name in "abc":
                    dispatch(name)
        assert (bus.stats().failed, bus.stats().pending) == (3, 0)
    assert told == ["a", "b", "c"]


def test_a_hook_that_hangs_keeps_nobody_but_its_own_subscriber():
    victim = Victim()

    async def fails(event: Event[Any]) -> None:
        raise KeyError

    async def hook(failure: Failure) -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with EventBus([local(fails, victim)], on_error=hook) as bus:
            async with bus.scope():
                dispatch("a", deliver_on="now")
                dispatch("b", deliver_on="now")
                await asyncio.sleep(1.0)
                assert victim.names == ["a", "b"]
                report = await bus.drain(timeout=1.0)
                assert [failed.name for failed in report.failed] == []
                assert [left.name for left in report.never_started] == ["b"]
                stats = bus.stats()
                assert (stats.failed, stats.cancelled, stats.delivered, stats.pending) == (1, 1, 2, 0)

    run(main())


# A full bus, and late appends


async def test_names_without_end_that_nobody_listens_to_do_not_fill_the_log(caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    async with EventBus([]) as bus:
        async with bus.scope():
            for number in range(3000):
                dispatch(f"user.{number}.seen")
        assert bus.stats().unheard == 3000
    assert len(caplog.records) == 1000


async def test_a_full_bus_hurts_only_the_one_that_dispatches():
    victim = Victim()

    async def endpoint(request: Request) -> Response:
        for _ in range(10):
            dispatch("a")
        return Response()

    app = EventHandlerASGIMiddleware(Route("/", endpoint), [local(victim)], max_pending=4)
    connection = request(app)
    with pytest.raises(Exception, match="max_pending"):
        await connection.call
    await app.bus.drain()
    assert victim.names == ["a"] * 4
    assert (app.bus.stats().refused, app.bus.stats().pending) == (1, 0)


@pytest.mark.parametrize("turn", range(6))
async def test_late_appends_from_threads_to_a_closing_scope_lose_and_double_nothing(turn):
    received: list[int] = []
    sent = itertools.count()
    together = threading.Barrier(4, timeout=5)

    async def subscriber(event: Event[Any]) -> None:
        received.append(event.payload)

    def append() -> None:
        together.wait()
        for _ in range(300):
            dispatch("a", next(sent))

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with EventBus([local(subscriber)]) as bus:
            async with bus.scope():
                threads = [asyncio.create_task(asyncio.to_thread(append)) for _ in range(4)]
                await until(lambda: bus.stats().pending > turn * 100)
            await asyncio.gather(*threads)
            await bus.drain()
            assert (bus.stats().delivered, bus.stats().pending) == (1200, 0)
    finally:
        sys.setswitchinterval(switch)
    assert sorted(received) == list(range(1200))


def switching(frame: types.FrameType, event: str, argument: object) -> Any:
    """Let other threads run at every line that takes an event or ends a scope."""
    if frame.f_globals["__name__"] not in ("fastapi_events.bus", "fastapi_events.ledger"):
        return None
    time.sleep(1e-6)
    return switching


@contextlib.contextmanager
def switching_at_every_line() -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(switching)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "line by line"])
async def test_wherever_a_scope_closes_between_two_lines_of_a_dispatch_nothing_is_lost(slowly):
    received: list[int] = []
    sent = itertools.count()

    async def subscriber(event: Event[Any]) -> None:
        received.append(event.payload)

    def append() -> None:
        with switching_at_every_line():
            while not closed.is_set():
                dispatch("a", next(sent))

    async with EventBus([local(subscriber)]) as bus:
        for _ in range(30):
            closed = threading.Event()
            block = bus.scope()
            await block.__aenter__()
            threads = [asyncio.create_task(asyncio.to_thread(append)) for _ in range(2)]
            await until(lambda: bus.stats().pending)
            with switching_at_every_line() if slowly else contextlib.nullcontext():
                await block.__aexit__(None, None, None)
            closed.set()
            await asyncio.gather(*threads)
            await bus.drain()
        dispatched = next(sent)
        assert (bus.stats().delivered, bus.stats().pending) == (dispatched, 0)
    assert sorted(received) == list(range(dispatched))


INTERRUPTED = {"bus", "delivery", "direct", "drains", "ledger", "lifecycle", "line", "scope", "workers"}


@pytest.mark.parametrize("kind", ["in a block", "that suspends", "outside", "with outcomes"])
async def test_what_a_signal_handler_dispatches_between_any_two_lines_is_delivered_once(kind):
    line = 1
    while await is_interrupted(line, kind):
        line += 1
    assert line > 100


async def is_interrupted(line: int, kind: str) -> bool:
    """Dispatch at so many lines of the delivery of two events; tell whether there are so many."""
    lines, sent = itertools.count(1), []
    received: Counter[str] = Counter()
    withheld: list[str] = []
    unsuited: list[str] = []

    def interrupt(frame: types.FrameType, what: str, argument: object) -> Any:
        if frame.f_globals["__name__"].removeprefix("fastapi_events.") not in INTERRUPTED:
            return None
        frame.f_trace_opcodes = frame.f_code.co_name == "accept"  # there also within a line
        if what in ("line", "opcode") and next(lines) == line:
            sys.settrace(None)
            sent.append(dispatch("interruption", deliver_on="success" if kind == "with outcomes" else "now").id)
        return interrupt

    async def subscriber(event: Event[Any]) -> None:
        if kind == "that suspends":
            await asyncio.sleep(0)
        received[event.id] += 1

    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    before = sys.gettrace()
    async with EventBus([local(subscriber)], on_withheld=lambda event: withheld.append(event.id)) as bus:
        sys.settrace(interrupt)
        try:
            async with contextlib.nullcontext() if kind == "outside" else bus.scope():
                if kind == "with outcomes":
                    unsuited.append(dispatch("unsuited", deliver_on="failure").id)
                sent += [dispatch("a").id, dispatch("b").id]
            for _ in range(4):
                await asyncio.sleep(0)
        finally:
            sys.settrace(before)
        report = await bus.drain()
        assert (bus.stats().pending, report.never_started, errors) == (0, (), [])
    assert (received, withheld) == (Counter(sent), unsuited)
    return len(sent) == 3


async def test_what_a_thread_dispatches_while_its_block_ends_is_delivered_once():
    line = 1
    while await is_overtaken(line):
        line += 1
    assert line > 15


async def is_overtaken(line: int) -> bool:
    """Have a block end at so many lines of a dispatch by a thread; tell whether there are so many."""
    lines, received, sent = itertools.count(1), Counter[str](), []
    has_come, has_ended = threading.Event(), threading.Event()

    def wait(frame: types.FrameType, what: str, argument: object) -> Any:
        if what == "line" and next(lines) == line:
            has_come.set()
            has_ended.wait(0.01)  # in vain where the end of the block waits for this thread
        return wait if frame.f_globals["__name__"] in ("fastapi_events.bus", "fastapi_events.ledger") else None

    def work() -> None:
        sys.settrace(wait)
        try:
            sent.append(dispatch("late").id)
        finally:
            sys.settrace(None)
            has_come.set()

    async def subscriber(event: Event[Any]) -> None:
        received[event.id] += 1

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
            thread.start()
            has_come.wait()
        has_ended.set()
        thread.join()
        await bus.drain()
        assert (bus.stats().pending, bus.unfinished()) == (0, [])
    assert received == Counter(sent)
    return next(lines) > line


async def test_a_logging_handler_that_fails_keeps_nobody_from_being_told(caplog):
    class Down(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ConnectionError("the log server is down")

    async def fails(event: Event[Any]) -> None:
        raise ValueError(event.name)

    told: list[str] = []
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    handler = Down()
    async with EventBus([local(fails)], on_error=lambda failure: told.append(failure.event.name)) as bus:
        logging.getLogger("fastapi_events").addHandler(handler)
        try:
            async with bus.scope():
                dispatch("a")
                dispatch("b")
            await bus.drain()
        finally:
            logging.getLogger("fastapi_events").removeHandler(handler)
        assert (bus.stats().failed, bus.stats().pending) == (2, 0)
    assert told == ["a", "b"]
    gc.collect()
    assert [type(error) for error in errors] == [ConnectionError] * 2


def test_a_block_that_is_thrown_away_with_its_loop_tells_of_what_is_withheld_and_what_is_lost(caplog):
    lost: list[str] = []
    withheld: list[str] = []
    bus = EventBus(
        [NullHandler()],
        on_error=lambda failure: lost.append(failure.event.name),
        on_withheld=lambda event: withheld.append(event.name),
    )

    async def hang() -> None:
        await bus.ensure_open()
        async with bus.scope():
            dispatch("a", deliver_on="success")
            dispatch("b")
            await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(hang())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task
    gc.collect()
    assert (withheld, lost, bus.stats().pending) == (["a"], ["b"], 0)


async def test_wherever_threads_meet_a_bus_takes_no_more_than_it_may():
    def dispatch_all(bus: EventBus) -> int:
        accepted = 0
        with switching_at_every_line():
            for _ in range(2):
                with contextlib.suppress(BusFullError):
                    bus.dispatch("a")
                    accepted += 1
        return accepted

    accepted: list[int] = []
    for _ in range(30):  # two seldom come to the last place at once
        async with EventBus([local(hangs)], max_pending=3) as bus:
            counts = await asyncio.gather(*(asyncio.to_thread(dispatch_all, bus) for _ in range(4)))
            accepted.append(sum(counts))
            assert (bus.stats().pending, bus.stats().refused) == (accepted[-1], 8 - accepted[-1])
            await bus.drain(timeout=0.0)
    assert accepted == [3] * 30


# Shutdown


def test_what_is_caused_while_a_bus_stops_is_delivered():
    ended: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(event.payload)
        ended.append(event.name)
        if event.name == "meanwhile":
            dispatch("effect", 1.0)

    async def main() -> None:
        async with EventBus([local(subscriber)]) as bus:
            bus.dispatch("before", 1.0)
            asyncio.get_running_loop().call_later(0.5, bus.dispatch, "meanwhile", 2.0)
            report = await bus.stop()
        assert report == DrainReport(delivered=3)

    run(main())
    assert ended == ["before", "meanwhile", "effect"]


def test_a_stop_takes_no_longer_than_it_may_and_tells_all_that_it_gave_up():
    async def main() -> None:
        async with EventBus([local(hangs)]) as bus:
            first = bus.dispatch("a")
            later: list[Event[Any]] = []
            asyncio.get_running_loop().call_later(1.0, lambda: later.append(bus.dispatch("b")))
            report = await bus.stop(timeout=3.0)
            assert asyncio.get_running_loop().time() == 3.0
            assert [left.id for left in report.cancelled] == [first.id, later[0].id]

    run(main())


@pytest.mark.parametrize("options", [{}, {"timeout": 2000.0}], ids=["plain", "timeout"])
def test_a_subscriber_that_takes_its_cancellation_back_is_given_no_further_event(options):
    started: list[str] = []

    async def takes_it_back(event: Event[Any]) -> None:
        started.append(event.name)
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(1000.0)
        except asyncio.CancelledError:
            task.uncancel()

    async def main() -> None:
        async def block() -> None:
            async with bus.scope():
                dispatch("a")
                dispatch("b")

        async with EventBus([local(takes_it_back, **options)]) as bus:
            task = asyncio.create_task(block())
            await asyncio.sleep(1.0)
            report = await bus.drain(timeout=1.0)
            await task
        assert (report.delivered, [left.name for left in report.never_started]) == (1, ["b"])

    run(main())
    assert started == ["a"]


def test_a_drain_that_ends_leaves_another_one_its_failures():
    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(event.payload)
        if event.name == "fails":
            raise KeyError

    async def main() -> None:
        async with EventBus([local(subscriber)]) as bus:
            bus.dispatch("ends", 1.0)
            first = asyncio.create_task(bus.drain())
            await asyncio.sleep(0.5)
            bus.dispatch("fails", 2.0)
            second = await bus.drain()
            assert ((await first).failed, [failed.name for failed in second.failed]) == ((), ["fails"])

    run(main())


def test_drains_within_blocks_do_not_wait_for_each_other():
    ends: list[tuple[str, float]] = []

    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(event.payload)

    async def main() -> None:
        async with EventBus([local(subscriber)]) as bus:

            async def block(name: str, seconds: float) -> None:
                async with bus.scope():
                    dispatch("a", 0.0)
                    await asyncio.sleep(seconds)
                    await bus.drain(timeout=60.0)
                    ends.append((name, asyncio.get_running_loop().time()))

            blocks = asyncio.gather(block("first", 1.0), block("second", 2.0))
            await asyncio.sleep(1.5)
            bus.dispatch("slow", 10.0)  # for which only the second drain waits
            await blocks

    run(main())
    assert ends == [("first", 2.0), ("second", 11.5)]


@pytest.mark.parametrize("kind", ["block", "subscriber"])
def test_a_drain_from_outside_waits_for_what_waits_in_a_drain(kind):
    ended: list[str] = []

    async def main() -> None:
        async def drains_and_goes_on() -> None:
            await bus.drain(timeout=60.0)
            await asyncio.sleep(1.0)
            ended.append("inside")

        async def subscriber(event: Event[Any]) -> None:
            if event.name == "drains":
                await drains_and_goes_on()
            else:
                await asyncio.sleep(event.payload)
                ended.append(event.name)

        async def block() -> None:
            async with bus.scope():
                dispatch("in block", 0.5)
                await drains_and_goes_on()

        async with EventBus([local(subscriber)]) as bus:
            bus.dispatch("slow", 1.0)
            task = asyncio.create_task(block() if kind == "block" else asyncio.sleep(0.0))
            for _ in range(0 if kind == "block" else 8):
                bus.dispatch("drains")
            await asyncio.sleep(0.5)
            report = await bus.drain(timeout=60.0)
            assert report.complete
            assert ended == ["slow", *(["inside", "in block"] if kind == "block" else ["inside"] * 8)]
            await task

    run(main())


async def test_a_shutdown_delivers_before_the_application_closes_what_subscribers_use():
    order: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        yield
        order.append("closed")
        app_.bus.dispatch("late")

    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0.01)
        order.append(event.name)

    app_ = EventHandlerASGIMiddleware(Starlette(lifespan=lifespan), [local(subscriber)])
    async with lifespan_of(app_):
        app_.bus.dispatch("before")
    assert order == ["before", "closed", "late"]


async def test_a_drain_leaves_what_goes_on_on_other_loops_alone():
    let_go = threading.Event()
    begun: list[str] = []

    async def until_let_go(what: str) -> None:
        begun.append(what)
        while not let_go.is_set():
            await asyncio.sleep(0.001)

    async def subscriber(event: Event[Any]) -> None:
        await until_let_go(event.name)

    async def hook(event: Event[Any]) -> None:
        await until_let_go(event.name)

    async def elsewhere() -> None:
        async with bus.scope():
            dispatch("withheld", deliver_on="failure")
            dispatch("delivered")
        await until(lambda: bus.stats().delivered == 1)

    async with EventBus([local(subscriber)], on_withheld=hook) as bus:
        thread = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        await until(lambda: len(begun) == 2)
        async with asyncio.timeout(5):
            report = await bus.drain(timeout=60.0)
        assert not let_go.is_set()
        let_go.set()
        await thread
        assert (report, bus.stats().delivered) == (DrainReport(delivered=0), 1)


def test_what_was_kept_until_the_start_is_delivered_once_however_often_the_bus_starts():
    victim = Victim()

    async def main() -> None:
        bus = EventBus([local(victim)])
        bus.dispatch("early")
        for _ in range(3):
            async with bus:
                await bus.drain()
        assert (bus.stats().delivered, bus.stats().pending) == (1, 0)

    run(main())
    assert victim.names == ["early"]


# Handlers


async def test_a_handler_that_keeps_changes_and_consumes_what_it_is_given_disturbs_nobody():
    class Greedy:
        async def handle_many(self, events: Any) -> None:
            while events:
                events.pop()
            raise Fatal

    class Recorder(BaseEventHandler):
        def __init__(self) -> None:
            self.names: list[str] = []

        async def handle(self, event: Event[object]) -> None:
            self.names.append(event.name)

    recorder = Recorder()
    async with EventBus([Greedy(), recorder]) as bus:
        async with bus.scope():
            for name in "abc":
                dispatch(name)
        stats = bus.stats()
    assert recorder.names == ["a", "b", "c"]
    assert (stats.failed, stats.delivered) == (3, 3)


@pytest.mark.parametrize("rejected", [None, 3, ["not a rejection"]], ids=repr)
async def test_a_forward_error_full_of_garbage_means_that_all_failed(rejected):
    class Forwarding:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            error = ForwardError("refused", [])
            error.rejected = rejected
            raise error

    async with EventBus([Forwarding()]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
        assert (bus.stats().failed, bus.stats().pending) == (2, 0)


def test_virtual_time_is_what_it_says():
    async def main() -> float:
        await asyncio.sleep(3600.0)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run(main()) == pytest.approx(3600.0)
    assert time.monotonic() - began < 5.0
    loop = VirtualTimeLoop()
    loop.close()
