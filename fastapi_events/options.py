"""Options that are numbers: what is none is refused where it is set up, as not every caller has a type checker."""

from fastapi_events.errors import ConfigurationError

__all__ = ["check_count", "check_seconds"]


def check_count(keyword: str, value: object) -> None:
    """Raise a ConfigurationError if this is no integer from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{keyword}={value!r}: use an integer from 1")


def check_seconds(keyword: str, value: object) -> None:
    """Raise a ConfigurationError if this is no number of seconds, from 0; infinity is one."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
        raise ConfigurationError(f"{keyword}={value!r}: use a number of seconds, from 0")
