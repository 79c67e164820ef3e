"""The Starlette app that all contenders share, the requests that drive it, and the subscribers' behaviour."""

import asyncio
import gc
import inspect
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.background import BackgroundTasks
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from cases import Case

__all__ = ["NAME", "SLEEP", "Calls", "FrozenOrder", "application", "payloads", "request", "subscriber", "unmatched"]

NAME = "order.placed"
SLEEP = 0.002  # seconds


class FrozenOrder(BaseModel):
    """The payload as a model; who has models of another base class makes its own of the same fields."""

    model_config = ConfigDict(frozen=True)
    __event_name__: ClassVar[str] = NAME

    order_id: int
    customer: str
    total: float
    currency: str
    paid: bool


class Calls:
    """How often subscribers ran, and how many bytes waited. Each request is checked against it."""

    __slots__ = ("bytes", "count")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0


def payloads(case: Case, model: Callable[..., Any] = FrozenOrder) -> list[Any]:
    """Make the payloads of one request, as an endpoint makes them: each of its own."""
    if case.payload == "model":
        return [
            model(order_id=number, customer="ada", total=12.5, currency="EUR", paid=True)
            for number in range(case.events)
        ]
    return [
        {"order_id": number, "customer": "ada", "total": 12.5, "currency": "EUR", "paid": True}
        for number in range(case.events)
    ]


def subscriber(case: Case, calls: Calls) -> Callable[[Any], Any]:
    """Make a subscriber of one argument that does what the case says and counts."""

    async def plain(event: Any) -> None:
        calls.count += 1

    def sync(event: Any) -> None:
        calls.count += 1

    async def yields(event: Any) -> None:
        await asyncio.sleep(0)
        calls.count += 1

    async def sleeps(event: Any) -> None:
        await asyncio.sleep(SLEEP)
        calls.count += 1

    return {"async": plain, "sync": sync, "yields": yields, "sleeps": sleeps}[case.subscriber]


def unmatched(case: Case) -> list[str]:
    """Name the patterns that do not match: as an application's, in a few hundred areas."""
    return [f"area{number}.*" for number in range(case.patterns - 1)]


def application(
    case: Case,
    calls: Calls,
    emit: Callable[[Request], BackgroundTasks | None] | Callable[[Request], Awaitable[None]],
    *,
    middleware: Sequence[Middleware] = (),
) -> ASGIApp:
    """Build the app; its endpoint calls `emit`, which dispatches all events of one request in the contender's way."""

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok", background=emit(request))  # type: ignore[arg-type]

    async def awaiting_endpoint(request: Request) -> PlainTextResponse:
        await emit(request)  # type: ignore[misc]
        return PlainTextResponse("ok")

    async def weighing_endpoint(request: Request) -> PlainTextResponse:
        gc.collect()
        tracemalloc.start()
        try:
            background = emit(request)
            calls.bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        return PlainTextResponse("ok", background=background)  # type: ignore[arg-type]

    if case.kind == "memory":
        chosen = weighing_endpoint
    elif inspect.iscoroutinefunction(emit):
        chosen = awaiting_endpoint
    else:
        chosen = endpoint
    return Starlette(routes=[Route("/", chosen)], middleware=middleware)


async def request(app: ASGIApp, calls: Calls, deliveries: int) -> None:
    """Send one request and return when its events were delivered, also where the app does not wait for that."""
    expected = calls.count + deliveries
    await app(_SCOPE.copy(), _receive, _send)
    while calls.count < expected:  # noqa: ASYNC110  # nobody could set an event at a price that no case would show
        await asyncio.sleep(0)
    if calls.count != expected:
        raise RuntimeError(f"{calls.count - expected} deliveries too many")


_SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 80),
}


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    if message["type"] == "http.response.start" and message["status"] != 200:
        raise RuntimeError(f"the app answered {message['status']}")
