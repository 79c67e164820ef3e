"""Takes events and does nothing."""

from typing import Any

from fastapi_events.event import Event
from fastapi_events.handlers.base import BaseEventHandler

__all__ = ["NullHandler"]


class NullHandler(BaseEventHandler):
    """Takes every event and does nothing: for tests, and to say that no handler is wanted."""

    async def handle(self, event: Event[object] | Any) -> None:  # Any: 0.12 passed pairs
        """Do nothing."""
