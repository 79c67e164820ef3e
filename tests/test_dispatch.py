"""dispatch(): every way to say what happened, what is checked, and what arrives."""

import dataclasses
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, RootModel, ValidationError
from typing_extensions import TypedDict

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    Event,
    EventBus,
    EventModel,
    EventNameMissingError,
    EventPayloadSchemaRegistry,
    EventType,
    PayloadError,
    dispatch,
    registry,
)


class OrderPlaced(BaseModel):
    __event_name__ = "order.placed"
    id: PositiveInt
    note: str = "none"


class GiftPlaced(OrderPlaced):
    wrapping: str = "red"


class Unnamed(BaseModel):
    id: int


class Scores(RootModel[list[int]]):
    pass


class Ping(BaseModel):
    at: str = "now"


class Line(BaseModel):
    sku: str
    count: int = 1


class Basket(BaseModel):
    lines: list[Line] = []


class Names(Enum):
    PLACED = "order.placed"
    UNKNOWN = "order.unknown"


@dataclasses.dataclass
class OrderData:
    id: int


class OrderDict(TypedDict):
    id: int


MARKS = EventType("marks", list[int], version=5, registry=EventPayloadSchemaRegistry())
NOTHING = EventType("nothing", None, registry=EventPayloadSchemaRegistry())


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.events: list[Event[Any]] = []

    async def handle(self, event: Event[Any]) -> None:
        self.events.append(event)

    @property
    def payloads(self) -> list[Any]:
        return [event.payload for event in self.events]


@pytest.fixture(autouse=True)
def schemas() -> Iterator[None]:
    with registry.isolated():
        registry.register(OrderPlaced)
        registry.register(Scores, event_name="scores")
        registry.register(Ping, event_name="ping")
        registry.register(Basket, event_name="basket")
        yield


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def metadata_of(event: Event[Any]) -> tuple[Any, ...]:
    return event.id, event.time, event.source, event.subject, event.version, dict(event.headers)


def data_of(event: Event[Any]) -> Any:
    return json.loads(event.to_json())["data"]


