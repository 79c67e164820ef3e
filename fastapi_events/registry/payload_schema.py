"""Which schema validates the payloads of which event name."""

import dataclasses
import functools
import itertools
import sys
import traceback
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, ClassVar, Final, Protocol, TypeVar, get_args, get_origin, overload

from pydantic import BaseModel, ConfigDict, Secret, SecretBytes, SecretStr, TypeAdapter

from fastapi_events.errors import ConfigurationError, DuplicateEventError, EventNameMissingError
from fastapi_events.names import EventName, name_of
from fastapi_events.outcome import DeliverOn, check_deliver_on

__all__ = ["EventModel", "EventPayloadSchemaRegistry", "ModelDecorator", "Schema", "registry"]

ModelT = TypeVar("ModelT", bound=BaseModel)

_LIBRARIES: Final = ("fastapi_events.", "pydantic.")
_SECRETS: Final[tuple[Any, ...]] = (SecretStr, SecretBytes, Secret)  # JSON has asterisks for them


class ModelDecorator(Protocol):
    """Takes a model, and gives it back as it is."""

    def __call__(self, model: type[ModelT], /) -> type[ModelT]: ...


class Schema:
    """What validates and writes the payloads of one event name.

    Attributes:
        name: the event name.
        is_of_model: the model's own name is this one.
        type: the model, or for an EventType the type of its payload.
        version: of the schema; None where it has none.
        deliver_on: the outcome that the model wants to wait for; None where it does not say.
    """

    __slots__ = ("_adapter", "deliver_on", "is_of_model", "name", "type", "version")

    def __init__(
        self, name: str, type_: Any, adapter: TypeAdapter[Any] | None = None, version: int | None = None
    ) -> None:
        self.name: str = name
        if version is None:
            version = getattr(type_, "__event_version__", None)
        if version is not None and (type(version) is not int or version < 1):
            raise ConfigurationError(f"the event {name!r} cannot have version={version!r}: use an integer from 1")
        self.type: Any = type_
        self._adapter = adapter
        self.is_of_model: bool = adapter is None and getattr(type_, "__event_name__", None) == name
        self.version: int | None = version
        self.deliver_on: DeliverOn | None = getattr(type_, "__event_deliver_on__", None)

    @property
    def validator(self) -> Any:
        """A SchemaValidator, or what a plugin of pydantic made of it."""
        # read anew each time: pydantic replaces it when a forward reference becomes known
        return self._adapter.validator if self._adapter else self.type.__pydantic_validator__

    def serializer_of(self, payload: Any) -> Any:
        """Return the SchemaSerializer that writes a payload which `validate` returned; a model brings its own."""
        return self._adapter.serializer if self._adapter else payload.__pydantic_serializer__

    def validate(self, payload: object) -> Any:
        """Return the payload as this schema wants it.

        A model of another class and a dataclass are read field by field; None is `{}` for a model with fields.

        Raises:
            pydantic.ValidationError: it does not fit.
        """
        if self._adapter is not None:
            return self.validator.validate_python(payload)
        if type(payload) is not self.type and not isinstance(payload, (self.type, dict)):
            if payload is None and not self.type.__pydantic_root_model__:
                payload = {}
            elif isinstance(payload, BaseModel):
                payload = payload.model_dump()
            elif dataclasses.is_dataclass(payload) and not isinstance(payload, type):
                payload = {field.name: getattr(payload, field.name) for field in dataclasses.fields(payload)}
        return self.type.__pydantic_validator__.validate_python(payload, by_alias=True, by_name=True)

    def validate_json(self, data: bytes) -> Any:
        """Return the payload that was written as this JSON; names and aliases are accepted."""
        if data == b"null" and self._adapter is None and not self.type.__pydantic_root_model__:
            data = b"{}"
        return self.validator.validate_json(data, by_alias=True, by_name=True)


