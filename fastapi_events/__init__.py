"""A typed event bus for FastAPI and Starlette."""

from fastapi_events.bus import EventBus, current_bus
from fastapi_events.dependencies import Depends
from fastapi_events.dispatcher import dispatch
from fastapi_events.errors import (
    BusFullError,
    ChainTooLongError,
    ConfigurationError,
    DuplicateEventError,
    EventNameMissingError,
    FastAPIEventsError,
    ForwardError,
    NoBusError,
    PayloadError,
    Rejection,
    SubscriberError,
    Unrecoverable,
)
from fastapi_events.event import Event
from fastapi_events.event_type import EventType, event_is
from fastapi_events.handlers.base import BaseEventHandler, EventHandler
from fastapi_events.handlers.echo import EchoHandler
from fastapi_events.handlers.file import FileHandler
from fastapi_events.handlers.local import LocalHandler, local_handler
from fastapi_events.handlers.null import NullHandler
from fastapi_events.handlers.only import only
from fastapi_events.middleware import EventHandlerASGIMiddleware
from fastapi_events.names import EventName
from fastapi_events.outcome import DeliverOn, Outcome
from fastapi_events.registry.payload_schema import EventModel, EventPayloadSchemaRegistry, registry
from fastapi_events.reports import DrainReport, Failure, Stats, Undelivered
from fastapi_events.retry import Retry
from fastapi_events.typing import Serializer

__all__ = [
    "BaseEventHandler",
    "BusFullError",
    "ChainTooLongError",
    "ConfigurationError",
    "DeliverOn",
    "Depends",
    "DrainReport",
    "DuplicateEventError",
    "EchoHandler",
    "Event",
    "EventBus",
    "EventHandler",
    "EventHandlerASGIMiddleware",
    "EventModel",
    "EventName",
    "EventNameMissingError",
    "EventPayloadSchemaRegistry",
    "EventType",
    "Failure",
    "FastAPIEventsError",
    "FileHandler",
    "ForwardError",
    "LocalHandler",
    "NoBusError",
    "NullHandler",
    "Outcome",
    "PayloadError",
    "Rejection",
    "Retry",
    "Serializer",
    "Stats",
    "SubscriberError",
    "Undelivered",
    "Unrecoverable",
    "current_bus",
    "dispatch",
    "event_is",
    "local_handler",
    "only",
    "registry",
]
