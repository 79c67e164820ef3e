"""`Depends()` in subscribers, read once, at registration.

graph.py         who needs what; what cannot work is refused
plan.py          the graph as one generated function
hops.py          what that function does in worker threads
signatures.py    what a callable asks for
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from anyio import from_thread

from fastapi_events.dependencies.graph import Graph
from fastapi_events.dependencies.hops import in_free_thread
from fastapi_events.dependencies.plan import Call, write_plan
from fastapi_events.errors import SubscriberError
from fastapi_events.event import Event
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
        takes_event: its first parameter receives the event, not its payload.
    """

    call: Call
    is_async: bool
    takes_event: bool


def compile_subscriber(
    function: Callable[..., Any], *, name: str, known: Mapping[str, Any] | None = None, takes_event: bool = False
) -> Compiled:
    """Read a subscriber's signature, and those of all that it depends on, and make one function of them.

    The first parameter receives the event, or the payload if it is annotated with a type that is no Event. The others
    are made by `Depends()`, ours or FastAPI's, or supplied by type. What a dependency opens is closed after the
    subscriber, in reverse order, with its exception. Sync functions run in worker threads, in as few hops as the graph
    allows. `dependency_overrides` of the application and of the bus are looked up at every event.

    Args:
        function: the subscriber.
        name: what messages call it.
        known: types by the names that its annotations may use though its module does not know them.
        takes_event: the first parameter receives the event, whatever its annotation.

    Raises:
        SubscriberError: it cannot be called with an event; the message says which parameter, and what to do.
    """
    if not callable(function):
        raise SubscriberError(f"{name!r} is not callable: register a function", subscriber=name)
    known = known or {}
    graph = Graph(function, name, known, {}, takes_event)
    if len(graph.steps) == len(graph.arguments) == 1:
        return Compiled(_plain(function, graph.takes_event, graph.is_async), graph.is_async, graph.takes_event)
    last: tuple[Mapping[Any, Any], Call] | None = None

    def overridden(scope: Scope) -> Call | None:
        """Return what to call instead while dependencies are overridden."""
        of_app: Mapping[Any, Any] | None = getattr(scope.app, "dependency_overrides", None)
        of_bus: Mapping[Any, Any] | None = getattr(scope.bus, "dependency_overrides", None)
        if not of_app and not of_bus:
            return None
        nonlocal last
        overrides, found = {**(of_bus or {}), **(of_app or {})}, last
        if found is None or found[0] != overrides:
            found = last = overrides, rewritten(Graph(function, name, known, overrides, takes_event))
        return found[1]

    def rewritten(other: Graph) -> Call:
        if graph.is_async or not other.is_async:
            return write_plan(other.steps, other.names, is_async=graph.is_async)
        # the thread that the subscriber has waits for the loop, so no other may wait for its place
        plan = write_plan(other.steps, other.names, is_async=True, in_thread=in_free_thread)
        return lambda event, scope: from_thread.run(plan, event, scope)

    names = {**graph.names, "overridden": overridden} if graph.depends else graph.names
    return Compiled(write_plan(graph.steps, names, is_async=graph.is_async), graph.is_async, graph.takes_event)


def _plain(function: Callable[..., Any], takes_event: bool, is_async: bool) -> Call:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if is_async and not getattr(code, "co_flags", 0) & inspect.CO_COROUTINE:  # a call may do more than make a coroutine

        async def call(event: Event[Any], _: Scope) -> None:
            await function(event if takes_event else event.payload)

        return call
    if takes_event:
        return lambda event, _: function(event)
    return lambda event, _: function(event.payload)
