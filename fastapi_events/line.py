"""One subscriber's events of a delivery: attempts, threads, batches, and what became of each event."""

import asyncio
import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from inspect import isawaitable, iscoroutine
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from fastapi_events.errors import ForwardError, Rejection
from fastapi_events.event import Event
from fastapi_events.scope import Scope, current_event, run_in_thread
from fastapi_events.subscriber import Subscriber

if TYPE_CHECKING:
    from fastapi_events.delivery import Delivery

__all__ = ["Item", "Line", "call_with_copy", "resumed"]

BATCH: Final = 1000  # events at most that one thread hop, or one call of handle_many, is given

Ended: TypeAlias = tuple[Any, BaseException | None]  # what a function returned, or what it raised

logger: logging.Logger = logging.getLogger("fastapi_events")


class Item:
    """An event in a delivery.

    Attributes:
        remaining: how many subscribers have yet to finish with it; one more while it is handed out.
        copied: each subscriber gets a payload of its own.
    """

    __slots__ = ("context", "copied", "event", "remaining")

    def __init__(self, event: Event[Any], context: Context, copied: bool) -> None:
        self.event: Event[Any] = event
        self.context: Context = context
        self.remaining: int = 1
        self.copied: bool = copied

    def for_subscriber(self) -> Event[Any]:
        """Return what a subscriber gets."""
        return self.event.for_subscriber() if self.copied else self.event


