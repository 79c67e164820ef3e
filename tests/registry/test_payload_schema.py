"""The registry: names and their schemas, and the models that name themselves."""

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretBytes, SecretStr, ValidationError, computed_field

from fastapi_events import (
    ConfigurationError,
    DuplicateEventError,
    Event,
    EventBus,
    EventModel,
    EventNameMissingError,
    EventPayloadSchemaRegistry,
    EventType,
    LocalHandler,
    dispatch,
    registry,
)

T = TypeVar("T")


class Names(Enum):
    PLACED = "order.placed"


class Order(BaseModel):
    id: int = 1


class Named(BaseModel):
    __event_name__ = "order.named"
    id: int = 1


class ClassNamed(BaseModel):
    __event_name__: ClassVar[str] = "order.class_named"
    id: int = 1


class AnnotatedName(BaseModel):
    __event_name__: str = "order.annotated"
    id: int = 1


class MemberNamed(BaseModel):
    __event_name__ = Names.PLACED
    id: int = 1


class Scores(RootModel[list[int]]):
    pass


@pytest.fixture(autouse=True)
def own_names() -> Iterator[None]:
    with registry.isolated():
        yield


@pytest.fixture
def own() -> EventPayloadSchemaRegistry:
    return EventPayloadSchemaRegistry()


# Register


@pytest.mark.parametrize("model", [Order, Scores, RootModel[dict[str, int]]])
@pytest.mark.parametrize(
    "register",
    [
        lambda own, model: own.register("order.placed")(model),
        lambda own, model: own.register(Names.PLACED)(model),
        lambda own, model: own.register(event_name="order.placed")(model),
        lambda own, model: own.register(event_name=Names.PLACED)(model),
        lambda own, model: own.register(model, event_name="order.placed"),
        lambda own, model: own.register(model, event_name=Names.PLACED),
    ],
    ids=["name", "member", "event_name=", "event_name=member", "model and name", "model and member"],
)
def test_every_spelling_registers_and_gives_the_model_back(own, register, model):
    assert register(own, model) is model
    assert dict(own) == {"order.placed": model}


@pytest.mark.parametrize(
    "model, name",
    [
        (Named, "order.named"),
        (ClassNamed, "order.class_named"),
        (AnnotatedName, "order.annotated"),
        (MemberNamed, "order.placed"),
    ],
)
def test_a_model_may_name_itself(own, model, name):
    assert own.register(model) is model
    assert own.register()(model) is model
    assert dict(own) == {name: model}


def test_the_name_that_is_given_wins_over_that_of_the_model(own):
    own.register("other")(Named)
    assert dict(own) == {"other": Named}


def test_a_model_without_a_name_is_refused(own):
    for register in (own.register, own.register()):
        with pytest.raises(EventNameMissingError, match=r"Order has no event name: use @registry\.register\('order"):
            register(Order)
    assert len(own) == 0


def test_a_name_that_is_empty_is_refused(own):
    for name in ("", Enum("Empty", {"NAME": ""}).NAME):
        with pytest.raises(EventNameMissingError):
            own.register(Named, event_name=name)
    assert len(own) == 0


@pytest.mark.parametrize("thing", [int, dict, object, type], ids=str)
def test_a_class_that_is_no_model_is_refused(own, thing):
    for register in (own.register, own.register("a"), own.register(event_name="a")):
        with pytest.raises(ConfigurationError, match=f"{thing.__name__} is not a pydantic model: .* use EventType"):
            register(thing)
    assert len(own) == 0


@pytest.mark.parametrize(
    "register",
    [
        lambda own: own.register(list[int], event_name="a"),
        lambda own: own.register(Order(), event_name="a"),
        lambda own: own.register("one", event_name="two"),
        lambda own: own.register(5),
    ],
    ids=["list[int]", "an instance", "two names", "a number"],
)
def test_a_call_that_can_register_nothing_is_refused(own, register):
    with pytest.raises(ConfigurationError):
        register(own)


def test_one_model_may_have_several_names(own):
    own.register("first")(own.register("second")(Order))
    assert dict(own) == {"first": Order, "second": Order}


