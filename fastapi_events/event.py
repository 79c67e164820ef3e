"""The envelope: one event as it travels, in memory and as CloudEvents JSON."""

import functools
import os
import struct
import time as clock
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from pydantic_core import to_json
from typing_extensions import TypeVar

from fastapi_events.cloud_event import check_headers, check_text, read
from fastapi_events.errors import PayloadError
from fastapi_events.names import EventName, name_of
from fastapi_events.payload import serialise, snapshot
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, registry as default_registry

__all__ = ["DEFAULT_SOURCE", "Event"]

DEFAULT_SOURCE: Final = "fastapi_events"

PayloadT_co = TypeVar("PayloadT_co", covariant=True, default=Any)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

# for type checkers: it has a type of its own for every class, and they disagree about a subclass
_new_tuple: Final[Callable[..., Any]] = tuple.__new__  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]


class Event(tuple[str, PayloadT_co]):
    """What happened: an immutable pair `(name, payload)` with metadata.

    `name, payload = event` and `match event: case Event("order.placed", payload)` work. `==` and `hash` look at
    name and payload only, as those of a tuple.

    Attributes:
        name: dotted, past tense: `order.placed`.
        payload: the model of the name's schema, or what was dispatched. What `dispatch` returns has a copy, and a
            subscriber may get that very copy: leave it as it is.
        id: UUIDv7 text, unique; its time is the dispatch's. Made when first asked for.
        time: of the dispatch, aware, UTC, in microseconds.
        source: who dispatched it; set on the bus.
        subject: what it is about, None if unset.
        version: of the schema, None if it has none.
        headers: metadata such as `correlationid`; names match `[a-z0-9]+`.
    """

    __match_args__ = ("name", "payload")

    # Only what differs from these defaults is in an instance's __dict__: an event waits in memory. The copies that
    # several subscribers get share one __dict__, and so the id.
    _id: str
    _at: int  # nanoseconds since the epoch
    _data: bytes | None = None  # the payload as JSON, in UTF-8
    _shared: bool = False  # nobody can change the payload
    _opaque: bool = False  # handed over as it is, to local subscribers only
    _chain: tuple[str, ...] = ()  # the names of the events that led to this one, the oldest first
    _source: str = DEFAULT_SOURCE
    _subject: str | None = None
    _version: int | None = None
    _headers: Mapping[str, str] = _NO_HEADERS

    def __new__(
        cls,
        name: EventName,
        payload: PayloadT_co = cast("Any", None),  # noqa: B008 - None, for the type checkers' sake
        *,
        id: str | None = None,
        time: datetime | None = None,
        source: str = DEFAULT_SOURCE,
        subject: str | None = None,
        version: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Event[PayloadT_co]":
        state: dict[str, Any] = {"_at": _nanoseconds(time) if time else clock.time_ns()}
        if id is not None:
            check_text("id", id)
            state["_id"] = id
        if source != DEFAULT_SOURCE:
            check_text("source", source)
            state["_source"] = source
        if subject is not None:
            check_text("subject", subject)
            state["_subject"] = subject
        if version is not None:
            if type(version) is not int:
                raise PayloadError(f"the version must be an integer, not {version!r}", path="version")
            state["_version"] = version
        if headers:
            state["_headers"] = check_headers(headers)
        return cls._of(name_of(name), payload, state)

    @classmethod
    def _of(cls, name: str, payload: Any, state: dict[str, Any]) -> "Event[Any]":
        """Make an event of parts that are known to be good; `state` becomes its own."""
        event: Event[Any] = _new_tuple(cls, (name, payload))
        _set_state(event, state)
        return event

    @property
    def name(self) -> str:
        return self[0]

    @property
    def payload(self) -> PayloadT_co:
        return self[1]

    @property
    def id(self) -> str:
        state = self.__dict__
        # setdefault: two threads that ask at once get one answer
        found: str = state.get("_id") or state.setdefault("_id", _uuid7(self._at))
        return found

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self._at // 1_000_000_000, UTC).replace(microsecond=self._at // 1_000 % 1_000_000)

    @property
    def source(self) -> str:
        return self._source

    @property
    def subject(self) -> str | None:
        return self._subject

    @property
    def version(self) -> int | None:
        return self._version

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers

    def with_headers(self, headers: Mapping[str, str]) -> "Event[PayloadT_co]":
        """Return the same event, its id included, with these headers added or replaced."""
        _ = self.id
        state = {**self.__dict__, "_headers": MappingProxyType({**self._headers, **check_headers(headers)})}
        return self._of(self[0], self[1], state)

    def for_subscriber(self) -> "Event[PayloadT_co]":
        """Return this event with a payload that the receiver may change without harm to others."""
        return self if self._shared else self._of(self[0], snapshot(self[1]), self.__dict__)

    def to_json(self) -> str:
        """Return the event as a CloudEvent 1.0 in JSON.

        Raises:
            PayloadError: JSON cannot express the payload (only of an event that was never dispatched, or opaque).
        """
        data = self._data if self._data is not None else serialise(self[1])
        optional = [] if self._subject is None else [f',"subject":{_quoted(self._subject)}']
        if self._version is not None:
            optional.append(f',"dataversion":{self._version}')
        optional.extend(f',"{name}":{_quoted(value)}' for name, value in self._headers.items())
        return (
            f'{{"specversion":"1.0","id":{_quoted(self.id)},"source":{_quoted_often(self._source)},'
            f'"type":{_quoted_often(self[0])},"time":"{self.time.isoformat().removesuffix("+00:00")}Z",'
            f'"datacontenttype":"application/json"{"".join(optional)},"data":{data.decode()}}}'
        )

    @classmethod
    def from_json(cls, data: str | bytes, *, registry: EventPayloadSchemaRegistry = default_registry) -> "Event[Any]":
        """Read a CloudEvent 1.0 in JSON; the payload is validated if the registry knows the event's name.

        Unknown attributes become headers.

        Raises:
            PayloadError: it is not such a CloudEvent; the message says why.
            pydantic.ValidationError: the payload does not fit the schema.
        """
        name, payload, rest = read(data)
        written = to_json(payload)
        if b"Infinity" in written:  # as which 1e999 is read
            try:
                serialise(payload)
            except PayloadError as error:
                raise PayloadError(f"{error.path} has a number that no float can hold", path=error.path) from error
        schema = registry.schema(name)
        return cls(name, payload if schema is None else schema.validate_json(written), **rest)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self[0], self[1], {**self.__dict__, "_id": self.id, "_headers": dict(self._headers)})

    def __repr__(self) -> str:
        return f"Event({self[0]!r}, {self[1]!r}, id={self.id!r})"

    if not TYPE_CHECKING:  # a visible __setattr__ makes type checkers accept any attribute

        def __setattr__(self, name: str, value: object) -> NoReturn:
            raise AttributeError(f"an event is immutable: {name!r} cannot be set; dispatch a new one")

        def __delattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"an event is immutable: {name!r} cannot be deleted")


