"""Who needs what: a subscriber, its dependencies, and what is supplied by type."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import NoneType
from typing import Any, Final, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from fastapi_events.dependencies.plan import Call, Step
from fastapi_events.dependencies.signatures import (
    NO_DEFAULT,
    Kind,
    Parameter,
    Unknown,
    kind_of,
    label_of,
    members_of,
    parameters_of,
)
from fastapi_events.dispatching import Dispatcher
from fastapi_events.errors import SubscriberError
from fastapi_events.event import Event
from fastapi_events.scope import Scope

__all__ = ["Graph"]

_GENERATORS: Final = (Kind.GENERATOR, Kind.ASYNC_GENERATOR)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_CONNECTIONS: Final[Mapping[str, type[Any]]] = {"http": Request, "websocket": WebSocket}


class Graph:
    """A subscriber and all that it depends on.

    Attributes:
        steps: in the order in which FastAPI would make them; the subscriber is the last.
        depends: whether a `Depends()` is among them.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, known: Mapping[str, Any], overrides: Mapping[Any, Any]
    ) -> None:
        self.steps: list[Step] = []
        self.depends: bool = False
        self._name = name
        self._known = known
        self._overrides = overrides
        self._made: dict[Hashable, Step] = {}
        self._path: list[Callable[..., Any]] = [function]
        self._payloads: list[Any] = []
        self._read(function)

    def _read(self, function: Callable[..., Any]) -> None:
        kind = kind_of(function)
        if kind in _GENERATORS:
            self._refuse(None, "a generator cannot be a subscriber: nobody takes what it yields, so return instead")
        parameters = parameters_of(function, self._known)
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            self._refuse(None, "it has no positional parameter to receive the event: add one in the first place")
        first, *others = parameters
        if first.dependency is not None:
            self._refuse(first, "the first parameter receives the event: put one before it")
        event = self._event_or_payload(first)
        self.steps.append(Step(function, kind, self._name, [(None, event), *self._arguments(others)]))

    def _event_or_payload(self, parameter: Parameter) -> str:
        members = members_of(parameter.type)
        events = [member for member in members if _is_envelope(member)]
        if not events:
            self._payloads = [parameter.type]
            return "event.payload"
        if len(events) < len(members):
            self._refuse(parameter, "it cannot be now the event, now its payload: annotate it with Event[...] only")
        self._payloads = [type_ for event in events for type_ in get_args(event)[-1:]]
        return "event"

    def _arguments(self, parameters: Sequence[Parameter]) -> list[tuple[str | None, Step | str]]:
        values = ((parameter, self._value(parameter)) for parameter in parameters if parameter.kind not in _VARIADIC)
        return [(parameter.keyword, value) for parameter, value in values if value is not None]

    def _value(self, parameter: Parameter) -> Step | str | None:
        """Return what the parameter gets; None if that is its default."""
        if parameter.field is not None:
            name = type(parameter.field).__name__.removesuffix("Info")
            self._refuse(
                parameter,
                f"{name}() reads a request, and the event may come without one: "
                "put the value into the event's payload or its headers=",
            )
        if parameter.dependency is not None:
            return self._depend(parameter, parameter.dependency)
        supplied = self._supplied(parameter)
        if supplied is not None:
            return supplied
        if parameter.default is NO_DEFAULT or label_of(parameter.type) == "SecurityScopes":
            self._refuse(parameter, _why_missing(parameter.type))
        if parameter.keyword is None:  # one after it may have a value
            return self._supply(parameter, "", lambda _event, _scope: None)
        return None

    def _depend(self, parameter: Parameter, marker: Any) -> Step:
        self.depends = True
        original = parameter.type if marker.dependency is None else marker.dependency
        call = self._overrides.get(original, original) if isinstance(original, Hashable) else original
        if isinstance(call, Unknown):
            self._refuse(parameter, _why_missing(call))
        if not callable(call):
            self._refuse(parameter, f"Depends() cannot call {call!r}: give it a function or a class")
        if getattr(marker, "max_concurrency", None) is not None:
            self._refuse(parameter, "max_concurrency= counts calls of routes only: take a Depends() without it here")
        if call in self._path:
            self._refuse(parameter, f"{label_of(call)} needs itself: take one dependency out of the circle")
        self._path.append(call)
        arguments = self._arguments(parameters_of(call, self._known))
        self._path.pop()
        kind = kind_of(call)
        lifetime = getattr(marker, "scope", None) or ("request" if kind in _GENERATORS else "")
        identity = original if isinstance(original, Hashable) else id(original)
        key = (identity, tuple(sorted(getattr(marker, "scopes", None) or ())), lifetime)
        if marker.use_cache and key in self._made:
            return self._made[key]
        step = Step(call, kind, label_of(call), arguments)
        self.steps.append(step)
        self._made.setdefault(key, step)
        return step

    def _supplied(self, parameter: Parameter) -> Step | str | None:
        """Return what the parameter's type asks for; None if nothing here is of that type."""
        if parameter.type in self._payloads and parameter.type is not Any and parameter.default is NO_DEFAULT:
            return "event.payload"
        types = [get_origin(member) or member for member in members_of(parameter.type)]
        if not types or not all(isinstance(type_, type) for type_ in types):
            return None
        if all(issubclass(type_, Event) for type_ in types):
            return "event"
        wanted = tuple(types)
        if all(issubclass(type_, BaseModel) for type_ in types):
            return self._supply(
                parameter,
                f"the payload is no {label_of(types[0])}",
                lambda event, _: event.payload if isinstance(event.payload, wanted) else None,
            )
        if all(issubclass(type_, HTTPConnection) for type_ in types):
            return self._supply(
                parameter, f"it came without a {label_of(types[0])}", lambda _, scope: _connect(scope, wanted)
            )
        if all(issubclass(type_, Dispatcher) for type_ in types):
            return self._supply(parameter, "no bus delivers it", lambda _, scope: scope.bus)
        return None

    def _supply(self, parameter: Parameter, lack: str, find: Call) -> Step:
        """Have a value looked up in the event and its scope; where there is none, take the default or None."""
        default = None if NoneType in get_args(parameter.type) else NO_DEFAULT
        default = parameter.default if parameter.default is not NO_DEFAULT else default
        label = f"{self._where(parameter)}, event %r: {lack}: annotate it with `| None`, and be prepared for None"

        def supply(event: Event[Any], scope: Scope) -> Any:
            value = find(event, scope)
            if value is not None:
                return value
            if default is NO_DEFAULT:
                raise SubscriberError(label % event.name, subscriber=self._name, parameter=parameter.name)
            return default

        step = Step(supply, None, parameter.name, [(None, "event"), (None, "scope")])
        self.steps.append(step)
        return step

    def _where(self, parameter: Parameter | None) -> str:
        path = " → ".join([repr(self._name), *map(label_of, self._path[1:])])
        return f"subscriber {path}" + ("" if parameter is None else f", parameter {parameter.name!r}")

    def _refuse(self, parameter: Parameter | None, reason: str) -> NoReturn:
        name = None if parameter is None else parameter.name
        raise SubscriberError(f"{self._where(parameter)}: {reason}", subscriber=self._name, parameter=name)


