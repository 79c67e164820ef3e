"""From a scope's events to subscribers: isolation, order, concurrency, and what it costs the event loop."""

import asyncio
import contextvars
import functools
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Self

import anyio
import pytest

from fastapi_events import BaseEventHandler, Event, EventBus, Failure, LocalHandler, dispatch
from fastapi_events.errors import ForwardError, Rejection

MANY = 100_000


class Heartbeat:
    """Looks at a counter at every turn of the loop; remembers by how much it grew in one, and the longest, in seconds of CPU."""

    def __init__(self, counter: Callable[[], int]) -> None:
        self.turns = 0
        self.most = 0
        self.longest = 0.0
        self._counter = counter

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)  # it begins before what it watches
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _beat(self) -> None:
        while True:
            count, began = self._counter(), time.thread_time()
            try:
                await asyncio.sleep(0)
            finally:  # the last turn counts too
                self.turns += 1
                self.most = max(self.most, self._counter() - count)
                self.longest = max(self.longest, time.thread_time() - began)


class CountingBus(EventBus):
    """Counts the hops into worker threads."""

    hops = 0

    def limiter(self) -> Any:
        self.hops += 1
        return super().limiter()


def local(*functions: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    for function in functions:
        handler.register(**options)(function)
    return handler


# Isolation


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_failing_subscriber_stops_neither_the_others_nor_its_own_further_events(kind):
    failing: list[str] = []
    others: list[str] = []

    async def fails(event: Event[Any]) -> None:
        failing.append(event.name)
        raise KeyError(event.name)

    def fails_in_a_thread(event: Event[Any]) -> None:
        failing.append(event.name)
        raise KeyError(event.name)

    async def before(event: Event[Any]) -> None:
        others.append(event.name)

    def after(event: Event[Any]) -> None:
        others.append(event.name)

    async with EventBus([local(before, fails if kind == "async" else fails_in_a_thread, after)]) as bus:
        async with bus.scope():
            for name in "abc":
                dispatch(name)
        stats = bus.stats()
    assert failing == ["a", "b", "c"]
    assert sorted(others) == ["a", "a", "b", "b", "c", "c"]
    assert (stats.delivered, stats.failed, stats.pending) == (6, 3, 0)


async def test_a_failing_handler_does_not_stop_the_other_handlers():
    class Failing(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            raise KeyError(event.name)

    class Structural:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            raise OSError("no broker")

    names: list[str] = []
    failures: list[Failure] = []

    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)

    async with EventBus([Failing(), Structural(), local(subscriber)], on_error=failures.append) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
    assert names == ["a", "b"]
    told = [(failure.subscriber, failure.event.name, type(failure.exception)) for failure in failures]
    names_of = {
        name: [f"{failing}" for subscriber, failing, _ in told if name in subscriber] for name in ("Failing", "St")
    }
    assert names_of == {"Failing": ["a", "b"], "St": ["a", "b"]}
    assert {kind for _, _, kind in told} == {KeyError, OSError}


async def test_a_handler_that_leaves_handle_many_alone_fails_event_by_event():
    class Picky(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            if event.name == "bad":
                raise KeyError("bad")

    failures: list[Failure] = []
    async with EventBus([Picky()], on_error=failures.append) as bus:
        async with bus.scope():
            for name in ("good", "bad", "good"):
                dispatch(name)
        assert bus.stats().delivered == 2
    assert [failure.event.name for failure in failures] == ["bad"]


@pytest.mark.parametrize(
    "rejected, failed",
    [(["b"], ["b"]), (["a", "c"], ["a", "c"]), ([], ["a", "b", "c"]), (["another"], ["a", "b", "c"])],
    ids=["one", "two", "none said", "unknown"],
)
async def test_of_a_batch_only_what_was_rejected_failed(rejected, failed):
    class Forwarding:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            known = {event.name: event for event in events}
            known["another"] = Event("another")
            raise ForwardError("refused", [Rejection(known[name], "too large") for name in rejected])

    failures: list[str] = []
    async with EventBus([Forwarding()], on_error=lambda failure: failures.append(failure.event.name)) as bus:
        async with bus.scope():
            for name in "abc":
                dispatch(name)
        stats = bus.stats()
    assert failures == failed
    assert (stats.failed, stats.delivered) == (len(failed), 3 - len(failed))


async def test_a_failure_is_logged_once_and_without_the_payload(caplog):
    caplog.set_level(logging.DEBUG, "fastapi_events")

    async def subscriber(event: Event[Any]) -> None:
        raise KeyError("reason")

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            event = dispatch("order.placed", {"card": "4111-1111"})
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert record.name == "fastapi_events"
    assert record.exc_info is not None
    assert all(part in message for part in ("order.placed", event.id, "subscriber"))
    assert "4111" not in caplog.text


async def test_hooks_are_told_what_failed_where_and_why():
    heard: list[tuple[str, Failure]] = []

    async def subscriber(event: Event[Any]) -> None:
        raise KeyError(event.name)

    async def hook(failure: Failure) -> None:
        await asyncio.sleep(0)
        heard.append(("async", failure))

    hooks = [lambda failure: heard.append(("sync", failure)), hook]
    async with EventBus([local(subscriber)], on_error=hooks) as bus:
        async with bus.scope():
            event = dispatch("a", {"x": 1})
    assert [kind for kind, _ in heard] == ["sync", "async"]
    for _, failure in heard:
        assert failure.event == event
        assert failure.event.id == event.id
        assert failure.subscriber.endswith("subscriber")
        assert isinstance(failure.exception, KeyError)
        assert failure.attempt == 1


async def test_of_two_subscribers_each_has_a_payload_of_its_own():
    payloads: list[list[int]] = []

    async def one(event: Event[Any]) -> None:
        event.payload.append(len(payloads))
        payloads.append(event.payload)

    async def other(event: Event[Any]) -> None:
        await one(event)

    async with EventBus([local(one, other)]) as bus:
        async with bus.scope():
            dispatch("a", [7])
    assert payloads == [[7, 0], [7, 1]]


async def test_a_block_within_a_subscriber_keeps_nothing_alive():
    class Thing:
        pass

    references: list[weakref.ref[Any]] = []

    async def subscriber(event: Event[Any]) -> None:
        if event.name == "cause":
            references.append(weakref.ref(event.payload))
            async with bus.scope():
                dispatch("effect")

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            dispatch("cause", Thing(), opaque=True)
        assert bus.stats().delivered == 2
        await asyncio.sleep(0)
        gc.collect()
        assert [reference() for reference in references] == [None]


async def test_what_is_over_leaves_nothing_behind(caplog):
    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        if event.name == "b":
            raise KeyError

    caplog.set_level(logging.CRITICAL, "fastapi_events")  # else every record is kept
    async with EventBus([local(subscriber)]) as bus:
        counts: list[int] = []
        for _ in range(3):
            for _ in range(100):
                async with bus.scope():
                    dispatch("a")
                    dispatch("a", deliver_on="now")
                    dispatch("a", deliver_on="failure")
                bus.dispatch("b")
                await bus.drain()
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[2] <= counts[1] + 50  # the first round fills caches


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.mark.parametrize("options", [{}, {"timeout": 5.0}, {"concurrency": 2}], ids=["plain", "timeout", "concurrency"])
async def test_each_event_is_handled_in_the_context_that_it_came_with(options):
    seen: list[tuple[str, str]] = []

    async def subscriber(event: Event[Any]) -> None:
        seen.append((event.name, tenant.get()))

    async with EventBus([local(subscriber, **options)]) as bus:
        async with bus.scope():
            for name in "abc":
                tenant.set(f"tenant of {name}")
                dispatch(name, deliver_on="now")
    assert seen == [(name, f"tenant of {name}") for name in "abc"]


async def test_a_scope_that_lasts_keeps_no_tasks_of_what_is_over():
    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0)

    async with EventBus([local(subscriber)]) as bus, bus.scope():
        counts: list[int] = []
        for _ in range(2):
            for _ in range(50):
                dispatch("a", deliver_on="now")
                await bus.drain()
            gc.collect()
            counts.append(sum(isinstance(thing, asyncio.Task) for thing in gc.get_objects()))
        assert bus.stats().delivered == 100
    assert counts[1] <= counts[0] + 5


# Order and concurrency


async def test_the_order_holds_across_threads_suspensions_and_failures():
    order: dict[str, list[int]] = {"plain": [], "suspends": [], "thread": []}

    async def plain(event: Event[Any]) -> None:
        order["plain"].append(event.payload)
        if event.payload % 3 == 0:
            raise KeyError

    async def suspends(event: Event[Any]) -> None:
        for _ in range(event.payload % 4):
            await asyncio.sleep(0)
        order["suspends"].append(event.payload)

    def thread(event: Event[Any]) -> None:
        order["thread"].append(event.payload)

    async with EventBus([local(plain, suspends, thread)]) as bus:
        async with bus.scope():
            for number in range(200):
                dispatch("a", number)
    assert order == {kind: list(range(200)) for kind in order}


async def test_subscribers_run_side_by_side():
    together = asyncio.Barrier(20)

    def make() -> Callable[..., Any]:
        async def subscriber(event: Event[Any]) -> None:
            await together.wait()

        return subscriber

    async with EventBus([local(*(make() for _ in range(20)))]) as bus:
        async with asyncio.timeout(5):
            async with bus.scope():
                dispatch("a")
        assert bus.stats().delivered == 20


async def test_concurrency_is_never_exceeded():
    running = most = 0

    async def subscriber(event: Event[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(event.payload % 5):
            await asyncio.sleep(0)
        running -= 1

    async with EventBus([local(subscriber, concurrency=4)]) as bus:
        async with bus.scope():
            for number in range(100):
                dispatch("a", number)
    assert most == 4


# What it costs the event loop


async def test_no_task_where_nothing_suspends():
    def make() -> Callable[..., Any]:
        async def subscriber(event: Event[Any]) -> None:
            tasks.update(asyncio.all_tasks())

        return subscriber

    tasks: set[asyncio.Task[Any]] = set()
    async with EventBus([local(*(make() for _ in range(10)))]) as bus:
        async with bus.scope():
            tasks.update(asyncio.all_tasks())
            before = len(tasks)
            for _ in range(100):
                dispatch("a")
        assert bus.stats().delivered == 1000
    assert len(tasks) <= before + 1


async def test_one_task_for_each_subscriber_that_suspends():
    def make() -> Callable[..., Any]:
        async def subscriber(event: Event[Any]) -> None:
            tasks.add(asyncio.current_task())
            await asyncio.sleep(0)

        return subscriber

    tasks: set[asyncio.Task[Any] | None] = set()
    async with EventBus([local(*(make() for _ in range(5)))]) as bus:
        async with bus.scope():
            for _ in range(100):
                dispatch("a")
        assert bus.stats().delivered == 500
    assert len(tasks) < 50  # five, and a few more on a machine so slow that a slice of time ends


async def test_a_hundred_thousand_events_neither_make_tasks_nor_stall_the_loop():
    handled = 0
    tasks: set[asyncio.Task[Any] | None] = set()

    async def subscriber(event: Event[Any]) -> None:
        nonlocal handled
        handled += 1
        tasks.add(asyncio.current_task())

    async with EventBus([local(subscriber)], max_pending=MANY) as bus:
        async with bus.scope():
            for number in range(MANY):
                dispatch("a", number)
            heartbeat = await Heartbeat(lambda: handled).__aenter__()
        await heartbeat.__aexit__()
        assert bus.stats().delivered == handled == MANY
    assert heartbeat.longest < 0.5  # about 5 ms, and 40 ms in the one turn in which Python looks for garbage
    assert len(tasks) <= 2
    assert 10 <= heartbeat.turns < MANY / 10
    assert heartbeat.most <= MANY / 5


async def test_events_are_sorted_in_turns_that_leave_the_loop_time_for_other_things():
    routed = 0

    class Routing(LocalHandler):
        def matching_subscribers(self, name: str) -> Any:
            nonlocal routed
            routed += 1
            _work(0.00005)
            return super().matching_subscribers(name)

    async with EventBus([Routing()]) as bus:
        async with bus.scope():
            for _ in range(3000):
                dispatch("a")
            heartbeat = await Heartbeat(lambda: routed).__aenter__()
        await heartbeat.__aexit__()
        assert bus.stats().unheard == routed == 3000
    assert heartbeat.most <= 1000


@pytest.mark.parametrize("kind", ["sync", "batch"])
async def test_a_hundred_thousand_events_go_in_batches(kind):
    sizes: list[int] = []
    handled = 0

    class Batches:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            nonlocal handled
            sizes.append(len(list(events)))
            handled += sizes[-1]

    def subscriber(event: Event[Any]) -> None:
        nonlocal handled
        handled += 1

    async with CountingBus([Batches() if kind == "batch" else local(subscriber)], max_pending=MANY) as bus:
        async with bus.scope():
            for number in range(MANY):
                dispatch("a", number)
            heartbeat = await Heartbeat(lambda: handled).__aenter__()
        await heartbeat.__aexit__()
        assert bus.stats().delivered == handled == MANY
    assert heartbeat.longest < 0.5  # about 5 ms, and 40 ms in the one turn in which Python looks for garbage
    assert heartbeat.turns >= 10
    if kind == "batch":
        assert max(sizes) <= 1000
    else:
        assert bus.hops == MANY / 1000


async def test_a_batch_that_fails_is_reported_without_a_stall(caplog):
    caplog.set_level(logging.CRITICAL, "fastapi_events")
    told = 0

    def hook(failure: Failure) -> None:
        nonlocal told
        told += 1
        _work(0.001)

    class Failing:
        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            raise OSError("no broker")

    async with EventBus([Failing()], on_error=hook) as bus:
        async with bus.scope():
            for _ in range(200):
                dispatch("a")
            heartbeat = await Heartbeat(lambda: told).__aenter__()
        await heartbeat.__aexit__()
    assert told == 200
    assert heartbeat.most <= 20


async def test_many_subscribers_that_have_suspended_share_one_slice_of_a_turn():
    handled = 0

    def make() -> Callable[..., Any]:
        async def subscriber(event: Event[Any]) -> None:
            nonlocal handled
            if event.payload == 0:
                await all_waiting.wait()
            _work(0.002)
            handled += 1

        return subscriber

    all_waiting = asyncio.Barrier(11)
    async with EventBus([local(*(make() for _ in range(10)))]) as bus:
        async with bus.scope():
            for number in range(10):
                dispatch("a", number, deliver_on="now")
            await all_waiting.wait()
            async with Heartbeat(lambda: handled) as heartbeat:
                await bus.drain()
    assert handled == 100
    # each that has just been resumed ends its event; one goes on, for 5 ms
    assert heartbeat.most <= 10 + 5


def _work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def test_subscribers_that_do_not_suspend_are_called_in_dispatch_order():
    order: list[str] = []
    handler = LocalHandler()

    @handler.register("a", "b")
    async def first(event: Event[Any]) -> None:
        order.append(f"first {event.name}")

    @handler.register("a")
    async def second(event: Event[Any]) -> None:
        order.append(f"second {event.name}")

    async with EventBus([handler]) as bus, bus.scope():
        dispatch("a")
        dispatch("b")
    assert order == ["first a", "second a", "first b"]


async def test_a_long_line_does_not_keep_the_others_waiting():
    order: list[str] = []

    async def long(event: Event[Any]) -> None:
        _work(0.0005)
        order.append("long")

    async def short(event: Event[Any]) -> None:
        order.append("short")

    handler = LocalHandler()
    handler.register("long", timeout=60)(long)
    handler.register("short", timeout=60)(short)
    async with EventBus([handler]) as bus:
        async with bus.scope():
            for _ in range(100):
                dispatch("long")
            dispatch("short")
    assert order.index("short") < 50


async def test_stats_may_be_asked_for_from_threads_during_a_delivery():
    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0)

    errors: list[BaseException] = []
    done = threading.Event()

    def probe(bus: EventBus) -> None:
        try:
            while not done.is_set():
                stats = bus.stats()
                assert stats.pending >= 0
        except BaseException as error:
            errors.append(error)

    async with EventBus([local(subscriber)]) as bus:
        thread = threading.Thread(target=probe, args=(bus,))
        thread.start()
        for _ in range(50):
            async with bus.scope():
                for _ in range(20):
                    dispatch("a")
        done.set()
        thread.join()
    assert errors == []


@pytest.mark.parametrize("options", [{}, {"timeout": 60.0}], ids=["plain", "with options"])
async def test_what_does_not_suspend_is_handled_before_the_loop_turns(options):
    names: list[str] = []
    turns: list[int] = []

    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)

    async with EventBus([local(subscriber, **options)]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
            asyncio.get_running_loop().call_soon(lambda: turns.append(len(names)))
        assert turns == []
        assert names == ["a", "b"]


@pytest.mark.parametrize("first", ["nothing", "one that does not suspend"])
async def test_a_subscriber_runs_in_one_task_which_is_not_that_of_the_block(first):
    tasks: list[asyncio.Task[Any] | None] = []

    async def at_once(event: Event[Any]) -> None:
        tasks.append(asyncio.current_task())

    async def subscriber(event: Event[Any]) -> None:
        tasks.append(asyncio.current_task())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):  # which would cancel the task in which it began
                await asyncio.Event().wait()
        with anyio.move_on_after(0.01) as limit:  # and this one checks that it ends in the same
            await anyio.sleep_forever()
        assert limit.cancelled_caught
        tasks.append(asyncio.current_task())

    block = asyncio.current_task()
    async with EventBus([local(*([at_once] if first != "nothing" else []), subscriber)]) as bus:
        async with bus.scope():
            dispatch("a")
        assert asyncio.current_task() is block
        assert (bus.stats().failed, bus.stats().pending) == (0, 0)
    assert len(tasks) == 2 + (first != "nothing")
    assert len(set(tasks)) == 1
    assert block not in tasks


async def test_a_subscriber_that_cancels_its_task_before_it_first_suspends_is_cancelled_where_it_waits():
    failures: list[Failure] = []
    inner: list[asyncio.Task[None]] = []

    async def subscriber(event: Event[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        inner.append(asyncio.create_task(asyncio.sleep(60)))
        await inner[0]

    async def other(event: Event[Any]) -> None:
        await asyncio.sleep(0)

    async with EventBus([local(subscriber, other)], on_error=failures.append) as bus, bus.scope():
        dispatch("a")
    assert inner[0].cancelled()
    assert [type(failure.exception) for failure in failures] == [asyncio.CancelledError]
    assert bus.stats().delivered == 1


async def test_a_subscriber_sees_nothing_of_the_exception_that_ended_the_block():
    seen: list[BaseException | None] = []
    failures: list[Failure] = []

    async def subscriber(event: Event[Any]) -> None:
        seen.append(sys.exception())
        raise ValueError

    async with EventBus([local(subscriber)], on_error=failures.append) as bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("a")
                raise KeyError
    assert seen == [None]
    assert [failure.exception.__context__ for failure in failures] == [None]


@pytest.mark.parametrize("begun", [["a"], []])
async def test_what_ctrl_c_interrupts_between_two_subscribers_is_reported(begun, monkeypatch, caplog):
    handled: list[str] = []
    failures: list[Failure] = []

    async def subscriber(event: Event[Any]) -> None:
        handled.append(event.name)

    def interrupted() -> float:
        if handled == begun:
            raise KeyboardInterrupt
        return time.monotonic()

    async with EventBus([local(subscriber)], on_error=failures.append) as bus:
        monkeypatch.setattr("fastapi_events.direct.monotonic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            async with bus.scope():
                for name in "abc":
                    dispatch(name)
        monkeypatch.undo()
        assert handled == begun
        assert [failure.event.name for failure in failures] == ["a", "b", "c"]  # of the first this cannot be told
        assert bus.stats().pending == 0
    assert caplog.text.count("its delivery was interrupted") == 3


async def test_whenever_something_waits_stats_tell_its_age():
    async def one(event: Event[Any]) -> None:
        _work(0.006)  # so that the loop has its turn before the next one

    async def other(event: Event[Any]) -> None:
        _work(0.006)

    async def block() -> None:
        async with bus.scope():
            dispatch("a")
            dispatch("b")

    seen: list[tuple[bool, bool]] = []
    async with EventBus([local(one, other)]) as bus:
        task = asyncio.create_task(block())
        while not task.done():
            stats = bus.stats()
            seen.append((stats.pending > 0, stats.oldest_age > 0.0))
            await asyncio.sleep(0)
    assert (True, True) in seen
    assert all(waits == has_age for waits, has_age in seen)


async def test_what_is_handed_out_at_once_is_known_until_it_is_handled():
    left: list[list[str]] = []
    ages: list[float] = []

    async def subscriber(event: Event[Any]) -> None:
        left.append([event.name for event in bus.unfinished()])
        ages.append(bus.stats().oldest_age)

    async with EventBus([local(subscriber)]) as bus, bus.scope():
        for name in "abc":
            dispatch(name)
    assert left == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert min(ages) > 0.0
    assert (bus.unfinished(), bus.stats().oldest_age) == ([], 0.0)


async def test_scopes_within_subscribers_do_not_nest_on_the_stack():
    async def subscriber(event: Event[Any]) -> None:
        if event.payload < 300:
            async with bus.scope():
                dispatch("a", event.payload + 1)

    async with EventBus([local(subscriber)], max_depth=1000) as bus, asyncio.timeout(20):
        async with bus.scope():
            dispatch("a", 1)
        assert (bus.stats().delivered, bus.stats().failed, bus.stats().pending) == (300, 0, 0)


async def test_the_oldest_event_need_not_be_the_first_to_be_handled():
    ages: dict[str, float] = {}

    async def subscriber(event: Event[Any]) -> None:
        ages[event.name] = bus.stats().oldest_age

    async with EventBus([local(subscriber)]) as bus, bus.scope():
        dispatch("old")
        time.sleep(0.05)  # noqa: ASYNC251 - the loop is not to turn
        dispatch("young", deliver_on="now")
    assert list(ages) == ["young", "old"]
    assert ages["young"] >= 0.05


async def test_an_event_that_comes_while_a_hook_reports_the_last_one_does_not_hold_the_scope():
    reporting, handled, reported = asyncio.Event(), asyncio.Event(), asyncio.Event()
    overtaken: list[bool] = []

    async def slow_hook(failure: Failure) -> None:
        reporting.set()
        await reported.wait()

    async def fails_once(event: Event[Any]) -> None:
        if event.name == "a":
            raise ValueError
        handled.set()

    async def chains(event: Event[Any]) -> None:
        if event.name == "a":
            await reporting.wait()
            dispatch("b")
            for _ in range(5):
                await asyncio.sleep(0)
            overtaken.append(handled.is_set())
            reported.set()

    async with EventBus([local(fails_once, chains)], on_error=slow_hook) as bus, asyncio.timeout(10):
        async with bus.scope():
            dispatch("a")
        assert bus.stats().delivered == 3
    assert overtaken == [False]  # its subscriber is not through with the event before


async def test_a_hundred_subscribers_that_suspend_have_begun_after_a_few_turns_of_the_loop():
    loop, turn, begun, done = asyncio.get_running_loop(), 0, list[int](), asyncio.Event()

    def count() -> None:
        nonlocal turn
        turn += 1
        if not done.is_set():
            loop.call_soon(count)

    handler = LocalHandler()
    for _ in range(100):

        async def subscriber(event: Event[Any]) -> None:
            begun.append(turn)
            if len(begun) == 100:
                done.set()
            await done.wait()

        handler.register("a")(subscriber)
    async with EventBus([handler]) as bus, bus.scope():
        dispatch("a")
        count()
    assert len(begun) == 100
    assert max(begun) - min(begun) < 30  # seven, and a few more where a slice of time ends


async def test_what_a_subscriber_does_before_it_is_awaited_is_its_own():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[tuple[str, str | None, str]] = []

    async def inner(event: Event[Any]) -> None:
        seen.append((event.name, event.headers.get("causationid"), variable.get()))

    @functools.wraps(inner)
    def outer(event: Event[Any]) -> Coroutine[Any, Any, None]:
        if event.name == "cause":
            variable.set("set")
            dispatch("effect")
        return inner(event)

    handler = LocalHandler()
    handler.register("*")(outer)
    async with EventBus([handler]) as bus, bus.scope():
        cause = dispatch("cause")
        dispatch("other")
    assert seen == [("cause", None, "set"), ("other", None, "unset"), ("effect", cause.id, "set")]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks cannot start eagerly")
async def test_where_all_tasks_start_eagerly_workers_do_not_nest():
    def make() -> Callable[..., Any]:
        async def subscriber(event: Event[Any]) -> None:
            await asyncio.sleep(0)

        return subscriber

    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with EventBus([local(*(make() for _ in range(1000)))]) as bus:
        async with bus.scope():
            dispatch("a")
        assert bus.stats().delivered == 1000


async def test_one_event_for_many_subscribers_leaves_the_loop_time_for_other_things():
    handled = 0

    def make() -> Callable[..., Any]:
        async def subscriber(event: Event[Any]) -> None:
            nonlocal handled
            handled += 1
            _work(0.00005)

        return subscriber

    async with EventBus([local(*(make() for _ in range(2000)))]) as bus:
        async with bus.scope():
            dispatch("a")
            heartbeat = await Heartbeat(lambda: handled).__aenter__()
        await heartbeat.__aexit__()
        assert bus.stats().delivered == handled == 2000
    assert heartbeat.most <= 1000


async def test_a_subscriber_that_cancels_its_task_and_returns_does_not_cancel_the_next():
    handled: list[str] = []

    async def first(event: Event[Any]) -> None:
        asyncio.current_task().cancel()

    async def second(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        handled.append(event.name)

    async with EventBus([local(first, second)]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
        assert (bus.stats().delivered, bus.stats().failed) == (4, 0)
    assert handled == ["a", "b"]


async def test_a_subscriber_that_suspends_alone_needs_one_task():
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[Any]]()

    async def subscriber(event: Event[Any]) -> None:
        loop.call_soon(lambda: tasks.update(asyncio.all_tasks()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            before = asyncio.all_tasks()
            dispatch("a")
    assert len(tasks - before) == 1
