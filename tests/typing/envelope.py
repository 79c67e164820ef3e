"""The envelope: what an Event offers, and what it refuses."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_type

from fastapi_events import Event, EventModel, EventType, event_is


class OrderPlaced(EventModel, name="order.placed"):
    order_id: int


class OrderShipped(EventModel, name="order.shipped"):
    carrier: str


SCORES = EventType("scores", list[int])


def unpacks(event: Event[OrderPlaced]) -> None:
    name, payload = event
    assert_type(name, str)
    assert_type(payload, OrderPlaced)
    assert_type(event[0], str)
    assert_type(event[1], OrderPlaced)
    _one, _two, _three = event  # E: three-way unpacking


def has_metadata(event: Event[OrderPlaced]) -> None:
    assert_type(event.name, str)
    assert_type(event.payload, OrderPlaced)
    assert_type(event.id, str)
    assert_type(event.time, datetime)
    assert_type(event.source, str)
    assert_type(event.subject, str | None)
    assert_type(event.version, int | None)
    assert_type(event.headers, Mapping[str, str])
    assert_type(event.to_json(), str)
    assert_type(event.with_headers({"tenant": "a"}), Event[OrderPlaced])
    event.nmae  # E: no such attribute on the envelope
    event.payload.order_idd  # E: no such attribute on the payload


def is_read_only(event: Event[OrderPlaced], shipped: OrderShipped) -> None:
    event.name = "other"  # E: assigning to the name
    event.payload = shipped  # E: assigning to the payload
    event.id = "other"  # E: assigning to the id
    event.colour = "red"  # E: assigning to a new attribute
    event.headers["tenant"] = "a"  # E: assigning to a header
    event[0] = "other"  # E: assigning to an item


def needs_no_parameter(event: Event) -> None:
    name, payload = event
    assert_type(name, str)
    assert_type(payload, Any)
    print(event.payload["anything"], event.payload.anything)


def goes_where_its_base_is_wanted(event: Event[OrderPlaced]) -> None:
    wide: Event[EventModel] = event
    wider: Event[object] = event
    either: Event[OrderPlaced | OrderShipped] = event
    plain: tuple[str, OrderPlaced] = event
    legacy: Event = event
    print(wide, wider, either, plain, legacy)
    narrow: Event[OrderShipped] = event  # E: another model
    print(narrow)


def is_made_by_hand(order: OrderPlaced) -> None:
    assert_type(Event("order.placed", order), Event[OrderPlaced])
    assert_type(Event("order.placed", order, id="1", subject="order/1", version=2, headers={"a": "b"}), Event[OrderPlaced])
    Event("order.placed")
    Event(1, order)  # E: an int as name
    Event("order.placed", order, sbject="order/1")  # E: a misspelt keyword


def comes_back_from_json(data: bytes) -> None:
    assert_type(Event.from_json(data), Event[Any])


def matches_by_position(event: Event[OrderPlaced | OrderShipped]) -> str:
    match event:
        case Event("order.placed", OrderPlaced() as placed):
            assert_type(placed, OrderPlaced)
            return str(placed.order_id)
        case Event(name, OrderShipped() as shipped):
            assert_type(name, str)
            assert_type(shipped, OrderShipped)
            return shipped.carrier
        case _:
            return ""


def matches_by_class(event: Event) -> int:
    match event:
        case Event(payload=OrderPlaced(order_id=order_id)):
            return order_id
        case _:
            return 0


def is_narrowed(event: Event) -> None:
    if event_is(event, OrderPlaced):
        assert_type(event, Event[OrderPlaced])
        assert_type(event.payload.order_id, int)
        event.payload.carrier  # E: not in the narrowed payload
    elif event_is(event, SCORES):
        assert_type(event.payload, list[int])


def is_narrowed_from_object(event: Event[object]) -> None:
    if event_is(event, OrderShipped):
        assert_type(event.payload, OrderShipped)
    event_is(event, 3)  # E: neither model nor event type
