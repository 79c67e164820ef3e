"""The envelope: a pair with metadata, in memory and as a CloudEvent in JSON."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import example, given, settings, strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError
from typing_extensions import TypedDict

from fastapi_events import ConfigurationError, Event, EventPayloadSchemaRegistry, EventType, PayloadError

CORE_ATTRIBUTES = (
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "dataversion",
    "data",
)
ATTRIBUTES = ("name", "payload", "id", "time", "source", "subject", "version", "headers")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TEXT = st.text(min_size=1)
HEADERS = st.dictionaries(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20).filter(
        lambda name: name not in CORE_ATTRIBUTES
    ),
    st.text(),
    max_size=4,
)


class Line(BaseModel):
    sku: str
    count: int = 1


def whole() -> Event[dict[str, Any]]:
    """Return an event on which everything is set."""
    return Event(
        "order.placed",
        {"lines": [{"sku": "é"}]},
        id="0190b5a6-0000-7000-8000-000000000000",
        time=datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC),
        source="/shop",
        subject="order/1",
        version=2,
        headers={"tenant": "x", "correlationid": "1"},
    )


def attributes_of(event: Event[Any]) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ATTRIBUTES}


# A pair


def test_it_is_a_pair_that_unpacks():
    event = Event("order.placed", {"id": 1})
    name, payload = event
    assert (name, payload) == (event.name, event.payload) == (event[0], event[1]) == ("order.placed", {"id": 1})
    assert isinstance(event, tuple)
    assert len(event) == 2
    assert event == ("order.placed", {"id": 1})


def test_it_matches_by_position_and_by_attribute():
    def look(event: Event[Any]) -> object:
        match event:
            case Event("order.placed", Line(sku=sku)):
                return sku
            case Event(name, {"id": number}):
                return name, number
            case Event(subject="order/3"):
                return "by subject"
        return None

    assert look(Event("order.placed", Line(sku="a"))) == "a"
    assert look(Event("order.paid", {"id": 2})) == ("order.paid", 2)
    assert look(Event("order.paid", subject="order/3")) == "by subject"
    assert look(Event("order.placed", {})) is None


def test_equality_and_hash_look_at_name_and_payload_only():
    event, other = Event("a", (1, 2), subject="s", headers={"x": "1"}), Event("a", (1, 2), version=3)
    assert event.id != other.id
    assert event == other
    assert hash(event) == hash(other) == hash(("a", (1, 2)))
    assert len({event, other}) == 1
    assert event not in (Event("a", (1, 3)), Event("b", (1, 2)))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Event("a", [1]))


def test_json_dumps_gives_name_and_payload():
    assert json.dumps(whole()) == r'["order.placed", {"lines": [{"sku": "\u00e9"}]}]'


def test_what_is_not_given_has_a_default():
    event = Event("a")
    assert (event.payload, event.source, event.subject, event.version) == (None, "fastapi_events", None, None)
    assert dict(event.headers) == {}
    assert event.time.tzinfo is UTC


def test_its_repr_tells_it_from_others():
    assert repr(Event("a", {"b": 1}, id="7")) == "Event('a', {'b': 1}, id='7')"


@pytest.mark.parametrize("name", [*ATTRIBUTES, "colour", "__dict__"])
def test_nothing_can_be_set_or_deleted(name):
    event = whole()
    before = attributes_of(event)
    with pytest.raises(AttributeError, match=f"immutable: {name!r} cannot be set"):
        setattr(event, name, "other")
    with pytest.raises(AttributeError, match=f"immutable: {name!r} cannot be deleted"):
        delattr(event, name)
    assert attributes_of(event) == before


def test_items_and_headers_are_read_only():
    event = whole()
    with pytest.raises(TypeError):
        event[0] = "other"  # type: ignore[index]
    for headers in (event.headers, Event("a").headers):
        with pytest.raises(TypeError):
            headers["tenant"] = "y"  # type: ignore[index]


def test_later_changes_of_the_given_headers_go_unnoticed():
    given = {"tenant": "x"}
    event = Event("a", headers=given)
    given["tenant"] = "y"
    assert event.headers == {"tenant": "x"}


COPIES = pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda event, protocol=protocol: pickle.loads(pickle.dumps(event, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
    ids=["copy", "deepcopy", *(f"pickle {protocol}" for protocol in range(pickle.HIGHEST_PROTOCOL + 1))],
)


@COPIES
@pytest.mark.parametrize(
    "make", [whole, lambda: Event("a", Line(sku="b")), lambda: Event("a")], ids=["whole", "model", "empty"]
)
def test_a_copy_is_the_same_event(duplicate, make):
    event = make()
    taken = duplicate(event)  # before anyone has asked for the id
    assert type(taken) is Event
    assert attributes_of(taken) == attributes_of(event)
    assert type(taken.payload) is type(event.payload)
    assert taken.to_json() == event.to_json()


@COPIES
def test_the_headers_of_a_copy_are_read_only(duplicate):
    with pytest.raises(TypeError):
        duplicate(whole()).headers["tenant"] = "y"


def test_a_deep_copy_has_a_payload_of_its_own():
    event = whole()
    taken = copy.deepcopy(event)
    taken.payload["lines"].clear()
    assert event.payload == whole().payload
    assert copy.copy(event).payload is event.payload


def test_with_headers_is_the_same_event_with_more_headers():
    event = Event("a", {"b": 1}, subject="s", headers={"tenant": "x", "kept": "1"})
    more = event.with_headers({"tenant": "y", "attempt": "2"})
    assert attributes_of(more) == {
        **attributes_of(event),
        "headers": {"tenant": "y", "kept": "1", "attempt": "2"},
    }
    assert event.headers == {"tenant": "x", "kept": "1"}
    with pytest.raises(PayloadError, match="'Tenant' cannot be the name of a header"):
        event.with_headers({"Tenant": "y"})


# Id and time


def test_the_time_is_that_of_the_making():
    before = datetime.now(UTC)
    event = Event("a")
    after = datetime.now(UTC)
    assert before <= event.time <= after
    assert event.time == event.time


@given(time=st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - Hypothesis wants naive bounds
def test_the_id_is_a_uuid7_of_its_time(time):
    event = Event("a", time=time)
    made = uuid.UUID(event.id)
    assert str(made) == event.id
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert event.time == time


FORKS = """
import os
from fastapi_events import Event

