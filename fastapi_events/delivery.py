"""From a scope's events to its subscribers: order, concurrency, attempts, isolation.

A `Delivery` keeps one line of events for each subscriber, in dispatch order. Workers, which are tasks of the bus, take
lines and serve them. One worker serves line after line; only when a subscriber suspends is another made for the lines
that still wait. So there is no task where nothing suspends, and subscribers run side by side where they do.
"""

import asyncio
import logging
import math
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import Context
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from itertools import count
from time import monotonic
from typing import Any, Final, Protocol

from fastapi_events.errors import ConfigurationError, ForwardError
from fastapi_events.event import Event
from fastapi_events.handlers.base import BaseEventHandler
from fastapi_events.reporter import GivenUp, Reporter
from fastapi_events.retry import Retry
from fastapi_events.scope import Bus, Scope, current_event, current_scope, run_in_thread

__all__ = ["Delivery", "DeliveryBus", "Router", "Subscriber", "as_subscriber"]

SLICE: Final = 0.005  # seconds of work after which a delivery lets the event loop do other things
ROUTED_AT_ONCE: Final = 512  # events sorted into lines between two looks at the clock: about 1 ms
CANCELLATION_GRACE: Final = 1.0  # seconds that a cancelled subscriber gets to clean up
BATCH: Final = 1000  # events at most that one thread hop, or one call of handle_many, is given

logger: logging.Logger = logging.getLogger("fastapi_events")


@dataclass(frozen=True, eq=False, kw_only=True)
class Subscriber:
    """Who receives an event: a function on a LocalHandler, or a whole handler.

    Attributes:
        name: for logs and reports.
        call: takes the event and its scope; where `batch` is set, a list of events and their scope.
        is_async: `call` returns an awaitable; otherwise it runs in a worker thread.
        is_function: a function on a LocalHandler, which receives opaque events too.
        batch: a handler that wants the events of a delivery together.
        retry: None for one attempt.
        timeout: seconds for one attempt; None for no limit.
        concurrency: how many events it may handle at once; 1 keeps their order.
    """

    name: str
    call: Callable[[Any, Scope], Any]
    is_async: bool = True
    is_function: bool = True
    batch: bool = False
    retry: Retry | None = None
    timeout: float | None = None
    concurrency: int = 1


class Router(Protocol):
    """A handler that is not one subscriber, but knows several."""

    def matching_subscribers(self, name: str) -> Sequence[Subscriber]:
        """Return who receives events of this name, each once."""
        ...


def as_subscriber(handler: Any) -> Subscriber:
    """Return a handler as one subscriber: event by event where it leaves `handle_many` to the base class.

    Raises:
        ConfigurationError: it is a class, or its `handle_many` (or `handle`) is missing or not async.
    """
    name = type(handler).__qualname__
    if isinstance(handler, type):
        raise ConfigurationError(f"{handler.__qualname__} is a class: pass an instance, {handler.__qualname__}(...)")
    if not iscoroutinefunction(getattr(handler, "handle_many", None)):
        raise ConfigurationError(
            f"{name} cannot be a handler: it has no `async def handle_many(self, events)`; derive it from "
            "BaseEventHandler and write handle()"
        )
    kind: Any = type(handler)  # pyright: ignore[reportUnknownVariableType]  # it may be anything
    if getattr(kind, "handle_many", None) is BaseEventHandler.handle_many:  # pyright: ignore[reportUnknownArgumentType]
        if not iscoroutinefunction(handler.handle):
            raise ConfigurationError(f"{name} cannot be a handler: write `async def handle(self, event)`")
        return Subscriber(name=name, call=lambda event, _: handler.handle(event), is_function=False)
    return Subscriber(name=name, call=lambda events, _: handler.handle_many(events), is_function=False, batch=True)


class DeliveryBus(Bus, Protocol):
    """What a delivery needs of the EventBus."""

    delivered: int
    reporter: Reporter
    copies_payloads: bool  # even for a single subscriber

    def subscribers(self, event: Event[Any]) -> Sequence[Subscriber]: ...
    def active(self, delivery: "Delivery") -> None: ...
    def idle(self, delivery: "Delivery") -> None: ...
    def finished(self) -> None: ...


class _Item:
    """An event in a delivery."""

    __slots__ = ("context", "copied", "event", "remaining")

    def __init__(self, event: Event[Any], context: Context, remaining: int, copied: bool) -> None:
        self.event = event
        self.context = context
        self.remaining = remaining  # subscribers that have yet to finish with it
        self.copied = copied  # each subscriber, and each attempt, gets a payload of its own

    def for_subscriber(self) -> Event[Any]:
        return self.event.for_subscriber() if self.copied else self.event