class Line:
    """One subscriber's events of a delivery, in order.

    Attributes:
        waiting: the events that it has not been given.
        running: those that it has, and has not finished with; with the number of attempts begun.
        threads: attempts that timed out and still run.
        queued: it is among the lines that wait for a worker.
        workers: how many serve it.
        attended: the ASGI call waits for it.
    """

    # most lines leave these as they are
    queued: bool = False
    workers: int = 0
    attended: bool = False
    threads: "frozenset[asyncio.Task[Ended]]" = frozenset()
    _retrying: frozenset[Item] = frozenset()  # of those that run; each holds a worker

    def __init__(self, subscriber: Subscriber, delivery: "Delivery") -> None:
        self.subscriber: Subscriber = subscriber
        self.waiting: deque[Item] = deque()
        self.running: dict[Item, int] = {}
        self._delivery = delivery

    def is_open(self) -> bool:
        """Tell whether the subscriber may be given another event now."""
        return self.workers < self.subscriber.concurrency

    def has_only_retries(self) -> bool:
        """Tell whether nothing goes on, or can begin, but further attempts."""
        return len(self._retrying) == self.workers and not (self.waiting and self.is_open())

    def serve(self, context: Context) -> Coroutine[Any, Any, None]:
        """Hand over events that came with this context, until there are no more or the delivery has had enough."""
        self.queued = False
        self.workers += 1
        subscriber = self.subscriber
        if subscriber.batch:
            return self._hand_over(context)
        if subscriber.is_async or subscriber.retry or subscriber.timeout is not None or subscriber.concurrency > 1:
            return self._each_by_itself(context)
        return self._hop(context)

    def give_up(self) -> list[tuple[Item, int]]:
        """Take all events off; return them with the number of attempts begun."""
        given_up = [*self.running.items(), *((item, 0) for item in self.waiting)]
        self.running.clear()
        self.waiting.clear()
        self._retrying = frozenset()
        self.attended = False
        return given_up

    async def _each_by_itself(self, context: Context) -> None:
        while self.waiting and self.waiting[0].context is context:
            item = self.waiting.popleft()
            self.running[item] = 1
            if self.waiting and self.subscriber.concurrency > 1:
                self._delivery.offer(self)
            if self.subscriber.is_plain:
                event, scope = item.event, self._delivery.scope
                current_event.set(event)
                call = self.subscriber.call
                try:
                    await (call_with_copy(call, event, scope) if item.copied else call(event, scope))
                except BaseException as error:
                    await self.fail(item, error, 1)
                else:
                    self.delivered(item)
            else:
                await self._persist(item)
            if self.subscriber.concurrency > 1 or self._delivery.has_had_enough() or _is_cancelled(self._delivery.loop):
                return

    async def _persist(self, item: Item) -> None:
        """Handle one event, as often as the subscriber's `retry` says."""
        retry = self.subscriber.retry
        for attempt in count(1):
            try:
                if retry is not None and attempt > 1:
                    self._retrying |= {item}
                    self._delivery.release(self)
                    await retry.sleep(retry.delay(attempt - 1))
                    if self._is_given_up(item):
                        return
                await self._attempt(item, attempt)
            except BaseException as error:
                if retry is None or not retry.covers(error, attempt) or self._ends_worker(error):
                    self._retrying -= {item}
                    await self.fail(item, error, attempt)
                    return
                await self._delivery.uncancel()
                if self._is_given_up(item):
                    return
                self._delivery.bus.reporter.retrying(item.event, self.subscriber.name, error, attempt)
            else:
                self._retrying -= {item}
                self.delivered(item)
                return

    async def _attempt(self, item: Item, number: int) -> None:
        subscriber = self.subscriber
        while self.threads:
            await asyncio.wait(self.threads)
        self.running[item] = number
        current_event.set(item.event)
        event = item.event.for_subscriber()
        if subscriber.timeout is None:
            await self._call(event, None)
            return
        limit = asyncio.timeout(subscriber.timeout)
        try:
            async with limit:
                await self._call(event, limit)
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"no end after {subscriber.timeout} s") from error
            raise

    async def _call(self, event: Event[Any], limit: asyncio.Timeout | None) -> None:
        if self.subscriber.is_async:
            await self.subscriber.call(event, self._delivery.scope)
            return
        result = await self._in_thread(event, limit)
        if isawaitable(result):  # a plain function around a coroutine function, as many decorators make it
            await result

    async def _in_thread(self, event: Event[Any], limit: asyncio.Timeout | None) -> Any:
        delivery, subscriber = self._delivery, self.subscriber
        thread = delivery.loop.create_task(
            run_in_thread(delivery.scope, _call, subscriber.call, lambda: event, delivery.scope)
        )
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError:
            if limit is not None and limit.expired():  # it cannot be stopped: it keeps its place among the threads
                self.threads |= {thread}
                thread.add_done_callback(self._ended_late)
                delivery.bus.reporter.overran(event, subscriber.name)
            else:
                thread.cancel()
            raise
        result, error = thread.result()
        if error is not None:
            raise error
        return result

    def _ended_late(self, thread: "asyncio.Task[Ended]") -> None:
        self.threads -= {thread}
        error = None if thread.cancelled() else thread.result()[1]
        logger.warning(
            "subscriber %s ended after its timeout, %s",
            self.subscriber.name, "without an error" if error is None else f"with {error!r}",
        )  # fmt: skip

    async def _hop(self, context: Context) -> None:
        """Hand over a batch, event by event, in one worker thread."""
        scope = self._delivery.scope
        items = self._take(context)
        left = deque(items)
        ended: list[Ended] = []

        def run() -> None:
            for item in _taken_off(left):
                current_event.set(item.event)
                ended.append(_call(self.subscriber.call, item.for_subscriber, scope))

        failure: BaseException | None = None
        try:
            await run_in_thread(scope, run)
        except asyncio.CancelledError as error:
            failure = error
            self._put_back([*_taken_off(left)])  # the thread finishes with the event that it has begun
        except Exception as error:  # there is no thread to be had
            failure = error
        await self._conclude((item, *end) for item, end in zip(items, tuple(ended), strict=False))
        if failure is not None:
            await self._conclude((item, None, failure) for item in tuple(self.running))

    async def _hand_over(self, context: Context) -> None:
        """Hand over a batch in one call."""
        items = self._take(context)
        # any of them may cause what the handler dispatches: the one at the end of the longest chain bounds it
        current_event.set(max((item.event for item in items), key=lambda event: len(event._chain)))
        failure: BaseException | None = None
        try:
            await self.subscriber.call([item.for_subscriber() for item in items], self._delivery.scope)
        except BaseException as error:
            failure = error
        await self._conclude((item, None, error) for item, error in _errors_of(items, failure))

    def _take(self, context: Context) -> list[Item]:
        items: list[Item] = []
        while self.waiting and self.waiting[0].context is context and len(items) < BATCH:
            items.append(self.waiting.popleft())
        self.running.update(dict.fromkeys(items, 1))
        return items

    def _put_back(self, items: Sequence[Item]) -> None:
        for item in reversed(items):
            if self.running.pop(item, None) is not None:
                self.waiting.appendleft(item)

    async def _conclude(self, ended: Iterable[tuple[Item, Any, BaseException | None]]) -> None:
        """Settle what became of the events of a batch."""
        delivery = self._delivery
        for item, result, raised in ended:
            error = raised
            if error is None and isawaitable(result):
                if delivery.is_stopped and iscoroutine(result):
                    result.close()  # it would begin only now; whoever stops reports it
                    continue
                current_event.set(item.event)
                try:
                    await result
                except BaseException as failure:
                    error = failure
            if error is None:
                self.delivered(item)
            else:
                await self.fail(item, error, 1)
            if delivery.has_had_enough():
                await delivery.pause()

    def delivered(self, item: Item) -> None:
        """Count an event that the subscriber has handled."""
        if self.running.pop(item, None) is not None:  # else a drain has given it up, and reported it
            self._delivery.tally.delivered += 1
            self._delivery.finish(item)

    async def fail(self, item: Item, error: BaseException, attempts: int) -> None:
        """Report a failure; raise the error again if it tells of none, but ends this worker."""
        if self._ends_worker(error):
            raise error
        await self._delivery.uncancel()
        if self.running.pop(item, None) is None:
            return
        try:
            await self._delivery.bus.reporter.failed(item.event, self.subscriber.name, error, attempts)
        except asyncio.CancelledError:
            await self._delivery.uncancel()  # a hook may cancel its task as well
        finally:
            self._delivery.finish(item)

    def _is_given_up(self, item: Item) -> bool:
        """Tell whether a drain is about to give an event up, or did so before the subscriber gave in."""
        return self._delivery.is_stopped or item not in self.running

    def _ends_worker(self, error: BaseException) -> bool:
        """Tell whether an exception ends this worker; the exit of a sync subscriber ends no more than its thread."""
        if not self.subscriber.is_async and isinstance(error, (KeyboardInterrupt, SystemExit)):
            return False
        return self._delivery.ends_worker(error)


