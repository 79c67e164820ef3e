"""The extension point: everything that receives events."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

from fastapi_events.event import Event

__all__ = ["BaseEventHandler", "EventHandler", "as_event", "raise_all"]


class EventHandler(Protocol):
    """What a bus takes as a handler; `BaseEventHandler` is the convenient way to be one."""

    async def handle_many(self, events: Iterable[Event[object]], /) -> None:
        """Receive the events of a delivery."""


class BaseEventHandler(ABC):
    """Receives events from the bus; derive from it and write `handle`.

    The bus calls `handle_many` once per delivery, with the events of one request (or block) in dispatch order; for
    several requests at once, on one event loop. The list and its events are this handler's own. What it raises is
    logged, counted and given to `on_error` as a failure of the whole batch (a `ForwardError`: of its `rejected`);
    it reaches nobody else.

    A handler may have `async def start(self)` and `async def stop(self)`: called when the bus starts and after its
    last delivery.
    """

    @abstractmethod
    async def handle(self, event: Event[object]) -> None:
        """Receive one event."""

    async def handle_many(self, events: Iterable[Event[object]]) -> None:
        """Receive the events of a delivery: by default one after another, all of them even if one fails.

        Raises:
            Exception: what `handle` raised; of several failures an ExceptionGroup.
        """
        errors: list[Exception] = []
        for event in events:
            try:
                await self.handle(event)
            except Exception as error:
                errors.append(error)
        raise_all(errors)


def raise_all(errors: list[Exception]) -> None:
    """Raise the one error, or a group of several."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} events failed", errors)


def as_event(event: Event[object] | tuple[str, object]) -> Event[object]:
    """Return the event; one of a plain `(name, payload)` tuple, as callers of 0.12 pass it."""
    # isinstance() cannot tell which payload it has
    return event if isinstance(event, Event) else Event(*event)  # pyright: ignore[reportUnknownVariableType]
