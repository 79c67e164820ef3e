"""What the tests serve: the same application five times, with another layer around or inside the event middleware.

It is mounted plain and below `/around`, `/inside`, `/anyio-timeout` and `/asyncio-timeout`; all share one bus.
"""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import anyio
from apps import endpoints
from fastapi import Request
from fastapi.responses import Response
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from subscribers import bus, record

from fastapi_events import EventHandlerASGIMiddleware

LAYER_TIMEOUT = 0.3  # seconds after which the timeouts around the application cancel it


async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Do nothing, in a middleware that runs the rest of the application in a task of its own."""
    return await call_next(request)


def plain() -> ASGIApp:
    """The event middleware alone."""
    app = endpoints()
    app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    return app


def around() -> ASGIApp:
    """A BaseHTTPMiddleware around the event middleware."""
    app = endpoints()
    app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    return app


def inside() -> ASGIApp:
    """A BaseHTTPMiddleware inside the event middleware."""
    app = endpoints()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    return app


def anyio_timeout() -> ASGIApp:
    """An anyio cancel scope around everything."""
    app = plain()

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(LAYER_TIMEOUT) as cancel_scope:
            await app(scope, receive, send)
        if cancel_scope.cancelled_caught:
            record("timed out", _key(scope))

    return limited


def asyncio_timeout() -> ASGIApp:
    """An asyncio timeout around everything."""
    app = plain()

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                await app(scope, receive, send)
        except TimeoutError:
            record("timed out", _key(scope))

    return limited


class Prefixes:
    """Several applications side by side, each below its own prefix; the plain one has the lifespan and the rest."""

    def __init__(self, plain: ASGIApp, others: dict[str, ASGIApp]) -> None:
        self._plain = plain
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a call to the application that its path names."""
        path: str = scope.get("path", "")
        _, prefix, *_ = path.split("/") if path.count("/") > 1 else ("", "")
        if prefix not in self._others:
            await self._plain(scope, receive, send)
            return
        await self._others[prefix]({**scope, "path": path.removeprefix(f"/{prefix}")}, receive, send)


def _key(scope: Scope) -> str:
    query: bytes = scope["query_string"]
    return parse_qs(query.decode())["key"][0]


app = Prefixes(
    plain(),
    {
        "around": around(),
        "inside": inside(),
        "anyio-timeout": anyio_timeout(),
        "asyncio-timeout": asyncio_timeout(),
    },
)
