"""A subscriber that is given event by event, in attempts that may be repeated, or end by a time limit."""

import asyncio
import logging
from contextvars import Context
from inspect import isawaitable
from itertools import count
from typing import Any

from fastapi_events.event import Event
from fastapi_events.line import Ended, Item, Line, call_in_thread, call_with_copy
from fastapi_events.scope import current_event, run_in_thread

__all__ = ["OneByOne"]

logger: logging.Logger = logging.getLogger("fastapi_events")


class OneByOne(Line):
    """The events of an async subscriber, or of one with `retry`, `timeout` or `concurrency`."""

    _threads: "frozenset[asyncio.Task[Ended]]" = frozenset()  # of attempts that timed out and still run
    _retrying: frozenset[Item] = frozenset()  # of those that run; each holds a worker

    def has_only_retries(self) -> bool:
        return len(self._retrying) == self.workers and not (self.waiting and self.is_open())

    def has_threads(self) -> bool:
        return bool(self._threads)

    def give_up(self) -> list[tuple[Item, int]]:
        self._retrying = frozenset()
        return super().give_up()

    async def hand_over(self, context: Context) -> None:
        while self.waiting and self.waiting[0].context is context:
            item = self.waiting.popleft()
            self.running[item] = 1
            if self.waiting and self.subscriber.concurrency > 1:
                self.delivery.offer(self)
            if self.subscriber.is_plain:
                event, scope = item.event, self.delivery.scope
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
            if self.subscriber.concurrency > 1 or self.delivery.has_had_enough() or _is_cancelled(self.delivery.loop):
                return

    async def _persist(self, item: Item) -> None:
        """Handle one event, as often as the subscriber's `retry` says."""
        retry = self.subscriber.retry
        for attempt in count(1):
            try:
                if retry is not None and attempt > 1:
                    self._retrying |= {item}
                    self.delivery.release(self)
                    await retry.sleep(retry.delay(attempt - 1))
                    if self._is_given_up(item):
                        return
                await self._attempt(item, attempt)
            except BaseException as error:
                if retry is None or not retry.covers(error, attempt) or self.ends_worker(error):
                    self._retrying -= {item}
                    await self.fail(item, error, attempt)
                    return
                await self.delivery.uncancel()
                if self._is_given_up(item):
                    return
                self.delivery.bus.reporter.retrying(item.event, self.subscriber.name, error, attempt)
            else:
                self._retrying -= {item}
                self.delivered(item)
                return

    async def _attempt(self, item: Item, number: int) -> None:
        subscriber = self.subscriber
        while self._threads:
            await asyncio.wait(self._threads)
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
            await self.subscriber.call(event, self.delivery.scope)
            return
        result = await self._in_thread(event, limit)
        if isawaitable(result):  # a plain function around a coroutine function, as many decorators make it
            await result

    async def _in_thread(self, event: Event[Any], limit: asyncio.Timeout | None) -> Any:
        delivery, subscriber = self.delivery, self.subscriber
        thread = delivery.loop.create_task(
            run_in_thread(delivery.scope, call_in_thread, subscriber.call, lambda: event, delivery.scope)
        )
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError:
            if limit is not None and limit.expired():  # it cannot be stopped: it keeps its place among the threads
                self._threads |= {thread}
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
        self._threads -= {thread}
        error = None if thread.cancelled() else thread.result()[1]
        logger.warning(
            "subscriber %s ended after its timeout, %s",
            self.subscriber.name, "without an error" if error is None else f"with {error!r}",
        )  # fmt: skip

    def _is_given_up(self, item: Item) -> bool:
        """Tell whether a drain is about to give an event up, or did so before the subscriber gave in."""
        return self.delivery.is_stopped or item not in self.running


def _is_cancelled(loop: asyncio.AbstractEventLoop) -> bool:
    task = asyncio.current_task(loop)
    return task is not None and task.cancelling() > 0