# One name, one schema


def test_a_second_schema_is_refused_and_both_are_named(own):
    own.register("order.placed")(Order)
    with pytest.raises(DuplicateEventError) as refusal:
        own.register("order.placed")(Scores)
    assert (refusal.value.name, refusal.value.first, refusal.value.second) == ("order.placed", Order, Scores)
    for word in ("'order.placed'", f"{__name__}.Order", f"{__name__}.Scores", "another name"):
        assert word in str(refusal.value)
    assert dict(own) == {"order.placed": Order}


def test_a_member_and_its_value_are_one_name(own):
    own.register(Names.PLACED)(Order)
    with pytest.raises(DuplicateEventError):
        own.register("order.placed")(Scores)


def test_models_and_event_types_share_the_names(own):
    EventType("a", list[int], registry=own)
    with pytest.raises(DuplicateEventError, match=r"'a' is taken by .*list.*\.Order cannot have it"):
        own.register("a")(Order)
    own.register("b")(Order)
    with pytest.raises(DuplicateEventError, match=r"'b' is taken by .*\.Order, so .*list"):
        EventType("b", list[int], registry=own)


@pytest.mark.parametrize(
    "first, second",
    [
        (list[int], list[str]),
        (list[int], dict[str, int]),
        (Literal["a"], int),
        (Any, int),
        (int | str, int),
        (int, int | None),
        (None, int),
    ],
    ids=str,
)
def test_event_types_of_any_type_are_told_apart(own, first, second):
    EventType("a", first, registry=own)
    EventType("a", first, registry=own)  # the same once more is a reload
    with pytest.raises(DuplicateEventError) as refusal:
        EventType("a", second, registry=own)
    assert (refusal.value.first, refusal.value.second) == (first, second)


def test_event_types_are_named_so_that_a_reader_can_tell_them(own):
    EventType("a", list[int], registry=own)
    with pytest.raises(DuplicateEventError, match=r"list\[int\].*list\[str\]"):
        EventType("a", list[str], registry=own)


def test_a_model_of_the_same_name_in_another_place_is_another(own):
    def make() -> type[BaseModel]:
        class Order(BaseModel):
            pass

        return Order

    own.register("order.placed")(Order)
    with pytest.raises(DuplicateEventError):
        own.register("order.placed")(make())


def test_the_same_place_replaces_as_a_reload_does(own):
    def make() -> type[BaseModel]:
        class Order(BaseModel):
            pass

        return Order

    first, second = make(), make()
    own.register("order.placed")(first)
    own.register("order.placed")(second)
    assert own["order.placed"] is second


async def test_an_instance_of_the_replaced_model_arrives_as_the_new_one():
    def make() -> type[BaseModel]:
        class Reloaded(BaseModel):
            __event_name__ = "reloaded"
            id: int = 1

        return Reloaded

    first = registry.register(make())
    second = registry.register(make())
    async with EventBus():
        assert type(dispatch(first()).payload) is second
        assert type(dispatch(second()).payload) is second


def test_a_module_may_be_reloaded(tmp_path, monkeypatch):
    module_file = tmp_path / "reloaded_events.py"
    text = """
from fastapi_events import EventModel, EventType

class Order(EventModel, name="order.placed"):
    id: int

SCORES = EventType("scores", list[int])
"""
    module_file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the second text is as old as the first
    module = importlib.import_module("reloaded_events")
    try:
        before = module.Order
        module_file.write_text(text.replace("id: int", "number: int"))
        importlib.reload(module)
        assert module.Order is not before
        assert registry["order.placed"] is module.Order
        assert module.SCORES([1]).payload == [1]
        assert Event.from_json(Event("order.placed", {"number": 1}).to_json()).payload == module.Order(number=1)
    finally:
        del sys.modules["reloaded_events"]


# A Mapping


