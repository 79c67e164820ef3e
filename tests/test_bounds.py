"""How many events may wait, how long a chain may be, and the headers that tell of chains."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_events import (
    BaseEventHandler,
    BusFullError,
    ChainTooLongError,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    Failure,
    LocalHandler,
    dispatch,
)


class Gate:
    """A subscriber that waits until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.ended: list[str] = []

    async def __call__(self, event: Event[Any]) -> None:
        await self.let_go.wait()
        self.ended.append(event.name)


def local(*functions: Callable[..., Any]) -> LocalHandler:
    handler = LocalHandler()
    for function in functions:
        handler.register(function)
    return handler


# How many may wait


async def test_who_is_refused_is_told_how_many_wait_for_the_end_of_something():
    gate = Gate()
    async with EventBus([local(gate)], max_pending=3) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
            bus.dispatch("c", deliver_on="now")
            with pytest.raises(BusFullError, match="3 events wait, .* 2 of them for the end of a request or block"):
                bus.dispatch("d")
            gate.let_go.set()


async def test_a_place_is_free_again_once_every_subscriber_has_finished():
    one, other = Gate(), Gate()
    async with EventBus([local(one, other)], max_pending=1) as bus:
        bus.dispatch("a")
        one.let_go.set()
        while not one.ended:
            await asyncio.sleep(0)
        with pytest.raises(BusFullError, match="a.b is refused: 1 events wait"):
            bus.dispatch("a.b")
        other.let_go.set()
        await bus.drain()
        bus.dispatch("c")
    assert one.ended == other.ended == ["a", "c"]
    assert (bus.stats().refused, bus.stats().pending) == (1, 0)


@pytest.mark.parametrize("way", ["unheard", "withheld", "failed", "given up"])
async def test_whatever_becomes_of_an_event_its_place_is_free_again(way):
    async def subscriber(event: Event[Any]) -> None:
        if way == "failed":
            raise KeyError
        if way == "given up":
            await asyncio.get_running_loop().create_future()

    async with EventBus([] if way == "unheard" else [local(subscriber)], max_pending=2) as bus:
        for _ in range(3):
            async with bus.scope():
                for _ in range(2):
                    dispatch("a", deliver_on="failure" if way == "withheld" else "completion")
                with pytest.raises(BusFullError):
                    dispatch("too many")
                if way == "given up":
                    asyncio.get_running_loop().call_soon(asyncio.ensure_future, bus.drain(timeout=0))
            await bus.drain(timeout=0)
            assert bus.stats().pending == 0
    assert bus.stats().refused == 3


def test_an_endpoint_sees_that_the_bus_is_full():
    names: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)

    async def endpoint(request: Request) -> Response:
        dispatch("first")
        try:
            dispatch("second")
        except BusFullError:
            return Response(status_code=503)
        return Response()

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[local(subscriber)], max_pending=1)
    with TestClient(app) as client:
        assert [client.get("/").status_code for _ in range(2)] == [503, 503]
    assert names == ["first", "first"]


async def test_the_bound_holds_for_many_threads_at_once():
    gate = Gate()
    refused = accepted = 0
    lock = threading.Lock()

    def dispatch_many(bus: EventBus) -> None:
        nonlocal refused, accepted
        for _ in range(100):
            try:
                bus.dispatch("a")
            except BusFullError:
                with lock:
                    refused += 1
            else:
                with lock:
                    accepted += 1

    async with EventBus([local(gate)], max_pending=50) as bus:
        await asyncio.gather(*(asyncio.to_thread(dispatch_many, bus) for _ in range(4)))
        assert (accepted, refused) == (50, 350)
        assert bus.stats().refused == 350
        gate.let_go.set()
        await bus.drain()
        assert bus.stats().delivered == 50


async def test_what_subscribers_dispatch_counts_but_is_not_refused():
    async def subscriber(event: Event[Any]) -> None:
        if event.name == "cause":
            for _ in range(5):
                dispatch("effect")
            pending.append(bus.stats().pending)

    pending: list[int] = []
    async with EventBus([local(subscriber)], max_pending=1) as bus:
        bus.dispatch("cause")
        await bus.drain()
        assert bus.stats().delivered == 6
    assert pending == [6]


# Chains


