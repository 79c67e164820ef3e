"""A typed event name for payloads that are not models."""

import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeGuard, TypeVar, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter
from typing_extensions import TypeAliasType, TypeForm

from fastapi_events.errors import ConfigurationError
from fastapi_events.event import Event
from fastapi_events.names import EventName, name_of
from fastapi_events.payload import freeze
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, Schema, registry as default_registry

__all__ = ["EventType", "event_is"]

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

_STRICT: Final = ConfigDict(ser_json_inf_nan="constants")  # by default pydantic writes NaN as null
_alias: Final[Callable[[str, Any], Any]] = TypeAliasType  # takes a config where a TypedDict or dataclass does not


class EventType(Generic[T]):
    """An event name and the type of its payload.

        SCORES = EventType("scores.published", list[int])
        dispatch(SCORES, [1, 2])

    Calling it, `SCORES([1, 2])`, makes a validated Event without sending it.

    Raises:
        DuplicateEventError: the name has another schema.
    """

    @overload
    def __init__(
        self, name: EventName, type_: type[T], *, version: int | None = None, registry: EventPayloadSchemaRegistry = ...
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: EventName,
        type_: TypeForm[T],
        *,
        version: int | None = None,
        registry: EventPayloadSchemaRegistry = ...,
    ) -> None: ...
    def __init__(
        self,
        name: EventName,
        type_: Any,
        *,
        version: int | None = None,
        registry: EventPayloadSchemaRegistry = default_registry,
    ) -> None:
        self.name: str = name_of(name)
        # forward references are looked up where the EventType is made
        adapter: TypeAdapter[Any] = TypeAdapter(_alias("Payload", type_), config=_STRICT, _parent_depth=3)
        self.schema: Schema = Schema(self.name, type_, adapter, version)
        self.version: int | None = self.schema.version
        registry.add(self.schema)

    def __call__(self, payload: T) -> Event[T]:
        """Make a validated event without sending it.

        Raises:
            pydantic.ValidationError: the payload does not fit.
            PayloadError: JSON cannot express it.
        """
        valid = self.schema.validate(payload)
        taken, shared, data = freeze(valid, self.schema.serializer_of(valid))
        state: dict[str, Any] = {"_at": time.time_ns(), "_data": data}
        if shared:
            state["_shared"] = True
        if self.version is not None:
            state["_version"] = self.version
        return Event._of(self.name, taken, state)


@overload
def event_is(event: Event[object], what: type[ModelT]) -> TypeGuard[Event[ModelT]]: ...
@overload
def event_is(event: Event[object], what: EventType[T]) -> TypeGuard[Event[T]]: ...
def event_is(event: Event[object], what: Any) -> bool:
    """Tell whether the event's payload is of this model, or the event of this EventType; to type checkers too.

    Raises:
        ConfigurationError: it is neither a model nor an EventType.
    """
    if isinstance(what, EventType):
        return event.name == what.name
    if isinstance(what, type):
        return isinstance(event.payload, what)
    raise ConfigurationError(f"event_is() takes a model or an EventType, not {what!r}: compare a name with event.name")