def test_it_is_a_mapping(own):
    EventType("scores", list[int], registry=own)
    own.register("order.placed")(Order)
    assert isinstance(own, Mapping)
    assert list(own) == list(own.keys()) == ["scores", "order.placed"]
    assert list(own.values()) == [list[int], Order]
    assert list(own.items()) == [("scores", list[int]), ("order.placed", Order)]
    assert len(own) == 2
    assert own["order.placed"] is own[Names.PLACED] is own.get(Names.PLACED) is Order
    assert "scores" in own
    assert Names.PLACED in own
    assert repr(own) == f"EventPayloadSchemaRegistry({dict(own)!r})"


def test_an_unknown_name_is_absent(own):
    assert "order.placed" not in own
    assert Names.PLACED not in own
    assert own.get("order.placed") is None
    assert own.get("order.placed", Order) is Order
    with pytest.raises(KeyError, match="order.placed"):
        own["order.placed"]


@pytest.mark.parametrize(
    "key",
    [None, "", 5, Order],
    ids=["None", "empty", "number", "class"],
)
def test_what_is_no_name_is_not_in_it(own, key):
    own.register("order.placed")(Order)
    assert (key in own) is False


def test_it_may_be_derived_from(own):
    class MyRegistry(EventPayloadSchemaRegistry):
        pass

    mine = MyRegistry()
    mine.register("order.placed")(Order)
    assert dict(mine) == {"order.placed": Order}
    assert repr(mine).startswith("MyRegistry(")
    assert len(own) == 0


# Several registries


def test_registries_do_not_see_each_other(own):
    own.register("a")(Order)
    registry.register("a")(Scores)
    assert own["a"] is Order
    assert registry["a"] is Scores


async def test_a_registry_that_is_empty_is_used_and_not_the_default(own):
    registry.register("a")(Scores)
    async with EventBus() as bus:
        assert dispatch("a", ["1"]).payload == Scores([1])
        assert dispatch("a", "no list", payload_schema_registry=own).payload == "no list"
        assert bus.dispatch("a", ["1"], payload_schema_registry=own).payload == ["1"]
        with pytest.raises(ValidationError):
            dispatch("a", "no list")
    async with EventBus(registry=own) as bus:
        assert dispatch("a", ["1"]).payload == ["1"]
        assert dispatch("a", ["1"], payload_schema_registry=registry).payload == Scores([1])
    written = Event("a", ["1"]).to_json()
    assert Event.from_json(written).payload == Scores([1])
    assert Event.from_json(written, registry=own).payload == ["1"]


async def test_an_event_type_may_live_in_a_registry_of_its_own(own):
    scores = EventType("scores", list[int], registry=own)
    assert "scores" in own
    assert "scores" not in registry
    async with EventBus():
        assert dispatch(scores, ["1"]).payload == [1]
        assert dispatch("scores", ["1"]).payload == ["1"]


async def test_a_model_that_is_registered_in_the_registry_needs_no_name_of_its_own(own):
    own.register("order.placed")(Order)
    async with EventBus(registry=own):
        assert dispatch(Order()).name == "order.placed"
    async with EventBus():
        assert dispatch(Order(), payload_schema_registry=own).name == "order.placed"
        with pytest.raises(EventNameMissingError, match=r"Order has no event name: pass event_name="):
            dispatch(Order())


async def test_a_model_of_several_names_must_be_told_which(own):
    own.register("first")(own.register("second")(Order))
    async with EventBus(registry=own):
        with pytest.raises(EventNameMissingError, match=r"several event names \(second, first\): pass event_name="):
            dispatch(Order())
        assert dispatch(Order(), event_name="first").name == "first"


# isolated()


def test_what_is_registered_in_a_block_is_forgotten(own):
    own.register("kept")(Order)
    with own.isolated() as inner:
        assert inner is own
        own.register("forgotten")(Scores)
        assert dict(own) == {"kept": Order, "forgotten": Scores}
    assert dict(own) == {"kept": Order}
    own.register("forgotten")(Order)


def test_a_block_is_forgotten_whatever_ends_it(own):
    with pytest.raises(ZeroDivisionError), own.isolated():
        own.register("forgotten")(Order)
        _ = 1 / 0
    assert len(own) == 0


