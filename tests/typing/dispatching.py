"""Every spelling of dispatch()."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, TypedDict, assert_type

from pydantic import BaseModel

from fastapi_events import Event, EventBus, EventModel, EventType, dispatch
from fastapi_events.dispatcher import dispatch as legacy_dispatch
from fastapi_events.registry.payload_schema import registry


class Plain(Enum):
    ORDER_PLACED = "order.placed"


class Text(str, Enum):
    ORDER_PLACED = "order.placed"


class Shipping(TypedDict):
    order_id: int


@dataclass
class Box:
    width: int


class OrderPlaced(EventModel, name="order.placed"):
    order_id: int


class ByAttribute(BaseModel):
    __event_name__ = "by.attribute"
    value: int = 0


class ByEnumAttribute(BaseModel):
    __event_name__ = Plain.ORDER_PLACED
    value: int = 0


class ByClassVar(BaseModel):
    __event_name__: ClassVar[str] = "by.classvar"
    value: int = 0


class ByEnumClassVar(BaseModel):
    __event_name__: ClassVar[Plain] = Plain.ORDER_PLACED
    value: int = 0


class Nameless(BaseModel):
    value: int = 0


SCORES = EventType("scores", list[int])
SHIPPED = EventType("shipped", Shipping)
NOTHING = EventType("nothing", None)


def a_model() -> None:
    assert_type(dispatch(OrderPlaced(order_id=1)), Event[OrderPlaced])
    assert_type(dispatch(ByAttribute()), Event[ByAttribute])
    assert_type(dispatch(ByEnumAttribute()), Event[ByEnumAttribute])
    assert_type(dispatch(ByClassVar()), Event[ByClassVar])
    assert_type(dispatch(ByEnumClassVar()), Event[ByEnumClassVar])
    assert_type(dispatch(Nameless(), event_name="name"), Event[Nameless])
    assert_type(dispatch(OrderPlaced(order_id=1), event_name=Plain.ORDER_PLACED), Event[OrderPlaced])
    dispatch(OrderPlaced)  # E: the class instead of an instance
    dispatch(ByAttribute)  # E: the class instead of an instance, named by attribute
    dispatch(ByClassVar)  # E: the class instead of an instance, named by ClassVar
    dispatch(OrderPlaced, event_name="name")  # E: the class and a name
    dispatch(Nameless())  # E: a nameless model
    dispatch(OrderPlaced(order_id=1), {"order_id": 2})  # E: model and payload
    dispatch(OrderPlaced(order_id=1), OrderPlaced(order_id=2))  # E: two models
    dispatch(Nameless(), {"value": 1}, event_name="name")  # E: model, payload and name


def a_name(box: Box, shipping: Shipping, numbers: dict[str, int]) -> None:
    assert_type(dispatch("order.placed"), Event[Any])
    assert_type(dispatch("order.placed", {"order_id": 1}), Event[Any])
    dispatch("order.placed", OrderPlaced(order_id=1))
    dispatch("order.placed", payload={"order_id": 1})
    dispatch("order.placed", box)
    dispatch("order.placed", shipping)
    dispatch("order.placed", numbers)
    dispatch(Plain.ORDER_PLACED)
    dispatch(Plain.ORDER_PLACED, {"order_id": 1})
    dispatch(Text.ORDER_PLACED, {"order_id": 1})
    assert_type(dispatch(event_name="order.placed"), Event[Any])
    assert_type(dispatch(event_name=Plain.ORDER_PLACED, payload={"order_id": 1}), Event[Any])
    dispatch(1)  # E: an int as name
    dispatch(None)  # E: None as name
    dispatch(b"order.placed")  # E: bytes as name
    dispatch(1, {"order_id": 1})  # E: an int as name, with payload
    dispatch(event_name=1)  # E: an int as event_name
    dispatch()  # E: nothing at all
    dispatch(payload={"order_id": 1})  # E: a payload without a name


def an_event_type(shipping: Shipping) -> None:
    assert_type(dispatch(SCORES, [1, 2]), Event[list[int]])
    assert_type(dispatch(SCORES, payload=[1, 2]), Event[list[int]])
    assert_type(dispatch(SHIPPED, shipping), Event[Shipping])
    assert_type(dispatch(NOTHING), Event[None])
    assert_type(dispatch(SCORES([1])), Event[list[int]])
    assert_type(dispatch(SHIPPED({"order_id": 1})), Event[Shipping])
    dispatch(SCORES)  # E: an event type without its payload
    dispatch(SCORES, "x")  # E: a wrong payload
    dispatch(SCORES, ["x"])  # E: a wrong element
    dispatch(SHIPPED, {"order_id": "x"})  # E: a wrong TypedDict value


def an_event(event: Event[OrderPlaced]) -> None:
    assert_type(dispatch(event), Event[OrderPlaced])
    dispatch(event, {"order_id": 1})  # E: an event and a payload
    dispatch(("order.placed", {"order_id": 1}))  # E: a plain tuple


def options(bus: EventBus) -> None:
    dispatch("name", subject="order/1", headers={"tenant": "a"}, source="shop", deliver_on="success", bus=bus)
    dispatch("name", {}, middleware_id=1, validate_payload=False, payload_schema_dump=True)
    dispatch("name", {}, payload_schema_registry=registry)
    dispatch(OrderPlaced(order_id=1), subject="order/1", opaque=True, deliver_on="now")
    assert_type(dispatch(SCORES, [1], headers={"tenant": "a"}), Event[list[int]])
    dispatch("name", sbject="order/1")  # E: a misspelt keyword
    dispatch(OrderPlaced(order_id=1), sbject="order/1")  # E: a misspelt keyword beside a model
    dispatch("name", deliver_on="sucess")  # E: a misspelt outcome
    dispatch("name", headers={"tenant": 1})  # E: a header that is no text


def the_same_on_a_bus(bus: EventBus) -> None:
    assert_type(bus.dispatch(OrderPlaced(order_id=1)), Event[OrderPlaced])
    assert_type(bus.dispatch("order.placed", {"order_id": 1}, subject="order/1"), Event[Any])
    assert_type(bus.dispatch(SCORES, [1]), Event[list[int]])
    assert_type(legacy_dispatch(OrderPlaced(order_id=1)), Event[OrderPlaced])
    bus.dispatch(Nameless())  # E: a nameless model on a bus
    bus.dispatch(OrderPlaced)  # E: the class on a bus