async def call_with_copy(call: Callable[[Any, Scope], Any], event: Event[Any], scope: Scope) -> None:
    """Call an async subscriber with a payload of its own, which is made in its own context."""
    await call(event.for_subscriber(), scope)


@types.coroutine
def resumed(
    delivery: "Delivery", run: Callable[..., Any], work: Coroutine[Any, Any, None], awaited: Any
) -> Generator[Any, Any, None]:
    """Go on with a coroutine that has suspended, within the running task; `run` makes its steps.

    Where that is the `run` of a context, the coroutine has this context for its own. A task for each line would do the
    same at ten times the price; sharing a context would show what one subscriber sets to the next.
    """
    while True:
        step: Callable[[Any], Any] = work.send
        value: Any = None
        try:
            value = yield awaited
        except GeneratorExit:  # the loop has gone, and its tasks are thrown away
            delivery.is_stopped = True
            run(work.close)  # which may have been thrown away already
            raise
        except BaseException as error:
            value, step = error, work.throw
        try:
            awaited = run(step, value)
        except StopIteration:
            return


def _call(function: Callable[[Any, Scope], Any], event: Callable[[], Event[Any]], scope: Scope) -> Ended:
    try:
        return function(event(), scope), None
    except BaseException as error:
        return None, error


def _is_cancelled(loop: asyncio.AbstractEventLoop) -> bool:
    task = asyncio.current_task(loop)
    return task is not None and task.cancelling() > 0


def _taken_off(items: deque[Item]) -> Iterator[Item]:
    """Take items off; another thread may do so at the same time."""
    while True:
        try:
            item = items.popleft()
        except IndexError:
            return
        yield item


def _errors_of(items: Sequence[Item], failure: BaseException | None) -> Iterator[tuple[Item, BaseException | None]]:
    """Give each event of a batch its share of a failure: all of it, unless a ForwardError says which, and why."""
    rejected: dict[str, Rejection] = {}
    if isinstance(failure, ForwardError):
        with suppress(AttributeError, TypeError):  # it lists something else than rejections
            rejected = {rejection.event.id: rejection for rejection in failure.rejected}
    if not any(item.event.id in rejected for item in items):
        yield from ((item, failure) for item in items)
        return
    for item in items:
        rejection = rejected.get(item.event.id)
        error = None if rejection is None else ForwardError(rejection.reason, [rejection])
        if error is not None:
            error.__cause__ = failure
        yield item, error