Event("before").id  # so that random numbers are at hand
child = os.fork()
if child:
    os.waitpid(child, 0)  # which writes first
print(*(Event("after").id[-16:] for _ in range(200)), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
def test_both_sides_of_a_fork_make_ids_of_their_own():
    ended = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=True)
    made = ended.stdout.split()
    assert len(set(made)) == len(made) == 400


def test_an_event_of_before_1970_has_an_id_too():
    event = Event("moon.landed", time=datetime(1969, 7, 20, 20, 17, tzinfo=UTC))
    assert uuid.UUID(event.id).version == 7


def test_ids_made_in_the_same_instant_differ():
    time = datetime.now(UTC)
    assert len({Event("a", time=time).id for _ in range(10_000)}) == 10_000


def test_threads_make_different_ids():
    with ThreadPoolExecutor(8) as threads:
        ids = [name for part in threads.map(lambda _: [Event("a").id for _ in range(1_000)], range(8)) for name in part]
    assert len(set(ids)) == 8_000


def test_threads_that_ask_at_once_are_told_the_same_id():
    events = [Event("a") for _ in range(500)]
    barrier = threading.Barrier(8)

    def ask(_: int) -> list[str]:
        barrier.wait()
        return [event.id for event in events]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert [event.id for event in events] == answers[0]


