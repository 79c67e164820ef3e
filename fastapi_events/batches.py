"""A subscriber that is given a batch of events at once: in one worker thread, or in one call."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from inspect import isawaitable, iscoroutine
from typing import Any, Final

from fastapi_events.errors import ForwardError, Rejection
from fastapi_events.line import Ended, Item, Line, call_in_thread
from fastapi_events.scope import current_event, run_in_thread

__all__ = ["InThread", "Together"]

BATCH: Final = 1000  # events at most that one thread hop, or one call of handle_many, is given


class _Batches(Line):
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
        delivery = self.delivery
        for item, result, raised in ended:
            error = raised
            if error is None and result is not None and isawaitable(result):
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


class InThread(_Batches):
    """The events of a sync subscriber without options: one worker thread calls it for event after event."""

    async def hand_over(self, context: Context) -> None:
        """Hand over a batch, event by event, in one worker thread."""
        scope = self.delivery.scope
        items = self._take(context)
        left = deque(items)
        ended: list[Ended] = []

        def run() -> None:
            for item in _taken_off(left):
                current_event.set(item.event)
                ended.append(call_in_thread(self.subscriber.call, item.for_subscriber, scope))

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


class Together(_Batches):
    """The events of a handler that takes several in one call of `handle_many`."""

    async def hand_over(self, context: Context) -> None:
        """Hand over a batch in one call."""
        items = self._take(context)
        # any of them may cause what the handler dispatches: the one at the end of the longest chain bounds it
        current_event.set(max((item.event for item in items), key=lambda event: len(event._chain)))
        failure: BaseException | None = None
        try:
            await self.subscriber.call([item.for_subscriber() for item in items], self.delivery.scope)
        except BaseException as error:
            failure = error
        await self._conclude((item, None, error) for item, error in _errors_of(items, failure))


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
