"""One subscriber's events of a delivery: what the ways of handing them over have in common."""

import asyncio
import types
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeAlias

from fastapi_events.event import Event
from fastapi_events.scope import Scope
from fastapi_events.subscriber import Subscriber

if TYPE_CHECKING:
    from fastapi_events.delivery import Delivery

__all__ = ["Ended", "Item", "Line", "call_in_thread", "call_with_copy", "resumed"]

Ended: TypeAlias = tuple[Any, BaseException | None]  # what a function returned, or what it raised


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


class Line(ABC):
    """One subscriber's events of a delivery, in order.

    Attributes:
        waiting: the events that it has not been given.
        running: those that it has, and has not finished with; with the number of attempts begun.
        queued: it is among the lines that wait for a worker.
        workers: how many serve it.
        attended: the ASGI call waits for it.
    """

    # most lines leave these as they are
    queued: bool = False
    workers: int = 0
    attended: bool = False

    def __init__(self, subscriber: Subscriber, delivery: "Delivery") -> None:
        self.subscriber: Subscriber = subscriber
        self.waiting: deque[Item] = deque()
        self.running: dict[Item, int] = {}
        self.delivery = delivery

    @abstractmethod
    async def hand_over(self, context: Context) -> None:
        """Hand over events that came with this context, until there are no more or the delivery has had enough."""

    def is_open(self) -> bool:
        """Tell whether the subscriber may be given another event now."""
        return self.workers < self.subscriber.concurrency

    def has_only_retries(self) -> bool:
        """Tell whether nothing goes on, or can begin, but further attempts."""
        return False

    def has_threads(self) -> bool:
        """Tell whether attempts that timed out still run."""
        return False

    def give_up(self) -> list[tuple[Item, int]]:
        """Take all events off; return them with the number of attempts begun."""
        given_up = [*self.running.items(), *((item, 0) for item in self.waiting)]
        self.running.clear()
        self.waiting.clear()
        self.attended = False
        return given_up

    def delivered(self, item: Item) -> None:
        """Count an event that the subscriber has handled."""
        if self.running.pop(item, None) is not None:  # else a drain has given it up, and reported it
            self.delivery.tally.delivered += 1
            self.delivery.finish(item)

    async def fail(self, item: Item, error: BaseException, attempts: int) -> None:
        """Report a failure; raise the error again if it tells of none, but ends this worker."""
        if self.ends_worker(error):
            raise error
        await self.delivery.uncancel()
        if self.running.pop(item, None) is None:
            return
        try:
            await self.delivery.bus.reporter.failed(item.event, self.subscriber.name, error, attempts)
        except asyncio.CancelledError:
            await self.delivery.uncancel()  # a hook may cancel its task as well
        finally:
            self.delivery.finish(item)

    def ends_worker(self, error: BaseException) -> bool:
        """Tell whether an exception ends this worker; the exit of a sync subscriber ends no more than its thread."""
        if not self.subscriber.is_async and isinstance(error, (KeyboardInterrupt, SystemExit)):
            return False
        return self.delivery.ends_worker(error)


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


def call_in_thread(function: Callable[[Any, Scope], Any], event: Callable[[], Event[Any]], scope: Scope) -> Ended:
    """Call a subscriber in a worker thread, of which no exception comes out."""
    try:
        return function(event(), scope), None
    except BaseException as error:
        return None, error
