"""Any handler, some events."""

import asyncio
from collections.abc import Iterable
from enum import Enum

import pytest

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    Event,
    EventBus,
    EventModel,
    EventType,
    LocalHandler,
    dispatch,
    only,
    registry,
)


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)


class Batches(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    async def handle_many(self, events: Iterable[Event[object]]) -> None:
        self.batches.append([event.name for event in events])

    async def start(self) -> None:
        self.names.append("start")

    async def stop(self) -> None:
        self.names.append("stop")


class Kind(Enum):
    PAID = "order.paid"


async def test_names_patterns_models_event_types_and_members():
    recorder = Recorder()
    with registry.isolated():

        class OrderPlaced(EventModel, name="order.placed"):
            pass

        scores = EventType("scores", list[int])
        async with EventBus([only(recorder, OrderPlaced, scores, Kind.PAID, "invoice.*", "a[b]")]) as bus:
            async with bus.scope():
                dispatch(OrderPlaced())
                dispatch(scores, [1])
                for name in ("order.paid", "invoice.sent", "a[b]", "ab", "order.placed.again", "Invoice.sent", "other"):
                    dispatch(name)
        assert recorder.names == ["order.placed", "scores", "order.paid", "invoice.sent", "a[b]", "ab"]


async def test_what_is_not_wanted_is_not_counted_as_delivered_and_nobody_listens_to_it():
    async with EventBus([only(Recorder(), "a")]) as bus:
        bus.dispatch("b")
        await bus.drain()
        assert (bus.stats().delivered, bus.stats().unheard, bus.stats().pending) == (0, 1, 0)


async def test_a_batch_holds_the_wanted_events_only_and_the_handler_is_started_and_stopped():
    handler = Batches()
    async with EventBus([only(handler, "a")]) as bus:
        async with bus.scope():
            for name in "abab":
                dispatch(name)
        async with bus.scope():
            dispatch("b")
    assert handler.batches == [["a", "a"]]
    assert handler.names == ["start", "stop"]


async def test_a_local_handler_is_narrowed_and_stays_one_unit_of_failure_for_each_function():
    handler = LocalHandler()
    heard: list[str] = []

    @handler.register
    async def fails(event: Event[object]) -> None:
        raise KeyError(event.name)

    @handler.register("*")
    def hears(event: Event[object]) -> None:
        heard.append(event.name)

    async with EventBus([only(handler, "a.*"), only(handler, "*.b")]) as bus:
        async with bus.scope():
            for name in ("a.a", "a.b", "b.b", "b.a"):
                dispatch(name)
        assert bus.stats().failed == 3
    assert heard == ["a.a", "a.b", "b.b"]


async def test_it_may_be_narrowed_twice():
    recorder = Recorder()
    async with EventBus([only(only(recorder, "a.*"), "*.b")]) as bus:
        async with bus.scope():
            for name in ("a.a", "a.b", "b.b"):
                dispatch(name)
    assert recorder.names == ["a.b"]


async def test_it_is_a_handler_without_a_bus_too():
    recorder = Recorder()
    narrowed = only(recorder, "a")
    await narrowed.handle(Event("a"))
    await narrowed.handle(Event("b"))
    await narrowed.handle_many([Event("b"), ("a", None), Event("a")])
    assert recorder.names == ["a", "a", "a"]


class Failing(Recorder):
    async def handle(self, event: Event[object]) -> None:
        await asyncio.sleep(0)
        raise KeyError


async def test_a_failure_bears_the_name_of_the_handler():
    names: list[str] = []
    async with EventBus([only(Failing(), "a")], on_error=lambda failure: names.append(failure.subscriber)) as bus:
        bus.dispatch("a")
    assert names == ["Failing"]


@pytest.mark.parametrize(
    "handler, what",
    [(Recorder(), []), (Recorder, ["a"]), (LocalHandler, ["a"]), (object(), ["a"]), (Recorder(), [int]), (Recorder(), [print])],
    ids=["no event", "class", "class of LocalHandler", "no handler", "a type", "a function"],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(handler, what):
    with pytest.raises(ConfigurationError):
        only(handler, *what)
