"""What is under way on a bus, and how a drain waits for its end."""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from fastapi_events.delivery import Delivery
from fastapi_events.direct import SLICE, with_last
from fastapi_events.event import Event
from fastapi_events.reporter import GivenUp, Reporter
from fastapi_events.scope import Scope, current_event, current_scope

__all__ = ["Sent", "UnderWay"]

CANCELLATION_GRACE: Final = 1.0  # seconds that cancelled subscribers get to clean up

Sent = tuple[Event[Any], Scope | None, Context]


class DrainedBus(Protocol):
    """What a drain needs of the EventBus; see there."""

    reporter: Reporter

    def deliver(self, event: Event[Any], scope: Scope | None, context: Context) -> None: ...
    def lose(self, events: Sequence[Event[Any]]) -> list[GivenUp]: ...


@dataclass(eq=False, kw_only=True)
class Drain:
    """A drain that goes on.

    Attributes:
        loop: whose events it waits for.
        around: the scopes that its caller is in, and that end only after it.
        by_subscriber: whether its caller is a subscriber, whose delivery ends only after it.
        is_last: the bus stops, and it waits for all events.
        events: else those that were unfinished, by their `id()`, and that they cause: it waits for these, and not for
            what else is dispatched in their scopes later, of which there may be no end.
        scopes: that were open, and have some of them.
        left: how many of them each delivery has.
        sent: which of them, from a thread or from outside of any scope, have yet to reach the loop.
    """

    loop: asyncio.AbstractEventLoop
    around: set[Scope]
    by_subscriber: bool
    is_last: bool
    events: dict[int, Event[Any]]
    scopes: set[Scope]
    left: Counter[Delivery]
    sent: set[int]

    def is_awaited(self) -> bool:
        """Tell whether another drain can wait for this one."""
        return self.by_subscriber or any(scope.backlog is not None for scope in self.around)


