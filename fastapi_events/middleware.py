"""Wires a bus into a FastAPI, Starlette or other ASGI application."""

import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Hashable, Iterable, MutableMapping
from typing import Any, TypeAlias

from typing_extensions import Unpack

from fastapi_events import buses
from fastapi_events.bus import BusOptions, EventBus
from fastapi_events.errors import ConfigurationError
from fastapi_events.handlers.base import EventHandler
from fastapi_events.scope import Scope, current_scope

__all__ = ["EventHandlerASGIMiddleware"]

Connection: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Connection, Receive, Send], Awaitable[None]]

logger: logging.Logger = logging.getLogger("fastapi_events")


class EventHandlerASGIMiddleware:
    """Delivers the events of a request after its response; starts and stops the bus with the application.

    The call of a request ends when its events' first attempts have ended: the client has its response by then, and
    servers see how busy the application is.

    Args:
        app: the application.
        handlers: what receives the events; or
        bus: an EventBus, perhaps shared.
        middleware_id: by which `dispatch(middleware_id=...)` finds this bus.
        wait: False ends the call of a request at once; needs an application whose lifespan runs.
        options: the keywords of EventBus.

    Raises:
        ConfigurationError: handlers and bus are given, or neither.
    """

    def __init__(
        self,
        app: ASGIApp,
        handlers: Iterable[EventHandler] | None = None,
        *,
        bus: EventBus | None = None,
        middleware_id: Hashable | None = None,
        wait: bool = True,
        **options: Unpack[BusOptions],
    ) -> None:
        if (handlers is None) == (bus is None):
            raise ConfigurationError("EventHandlerASGIMiddleware takes either handlers=[...] or bus=")
        if bus is not None and options:
            raise ConfigurationError(f"{', '.join(options)}: give the options to the EventBus that you pass as bus=")
        if bus is not None and not isinstance(bus, EventBus):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"bus={bus!r} is no EventBus: pass an instance, or handlers=[...]")
        self.app = app
        self.bus: EventBus = bus if bus is not None else EventBus(handlers or (), **options)
        self.bus.held = True
        self._wait = wait
        if middleware_id is not None:
            buses.claim_id(middleware_id, self.bus)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        bus, loop = self.bus, buses.asyncio_loop()
        if not bus.is_open_on(loop):
            await self._open()
        here = Scope(bus, loop, kind == "http", scope, current_scope.get())
        if kind == "websocket":
            await self._websocket(here, scope, receive, send)
            return
        status: int | None = None

        def watch(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        token = current_scope.set(here)
        try:
            await self.app(scope, receive, watch)
        except BaseException as error:
            delivery = bus.end_scope(here, status, error)
            # a user's middleware is inside the one that writes the 500, which must not wait
            if delivery is not None and not bus.has_lifespan:
                await delivery.settled()
            raise
        else:
            # servers answer with status 500 where the application answered nothing
            delivery = bus.end_scope(here, 500 if status is None else status)
            if delivery is not None and self._waits():
                await delivery.settled()
        finally:
            current_scope.reset(token)

    async def _websocket(self, scope: Scope, connection: Connection, receive: Receive, send: Send) -> None:
        token = current_scope.set(scope)
        try:
            await self.app(connection, receive, send)
        finally:
            delivery = self.bus.end_scope(scope)
            if delivery is not None and self._waits():
                await delivery.settled()
            current_scope.reset(token)

    async def _lifespan(self, connection: Connection, receive: Receive, send: Send) -> None:
        bus = self.bus
        drained = 0.0  # seconds

        async def receive_after_bus() -> Message:
            nonlocal drained
            message = await receive()
            if message["type"] == "lifespan.startup":
                bus.has_lifespan = True
                try:
                    await bus.start_handlers()
                except BaseException:
                    # applications wait for this message outside of what makes them report a failure
                    await send_after_bus({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
                    raise
            elif message["type"] == "lifespan.shutdown":
                began = time.monotonic()
                await bus.drain()  # before the application closes what handlers use
                drained = time.monotonic() - began
            return message

        async def send_after_bus(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                bus.open()
            elif message["type"].startswith(("lifespan.startup.failed", "lifespan.shutdown")):
                if message["type"] == "lifespan.startup.failed":
                    bus.open()  # what was dispatched is delivered, even so
                bus.has_lifespan = False
                await bus.stop(max(0.0, bus.drain_timeout - drained))
            await send(message)

        token = current_scope.set(Scope(bus, buses.asyncio_loop(), False, connection))
        try:
            await self.app(connection, receive_after_bus, send_after_bus)
        finally:
            bus.has_lifespan = False
            current_scope.reset(token)

    async def _open(self) -> None:
        try:
            await self.bus.ensure_open()
        except Exception:
            logger.exception("a handler failed to start; the request goes on, the next one tries again")

    def _waits(self) -> bool:
        if not self._wait and not self.bus.has_lifespan:
            logger.warning("wait=False is ignored: no lifespan runs, so nothing would wait for events at shutdown")
            self._wait = True
        return self._wait
