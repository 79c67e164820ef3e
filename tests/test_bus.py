"""The bus without an application: blocks, order, context, limits, start, drain."""

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fastapi_events import (
    BaseEventHandler,
    BusFullError,
    ChainTooLongError,
    ConfigurationError,
    Event,
    EventBus,
    EventModel,
    EventPayloadSchemaRegistry,
    LocalHandler,
    NoBusError,
    PayloadError,
    current_bus,
    dispatch,
    registry,
)


class Recorder(BaseEventHandler):
    """Remembers the names and payloads that it received."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.payloads: list[object] = []

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)
        self.payloads.append(event.payload)


class Lifecycle(Recorder):
    """Writes down when it is started and stopped; fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.failures = failures

    async def start(self) -> None:
        self.calls.append("start")
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no broker")

    async def stop(self) -> None:
        self.calls.append("stop")


class Gate:
    """A subscriber that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ended: list[str] = []

    async def __call__(self, event: Event[Any]) -> None:
        self.entered.set()
        await self.let_go.wait()
        self.ended.append(event.name)


def bus_of(*functions: Callable[..., Any], **options: Any) -> EventBus:
    handler = LocalHandler()
    for function in functions:
        handler.register(function)
    return EventBus([handler], **options)


# What a bus takes


@pytest.mark.parametrize(
    "handlers",
    [iter([Recorder()]), (one for one in [Recorder()]), Recorder(), [Recorder], [object()], [lambda event: None], None],
    ids=["iterator", "generator", "handler", "class", "object", "function", "None"],
)
def test_handlers_that_cannot_work_are_refused(handlers):
    with pytest.raises(ConfigurationError):
        EventBus(handlers)


@pytest.mark.parametrize(
    "options",
    [
        {"deliver_on": "sometime"},
        {"max_threads": 0},
        {"max_depth": 0},
        {"max_pending": 0},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigurationError):
        EventBus([], **options)


def test_headers_that_no_event_can_carry_are_refused():
    with pytest.raises(PayloadError, match="Trace-Id"):
        EventBus([], headers={"Trace-Id": "1"})


async def test_anything_with_handle_many_is_a_handler():
    class Structural:
        def __init__(self) -> None:
            self.batches: list[list[str]] = []

        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            self.batches.append([event.name for event in events])

    handler = Structural()
    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
    assert handler.batches == [["a", "b"]]


async def test_every_handler_receives_every_event_in_dispatch_order():
    first, second = Recorder(), Recorder()
    names = [str(number) for number in range(50)]
    async with EventBus([first, second]) as bus:
        async with bus.scope():
            for name in names:
                dispatch(name)
    assert first.names == second.names == names


async def test_buses_do_not_see_each_others_events():
    one, other = Recorder(), Recorder()
    async with EventBus([one]) as first, EventBus([other]) as second:
        first.dispatch("to.one")
        second.dispatch("to.other")
        async with first.scope(), second.scope():
            dispatch("inner")
            first.dispatch("outer")
    assert sorted(one.names) == ["outer", "to.one"]
    assert sorted(other.names) == ["inner", "to.other"]


async def test_source_and_headers_of_the_bus_are_on_every_event():
    received: list[Event[Any]] = []
    numbers = iter(range(10))

    async def take(event: Event[Any]) -> None:
        received.append(event)

    async with bus_of(take, source="orders", headers=lambda: {"requestid": str(next(numbers))}) as bus:
        bus.dispatch("a")
        bus.dispatch("b", headers={"tenant": "x"})
        bus.dispatch("c", source="billing", headers={"requestid": "mine"})
    assert [(event.source, dict(event.headers)) for event in received] == [
        ("orders", {"requestid": "0"}),
        ("orders", {"requestid": "1", "tenant": "x"}),
        ("billing", {"requestid": "mine"}),
    ]


# Blocks


async def test_a_block_delivers_at_its_end_and_waits():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("a")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert recorder.names == []
        assert recorder.names == ["a"]


async def test_a_block_starts_the_bus():
    handler = Lifecycle()
    bus = EventBus([handler])
    async with bus.scope():
        dispatch("a")
    assert handler.calls == ["start"]
    assert handler.names == ["a"]
    await bus.stop()


async def test_outside_a_block_an_event_goes_at_once_but_not_on_the_stack_of_dispatch():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        bus.dispatch("a", deliver_on="success")
        assert recorder.names == []
        await bus.drain()
        assert recorder.names == ["a"]


@pytest.mark.parametrize("deliver_on", ["completion", "success", "failure", "now"])
@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
async def test_the_outcome_of_a_block_decides_what_is_delivered(deliver_on, fails, caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    recorder = Recorder()
    withheld: list[str] = []
    async with EventBus([recorder], on_withheld=lambda event: withheld.append(event.name)) as bus:
        try:
            async with bus.scope():
                event = dispatch("a", deliver_on=deliver_on)
                dispatch("b")
                if fails:
                    raise KeyError("the block")
        except KeyError:
            assert fails
        await bus.drain()
        stats = bus.stats()
    comes = deliver_on in ("completion", "now", "failure" if fails else "success")
    assert recorder.names == (["a", "b"] if comes else ["b"])
    assert withheld == ([] if comes else ["a"])
    assert stats.withheld == len(withheld)
    assert stats.pending == 0
    logged = [
        record for record in caplog.records if event.id in record.getMessage() and "withheld" in record.getMessage()
    ]
    assert [(record.levelno, "a" in record.getMessage()) for record in logged] == [(logging.INFO, True)] * len(withheld)


async def test_the_exception_of_a_block_comes_out_after_the_delivery():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("a")
                raise KeyError("the block")
        assert recorder.names == ["a"]


async def test_what_the_outcome_is_can_be_told_otherwise():
    recorder = Recorder()
    bus = EventBus([recorder], is_success=lambda outcome: isinstance(outcome.exception, KeyError), deliver_on="success")
    async with bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("after KeyError")
                raise KeyError
        async with bus.scope():
            dispatch("after nothing")
            dispatch("however it ends", deliver_on="completion")
    assert recorder.names == ["after KeyError", "however it ends"]


async def test_a_failing_is_success_loses_nothing_and_masks_nothing(caplog):
    def is_success(outcome: object) -> bool:
        raise ZeroDivisionError("in is_success")

    recorder = Recorder()
    withheld: list[str] = []
    bus = EventBus([recorder], is_success=is_success, on_withheld=lambda event: withheld.append(event.name))
    async with bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("whatever comes")
                dispatch("on success", deliver_on="success")
                raise KeyError("the block")
    assert recorder.names == ["whatever comes"]
    assert withheld == ["on success"]
    assert "ZeroDivisionError" in caplog.text


async def test_the_model_says_what_its_events_wait_for():
    recorder = Recorder()
    with registry.isolated():

        class RefundAsked(EventModel, deliver_on="failure"):
            pass

        async with EventBus([recorder]) as bus:
            async with bus.scope():
                dispatch(RefundAsked())
            with pytest.raises(KeyError):
                async with bus.scope():
                    dispatch(RefundAsked())
                    raise KeyError
            async with bus.scope():
                dispatch(RefundAsked(), deliver_on="completion")
    assert recorder.names == ["RefundAsked", "RefundAsked"]


async def test_an_inner_block_delivers_its_own_events():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("outer.1")
            async with bus.scope():
                dispatch("inner")
            assert recorder.names == ["inner"]
            dispatch("outer.2")
    assert recorder.names == ["inner", "outer.1", "outer.2"]


async def test_a_block_of_another_bus_does_not_hide_an_open_one():
    one, other = Recorder(), Recorder()
    async with EventBus([one]) as first, EventBus([other]) as second:
        async with first.scope():
            async with second.scope():
                first.dispatch("a")
                await asyncio.sleep(0)
            await first.drain()
            assert one.names == []
        assert one.names == ["a"]
    assert other.names == []


async def test_threads_and_tasks_within_a_block_belong_to_it():
    recorder = Recorder()

    async def in_task() -> None:
        dispatch("task")

    async with EventBus([recorder]) as bus:
        async with bus.scope():
            await asyncio.create_task(in_task())
            await asyncio.to_thread(dispatch, "thread")
            await asyncio.sleep(0)
            assert recorder.names == []
    assert recorder.names == ["task", "thread"]


async def test_a_task_that_outlives_its_block_dispatches_at_once():
    recorder = Recorder()
    ended = asyncio.Event()

    async def in_task() -> None:
        await ended.wait()
        dispatch("late")

    async with EventBus([recorder]) as bus:
        async with bus.scope():
            task = asyncio.create_task(in_task())
        ended.set()
        await task
        await bus.drain()
        assert recorder.names == ["late"]


async def test_an_event_that_goes_now_does_not_wait_for_its_block():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("at.end")
            dispatch("now", deliver_on="now")
            await bus.drain()
            assert recorder.names == ["now"]
    assert recorder.names == ["now", "at.end"]


@pytest.mark.parametrize("explicit", [False, True], ids=["dispatch()", "bus.dispatch()"])
async def test_the_chain_of_an_event_that_goes_now_goes_at_once_too(explicit):
    names: list[str] = []

    async def chain(event: Event[Any], bus: EventBus) -> None:
        names.append(event.name)
        if event.name == "now":
            (bus.dispatch if explicit else dispatch)("effect")

    async with bus_of(chain) as bus:
        async with bus.scope():
            dispatch("now", deliver_on="now")
            await bus.drain()
            assert names == ["now", "effect"]


@pytest.mark.parametrize("explicit", [False, True], ids=["dispatch()", "bus.dispatch()"])
async def test_the_chain_of_an_inner_block_does_not_wait_for_the_outer_one(explicit):
    names: list[str] = []

    async def chain(event: Event[Any], bus: EventBus) -> None:
        names.append(event.name)
        if event.name == "inner":
            (bus.dispatch if explicit else dispatch)("effect")

    async with bus_of(chain) as bus:
        async with bus.scope():
            async with bus.scope():
                dispatch("inner")
            assert names == ["inner", "effect"]


async def test_a_block_in_a_subscriber_collects():
    order: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        if event.name != "cause":
            order.append(event.name)
            return
        async with current_bus().scope():
            dispatch("effect")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append("end of block")
        order.append("after block")

    async with bus_of(subscriber) as bus:
        async with bus.scope():
            dispatch("cause")
    assert order == ["end of block", "effect", "after block"]


async def test_a_block_that_is_cancelled_is_a_failure_and_its_events_go_out():
    recorder = Recorder()

    async with EventBus([recorder]) as bus:

        async def block() -> None:
            async with bus.scope():
                dispatch("completion")
                dispatch("failure", deliver_on="failure")
                dispatch("success", deliver_on="success")
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(block())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert recorder.names == ["completion", "failure"]


async def test_who_waits_for_a_block_may_be_cancelled_without_harm_to_the_events():
    gate = None
    async with bus_of(lambda event: None) as bus:
        gate = Gate()
        handler = LocalHandler()
        handler.register(gate)
        async with EventBus([handler]) as other:

            async def block() -> None:
                async with other.scope():
                    other.dispatch("a")

            task = asyncio.create_task(block())
            await gate.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.let_go.set()
            assert (await other.drain()).complete
    assert gate.ended == ["a"]
    assert bus.stats().pending == 0


async def test_a_block_does_not_wait_for_further_attempts():
    from fastapi_events import Retry

    attempts: list[int] = []
    again = asyncio.Event()

    async def wait(seconds: float) -> None:
        await again.wait()

    handler = LocalHandler()

    @handler.register(retry=Retry(attempts=2, sleep=wait))
    async def flaky(event: Event[Any]) -> None:
        attempts.append(len(attempts) + 1)
        if len(attempts) == 1:
            raise OSError("first")

    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
        assert attempts == [1]
        again.set()
        await bus.drain()
        assert attempts == [1, 2]


async def test_a_closed_block_keeps_nothing_alive():
    class Payload(EventModel, name="heavy"):
        pass

    references: list[weakref.ref[Any]] = []

    async def subscriber(event: Event[Any]) -> None:
        references.append(weakref.ref(event.payload))

    async with bus_of(subscriber) as bus:
        async with bus.scope():
            dispatch(Payload())
        await asyncio.sleep(0)
        gc.collect()
        assert [reference() for reference in references] == [None]


# Order


async def test_each_subscriber_has_its_order_and_none_waits_for_another():
    slow: list[str] = []
    quick: list[str] = []
    gate = asyncio.Event()

    async def slow_one(event: Event[Any]) -> None:
        await gate.wait()
        slow.append(event.name)

    async def quick_one(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        quick.append(event.name)
        if len(quick) == 10:
            gate.set()

    names = [str(number) for number in range(10)]
    async with bus_of(slow_one, quick_one) as bus:
        async with bus.scope():
            for name in names:
                dispatch(name)
    assert quick == slow == names


async def test_one_event_at_a_time_for_a_subscriber():
    running = most = 0

    async def subscriber(event: Event[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with bus_of(subscriber) as bus:
        async with bus.scope():
            for _ in range(20):
                dispatch("a")
    assert most == 1


async def test_concurrency_gives_up_the_order():
    handler = LocalHandler()
    waiting = asyncio.Event()
    running = most = 0

    @handler.register(concurrency=3)
    async def subscriber(event: Event[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            waiting.set()
        await waiting.wait()
        running -= 1

    async with EventBus([handler]) as bus:
        async with bus.scope():
            for _ in range(9):
                dispatch("a")
    assert most == 3


async def test_a_subscriber_reached_in_several_ways_runs_once():
    handler = LocalHandler()
    names: list[str] = []

    @handler.register("order.*")
    @handler.register("*.placed", "order.placed")
    @handler.register
    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)

    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("order.placed")
            dispatch("other")
    assert names == ["order.placed", "other"]


async def test_chains_are_delivered_after_the_event_that_caused_them():
    names: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        if event.name == "cause":
            dispatch("effect")
            await asyncio.sleep(0)
        names.append(event.name)

    async with bus_of(subscriber) as bus:
        async with bus.scope():
            dispatch("cause")
            dispatch("second")
        assert names == ["cause", "second", "effect"]


# Context


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_subscribers_see_the_context_in_which_the_block_ended(kind):
    seen: list[str] = []

    async def async_subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())
        tenant.set("changed by a subscriber")

    def sync_subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())
        tenant.set("changed by a subscriber")

    subscriber = async_subscriber if kind == "async" else sync_subscriber
    other: list[str] = []

    async def second(event: Event[Any]) -> None:
        other.append(tenant.get())

    async with bus_of(subscriber, second) as bus:
        async with bus.scope():
            tenant.set("at dispatch")
            dispatch("a")
            tenant.set("at the end")
    assert seen == other == ["at the end"]
    assert tenant.get() == "at the end"


async def test_outside_a_block_subscribers_see_the_context_of_the_dispatch():
    seen: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())

    async with bus_of(subscriber) as bus:
        for name in ("one", "two"):
            tenant.set(name)
            bus.dispatch("a")
        tenant.set("later")
        await bus.drain()
    assert seen == ["one", "two"]


async def test_events_that_are_kept_keep_their_context():
    seen: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())

    bus = bus_of(subscriber)
    tenant.set("at dispatch")
    bus.dispatch("a")
    tenant.set("at start")
    async with bus:
        pass
    assert seen == ["at dispatch"]


# Snapshot


async def test_later_changes_of_the_caller_go_unnoticed():
    recorder = Recorder()
    payload: dict[str, Any] = {"lines": [{"sku": "a"}]}
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            event = dispatch("a", payload)
            payload["lines"][0]["sku"] = "changed"
            payload["extra"] = 1
    assert recorder.payloads == [{"lines": [{"sku": "a"}]}]
    assert event.payload == {"lines": [{"sku": "a"}]}


async def test_a_subscriber_that_changes_the_payload_disturbs_nobody():
    seen: list[Any] = []

    async def vandal(event: Event[Any]) -> None:
        seen.append(repr(event.payload))
        event.payload["lines"].clear()

    async def victim(event: Event[Any]) -> None:
        seen.append(repr(event.payload))

    payload = {"lines": [1]}
    async with bus_of(vandal, victim, vandal.__call__) as bus:
        async with bus.scope():
            dispatch("a", payload)
    assert seen == ["{'lines': [1]}"] * 3
    assert payload == {"lines": [1]}


async def test_an_opaque_object_reaches_functions_only_and_as_it_is():
    received: list[object] = []
    recorder = Recorder()
    thing = object()

    async def take(event: Event[Any]) -> None:
        received.append(event.payload)

    handler = LocalHandler()
    handler.register(take)
    async with EventBus([recorder, handler]) as bus:
        bus.dispatch("a", thing, opaque=True)
    assert received == [thing]
    assert recorder.names == []


async def test_a_handler_that_consumes_and_changes_its_batch_disturbs_nobody():
    class Greedy(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None: ...

        async def handle_many(self, events: Any) -> None:
            while events:
                events.pop().payload["lines"].clear()

    before, after = Recorder(), Recorder()
    async with EventBus([before, Greedy(), after]) as bus:
        async with bus.scope():
            dispatch("a", {"lines": [1]})
            dispatch("b", {"lines": [2]})
    assert before.payloads == after.payloads == [{"lines": [1]}, {"lines": [2]}]


# Nobody listens


async def test_an_event_that_nobody_wants_is_counted_and_logged_once(caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    async with EventBus([LocalHandler()]) as bus:
        event = bus.dispatch("order.placed")
        bus.dispatch("order.placed")
        bus.dispatch("order.paid")
        await bus.drain()
        stats = bus.stats()
    logged = [record.getMessage() for record in caplog.records if "nobody" in record.getMessage()]
    assert len(logged) == 2
    assert "order.placed" in logged[0]
    assert event.id in logged[0]
    assert (stats.unheard, stats.pending) == (3, 0)


# Bounded


async def test_a_full_bus_refuses_and_says_so_once_a_minute(caplog):
    gate = Gate()
    async with bus_of(gate, max_pending=3) as bus:
        bus.dispatch("unfinished")
        await gate.entered.wait()
        async with bus.scope():
            dispatch("in scope")
            dispatch("in scope")
            for _ in range(2):
                with pytest.raises(BusFullError, match="max_pending"):
                    dispatch("too many")
            assert bus.stats().pending == 3
            assert bus.stats().refused == 2
            gate.let_go.set()
        await bus.drain()
        assert bus.stats().pending == 0
        dispatch("again")
    assert sorted(gate.ended) == ["again", "in scope", "in scope", "unfinished"]
    assert len([record for record in caplog.records if "full" in record.getMessage()]) == 1


async def test_events_that_are_kept_count():
    bus = EventBus([Recorder()], max_pending=1)
    bus.dispatch("a")
    with pytest.raises(BusFullError):
        bus.dispatch("b")
    async with bus:
        await bus.drain()
        bus.dispatch("c")
    assert bus.stats().delivered == 2


async def test_an_event_counts_once_however_many_subscribers_it_has():
    gate, other = Gate(), Gate()
    async with bus_of(gate, other) as bus:
        bus.dispatch("a")
        await asyncio.gather(gate.entered.wait(), other.entered.wait())
        assert bus.stats().pending == 1
        gate.let_go.set()
        while not gate.ended:
            await asyncio.sleep(0)
        assert bus.stats().pending == 1
        other.let_go.set()


async def test_what_subscribers_dispatch_is_not_refused():
    names: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)
        if event.name == "cause":
            dispatch("effect.1")
            dispatch("effect.2")

    async with bus_of(subscriber, max_pending=1) as bus:
        bus.dispatch("cause")
    assert names == ["cause", "effect.1", "effect.2"]


async def test_no_bound_at_all():
    recorder = Recorder()
    async with EventBus([recorder], max_pending=None) as bus:
        async with bus.scope():
            for _ in range(300):
                dispatch("a")
    assert len(recorder.names) == 300


async def test_a_circle_of_events_ends_at_max_depth():
    failures: list[BaseException] = []
    names: list[str] = []

    async def again(event: Event[Any]) -> None:
        names.append(event.name)
        dispatch("b" if event.name == "a" else "a")

    async with bus_of(again, max_depth=4, on_error=lambda failure: failures.append(failure.exception)) as bus:
        async with bus.scope():
            dispatch("a")
    assert names == ["a", "b", "a", "b"]
    assert [type(failure) for failure in failures] == [ChainTooLongError]


async def test_delivery_lets_the_loop_breathe():
    ticks = 0
    gone = False

    async def tick() -> None:
        nonlocal ticks
        while not gone:
            ticks += 1
            await asyncio.sleep(0)

    async def busy(event: Event[Any]) -> None:
        sum(range(2000))

    async with bus_of(busy) as bus:
        ticker = asyncio.create_task(tick())
        async with bus.scope():
            for _ in range(2000):
                dispatch("a")
            ticks = 0
        gone = True
        await ticker
    assert ticks >= 5


# Starting and stopping


async def test_handlers_are_started_and_stopped_once():
    handler = Lifecycle()
    bus = EventBus([handler])
    async with bus:
        await bus.ensure_open()
        async with bus.scope():
            pass
        assert handler.calls == ["start"]
    await bus.stop()
    assert handler.calls == ["start", "stop"]


async def test_a_bus_may_be_started_again():
    handler = Lifecycle()
    bus = EventBus([handler])
    for _ in range(2):
        async with bus:
            bus.dispatch("a")
    assert handler.calls == ["start", "stop"] * 2
    assert handler.names == ["a", "a"]


async def test_a_bus_that_never_started_stops_nothing():
    handler = Lifecycle()
    await EventBus([handler]).stop()
    assert handler.calls == []


async def test_what_is_dispatched_before_the_start_is_kept():
    handler = Lifecycle()
    bus = EventBus([handler])
    dispatch("a", bus=bus)
    bus.dispatch("b")
    await asyncio.to_thread(bus.dispatch, "c")
    assert handler.names == []
    async with bus:
        await bus.drain()
        assert handler.names == ["a", "b", "c"]


async def test_a_handler_that_does_not_start_fails_the_start_and_others_are_stopped():
    first, second = Lifecycle(), Lifecycle(failures=1)
    bus = EventBus([first, second])
    bus.dispatch("kept")
    with pytest.raises(ConnectionError):
        async with bus:
            pytest.fail("the bus did not start")
    assert first.calls == ["start", "stop"]
    assert first.names == second.names == []
    async with bus:
        pass
    assert first.calls == ["start", "stop"] * 2
    assert first.names == second.names == ["kept"]


async def test_two_that_start_a_bus_at_once_start_its_handlers_once():
    handler = Lifecycle()
    bus = EventBus([handler])

    async def use(name: str) -> None:
        async with bus.scope():
            dispatch(name)

    await asyncio.gather(use("a"), use("b"))
    assert handler.calls == ["start"]
    assert sorted(handler.names) == ["a", "b"]
    await bus.stop()


async def test_a_handler_that_does_not_stop_is_logged_and_the_others_stop(caplog):
    class Stubborn(Recorder):
        async def stop(self) -> None:
            raise ConnectionError("half open")

    last = Lifecycle()
    async with EventBus([Stubborn(), last]):
        pass
    assert last.calls == ["start", "stop"]
    assert "Stubborn" in caplog.text
    assert "half open" in caplog.text


async def test_events_dispatched_while_handlers_start_are_kept():
    class Talkative(Lifecycle):
        async def start(self) -> None:
            await super().start()
            bus.dispatch("from start")
            await asyncio.sleep(0)
            self.calls.append("started")

        async def handle(self, event: Event[object]) -> None:
            self.calls.append(event.name)

    handler = Talkative()
    bus = EventBus([handler])
    async with bus:
        pass
    assert handler.calls == ["start", "started", "from start", "stop"]


async def test_a_stopped_bus_refuses_with_an_error_that_says_so():
    bus = EventBus([Recorder()])
    async with bus:
        pass
    with pytest.raises(NoBusError, match="stopped"):
        bus.dispatch("late")
    assert bus.stats().pending == 0


async def test_the_last_event_of_a_block_is_delivered_though_the_bus_stops_within_it():
    recorder = Recorder()
    bus = EventBus([recorder], drain_timeout=0.01)
    async with bus.scope():
        dispatch("a")
        await bus.stop()
    await bus.drain()
    assert recorder.names == ["a"]


def test_a_bus_needs_asyncio():
    coroutine = EventBus([]).ensure_open()
    with pytest.raises(ConfigurationError, match="asyncio"):
        coroutine.send(None)


# Drain


async def test_drain_waits_for_chains_and_counts():
    names: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        names.append(event.name)
        if len(event.name) < 3:
            dispatch(event.name + "a")
        if event.name == "aa":
            raise KeyError(event.name)

    async with bus_of(subscriber) as bus:
        event = bus.dispatch("a")
        report = await bus.drain()
    assert names == ["a", "aa", "aaa"]
    assert report.complete
    assert report.delivered == 2
    assert [failed.name for failed in report.failed] == ["aa"]
    assert event.id != report.failed[0].id


async def test_drain_twice_at_once():
    gate = Gate()
    async with bus_of(gate) as bus:
        bus.dispatch("a")
        drains = asyncio.gather(bus.drain(), bus.drain())
        await gate.entered.wait()
        gate.let_go.set()
        reports = await drains
    assert [report.complete for report in reports] == [True, True]
    assert gate.ended == ["a"]


async def test_drain_in_a_subscriber_waits_for_the_others():
    order: list[str] = []

    async def drains(event: Event[Any]) -> None:
        if event.name == "drain":
            report = await current_bus().drain()
            order.append(f"drained {report.complete}")

    async def slow(event: Event[Any]) -> None:
        if event.name == "other":
            for _ in range(5):
                await asyncio.sleep(0)
            order.append("slow")

    async with bus_of(drains, slow, drain_timeout=5) as bus:
        bus.dispatch("other")
        bus.dispatch("drain")
    assert order == ["slow", "drained True"]


async def test_drain_in_a_block_does_not_wait_for_the_block():
    recorder = Recorder()
    async with EventBus([recorder], drain_timeout=5) as bus:
        bus.dispatch("outside")
        async with bus.scope():
            dispatch("inside")
            report = await bus.drain()
            assert report.complete
            assert recorder.names == ["outside"]
    assert recorder.names == ["outside", "inside"]


async def test_drain_waits_for_the_blocks_of_others():
    recorder = Recorder()
    inside, leave = asyncio.Event(), asyncio.Event()
    async with EventBus([recorder]) as bus:

        async def block() -> None:
            async with bus.scope():
                dispatch("a")
                inside.set()
                await leave.wait()

        task = asyncio.create_task(block())
        await inside.wait()
        drain = asyncio.create_task(bus.drain())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not drain.done()
        leave.set()
        assert (await drain).complete
        assert recorder.names == ["a"]
        await task


async def test_two_blocks_that_drain_at_once_do_not_wait_for_each_other():
    recorder = Recorder()
    async with EventBus([recorder], drain_timeout=5) as bus:
        both = asyncio.Barrier(2)

        async def block(name: str) -> bool:
            async with bus.scope():
                dispatch(name)
                await both.wait()
                return (await bus.drain()).complete

        async with asyncio.timeout(2):
            assert await asyncio.gather(block("a"), block("b")) == [True, True]
    assert sorted(recorder.names) == ["a", "b"]


async def test_two_subscribers_that_drain_at_once_do_not_wait_for_each_other():
    both = asyncio.Barrier(2)
    reports: list[bool] = []

    async def subscriber(event: Event[Any]) -> None:
        await both.wait()
        reports.append((await current_bus().drain()).complete)

    async with bus_of(subscriber, drain_timeout=5) as bus:
        bus.dispatch("a")
        bus.dispatch("b")
        async with asyncio.timeout(2):
            await bus.drain()
    assert reports == [True, True]


async def test_drain_reports_what_is_left_at_the_deadline(caplog):
    gate = Gate()
    failures: list[tuple[str, int]] = []
    hook = lambda failure: failures.append((failure.event.name, failure.attempt))  # noqa: E731
    async with bus_of(gate, on_error=hook) as bus:
        async with bus.scope():
            first = bus.dispatch("running", deliver_on="now")
            second = bus.dispatch("waiting", deliver_on="now")
            await gate.entered.wait()
            report = await bus.drain(timeout=0)
    assert not report.complete
    assert [(left.name, left.id) for left in report.cancelled] == [("running", first.id)]
    assert [(left.name, left.id) for left in report.never_started] == [("waiting", second.id)]
    assert failures == [("running", 1), ("waiting", 0)]
    assert bus.stats().pending == 0
    assert first.id in caplog.text
    assert second.id in caplog.text


async def test_drain_waits_for_what_a_thread_has_just_dispatched():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        thread = threading.Thread(target=bus.dispatch, args=("a",))
        thread.start()
        thread.join()
        await bus.drain()
        assert recorder.names == ["a"]


async def test_stats_tell_what_waits_and_for_how_long():
    gate = Gate()
    async with bus_of(gate) as bus:
        assert (bus.stats().pending, bus.stats().oldest_age) == (0, 0.0)
        bus.dispatch("a")
        await gate.entered.wait()
        stats = bus.stats()
        assert stats.pending == 1
        assert 0.0 < stats.oldest_age < 60.0
        gate.let_go.set()
        await bus.drain()
        assert bus.stats().delivered == 1
        assert bus.stats().oldest_age == 0.0


async def test_a_bus_has_its_own_registry():
    own = EventPayloadSchemaRegistry()
    recorder = Recorder()

    with registry.isolated():

        class Order(EventModel, name="order"):
            id: int

    own.register(Order, event_name="order")
    async with EventBus([recorder], registry=own, payload_schema_dump=True) as bus:
        bus.dispatch("order", {"id": "1"})
    assert recorder.payloads == [{"id": 1}]


async def test_tasks_survive_a_collection_of_garbage():
    ended: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # nothing but the running task refers to the future, and nothing outside to the task
        asyncio.get_running_loop().call_later(0.01, lambda reference=weakref.ref(future): _complete(reference()))
        await future
        ended.append(event.name)

    async with bus_of(subscriber) as bus:
        bus.dispatch("a")
        for _ in range(5):
            await asyncio.sleep(0)
            gc.collect()
        await bus.drain()
    assert ended == ["a"]


def _complete(future: "asyncio.Future[None] | None") -> None:
    if future is not None:
        future.set_result(None)


async def test_a_destructor_and_a_signal_handler_may_dispatch():
    recorder = Recorder()

    class Dying:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            dispatch("last words")

    async with EventBus([recorder]) as bus:
        async with bus.scope():
            Dying()
            gc.collect()
    assert recorder.names == ["last words"]
