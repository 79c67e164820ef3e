"""Declaring events: models, event types, the registry."""

from enum import Enum
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, assert_type

from pydantic import BaseModel, RootModel

from fastapi_events import Event, EventModel, EventType, registry
from fastapi_events.registry.base import BaseEventPayloadSchemaRegistry
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry

ItemT = TypeVar("ItemT")


class Name(Enum):
    USER_CREATED = "user.created"


class Shipping(TypedDict):
    order_id: int
    carrier: str


class UserOut(BaseModel):
    id: int


class UserCreated(UserOut, EventModel, name=Name.USER_CREATED, version=2, deliver_on="success"):
    referrer: str | None = None


class Base(EventModel, abstract=True):
    tenant: str = ""


class Derived(Base, name="derived"):
    value: int


class Page(EventModel, Generic[ItemT], abstract=True):
    items: list[ItemT]


@registry.register
class Bare(BaseModel):
    value: int


@registry.register()
class Called(BaseModel):
    __event_name__: ClassVar[str] = "called"


@registry.register("named")
class Named(BaseModel):
    value: int


@registry.register(event_name=Name.USER_CREATED)
class NamedByEnum(BaseModel):
    value: int


@registry.register("numbers")
class Numbers(RootModel[list[int]]):
    pass


@registry.register  # E: a class that is no model
class NoModel:
    pass


@registry.register("no.model")  # E: a named class that is no model
class NoModelEither:
    pass


def models_keep_their_type() -> None:
    UserCreated(id=1)
    UserCreated()  # E: a missing field
    UserCreated(id=1).id = 2  # E: frozen
    Derived(value=1, tenant="a")
    Numbers([1, 2])
    assert_type(Page[int](items=[1]).items, list[int])
    assert_type(registry.register(Bare), type[Bare])
    assert_type(registry.register("bare")(Bare), type[Bare])
    registry.register(3)  # E: an int
    registry.register("name")(int)  # E: a builtin class
    registry.register(event_name=3)  # E: an int as name


def the_registry_is_a_mapping(own: EventPayloadSchemaRegistry) -> None:
    base: BaseEventPayloadSchemaRegistry = own
    assert_type(own["named"], Any)  # of an EventType, the type of its payload
    assert_type(len(base), int)
    assert_type(own.get("named"), Any | None)
    for name, model in own.items():
        assert_type(name, str)
        assert_type(model, Any)


SCORES = EventType("scores", list[int])
SHIPPED = EventType("order.shipped", Shipping, version=2)
MIXED = EventType(Name.USER_CREATED, int | str)
NOTHING = EventType("nothing", None)


def event_types_check_their_payload() -> None:
    assert_type(SCORES, EventType[list[int]])
    assert_type(MIXED, EventType[int | str])
    assert_type(SCORES([1, 2]), Event[list[int]])
    assert_type(SHIPPED({"order_id": 1, "carrier": "x"}), Event[Shipping])
    assert_type(MIXED("x"), Event[int | str])
    assert_type(SCORES.name, str)
    assert_type(SCORES.version, int | None)
    SCORES(["a"])  # E: a wrong element
    SCORES()  # E: no payload
    SHIPPED({"order_id": 1})  # E: a TypedDict literal with a key missing
    SHIPPED({"order_id": 1, "carrier": 2})  # E: a TypedDict literal with a wrong value
    EventType("scores")  # E: no type
    EventType(3, int)  # E: an int as event type's name


def checked_string_names() -> None:
    class Events(TypedDict):
        scores: EventType[list[int]]
        shipped: EventType[Shipping]

    events: Events = {"scores": SCORES, "shipped": SHIPPED}
    assert_type(events["scores"]([1]), Event[list[int]])
    events["shiped"]  # E: a misspelt event name
    loose: EventType[Any] = SCORES
    print(loose)
    wide: EventType[object] = SCORES  # E: an event type is invariant
    print(wide)