async def test_a_chain_tells_what_caused_it_and_how_it_began():
    events: list[Event[Any]] = []

    async def first(event: Event[Any]) -> None:
        events.append(event)
        if event.name == "a":
            dispatch("b")

    def second(event: Event[Any]) -> None:
        if event.name == "b":
            dispatch("c", headers={"tenant": "t"})

    async with EventBus([local(first, second)]) as bus:
        async with bus.scope():
            dispatch("a")
        await bus.drain()
    a, b, c = events
    assert dict(a.headers) == {}
    assert dict(b.headers) == {"causationid": a.id, "correlationid": a.id}
    assert dict(c.headers) == {"causationid": b.id, "correlationid": a.id, "tenant": "t"}


async def test_a_correlation_that_came_from_outside_is_handed_on():
    events: list[Event[Any]] = []

    async def subscriber(event: Event[Any]) -> None:
        events.append(event)
        if event.name == "a":
            dispatch("b")

    async with EventBus([local(subscriber)]) as bus:
        bus.dispatch("a", headers={"correlationid": "request-7"})
        await bus.drain()
    assert events[1].headers["correlationid"] == "request-7"
    assert events[1].headers["causationid"] == events[0].id


async def test_subscribers_side_by_side_do_not_mix_their_chains():
    async def subscriber(event: Event[Any]) -> None:
        if event.payload is None:
            causes[event.name] = event.headers.get("causationid")
            return
        for _ in range(event.payload):
            await asyncio.sleep(0)
        dispatch(f"effect of {event.id}")

    async def another(event: Event[Any]) -> None:
        await asyncio.sleep(0)

    causes: dict[str, str | None] = {}
    async with EventBus([local(subscriber, another)]) as bus:
        for number in range(20):
            bus.dispatch("a", number % 5)
        await bus.drain()
    assert len(causes) == 20
    assert all(name == f"effect of {cause}" for name, cause in causes.items())


async def test_what_a_batch_causes_belongs_to_the_longest_chain_in_it():
    effects: list[Event[Any]] = []
    batches: list[list[Event[Any]]] = []

    class Batch:
        async def handle_many(self, events: Iterable[Event[Any]]) -> None:
            batches.append(list(events))
            if len(batches[-1]) == 2:
                effects.append(dispatch("effect of both"))

    async def chains(event: Event[Any]) -> None:
        if event.name == "a":
            kept.append(dispatch("b"))

    kept: list[Event[Any]] = []
    async with EventBus([Batch(), local(chains)]) as bus:
        bus.dispatch("a")
        await bus.drain()
        async with bus.scope():
            dispatch("fresh")
            dispatch(kept[0])  # as from a file, with the chain that it had
    (effect,) = effects
    assert effect.headers["causationid"] == kept[0].id


@pytest.mark.parametrize("kind", ["async", "sync", "handler", "batch"])
async def test_a_circle_ends_with_an_error_that_shows_the_chain(kind):
    def again(event: Event[Any]) -> None:
        dispatch("b" if event.name == "a" else "a")

    async def again_async(event: Event[Any]) -> None:
        again(event)

    class Handler(BaseEventHandler):
        async def handle(self, event: Event[Any]) -> None:
            again(event)

    class Batch:
        async def handle_many(self, events: Any) -> None:
            for event in events:
                again(event)

    handlers = {"async": local(again_async), "sync": local(again), "handler": Handler(), "batch": Batch()}
    failures: list[Failure] = []
    async with EventBus([handlers[kind]], max_depth=5, on_error=failures.append) as bus:
        bus.dispatch("a")
        await bus.drain()
        assert (bus.stats().delivered, bus.stats().failed, bus.stats().pending) == (4, 1, 0)
    (failure,) = failures
    assert isinstance(failure.exception, ChainTooLongError)
    assert failure.exception.chain == ("a", "b", "a", "b", "a", "b")
    assert "a → b → a → b → a → b" in str(failure.exception)


async def test_a_chain_as_long_as_allowed_is_delivered():
    names: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)
        if len(names) < 5:
            dispatch(str(len(names)))

    async with EventBus([local(subscriber)], max_depth=5) as bus:
        bus.dispatch("0")
    assert names == ["0", "1", "2", "3", "4"]
    assert bus.stats().failed == 0
