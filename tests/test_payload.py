"""What becomes of a payload at dispatch: its JSON, its copies, and what is refused."""

import asyncio
import copy
import dataclasses
import math
import re
import threading
import uuid
from collections import Counter, OrderedDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from functools import cached_property
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pydantic
import pytest
from hypothesis import example, given, settings, strategies as st
from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SerializeAsAny,
    computed_field,
    field_serializer,
)
from pydantic_core import PydanticSerializationError, to_json

from fastapi_events import BaseEventHandler, Event, EventBus, LocalHandler, PayloadError, dispatch

# Shared by the tests below


class Line(BaseModel):
    sku: str = "a"
    tags: list[Any] = []


class Frozen(BaseModel, frozen=True):
    sku: str = "a"


class Derived(Line):
    extra: int = 1


@dataclasses.dataclass
class Data:
    value: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenData:
    value: Any = None


@pydantic.dataclasses.dataclass
class PydanticData:
    value: int = 1


class Point(NamedTuple):
    x: Any
    y: int = 0


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 2


class Word(StrEnum):
    YES = "yes"


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.payloads: list[Any] = []

    async def handle(self, event: Event[Any]) -> None:
        self.payloads.append(event.payload)


class Subscriber:
    """Keeps each payload, and then does with it what it is told."""

    def __init__(self, then: Callable[[Any], object] = lambda payload: None) -> None:
        self.payloads: list[Any] = []
        self.then = then

    async def __call__(self, event: Event[Any]) -> None:
        self.payloads.append(copy.deepcopy(event.payload))
        self.then(event.payload)


def bus_of(*subscribers: Callable[..., Any]) -> EventBus:
    handler = LocalHandler()
    for subscriber in subscribers:
        handler.register(subscriber)
    return EventBus([handler])