def test_blocks_may_be_nested(own):
    with own.isolated():
        own.register("outer")(Order)
        with own.isolated():
            own.register("inner")(Order)
        assert list(own) == ["outer"]
    assert list(own) == []


def test_a_model_that_was_replaced_in_a_block_is_back_after_it(own):
    def make() -> type[BaseModel]:
        class Order(BaseModel):
            pass

        return Order

    first = own.register("order.placed")(make())
    with own.isolated():
        own.register("order.placed")(make())
    assert own["order.placed"] is first


def test_event_models_of_a_block_are_forgotten():
    with registry.isolated():

        class Temporary(EventModel, name="temporary"):
            pass

        assert registry["temporary"] is Temporary
    assert "temporary" not in registry


async def test_after_the_block_a_model_of_it_has_no_schema():
    with registry.isolated():

        class Temporary(EventModel, name="temporary", version=2):
            pass

        async with EventBus():
            assert dispatch(Temporary()).version == 2
    async with EventBus():
        event = dispatch(Temporary())
    assert (event.name, event.version) == ("temporary", None)


# EventModel


def test_the_class_names_and_registers_itself():
    class OrderPlaced(EventModel, name="order.placed", version=2):
        id: int

    class OrderPaid(EventModel):
        id: int

    class OrderShipped(EventModel, name=Names.PLACED.value + ".too"):
        pass

    assert OrderPlaced.__event_name__ == "order.placed"
    assert OrderPaid.__event_name__ == "OrderPaid"
    assert OrderShipped.__event_name__ == "order.placed.too"
    assert registry["order.placed"] is OrderPlaced
    assert registry["OrderPaid"] is OrderPaid


async def test_the_version_is_on_its_events():
    class Second(EventModel, name="second", version=2):
        id: int = 1

    class Unversioned(EventModel, name="unversioned"):
        id: int = 1

    class Third(Second, name="third"):
        pass

    async with EventBus():
        assert dispatch(Second()).version == dispatch("second", {"id": 1}).version == 2
        assert dispatch(Second(), validate_payload=False).version == 2
        assert dispatch(Unversioned()).version is None
        assert dispatch(Third()).version is None  # another event, with versions of its own
        assert dispatch(EventType("typed", list[int], version=4), [1]).version == 4


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.5], ids=repr)
def test_a_version_that_is_no_integer_from_1_is_refused(version):
    with pytest.raises(ConfigurationError, match="version"):

        class Order(EventModel, name="order", version=version):
            pass


def test_an_event_name_in_the_body_is_taken_too():
    class OrderPlaced(EventModel):
        __event_name__ = "order.placed"

    assert registry["order.placed"] is OrderPlaced


def test_a_name_that_is_empty_does_not_mean_the_name_of_the_class():
    with pytest.raises(EventNameMissingError):

        class Order(EventModel, name=""):
            pass

    with pytest.raises(EventNameMissingError):

        class Parcel(EventModel):
            __event_name__ = ""

    assert not {"", "Order", "Parcel"} & set(registry)


def test_it_is_frozen():
    class OrderPlaced(EventModel, name="order.placed"):
        id: int

    event = OrderPlaced(id=1)
    with pytest.raises(ValidationError, match="frozen"):
        event.id = 2  # type: ignore[misc]
    assert hash(event) == hash(OrderPlaced(id=1))


def test_an_abstract_class_is_no_event():
    before = set(registry)

    class OrderEvent(EventModel, abstract=True):
        order_id: int

    class OrderPlaced(OrderEvent, name="order.placed"):
        pass

    class OrderPaid(OrderEvent):
        amount: int

    assert "OrderEvent" not in registry
    assert {name: registry[name] for name in registry.keys() - before} == {
        "order.placed": OrderPlaced,
        "OrderPaid": OrderPaid,
    }


async def test_an_abstract_event_cannot_be_dispatched_without_a_name():
    class OrderEvent(EventModel, abstract=True):
        order_id: int = 1

    async with EventBus():
        with pytest.raises(EventNameMissingError, match="OrderEvent has no event name: pass event_name="):
            dispatch(OrderEvent())
        assert dispatch(OrderEvent(), event_name="order.seen").payload == OrderEvent()


