"""The running request, block or delivery, and how code below finds it."""

import asyncio
import functools
import math
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar, TypeVarTuple

import anyio.to_thread
from anyio import CapacityLimiter, WouldBlock

from fastapi_events.event import Event
from fastapi_events.outcome import DeliverOn

__all__ = ["Scope", "current_event", "current_scope", "run_in_thread", "undisturbed"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Scope:
    """A running request, websocket, lifespan, block or delivery: whose events belong together.

    Attributes:
        bus: where its events go; None where a handler is called directly, without a bus.
        parent: the scope around it.
        loop: the event loop that it runs on; None where there is no bus.
        app: the application, which may have `dependency_overrides`; None outside a request.
        connection: the ASGI connection scope; None outside a request, and once all is delivered.
        cause: the event whose subscriber opened it; None if none did.
        backlog: the events that wait for its end; None if it does not collect events or has ended.
        leaving: the events that are handed out at its end, and an iterator that has given those that were.
        conditions: the outcomes that single events of the backlog wait for, by their `id()`.
        delivery: what hands its events to subscribers; made when there are any.
        ended: whether the request or block is over, if there was one; a connection lasts as long as it, or as its
            last delivery.
        closing: tasks in which a subscriber has failed, and closes what it has open: a drain does not cancel them.
    """

    # most scopes leave these as they are
    leaving: tuple[Sequence[Event[Any]], Iterator[Event[Any]]] | None = None
    conditions: dict[int, DeliverOn] | None = None
    delivery: Any = None
    ended: bool = False
    closing: "frozenset[asyncio.Task[Any] | None]" = frozenset()
    _app: Any = None

    def __init__(
        self,
        bus: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        collects: bool = False,
        connection: MutableMapping[str, Any] | None = None,
        parent: "Scope | None" = None,
    ) -> None:
        self.bus: Any = bus
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.parent: Scope | None = parent
        self.cause: Event[Any] | None = current_event.get()
        self.backlog: list[Event[Any]] | None = [] if collects else None
        self.connection = connection

    @property
    def app(self) -> Any:
        # read late: where the middleware is around the application, that enters itself when called
        return self._app if self.connection is None else self.connection.get("app")

    def disconnect(self) -> None:
        """Let go of the connection, but for the app: events that come after the last delivery need it still."""
        if self.connection is not None:
            self._app = self.connection.get("app")
            self.connection = None

    def collects(self) -> bool:
        """Tell whether an event that is dispatched now waits for the end; what its subscribers cause does not."""
        return self.backlog is not None and self.cause is current_event.get()


current_scope: ContextVar[Scope | None] = ContextVar("fastapi_events.scope", default=None)
current_event: ContextVar[Event[Any] | None] = ContextVar("fastapi_events.event", default=None)  # being handled


@functools.cache
def _unlimited() -> CapacityLimiter:
    return CapacityLimiter(math.inf)


async def run_in_thread(scope: Scope, function: Callable[[*Ts], T], *args: *Ts, to_end: bool = False) -> T:
    """Run a function in a worker thread under the bus's own limiter, with the context variables of the caller.

    If the caller is cancelled before the function has begun, it never does. If after that, it runs on and keeps its
    place among the threads, and its result is dropped; the caller leaves at once, or `to_end`, when it has ended.
    """
    limiter: CapacityLimiter
    limiter = anyio.to_thread.current_default_thread_limiter() if scope.bus is None else scope.bus.limiter()
    loop = asyncio.get_running_loop()
    place: asyncio.Future[None] = loop.create_future()  # done when a thread that was left alone has ended
    begun = threading.Lock()  # whoever acquires it decides: the thread begins, or the caller gives up
    leaving = threading.Lock()  # whoever comes second, the thread or the caller, gives the place back

    def run() -> T:
        if not begun.acquire(blocking=False):
            raise asyncio.CancelledError
        try:
            return function(*args)
        finally:
            if not leaving.acquire(blocking=False):
                with suppress(RuntimeError):  # the loop has been closed
                    loop.call_soon_threadsafe(give_back)

    def give_back() -> None:
        limiter.release_on_behalf_of(place)
        place.set_result(None)

    try:
        limiter.acquire_on_behalf_of_nowait(place)
    except WouldBlock:
        await limiter.acquire_on_behalf_of(place)
    try:
        # not under the bus's limiter itself: anyio gives the place back while a thread that was left alone runs on
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=_unlimited())
    except GeneratorExit:  # the loop has gone
        to_end = False
        raise
    finally:
        if begun.acquire(blocking=False) or not leaving.acquire(blocking=False):
            limiter.release_on_behalf_of(place)
        elif to_end:
            await undisturbed(place)


async def undisturbed(future: asyncio.Future[T]) -> T:
    """Wait for the end of something; if this task is cancelled meanwhile, say so afterwards."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from None if future.cancelled() else future.exception()
    return future.result()