def dispatched_here(error: BaseException) -> bool:
    """Tell whether an error left dispatch() towards the function that called it."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[0].filename == __file__ and "dispatch" in (frames[0].line or "")


# Spellings

EITHER = pytest.mark.parametrize(
    "to_bus", [lambda bus: dispatch, lambda bus: bus.dispatch], ids=["dispatch", "bus.dispatch"]
)

SPELLINGS: dict[str, tuple[Callable[[Any], Event[Any]], str, Any]] = {
    "model": (lambda to: to(OrderPlaced(id=1)), "order.placed", OrderPlaced(id=1)),
    "model and name": (lambda to: to(OrderPlaced(id=1), event_name="other"), "other", OrderPlaced(id=1)),
    "nameless model and name": (lambda to: to(Unnamed(id=1), event_name="other"), "other", Unnamed(id=1)),
    "model and member": (
        lambda to: to(OrderPlaced(id=1), event_name=Names.UNKNOWN),
        "order.unknown",
        OrderPlaced(id=1),
    ),
    "name": (lambda to: to("a"), "a", None),
    "name and payload": (lambda to: to("a", {"id": 1}), "a", {"id": 1}),
    "name and payload=": (lambda to: to("a", payload={"id": 1}), "a", {"id": 1}),
    "name and falsy payload": (lambda to: to("a", 0), "a", 0),
    "name with schema": (lambda to: to("order.placed", {"id": 1}), "order.placed", OrderPlaced(id=1)),
    "member": (lambda to: to(Names.PLACED, {"id": 1}), "order.placed", OrderPlaced(id=1)),
    "event_name=": (lambda to: to(event_name="a"), "a", None),
    "event_name= and payload=": (lambda to: to(event_name="a", payload=[1]), "a", [1]),
    "member by event_name=": (
        lambda to: to(event_name=Names.PLACED, payload={"id": 1}),
        "order.placed",
        OrderPlaced(id=1),
    ),
    "name and another name": (
        lambda to: to("a", {"id": 1}, event_name="order.placed"),
        "order.placed",
        OrderPlaced(id=1),
    ),
    "event type": (lambda to: to(MARKS, [1, 2]), "marks", [1, 2]),
    "event type and payload=": (lambda to: to(MARKS, payload=["1"]), "marks", [1]),
    "event type of nothing": (lambda to: to(NOTHING), "nothing", None),
    "made by an event type": (lambda to: to(MARKS([1, 2])), "marks", [1, 2]),
    "event": (lambda to: to(Event("a", {"id": 1})), "a", {"id": 1}),
    "event of a name with schema": (lambda to: to(Event("order.placed", {"id": 1})), "order.placed", OrderPlaced(id=1)),
    "event of a member": (lambda to: to(Event(Names.UNKNOWN, [1])), "order.unknown", [1]),
    "event and name": (lambda to: to(Event("a", {"id": 1}), event_name="b"), "b", {"id": 1}),
}


@EITHER
@pytest.mark.parametrize("say, name, payload", SPELLINGS.values(), ids=SPELLINGS)
async def test_every_spelling_delivers_the_event_and_returns_it(recorder, to_bus, say, name, payload):
    async with EventBus([recorder]) as bus:
        sent = say(to_bus(bus))
    assert type(sent) is Event
    assert (sent.name, sent.payload) == (name, payload)
    assert type(sent.payload) is type(payload)
    assert recorder.events == [sent]
    assert [metadata_of(event) for event in recorder.events] == [metadata_of(sent)]
    assert [event.to_json() for event in recorder.events] == [sent.to_json()]


@EITHER
async def test_event_name_wins_over_an_event_type_or_is_refused(recorder, to_bus):
    async with EventBus([recorder]) as bus:
        try:
            sent = to_bus(bus)(MARKS, [1], event_name="other")
        except (ConfigurationError, PayloadError):
            return
    assert sent.name == "other"


@EITHER
async def test_without_a_name_nothing_is_dispatched(recorder, to_bus):
    async with EventBus([recorder]) as bus:
        for arguments in ({}, {"payload": {"id": 1}}, {"event_name": None}, {"event_name": "", "payload": 1}):
            with pytest.raises(EventNameMissingError, match="no name: pass one"):
                to_bus(bus)(**arguments)
        with pytest.raises(EventNameMissingError, match=r"Unnamed has no event name: pass event_name="):
            to_bus(bus)(Unnamed(id=1))
    assert recorder.events == []


@EITHER
@pytest.mark.parametrize(
    "say",
    [
        lambda to: to(OrderPlaced(id=1), {"id": 2}),
        lambda to: to(OrderPlaced(id=1), payload={"id": 2}),
        lambda to: to(OrderPlaced(id=1), 0),
        lambda to: to(OrderPlaced(id=1), payload={"id": 2}, event_name="other"),
        lambda to: to(Event("a"), 1),
        lambda to: to(MARKS([1]), payload=[2]),
    ],
    ids=["model", "model, payload=", "model, falsy", "model, event_name=", "event", "event of a type"],
)
async def test_two_payloads_are_refused(recorder, to_bus, say):
    async with EventBus([recorder]) as bus:
        with pytest.raises(PayloadError, match="payload= is another: pass one of them") as refusal:
            say(to_bus(bus))
    assert refusal.value.path == "payload"
    assert recorder.events == []


async def test_an_event_may_be_dispatched_again(recorder):
    event = Event("order.placed", {"id": 1}, subject="order/1", version=9, source="/shop", headers={"tenant": "x"})
    async with EventBus([recorder], source="other") as bus:
        first, second = bus.dispatch(event), dispatch(event)
    assert metadata_of(first) == metadata_of(second) == metadata_of(event)
    assert recorder.payloads == [OrderPlaced(id=1)] * 2
    assert event.payload == {"id": 1}  # the event itself is as it was


async def test_what_was_received_may_be_dispatched_again(recorder):
    async with EventBus([recorder]) as bus:
        first = dispatch("order.placed", {"id": 1})
        await bus.drain()
        (received,) = recorder.events
        again = dispatch(received)
    assert again == first
    assert metadata_of(again) == metadata_of(first)
    assert again.to_json() == first.to_json()


# Validation

VALID: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "dict": ("order.placed", lambda: {"id": 1}, OrderPlaced(id=1)),
    "dict to be converted": ("order.placed", lambda: {"id": "1", "note": "x"}, OrderPlaced(id=1, note="x")),
    "typed dict": ("order.placed", lambda: OrderDict(id=1), OrderPlaced(id=1)),
    "the model": ("order.placed", lambda: OrderPlaced(id=1), OrderPlaced(id=1)),
    "derived model": ("order.placed", lambda: GiftPlaced(id=1), GiftPlaced(id=1)),
    "model of another class": ("order.placed", lambda: Unnamed(id=1), OrderPlaced(id=1)),
    "dataclass": ("order.placed", lambda: OrderData(id=1), OrderPlaced(id=1)),
    "nothing, all defaults": ("ping", lambda: None, Ping()),
    "empty dict": ("ping", dict, Ping()),
    "unknown keys": ("ping", lambda: {"more": 1}, Ping()),
    "list for a root model": ("scores", lambda: [1, "2"], Scores([1, 2])),
    "tuple for a root model": ("scores", lambda: (1, 2), Scores([1, 2])),
    "the root model": ("scores", lambda: Scores([1]), Scores([1])),
    "another root model": ("scores", lambda: RootModel[tuple[int, ...]]((1, 2)), Scores([1, 2])),
    "nested": (
        "basket",
        lambda: {"lines": [{"sku": "a"}, Line(sku="b")]},
        Basket(lines=[Line(sku="a"), Line(sku="b")]),
    ),
}


@pytest.mark.parametrize("name, make, expected", VALID.values(), ids=VALID)
async def test_a_payload_of_any_type_is_validated_and_arrives_as_the_model(recorder, name, make, expected):
    given = make()
    async with EventBus([recorder]):
        event = dispatch(name, given)
    assert event.payload == expected
    assert recorder.payloads == [expected]
    assert type(recorder.payloads[0]) is type(expected)
    assert data_of(event) == expected.model_dump()
    assert given == make()


INVALID: dict[str, tuple[str, Any]] = {
    "wrong value": ("order.placed", {"id": "x"}),
    "missing value": ("order.placed", {}),
    "nothing": ("order.placed", None),
    "number": ("order.placed", 5),
    "false": ("order.placed", False),
    "text": ("order.placed", "id=1"),
    "JSON text": ("order.placed", '{"id": 1}'),
    "list": ("order.placed", [1]),
    "model of another class": ("order.placed", Ping()),
    "dataclass": ("order.placed", OrderData(id=-1)),
    "class": ("order.placed", OrderPlaced),
    "dict for a root model": ("scores", {"a": 1}),
    "nothing for a root model": ("scores", None),
    "wrong list": ("scores", [1, "x"]),
    "model for a root model": ("scores", Unnamed(id=1)),
    "nested": ("basket", {"lines": [{"count": 1}]}),
}


@EITHER
@pytest.mark.parametrize("name, payload", INVALID.values(), ids=INVALID)
async def test_an_invalid_payload_is_an_error_of_pydantic_at_the_callers_line(recorder, to_bus, name, payload):
    async with EventBus([recorder]) as bus:
        dispatch_ = to_bus(bus)
        with pytest.raises(ValidationError) as refusal:
            dispatch_(name, payload)
        assert bus.stats().pending == 0
    assert refusal.value.title == registry[name].__name__
    assert dispatched_here(refusal.value)
    assert recorder.events == []


async def test_a_model_under_another_name_must_fit_the_schema_of_that_name(recorder):
    async with EventBus([recorder]):
        assert dispatch(Unnamed(id=1), event_name="order.placed").payload == OrderPlaced(id=1)
        with pytest.raises(ValidationError):
            dispatch(OrderPlaced(id=1), event_name="scores")
        with pytest.raises(ValidationError):
            dispatch(Event("a", {"id": "x"}), event_name="order.placed")
    assert recorder.payloads == [OrderPlaced(id=1)]


async def test_an_event_type_validates_whatever_the_registry_says(recorder):
    async with EventBus([recorder]):
        for say in (lambda: dispatch(MARKS, ["x"]), lambda: dispatch(MARKS), lambda: dispatch(MARKS, payload=1)):
            with pytest.raises(ValidationError):
                say()
        assert dispatch(MARKS, ("1",), payload_schema_registry=EventPayloadSchemaRegistry()).payload == [1]
    assert recorder.payloads == [[1]]


async def test_an_instance_of_the_schemas_class_is_trusted_as_pydantic_trusts_it(recorder):
    class Suspicious(OrderPlaced):
        __event_name__ = "suspicious"
        model_config = ConfigDict(revalidate_instances="always")

    registry.register(Suspicious)
    async with EventBus([recorder]):
        assert dispatch(OrderPlaced.model_construct(id=-1)).payload.id == -1
        with pytest.raises(ValidationError, match="greater than 0"):
            dispatch(Suspicious.model_construct(id=-1))


async def test_names_and_aliases_are_accepted(recorder):
    class Customer(BaseModel):
        user_name: str = Field(alias="userName")

    registry.register(Customer, event_name="customer")
    async with EventBus([recorder]):
        dispatch("customer", {"userName": "ann"})
        dispatch("customer", {"user_name": "ann"})
        dispatch("customer", Customer(userName="ann"))
    assert recorder.payloads == [Customer(userName="ann")] * 3


async def test_an_alias_is_accepted_though_the_model_itself_would_not(recorder):
    class Unaliased(BaseModel):
        model_config = ConfigDict(validate_by_alias=False, validate_by_name=True)
        user_name: str = Field(alias="userName")

    registry.register(Unaliased, event_name="customer")
    async with EventBus([recorder]):
        dispatch("customer", {"userName": "ann"})
        dispatch("customer", {"user_name": "ann"})
    assert recorder.payloads == [Unaliased(user_name="ann")] * 2


async def test_without_a_schema_a_payload_passes_as_given(recorder):
    given = [{"id": "1"}, Unnamed(id=1), OrderData(id=1), None, "text", [1], (1, 2), Scores([1])]
    async with EventBus([recorder]):
        for payload in given:
            dispatch("a", payload)
    assert recorder.payloads == given
    assert [type(payload) for payload in recorder.payloads] == [type(payload) for payload in given]


async def test_validation_may_be_left_out(recorder):
    async with EventBus([recorder]):
        for payload in ({"id": "x"}, None, [1], Ping()):
            assert dispatch("order.placed", payload, validate_payload=False).payload == payload
        assert dispatch(MARKS, "no list", validate_payload=False).payload == "no list"
        with pytest.raises(PayloadError):
            dispatch("order.placed", {"id": object()}, validate_payload=False)
    assert recorder.payloads == [{"id": "x"}, None, [1], Ping(), "no list"]
    assert data_of(recorder.events[0]) == {"id": "x"}


async def test_another_registry_may_be_given(recorder):
    own = EventPayloadSchemaRegistry()
    own.register(Scores, event_name="order.placed")
    own.register(Unnamed, event_name="named.elsewhere")
    async with EventBus([recorder]):
        dispatch("order.placed", [1], payload_schema_registry=own)
        dispatch(Unnamed(id=1), payload_schema_registry=own)
        dispatch(Event("order.placed", [2]), payload_schema_registry=own)
        with pytest.raises(ValidationError):
            dispatch("order.placed", {"id": 1}, payload_schema_registry=own)
    assert recorder.events == [
        ("order.placed", Scores([1])),
        ("named.elsewhere", Unnamed(id=1)),
        ("order.placed", Scores([2])),
    ]


# Dicts instead of models

DUMPED: dict[str, tuple[Callable[..., Event[Any]], Any]] = {
    "model": (lambda **options: dispatch(OrderPlaced(id=1), **options), {"id": 1, "note": "none"}),
    "dict": (lambda **options: dispatch("order.placed", {"id": "1"}, **options), {"id": 1, "note": "none"}),
    "no schema": (lambda **options: dispatch("a", Unnamed(id=1), **options), {"id": 1}),
    "root model": (lambda **options: dispatch("scores", (1, 2), **options), [1, 2]),
    "nested": (
        lambda **options: dispatch("basket", {"lines": [{"sku": "a"}]}, **options),
        {"lines": [{"sku": "a", "count": 1}]},
    ),
    "no model": (lambda **options: dispatch("a", {"id": "1"}, **options), {"id": "1"}),
    "not validated": (lambda **options: dispatch("ping", {"a": 1}, validate_payload=False, **options), {"a": 1}),
}


@pytest.mark.parametrize("say, expected", DUMPED.values(), ids=DUMPED)
async def test_models_arrive_as_dicts_where_that_is_wanted(recorder, say, expected):
    async with EventBus([recorder]):
        event = say(payload_schema_dump=True)
        model = say()
    assert event.payload == expected
    assert type(event.payload) is type(expected)
    assert recorder.payloads == [expected, model.payload]
    assert data_of(event) == data_of(model) == expected


async def test_the_bus_says_by_default_whether_models_arrive_as_dicts(recorder):
    async with EventBus([recorder], payload_schema_dump=True):
        dispatch(OrderPlaced(id=1))
        dispatch(OrderPlaced(id=1), payload_schema_dump=False)
        dispatch(OrderPlaced(id=1), payload_schema_dump=None)
    assert recorder.payloads == [{"id": 1, "note": "none"}, OrderPlaced(id=1), {"id": 1, "note": "none"}]


async def test_a_dict_holds_python_values_and_its_json_is_that_of_the_model(recorder):
    class Secretive(BaseModel):
        at: datetime
        key: bytes
        pin: Annotated[int, Field(exclude=True)] = 1

    model = Secretive(at=datetime(2026, 1, 31, tzinfo=UTC), key=b"a")
    async with EventBus([recorder]):
        event = dispatch("a", model, payload_schema_dump=True)
    assert recorder.payloads == [{"at": model.at, "key": b"a"}]
    assert data_of(event) == model.model_dump(mode="json")


async def test_a_dict_belongs_to_its_receiver():
    class Vandal(Recorder):
        async def handle(self, event: Event[Any]) -> None:
            await super().handle(event)
            event.payload["lines"].append("vandal")

    first, second, basket = Vandal(), Vandal(), Basket(lines=[Line(sku="a")])
    async with EventBus([first, second]) as bus, bus.scope():
        dispatch("basket", basket, payload_schema_dump=True)
        basket.lines.clear()
    lines = [{"sku": "a", "count": 1}, "vandal"]
    assert first.payloads == second.payloads == [{"lines": lines}]


# On the wire


async def test_defaults_are_in_the_payload_and_in_its_json(recorder):
    async with EventBus([recorder]):
        events = [
            dispatch(OrderPlaced(id=1)),
            dispatch("order.placed", {"id": 1}),
            dispatch("order.placed", OrderPlaced.model_construct(id=1)),
        ]
    for event in (*events, *recorder.events):
        assert event.payload == OrderPlaced(id=1)
        assert data_of(event) == {"id": 1, "note": "none"}


async def test_what_json_cannot_express_is_an_error_at_the_callers_line(recorder):
    async with EventBus([recorder]) as bus:
        for to_bus in (dispatch, bus.dispatch):
            with pytest.raises(PayloadError, match="opaque=True") as refusal:
                to_bus("a", {"lock": [threading.Lock()]})  # dispatch
            assert refusal.value.path == "payload['lock'][0]"
            assert dispatched_here(refusal.value)
        assert bus.stats().pending == 0
    assert recorder.events == []


async def test_a_model_with_a_part_that_json_cannot_express_is_refused(recorder):
    class Holder(BaseModel):
        parts: dict[str, Any]

    registry.register(Holder, event_name="holder")
    async with EventBus([recorder]):
        for say in (
            lambda part: dispatch("holder", {"parts": {"a": part}}),
            lambda part: dispatch("holder", Holder(parts={"a": part})),
            lambda part: dispatch(Holder(parts={"a": part})),
            lambda part: dispatch(Holder(parts={"a": part}), payload_schema_dump=True),
            lambda part: dispatch(Event("holder", {"parts": {"a": part}})),
        ):
            with pytest.raises(PayloadError) as refusal:
                say(object())
            assert refusal.value.path == "payload.parts['a']"
    assert recorder.events == []


async def test_an_opaque_payload_is_validated_and_given_as_it_is():
    async with EventBus():
        order = OrderPlaced(id=1)
        assert dispatch(order, opaque=True).payload is order
        assert dispatch("order.placed", {"id": "1"}, opaque=True).payload == OrderPlaced(id=1)
        with pytest.raises(ValidationError):
            dispatch("order.placed", {"id": "x"}, opaque=True)


# Metadata


@EITHER
@pytest.mark.parametrize(
    "say",
    [
        lambda to, **metadata: to(OrderPlaced(id=1), **metadata),
        lambda to, **metadata: to("a", {"id": 1}, **metadata),
        lambda to, **metadata: to(event_name="a", payload={"id": 1}, **metadata),
        lambda to, **metadata: to(MARKS, [1], **metadata),
        lambda to, **metadata: to(Event("a", {"id": 1}), **metadata),
        lambda to, **metadata: to(MARKS([1]), **metadata),
    ],
    ids=["model", "name", "event_name=", "event type", "event", "made by an event type"],
)
async def test_metadata_is_on_the_event_and_not_in_the_payload(recorder, to_bus, say):
    async with EventBus([recorder], source="/bus") as bus:
        sent = say(to_bus(bus), subject="order/1", headers={"tenant": "x"}, source="/shop")
    (event,) = recorder.events
    for one in (sent, event):
        assert (one.subject, one.source, one.headers) == ("order/1", "/shop", {"tenant": "x"})
        written = json.loads(one.to_json())
        assert (written["subject"], written["source"], written["tenant"]) == ("order/1", "/shop", "x")
        assert written["data"] in ({"id": 1}, {"id": 1, "note": "none"}, [1])
    assert "order/1" not in repr(event.payload)


async def test_metadata_that_is_not_given_has_a_default(recorder):
    async with EventBus([recorder]):
        event = dispatch("a", subject=None, headers=None, source=None)
    assert (event.source, event.subject, event.version, dict(event.headers)) == ("fastapi_events", None, None, {})


async def test_the_schema_gives_the_version(recorder):
    class Versioned(EventModel, name="versioned", version=3):
        id: int = 1

    async with EventBus([recorder]):
        dispatch(Versioned())
        dispatch("versioned", {"id": 2})
        dispatch(Event("versioned"))
        dispatch(Event("versioned", version=2))
        dispatch(MARKS, [1])
        dispatch("a")
    assert [event.version for event in recorder.events] == [3, 3, 3, 2, 5, None]


async def test_what_is_given_wins_over_what_the_event_has(recorder):
    event = Event("a", subject="old", source="/old", headers={"tenant": "old", "kept": "1"})
    async with EventBus([recorder]):
        sent = dispatch(event, subject="new", source="/new", headers={"tenant": "new"})
    assert (sent.id, sent.time) == (event.id, event.time)
    assert (sent.subject, sent.source, sent.headers) == ("new", "/new", {"tenant": "new", "kept": "1"})
    assert (event.subject, event.source, event.headers) == ("old", "/old", {"tenant": "old", "kept": "1"})


async def test_both_ways_to_send_an_event_type_bear_the_source_of_the_bus(recorder):
    async with EventBus([recorder], source="/shop"):
        dispatch(MARKS, [1])
        dispatch(MARKS([1]))
    assert [event.source for event in recorder.events] == ["/shop", "/shop"]


async def test_the_headers_of_an_event_win_over_those_of_the_bus(recorder):
    async with EventBus([recorder], headers={"tenant": "of the bus"}):
        dispatch(Event("a", headers={"tenant": "of the event"}))
    assert [dict(event.headers) for event in recorder.events] == [{"tenant": "of the event"}]


@pytest.mark.parametrize(
    "headers, path",
    [
        ({"Tenant": "x"}, "headers['Tenant']"),
        ({"fine": "1", "trace-id": "x"}, "headers['trace-id']"),
        ({"subject": "x"}, "headers['subject']"),
        ({"tenant": 1}, "headers['tenant']"),
        ({"tenant": None}, "headers['tenant']"),
        ({1: "x"}, "headers[1]"),
        ([("tenant", "x")], "headers"),
    ],
    ids=["upper case", "dash", "an attribute", "number", "None", "no name", "list"],
)
async def test_headers_that_no_event_can_carry_are_refused_at_the_callers_line(recorder, headers, path):
    async with EventBus([recorder]) as bus:
        for to_bus in (dispatch, bus.dispatch):
            with pytest.raises(PayloadError, match="header") as refusal:
                to_bus("a", headers=headers)  # dispatch
            assert refusal.value.path == path
            assert dispatched_here(refusal.value)
        assert bus.stats().pending == 0
    assert recorder.events == []


@pytest.mark.parametrize(
    "metadata",
    [{"subject": 1}, {"subject": ""}, {"source": ""}, {"subject": "\ud800"}, {"headers": {"tenant": "\ud800"}}],
    ids=["number", "empty subject", "empty source", "subject that is no UTF-8", "header that is no UTF-8"],
)
async def test_metadata_that_cannot_be_forwarded_is_refused_at_the_callers_line(recorder, metadata):
    async with EventBus([recorder]):
        with pytest.raises(PayloadError):
            dispatch("a", **metadata)
    assert recorder.events == []


@pytest.mark.parametrize(
    "say",
    [
        lambda name: dispatch(name),
        lambda name: dispatch(event_name=name),
        lambda name: dispatch(Ping(), event_name=name),
        lambda name: dispatch(EventType(name, int, registry=EventPayloadSchemaRegistry()), 1),
    ],
    ids=["name", "event_name=", "model and name", "event type"],
)
async def test_a_name_that_is_no_unicode_text_is_refused_at_the_callers_line(recorder, say):
    async with EventBus([recorder]):
        with pytest.raises((ConfigurationError, PayloadError), match="Unicode"):
            say("order.\ud800")
    assert recorder.events == []


@pytest.mark.parametrize("source", ["", "\ud800", 1], ids=["empty", "no UTF-8", "number"])
def test_a_source_that_no_event_can_bear_is_refused_by_the_bus(source):
    with pytest.raises((ConfigurationError, PayloadError), match="source"):
        EventBus(source=source)


async def test_later_changes_of_the_headers_go_unnoticed(recorder):
    headers = {"tenant": "x"}
    async with EventBus([recorder]) as bus, bus.scope():
        dispatch("a", headers=headers)
        headers["tenant"] = "y"
    assert [dict(event.headers) for event in recorder.events] == [{"tenant": "x"}]


@pytest.mark.parametrize("deliver_on", ["", "never", "NOW", 1, True])
async def test_a_wrong_deliver_on_is_refused_and_the_right_ones_are_named(recorder, deliver_on):
    async with EventBus([recorder]):
        with pytest.raises(ConfigurationError, match="is none of completion, failure, now, success") as refusal:
            dispatch("a", deliver_on=deliver_on)
    assert repr(deliver_on) in str(refusal.value)
    assert recorder.events == []


# FASTAPI_EVENTS_DISABLE_DISPATCH

DISABLE = "FASTAPI_EVENTS_DISABLE_DISPATCH"


@pytest.mark.parametrize("value", ["1", "t", "T", "true", "TRUE", "y", "Y", "yes", "on", "On", " 1 ", "true\n"])
async def test_truthy_words_suppress(recorder, monkeypatch, caplog, value):
    monkeypatch.setenv(DISABLE, value)
    async with EventBus([recorder]):
        assert dispatch("order.placed", {"id": "1"}, subject="s") == ("order.placed", OrderPlaced(id=1))
    assert recorder.events == []
    assert f"{DISABLE} is set" in caplog.text


@pytest.mark.parametrize(
    "value", ["0", "f", "F", "false", "FALSE", "n", "N", "no", "off", "OFF", " 0 ", "", "  ", None]
)
async def test_falsy_words_and_nothing_do_not_suppress(recorder, monkeypatch, value):
    if value is None:
        monkeypatch.delenv(DISABLE, raising=False)
    else:
        monkeypatch.setenv(DISABLE, value)
    async with EventBus([recorder]):
        event = dispatch("a")
    assert recorder.events == [event]


@pytest.mark.parametrize("value", ["2", "-1", "1.0", "None", "enabled", "truee", "yes no"])
def test_other_words_are_refused_and_named(monkeypatch, value):
    monkeypatch.setenv(DISABLE, value)
    with pytest.raises(ConfigurationError, match="is no truth value: use 1 or 0, or unset it") as refusal:
        EventBus()
    assert str(refusal.value).startswith(f"{DISABLE}={value!r}")


async def test_other_words_are_named_where_there_is_no_bus_too(monkeypatch):
    monkeypatch.setenv(DISABLE, "perhaps")
    with pytest.raises(ConfigurationError, match=f"{DISABLE}='perhaps'"):
        dispatch("a", middleware_id="nobody has this id")


async def test_everything_is_checked_though_it_is_suppressed(recorder, monkeypatch):
    monkeypatch.setenv(DISABLE, "1")
    async with EventBus([recorder]) as bus:
        for to_bus in (dispatch, bus.dispatch):
            with pytest.raises(ValidationError):
                to_bus("order.placed", {"id": "x"})
            with pytest.raises(ValidationError):
                to_bus(MARKS, ["x"])
            with pytest.raises(PayloadError, match="pass one of them"):
                to_bus(OrderPlaced(id=1), 1)
            with pytest.raises(PayloadError, match="header"):
                to_bus("a", headers={"Tenant": "x"})
            with pytest.raises(PayloadError) as refusal:
                to_bus("a", {"lock": threading.Lock()})
            assert refusal.value.path == "payload['lock']"
            with pytest.raises(EventNameMissingError):
                to_bus()
            with pytest.raises(ConfigurationError, match="deliver_on"):
                to_bus("a", deliver_on="never")
        assert bus.stats().pending == 0
    assert recorder.events == []
