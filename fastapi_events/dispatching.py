"""The ways to say what happened: one method, which dispatch() and EventBus.dispatch() share."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar, overload

from pydantic import BaseModel
from typing_extensions import TypedDict, Unpack

from fastapi_events.cloud_event import check_headers, check_text
from fastapi_events.errors import ChainTooLongError, ConfigurationError, PayloadError
from fastapi_events.event import DEFAULT_SOURCE, Event
from fastapi_events.event_type import EventType
from fastapi_events.names import EventName, name_of
from fastapi_events.outcome import DeliverOn, check_deliver_on
from fastapi_events.payload import freeze, serialise
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, Schema
from fastapi_events.scope import Scope, current_event

if TYPE_CHECKING:
    from fastapi_events.bus import EventBus

__all__ = [
    "DISABLE_DISPATCH",
    "MAX_DEPTH",
    "BusForDispatch",
    "DispatchOptions",
    "Dispatcher",
    "check_registry",
    "dispatch_is_disabled",
]

MAX_DEPTH: Final = 32  # of a chain of events that cause one another, unless the bus says otherwise
DISABLE_DISPATCH: Final = "FASTAPI_EVENTS_DISABLE_DISPATCH"

PayloadT = TypeVar("PayloadT")
ModelT = TypeVar("ModelT", bound=BaseModel)


class InstanceWithEventName(Protocol):
    """A model, not its class, with `__event_name__ = "..."`."""

    @property
    def __event_name__(self) -> Any: ...
    @property
    def model_fields_set(self) -> set[str]: ...


class InstanceWithClassEventName(Protocol):
    """The same with `__event_name__: ClassVar[str] = "..."`; no one protocol takes both."""

    __event_name__: ClassVar[Any]

    @property
    def model_fields_set(self) -> set[str]: ...


NamedT = TypeVar("NamedT", bound=InstanceWithEventName | InstanceWithClassEventName)


class DispatchOptions(TypedDict, total=False, closed=True):
    """The keywords of `dispatch`; see there."""

    subject: str | None
    headers: Mapping[str, str] | None
    source: str | None
    bus: "EventBus | None"
    middleware_id: Hashable | None
    deliver_on: DeliverOn | None
    opaque: bool
    validate_payload: bool
    payload_schema_registry: EventPayloadSchemaRegistry | None
    payload_schema_dump: bool | None


class BusForDispatch(Protocol):
    """What dispatching needs of the EventBus."""

    registry: EventPayloadSchemaRegistry
    source: str
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None
    deliver_on: DeliverOn
    max_depth: int
    payload_schema_dump: bool
    is_suppressed: bool

    def accept(self, event: Event[Any], scope: Scope | None, deliver_on: DeliverOn) -> None: ...


class Dispatcher(ABC):
    """Takes events from application code."""

    @abstractmethod
    def _target(self, bus: Any, middleware_id: Hashable | None) -> tuple[BusForDispatch, Scope | None]:
        """Return what takes the event, and the scope."""

    @overload
    def dispatch(self, event: Event[PayloadT], /, **options: Unpack[DispatchOptions]) -> Event[PayloadT]: ...
    @overload
    def dispatch(self, event: EventType[None], /, **options: Unpack[DispatchOptions]) -> Event[None]: ...
    @overload
    def dispatch(
        self, event: EventType[PayloadT], /, payload: PayloadT, **options: Unpack[DispatchOptions]
    ) -> Event[PayloadT]: ...
    @overload
    def dispatch(
        self, event: ModelT, /, *, event_name: EventName, **options: Unpack[DispatchOptions]
    ) -> Event[ModelT]: ...
    @overload
    def dispatch(
        self, event: EventName, /, payload: object = None, **options: Unpack[DispatchOptions]
    ) -> Event[Any]: ...
    @overload
    def dispatch(
        self,
        event: None = None,
        /,
        *,
        event_name: EventName,
        payload: object = None,
        **options: Unpack[DispatchOptions],
    ) -> Event[Any]: ...
    @overload
    def dispatch(self, event: NamedT, /, **options: Unpack[DispatchOptions]) -> Event[NamedT]: ...
    def dispatch(
        self,
        event: Any = None,
        /,
        payload: Any = None,
        *,
        event_name: EventName | None = None,
        subject: str | None = None,
        headers: Mapping[str, str] | None = None,
        source: str | None = None,
        bus: Any = None,
        middleware_id: Hashable | None = None,
        deliver_on: DeliverOn | None = None,
        opaque: bool = False,
        validate_payload: bool = True,
        payload_schema_registry: EventPayloadSchemaRegistry | None = None,
        payload_schema_dump: bool | None = None,
    ) -> Event[Any]:
        """Say what happened; the handlers hear of it after the response, or at once outside a request.

        The payload is validated if its name has a schema, copied, and written as JSON before this returns: later
        changes to it go unnoticed, and what JSON cannot express is an error here. Nothing is handled before this
        returns. May be called from any thread.

        Args:
            event: a model that knows its event name, an event name (a string or an Enum member), an EventType, or
                an Event.
            payload: anything that pydantic can write as JSON; not together with a model or an Event.
            event_name: the name; wins over that of a model.
            subject: what the event is about, such as an order's number.
            headers: metadata; names match `[a-z0-9]+`.
            source: who dispatches; by default the bus's `source`.
            bus: where to; by default the bus of the running request or block, else the only one that runs.
            middleware_id: the `middleware_id` of the middleware whose bus is meant.
            deliver_on: `"completion"` of the request however it ends, its `"success"` or its `"failure"`; `"now"`.
            opaque: hand any object over as it is, to functions on a LocalHandler only.
            validate_payload: False skips the schema.
            payload_schema_registry: where to look for the schema; by default the bus's `registry`.
            payload_schema_dump: hand models over as dicts; by default what the bus says.

        Returns:
            The event, as it was accepted. Its payload may be the very copy that a subscriber gets: leave it as it is.

        Raises:
            pydantic.ValidationError: the payload does not fit the schema of its name.
            PayloadError: two payloads, or one that JSON cannot express or could not be read back from it.
            EventNameMissingError: nothing names the event.
            NoBusError: there is no bus, or it is not clear which one is meant.
            BusFullError: too many events wait.
            ChainTooLongError: events cause one another without end.
        """
        target, scope = self._target(bus, middleware_id)
        registry = target.registry
        if payload_schema_registry is not None:
            registry = payload_schema_registry
            check_registry("payload_schema_registry", registry)
        name, payload, schema = _read(event, payload, event_name, registry)
        state = _state(event, name, schema, target, subject, headers, source)
        serializer = None
        if schema is not None and validate_payload:
            payload = schema.validate(payload)
            serializer = schema.serializer_of(payload)
        if payload_schema_dump is None:
            payload_schema_dump = target.payload_schema_dump
        if opaque:
            state["_opaque"] = state["_shared"] = True
        elif payload_schema_dump and isinstance(payload, BaseModel):
            state["_data"] = serialise(payload)
            payload = payload.model_dump()
        else:
            payload, is_immutable, state["_data"] = freeze(payload, serializer)
            if is_immutable:
                state["_shared"] = True
        accepted = Event._of(name, payload, state)
        if deliver_on is None:
            deliver_on = schema.deliver_on if schema is not None else None
        else:
            check_deliver_on(deliver_on)
        if not target.is_suppressed:
            target.accept(accepted, scope, deliver_on or target.deliver_on)
        return accepted


def check_registry(keyword: str, registry: object) -> None:
    """Raise a ConfigurationError if this is no registry; in 0.12 a dict could be one."""
    if not isinstance(registry, EventPayloadSchemaRegistry):
        kind = type(registry).__qualname__
        raise ConfigurationError(f"{keyword}= takes an EventPayloadSchemaRegistry, not {kind}: register models on one")


def dispatch_is_disabled() -> bool:
    """Read from the environment whether all dispatching is suppressed.

    Raises:
        ConfigurationError: the variable is set to something else than a truth value.
    """
    value = os.environ.get(DISABLE_DISPATCH, "")
    word = value.strip().lower()
    if word in ("", "0", "false", "f", "no", "n", "off"):
        return False
    if word in ("1", "true", "t", "yes", "y", "on"):
        return True
    raise ConfigurationError(f"{DISABLE_DISPATCH}={value!r} is no truth value: use 1 or 0, or unset it")


def _read(
    event: Any, payload: Any, event_name: EventName | None, registry: EventPayloadSchemaRegistry
) -> tuple[str, Any, Schema | None]:
    """Return name, payload and schema from the first three arguments of dispatch()."""
    if payload is None and event_name is None and (schema := registry.schema_of_model(type(event))) is not None:  # pyright: ignore[reportUnknownArgumentType]
        return schema.name, event, schema
    if event is None or isinstance(event, (str, Enum)):
        name = name_of(event if event_name is None else event_name)
        return name, payload, registry.schema(name)
    if isinstance(event, BaseModel):
        _refuse_second(payload)
        name = registry.name_of_model(type(event)) if event_name is None else name_of(event_name)
        return name, event, registry.schema(name)
    if isinstance(event, EventType):
        return event.name if event_name is None else name_of(event_name), payload, event.schema
    if isinstance(event, Event):
        _refuse_second(payload)
        name = event[0] if event_name is None else name_of(event_name)
        whole: Event[Any] = event  # pyright: ignore[reportUnknownVariableType]  # isinstance() cannot tell of what
        return name, whole[1], registry.schema(name)
    kind = f"the class {event.__qualname__}" if isinstance(event, type) else f"an object of {type(event).__qualname__}"
    raise PayloadError(f"{kind} cannot be dispatched: pass a model instance, or a name and a payload")


def _refuse_second(payload: object) -> None:
    if payload is not None:
        raise PayloadError("a model or an Event has its payload already, and payload= is another: pass one of them")


def _state(
    event: Any,
    name: str,
    schema: Schema | None,
    bus: BusForDispatch,
    subject: str | None,
    headers: Mapping[str, str] | None,
    source: str | None,
) -> dict[str, Any]:
    """Return an event's metadata; only what differs from the defaults of Event."""
    state: dict[str, Any]
    if isinstance(event, Event):
        state = {key: value for key, value in event.__dict__.items() if key not in ("_data", "_shared", "_opaque")}
        state["_id"] = event.id
    else:
        state = {"_at": time.time_ns()}
    if bus.source != DEFAULT_SOURCE:
        state.setdefault("_source", bus.source)
    if schema is not None and schema.version is not None:
        state.setdefault("_version", schema.version)
    if source is not None:
        check_text("source", source)
        state["_source"] = source
    if subject is not None:
        check_text("subject", subject)
        state["_subject"] = subject
    cause, general = current_event.get(), bus.headers
    if cause is None and not general and not headers:
        return state
    merged: dict[str, str] = {}
    if general:
        given = general() if callable(general) else general
        merged.update(check_headers(given))  # ty: ignore[invalid-argument-type]  # it takes a Mapping for callable
    merged.update(state.get("_headers", ()))
    if cause is not None:
        chain = state["_chain"] = (*cause._chain, cause.name)
        if len(chain) >= bus.max_depth:
            raise ChainTooLongError((*chain, name))
        merged["correlationid"] = cause.headers.get("correlationid", cause.id)
        merged["causationid"] = cause.id
    if headers:
        merged.update(check_headers(headers))
    state["_headers"] = MappingProxyType(merged)
    return state
