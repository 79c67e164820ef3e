"""The attributes of a CloudEvent: what may be in them, and how they are read from JSON."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, cast

from pydantic_core import from_json

from fastapi_events.errors import PayloadError

__all__ = [
    "CORE_ATTRIBUTES",
    "check_headers",
    "check_text",
    "header_text",
    "read_attributes",
    "read_time",
    "read_version",
]

CORE_ATTRIBUTES: Final = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "dataversion", "data"}
)
_HEADER_NAME: Final = re.compile(r"[a-z0-9]+")
LONGEST_VERSION: Final = 100  # digits; Python reads no more than 4,300


def check_text(attribute: str, text: object) -> None:
    """See to it that an attribute is what a CloudEvent can carry.

    Raises:
        PayloadError: it is no string, or empty, or no Unicode text.
    """
    if not isinstance(text, str) or not text:
        raise PayloadError(f"the {attribute} of an event must be a string with text, not {text!r}", path=attribute)
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
        PayloadError: a name is not of `[a-z0-9]+`, or is a core attribute of CloudEvents; a value is no string.
    """
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


def read_attributes(data: str | bytes) -> dict[str, Any]:
    """Return the attributes of a CloudEvent 1.0 in JSON, with its data.

    Raises:
        PayloadError: it is no JSON, or no CloudEvent that this library can read; `path` is the attribute.
    """
    try:
        attributes = from_json(data, allow_inf_nan=False)
    except (ValueError, TypeError) as error:  # TypeError: a string that is no Unicode text
        raise PayloadError(f"this is not JSON: {error}", path="") from error
    if not isinstance(attributes, dict):
        raise PayloadError(f"a CloudEvent is a JSON object, not {type(attributes).__name__}", path="")
    given = cast("dict[str, Any]", attributes)
    for name in [name for name, value in given.items() if value is None and name != "data"]:
        del given[name]  # the specification: null is unset
    _check_attributes(given)
    return given


def _check_attributes(attributes: dict[str, Any]) -> None:
    missing = [name for name in ("specversion", "id", "source", "type") if name not in attributes]
    if missing:
        raise PayloadError(f"this is not a CloudEvent: {', '.join(missing)} is missing", path=missing[0])
    if attributes["specversion"] != "1.0":
        raise PayloadError(
            f"a CloudEvent of specversion {attributes['specversion']!r} cannot be read: this library reads '1.0'",
            path="specversion",
        )
    for name in ("id", "source", "type", "subject", "time"):
        if name in attributes and (not isinstance(attributes[name], str) or not attributes[name]):
            raise PayloadError(f"the attribute {name} must be a string with text, not {attributes[name]!r}", path=name)
    content_type = attributes.get("datacontenttype", "application/json")
    if not re.fullmatch(r"[\w.+-]+/([\w.-]+\+)?json\s*(;.*)?", str(content_type), re.IGNORECASE):
        raise PayloadError(
            f"data of type {content_type!r} cannot be read: this library reads application/json",
            path="datacontenttype",
        )
    if "data_base64" in attributes:
        raise PayloadError("binary data (data_base64) cannot be read: this library reads JSON", path="data_base64")


def read_time(text: str | None) -> datetime | None:
    """Return a time of RFC 3339 in UTC."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text.upper())  # CPython 3.11 reads no "z"
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise PayloadError(f"the time {text!r} is not of RFC 3339, as 2026-01-31T12:00:00Z is", path="time") from error


def read_version(value: object) -> int | None:
    """Return the version of a schema."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isdecimal() and len(value) < LONGEST_VERSION:
        return int(value)
    raise PayloadError(f"dataversion must be an integer, not {value!r}", path="dataversion")


def header_text(name: str, value: object) -> str:
    """Return an extension attribute as the text of a header."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    raise PayloadError(f"the extension attribute {name} must be a string, an integer or a boolean", path=name)