@pytest.fixture(scope="module")
def quiet() -> EventBus:
    """Return a bus that delivers nothing: what its dispatch() returns or raises is all that counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTAPI_EVENTS_DISABLE_DISPATCH", "1")
        return EventBus()


def data_of(event: Event[Any]) -> str:
    return event.to_json().partition(',"data":')[2][:-1]


# As pydantic writes it


def is_written(payload: object) -> bool:
    """Tell whether the installed pydantic writes it."""
    try:
        to_json(payload)
    except PydanticSerializationError:
        return False
    return True


WRITES_ADDRESSES = is_written(IPv4Address("127.0.0.1"))  # from 2.12
WRITES_DEQUES = is_written(deque())  # from 2.14; before, only those in models

AT = datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)
BARE: dict[str, Any] = {
    "bytes": b"raw \xc3\xa9",
    "bytearray": bytearray(b"raw"),
    "Decimal": Decimal("1.10"),
    "Decimal NaN": Decimal("NaN"),
    "datetime": AT,
    "naive datetime": AT.replace(tzinfo=None),
    "date": date(2026, 1, 31),
    "time": time(12, 30),
    "timedelta": timedelta(days=1, microseconds=5),
    "UUID": uuid.UUID(int=7),
    "Enum": Colour.RED,
    "IntEnum": Level.HIGH,
    "StrEnum": Word.YES,
    "complex": 1 + 2j,
    "set": {1},
    "frozenset": frozenset({"a"}),
    "tuple": (1, "a", None),
    "named tuple": Point(1),
    **({"deque": deque([1, 2], maxlen=3)} if WRITES_DEQUES else {}),
    "defaultdict": defaultdict(list, a=[1]),
    "OrderedDict": OrderedDict(b=1, a=2),
    "Counter": Counter("aab"),
    "dataclass": Data([1, Data()]),
    "frozen dataclass with slots": FrozenData((1, {})),
    "dataclass of pydantic": PydanticData(2),
    "model": Line(tags=[{"a": 1}]),
    "frozen model": Frozen(),
    "root model": RootModel[list[int]]([1]),
    **({"address": IPv4Address("127.0.0.1")} if WRITES_ADDRESSES else {}),
    "url": AnyUrl("https://example.com/"),
    "pattern": re.compile("a+"),
    "keys that are no strings": {1: 1, None: 2, 1.5: 3, (1, 2): 4, Colour.RED: 5, uuid.UUID(int=7): 6, AT: 7},
    "words that look like numbers": {"NaN": "Infinity", "a": ["-Infinity, NaN"]},
}


@pytest.mark.parametrize("payload", BARE.values(), ids=BARE)
@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"a": [payload]}], ids=["bare", "nested"])
async def test_a_payload_is_written_as_pydantic_writes_it_and_arrives_as_it_is(payload, wrap):
    recorder = Recorder()
    expected = to_json(wrap(payload)).decode()
    async with EventBus([recorder]):
        event = dispatch("a", wrap(payload))
    assert data_of(event) == expected
    assert repr(recorder.payloads) == repr([wrap(payload)])
    (arrived,) = recorder.payloads
    assert type(arrived) is type(wrap(payload))
    assert type(arrived if wrap(payload) is payload else arrived["a"][0]) is type(payload)


class Aliased(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    user_name: str = Field(default="ann", alias="userName")


class Written(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", ser_json_timedelta="float")
    raw: bytes = b"\xff"
    took: timedelta = timedelta(seconds=1.5)
    at: datetime = AT
    hidden: int = Field(default=1, exclude=True)

    @computed_field
    @property
    def size(self) -> int:
        return len(self.raw)

    @field_serializer("at")
    def only_the_day(self, at: datetime) -> str:
        return at.date().isoformat()


class AnyFields(BaseModel):
    anything: Any = None
    line: Line = Line()
    as_any: SerializeAsAny[Line] = Line()


class Open(BaseModel, extra="allow"):
    _note: list[int] = PrivateAttr(default_factory=lambda: [1])


@pytest.mark.parametrize(
    "make",
    [
        Aliased,
        Written,
        lambda: AnyFields(anything=[Written(), {1, 2}, Colour.RED], line=Derived(), as_any=Derived()),
        lambda: Open(more=[Line()]),
        lambda: RootModel[dict[str, Line]]({"a": Line()}),
        lambda: AnyFields(anything={"ratio": math.nan}),  # null, as the model says by its defaults
    ],
    ids=["aliases", "serializers", "any fields", "extra fields", "root", "NaN in a model"],
)
def test_a_model_is_written_as_it_writes_itself(quiet, make):
    assert data_of(quiet.dispatch("a", make())) == make().model_dump_json()


@given(
    payload=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.binary().map(lambda raw: raw.hex().encode())
        | st.decimals()
        | st.datetimes()
        | st.uuids()
        | st.sampled_from([Colour.RED, Level.HIGH, Word.YES]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
            | st.tuples(inner, inner)
            | st.builds(Data, inner)
            | st.builds(AnyFields, anything=inner)
        ),
        max_leaves=10,
    )
)
def test_any_payload_is_written_as_pydantic_writes_it(quiet, payload):
    assert data_of(quiet.dispatch("a", payload)) == to_json(payload).decode()


# Refused, with the path


def chain_of(*steps: Callable[[Any], Any], end: Any) -> Any:
    for step in reversed(steps):
        end = step(end)
    return end


def generator() -> Iterator[int]:
    yield 1


CULPRITS: dict[str, Callable[[], Any]] = {
    "object": object,
    "function": lambda: generator,
    "class": lambda: Line,
    "exception": lambda: ValueError("x"),
    "lock": threading.Lock,
    "bytes that are no UTF-8": lambda: b"\xff",
    "text that is no UTF-8": lambda: "\ud800",
    "range": lambda: range(3),
    "Enum of an object": lambda: Enum("Odd", {"A": object()}).A,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "generator": generator,
    "iterator": lambda: iter([1]),
    "map": lambda: map(str, [1]),
    "zip": lambda: zip([1], [2], strict=True),
}
PLACES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "payload": (lambda part: part, "payload"),
    "dict": (lambda part: {"a": 1, "b'": part}, """payload["b'"]"""),
    "number as key": (lambda part: {1: part}, "payload[1]"),
    "list": (lambda part: [1, part], "payload[1]"),
    "tuple": (lambda part: (1, part), "payload[1]"),
    "named tuple": (lambda part: Point(1, part), "payload[1]"),
    "set": (lambda part: {part}, "payload[0]"),
    "deque": (lambda part: deque([1, part]), "payload[1]"),
    "defaultdict": (lambda part: defaultdict(list, a=part), "payload['a']"),
    "dataclass": (Data, "payload.value"),
    "frozen dataclass": (FrozenData, "payload.value"),
    "model in a dict": (lambda part: {"m": [Line(tags=[part])]}, "payload['m'][0].tags[0]"),
    "everything": (
        lambda part: chain_of(lambda end: {"a": end}, lambda end: [end], Data, lambda end: (0, end), end=part),
        "payload['a'][0].value[1]",
    ),
}


@pytest.mark.parametrize(
    "culprit, place, path",
    [
        pytest.param(culprit, *PLACES[place], id=f"{kind} in {place}")
        for place in PLACES
        for kind, culprit in CULPRITS.items()
        if not (kind in ("NaN", "infinity") and "model" in place)  # for which a model writes null
    ],
)
def test_what_json_cannot_express_is_refused_with_the_path_to_it(quiet, culprit, place, path):
    part = culprit()
    with pytest.raises(PayloadError, match=f"^{re.escape(path)} cannot be written as JSON: ") as refusal:
        quiet.dispatch("a", place(part))
    assert refusal.value.path == path
    assert "convert it, or dispatch with opaque=True" in str(refusal.value)


def test_the_reason_is_told(quiet):
    for payload, reason in (
        ({"a": object()}, "Unable to serialize unknown type: <class 'object'>"),
        ([math.nan], "JSON has no nan"),
        ([-math.inf], "JSON has no -inf"),
        ([generator()], r"an iterator \(generator\) can be read only once: make a list of it"),
        ([b"\xff"], "invalid utf-8"),
    ):
        with pytest.raises(PayloadError, match=reason):
            quiet.dispatch("a", payload)


def test_a_refused_iterator_was_not_read(quiet):
    numbers = iter([1, 2])
    with pytest.raises(PayloadError):
        quiet.dispatch("a", {"numbers": numbers})
    assert list(numbers) == [1, 2]


def dict_in_itself() -> Any:
    payload: dict[str, Any] = {}
    payload["self"] = [payload]
    return payload


def list_in_itself() -> Any:
    payload: list[Any] = [1]
    payload.append({"a": payload})
    return {"list": payload}


def model_in_itself() -> Any:
    line = Line()
    line.tags.append((line,))
    return {"line": line}


def dataclass_in_itself() -> Any:
    data = Data()
    data.value = {"data": data}
    return data


@pytest.mark.parametrize(
    "make, path, kind",
    [
        (dict_in_itself, "payload['self'][0]", "dict"),
        (list_in_itself, "payload['list'][1]['a']", "list"),
        (model_in_itself, "payload['line'].tags[0][0]", "Line"),
        (dataclass_in_itself, "payload.value['data']", "Data"),
    ],
)
def test_a_cycle_is_refused_with_the_path_to_it(quiet, make, path, kind):
    with pytest.raises(PayloadError, match=rf"it contains itself \({kind}\)") as refusal:
        quiet.dispatch("a", make())
    assert refusal.value.path == path


def test_the_same_object_twice_is_no_cycle(quiet):
    twice = [1]
    event = quiet.dispatch("a", {"one": twice, "two": [twice, twice]})
    assert event.payload == {"one": [1], "two": [[1], [1]]}


@pytest.mark.parametrize("depth", [300, 5_000])
def test_what_is_nested_too_deeply_is_refused(quiet, depth):
    payload: list[Any] = []
    for _ in range(depth):
        payload = [payload]
    raised: Exception | None = None
    try:
        quiet.dispatch("a", payload)
    except (PayloadError, RecursionError) as error:  # not pytest.raises: pytest takes minutes to show such a traceback
        raised = error.with_traceback(None)
    assert isinstance(raised, PayloadError)
    assert raised.path.startswith("payload")


class Tree(BaseModel):
    parts: list["Tree"] = []


def tree(depth: int) -> Tree:
    return Tree(parts=[tree(depth - 1)] if depth else [])


@pytest.mark.parametrize(
    "make",
    [
        lambda: tree(100),
        lambda: {"fine": [{"id": number} for number in range(500)], "deep": tree(100)},
        lambda: {"fine": "[{" * 1_000, "deep": tree(100)},
        lambda: {"fine": [1] * 5_000, "large": 10**5_000},
        lambda: ["x" * 150, *range(7), {"large": -(10**4_300)}],
    ],
    ids=["model", "within much", "within text", "integer", "negative integer"],
)
def test_what_pydantic_writes_but_does_not_read_is_refused(quiet, make):
    with pytest.raises(PayloadError, match=r"cannot be written as JSON: .*(recursion limit exceeded|out of range)"):
        quiet.dispatch("a", make())


def test_what_only_looks_as_if_it_could_not_be_read_is_taken(quiet):
    for payload in (
        [{"lines": [{"id": number}]} for number in range(1_000)],
        ["[" * 5_000, "{" * 5_000],
        "9" * 10_000,
        {"digits": ["1" * 5_000, 10**4_299]},
        tree(99),  # 200 levels, but nothing in the last
    ):
        assert data_of(quiet.dispatch("a", payload)) == to_json(payload).decode()


@pytest.mark.parametrize("key", [object(), b"\xff"], ids=["object", "bytes"])
def test_a_key_that_json_cannot_express_is_refused_with_the_path_to_it(quiet, key):
    with pytest.raises(PayloadError) as refusal:
        quiet.dispatch("a", {"fine": 1, "a": [{key: 1}]})
    assert refusal.value.path.startswith("payload['a'][0]")


class Opaque(BaseModel, arbitrary_types_allowed=True):
    value: Any

    @field_serializer("value")
    def as_text(self, value: object) -> str:
        return type(value).__name__


@pytest.mark.parametrize(
    "model",
    [lambda: AnyFields(anything=math.nan), lambda: Opaque(value=object())],
    ids=["NaN as null", "object as text"],
)
def test_what_a_model_can_write_is_not_what_is_named(quiet, model):
    assert data_of(quiet.dispatch("a", {"model": model()}))
    with pytest.raises(PayloadError) as refusal:
        quiet.dispatch("a", {"model": model(), "bare": [math.nan]})
    assert refusal.value.path == "payload['bare'][0]"


def test_a_nan_that_a_model_writes_as_such_is_named(quiet):
    class Exact(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")
        ratio: float

    with pytest.raises(PayloadError) as refusal:
        quiet.dispatch("a", {"models": [Exact(ratio=1.0), Exact(ratio=math.nan)]})
    assert refusal.value.path == "payload['models'][1].ratio"


def test_a_dataclass_that_lacks_a_field_is_refused_with_the_path_to_it(quiet):
    @dataclasses.dataclass
    class Late:
        value: int = dataclasses.field(init=False)

    with pytest.raises(PayloadError) as refusal:
        quiet.dispatch("a", {"late": Late()})
    assert refusal.value.path.startswith("payload['late']")


def test_an_object_whose_copying_fails_is_refused_with_the_path_to_it(quiet):
    class Odd(UserList[int]):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("not me")

    class OddDict(dict[str, Any]):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("not me")

    with pytest.raises(PayloadError, match="UserList|Odd"):
        quiet.dispatch("a", {"odd": Odd([1])})
    with pytest.raises(PayloadError, match="not me"):
        quiet.dispatch("a", {"odd": OddDict(a=1)})


def test_a_mapping_that_pydantic_does_not_know_is_refused(quiet):
    with pytest.raises(PayloadError, match="mappingproxy"):
        quiet.dispatch("a", MappingProxyType({"a": 1}))


# Copied

Deque = deque if WRITES_DEQUES else list
ATOMS = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([Colour.RED, Frozen(), AT])
PAYLOADS = st.recursive(
    # sets of one: the order of a set may be another in its copy
    st.lists(ATOMS, max_size=3) | st.sets(st.integers(), max_size=1) | st.just(b"a").map(bytearray),
    lambda inner: (
        st.lists(inner | ATOMS, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner | ATOMS, max_size=3)
        | st.tuples(inner, ATOMS)
        | st.lists(inner, max_size=2).map(Deque)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2).map(lambda items: defaultdict(list, items))
        | st.builds(Point, inner)
        | st.builds(Data, inner)
        | st.builds(FrozenData, inner)
        | st.builds(Line, tags=st.lists(inner, max_size=2))
        | st.builds(lambda value: Open(more=value), inner)
        | st.builds(RootModel[Any], inner)
    ),
    max_leaves=8,
)


def parts_of(value: Any) -> Iterator[Any]:
    """Return whatever in a payload can be changed, at any depth."""
    if isinstance(value, (list, deque, set, bytearray, dict, Data, Line, Open, RootModel)):
        yield value
    if isinstance(value, dict):
        inner: Any = value.values()
    elif isinstance(value, (list, deque, tuple)):
        inner = value
    elif isinstance(value, (Data, FrozenData)):
        inner = [value.value]
    elif isinstance(value, BaseModel):
        inner = [*value.__dict__.values(), *(value.model_extra or {}).values()]
        inner += (value.__pydantic_private__ or {}).values()
    else:
        return
    for part in inner:
        yield from parts_of(part)


def vandalise(payload: Any) -> None:
    """Change whatever can be changed."""
    for part in list(parts_of(payload)):
        match part:
            case list() | deque():
                part.append("vandal")
            case set():
                part.add("vandal")
            case bytearray():
                part.extend(b"vandal")
            case dict():
                part["vandal"] = 1
            case Data():
                part.value = "vandal"
            case Line():
                part.sku = "vandal"
            case Open():
                part.vandal = 1
            case RootModel():
                part.root = "vandal"


def test_the_vandal_of_these_tests_finds_everything():
    payload = [
        Data({"a": deque([{1}])}),
        Line(tags=[bytearray()]),
        Open(more=[]),
        RootModel[Any](([],)),
        FrozenData([]),
    ]
    kinds = [type(part).__name__ for part in parts_of(payload)]
    assert sorted(kinds) == sorted(
        [*["list"] * 6, "Data", "dict", "deque", "set", "Line", "bytearray", "Open", "RootModel[Any]"]
    )
    parts = list(parts_of(payload))
    before = [repr(part) for part in parts]
    vandalise(payload)
    assert not any(repr(part) == old for part, old in zip(parts, before, strict=True))


EVERYTHING: list[Any] = [
    {"a": Data([{1}]), "b": (Line(tags=[[]]), Open(more=[[]]))},
    Deque([bytearray(b"a"), defaultdict(list, a=[1]), Point([1]), FrozenData([1]), RootModel[Any]([1])]),
]


@given(payload=PAYLOADS)
@example(payload=EVERYTHING)
@settings(max_examples=50, deadline=None)
async def test_nobody_shares_anything_that_can_be_changed(payload):
    arrived: list[Any] = []

    async def first(event: Event[Any]) -> None:
        arrived.append(event.payload)

    async def second(event: Event[Any]) -> None:
        arrived.append(event.payload)

    before = copy.deepcopy(payload)
    handler, recorder = LocalHandler(), Recorder()
    handler.register(first)
    handler.register(second)
    async with EventBus([handler, recorder]):
        event = dispatch("a", payload)
    arrived += recorder.payloads
    assert repr(payload) == repr(before)  # the caller's is as it was
    assert [repr(other) for other in arrived] == [repr(before)] * 3
    owned = [{id(part) for part in parts_of(everyone)} for everyone in (payload, *arrived)]
    assert not any(owned[one] & owned[other] for one in range(4) for other in range(one))
    assert data_of(event) == to_json(event.payload).decode()


@given(payload=PAYLOADS)
@example(payload=EVERYTHING)
@settings(max_examples=50, deadline=None)
async def test_what_the_caller_changes_later_is_not_seen(payload):
    subscriber, before = Subscriber(), copy.deepcopy(payload)
    async with bus_of(subscriber) as bus:
        async with bus.scope():
            event = dispatch("a", payload)
            written = event.to_json()
            vandalise(payload)
    assert repr(subscriber.payloads) == repr([before])
    assert repr(event.payload) == repr(before)
    assert event.to_json() == written


@given(payload=PAYLOADS)
@example(payload=EVERYTHING)
@settings(max_examples=50, deadline=None)
async def test_what_a_subscriber_changes_is_not_seen_by_others_or_the_caller(payload):
    first, second, before = Subscriber(vandalise), Subscriber(vandalise), copy.deepcopy(payload)
    async with bus_of(first, second) as bus:
        async with bus.scope():
            event = dispatch("a", payload)
    assert repr(first.payloads) == repr(second.payloads) == repr([before])
    assert repr(payload) == repr(before)
    assert data_of(event) == to_json(event.payload).decode()


async def test_a_copied_model_is_whole():
    class Session(BaseModel, extra="allow"):
        id: int = 1
        note: str = "none"
        _secret: list[int] = PrivateAttr(default_factory=list)

        @property
        def secret(self) -> list[int]:
            return self._secret

    session = Session(note="x", more=[1])
    session.secret.append(7)
    recorder = Recorder()
    async with EventBus([recorder]):
        dispatch("a", session)
    (arrived,) = recorder.payloads
    assert type(arrived) is Session
    assert arrived == session
    assert arrived is not session
    assert arrived.model_fields_set == {"note", "more"}
    assert (arrived.more, arrived.secret) == ([1], [7])
    assert arrived.secret is not session.secret
    assert session.model_dump() == {"id": 1, "note": "x", "more": [1]}


async def test_what_a_model_has_computed_is_copied_too():
    class Order(BaseModel):
        lines: list[int]

        @cached_property
        def doubled(self) -> list[int]:
            return [2 * line for line in self.lines]

    order = Order(lines=[1])
    assert order.doubled == [2]
    recorder = Recorder()
    async with EventBus([recorder]) as bus, bus.scope():
        dispatch("a", order)
        order.doubled.append(3)
    assert recorder.payloads[0].doubled == [2]


async def test_what_a_dataclass_has_besides_its_fields_is_copied_too():
    @dataclasses.dataclass
    class Cart:
        id: int

        def __post_init__(self) -> None:
            self.log = ["made"]

    cart, recorder = Cart(1), Recorder()
    async with EventBus([recorder]) as bus, bus.scope():
        dispatch("a", cart)
        cart.log.append("changed later")
    assert recorder.payloads[0].log == ["made"]


# Shared


class Address(BaseModel, frozen=True):
    city: str = "x"
    zip_code: int | None = None


class Node(BaseModel, frozen=True):
    parent: Optional["Node"] = None


class Immutable(BaseModel, frozen=True):
    id: int = 1
    ratio: float | None = None
    at: datetime = AT
    amount: Decimal = Decimal(1)
    key: uuid.UUID = uuid.UUID(int=7)
    colour: Colour = Colour.RED
    kind: Literal["a", "b"] = "a"
    short: Annotated[str, Field(max_length=5)] = "a"
    pair: tuple[int, str] = (1, "a")
    many: tuple[Address, ...] = (Address(),)
    tags: frozenset[str] = frozenset("a")
    raw: bytes = b"a"
    address: Address | None = Address()
    node: Node = Node(parent=Node())


IMMUTABLE: dict[str, Callable[[], Any]] = {
    "frozen model": Frozen,
    "frozen model of many types": Immutable,
    "recursive frozen model": lambda: Node(parent=Node()),
    "frozen root": lambda: type("Numbers", (RootModel[tuple[int, ...]],), {"model_config": {"frozen": True}})((1, 2)),
    "text": lambda: "long" * 100,
    "datetime": lambda: datetime(2026, 1, 31, tzinfo=UTC),
    "Enum": lambda: Colour.RED,
}


@pytest.mark.parametrize("make", IMMUTABLE.values(), ids=IMMUTABLE)
async def test_what_nobody_can_change_is_shared(make):
    payload, arrived = make(), []

    async def first(event: Event[Any]) -> None:
        arrived.append(event.payload)

    async def second(event: Event[Any]) -> None:
        arrived.append(event.payload)

    async with bus_of(first, second):
        event = dispatch("a", payload)
    assert event.payload is payload
    assert len(arrived) == 2
    assert all(one is payload for one in arrived)


async def test_a_frozen_model_within_a_container_is_shared():
    order, recorder = Immutable(), Recorder()
    payload = {"orders": [order], "line": Data(order)}
    async with EventBus([recorder]):
        dispatch("a", payload)
    (arrived,) = recorder.payloads
    assert arrived == payload
    assert arrived["orders"] is not payload["orders"]
    assert arrived["orders"][0] is arrived["line"].value is order


class FrozenList(BaseModel, frozen=True):
    parts: list[Any] = []


class FrozenDict(BaseModel, frozen=True):
    parts: dict[str, Any] = {}


class FrozenAny(BaseModel, frozen=True):
    parts: Any = None


class FrozenOpen(BaseModel, frozen=True, extra="allow"):
    pass


class FrozenOfLine(BaseModel, frozen=True):
    parts: Line | None = None


class FrozenOfTuple(BaseModel, frozen=True):
    parts: tuple[int, list[int]] = (1, [])


class FrozenOfNested(BaseModel, frozen=True):
    parts: FrozenList = FrozenList()


class FrozenWithPrivate(BaseModel, frozen=True):
    id: int = 1
    _parts: list[Any] = PrivateAttr(default_factory=list)

    @property
    def parts(self) -> list[Any]:
        return self._parts


def with_private(value: list[Any]) -> BaseModel:
    model = FrozenWithPrivate()
    model.parts.extend(value)
    return model


class FrozenOfFrozen(BaseModel, frozen=True):
    parts: Address = Address()


class AddressWithNotes(Address):
    notes: list[str] = []


def of_a_derived_class(value: list[Any]) -> FrozenOfFrozen:
    return FrozenOfFrozen(parts=AddressWithNotes(notes=value))


class FrozenOfMany(BaseModel, frozen=True):
    parts: tuple[tuple[FrozenOfFrozen, ...], ...] = ()


class FrozenComputed(BaseModel, frozen=True):
    one: Address | None = None

    @cached_property
    def parts(self) -> list[Any]:
        return []


def computed(value: list[Any]) -> BaseModel:
    model = FrozenComputed()
    model.parts.extend(value)
    return model


@pytest.mark.parametrize(
    "make, look",
    [
        (lambda value: FrozenList(parts=value), lambda model: model.parts),
        (lambda value: FrozenDict(parts={"a": value}), lambda model: model.parts["a"]),
        (lambda value: FrozenAny(parts=value), lambda model: model.parts),
        (lambda value: FrozenOpen(parts=value), lambda model: model.parts),
        (lambda value: FrozenOfLine(parts=Line(tags=value)), lambda model: model.parts.tags),
        (lambda value: FrozenOfTuple(parts=(1, value)), lambda model: model.parts[1]),
        (lambda value: FrozenOfNested(parts=FrozenList(parts=value)), lambda model: model.parts.parts),
        (lambda value: RootModel[list[int]](value), lambda model: model.root),
        (with_private, lambda model: model.parts),
        (of_a_derived_class, lambda model: model.parts.notes),
        (
            lambda value: FrozenOfMany(parts=((of_a_derived_class(value),),)),
            lambda model: model.parts[0][0].parts.notes,
        ),
        (computed, lambda model: model.parts),
    ],
    ids=["list", "dict", "Any", "extra", "model", "tuple", "nested", "root", "private", "derived", "deep", "computed"],
)
async def test_a_frozen_model_with_something_that_can_be_changed_is_copied(make, look):
    payload = make([])
    first, second = Subscriber(lambda model: look(model).append("vandal")), Subscriber()
    async with bus_of(first, second) as bus, bus.scope():
        dispatch("a", payload)
        look(payload).append("later")
    assert [look(model) for model in first.payloads + second.payloads] == [[], []]
    assert look(payload) == ["later"]


# Opaque


async def test_an_opaque_payload_is_the_object_itself():
    numbers = generator()
    cycle = dict_in_itself()
    arrived: list[Any] = []

    async def subscriber(event: Event[Any]) -> None:
        arrived.append(event.payload)

    payloads = [threading.Lock(), numbers, cycle, math.nan, [1], Line()]
    async with bus_of(subscriber) as bus, bus.scope():
        for payload in payloads:
            assert dispatch("a", payload, opaque=True).payload is payload
        payloads[4].append(2)  # type: ignore[attr-defined]
    assert [id(payload) for payload in arrived] == [id(payload) for payload in payloads]
    assert next(numbers) == 1
    assert arrived[4] == [1, 2]


def test_an_opaque_payload_is_written_only_if_json_can_express_it(quiet):
    with pytest.raises(PayloadError) as refusal:
        quiet.dispatch("a", {"lock": threading.Lock()}, opaque=True).to_json()
    assert refusal.value.path == "payload['lock']"
    assert data_of(quiet.dispatch("a", {"id": 1}, opaque=True)) == '{"id":1}'


async def test_a_queue_travels_opaquely_and_works():
    async def subscriber(event: Event[asyncio.Queue[int]]) -> None:
        event.payload.put_nowait(1)

    queue: asyncio.Queue[int] = asyncio.Queue()
    async with bus_of(subscriber):
        dispatch("a", queue, opaque=True)
        async with asyncio.timeout(5):
            assert await queue.get() == 1