def test_derived_events_are_events_of_their_own():
    class OrderPlaced(EventModel, name="order.placed"):
        id: int

    class GiftPlaced(OrderPlaced, name="gift.placed"):
        wrapping: str

    class Later(OrderPlaced):
        pass

    assert (registry["order.placed"], registry["gift.placed"], registry["Later"]) == (OrderPlaced, GiftPlaced, Later)
    assert OrderPlaced.__event_name__ == "order.placed"


def test_a_model_of_the_api_becomes_an_event():
    class UserOut(BaseModel):
        id: int

    class UserCreated(UserOut, EventModel, name="user.created"):
        pass

    assert registry["user.created"] is UserCreated
    assert UserCreated.model_config["frozen"] is True
    assert not hasattr(UserOut, "__event_name__")


async def test_specialisations_of_a_generic_event_are_that_event():
    class Page(EventModel, Generic[T], name="page", version=3):
        items: list[T]

    class Names_(Page[str], name="page.of_names"):
        pass

    async with EventBus():
        event = dispatch(Page[int](items=["1"]))
        named = dispatch(Names_(items=["a"]))
    assert registry["page"] is Page
    assert not [name for name in registry if "[" in name]
    assert (event.name, event.version, event.payload.items) == ("page", 3, [1])
    assert type(event.payload) is Page[int]
    assert Event.from_json(event.to_json()) == event
    assert (named.name, registry["page.of_names"]) == ("page.of_names", Names_)


async def test_a_generic_event_without_a_name_is_named_after_its_class():
    class Box(EventModel, Generic[T]):
        content: T

    async with EventBus():
        assert dispatch(Box[int](content=1)).name == "Box"
    assert registry["Box"] is Box


def test_two_events_of_one_name_are_refused_and_the_first_stays():
    class OrderPlaced(EventModel, name="order.placed"):
        pass

    with pytest.raises(DuplicateEventError, match=r"OrderPlaced.*Impostor cannot have it"):

        class Impostor(EventModel, name="order.placed"):
            pass

    assert registry["order.placed"] is OrderPlaced


def test_default_names_collide_too():
    def first() -> type[EventModel]:
        class OrderPlaced(EventModel):
            pass

        return OrderPlaced

    def second() -> type[EventModel]:
        class OrderPlaced(EventModel):
            pass

        return OrderPlaced

    first()
    with pytest.raises(DuplicateEventError, match=r"first.*OrderPlaced.*second.*OrderPlaced"):
        second()


@pytest.mark.parametrize("options", [{"nmae": "a"}, {"name": "a", "abstrct": True}, {"VERSION": 1}], ids=str)
def test_an_unknown_class_keyword_names_itself_and_the_known_ones(options):
    unknown = [key for key in options if key != "name"]
    with pytest.raises(ConfigurationError) as refusal:
        type(EventModel)("Order", (EventModel,), {"__module__": __name__, "__qualname__": "Order"}, **options)
    assert str(refusal.value).startswith(f"class Order has the unknown keyword {unknown[0]}")
    for known in ("name", "version", "abstract", "deliver_on"):
        assert known in str(refusal.value)
    assert "a" not in registry


def test_an_unknown_class_keyword_is_refused_below_an_abstract_class_too():
    class OrderEvent(EventModel, abstract=True):
        pass

    with pytest.raises(ConfigurationError, match="unknown keyword verison"):

        class OrderPlaced(OrderEvent, name="order.placed", verison=2):
            pass

    assert "order.placed" not in registry


def test_keywords_of_pydantic_and_its_config_work():
    class OrderPlaced(EventModel, name="order.placed", title="An order", str_strip_whitespace=True):
        model_config = ConfigDict(extra="forbid")
        sku: str

    assert OrderPlaced(sku=" a ").sku == "a"
    assert OrderPlaced.model_config["title"] == "An order"
    assert OrderPlaced.model_config["frozen"] is True
    with pytest.raises(ValidationError, match="extra_forbidden"):
        OrderPlaced(sku="a", more=1)  # type: ignore[call-arg]