def _is_envelope(type_: Any) -> bool:
    """Tell whether a first parameter of this type receives the event, rather than its payload."""
    if type_ in (Any, object, tuple) or isinstance(type_, (TypeVar, Unknown)):
        return True
    origin = get_origin(type_) or type_
    if origin is tuple:
        return get_args(type_)[:1] == (str,)  # as 0.12 wrote an event
    return isinstance(origin, type) and issubclass(origin, Event)


def _why_missing(type_: Any) -> str:
    if isinstance(type_, Unknown):
        return f"its annotation {type_.name!r} cannot be resolved: define or import the name at the top of its module"
    if label_of(type_) == "SecurityScopes":
        return "Security() with scopes judges a request: check the permission in the endpoint, before dispatch()"
    if isinstance(type_, type) and issubclass(type_, (Response, BackgroundTasks)):
        return "the response is sent already when a subscriber runs: do its work in the subscriber"
    return (
        "nothing supplies it (a route would read it from the request): give it Depends() or a default, "
        "or put the value into the event's payload"
    )


def _connect(scope: Scope, wanted: tuple[type[Any], ...]) -> Any:
    """Return the connection as one of these types, if the event came with such a connection."""
    connection = scope.connection
    if connection is None or connection["type"] not in _CONNECTIONS:
        return None
    made: type[Any] = _CONNECTIONS[connection["type"]]
    for type_ in wanted:
        if issubclass(type_, made):
            return type_(connection, _closed, _closed)
        if issubclass(made, type_):
            return made(connection, _closed, _closed)
    return None


async def _closed(*_: object) -> NoReturn:
    raise RuntimeError("a subscriber cannot read from or write to the connection: its request may have ended")