class _Line:
    """One subscriber's events of a delivery, in order."""

    __slots__ = ("attended", "queued", "running", "subscriber", "thread", "waiting")

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.waiting: deque[_Item] = deque()
        self.running: list[_Item] = []
        self.queued = False  # among the lines that wait for a worker
        self.attended = False  # the ASGI call waits for it: not once a further attempt is due
        self.thread: asyncio.Task[Any] | None = None  # an attempt that timed out and still runs


class Delivery:
    """Hands the events of one scope to their subscribers, on the event loop on which it was made."""

    def __init__(self, bus: DeliveryBus, scope: Scope) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.scope = scope
        self._bus = bus
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived: deque[tuple[deque[Event[Any]], Context]] = deque()
        self._lines: dict[Subscriber, _Line] = {}
        self._ready: deque[_Line] = deque()
        self._workers = 0
        self._reinforcement: asyncio.Handle | None = None
        self._slice_end = 0.0
        self._stopped = False  # by a drain, or because the loop ends
        self._draining = False  # who cancels also reports
        self._attended = 0  # arrivals and lines that the ASGI call waits for
        self._settled: asyncio.Future[None] | None = None

    def add(self, events: Sequence[Event[Any]], context: Context, *, eagerly: bool = False) -> None:
        """Take events, in dispatch order; their subscribers run in copies of the context.

        Nothing is delivered before this returns, unless `eagerly` is set and the interpreter can (CPython 3.12).
        """
        if not self._workers and self._reinforcement is None:
            self._bus.active(self)
        self._arrived.append((deque(events), context))
        self._attended += 1
        if eagerly:
            self._employ(eagerly=True)
        else:
            self._call_reinforcement()

    def settled(self) -> asyncio.Future[None] | None:
        """Return what is done when every first attempt has ended; None if that is so already."""
        if not self._attended:
            return None
        if self._settled is None:
            self._settled = self.loop.create_future()
        return self._settled

    def oldest(self) -> int | None:
        """Return the time, in nanoseconds since the epoch, of the oldest event that is not finished."""
        times = [item.event._at for line in self._lines.values() for item in (*line.running, *line.waiting)[:1]]
        times.extend(events[0]._at for events, _ in self._arrived if events)
        return min(times, default=None)

    def unfinished(self) -> list[Event[Any]]:
        """Return the events that some subscriber has yet to finish with."""
        items = {item for line in self._lines.values() for item in (*line.running, *line.waiting)}
        return [item.event for item in items] + [event for events, _ in self._arrived for event in events]

    async def cut_off(self) -> list[GivenUp]:
        """Cancel what runs and give up what waits; return each event, its subscriber's name, and whether it ran."""
        self._stopped = self._draining = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCELLATION_GRACE)
        given_up = self._give_up()
        self._stopped = self._draining = False
        return given_up

    def _give_up(self) -> list[GivenUp]:
        self._route(math.inf)
        given_up: list[GivenUp] = []
        for line in self._lines.values():
            for items, started in ((line.running, True), (line.waiting, False)):
                for item in items:
                    given_up.append((item.event, line.subscriber.name, started))
                    self._finish(item)
                items.clear()
            line.attended = False
        self._ready.clear()
        self._attended = 0
        self._settle()
        self._bus.idle(self)
        return given_up

    def _employ(self, *, eagerly: bool = False) -> None:
        task: asyncio.Task[None]
        if eagerly and sys.version_info >= (3, 12):
            task = asyncio.Task(self._work(), loop=self.loop, eager_start=True)
        else:
            task = self.loop.create_task(self._work())
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        self._workers += 1
        self._slice_end = monotonic() + SLICE
        try:
            while True:
                if self._arrived:
                    self._route(ROUTED_AT_ONCE)
                elif self._ready:
                    line = self._ready.popleft()
                    line.queued = False
                    if self._ready:
                        self._call_reinforcement()
                    await self._serve(line)
                else:
                    break
                if monotonic() >= self._slice_end:
                    await self._pause()
        finally:
            self._workers -= 1
            if not self._workers:
                self._retire()

    def _call_reinforcement(self) -> None:
        """Have a worker made as soon as the loop runs: when the present one suspends, or where there is none."""
        if self._reinforcement is None:
            self._reinforcement = self.loop.call_soon(self._reinforce)

    def _reinforce(self) -> None:
        self._reinforcement = None
        if self._arrived or self._ready:
            self._employ()
        elif not self._workers:
            self._retire()

    def _dismiss_reinforcement(self) -> None:
        if self._reinforcement is not None:
            self._reinforcement.cancel()
            self._reinforcement = None

    async def _pause(self) -> None:
        self._dismiss_reinforcement()  # another worker would only take turns with this one
        await asyncio.sleep(0)
        self._slice_end = monotonic() + SLICE

    def _retire(self) -> None:
        """End, for now: the last worker has left."""
        if self._stopped:
            self._dismiss_reinforcement()
            if not self._draining:
                self._bus.reporter.lost(self._give_up())
            return
        if self._arrived or self._ready:
            self._call_reinforcement()
            return
        self._dismiss_reinforcement()
        self._lines = {
            subscriber: line for subscriber, line in self._lines.items() if line.thread and not line.thread.done()
        }
        if self.scope.ended:
            self.scope.connection = None
        self._bus.idle(self)

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
        if not self._attended:
            self._settle()

    def _enqueue(self, event: Event[Any], context: Context) -> None:
        subscribers = self._bus.subscribers(event)
        if not subscribers:
            self._bus.reporter.unheard(event)
            self._bus.finished()
            return
        item = _Item(event, context, len(subscribers), len(subscribers) > 1 or self._bus.copies_payloads)
        for subscriber in subscribers:
            line = self._lines.get(subscriber)
            if line is None:
                line = self._lines[subscriber] = _Line(subscriber)
            if not line.waiting and not line.running:
                line.attended = True
                self._attended += 1
            line.waiting.append(item)
            self._offer(line)

    def _offer(self, line: _Line) -> None:
        if not line.queued and len(line.running) < line.subscriber.concurrency:
            line.queued = True
            self._ready.append(line)

    async def _serve(self, line: _Line) -> None:
        """Handle a line's events until none is left or it is time for another line."""
        if line.subscriber.batch:
            serve = self._hand_over
        elif not line.subscriber.is_async and line.subscriber.retry is None and line.subscriber.timeout is None:
            serve = self._hop
        else:
            serve = self._handle
        while line.waiting:
            context = line.waiting[0].context
            await _in_context(context.copy(), serve(line, context))
            if monotonic() >= self._slice_end or line.subscriber.concurrency > 1:
                break
        if line.waiting:
            self._offer(line)
        elif not line.running:
            self._release(line)

    def _release(self, line: _Line) -> None:
        """Let the ASGI call go as far as this line is concerned."""
        if line.attended:
            line.attended = False
            self._attended -= 1
            if not self._attended:
                self._settle()

    def _settle(self) -> None:
        if self._settled is not None and not self._attended:
            if not self._settled.done():  # the request that waited may have been cancelled
                self._settled.set_result(None)
            self._settled = None

    async def _handle(self, line: _Line, context: Context) -> None:
        current_scope.set(self.scope)
        subscriber, waiting, scope = line.subscriber, line.waiting, self.scope
        plain = subscriber.retry is None and subscriber.timeout is None
        while waiting and waiting[0].context is context:
            item = waiting.popleft()
            line.running.append(item)
            if waiting and subscriber.concurrency > 1:
                self._offer(line)
                self._call_reinforcement()
            if plain:
                current_event.set(item.event)
                try:
                    await subscriber.call(item.event.for_subscriber() if item.copied else item.event, scope)
                except BaseException as error:
                    self._check_cancellation(error)
                    await self._failed(line, item, error, 1)
                else:
                    self._delivered(line, item)
            else:
                await self._persist(line, item)
            if subscriber.concurrency > 1 or monotonic() >= self._slice_end:
                return

    async def _persist(self, line: _Line, item: _Item) -> None:
        """Handle one event, as often as the subscriber's `retry` says."""
        subscriber = line.subscriber
        retry = subscriber.retry
        for attempt in count(1):
            try:
                if retry is not None and attempt > 1:
                    self._release(line)
                    await retry.sleep(retry.delay(attempt - 1))
                await self._attempt(line, item)
            except BaseException as error:
                if subscriber.is_async or isinstance(error, asyncio.CancelledError):
                    self._check_cancellation(error)
                if retry is None or not retry.covers(error, attempt):
                    await self._failed(line, item, error, attempt)
                    return
                self._bus.reporter.retrying(item.event, subscriber.name, error, attempt)
            else:
                self._delivered(line, item)
                return

    async def _attempt(self, line: _Line, item: _Item) -> None:
        subscriber = line.subscriber
        if line.thread is not None:
            await asyncio.wait({line.thread})
            line.thread = None
        current_event.set(item.event)
        event = item.event.for_subscriber()
        if subscriber.is_async:
            async with asyncio.timeout(subscriber.timeout):
                await subscriber.call(event, self.scope)
            return
        thread = self.loop.create_task(run_in_thread(self.scope, subscriber.call, event, self.scope))
        try:
            await asyncio.wait({thread}, timeout=subscriber.timeout)
        except asyncio.CancelledError:
            thread.cancel()
            raise
        if not thread.done():
            line.thread = thread
            thread.add_done_callback(_log_late_end(subscriber.name))
            self._bus.reporter.overran(item.event, subscriber.name)
            raise TimeoutError(f"no end after {subscriber.timeout} s; its thread cannot be stopped and runs on")
        await _if_awaitable(thread.result())

    async def _hop(self, line: _Line, context: Context) -> None:
        """Handle a batch in one worker thread."""
        current_scope.set(self.scope)
        items = self._take(line, context)
        ended: list[tuple[Any, BaseException | None]] = []

        def run() -> None:
            for item in items:
                if self._stopped:
                    return
                current_event.set(item.event)
                try:
                    ended.append((line.subscriber.call(item.for_subscriber(), self.scope), None))
                except BaseException as error:  # even SystemExit: it ends a thread, not the process
                    ended.append((None, error))

        try:
            await run_in_thread(self.scope, run)
        except BaseException as error:
            self._check_cancellation(error)
            ended.extend((None, error) for _ in items[len(ended) :])
        finally:
            for item, (result, failure) in zip(items, list(ended), strict=False):
                await self._conclude(line, item, result, failure)

    async def _conclude(self, line: _Line, item: _Item, result: Any, error: BaseException | None) -> None:
        try:
            await _if_awaitable(result)
        except BaseException as raised:
            self._check_cancellation(raised)
            error = raised
        if error is None:
            self._delivered(line, item)
        else:
            await self._failed(line, item, error, 1)

    async def _hand_over(self, line: _Line, context: Context) -> None:
        """Give a batch to a handler."""
        current_scope.set(self.scope)
        items = self._take(line, context)
        # any of them may cause what the handler dispatches: the one at the end of the longest chain bounds it
        current_event.set(max((item.event for item in items), key=lambda event: len(event._chain)))
        failure: BaseException | None = None
        rejected: set[str] = set()  # empty: all of them
        try:
            await line.subscriber.call([item.for_subscriber() for item in items], self.scope)
        except BaseException as error:
            self._check_cancellation(error)
            failure = error
            if isinstance(error, ForwardError):
                rejected = {rejection.event.id for rejection in error.rejected}
        for item in items:
            if failure is not None and (not rejected or item.event.id in rejected):
                await self._failed(line, item, failure, 1)
            else:
                self._delivered(line, item)

    def _take(self, line: _Line, context: Context) -> list[_Item]:
        items: list[_Item] = []
        while line.waiting and line.waiting[0].context is context and len(items) < BATCH:
            items.append(line.waiting.popleft())
        line.running.extend(items)
        return items

    def _delivered(self, line: _Line, item: _Item) -> None:
        if self._own(line, item):
            self._bus.delivered += 1
            self._finish(item)

    async def _failed(self, line: _Line, item: _Item, error: BaseException, attempts: int) -> None:
        if self._own(line, item):
            try:
                await self._bus.reporter.failed(item.event, line.subscriber.name, error, attempts)
            finally:
                self._finish(item)

    def _own(self, line: _Line, item: _Item) -> bool:
        """Take the item off the line; False if a drain has given it up, and reported it, in the meantime."""
        try:
            line.running.remove(item)
        except ValueError:
            return False
        return True

    def _finish(self, item: _Item) -> None:
        item.remaining -= 1
        if not item.remaining:
            self._bus.finished()

    def _check_cancellation(self, error: BaseException) -> None:
        """Raise the error again if it ends this worker, rather than tells of a failure."""
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            self._stopped = True
            raise error
        task = asyncio.current_task()
        if not isinstance(error, asyncio.CancelledError) or task is None or not task.cancelling():
            return
        if self._stopped or _is_ending(self.loop):
            self._stopped = True
            raise error
        while task.cancelling():  # the subscriber cancelled its own task
            task.uncancel()


@types.coroutine
def _in_context(context: Context, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Run a coroutine in a context of its own, within the running task.

    A task for each line would do the same at ten times the price; sharing a context would show what one subscriber
    sets to the next.
    """
    step: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        try:
            awaited = context.run(step, value)
        except StopIteration:
            return
        try:
            value = yield awaited
            step = work.send
        except BaseException as error:
            value, step = error, work.throw


async def _if_awaitable(result: Any) -> None:
    # a plain function around a coroutine function, as many decorators make it
    if isawaitable(result):
        await result


def _is_ending(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether the loop cancels all its tasks, as asyncio.run does at its end."""
    current = asyncio.current_task()
    return all(task.cancelling() or task is current for task in asyncio.all_tasks(loop))


def _log_late_end(subscriber: str) -> Callable[[asyncio.Task[Any]], None]:
    def log(thread: asyncio.Task[Any]) -> None:
        error = None if thread.cancelled() else thread.exception()
        logger.warning(
            "subscriber %s ended after its timeout, %s", subscriber, f"with {error!r}" if error else "without an error"
        )

    return log
