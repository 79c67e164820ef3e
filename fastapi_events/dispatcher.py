"""dispatch(): say what happened, from anywhere."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from fastapi_events import buses
from fastapi_events.bus import EventBus
from fastapi_events.dispatching import MAX_DEPTH, BusForDispatch, Dispatcher, dispatch_is_disabled
from fastapi_events.errors import NoBusError
from fastapi_events.event import DEFAULT_SOURCE, Event
from fastapi_events.outcome import DeliverOn
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, registry as default_registry
from fastapi_events.scope import Scope, current_scope

__all__ = ["dispatch"]


class _AnyBus(Dispatcher):
    """Dispatches to the bus of the running scope, or the one that is meant otherwise."""

    def _target(self, bus: EventBus | None, middleware_id: Hashable | None) -> tuple[BusForDispatch, Scope | None]:
        if bus is None and middleware_id is None:
            scope = current_scope.get()
            if scope is not None and scope.bus is not None:
                # what has ended may be in something that has not: a block in a request
                return scope.bus, buses.scope_of(scope.bus) if scope.ended else scope
        try:
            target = bus or buses.find(middleware_id)
        except NoBusError:
            if not dispatch_is_disabled():
                raise
            target = None
        if target is None:
            return _NoBusYet(middleware_id), None
        return target, buses.scope_of(target)


class _NoBusYet:
    """Keeps what is dispatched before any bus exists for the first one (of that id)."""

    registry: EventPayloadSchemaRegistry = default_registry
    source: str = DEFAULT_SOURCE
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None
    deliver_on: DeliverOn = "completion"
    max_depth: int = MAX_DEPTH
    payload_schema_dump: bool = False

    def __init__(self, middleware_id: Hashable | None) -> None:
        self.is_suppressed: bool = dispatch_is_disabled()
        self._middleware_id = middleware_id

    def accept(self, event: Event[Any], scope: Scope | None, deliver_on: DeliverOn) -> None:  # noqa: ARG002 - no scope
        buses.keep(event, self._middleware_id)


dispatch: Final = _AnyBus().dispatch