def test_a_given_id_and_time_are_kept():
    time = datetime(2026, 1, 31, 13, 0, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    event = Event("a", id="mine", time=time)
    assert event.id == "mine"
    assert event.time == time
    assert event.time.tzinfo is UTC


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(PayloadError, match=r"has no time zone: use datetime\.now\(UTC\)") as refusal:
        Event("a", time=datetime(2026, 1, 31))  # noqa: DTZ001 - that is the point
    assert refusal.value.path == "time"


# Headers


@pytest.mark.parametrize(
    "name", ["", "Tenant", "trace_id", "trace-id", "a b", "a\n", "é", "٣", 1, None, *CORE_ATTRIBUTES]
)
@pytest.mark.parametrize(
    "give",
    [lambda headers: Event("a", headers=headers), lambda headers: Event("a").with_headers(headers)],
    ids=["Event", "with_headers"],
)
def test_a_header_that_cloudevents_cannot_carry_is_refused(give, name):
    with pytest.raises(
        PayloadError, match="cannot be the name of a header: use lower-case letters and digits"
    ) as refusal:
        give({"fine": "1", name: "x"})
    assert refusal.value.path == f"headers[{name!r}]"
    assert repr(name) in str(refusal.value)


@pytest.mark.parametrize("value", [1, True, None, b"x", ["x"]])
def test_a_header_that_is_no_string_is_refused(value):
    with pytest.raises(
        PayloadError, match=f"'tenant' must be a string, not {type(value).__name__}: use str"
    ) as refusal:
        Event("a", headers={"tenant": value})
    assert refusal.value.path == "headers['tenant']"


@pytest.mark.parametrize("headers", [[("tenant", "x")], {"tenant"}, "tenant"], ids=["list", "set", "text"])
def test_headers_that_are_no_mapping_are_refused(headers):
    for give in (lambda: Event("a", headers=headers), lambda: Event("a").with_headers(headers)):
        with pytest.raises(
            PayloadError, match=f"headers must be a mapping of names to strings, not {type(headers).__name__}"
        ) as refusal:
            give()
        assert refusal.value.path == "headers"


# Written


def test_the_json_is_a_cloudevent():
    assert whole().to_json() == (
        '{"specversion":"1.0","id":"0190b5a6-0000-7000-8000-000000000000","source":"/shop","type":"order.placed",'
        '"time":"2026-01-31T12:00:00.250000Z","datacontenttype":"application/json","subject":"order/1",'
        '"dataversion":2,"tenant":"x","correlationid":"1","data":{"lines":[{"sku":"é"}]}}'
    )


def test_what_is_unset_is_not_written():
    written = json.loads(Event("a").to_json())
    assert list(written) == ["specversion", "id", "source", "type", "time", "datacontenttype", "data"]
    assert written["data"] is None


@pytest.mark.parametrize(
    "payload, path",
    [
        ({"a": [1, math.nan]}, "payload['a'][1]"),
        ([-math.inf], "payload[0]"),
        (math.inf, "payload"),
        ({"socket": object()}, "payload['socket']"),
    ],
)
def test_what_json_cannot_express_is_an_error_with_the_path(payload, path):
    event = Event("a", payload)  # not dispatched, so nobody has looked yet
    with pytest.raises(PayloadError, match="cannot be written as JSON: .*; convert it") as refusal:
        event.to_json()
    assert refusal.value.path == path
    assert str(refusal.value).startswith(f"{path} cannot")


@pytest.mark.parametrize("version", [True, "one"])
def test_a_version_that_is_no_integer_is_refused_or_written_as_json(version):
    try:
        written = Event("a", version=version).to_json()
    except PayloadError:
        return
    assert json.loads(written)["type"] == "a"


@pytest.mark.parametrize(
    "attributes",
    [{"id": ""}, {"source": ""}, {"subject": ""}, {"subject": 1}, {"id": 1}, {"version": 1.5}],
    ids=["empty id", "empty source", "empty subject", "subject 1", "id 1", "version 1.5"],
)
def test_metadata_that_no_reader_would_take_is_refused(attributes):
    with pytest.raises(PayloadError) as refusal:
        Event("a", **attributes)
    assert refusal.value.path == next(iter(attributes))


@pytest.mark.parametrize(
    "attributes",
    [{"name": "a\ud800"}, {"source": "\ud800"}, {"subject": "\ud800"}, {"headers": {"tenant": "\ud800"}}],
    ids=["name", "source", "subject", "header"],
)
def test_metadata_that_is_no_text_is_a_payload_error(attributes):
    with pytest.raises((PayloadError, ConfigurationError), match="no Unicode text"):
        Event(**{"name": "a", **attributes})


# Read back


@given(payload=JSON)
@example(payload='\x00\x1f\x7f\u2028\ufeff\U0001f9ff\U0010ffff"\\/')
@example(payload={"": {"\x00": [{}, [], [[]]]}, "NaN": "NaN", "-Infinity": None})
@example(payload=[2**63, -(2**64), 10**4000, 0, True, 1, 1.0])
@example(payload=[-0.0, 5e-324, 1.7976931348623157e308, 0.1, 1e16, 1e22, 123456789.123456789])
def test_payloads_of_json_types_come_back_to_the_byte(payload):
    written = Event("a", payload).to_json()
    event = Event.from_json(written)
    assert event.to_json() == written
    assert repr(event.payload) == repr(payload)  # tells True from 1 and 1.0, and 0.0 from -0.0
    assert Event.from_json(written.encode()) == event


@given(
    name=TEXT,
    payload=JSON,
    id=st.uuids().map(str) | TEXT,
    time=st.datetimes(timezones=st.just(UTC)),
    source=TEXT,
    subject=st.none() | TEXT,
    version=st.none() | st.integers(0, 2**31 - 1),
    headers=HEADERS,
)
def test_metadata_comes_back_too(name, payload, **metadata):
    event = Event(name, payload, **metadata)
    read = Event.from_json(event.to_json())
    assert attributes_of(read) == attributes_of(event) == {"name": name, "payload": payload, **metadata}
    assert read.to_json() == event.to_json()


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "dicts"])
@pytest.mark.parametrize("schema", [None, Any], ids=["no schema", "a schema"])
def test_what_is_nested_deeply_comes_back_or_is_refused_when_it_is_written(wrap, schema):
    own = EventPayloadSchemaRegistry()
    if schema is not None:
        EventType("a", schema, registry=own)
    payload: Any = 1
    for _ in range(199):
        payload = wrap(payload)
    written = Event("a", payload).to_json()
    assert Event.from_json(written, registry=own).to_json() == written
    for _ in range(40):
        payload = wrap(payload)
        with pytest.raises(PayloadError, match="cannot be written as JSON: recursion limit exceeded"):
            Event("a", payload).to_json()


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_of_any_size_comes_back_or_is_refused_when_it_is_written(sign):
    written = Event("a", [sign * 10**4_298]).to_json()
    assert Event.from_json(written).to_json() == written
    with pytest.raises(PayloadError, match="int: number out of range") as refusal:
        Event("a", {"few": 1, "many": [sign * 10**4_300]}).to_json()
    assert refusal.value.path == "payload['many'][0]"


