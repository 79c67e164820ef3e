"""From a scope's events to its subscribers, side by side, each in order, where they cannot all be called at once.

A worker, which is a task of the bus, calls the subscribers of event after event. For one that suspends, or has options
such as a timeout, there is a line: the subscriber's events in their order. The worker that called it waits with it, and
others are made for what is left. So subscribers run side by side where they suspend, and those that do not share tasks.
"""

import asyncio
import operator
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import repeat
from time import monotonic
from typing import Any

from fastapi_events.attempts import OneByOne
from fastapi_events.batches import InThread, Together
from fastapi_events.direct import Begun, DeliveryBus, Left, begin
from fastapi_events.event import Event
from fastapi_events.ledger import Tally
from fastapi_events.line import Item, Line, call_with_copy, resumed
from fastapi_events.reporter import GivenUp
from fastapi_events.scope import Scope, current_event, current_scope
from fastapi_events.subscriber import Subscriber
from fastapi_events.workers import Workers

__all__ = ["Delivery"]


class Delivery(Workers):
    """Hands the events of one scope to their subscribers, on the event loop on which it was made.

    Attributes:
        scope: whose events they are.
        bus: which knows the subscribers.
        tally: where to count.
    """

    __slots__ = (
        "_arrived", "_attended", "_is_copied", "_is_cut_off", "_item", "_lines", "_ready", "_receivers", "_settled",
        "bus", "scope", "tally",
    )  # fmt: skip

    def __init__(self, bus: DeliveryBus, scope: Scope, loop: asyncio.AbstractEventLoop, tally: Tally) -> None:
        super().__init__(loop)
        self.scope: Scope = scope
        self.bus: DeliveryBus = bus
        self.tally: Tally = tally
        self._is_cut_off = False  # by a drain, which reports what is left
        self._attended = 0  # lines that the ASGI call waits for
        self._settled: asyncio.Future[None] | None = None
        self._arrived: deque[tuple[Event[Any], Context]] = deque()
        self._receivers: Iterator[Subscriber] | None = None  # whom the first of these has yet to be given to
        self._is_copied = False  # each of them gets a payload of its own
        self._item: Item | None = None  # this event, once it is in a line
        self._lines: dict[Subscriber, Line] = {}
        self._ready: deque[Line] = deque()

    def add(self, event: Event[Any], context: Context) -> None:
        """Take an event; its subscribers run in copies of the context, in dispatch order, and after this returns."""
        self.bus.under_way.active(self)
        if context.get(current_scope) is not self.scope:
            context.run(current_scope.set, self.scope)
        self._arrived.append((event, context))
        self.bus.under_way.added(self, event, context.get(current_event))
        self._call_reinforcement()

    async def take_over(self, events: Sequence[Event[Any]], context: Context, left: Left) -> None:
        """Go on with events that came before all others, in the task that began with them."""
        self.bus.under_way.active(self)
        self._arrived.extendleft(zip(reversed(events), repeat(context)))
        for event in events:
            self.bus.under_way.added(self, event, None)
        self._receivers = left.receivers
        self._is_copied = left.copied
        self.slice_end: float = left.slice_end
        await self._work(left.begun)

    def is_settled(self) -> bool:
        """Tell whether every first attempt has ended."""
        return not self._arrived and not self._attended

    async def settled(self) -> None:
        """Wait until every first attempt has ended."""
        if not self.is_settled():
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
        times.extend(event._at for event, _ in list(self._arrived))  # what is to go now may stand before older ones
        return min(times, default=None)

    def unfinished(self) -> list[Event[Any]]:
        """Return the events that some subscriber has yet to finish with; from any thread."""
        items = {item for line in list(self._lines.values()) for item in (*line.running, *line.waiting)}
        return [item.event for item in items] + [event for event, _ in list(self._arrived)]

    def cut_off(self) -> "set[asyncio.Task[None]]":
        """Begin nothing more, and cancel what runs; return that. Whoever calls this calls `give_up` later."""
        self.is_stopped: bool = True
        self._is_cut_off = True
        for task in self._workers:
            # else its time limit has passed, or its subscriber failed, and it is closing what it has open
            if not task.cancelling() and task not in self.scope.closing:
                task.cancel()
        return self._workers

    def give_up(self) -> list[GivenUp]:
        """Take all events off; return them with each subscriber that does not get them."""
        while self._arrived:
            event, context = self._arrived[0]
            for subscriber in self._receivers or self._begin(event, context):
                self._enqueue(subscriber, event, context)
            self._end()
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

    # Work

    def _has_work(self) -> bool:
        return bool(self._arrived or self._ready) and not self.is_stopped

    def _room(self) -> int:
        left = len(self._ready) + len(self._arrived)
        return left if self._receivers is None else left + operator.length_hint(self._receivers) - 1

    async def _do(self, worker: Any, begun: Begun | None) -> Begun | None:
        if begun is not None:
            await self._go_on(begun)
        elif self._arrived:
            return self._hand_out(worker)
        else:
            await self._serve(self._ready.popleft())
        return None

    def _ended(self) -> None:
        if not self.is_stopped:
            self._rest()
        elif not self._is_cut_off:
            self.bus.reporter.lost(self.give_up(), "its event loop ended")

    def _rest(self) -> None:
        self._dismiss_reinforcement()
        self._lines = {subscriber: line for subscriber, line in self._lines.items() if line.has_threads()}
        if self.scope.ended:
            self.scope.disconnect()
            if not self._lines and self.scope.delivery is self:
                self.scope.delivery = None  # a circle would wait for the collection of garbage, which stalls the loop
        self.bus.under_way.idle(self)
        if self._has_work():  # a signal handler or a destructor has dispatched within the lines above
            self.bus.under_way.active(self)
            self._call_reinforcement()

    # From what arrived to subscribers

    def _hand_out(self, worker: Any) -> Begun | None:
        """Give what arrived to its subscribers, until one suspends or fails, or it is time for other things.

        Those without options are called here, and most end here: neither a line nor a task is made for them. The
        others get it in their lines, as does who has earlier events in one.
        """
        arrived, lines, scope, tally = self._arrived, self._lines, self.scope, self.tally
        while arrived:
            event, context = arrived[0]
            for subscriber in self._receivers or self._begin(event, context):
                if not subscriber.is_plain or subscriber in lines:
                    self._enqueue(subscriber, event, context)
                else:
                    own = context.copy()
                    call = subscriber.call
                    work = call_with_copy(call, event, scope) if self._is_copied else call(event, scope)
                    try:
                        awaited = own.run(work.send, None)
                    except StopIteration:
                        tally.delivered += 1
                    except BaseException as error:
                        return Begun(subscriber, own, work, None, error)
                    else:
                        return Begun(subscriber, own, work, awaited, None)
                if monotonic() >= self.slice_end or worker.cancelling():
                    return None
            self._end()
            if monotonic() >= self.slice_end:
                break  # there may be no end of events that nobody receives
        return None

    def _begin(self, event: Event[Any], context: Context) -> Iterator[Subscriber]:
        """Begin with the first event that arrived; return who receives it."""
        subscribers, self._is_copied = begin(self.bus, event, context)
        receivers = self._receivers = iter(subscribers)
        return receivers

    def _end(self) -> None:
        """Take the first event that arrived off: its subscribers have it."""
        event, _ = self._arrived.popleft()
        self._receivers = None
        if self._item is None:
            self._finished(event)
        else:
            self.finish(self._item)
            self._item = None
        self._settle()

    def _enqueue(self, subscriber: Subscriber, event: Event[Any], context: Context) -> None:
        line, item = self._in_line(subscriber, event, context)
        line.waiting.append(item)
        self.offer(line)

    async def _go_on(self, begun: Begun) -> None:
        """Make a line for a subscriber of the first event that has suspended or failed, and go on with its call."""
        event, context = self._arrived[0]
        line, item = self._in_line(begun.subscriber, event, context)
        line.running[item] = 1
        line.workers = 1
        error = begun.error
        if error is None:
            self._employ_more()
            try:
                await resumed(self, begun.context.run, begun.work, begun.awaited)
            except BaseException as raised:
                error = raised
        if error is None:
            line.delivered(item)
            self._leave(line)
        else:
            await self._run(line, begun.context, line.fail(item, error, 1))

    def _in_line(self, subscriber: Subscriber, event: Event[Any], context: Context) -> tuple[Line, Item]:
        item = self._item
        if item is None:
            item = self._item = Item(event, context, self._is_copied)
        item.remaining += 1
        line = self._lines.get(subscriber)
        if line is None:
            line = self._lines[subscriber] = _line_of(subscriber)(subscriber, self)
        if not line.waiting and not line.workers and not line.attended:
            line.attended = True
            self._attended += 1
        return line, item

    # Lines

    def offer(self, line: Line) -> None:
        """Put a line among those that wait for a worker, if its subscriber can be given an event."""
        if not line.queued and line.is_open():
            line.queued = True
            self._ready.append(line)

    async def _serve(self, line: Line) -> None:
        """Serve a line until none of the events that came with its first one is left, or it is time for another."""
        line.queued = False
        line.workers += 1
        context = line.waiting[0].context
        await self._run(line, context.copy(), line.hand_over(context))

    async def _run(self, line: Line, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """Do a piece of a line's work in this context; when it suspends, let another worker go on with what is left."""
        try:
            awaited = context.run(work.send, None)
        except StopIteration:
            pass
        else:
            self._employ_more()
            await resumed(self, context.run, work, awaited)
        finally:
            self._leave(line)

    def _leave(self, line: Line) -> None:
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
            self._finished(item.event)

    def _finished(self, event: Event[Any]) -> None:
        self.tally.finished += 1
        self.bus.under_way.finished(self, event)

    def _settle(self) -> None:
        if self._settled is not None and self.is_settled():
            # the request that waited may have been cancelled, or gone with its loop
            if not self._settled.done() and not self.loop.is_closed():
                self._settled.set_result(None)
            self._settled = None


def _line_of(subscriber: Subscriber) -> type[Line]:
    if subscriber.batch:
        return Together
    if subscriber.is_async or subscriber.retry or subscriber.timeout is not None or subscriber.concurrency > 1:
        return OneByOne
    return InThread
