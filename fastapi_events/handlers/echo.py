"""Shows events to a person."""

import sys
from pprint import pformat
from typing import Any, TextIO

from fastapi_events.event import Event
from fastapi_events.handlers.base import BaseEventHandler, as_event

__all__ = ["EchoHandler"]


class EchoHandler(BaseEventHandler):
    """Pretty-prints every event: its name, id, time and payload.

    Args:
        stream: where to; by default what `sys.stdout` is at that moment.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    async def handle(self, event: Event[object] | Any) -> None:  # Any: 0.12 passed pairs
        """Print one event."""
        event = as_event(event)
        shown = pformat(event.payload, width=100, sort_dicts=False).replace("\n", "\n  ")
        print(
            f"{event.name} {event.id} {event.time.isoformat()}\n  {shown}", file=self._stream or sys.stdout, flush=True
        )