async def test_a_forward_reference_may_be_resolved_later():
    class Order(EventModel, name="order"):
        line: "LateLine"

    class LateLine(BaseModel):
        sku: str

    Order.model_rebuild(_types_namespace={"LateLine": LateLine})
    async with EventBus():
        assert dispatch("order", {"line": {"sku": "a"}}).payload == Order(line=LateLine(sku="a"))


# Plain models with a name


@pytest.mark.parametrize("model", [Named, ClassNamed, AnnotatedName, MemberNamed])
async def test_a_plain_model_with_a_name_is_dispatched_by_it(model):
    received: list[Event[Any]] = []
    handler = LocalHandler()

    @handler.register(model)
    async def subscriber(event: Event[Any]) -> None:
        received.append(event)

    async with EventBus([handler]) as bus:
        sent = bus.dispatch(model(id=2))
    assert received == [sent]
    assert type(received[0].payload) is model
    assert sent.name == (model.__event_name__ if isinstance(model.__event_name__, str) else "order.placed")


async def test_a_plain_model_is_validated_once_it_is_registered():
    async with EventBus():
        assert dispatch("order.named", {"id": "x"}).payload == {"id": "x"}
        registry.register(Named)
        assert dispatch("order.named", {"id": "2"}).payload == Named(id=2)
        with pytest.raises(ValidationError):
            dispatch("order.named", {"id": "x"})


# What JSON cannot bring back


class Excluded(BaseModel):
    id: int
    password: str = Field(default="", exclude=True)


class Secret(BaseModel):
    password: SecretStr


class SecretRaw(BaseModel):
    key: SecretBytes


class SecretAnnotated(BaseModel):
    password: Annotated[SecretStr, Field(min_length=1)]


class Computed(BaseModel, extra="forbid"):
    id: int

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.id


class SecretOrNone(BaseModel):
    password: SecretStr | None = None


class Secrets(BaseModel):
    passwords: list[SecretStr] = []


class GenericSecret(BaseModel):
    pin: pydantic.Secret[int]


class SecretWithin(BaseModel):
    secret: Secret


class ComputedWithin(BaseModel):
    lines: list[Computed]


class Harmless(BaseModel):
    id: int

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.id


@pytest.mark.parametrize(
    "model, field",
    [
        (Excluded, "password"),
        (Secret, "password"),
        (SecretRaw, "key"),
        (SecretAnnotated, "password"),
        (Computed, "double"),
        (SecretOrNone, "password"),
        (Secrets, "passwords"),
        (GenericSecret, "pin"),
        (SecretWithin, "secret"),
        (ComputedWithin, "lines"),
    ],
)
def test_a_model_that_json_cannot_bring_back_is_registered_with_a_warning(own, model, field):
    with pytest.warns(UserWarning, match=f"{model.__name__} does not come back from its own JSON, because of {field}:"):
        own.register(model, event_name="a")
    assert own["a"] is model


@pytest.mark.parametrize("model", [Order, Named, Scores, Harmless])
def test_other_models_are_registered_without_a_warning(own, model):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        own.register(model, event_name="a")
    assert warned == []


def event_model(_own: object) -> None:
    class Hidden(EventModel):
        password: SecretStr


AT_THE_USERS_LINE = {
    "register(model)": lambda own: own.register(Secret, event_name="a"),
    "register(name)(model)": lambda own: own.register("a")(Secret),
    "EventType": lambda own: EventType("a", Secret, registry=own),
    "register()(model)": lambda own: own.register(event_name="a")(Secret),
    "EventModel": event_model,
}


@pytest.mark.parametrize("register", AT_THE_USERS_LINE.values(), ids=AT_THE_USERS_LINE)
def test_the_warning_shows_the_line_of_the_user(own, register):
    with pytest.warns(UserWarning, match="does not come back") as warned:
        register(own)
    (warning,) = warned
    assert warning.filename == __file__
    assert warning.lineno in {line for *_, line in register.__code__.co_lines()}