MINIMAL = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed"}


def read(**attributes: Any) -> Event[Any]:
    """Return the event that comes of these attributes in place of, or besides, those that every CloudEvent has."""
    return Event.from_json(json.dumps({**MINIMAL, **attributes}), registry=EventPayloadSchemaRegistry())


def test_four_attributes_are_enough():
    before = datetime.now(UTC)
    event = read()
    assert before <= event.time <= datetime.now(UTC)
    assert {**attributes_of(event), "time": None} == {
        "name": "order.placed",
        "payload": None,
        "id": "1",
        "time": None,
        "source": "/shop",
        "subject": None,
        "version": None,
        "headers": {},
    }


def test_null_is_unset():
    event = read(
        subject=None, time=None, dataversion=None, datacontenttype=None, dataschema=None, tenant=None, data=None
    )
    assert (event.subject, event.version, event.payload, dict(event.headers)) == (None, None, None, {})
    assert '"subject"' not in event.to_json()


def test_unknown_attributes_become_headers():
    event = read(tenant="x", empty="", retries=3, below=-1, isfinal=True, istest=False, traceparent="00-ab-cd-01")
    assert event.headers == {
        "tenant": "x",
        "empty": "",
        "retries": "3",
        "below": "-1",
        "isfinal": "true",
        "istest": "false",
        "traceparent": "00-ab-cd-01",
    }


