"""The bus: what it takes, order, copies, limits, start and stop."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import AsyncMock, MagicMock

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
    with pytest.raises(ConfigurationError, match="Trace-Id"):
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


async def test_who_dispatches_an_opaque_object_where_only_other_handlers_are_is_told(caplog):
    recorder = Recorder()
    functions = LocalHandler()
    async with EventBus([recorder, functions]) as bus:
        event = bus.dispatch("a", object(), opaque=True)
        await bus.drain()
        (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert f"event a ({event.id}): it is opaque" in told.getMessage()
        assert bus.stats().unheard == 1
        functions.register("a")(recorder.handle)  # as the message says
        bus.dispatch("a", object(), opaque=True)
        await bus.drain()
    assert recorder.names == ["a"]


async def test_a_mock_is_a_handler_if_it_has_what_one_needs():
    handler = AsyncMock()
    async with EventBus([handler]) as bus:
        event = bus.dispatch("a")
    handler.handle_many.assert_awaited_once_with([event])
    with pytest.raises(ConfigurationError, match="MagicMock cannot be a handler"):
        EventBus([MagicMock()])


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


class Slow(Recorder):
    """Takes its time to start and to stop, and fails to start as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.failures = failures

    async def start(self) -> None:
        self.calls.append("starts")
        await asyncio.sleep(0.01)
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        self.calls.append("started")

    async def stop(self) -> None:
        self.calls.append("stops")
        await asyncio.sleep(0.01)
        self.calls.append("stopped")


async def test_a_stop_waits_for_the_end_of_the_start():
    handler = Slow()
    bus = EventBus([handler])
    starting = asyncio.create_task(bus.ensure_open())
    await asyncio.sleep(0)
    await bus.stop()
    await starting
    assert handler.calls == ["starts", "started", "stops", "stopped"]
    with pytest.raises(NoBusError):
        bus.dispatch("a")


async def test_who_waits_for_a_start_that_fails_starts_the_bus_itself():
    handler = Slow(failures=1)
    bus = EventBus([handler])

    async def use() -> None:
        async with bus:
            bus.dispatch("a")

    first, second = await asyncio.gather(use(), use(), return_exceptions=True)
    assert isinstance(first, ConnectionError)
    assert second is None
    assert (handler.names, bus.stats().pending) == (["a"], 0)


async def test_a_bus_is_stopped_when_its_handlers_are():
    handler = Slow()
    bus = EventBus([handler])
    await bus.ensure_open()
    stopping = asyncio.create_task(bus.stop())
    while "stops" not in handler.calls:
        await asyncio.sleep(0)
    await bus.ensure_open()
    with pytest.raises(NoBusError):
        bus.dispatch("a")
    await stopping
    async with bus:
        bus.dispatch("b")
    assert handler.calls == ["starts", "started", "stops", "stopped"] * 2
    assert handler.names == ["b"]


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


async def test_events_accepted_while_a_bus_stops_are_handled_or_refused_and_chains_go_on():
    names: list[str] = []
    refused: list[str] = []
    bus_stops = asyncio.Event()

    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)
        if event.name == "first":
            bus_stops.set()
        for _ in range(10):
            await asyncio.sleep(0)
        if event.name == "meanwhile.0":
            dispatch("effect")

    async def busy(bus: EventBus) -> None:
        await bus_stops.wait()
        for number in range(100):
            try:
                bus.dispatch(f"meanwhile.{number}")
            except NoBusError:
                refused.append(f"meanwhile.{number}")
            await asyncio.sleep(0)

    async with bus_of(subscriber) as bus:
        task = asyncio.create_task(busy(bus))
        bus.dispatch("first")
    assert bus.stats().pending == 0
    await task
    assert sorted(names + refused) == sorted(["first", "effect", *(f"meanwhile.{number}" for number in range(100))])
    assert "meanwhile.0" in names
    assert refused
    assert bus.stats().failed == 0


async def test_two_that_stop_a_bus_at_once_stop_its_handlers_once_and_after_the_last_event():
    handler = Lifecycle()
    bus = EventBus([handler])
    await bus.ensure_open()
    bus.dispatch("a")
    await asyncio.gather(bus.stop(), bus.stop())
    assert handler.calls == ["start", "stop"]
    assert handler.names == ["a"]


async def test_a_bus_whose_stop_was_cancelled_may_be_started_again():
    gate = Gate()
    bus = bus_of(gate)
    await bus.ensure_open()
    bus.dispatch("a")
    stop = asyncio.create_task(bus.stop())
    await gate.entered.wait()
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    gate.let_go.set()
    async with bus:
        bus.dispatch("b")
    assert gate.ended == ["a", "b"]


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


# Numbers, registry, memory


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
