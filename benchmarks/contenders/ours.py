"""This library, used as its README says."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, application, payloads, subscriber, unmatched
from fastapi_events import Depends, Event, EventBus, EventHandlerASGIMiddleware, EventModel, LocalHandler, dispatch

SEMANTICS = "as README.md says"


class OrderPlaced(EventModel, name="order.placed.model"):
    order_id: int
    customer: str
    total: float
    currency: str
    paid: bool


def can(case: Case) -> bool:
    return True


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp | Callable[[], object]]:
    if case.kind == "call":
        yield _function(case)
        return

    def emit_by_name(request: Request) -> None:
        for payload in payloads(case):
            dispatch(NAME, payload)

    def emit_by_model(request: Request) -> None:
        for payload in payloads(case, OrderPlaced):
            dispatch(payload)

    emit = emit_by_name if case.payload == "name" else emit_by_model
    bus = EventBus([_handler(case, calls)])
    async with bus:
        yield application(case, calls, emit, middleware=[Middleware(EventHandlerASGIMiddleware, bus=bus)])


def _handler(case: Case, calls: Calls) -> LocalHandler:
    handler = LocalHandler()
    if case.subscriber.endswith("dependencies"):
        handler.register("order.*")(_with_dependencies(case, calls))
        return handler
    for pattern in unmatched(case):
        handler.register(pattern)(subscriber(case, calls))
    for _ in range(case.subscribers):
        handler.register("order.*")(subscriber(case, calls))
    return handler


def _with_dependencies(case: Case, calls: Calls) -> Callable[..., Any]:
    async def number() -> int:
        return 1

    async def text() -> str:
        return "a"

    def sync_number() -> int:
        return 1

    def sync_text() -> str:
        return "a"

    sources = (number, text) if case.subscriber == "async dependencies" else (sync_number, sync_text)

    async def handle(event: Event[Any], first: int = Depends(sources[0]), second: str = Depends(sources[1])) -> None:
        calls.count += 1

    return handle


def _function(case: Case) -> Callable[[], object]:
    payload = payloads(case, OrderPlaced)[0]
    data = Event(OrderPlaced.__event_name__ if case.payload == "model" else NAME, payload).to_json()

    def new() -> object:
        return Event(NAME, payload, source="bench")

    def write() -> object:
        return Event(NAME, payload, source="bench").to_json()

    def read() -> object:
        return Event.from_json(data)

    return {"event-new": new, "event-to-json": write, "event-from-json": read}[case.name]
