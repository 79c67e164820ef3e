"""Who needs what: a subscriber, its dependencies, and what is supplied by type."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import NoneType
from typing import Any, Final, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from fastapi_events.dependencies.plan import Call, Step
from fastapi_events.dependencies.signatures import Parameter, Unknown, kind_of, label_of, members_of, parameters_of
from fastapi_events.dispatching import Dispatcher
from fastapi_events.errors import SubscriberError
from fastapi_events.event import Event
from fastapi_events.scope import Scope

__all__ = ["Graph"]

_NO_DEFAULT: Final = inspect.Parameter.empty
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_CONNECTIONS: Final[Mapping[str, type[Any]]] = {"http": Request, "websocket": WebSocket}


class Graph:
    """A subscriber and all that it depends on.

    Attributes:
        steps: in the order in which FastAPI would make them; the subscriber is the last.
        names: what they call.
        arguments: the subscriber's.
        takes_event: whether the first of them is the event, not its payload.
        depends: whether a `Depends()` is among them.
        is_async: whether some step runs on the event loop.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        known: Mapping[str, Any],
        overrides: Mapping[Any, Any],
        takes_event: bool,
    ) -> None:
        self.steps: list[Step] = []
        self.names: dict[str, Any] = {}
        self.depends: bool = False
        self._name = name
        self._known = known
        self._overrides = overrides
        self.takes_event: bool = takes_event
        self._made: dict[Hashable, str] = {}
        self._path: list[Callable[..., Any]] = [function]
        self._payloads: list[Any] = []
        self._read(function)
        self.is_async: bool = any(step.is_async for step in self.steps)

    def _read(self, function: Callable[..., Any]) -> None:
        is_async, is_generator = kind_of(function)
        if is_generator:
            self._refuse(None, "a generator cannot be a subscriber: nobody takes what it yields, so return instead")
        parameters = parameters_of(function, self._known)
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            self._refuse(None, "it has no positional parameter to receive the event: add one in the first place")
        first, *others = parameters
        if first.dependency is not None:
            self._refuse(first, "the first parameter receives the event: put one before it")
        self.arguments: list[str] = [self._event_or_payload(first), *self._arguments(others)]
        self._add(function, self._name, self.arguments, is_async, False)

    def _event_or_payload(self, parameter: Parameter) -> str:
        members = members_of(parameter.type)
        events = [member for member in members if _is_envelope(member)]
        if not events and not self.takes_event:
            self._payloads = [parameter.type]
            return "event.payload"
        if len(events) < len(members) and not self.takes_event:
            self._refuse(parameter, "it cannot be now the event, now its payload: annotate it with Event[...] only")
        self.takes_event = True
        self._payloads = [type_ for event in events for type_ in get_args(event)[-1:]]
        return "event"

    def _arguments(self, parameters: Sequence[Parameter]) -> list[str]:
        values = ((parameter, self._value(parameter)) for parameter in parameters if parameter.kind not in _VARIADIC)
        return [f"{parameter.keyword}{value}" for parameter, value in values if value is not None]

    def _value(self, parameter: Parameter) -> str | None:
        """Return what the parameter gets; None if that is its default."""
        if parameter.field is not None:
            name = label_of(parameter.field).removesuffix("Info")
            remedy = "put the value into the event's payload or its headers="
            self._refuse(parameter, f"{name}() reads a request, and the event may come without one: {remedy}")
        if parameter.dependency is not None:
            return self._depend(parameter, parameter.dependency)
        supplied = self._supplied(parameter)
        if supplied is not None:
            return supplied
        if parameter.default is _NO_DEFAULT or label_of(parameter.type) == "SecurityScopes":
            self._refuse(parameter, _why_missing(parameter.type))
        if not parameter.keyword:  # one after it may have a value
            return self._supply(parameter, "", lambda _event, _scope: None)
        return None

    def _depend(self, parameter: Parameter, marker: Any) -> str:
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
        is_async, opens = kind_of(call)
        lifetime = getattr(marker, "scope", None) or ("request" if opens else "")
        identity = original if isinstance(original, Hashable) else id(original)
        key = (identity, tuple(sorted(getattr(marker, "scopes", None) or ())), lifetime)
        if marker.use_cache and key in self._made:
            return self._made[key]
        value = self._add(call, label_of(call), arguments, is_async, opens)
        self._made.setdefault(key, value)
        return value

    def _add(self, call: Callable[..., Any], label: str, arguments: list[str], is_async: bool, opens: bool) -> str:
        """Add a step; return the name of what it makes."""
        make, value = f"make_{len(self.steps)}", f"value_{len(self.steps)}"
        source = f"{'await ' if is_async and not opens else ''}{make}({', '.join(arguments)})"
        self.names[make] = call if not opens else asynccontextmanager(call) if is_async else contextmanager(call)
        needs = {argument.rpartition("=")[2] for argument in arguments}
        self.steps.append(Step(source, value, label, is_async, opens, needs))
        return value

    def _supplied(self, parameter: Parameter) -> str | None:
        """Return what the parameter's type asks for; None if nothing here is of that type."""
        if parameter.type in self._payloads and parameter.type is not Any and parameter.default is _NO_DEFAULT:
            return "event.payload"
        types = tuple(get_origin(member) or member for member in members_of(parameter.type))
        if not types or not all(isinstance(type_, type) for type_ in types):
            return None
        if all(issubclass(type_, Event) for type_ in types):
            return "event"
        for base, lack, find in _SOURCES:
            if all(issubclass(type_, base) for type_ in types):
                return self._supply(parameter, lack.format(label_of(types[0])), partial(find, types))
        return None

    def _supply(self, parameter: Parameter, lack: str, find: Call) -> str:
        """Have a value looked up in the event and its scope; where there is none, take the default or None."""
        is_optional = parameter.default is _NO_DEFAULT and NoneType in get_args(parameter.type)
        default = None if is_optional else parameter.default
        label = f"{self._where(parameter)}, event %r: {lack}: annotate it with `| None`, and be prepared for None"

        def supply(event: Event[Any], scope: Scope) -> Any:
            value = find(event, scope)
            if value is not None:
                return value
            if default is _NO_DEFAULT:
                raise SubscriberError(label % event.name, subscriber=self._name, parameter=parameter.name)
            return default

        name = f"supply_{len(self.names)}"
        self.names[name] = supply
        return f"{name}(event, scope)"

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


def _payload(wanted: tuple[type[Any], ...], event: Event[Any], _: Scope) -> Any:
    return event.payload if isinstance(event.payload, wanted) else None


def _connection(wanted: tuple[type[Any], ...], _: Event[Any], scope: Scope) -> Any:
    """Return the connection as one of these types, if the event came with such a connection."""
    connection = scope.connection
    made: Any = None if connection is None else _CONNECTIONS.get(connection["type"])
    if made is None:
        return None
    for type_ in wanted:
        if issubclass(type_, made) or issubclass(made, type_):
            return (type_ if issubclass(type_, made) else made)(connection, _closed, _closed)
    return None


def _bus(_: object, __: object, scope: Scope) -> Any:
    return scope.bus


async def _closed(*_: object) -> NoReturn:
    raise RuntimeError("a subscriber cannot read from or write to the connection: its request may have ended")


# what is supplied by type: what is lacking where there is none, and how it is found
_SOURCES: Final[tuple[tuple[type[Any], str, Callable[..., Any]], ...]] = (
    (BaseModel, "the payload is no {}", _payload),
    (HTTPConnection, "it came without a {}", _connection),
    (Dispatcher, "no bus delivers it", _bus),
)
