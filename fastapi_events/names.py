"""What an event is called."""

from enum import Enum
from typing import TypeAlias

from fastapi_events.errors import ConfigurationError, EventNameMissingError

__all__ = ["EventName", "name_of"]

EventName: TypeAlias = str | Enum


def name_of(name: object) -> str:
    """Return the text of an event name; an Enum member is its value.

    Raises:
        EventNameMissingError: the name is None or empty.
        ConfigurationError: it is neither a string nor an Enum member whose value is a string, or no Unicode text.
    """
    if type(name) is str and name and name.isascii():
        return name
    value = name.value if isinstance(name, Enum) else name
    if value is None or value == "":
        raise EventNameMissingError(
            "the event has no name: pass one, as in dispatch('order.placed', ...), or give its model an __event_name__"
        )
    if not isinstance(value, str):
        raise ConfigurationError(
            f"an event name is a string or an Enum member with a string value, not {name!r}: use 'order.placed'"
        )
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"the event name {text!r} is no Unicode text: {error}") from error
    return text
