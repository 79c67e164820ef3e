"""The attributes of a CloudEvent: what may be in them, and how they are read from JSON."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, cast

from pydantic_core import from_json

from fastapi_events.errors import PayloadError

__all__ = ["CORE_ATTRIBUTES", "check_headers", "check_text", "read"]

CORE_ATTRIBUTES: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "dataversion", "data"}
)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_JSON_TYPE: Final = re.compile(r"[\w.+-]+/([\w.-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_HEADER_NAME: Final = re.compile(r"[a-z0-9]+")
LONGEST_VERSION: Final = 100  # digits; Python reads no more than 4,300


def check_text(attribute: str, text: object) -> None:
    """See to it that an attribute is what a CloudEvent can carry.

    Raises:
        PayloadError: it is no string, or empty, or no Unicode text.
    """
    if not isinstance(text, str) or not text:
        raise PayloadError(f"the {attribute} must be a string with text, not {text!r}", path=attribute)
    if not text.isascii():
        _check_unicode(text, f"the {attribute} of an event", attribute)


def _check_unicode(text: str, what: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"{what} is no Unicode text: {error}", path=path) from error


def check_headers(headers: Mapping[Any, Any]) -> Mapping[str, str]:
    """Return the headers, read-only.

    Raises:
        PayloadError: a name is not of `[a-z0-9]+`, or is a core attribute of CloudEvents; a value is no string; they
            are no mapping.
    """
    if not hasattr(headers, "items"):
        raise PayloadError(
            f"headers must be a mapping of names to strings, not {type(headers).__name__}: use {{'tenant': 'x'}}",
            path="headers",
        )
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name in CORE_ATTRIBUTES:
            raise PayloadError(
                f"{name!r} cannot be the name of a header: use lower-case letters and digits, "
                "and none of the attributes that every event has",
                path=f"headers[{name!r}]",
            )
        if not isinstance(value, str):
            raise PayloadError(
                f"the header {name!r} must be a string, not {type(value).__name__}: use str()",
                path=f"headers[{name!r}]",
            )
        if not value.isascii():
            _check_unicode(value, f"the header {name!r}", f"headers[{name!r}]")
    return MappingProxyType(dict(headers))


def read(data: str | bytes) -> tuple[str, Any, dict[str, Any]]:
    """Read a CloudEvent 1.0 in JSON.

    Returns:
        Its type; its data; the rest, as the keywords of an Event.

    Raises:
        PayloadError: it is no JSON, or no CloudEvent that this library can read; `path` is the attribute.
    """
    try:
        parsed = from_json(data, allow_inf_nan=False)
    except (ValueError, TypeError) as error:  # TypeError: a string that is no Unicode text
        raise PayloadError(f"this is not JSON: {error}", path="") from error
    if not isinstance(parsed, dict):
        raise PayloadError(f"a CloudEvent is a JSON object, not {type(parsed).__name__}", path="")
    given = cast("dict[str, Any]", parsed)
    payload = given.pop("data", None)
    attributes = {name: value for name, value in given.items() if value is not None}  # the specification: null is unset
    missing = [name for name in ("specversion", "id", "source", "type") if name not in attributes]
    if missing:
        raise PayloadError(f"this is not a CloudEvent: {', '.join(missing)} is missing", path=missing[0])
    if attributes["specversion"] != "1.0":
        raise PayloadError(
            f"a CloudEvent of specversion {attributes['specversion']!r} cannot be read: this library reads '1.0'",
            path="specversion",
        )
    content_type = attributes.get("datacontenttype", "application/json")
    if content_type != "application/json" and not _JSON_TYPE.fullmatch(str(content_type)):
        raise PayloadError(
            f"data of type {content_type!r} cannot be read: this library reads application/json",
            path="datacontenttype",
        )
    if "data_base64" in attributes:
        raise PayloadError("binary data (data_base64) cannot be read: this library reads JSON", path="data_base64")
    check_text("type", attributes["type"])
    rest = {
        "id": attributes["id"],
        "time": _time(attributes.get("time")),
        "source": attributes["source"],
        "subject": attributes.get("subject"),
        "version": _version(attributes.get("dataversion")),
        "headers": {name: _header(name, value) for name, value in attributes.items() if name not in CORE_ATTRIBUTES},
    }
    return attributes["type"], payload, rest


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    check_text("time", text)
    try:
        # fromisoformat() reads other formats too, but on CPython 3.11 no "z"
        time = datetime.fromisoformat(text.upper()).astimezone(UTC) if _TIME.fullmatch(text) else None
    except (ValueError, OverflowError):
        time = None
    if time is None:
        raise PayloadError(f"the time {text!r} is not of RFC 3339, as 2026-01-31T12:00:00Z is", path="time")
    return time


def _version(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and value.isdecimal() and len(value) < LONGEST_VERSION:
        return int(value)
    raise PayloadError(f"dataversion must be an integer, not {value!r}", path="dataversion")


def _header(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise PayloadError(f"the extension attribute {name} must be a string, an integer or a boolean", path=name)
