"""fastapi-events 0.12.2, whose users this library wants to serve. Without OpenTelemetry, which would slow it down."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, FrozenOrder, application, payloads, subscriber, unmatched
from fastapi_events.dispatcher import dispatch
from fastapi_events.handlers.local import LocalHandler
from fastapi_events.middleware import EventHandlerASGIMiddleware
from fastapi_events.registry.payload_schema import registry

SEMANTICS = "no isolation, a failure reaches the server; no copy, no JSON"


@registry.register
class OrderPlaced(FrozenOrder):
    __event_name__ = "order.placed.model"


@dataclasses.dataclass
class Depends:
    """What FastAPI's own looks like to this library, without installing FastAPI, which would bring OpenTelemetry."""

    dependency: Callable[..., Any]
    use_cache: bool = True


def can(case: Case) -> bool:
    return case.kind != "call" and case.events <= 1_000  # 100,000 wait as cheaply, but take it half a minute


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    def emit_by_name(request: Request) -> None:
        for payload in payloads(case):
            dispatch(NAME, payload)

    def emit_by_model(request: Request) -> None:
        for payload in payloads(case, OrderPlaced):
            dispatch(payload)

    emit = emit_by_name if case.payload == "name" else emit_by_model
    middleware = Middleware(EventHandlerASGIMiddleware, handlers=[_handler(case, calls)])
    yield application(case, calls, emit, middleware=[middleware])


def _handler(case: Case, calls: Calls) -> LocalHandler:
    handler = LocalHandler()
    if case.subscriber.endswith("dependencies"):
        handler.register(_with_dependencies(case, calls), event_name="order.*")
        return handler
    for pattern in unmatched(case):
        handler.register(subscriber(case, calls), event_name=pattern)
    for _ in range(case.subscribers):
        handler.register(subscriber(case, calls), event_name="order.*")
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

    async def handle(event: Any, first: Any = Depends(sources[0]), second: Any = Depends(sources[1])) -> None:
        calls.count += 1

    return handle
