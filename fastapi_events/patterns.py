"""Which events somebody wants: names, patterns, models, event types."""

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from types import UnionType
from typing import Union, get_args, get_origin

from pydantic import BaseModel

from fastapi_events.errors import ConfigurationError, EventNameMissingError
from fastapi_events.event import Event
from fastapi_events.event_type import EventType
from fastapi_events.names import name_of
from fastapi_events.registry.payload_schema import registry

__all__ = ["matcher", "patterns_of"]


def patterns_of(what: object) -> list[str]:
    """Return the names or patterns that stand for a model, an EventType, a name, a pattern, or a union of models.

    Raises:
        EventNameMissingError: a model that has no event name.
        ConfigurationError: something else.
    """
    if isinstance(what, EventType):
        return [what.name]
    if get_origin(what) in (Union, UnionType):
        return [pattern for part in get_args(what) for pattern in patterns_of(part)]
    if isinstance(what, type) and issubclass(what, BaseModel):
        try:
            return [registry.name_of_model(what)]
        except EventNameMissingError as error:
            raise EventNameMissingError(
                f"{what.__qualname__} does not stand for one event name: derive it from EventModel, or use the name "
                "in place of the model"
            ) from error
    if isinstance(what, BaseModel):
        name = type(what).__qualname__
        raise ConfigurationError(f"an instance of {name} does not stand for events: use the class, {name}")
    if isinstance(what, (list, tuple, set, frozenset)):
        raise ConfigurationError(f"{what!r} does not stand for events: pass what is in it one by one, as in (A, B)")
    if get_origin(what) is Event:
        raise ConfigurationError(f"{what!r} does not stand for events: use what is in the brackets")
    if what is None or what == "":
        raise EventNameMissingError(f"{what!r} is no event name: use a name or a pattern; '*' stands for all events")
    if isinstance(what, type) or callable(what):
        raise ConfigurationError(f"{what!r} does not stand for events: use a name, a pattern, a model or an EventType")
    return [name_of(what)]


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a name matches one of the patterns (fnmatch, case-sensitive), or equals one."""
    exact = frozenset(patterns)
    wild = [re.compile(translate(pattern)).match for pattern in exact if any(sign in pattern for sign in "*?[")]
    return lambda name: name in exact or any(match(name) for match in wild)
