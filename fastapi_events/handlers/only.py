"""Any handler, some events."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from typing_extensions import TypeForm

from fastapi_events.errors import ConfigurationError
from fastapi_events.event import Event
from fastapi_events.event_type import EventType
from fastapi_events.handlers.base import BaseEventHandler, EventHandler, as_event
from fastapi_events.names import EventName
from fastapi_events.patterns import matcher, patterns_of
from fastapi_events.subscriber import Subscriber, route_to_one

__all__ = ["only"]


def only(handler: EventHandler, *what: EventName | EventType[Any] | TypeForm[BaseModel]) -> BaseEventHandler:
    """Let a handler receive these events alone.

        EventBus([only(SQSForwardHandler(...), OrderPlaced, "invoice.*")])

    Args:
        handler: any handler.
        what: models, event types, names or patterns, as for `local_handler.register`.
    """
    if not what:
        raise ConfigurationError("only() needs a name, a pattern, a model or an EventType after the handler")
    return _Only(handler, [pattern for one in what for pattern in patterns_of(one)])


class _Only(BaseEventHandler):
    def __init__(self, handler: Any, patterns: list[str]) -> None:
        self._handler = handler
        self._matches = matcher(patterns)
        self._route = route_to_one(handler)

    def matching_subscribers(self, name: str) -> Sequence[Subscriber]:
        return self._route(name) if self._matches(name) else ()

    async def start(self) -> None:
        if start := getattr(self._handler, "start", None):
            await start()

    async def stop(self) -> None:
        if stop := getattr(self._handler, "stop", None):
            await stop()

    async def handle(self, event: Event[object]) -> None:
        await self.handle_many([event])

    async def handle_many(self, events: Iterable[Event[object]]) -> None:
        wanted = [event for event in map(as_event, events) if self._matches(event.name)]
        if wanted:
            await self._handler.handle_many(wanted)
