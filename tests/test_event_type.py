"""Event names with a type that is no model, and what `event_is` tells."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from fastapi_events import (
    DuplicateEventError,
    Event,
    EventBus,
    EventModel,
    EventType,
    LocalHandler,
    PayloadError,
    dispatch,
    event_is,
    registry,
)


@pytest.fixture(autouse=True)
def own_names() -> Iterator[None]:
    with registry.isolated():
        yield


class Shipping(TypedDict):
    order_id: int


class Order(BaseModel):
    id: int


class PaidOrder(Order):
    amount: int


def test_calling_one_makes_a_validated_event_without_a_bus():
    scores = EventType("scores", list[int], version=2)
    event = scores(["1", 2])  # as pydantic reads it
    assert (event.name, event.payload, event.version) == ("scores", [1, 2], 2)
    with pytest.raises(ValidationError):
        scores(["a"])


def test_the_event_is_a_snapshot():
    scores = EventType("scores", list[int])
    numbers = [1]
    event = scores(numbers)
    numbers.append(2)
    assert event.payload == [1]
    assert '"data":[1]' in event.to_json()


def test_what_json_cannot_express_is_refused():
    with pytest.raises(PayloadError) as refusal:
        EventType("anything", dict[str, Any])({"socket": object()})
    assert refusal.value.path == "payload['socket']"


@dataclass
class Weight:
    grams: float


class Weights(TypedDict):
    weights: list[float]


class Ratio(BaseModel):
    value: float


@pytest.mark.parametrize(
    "type_, payload, path",
    [
        (float, math.nan, "payload"),
        (list[float], [1.0, math.inf], "payload[1]"),
        (dict[str, float | None], {"a": None, "b": -math.inf}, "payload['b']"),
        (tuple[float, ...], (math.nan,), "payload[0]"),
        (Weights, {"weights": [math.nan]}, "payload['weights'][0]"),
        (list[Weights], [{"weights": [math.nan]}], "payload[0]['weights'][0]"),
        (Weight, Weight(math.nan), "payload.grams"),
        (Any, [math.nan], "payload[0]"),
    ],
    ids=["float", "list", "dict", "tuple", "TypedDict", "list of TypedDict", "dataclass", "Any"],
)
async def test_nan_is_refused_and_not_written_as_null(type_, payload, path):
    ratios: EventType[Any] = EventType("ratios", type_)
    async with EventBus():
        for say in (ratios, lambda payload: dispatch(ratios, payload)):
            with pytest.raises(PayloadError, match="JSON has no -?(nan|inf)") as refusal:
                say(payload)
            assert refusal.value.path == path


def test_a_model_in_it_writes_nan_as_the_model_says():
    assert '"data":[{"value":null}]' in EventType("ratios", list[Ratio])([Ratio(value=math.nan)]).to_json()


def test_an_error_of_validation_names_the_type():
    with pytest.raises(ValidationError) as refusal:
        EventType("scores", list[int])("none")  # type: ignore[arg-type]
    assert refusal.value.title == "list[int]"


async def test_both_spellings_of_dispatch_arrive():
    shipped = EventType("order.shipped", Shipping)
    handler = LocalHandler()
    heard: list[object] = []

    @handler.register(shipped)
    async def subscriber(event: Event[Shipping]) -> None:
        heard.append(event.payload["order_id"])

    async with EventBus([handler]) as bus, bus.scope():
        dispatch(shipped, {"order_id": 1})
        dispatch(shipped({"order_id": 2}))
        with pytest.raises(ValidationError):
            dispatch(shipped, {"order_id": "none"})
    assert heard == [1, 2]


def test_a_name_has_one_type():
    EventType("scores", list[int])
    with pytest.raises(DuplicateEventError, match="scores"):
        EventType("scores", list[str])


def test_event_is_tells_models_by_the_class_of_the_payload():
    event = Event("order.paid", PaidOrder(id=1, amount=2))
    assert event_is(event, PaidOrder)
    assert event_is(event, Order)
    assert not event_is(event, Shipped)
    assert not event_is(Event("order.paid", {"id": 1, "amount": 2}), PaidOrder)


def test_event_is_tells_event_types_by_the_name():
    scores, marks = EventType("scores", list[int]), EventType("marks", list[int])
    assert event_is(scores([1]), scores)
    assert not event_is(scores([1]), marks)


class Shipped(EventModel, abstract=True):
    order_id: int


def test_a_forward_reference_is_found_where_the_event_type_is_made():
    class Local(BaseModel):
        id: int

    event = EventType("locals", list["Local"])([{"id": 1}])
    assert event.payload == [Local(id=1)]
