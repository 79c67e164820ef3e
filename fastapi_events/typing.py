"""What users annotate with."""

from collections.abc import Callable
from typing import Any, TypeAlias

from fastapi_events.event import Event
from fastapi_events.names import EventName
from fastapi_events.outcome import DeliverOn

__all__ = ["DeliverOn", "Event", "EventName", "Serializer"]

Serializer: TypeAlias = Callable[[Event[Any]], str]
