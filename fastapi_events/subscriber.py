"""Who receives an event: a function, or a whole handler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import iscoroutinefunction, isfunction, isroutine
from typing import Any, Protocol

from fastapi_events.errors import ConfigurationError
from fastapi_events.handlers.base import BaseEventHandler
from fastapi_events.retry import Retry
from fastapi_events.scope import Scope

__all__ = ["Router", "Subscriber", "as_subscriber", "route_to", "route_to_one"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Subscriber:
    """Who receives an event: a function on a LocalHandler, or a whole handler.

    Attributes:
        name: for logs and reports.
        call: takes the event and its scope; where `batch` is set, a list of events and their scope.
        is_async: `call` makes a coroutine, and does nothing else; otherwise it runs in a worker thread.
        is_function: a function on a LocalHandler, which receives opaque events too.
        takes_event: False for a function whose first parameter receives the bare payload.
        batch: a handler that wants the events of a delivery together.
        retry: None for one attempt.
        timeout: seconds for one attempt; None for no limit.
        concurrency: how many events it may handle at once; 1 keeps their order.
        is_plain: an async function without options, which needs no more than to be awaited.
    """

    name: str
    call: Callable[[Any, Scope], Any]
    is_async: bool = True
    is_function: bool = True
    takes_event: bool = True
    batch: bool = False
    retry: Retry | None = None
    timeout: float | None = None
    concurrency: int = 1
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        has_options = self.batch or self.retry is not None or self.timeout is not None or self.concurrency > 1
        object.__setattr__(self, "is_plain", self.is_async and not has_options)


class Router(Protocol):
    """A handler that is not one subscriber, but knows several."""

    def matching_subscribers(self, name: str) -> Sequence[Subscriber]:
        """Return who receives events of this name, each once."""
        ...


def as_subscriber(handler: Any) -> Subscriber:
    """Return a handler as one subscriber: event by event where it leaves `handle_many` to the base class.

    Raises:
        ConfigurationError: it is a class, or its `handle_many` (or `handle`) is missing or not async.
    """
    name = type(handler).__qualname__
    if isinstance(handler, type):
        raise ConfigurationError(f"{handler.__qualname__} is a class: pass an instance, {handler.__qualname__}(...)")
    if isfunction(handler):
        raise ConfigurationError(
            f"{handler.__qualname__} is a function: register it, as with @local_handler.register, and pass "
            "handlers=[local_handler]"
        )
    if not iscoroutinefunction(getattr(handler, "handle_many", None)):
        raise ConfigurationError(
            f"{name} cannot be a handler: it has no `async def handle_many(self, events)`; derive it from "
            "BaseEventHandler and write handle()"
        )
    kind: Any = type(handler)  # pyright: ignore[reportUnknownVariableType]  # it may be anything
    if getattr(kind, "handle_many", None) is BaseEventHandler.handle_many:  # pyright: ignore[reportUnknownArgumentType]
        if not iscoroutinefunction(handler.handle):
            raise ConfigurationError(f"{name} cannot be a handler: write `async def handle(self, event)`")

        async def call(event: Any, _: Scope) -> None:
            await handler.handle(event)

        return Subscriber(name=name, call=call, is_function=False)
    return Subscriber(name=name, call=lambda events, _: handler.handle_many(events), is_function=False, batch=True)


def route_to(handlers: Sequence[Any]) -> Callable[[str], Sequence[Subscriber]]:
    """Return what tells who receives the events of a name, each once."""
    routes = [route_to_one(handler) for handler in handlers]
    if len(routes) == 1:
        return routes[0]
    # a dict: one function may be reached through several handlers
    return lambda name: tuple(dict.fromkeys(subscriber for route in routes for subscriber in route(name)))


def route_to_one(handler: Any) -> Callable[[str], Sequence[Subscriber]]:
    """Return what tells who receives the events of a name in a handler: those that a Router knows, or all of it."""
    route: Any = getattr(handler, "matching_subscribers", None)
    if isroutine(route) and not isinstance(handler, type):  # a mock has any attribute
        return route
    whole = (as_subscriber(handler),)
    return lambda _: whole