class UnderWay:
    """What is under way on a bus.

    Attributes:
        kept: events that wait until the bus is open.
        scopes: with a backlog, until that is handed out.
        deliveries: that are not finished.
        drains: that go on.
        watchers: of drains that wait for `changed`.
    """

    def __init__(self, bus: DrainedBus, lock: "threading.RLock") -> None:
        self.kept: list[Sent] = []
        self.scopes: set[Scope] = set()
        self.deliveries: set[Delivery] = set()
        self._bus = bus
        self._lock = lock
        self._sent: dict[asyncio.AbstractEventLoop, deque[Sent]] = {}  # of loops that have any
        self.drains: list[Drain] = []
        self.watchers: set[asyncio.Future[None]] = set()

    def send(self, loop: asyncio.AbstractEventLoop, sent: Sent) -> bool:
        """Have an event delivered by a loop as soon as it runs; tell whether it still can. The bus's lock is held."""
        queue = self._sent.get(loop)
        if queue is None:
            # first: a signal handler or a destructor may send within the lines below
            queue = self._sent.setdefault(loop, deque())
            try:
                loop.call_soon_threadsafe(self._arrive, loop, queue)
            except RuntimeError:  # it was closed just now
                self._sent.pop(loop, None)
                return False
        event, _, context = sent
        cause = context.get(current_event)
        for drain in list(self.drains):
            if drain.loop is loop and (drain.is_last or id(cause) in drain.events):
                drain.events[id(event)] = event
                drain.sent.add(id(event))
        queue.append(sent)
        return True

    def _arrive(self, loop: asyncio.AbstractEventLoop, queue: deque[Sent]) -> None:
        """Deliver what was sent to the running loop, in turns that leave it time for other things."""
        turn_ends = monotonic() + SLICE
        try:
            while queue and monotonic() < turn_ends:
                try:
                    self._bus.deliver(*queue[0])
                finally:  # even if a subscriber ends the program
                    with self._lock:
                        event, _, _ = queue.popleft()
                    self._arrived(event)
        finally:
            with self._lock:
                if not queue and self._sent.get(loop) is queue:
                    del self._sent[loop]
                if queue:  # maybe since the line above, from a signal handler or a destructor
                    self._sent.setdefault(loop, queue)
                    loop.call_soon(self._arrive, loop, queue)

    def _arrived(self, event: Event[Any]) -> None:
        """Have drains no longer wait for an event that no delivery has got."""
        for drain in list(self.drains):
            if id(event) in drain.sent:
                drain.sent.remove(id(event))
                self.changed()

    # From any thread. Lists, as loops and threads that go on change all of these.

    def not_begun(self) -> list[Event[Any]]:
        """Return the events that no scope and no delivery has."""
        sent = [one for queue in list(self._sent.values()) for one in list(queue)]
        return [event for event, _, _ in [*list(self.kept), *sent]]

    def collected(self) -> int:
        """Return how many events wait for the end of a request or block."""
        return sum(len(scope.backlog or ()) for scope in list(self.scopes))

    def unfinished(self) -> list[Event[Any]]:
        """Return the events that some subscriber has yet to finish with."""
        left = self.not_begun()
        for scope in list(self.scopes):
            left.extend(_events_of(scope))
        for delivery in list(self.deliveries):
            left.extend(delivery.unfinished())
        return list({id(event): event for event in left}.values())  # one may have moved on meanwhile

    def oldest(self) -> int | None:
        """Return when, in nanoseconds since the epoch, the oldest unfinished event was dispatched."""
        times = [oldest for delivery in list(self.deliveries) if (oldest := delivery.oldest()) is not None]
        times.extend(event._at for scope in list(self.scopes) for event in _events_of(scope)[:1])
        times.extend(event._at for event in self.not_begun())
        return min(times, default=None)

    # For deliveries

    def active(self, delivery: Delivery) -> None:
        """Keep a delivery that has work."""
        self.deliveries.add(delivery)

    def idle(self, delivery: Delivery) -> None:
        """Let a delivery go."""
        self.deliveries.discard(delivery)
        self.changed()

    def added(self, delivery: Delivery, event: Event[Any], cause: Event[Any] | None) -> None:
        """Have drains that wait for an event, or for its cause, wait for the delivery that has got it."""
        for drain in list(self.drains):
            if drain.loop is delivery.loop and (
                drain.is_last or id(event) in drain.events or id(cause) in drain.events
            ):
                drain.events[id(event)] = event
                drain.left[delivery] += 1
                if id(event) in drain.sent:
                    drain.sent.remove(id(event))
                    self.changed()  # the delivery may be one that waits for this drain

    def finished(self, delivery: Delivery, event: Event[Any]) -> None:
        """Have drains no longer wait for an event of a delivery."""
        for drain in list(self.drains):
            if delivery in drain.left and id(event) in drain.events:
                drain.left[delivery] -= 1
                if not drain.left[delivery]:
                    del drain.left[delivery]
                    self.changed()

    def changed(self) -> None:
        """Have every drain look again."""
        for watcher in list(self.watchers):
            if not watcher.done() and not watcher.get_loop().is_closed():
                watcher.get_loop().call_soon_threadsafe(_complete, watcher)

    # Draining

    async def drain(self, seconds: float, deadline: float, *, is_last: bool) -> list[GivenUp]:
        """Wait until all that is under way on the running loop, and what it causes, is handled; then give up.

        Args:
            seconds: that this takes at most, for what is said of events that are given up.
            deadline: the same in the loop's time.
            is_last: as in a Drain.
        """
        loop, reporter = asyncio.get_running_loop(), self._bus.reporter
        await reporter.hooks_ended(deadline)  # they may dispatch
        with self._lock:  # a thread that sends an event looks for drains first
            drain = self._begin_drain(loop, is_last)
        given_up: list[GivenUp] = []
        try:
            await asyncio.sleep(0)
            if not await self._is_quiet(drain, deadline):
                given_up = await self._give_up(drain)
            if given_up:
                await reporter.gave_up(given_up, seconds)
            await reporter.hooks_ended(deadline)
        finally:
            self.drains.remove(drain)
        return given_up

    def _begin_drain(self, loop: asyncio.AbstractEventLoop, is_last: bool) -> Drain:
        scopes = {scope for scope in list(self.scopes) if scope.loop is loop}
        sent = {id(event): event for event, _, _ in list(self._sent.get(loop, ()))}
        collected = {id(event): event for scope in scopes for event in _events_of(scope)}
        handed_over: dict[int, Event[Any]] = {}
        left = Counter[Delivery]()
        for delivery in list(self.deliveries):
            unfinished = {id(event): event for event in delivery.unfinished()}
            if unfinished and delivery.loop is loop:
                left[delivery] = len(unfinished)
                handed_over |= unfinished
        drain = Drain(
            loop=loop,
            around=set(_scopes_around()),
            by_subscriber=current_event.get() is not None,
            is_last=is_last,
            events=sent | collected | handed_over,
            scopes=scopes,
            left=left,
            sent=sent.keys() - handed_over.keys(),  # a subscriber may call this before its event is off the queue
        )
        self.drains.append(drain)
        self.changed()  # another drain may wait for this one
        return drain

    def _deliveries_left(self, drain: Drain) -> Iterator[Delivery]:
        """Return the deliveries that a drain has to wait for: not what waits for a drain that could wait for it."""
        others = self.drains if drain.is_awaited() else (drain,)
        waiting = {scope for other in others if other.by_subscriber for scope in other.around}
        for delivery in list(self.deliveries):
            if delivery in drain.left and delivery.scope not in waiting:
                yield delivery

    def _scopes_left(self, drain: Drain) -> Iterator[Scope]:
        """Return the same of the open scopes with a backlog."""
        others = self.drains if drain.is_awaited() else (drain,)
        waiting = {scope for other in others for scope in other.around}
        return (scope for scope in drain.scopes if scope.backlog and scope not in waiting)

    async def _is_quiet(self, drain: Drain, deadline: float) -> bool:
        """Wait until nothing is left, or for the deadline; tell which."""
        loop = asyncio.get_running_loop()
        while next(self._deliveries_left(drain), None) or next(self._scopes_left(drain), None) or drain.sent:
            left = deadline - loop.time()
            if left <= 0:
                return False
            changed: asyncio.Future[None] = loop.create_future()
            self.watchers.add(changed)
            try:
                await asyncio.wait({changed}, timeout=left)
            finally:
                self.watchers.discard(changed)
        return True

    async def _give_up(self, drain: Drain) -> list[GivenUp]:
        """Cancel what runs, and take off what waits."""
        left = self._take_off(drain)
        running = {delivery: delivery.cut_off() for delivery in self._deliveries_left(drain)}
        tasks = [task for several in running.values() for task in several]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=CANCELLATION_GRACE)
        except BaseException:
            given_up = self._end_of(running) + self._bus.lose(left)
            self._bus.reporter.lost(given_up, "the drain that gave it up was cancelled")
            raise
        for delivery in self._deliveries_left(drain):  # since then
            if delivery not in running:
                running[delivery] = delivery.cut_off()
        return self._end_of(running) + self._bus.lose(left + self._take_off(drain))

    def _take_off(self, drain: Drain) -> list[Event[Any]]:
        """Take off the events that no delivery has got."""
        with self._lock:
            queue = self._sent.get(drain.loop, deque[Sent]())
            taken = [event for event, _, _ in queue if id(event) in drain.sent]
            later = [one for one in queue if id(one[0]) not in drain.sent]
            queue.clear()
            queue.extend(later)
            for scope in list(self._scopes_left(drain)):
                backlog: list[Event[Any]] = scope.backlog or []
                mine = [event for event in backlog if id(event) in drain.events]
                backlog[:] = [event for event in backlog if id(event) not in drain.events]
                for event in mine:
                    (scope.conditions or {}).pop(id(event), None)  # another event may get this id
                if not backlog:
                    self.scopes.discard(scope)
                drain.scopes.discard(scope)
                taken += mine
        for event in taken:
            self._arrived(event)
        self.changed()
        return taken

    @staticmethod
    def _end_of(deliveries: Iterable[Delivery]) -> list[GivenUp]:
        return [one for delivery in deliveries for one in delivery.give_up()]


def _events_of(scope: Scope) -> Sequence[Event[Any]]:
    """Return the events that wait for the end of a scope, or are handed out there."""
    backlog, leaving = scope.backlog, scope.leaving
    if backlog:
        return backlog
    return with_last(*leaving) if leaving is not None else ()


def _scopes_around() -> Iterator[Scope]:
    scope = current_scope.get()
    while scope is not None:
        yield scope
        scope = scope.parent


def _complete(watcher: "asyncio.Future[None]") -> None:
    if not watcher.done():
        watcher.set_result(None)
