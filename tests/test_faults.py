"""Subscribers, hooks and handlers that do what nobody should: all others get their events, and somebody is told."""

import asyncio
import contextvars
import gc
import inspect
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fastapi_events import (
    BaseEventHandler,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    Failure,
    ForwardError,
    LocalHandler,
    Retry,
    dispatch,
)
from tests.asgi import request
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


async def test_a_subscriber_that_cancels_its_task_and_returns_harms_neither_its_next_event_nor_others():
    names: list[str] = []

    async def cancels(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        names.append(event.name)
        if event.name == "bad":
            cancel_worker()

    victim = Victim()
    async with EventBus([local(cancels, victim)]) as bus:
        async with bus.scope():
            for name in ("bad", "good", "good"):
                dispatch(name)
        stats = bus.stats()
    assert names == victim.names == ["bad", "good", "good"]
    assert (stats.delivered, stats.failed) == (6, 0)


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
def test_an_exit_on_the_loop_ends_it_and_what_is_left_is_logged(exit_, caplog):
    failures: list[Failure] = []

    async def exits(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        raise exit_

    async def main() -> None:
        async with EventBus([local(exits)], on_error=failures.append) as bus:
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
