"""A subscriber's function and its dependencies, compiled into one call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastapi_events.dependencies.graph import Graph
from fastapi_events.dependencies.plan import Call, write_plan
from fastapi_events.dependencies.signatures import Kind
from fastapi_events.errors import SubscriberError
from fastapi_events.scope import Scope

__all__ = ["Compiled", "Depends", "compile_subscriber"]


@dataclass(frozen=True)
class Dependency:
    """What `Depends()` leaves in a signature; FastAPI's own has these attributes too."""

    dependency: Callable[..., Any] | None
    use_cache: bool


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - FastAPI's
    """Say what makes the value of a parameter, in a subscriber or in another dependency.

    For applications without FastAPI; `fastapi.Depends` does the same here, and works in routes as well.

    Args:
        dependency: a function, coroutine function, generator function that yields once, class, or other callable;
            left out, the parameter's type.
        use_cache: whether one call of the subscriber makes it once, for all that need it.
    """
    return Dependency(dependency, use_cache)


class Compiled(NamedTuple):
    """A subscriber as a delivery calls it.

    Attributes:
        call: takes the event and its scope.
        is_async: it is to be awaited on the event loop; otherwise all of it runs in a worker thread.
    """

    call: Call
    is_async: bool


def compile_subscriber(function: Callable[..., Any], *, name: str, known: Mapping[str, Any] | None = None) -> Compiled:
    """Read a subscriber's signature, and those of all that it depends on, and make one function of them.

    The first parameter receives the event, or the payload if it is annotated with a type that is no Event. The others
    are made by `Depends()`, ours or FastAPI's, or supplied by type: Event, payload, EventBus, Request, WebSocket and
    HTTPConnection. A dependency is called once per call of the subscriber; what it opens is closed after it, in
    reverse order, with the exception that the subscriber raised. Sync functions run in worker threads, in as few
    hops as the graph allows. `dependency_overrides` of the application and of the bus are looked up at every event.

    Args:
        function: the subscriber.
        name: what messages call it.
        known: types by the names that its annotations may use though its module does not know them.

    Raises:
        SubscriberError: it cannot be called with an event; the message says which parameter, and what to do.
    """
    if not callable(function):
        raise SubscriberError(f"{name!r} is not callable: register a function", subscriber=name)
    graph = Graph(function, name, known or {}, {})
    is_async = any(step.kind in (Kind.COROUTINE, Kind.ASYNC_GENERATOR) for step in graph.steps)
    if len(graph.steps) == len(graph.steps[-1].arguments) == 1:
        return Compiled(_plain(function, graph.steps[-1].arguments[0][1] == "event"), is_async)

    def rewritten(overrides: Mapping[Any, Any]) -> Call:
        return write_plan(Graph(function, name, known or {}, overrides).steps, is_async=is_async)

    overridden = _Overridden(rewritten) if graph.depends else None
    return Compiled(write_plan(graph.steps, is_async=is_async, overridden=overridden), is_async)


def _plain(function: Callable[..., Any], takes_event: bool) -> Call:
    if takes_event:
        return lambda event, scope: function(event)  # noqa: ARG005
    return lambda event, scope: function(event.payload)  # noqa: ARG005


class _Overridden:
    """What to call instead of a subscriber's plan while dependencies are overridden; the last one is kept."""

    def __init__(self, rewritten: Callable[[Mapping[Any, Any]], Call]) -> None:
        self._rewritten = rewritten
        self._last: tuple[Mapping[Any, Any], Call] | None = None

    def __call__(self, scope: Scope) -> Call | None:
        of_app: Mapping[Any, Any] | None = getattr(scope.app, "dependency_overrides", None)
        of_bus: Mapping[Any, Any] | None = getattr(scope.bus, "dependency_overrides", None)
        if not of_app and not of_bus:
            return None
        overrides = {**(of_bus or {}), **(of_app or {})}
        last = self._last
        if last is None or last[0] != overrides:
            self._last = last = (overrides, self._rewritten(overrides))
        return last[1]
