"""The running request, block or delivery, and how code below finds it."""

import asyncio
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeVar, TypeVarTuple

import anyio.to_thread
from anyio import CapacityLimiter

from fastapi_events.event import Event
from fastapi_events.names import DeliverOn

__all__ = ["Bus", "Outcome", "Scope", "current_event", "current_scope", "run_in_thread"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Bus(Protocol):
    """What lower floors need of the EventBus."""

    dependency_overrides: dict[Callable[..., Any], Callable[..., Any]]

    def limiter(self) -> CapacityLimiter:
        """Return what bounds the bus's worker threads on the running loop."""
        ...


class Outcome(NamedTuple):
    """How a request or a block ended.

    Attributes:
        status: of the response; None where none was begun, and outside HTTP.
        exception: what came out of the application, None if nothing did.
    """

    status: int | None
    exception: BaseException | None


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
        conditions: the outcomes that single events of the backlog wait for, by their index.
        delivery: what hands its events to subscribers; made when there are any.
        ended: whether the request or block is over; a connection lasts as long as it, or as its last delivery.
    """

    __slots__ = ("app", "backlog", "bus", "cause", "conditions", "connection", "delivery", "ended", "loop", "parent")

    def __init__(
        self,
        bus: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        collects: bool = False,
        connection: MutableMapping[str, Any] | None = None,
        parent: "Scope | None" = None,
    ) -> None:
        self.bus: Any = bus
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.parent: Scope | None = parent
        self.app: Any = connection.get("app") if connection is not None else None
        self.connection: MutableMapping[str, Any] | None = connection
        self.cause: Event[Any] | None = current_event.get()
        self.backlog: list[Event[Any]] | None = [] if collects else None
        self.conditions: dict[int, DeliverOn] | None = None
        self.delivery: Any = None
        self.ended: bool = False

    def collects(self) -> bool:
        """Tell whether an event that is dispatched now waits for the end; what its subscribers cause does not."""
        return self.backlog is not None and self.cause is current_event.get()


current_scope: ContextVar[Scope | None] = ContextVar("fastapi_events.scope", default=None)
current_event: ContextVar[Event[Any] | None] = ContextVar("fastapi_events.event", default=None)  # being handled


async def run_in_thread(scope: Scope, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a function in a worker thread under the bus's own limiter, with the context variables of the caller.

    If the caller is cancelled, the thread runs on and its result is dropped.
    """
    limiter = None if scope.bus is None else scope.bus.limiter()
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=limiter)