# what object.__setattr__ would look up for every event
_set_state: Final = Event.__dict__["__dict__"].__set__


def _restore(name: str, payload: Any, state: dict[str, Any]) -> Event[Any]:
    return Event._of(name, payload, {**state, "_headers": MappingProxyType(state["_headers"])})


def _uuid7(nanoseconds: int) -> str:
    """Make a UUID of RFC 9562, version 7, the 12 bits after the milliseconds being their fraction."""
    milliseconds, rest = divmod(max(nanoseconds, 0), 1_000_000)  # it knows no time before 1970
    number = milliseconds << 80 | 0x7 << 76 | (rest << 12) // 1_000_000 << 64
    number |= 0b10 << 62 | _random_bits() >> 2
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_spare_bits: Final[deque[int]] = deque()  # random numbers of 64 bits
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_spare_bits.clear)  # or both processes would go on with the same ones


def _random_bits() -> int:
    while True:
        try:
            return _spare_bits.pop()
        except IndexError:
            # os.urandom() lets another thread go first: asked for 128 events at once, an event to SQS costs 5 % less
            _spare_bits.extend(struct.unpack("128Q", os.urandom(1024)))


def _nanoseconds(time: datetime) -> int:
    if time.tzinfo is None:
        raise PayloadError(f"the time {time} has no time zone: use datetime.now(UTC)", path="time")
    return (time - _EPOCH) // timedelta(microseconds=1) * 1_000


def _quoted(text: str) -> str:
    return to_json(text).decode()


_quoted_often = functools.lru_cache(maxsize=1024)(_quoted)  # names and sources are few
