"""dispatch(): say what happened, from anywhere."""

from collections.abc import Hashable
from typing import Any, Final

from fastapi_events import buses
from fastapi_events.bus import EventBus
from fastapi_events.dispatching import Dispatcher, dispatch_is_disabled
from fastapi_events.errors import NoBusError
from fastapi_events.event import Event
from fastapi_events.scope import Scope, current_scope

__all__ = ["dispatch"]


class _AnyBus(Dispatcher):
    """Dispatches to the bus of the running scope, or the one that is meant otherwise."""

    def _target(self, bus: EventBus | None, middleware_id: Hashable | None) -> tuple[Any, Scope | None]:
        if bus is None and middleware_id is None:
            scope = current_scope.get()
            if scope is not None and scope.bus is not None:
                return scope.bus, scope
        try:
            target = bus or buses.find(middleware_id)
        except NoBusError:
            if dispatch_is_disabled():
                return None, None
            raise
        return target, buses.scope_of(target)

    def _keep(self, event: Event[Any], middleware_id: Hashable | None) -> None:
        if not dispatch_is_disabled():
            buses.keep(event, middleware_id)


dispatch: Final = _AnyBus().dispatch