class EventPayloadSchemaRegistry(Mapping[str, Any]):
    """Event names and their schemas; a name has at most one.

    As a Mapping it gives, for a name or an Enum member, the model (for an EventType the type of its payload).
    """

    def __init__(self) -> None:
        self._schemas: dict[str, Schema] = {}
        self._of_model: dict[type, Schema] = {}  # where it has the model's own name

    def __getitem__(self, name: EventName) -> Any:
        return self._schemas[name_of(name)].type

    def __iter__(self) -> Iterator[str]:
        return iter(self._schemas)

    def __len__(self) -> int:
        return len(self._schemas)

    def __contains__(self, name: object) -> bool:
        return (name.value if isinstance(name, Enum) else name) in self._schemas

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"

    def schema(self, name: str) -> Schema | None:
        """Return what validates payloads of this name; None where nothing does."""
        return self._schemas.get(name)

    @overload
    def register(self, schema: type[ModelT], *, event_name: EventName | None = None) -> type[ModelT]: ...
    @overload
    def register(self, schema: EventName | None = None, *, event_name: EventName | None = None) -> ModelDecorator: ...
    def register(self, schema: Any = None, *, event_name: EventName | None = None) -> Any:
        """Make a pydantic model the schema of an event name; a decorator, with or without arguments.

        Args:
            schema: the model, or the event name.
            event_name: the event name; the model's own `__event_name__` where it is left out.

        Raises:
            EventNameMissingError: nothing names the event.
            DuplicateEventError: another schema has the name.
            ConfigurationError: it is not a pydantic model.
        """
        if schema is None:
            return functools.partial(self.register, event_name=event_name)
        if isinstance(schema, (str, Enum)) and event_name is None:
            return functools.partial(self.register, event_name=schema)
        if not isinstance(schema, type):
            raise ConfigurationError(
                f"register() takes a pydantic model or one event name, not {schema!r} with event_name={event_name!r}"
            )
        if not issubclass(schema, BaseModel):
            raise ConfigurationError(
                f"{schema.__qualname__} is not a pydantic model: derive it from BaseModel or EventModel, "
                "or use EventType for payloads of other types"
            )
        chosen = event_name if event_name is not None else getattr(schema, "__event_name__", None)
        if chosen is None:
            raise EventNameMissingError(
                f"{schema.__qualname__} has no event name: use @registry.register('order.placed'), "
                "or set __event_name__ on the model"
            )
        self.add(Schema(name_of(chosen), schema))
        return schema

    def add(self, schema: Schema) -> None:
        """Take a schema; one of the same module and qualified name is replaced, as a reload does."""
        known = self._schemas.get(schema.name)
        if known is not None and _identity(known.type) != _identity(schema.type):
            raise DuplicateEventError(schema.name, known.type, schema.type)
        type_: Any = schema.type
        if isinstance(type_, type) and issubclass(type_, BaseModel):
            _warn_of_what_json_loses(type_)
        if known is not None and known.is_of_model:
            del self._of_model[known.type]
        self._schemas[schema.name] = schema
        if schema.is_of_model:
            self._of_model[schema.type] = schema

    def schema_of_model(self, model: type[BaseModel]) -> Schema | None:
        """Return the schema of a model's own name, if it is this model; None where that is not so plain."""
        return self._of_model.get(model)

    def name_of_model(self, model: type[BaseModel]) -> str:
        """Return the event name of a model: its `__event_name__`, else the one name it is registered for."""
        own = getattr(model, "__event_name__", None)
        if own is not None:
            return name_of(own)
        names = [name for name, schema in self._schemas.items() if schema.type is model]
        if len(names) == 1:
            return names[0]
        why = f"has several event names ({', '.join(names)})" if names else "has no event name"
        raise EventNameMissingError(
            f"{model.__qualname__} {why}: pass event_name=, set __event_name__ on it, or derive it from EventModel"
        )

    @contextmanager
    def isolated(self) -> Generator["EventPayloadSchemaRegistry"]:
        """Forget at the end of the block what was registered in it; for tests."""
        before = self._schemas.copy(), self._of_model.copy()
        try:
            yield self
        finally:
            self._schemas, self._of_model = before


registry: EventPayloadSchemaRegistry = EventPayloadSchemaRegistry()


class EventModel(BaseModel):
    """A frozen pydantic model that names and registers itself as an event.

        class OrderPlaced(EventModel, name="order.placed", version=2):
            id: int

    Class keywords: `name` (default: the class's name), `version` (an integer from 1), `abstract=True` for a base
    class that is no event itself, `deliver_on` (see `dispatch`). Specialisations of a generic event are the event.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    __event_name__: ClassVar[str]
    __event_version__: ClassVar[int | None] = None
    __event_deliver_on__: ClassVar[DeliverOn | None] = None

    def __init_subclass__(
        cls,
        *,
        name: EventName | None = None,
        version: int | None = None,
        abstract: bool = False,
        deliver_on: DeliverOn | None = None,
        **config: Any,
    ) -> None:
        unknown = config.keys() - ConfigDict.__annotations__.keys()
        if unknown:
            raise ConfigurationError(
                f"class {cls.__qualname__} has the unknown keyword {', '.join(sorted(unknown))}: "
                "an EventModel knows name, version, abstract, deliver_on and pydantic's own"
            )
        super().__init_subclass__(**config)

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        # what __init_subclass__ declares; only here is the model complete
        name, version, abstract, deliver_on = (
            keywords.pop(keyword, None) for keyword in ("name", "version", "abstract", "deliver_on")
        )
        super().__pydantic_init_subclass__(**keywords)
        if cls.__pydantic_generic_metadata__["origin"] is not None:
            return
        if deliver_on is not None:
            check_deliver_on(deliver_on)
            cls.__event_deliver_on__ = deliver_on
        if abstract:
            return
        cls.__event_name__ = name_of(cls.__dict__.get("__event_name__", cls.__name__) if name is None else name)
        cls.__event_version__ = version
        registry.register(cls)


def _identity(type_: Any) -> object:
    return (type_.__module__, type_.__qualname__) if isinstance(type_, type) else type_


def _warn_of_what_json_loses(model: type[BaseModel]) -> None:
    """Say at registration which fields an event of this model would not bring back from its JSON."""
    if lost := _lost(model, frozenset({model})):
        above = traceback.walk_stack(sys._getframe())
        ours = itertools.takewhile(lambda step: step[0].f_globals.get("__name__", "").startswith(_LIBRARIES), above)
        warnings.warn(
            f"{model.__qualname__} does not come back from its own JSON, because of {', '.join(lost)}: handlers "
            "in this process see it whole, Event.from_json() will not",
            stacklevel=1 + len(list(ours)),  # the user's line
        )


def _lost(model: type[BaseModel], within: frozenset[Any]) -> list[str]:
    """Return the fields whose JSON does not bring them back; `within` are the models under inspection."""
    lost = [
        name
        for name, field in model.model_fields.items()
        if field.exclude or _holds_what_is_lost(field.annotation, within)
    ]
    return lost + (list(model.model_computed_fields) if model.model_config.get("extra") == "forbid" else [])


def _holds_what_is_lost(annotation: Any, within: frozenset[Any]) -> bool:
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type):
        if issubclass(kind, _SECRETS):
            return True
        if issubclass(kind, BaseModel) and kind not in within:
            return bool(_lost(kind, within | {kind}))
    return any(_holds_what_is_lost(part, within) for part in get_args(annotation))
