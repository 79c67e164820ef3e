"""What SQS takes as a message: made of an event, and checked, because SQS refuses a whole call for one bad part."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from fastapi_events.errors import ConfigurationError
from fastapi_events.event import Event
from fastapi_events.typing import Serializer

__all__ = ["GroupId", "Message", "MessageFormat", "Refused"]

GroupId: TypeAlias = str | Callable[[Event[Any]], str | None] | None

# The limits of the SQS API reference, SendMessageBatch.
MAX_ATTRIBUTES: Final = 10
MAX_ID_CHARACTERS: Final = 128
_ILLEGAL_CHARACTER: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LEGAL_ASCII: Final = bytes([0x09, 0x0A, 0x0D, *range(0x20, 0x80)])
_ID: Final = re.compile(f"[!-~]{{1,{MAX_ID_CHARACTERS}}}")


class Refused(Exception):  # noqa: N818 - a fact about one event, which its batch outlives
    """SQS would not take the event; the text says why."""


class Message(NamedTuple):
    """One entry of a call.

    Attributes:
        entry: as `send_message_batch` takes it, without its `Id`.
        size: bytes that SQS counts: the body, and the names, types and values of the attributes.
        group: the message group, None if it has none.
    """

    entry: dict[str, Any]
    size: int
    group: str | None


class MessageFormat:
    """How events become messages.

    Args:
        serializer: writes the body; None for the CloudEvent.
        group_id: the message group, or what tells it.
        attributes: headers that become message attributes where an event has them.
        fifo: whether the queue is one.
    """

    def __init__(
        self, *, serializer: Serializer | None, group_id: GroupId, attributes: Sequence[str], fifo: bool
    ) -> None:
        if serializer is not None and not callable(serializer):
            raise ConfigurationError(f"serializer={serializer!r} cannot be called: pass a function of the event")
        if group_id is not None and not callable(group_id):
            try:
                _checked_id("message_group_id", group_id)
            except Refused as refused:
                raise ConfigurationError(f"{refused}; or pass a function of the event") from None
        if isinstance(attributes, str):
            raise ConfigurationError(f"attributes= takes names of headers, not one string: use [{attributes!r}]")
        self._serializer: Callable[[Event[Any]], object] = serializer or Event.to_json
        self._group_id = group_id
        self._fifo = fifo
        self._headers = tuple(dict.fromkeys(["traceparent", *attributes]))
        # A serializer of the user's may write anything: only our own body has a known type.
        self._content_type = None if serializer else _attribute("contentType", "application/cloudevents+json")

    def message(self, event: Event[Any], max_bytes: int) -> Message:
        """Return the message for an event.

        Raises:
            Refused: SQS would not take it, or the serializer or `message_group_id` failed.
        """
        try:
            body = self._serializer(event)
            group = self._group(event)
        except Exception as error:
            raise Refused(f"cannot be written as a message: {type(error).__name__}: {error}") from error
        if not isinstance(body, str) or not body:
            found = "an empty string" if body == "" else type(body).__name__
            raise Refused(f"the serializer returned {found}: SQS takes a string of at least one character")
        attributes, size = self._attributes(event)
        size += _size(body, "body")
        if size > max_bytes:
            raise Refused(f"too large: {size:,} bytes with its attributes, the queue takes {max_bytes:,}")
        entry: dict[str, Any] = {"MessageBody": body, "MessageAttributes": attributes}
        if group is not None:
            entry["MessageGroupId"] = group = _checked_id("message group id", group)
        if self._fifo:
            entry["MessageDeduplicationId"] = _checked_id("event id as deduplication id", event.id)
        return Message(entry, size, group)

    def _group(self, event: Event[Any]) -> object:
        group = self._group_id(event) if callable(self._group_id) else self._group_id
        if group is None and self._fifo:
            return event.headers.get("partitionkey") or event.name
        return group

    def _attributes(self, event: Event[Any]) -> tuple[dict[str, dict[str, str]], int]:
        """Return the attributes of an event's message and how many bytes they have."""
        named, size = _type_attribute(event.name)
        attributes = {"type": named}
        if self._content_type is not None:
            attributes["contentType"], more = self._content_type
            size += more
        headers = event.headers
        for name in self._headers:
            if text := headers.get(name):  # SQS takes no empty value
                attributes[name], more = _attribute(name, text)
                size += more
        if len(attributes) > MAX_ATTRIBUTES:
            raise Refused(f"too many attributes: {len(attributes)}, SQS takes {MAX_ATTRIBUTES}; mirror fewer headers")
        return attributes, size


def _checked_id(what: str, text: object) -> str:
    if isinstance(text, str) and _ID.fullmatch(text):
        return text
    rule = f"SQS takes 1 to {MAX_ID_CHARACTERS} letters, digits and punctuation of ASCII"
    raise Refused(f"bad {what} {text!r:.160}: {rule}")


def _attribute(name: str, text: str) -> tuple[dict[str, str], int]:
    return {"DataType": "String", "StringValue": text}, len(name) + len("String") + _size(text, "attribute", name)


@functools.lru_cache(maxsize=1024)  # names are few; what is cached must not be changed
def _type_attribute(text: str) -> tuple[dict[str, str], int]:
    return _attribute("type", text)


def _size(text: str, *part: str) -> int:
    if text.isascii() and not text.encode().translate(None, _LEGAL_ASCII):  # ten times as fast as the search
        return len(text)
    if found := _ILLEGAL_CHARACTER.search(text):
        raise Refused(
            f"illegal character U+{ord(found[0]):04X} at position {found.start()} of the {' '.join(part)}: "
            "XML 1.0, and so SQS, has no such character"
        )
    return len(text.encode())
