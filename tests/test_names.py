"""What can be the name of an event, and that an Enum member is its value wherever a name is taken."""

from collections.abc import Callable, Iterator
from enum import Enum, IntEnum, StrEnum
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    DeliverOn,
    Event,
    EventBus,
    EventModel,
    EventName,
    EventNameMissingError,
    EventPayloadSchemaRegistry,
    EventType,
    FastAPIEventsError,
    dispatch,
    registry,
)


class Plain(Enum):
    PLACED = "order.placed"
    NOTHING = None
    EMPTY = ""
    NUMBER = 1
    PAIR = ("order.placed", 1)


class Mixed(str, Enum):
    PLACED = "order.placed"


class Modern(StrEnum):
    PLACED = "order.placed"


class Number(IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


@pytest.fixture(autouse=True)
def own_names() -> Iterator[None]:
    with registry.isolated():
        yield


@pytest.mark.parametrize(
    "name",
    ["order.placed", Plain.PLACED, Mixed.PLACED, Modern.PLACED, Text("order.placed")],
    ids=lambda name: type(name).__name__,
)
def test_a_name_is_a_plain_string_whatever_it_was_given_as(name):
    event = Event(name)
    assert event.name == event[0] == "order.placed"
    assert type(event.name) is str
    assert f"{event.name}" == "order.placed"


def test_any_text_is_a_name():
    for name in ("a", "a b", "order.placed", "é\U0001f9ff", " ", "*", "[x]"):
        assert Event(name).name == name


def event_model(name: Any) -> str:
    class Order(EventModel, name=name):
        pass

    return Order.__event_name__


def registered(**options: Any) -> Callable[[Any], str]:
    def register(name: Any) -> str:
        own = EventPayloadSchemaRegistry()
        own.register(**dict.fromkeys(options, name))(BaseModel)
        return next(iter(own))

    return register


def attribute_of_model(name: Any) -> str:
    class Order(BaseModel):
        __event_name__ = name

    own = EventPayloadSchemaRegistry()
    own.register(Order)
    return next(iter(own))


ENTRIES: dict[str, Callable[[Any], str]] = {
    "Event": lambda name: Event(name).name,
    "EventType": lambda name: EventType(name, list[int]).name,
    "EventType, made": lambda name: EventType(name, list[int])([1]).name,
    "EventModel": event_model,
    "register(name)": registered(schema=None),
    "register(event_name=)": registered(event_name=None),
    "__event_name__": attribute_of_model,
}


@pytest.mark.parametrize("take", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("name", [Plain.PLACED, Mixed.PLACED, Modern.PLACED], ids=repr)
def test_a_member_is_its_value_wherever_a_name_is_taken(take, name):
    taken = take(name)
    assert taken == "order.placed"
    assert type(taken) is str


@pytest.mark.parametrize("name", [Plain.PLACED, Mixed.PLACED, Modern.PLACED, "order.placed"], ids=repr)
def test_a_registry_is_asked_by_member_or_by_value(name):
    own = EventPayloadSchemaRegistry()
    own.register(BaseModel, event_name=Plain.PLACED)
    assert name in own
    assert own[name] is own.get(name) is BaseModel


@pytest.mark.parametrize("name", [Plain.PLACED, Mixed.PLACED, Modern.PLACED], ids=repr)
async def test_a_member_is_its_value_when_it_is_dispatched(name):
    received: list[object] = []

    class Recorder(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            received.append((type(event.name), event.name, event.payload))

    async with EventBus([Recorder()]) as bus:
        for to_bus in (dispatch, bus.dispatch):
            to_bus(name, 1)
            to_bus(event_name=name, payload=2)
            to_bus("other", 3, event_name=name)
    assert received == [(str, "order.placed", number) for number in (1, 2, 3)] * 2


@pytest.mark.parametrize("name", [None, "", Plain.NOTHING, Plain.EMPTY], ids=repr)
def test_nothing_is_no_name(name):
    with pytest.raises(
        EventNameMissingError, match=r"the event has no name: pass one, as in dispatch\('order\.placed'"
    ):
        Event(name)


@pytest.mark.parametrize("name", [0, 1, 1.5, True, b"order.placed", Plain.NUMBER, Number.ONE, ["a"], str], ids=repr)
def test_what_is_no_string_is_no_name(name):
    with pytest.raises(
        ConfigurationError, match="an event name is a string or an Enum member with a string value"
    ) as one:
        Event(name)
    assert not isinstance(one.value, EventNameMissingError)
    assert f"not {name!r}: use 'order.placed'" in str(one.value)


def test_a_member_whose_value_is_a_pair_is_no_name():
    with pytest.raises(ConfigurationError, match="not <Plain.PAIR"):
        Event(Plain.PAIR)


@pytest.mark.parametrize("arguments", [(Plain.NUMBER,), ("",), (Plain.NOTHING,)], ids=repr)
async def test_what_is_no_name_cannot_be_dispatched(arguments):
    async with EventBus() as bus:
        for to_bus in (dispatch, bus.dispatch):
            with pytest.raises(FastAPIEventsError, match="name"):
                to_bus(*arguments)
            with pytest.raises(FastAPIEventsError, match="name"):
                to_bus(event_name=arguments[0], payload=1)
        assert bus.stats().pending == 0


def test_the_types_of_the_words_are_public():
    assert set(get_args(EventName)) == {str, Enum}
    assert set(get_args(DeliverOn)) == {"completion", "success", "failure", "now"}