def test_dataschema_is_no_header():
    assert dict(read(dataschema="https://example.com/schema").headers) == {}


@pytest.mark.parametrize("version, expected", [(3, 3), ("3", 3), (0, 0)])
def test_the_version_may_be_a_number_or_its_text(version, expected):
    assert read(dataversion=version).version == expected


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "APPLICATION/JSON",
        "text/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "application/vnd.shop.order-1+json",
        "application/problem+json; charset=utf-8",
    ],
)
def test_json_by_any_name_is_read(content_type):
    assert read(datacontenttype=content_type, data={"id": 1}).payload == {"id": 1}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.5Z", datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456789Z", datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)),  # as Go writes it
        ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ("2026-01-31T12:00:00.000001-00:30", datetime(2026, 1, 31, 12, 30, 0, 1, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),  # section 5.6
    ],
)
def test_times_of_rfc_3339_are_read(text, expected):
    assert read(time=text).time == expected
    assert read(time=text).time.tzinfo is UTC


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize("is_null", [False, True], ids=["absent", "null"])
def test_a_missing_attribute_is_named(name, is_null):
    attributes = {**MINIMAL, name: None}
    if not is_null:
        del attributes[name]
    with pytest.raises(PayloadError, match=f"not a CloudEvent: {name} is missing") as refusal:
        Event.from_json(json.dumps(attributes))
    assert refusal.value.path == name


def test_all_that_is_missing_is_named():
    with pytest.raises(PayloadError, match="specversion, id, source, type is missing") as refusal:
        Event.from_json("{}")
    assert refusal.value.path == "specversion"


@pytest.mark.parametrize(
    "attributes, path, message",
    [
        ({"specversion": "0.3"}, "specversion", r"specversion '0\.3' cannot be read: this library reads '1\.0'"),
        ({"specversion": 1.0}, "specversion", r"specversion 1\.0 cannot be read: this library reads '1\.0'"),
        ({"id": 1}, "id", "id must be a string with text, not 1"),
        ({"id": ""}, "id", "id must be a string with text, not ''"),
        ({"source": ""}, "source", "source must be a string with text, not ''"),
        ({"source": ["/shop"]}, "source", "source must be a string with text, not .'/shop'."),
        ({"type": ""}, "type", "type must be a string with text, not ''"),
        ({"type": {}}, "type", "type must be a string with text, not {}"),
        ({"subject": ""}, "subject", "subject must be a string with text, not ''"),
        ({"subject": 5}, "subject", "subject must be a string with text, not 5"),
        ({"time": 1769860800}, "time", "time must be a string with text, not 1769860800"),
        ({"time": ""}, "time", "time must be a string with text, not ''"),
        ({"time": "yesterday"}, "time", "'yesterday' is not of RFC 3339, as 2026-01-31T12:00:00Z is"),
        ({"time": "2026-02-30T12:00:00Z"}, "time", "'2026-02-30T12:00:00Z' is not of RFC 3339"),
        ({"time": "2026-01-31"}, "time", "'2026-01-31' is not of RFC 3339"),
        ({"time": "2026-W05-6T12:00:00Z"}, "time", "'2026-W05-6T12:00:00Z' is not of RFC 3339"),
        ({"time": "20260131T120000Z"}, "time", "'20260131T120000Z' is not of RFC 3339"),
        ({"time": "2026-01-31T12:00Z"}, "time", "'2026-01-31T12:00Z' is not of RFC 3339"),
        ({"time": "2026-01-31T12:00:00"}, "time", "'2026-01-31T12:00:00' is not of RFC 3339"),
        ({"time": "2026-01-31T12:00:00+01"}, "time", r"'2026-01-31T12:00:00\+01' is not of RFC 3339"),
        ({"time": "2026-01-31T12:00:00,5Z"}, "time", "'2026-01-31T12:00:00,5Z' is not of RFC 3339"),
        ({"datacontenttype": "text/plain"}, "datacontenttype", "'text/plain' cannot .* reads application/json"),
        ({"datacontenttype": "application/xml"}, "datacontenttype", "'application/xml' cannot be read"),
        ({"datacontenttype": "application/jsonp"}, "datacontenttype", "'application/jsonp' cannot be read"),
        ({"datacontenttype": "json"}, "datacontenttype", "'json' cannot be read"),
        ({"datacontenttype": ""}, "datacontenttype", "'' cannot be read"),
        ({"datacontenttype": 5}, "datacontenttype", "5 cannot be read"),
        (
            {"data_base64": "AA=="},
            "data_base64",
            r"binary data \(data_base64\) cannot be read: this library reads JSON",
        ),
        ({"dataversion": "two"}, "dataversion", "dataversion must be an integer, not 'two'"),
        ({"dataversion": "1.0"}, "dataversion", "dataversion must be an integer, not '1.0'"),
        ({"dataversion": 1.5}, "dataversion", "dataversion must be an integer, not 1.5"),
        ({"dataversion": True}, "dataversion", "dataversion must be an integer, not True"),
        ({"dataversion": [1]}, "dataversion", r"dataversion must be an integer, not \[1\]"),
        ({"tenant": 1.5}, "tenant", "extension attribute tenant must be a string, an integer or a boolean"),
        ({"tenant": {"id": 1}}, "tenant", "extension attribute tenant must be a string, an integer or a boolean"),
        ({"trace_id": "1"}, "headers['trace_id']", "'trace_id' cannot be the name of a header: use lower-case"),
    ],
    ids=str,
)
def test_an_attribute_that_cannot_be_read_is_named(attributes, path, message):
    with pytest.raises(PayloadError, match=message) as refusal:
        read(**attributes)
    assert refusal.value.path == path


