"""From a scope's events to its subscribers, side by side, each in order.

A `Delivery` keeps one line of events for each subscriber. Workers, which are tasks of the bus, take lines and serve
them. One worker serves line after line; only when a subscriber suspends is another made for the lines that still
wait. So there is no task where nothing suspends, and subscribers run side by side where they do.
"""

import asyncio
import math
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any, Final, Protocol

from fastapi_events.event import Event
from fastapi_events.ledger import Tally
from fastapi_events.line import Item, Line
from fastapi_events.reporter import GivenUp, Reporter
from fastapi_events.scope import Bus, Scope, current_scope
from fastapi_events.subscriber import Subscriber

__all__ = ["Delivery", "DeliveryBus"]

SLICE: Final = 0.005  # seconds of work after which a delivery lets the event loop do other things
ROUTED_AT_ONCE: Final = 512  # events sorted into lines between two looks at the clock: about 1 ms


class DeliveryBus(Bus, Protocol):
    """What a delivery needs of the EventBus."""

    reporter: Reporter
    copies_payloads: bool  # even for a single subscriber

    def subscribers(self, event: Event[Any]) -> Sequence[Subscriber]:
        """Return who receives an event, each once."""
        ...

    def active(self, delivery: "Delivery") -> None:
        """Keep a delivery that has work."""
        ...

    def idle(self, delivery: "Delivery") -> None:
        """Let a delivery go."""
        ...


