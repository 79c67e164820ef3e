"""What is under way on a bus, and who waits for its end."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from fastapi_events.delivery import Delivery
from fastapi_events.event import Event
from fastapi_events.scope import Scope, current_event, current_scope

__all__ = ["Arrivals", "Drain", "UnderWay"]


class Arrivals:
    """Events on their way to an event loop, from other threads or from outside of any scope.

    Attributes:
        events: in the order in which they were sent, with their scope and context.
        taken: how many were taken off, from the beginning.
    """

    def __init__(self) -> None:
        self.events: deque[tuple[Event[Any], Scope | None, Context]] = deque()
        self.taken: int = 0

    def take(self) -> tuple[Event[Any], Scope | None, Context]:
        """Take the first one off."""
        self.taken += 1
        return self.events.popleft()


@dataclass(eq=False, kw_only=True)
class Drain:
    """A drain under way.

    Attributes:
        around: the scopes that its caller is in, and that end only after it.
        by_subscriber: whether its caller is a subscriber, whose delivery ends only after it.
        scopes: whose events it waits for.
        deliveries: that it waits for.
    """

    around: set[Scope]
    by_subscriber: bool
    scopes: set[Scope]
    deliveries: set[Delivery]

    def is_awaited(self) -> bool:
        """Tell whether another drain can wait for this one."""
        return self.by_subscriber or any(scope.backlog is not None for scope in self.around)


class UnderWay:
    """What is under way on a bus.

    Attributes:
        scopes: open ones with a backlog.
        deliveries: that are not finished.
    """

    def __init__(self) -> None:
        self.scopes: set[Scope] = set()
        self.deliveries: set[Delivery] = set()
        self._drains: list[Drain] = []
        self._watchers: set[asyncio.Future[None]] = set()

    def begin_drain(self) -> Drain:
        """Remember a drain of all that is under way on the running loop."""
        loop = asyncio.get_running_loop()
        drain = Drain(
            around=set(_scopes_around()),
            by_subscriber=current_event.get() is not None,
            scopes={scope for scope in list(self.scopes) if scope.loop is loop},
            deliveries={delivery for delivery in list(self.deliveries) if delivery.loop is loop},
        )
        self._drains.append(drain)
        self.changed()  # another drain may wait for this one
        return drain

    def end_drain(self, drain: Drain) -> None:
        """Forget a drain."""
        self._drains.remove(drain)

    def deliveries_left(self, drain: Drain) -> Iterator[Delivery]:
        """Return the deliveries that a drain has to wait for: not what waits for a drain that could wait for it."""
        others = self._drains if drain.is_awaited() else (drain,)
        waiting = {scope for other in others if other.by_subscriber for scope in other.around}
        for delivery in list(self.deliveries):
            if (delivery in drain.deliveries or delivery.scope in drain.scopes) and delivery.scope not in waiting:
                yield delivery

    def scopes_left(self, drain: Drain) -> Iterator[Scope]:
        """Return the same of the open scopes with a backlog."""
        others = self._drains if drain.is_awaited() else (drain,)
        waiting = {scope for other in others for scope in other.around}
        return (scope for scope in drain.scopes if scope.backlog and scope not in waiting)

    async def quiet(self, drain: Drain, deadline: float) -> None:
        """Wait until nothing is left, or for the deadline."""
        loop = asyncio.get_running_loop()
        while next(self.deliveries_left(drain), None) or next(self.scopes_left(drain), None):
            left = deadline - loop.time()
            if left <= 0:
                return
            changed: asyncio.Future[None] = loop.create_future()
            self._watchers.add(changed)
            try:
                await asyncio.wait({changed}, timeout=left)
            finally:
                self._watchers.discard(changed)

    def changed(self) -> None:
        """Have every drain look again; from any thread."""
        if not self._watchers:
            return
        for watcher in list(self._watchers):
            if not watcher.done() and not watcher.get_loop().is_closed():
                watcher.get_loop().call_soon_threadsafe(_complete, watcher)


def _scopes_around() -> Iterator[Scope]:
    scope = current_scope.get()
    while scope is not None:
        yield scope
        scope = scope.parent


def _complete(watcher: "asyncio.Future[None]") -> None:
    if not watcher.done():
        watcher.set_result(None)