@pytest.mark.parametrize(
    "attributes, path",
    [
        ({"time": "0001-01-01T00:00:00+01:00"}, "time"),
        ({"time": "9999-12-31T23:59:59-01:00"}, "time"),
        ({"dataversion": "9" * 5_000}, "dataversion"),
    ],
    ids=["before the year 1", "after the year 9999", "version of 5,000 digits"],
)
def test_an_attribute_beyond_what_python_can_hold_is_named(attributes, path):
    with pytest.raises(PayloadError) as refusal:
        _ = read(**attributes).time
    assert refusal.value.path == path


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "this is not JSON: EOF"),
        ("order.placed", "this is not JSON"),
        ('{"specversion":"1.0"', "this is not JSON: EOF"),
        ("{'specversion':'1.0'}", "this is not JSON: key must be a string"),
        ("{} {}", "this is not JSON: trailing characters"),
        (b"\xff", "this is not JSON"),
        ('{"data":NaN}', "this is not JSON"),
        ('{"data":[-Infinity]}', "this is not JSON"),
        (r'{"data":"\ud800"}', "this is not JSON"),
        ("\ud800", "this is not JSON"),
        ("[" * 10_000, "this is not JSON"),
        ("[]", "a CloudEvent is a JSON object, not list"),
        ('["order.placed",{}]', "a CloudEvent is a JSON object, not list"),
        ("null", "a CloudEvent is a JSON object, not NoneType"),
        ('"{}"', "a CloudEvent is a JSON object, not str"),
    ],
    ids=range(15),
)
def test_what_is_no_json_object_is_refused(text, message):
    with pytest.raises(PayloadError, match=message) as refusal:
        Event.from_json(text)
    assert refusal.value.path == ""


@pytest.mark.parametrize(
    "data, path",
    [("1e999", "payload"), ('{"a":[0,-1E+400]}', "payload['a'][1]"), ("9" * 400 + ".0", "payload")],
    ids=["1e999", "below", "digits"],
)
@pytest.mark.parametrize("schema", [None, Any], ids=["no schema", "a schema"])
def test_a_number_too_large_for_a_float_is_refused(data, path, schema):
    own = EventPayloadSchemaRegistry()
    if schema is not None:
        EventType("order.placed", schema, registry=own)
    with pytest.raises(PayloadError, match="has a number that no float can hold") as refusal:
        Event.from_json(json.dumps(MINIMAL)[:-1] + f',"data":{data}}}', registry=own)
    assert refusal.value.path == path


