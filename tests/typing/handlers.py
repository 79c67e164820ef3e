"""Handlers of one's own, and where they go."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware

from fastapi_events import (
    BaseEventHandler,
    EchoHandler,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    EventModel,
    EventType,
    LocalHandler,
    event_is,
    local_handler,
    only,
)
from fastapi_events.handlers.aws import SQSForwardHandler


class OrderPlaced(EventModel, name="order.placed"):
    order_id: int


class OrderShipped(EventModel, name="order.shipped"):
    carrier: str


SCORES = EventType("scores", list[int])


class Bare(BaseEventHandler):
    async def handle(self, event: Event) -> None:
        print(event.payload.anything)


class Spelt(BaseEventHandler):
    async def handle(self, event: Event[object]) -> None:
        if event_is(event, OrderPlaced):
            print(event.payload.order_id)


class OfAnything(BaseEventHandler):
    async def handle(self, event: Event[Any]) -> None: ...


class Batches(BaseEventHandler):
    async def handle(self, event: Event) -> None: ...

    async def handle_many(self, events: Iterable[Event]) -> None:
        for name, payload in events:
            print(name, payload)


class WithLifespan(BaseEventHandler):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def handle(self, event: Event) -> None: ...


class Structural:
    async def handle_many(self, events: Iterable[Event]) -> None: ...


class StructuralOtherName:
    async def handle_many(self, batch: Iterable[Event[object]]) -> None: ...


class Narrowed(BaseEventHandler):
    async def handle(self, event: Event[OrderPlaced]) -> None: ...  # E: handle narrowed to one event


class NarrowedBatch(BaseEventHandler):
    async def handle(self, event: Event) -> None: ...

    async def handle_many(self, events: Iterable[Event[OrderPlaced]]) -> None: ...  # E: handle_many narrowed to one event


class Sync(BaseEventHandler):
    def handle(self, event: Event) -> None: ...  # E: a sync handle


class SyncBatch(BaseEventHandler):
    async def handle(self, event: Event) -> None: ...

    def handle_many(self, events: Iterable[Event]) -> None: ...  # E: a sync handle_many


class StructuralSync:
    def handle_many(self, events: Iterable[Event]) -> None: ...


class NoHandler:
    async def handel_many(self, events: Iterable[Event]) -> None: ...


class Abstract(BaseEventHandler):
    pass


class Derived(LocalHandler):
    async def handle(self, event: Event) -> None:
        await super().handle(event)


class DerivedBatches(SQSForwardHandler):
    async def handle_many(self, events: Iterable[Event]) -> None:
        await super().handle_many(events)


class DerivedNarrowed(EchoHandler):
    async def handle(self, event: Event[OrderPlaced]) -> None: ...  # E: handle of a built-in handler narrowed


async def by_hand(order: OrderPlaced) -> None:
    await local_handler.handle(Event("order.placed", order))
    await local_handler.handle(("order.placed", order))
    await EchoHandler().handle(("order.placed", {"order_id": 1}))


def on_an_application(app: FastAPI, starlette: Starlette, bus: EventBus) -> None:
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler])
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler, EchoHandler(), Bare()], middleware_id=1)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[Structural()])
    app.add_middleware(EventHandlerASGIMiddleware, handlers=(StructuralOtherName(),), wait=False)
    app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    starlette.add_middleware(EventHandlerASGIMiddleware, handlers=[Spelt(), Batches()], deliver_on="success")
    starlette.add_middleware(EventHandlerASGIMiddleware, handlers=[OfAnything()], source="shop", max_pending=None)
    Starlette(middleware=[Middleware(EventHandlerASGIMiddleware, handlers=[WithLifespan()])])
    EventHandlerASGIMiddleware(app, handlers=[local_handler])
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[EchoHandler])  # E: a class instead of an instance
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[StructuralSync()])  # E: a structural handler that is sync
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[NoHandler()])  # E: no handler
    app.add_middleware(EventHandlerASGIMiddleware, handlers=local_handler)  # E: a handler instead of a list
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler], misspelt=1)  # E: a misspelt keyword
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler], sorce="shop")  # E: a misspelt bus keyword
    starlette.add_middleware(EventHandlerASGIMiddleware, handlers=[], deliver_on="sucess")  # E: a misspelt outcome
    Middleware(EventHandlerASGIMiddleware, handlers=[local_handler], misspelt=1)  # E: misspelt in Middleware
    EventHandlerASGIMiddleware(app, handlers=[local_handler], misspelt=1)  # E: misspelt in a direct call


def on_a_bus() -> None:
    EventBus([local_handler, EchoHandler(), Structural()], source="shop", headers={"tenant": "a"})
    EventBus([local_handler], headers=lambda: {"tenant": "a"}, dead_letters=EchoHandler(), drain_timeout=1.5)
    EventBus([only(EchoHandler(), OrderPlaced, "invoice.*", SCORES)])
    EventBus([only(Structural(), OrderPlaced)])
    EventBus([only(EchoHandler(), OrderPlaced | OrderShipped)])
    EventBus([EchoHandler])  # E: a class on a bus
    EventBus([local_handler], max_pendng=3)  # E: a misspelt keyword on a bus
    EventBus([local_handler], dead_letters=EchoHandler)  # E: a class for dead letters
    EventBus([only(EchoHandler, OrderPlaced)])  # E: only() of a class
    EventBus([only(EchoHandler(), 3)])  # E: only() of an int
    EventBus([only(EchoHandler(), int)])  # E: only() of a class that is no model
    Abstract()  # E: an abstract handler