class Delivery:
    """Hands the events of one scope to their subscribers, on the event loop on which it was made.

    Attributes:
        loop: that event loop.
        scope: whose events they are.
        bus: which knows the subscribers.
        tally: where to count.
        is_stopped: nothing more begins: a drain gives up, or the loop ends.
        slice_end: when, by `monotonic()`, it is time to let the event loop do other things.
    """

    __slots__ = (
        "_arrived", "_attended", "_is_cut_off", "_is_pausing", "_lines", "_ready", "_reinforcement", "_settled",
        "_tasks", "_workers", "bus", "is_stopped", "loop", "scope", "slice_end", "tally",
    )  # fmt: skip

    def __init__(self, bus: DeliveryBus, scope: Scope, loop: asyncio.AbstractEventLoop, tally: Tally) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.scope: Scope = scope
        self.bus: DeliveryBus = bus
        self.tally: Tally = tally
        self.is_stopped: bool = False
        self.slice_end: float = 0.0
        self._is_cut_off = False  # by a drain, which reports what is left
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived: deque[tuple[deque[Event[Any]], Context]] = deque()
        self._lines: dict[Subscriber, Line] = {}
        self._ready: deque[Line] = deque()
        self._workers = 0
        self._reinforcement: asyncio.Handle | None = None
        self._is_pausing = False
        self._attended = 0  # arrivals and lines that the ASGI call waits for
        self._settled: asyncio.Future[None] | None = None

    def add(self, events: Sequence[Event[Any]], context: Context, *, eagerly: bool = False) -> None:
        """Take events, in dispatch order; their subscribers run in copies of the context.

        Nothing is delivered before this returns, unless `eagerly` is set and the interpreter can (CPython 3.12).
        """
        self.bus.active(self)
        if context.get(current_scope) is not self.scope:
            context.run(current_scope.set, self.scope)
        self._arrived.append((deque(events), context))
        self._attended += 1
        if eagerly:
            self._employ(eagerly=True)
        else:
            self.call_reinforcement()

    def is_settled(self) -> bool:
        """Tell whether every first attempt has ended."""
        return not self._attended

    async def settled(self) -> None:
        """Wait until every first attempt has ended."""
        await asyncio.sleep(0)  # for most it is enough that workers begin, and costs half as much as a future
        if self._attended:
            if self._settled is None:
                self._settled = self.loop.create_future()
            await self._settled

    def oldest(self) -> int | None:
        """Return when, in nanoseconds since the epoch, the oldest unfinished event was dispatched; from any thread."""
        times: list[int] = []
        for line in list(self._lines.values()):
            times.extend(item.event._at for item in list(line.running)[:1])
            with suppress(IndexError):  # the last one may just have gone
                times.append(line.waiting[0].event._at)
        for events, _ in list(self._arrived):
            with suppress(IndexError):
                times.append(events[0]._at)
        return min(times, default=None)

    def unfinished(self) -> list[Event[Any]]:
        """Return the events that some subscriber has yet to finish with; from any thread."""
        items = {item for line in list(self._lines.values()) for item in (*line.running, *line.waiting)}
        arrived = [event for events, _ in list(self._arrived) for event in list(events)]
        return [item.event for item in items] + arrived

    def cut_off(self) -> "set[asyncio.Task[None]]":
        """Begin nothing more, and cancel what runs; return that. Whoever calls this calls `give_up` later."""
        self.is_stopped = self._is_cut_off = True
        for task in self._tasks:
            # else its time limit has passed, or its subscriber failed, and it is closing what it has open
            if not task.cancelling() and task not in self.scope.closing:
                task.cancel()
        return self._tasks

    def give_up(self) -> list[GivenUp]:
        """Take all events off; return them with each subscriber that does not get them."""
        self._route(math.inf)
        given_up: list[GivenUp] = []
        for line in self._lines.values():
            for item, attempts in line.give_up():
                given_up.append((item.event, line.subscriber.name, attempts))
                self.finish(item)
        self._ready.clear()
        self._attended = 0
        self._settle()
        self.is_stopped = self._is_cut_off = False
        self._rest()
        return given_up

    # Workers

    def call_reinforcement(self) -> None:
        """Have a worker made as soon as the loop runs: when the present one suspends, or where there is none."""
        if self._reinforcement is None:
            self._reinforcement = self.loop.call_soon(self._reinforce)

    def _reinforce(self) -> None:
        self._reinforcement = None
        if self._has_work():
            self._employ()

    def _dismiss_reinforcement(self) -> None:
        if self._reinforcement is not None:
            self._reinforcement.cancel()
            self._reinforcement = None

    def _employ(self, *, eagerly: bool = False) -> None:
        task: asyncio.Task[None]
        if eagerly and sys.version_info >= (3, 12):
            task = asyncio.Task(self._work(), loop=self.loop, eager_start=True)
        else:
            task = self.loop.create_task(self._work())
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._left)

    async def _work(self) -> None:
        worker = _worker()
        self._workers += 1
        self.slice_end = monotonic() + SLICE
        try:
            while not self.is_stopped:
                if self._arrived:
                    self._route(ROUTED_AT_ONCE)
                    if not self._arrived:
                        continue
                elif self._ready:
                    await self._serve(self._ready.popleft())
                    if worker.cancelling():
                        await self.uncancel()
                else:
                    break
                if self.has_had_enough():
                    if self._is_pausing:
                        break  # two that go on after a pause would take two slices of each turn of the loop
                    self._dismiss_reinforcement()  # and so would a new one
                    self._is_pausing = True
                    await self.pause()
                    self._is_pausing = False
        except GeneratorExit:
            self.is_stopped = True
            raise
        finally:
            self._workers -= 1
            if self._has_work():
                self.call_reinforcement()
            elif not self._workers:
                self._retire()

    def _retire(self) -> None:
        """Account for what is left, if anything is: the last worker has left."""
        if not self.is_stopped:
            self._rest()
        elif not self._is_cut_off:
            self.bus.reporter.lost(self.give_up(), "its event loop ended")

    def _left(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() and self._has_work():
            self.call_reinforcement()  # it may have been cancelled before it began

    def _rest(self) -> None:
        if self._reinforcement is not None:
            self._dismiss_reinforcement()
        self._lines = {subscriber: line for subscriber, line in self._lines.items() if line.threads}
        if self.scope.ended:
            self.scope.disconnect()
            if not self._lines and self.scope.delivery is self:
                self.scope.delivery = None  # a circle would wait for the collection of garbage, which stalls the loop
        self.bus.idle(self)

    def _has_work(self) -> bool:
        return bool(self._arrived or self._ready) and not self.is_stopped

    def has_had_enough(self) -> bool:
        """Tell whether it is time to let the event loop do other things, or nothing more may begin."""
        return self.is_stopped or monotonic() >= self.slice_end

    async def pause(self) -> None:
        """Let the event loop do other things."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            self.ends_worker(error)
        self.slice_end = monotonic() + SLICE

    def ends_worker(self, error: BaseException) -> bool:
        """Tell whether an exception ends the running worker, rather than tells of a failure; if so, stop."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.is_stopped = True
            return True
        if self.is_stopped and not self.loop.is_running():  # this is thrown away, and the subscriber objects
            return True
        if not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            return False
        if not self.is_stopped and isinstance(error, asyncio.CancelledError):
            self.is_stopped = bool(_worker().cancelling()) and _is_ending(self.loop)
        return self.is_stopped

    async def uncancel(self) -> None:
        """Go on, if it was a subscriber that cancelled the running worker."""
        worker = _worker()
        if not worker.cancelling() or self.is_stopped:
            return
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # it may not have come out yet
        if _is_ending(self.loop):
            self.is_stopped = True
        while worker.cancelling() and not self.is_stopped:
            worker.uncancel()

    # Lines

    def _route(self, most: float) -> None:
        """Sort at most so many of the events that arrived into the lines of their subscribers."""
        while self._arrived and most > 0:
            events, context = self._arrived[0]
            while events and most > 0:
                most -= 1
                self._enqueue(events.popleft(), context)
            if not events:
                self._arrived.popleft()
                self._attended -= 1
        self._settle()

    def _enqueue(self, event: Event[Any], context: Context) -> None:
        subscribers = self.bus.subscribers(event)
        if not subscribers:
            self.bus.reporter.unheard(event)
            self.tally.finished += 1
            return
        lines = self._lines
        is_copied = not event._shared and (len(subscribers) > 1 or self.bus.copies_payloads)
        item = Item(event, context, len(subscribers), is_copied)
        for subscriber in subscribers:
            line = lines.get(subscriber)
            if line is None:
                line = lines[subscriber] = Line(subscriber, self)
            waiting = line.waiting
            if not waiting and not line.workers and not line.attended:
                line.attended = True
                self._attended += 1
            waiting.append(item)
            if not line.queued and line.workers < subscriber.concurrency:
                line.queued = True
                self._ready.append(line)

    def offer(self, line: Line) -> None:
        """Put a line among those that wait for a worker, if its subscriber can be given an event."""
        if not line.queued and line.is_open():
            line.queued = True
            self._ready.append(line)

    async def _serve(self, line: Line) -> None:
        """Serve a line until none of the events that came with its first one is left, or it is time for another."""
        if self._ready:
            self.call_reinforcement()
        given = line.waiting[0].context
        context, work = given.copy(), line.serve(given)
        try:
            awaited = context.run(work.send, None)
        except StopIteration:
            pass
        else:
            await self._resume(context, work, awaited)
        finally:
            line.workers -= 1
            if line.waiting:
                self.offer(line)
            if line.attended:
                self.release(line)

    def release(self, line: Line) -> None:
        """Let the ASGI call go, as far as this line is concerned, once its first attempts have ended."""
        if line.attended and ((not line.waiting and not line.workers) or line.has_only_retries()):
            line.attended = False
            self._attended -= 1
            self._settle()

    def finish(self, item: Item) -> None:
        """Count that one of an event's subscribers has finished with it."""
        item.remaining -= 1
        if not item.remaining:
            self.tally.finished += 1

    def _settle(self) -> None:
        if self._settled is not None and not self._attended:
            # the request that waited may have been cancelled, or gone with its loop
            if not self._settled.done() and not self.loop.is_closed():
                self._settled.set_result(None)
            self._settled = None

    @types.coroutine
    def _resume(self, context: Context, work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
        """Go on with a coroutine that has suspended, in its own context, within the running task.

        A task for each line would do the same at ten times the price; sharing a context would show what one subscriber
        sets to the next.
        """
        while True:
            step: Callable[[Any], Any] = work.send
            value: Any = None
            try:
                value = yield awaited
            except BaseException as error:
                if isinstance(error, GeneratorExit):  # the loop has gone, and its tasks are thrown away
                    self.is_stopped = True
                value, step = error, work.throw
            try:
                awaited = context.run(step, value)
            except StopIteration:
                return


def _worker() -> Any:
    return asyncio.current_task()


def _is_ending(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether the loop cancels all its tasks, as asyncio.run does at its end."""
    current = asyncio.current_task()
    return all(task.cancelling() or task is current for task in asyncio.all_tasks(loop))