@given(text=st.text() | st.binary())
def test_garbage_is_never_another_error(text):
    with pytest.raises(PayloadError):
        Event.from_json(text)


# Models


class Colour(Enum):
    RED = "red"


@dataclass
class Weight:
    grams: int


class Shipment(BaseModel):
    id: uuid.UUID
    amount: Decimal
    at: datetime
    day: date
    duration: timedelta
    colour: Colour
    tags: set[str]
    pair: tuple[int, str]
    raw: bytes
    weight: Weight
    lines: list[Line]
    ratio: float
    note: str | None = None


class Scores(RootModel[list[int]]):
    pass


class Address(BaseModel):
    postal_code: int = Field(alias="postalCode")


class Customer(BaseModel):
    user_name: str = Field(validation_alias="userName", serialization_alias="name")
    address: Address


def registry_of(name: str, schema: Any) -> EventPayloadSchemaRegistry:
    own = EventPayloadSchemaRegistry()
    own.register(schema, event_name=name)
    return own


MODELS = {
    "many types": lambda: Shipment(
        id=uuid.UUID(int=7),
        amount=Decimal("1.10"),
        at=datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC),
        day=date(2026, 1, 31),
        duration=timedelta(days=1, microseconds=5),
        colour=Colour.RED,
        tags={"a"},
        pair=(1, "b"),
        raw=b"raw \xc3\xa9",
        weight=Weight(5),
        lines=[Line(sku="a"), Line(sku="b", count=2)],
        ratio=0.1,
    ),
    "root": lambda: Scores([1, 2]),
    "alias": lambda: Address(postalCode=12_345),
    "nested aliases": lambda: Customer(userName="ann", address=Address(postalCode=12_345)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_comes_back_as_an_equal_event(make):
    event = Event("a", make(), subject="s")
    back = Event.from_json(event.to_json(), registry=registry_of("a", type(event.payload)))
    assert back == event
    assert type(back.payload) is type(event.payload)
    assert attributes_of(back) == attributes_of(event)
    assert back.to_json() == event.to_json()


@given(sku=st.text(), count=st.integers())
def test_any_model_that_json_holds_comes_back_equal(sku, count):
    event = Event("a", Line(sku=sku, count=count))
    assert Event.from_json(event.to_json(), registry=registry_of("a", Line)) == event


@pytest.mark.parametrize(
    "data",
    [
        {"userName": "ann", "address": {"postalCode": 1}},
        {"user_name": "ann", "address": {"postal_code": 1}},
        {"user_name": "ann", "address": {"postalCode": 1}},
    ],
    ids=["aliases", "names", "both"],
)
def test_names_and_aliases_are_accepted(data):
    event = Event.from_json(json.dumps({**MINIMAL, "data": data}), registry=registry_of("order.placed", Customer))
    assert event.payload == Customer(userName="ann", address=Address(postalCode=1))


def test_an_alias_is_accepted_though_the_model_itself_would_not():
    class Unaliased(BaseModel):
        model_config = ConfigDict(validate_by_alias=False, validate_by_name=True)
        user_name: str = Field(alias="userName")

    own = registry_of("order.placed", Unaliased)
    for key in ("userName", "user_name"):
        event = Event.from_json(json.dumps({**MINIMAL, "data": {key: "ann"}}), registry=own)
        assert event.payload == Unaliased(user_name="ann")


def test_json_is_read_as_pydantic_reads_json():
    class Strict(BaseModel, strict=True):
        day: date

    own = registry_of("order.placed", Strict)
    event = Event.from_json(json.dumps({**MINIMAL, "data": {"day": "2026-01-31"}}), registry=own)
    assert event.payload == Strict(day=date(2026, 1, 31))  # strict pydantic takes the text in JSON only


def test_a_payload_that_does_not_fit_is_an_error_of_pydantic():
    with pytest.raises(ValidationError, match="sku") as refusal:
        Event.from_json(json.dumps({**MINIMAL, "data": {}}), registry=registry_of("order.placed", Line))
    assert refusal.value.title == "Line"


def test_an_event_type_reads_its_payload():
    class Parcel(TypedDict):
        shipped: date

    own = EventPayloadSchemaRegistry()
    parcels = EventType("parcels", list[Parcel], version=4, registry=own)
    event = parcels([{"shipped": date(2026, 1, 31)}])
    back = Event.from_json(event.to_json(), registry=own)
    assert back == event
    assert (back.version, back.id) == (4, event.id)
    with pytest.raises(ValidationError):
        Event.from_json(event.to_json().replace("2026-01-31", "soon"), registry=own)


def test_a_name_that_the_registry_does_not_know_passes_as_it_is():
    data = {"sku": 1}
    assert Event.from_json(json.dumps({**MINIMAL, "data": data}), registry=EventPayloadSchemaRegistry()).payload == data


def test_no_data_for_a_name_with_a_schema_means_an_empty_object():
    class Ping(BaseModel):
        note: str = "none"

    event = Event.from_json(json.dumps(MINIMAL), registry=registry_of("order.placed", Ping))
    assert event.payload == Ping()


# The package `cloudevents` as an oracle

MODERN_TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 - the zone is chosen below
ZONES = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    name=TEXT,
    payload=JSON,
    id=TEXT,
    time=MODERN_TIMES.map(lambda time: time.replace(tzinfo=UTC)),
    source=TEXT,
    subject=st.none() | TEXT,
    version=st.none() | st.integers(1, 2**31 - 1),
    headers=HEADERS,
)
@settings(deadline=None)
def test_the_oracle_reads_what_we_wrote(name, payload, id, time, source, subject, version, headers):
    event = Event(name, payload, id=id, time=time, source=source, subject=subject, version=version, headers=headers)
    oracle = JSONFormat().read(None, event.to_json())
    expected = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": name,
        "time": time,
        "datacontenttype": "application/json",
        "subject": subject,
        "dataversion": version,
        **headers,
    }
    assert oracle.get_attributes() == {key: value for key, value in expected.items() if value is not None}
    assert repr(oracle.get_data()) == repr(payload)


@given(
    attributes=st.fixed_dictionaries(
        {"id": TEXT, "source": TEXT, "type": TEXT},
        optional={
            "subject": TEXT,
            "time": st.builds(lambda time, zone: time.replace(tzinfo=zone), MODERN_TIMES, ZONES),
            "datacontenttype": st.sampled_from(
                ["application/json", "text/json; charset=utf-8", "application/a.b+json"]
            ),
            "dataschema": st.just("https://example.com/schema"),
            "dataversion": st.integers(1, 2**31 - 1),
        },
    ),
    extensions=HEADERS
    | st.dictionaries(st.sampled_from(["x", "y1"]), st.booleans() | st.integers(-(2**31), 2**31 - 1)),
    data=JSON,
)
@settings(deadline=None)
def test_we_read_what_the_oracle_wrote(attributes, extensions, data):
    written = JSONFormat().write(CloudEvent({**attributes, **extensions}, data))
    event = Event.from_json(written, registry=EventPayloadSchemaRegistry())
    assert (event.id, event.source, event.name) == (attributes["id"], attributes["source"], attributes["type"])
    assert (event.subject, event.version) == (attributes.get("subject"), attributes.get("dataversion"))
    if "time" in attributes:
        assert event.time == attributes["time"]
    assert event.headers == {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in extensions.items()
    }
    assert repr(event.payload) == repr(data)


def test_bytes_of_the_oracle_are_refused():
    written = JSONFormat().write(CloudEvent({"id": "1", "source": "/shop", "type": "a"}, b"\x00"))
    with pytest.raises(PayloadError, match="data_base64") as refusal:
        Event.from_json(written)
    assert refusal.value.path == "data_base64"


def test_the_oracle_reads_a_model():
    make: Callable[[], Shipment] = MODELS["many types"]
    oracle = JSONFormat().read(None, Event("a", make()).to_json())
    assert oracle.get_data() == make().model_dump(mode="json")
