"""Tells what became of events that were not delivered: the log, counters, hooks, dead letters."""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar

from fastapi_events.errors import ConfigurationError
from fastapi_events.event import Event
from fastapi_events.reports import Failure, Undelivered

__all__ = ["GivenUp", "Hook", "Reporter"]

T = TypeVar("T")
Hook: TypeAlias = Callable[[T], object] | Iterable[Callable[[T], object]]
GivenUp: TypeAlias = tuple[Event[Any], str, int]  # an event, its subscriber's name, how many attempts were begun

REMINDER: Final = 60.0  # seconds between two log lines that say the bus is full
GRACE: Final = 5.0  # seconds that the dead-letter handler, and the hooks, get after a drain's deadline
KNOWN_NAMES: Final = 1000  # event names that are logged as unheard, once each
MESSAGE_LENGTH: Final = 500  # characters of an exception's message that go into a header

COUNTED: Final = (
    "failed", "dead_lettered", "cancelled", "retried", "overrun", "withheld", "refused", "unheard"
)  # fmt: skip

logger: logging.Logger = logging.getLogger("fastapi_events")


class Reporter:
    """Counts, logs, and calls hooks; a hook that fails is logged and disturbs nobody.

    Attributes:
        counts: pairs of event and subscriber, or events, by what became of them; see `Stats`.
    """

    def __init__(self, on_error: Hook[Failure], on_withheld: Hook[Event[Any]], dead_letters: Any) -> None:
        self.counts: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self._collectors: list[list[Undelivered]] = []
        self._on_error = _several("on_error", on_error)
        self._on_withheld = _several("on_withheld", on_withheld)
        self._dead_letters = dead_letters
        self._unheard_names: set[str] = set()
        self._next_reminder = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def collecting(self) -> Generator[list[Undelivered]]:
        """Collect what fails during the block."""
        failures: list[Undelivered] = []
        self._collectors.append(failures)
        try:
            yield failures
        finally:
            self._collectors = [other for other in self._collectors if other is not failures]  # lists may be equal

    async def failed(self, event: Event[Any], subscriber: str, error: BaseException, attempt: int) -> None:
        """Report that a subscriber failed finally."""
        for collected in self._collectors:
            collected.append(Undelivered(event.name, event.id, subscriber))
        became = "failed"
        try:
            try:
                logger.error(
                    "event %s (%s) failed in %s, attempt %d", event.name, event.id, subscriber, attempt, exc_info=error
                )
            finally:  # even if a logging handler fails
                if await self._bury([(event, subscriber, attempt)], error, "failed"):
                    became = "dead_lettered"
        finally:  # even if a drain ends the dead-letter handler
            self.counts[became] += 1
            await self._tell(self._on_error, Failure(event, subscriber, error, attempt))

    async def gave_up(self, given_up: Sequence[GivenUp], seconds: float) -> None:
        """Report what a drain left behind at its deadline."""
        error = asyncio.CancelledError(f"given up after {seconds:g} s of draining")
        kept = False
        try:
            kept = await self._in_time(self._bury(given_up, error, "drained"), "the dead-letter handler")
        finally:
            self.counts["dead_lettered" if kept else "cancelled"] += len(given_up)
            if not kept:
                _log_lost(given_up, f"a drain gave it up after {seconds:g} s")
        await self._in_time(self._tell_all(given_up, error), "on_error=")

    def lost(self, given_up: Sequence[GivenUp], why: str) -> None:
        """Report what nobody waits for any more, as at the end of an event loop."""
        self.counts["cancelled"] += len(given_up)
        _log_lost(given_up, why)
        error = asyncio.CancelledError(why)
        for event, subscriber, attempts in given_up:
            _tell_at_once(self._on_error, Failure(event, subscriber, error, attempts))

    def retrying(self, event: Event[Any], subscriber: str, error: BaseException, attempt: int) -> None:
        """Report an attempt that failed and will be followed by another."""
        self.counts["retried"] += 1
        logger.warning(
            "event %s (%s) failed in %s, attempt %d: %r; another follows",
            event.name, event.id, subscriber, attempt, error,
        )  # fmt: skip

    def overran(self, event: Event[Any], subscriber: str) -> None:
        """Report a thread that outlived its timeout."""
        self.counts["overrun"] += 1
        logger.warning("event %s (%s) overran its timeout in a thread of %s", event.name, event.id, subscriber)

    def unheard(self, event: Event[Any]) -> None:
        """Report an event that nobody subscribes to; logged once for each name."""
        self.counts["unheard"] += 1
        if event.name not in self._unheard_names and len(self._unheard_names) < KNOWN_NAMES:
            self._unheard_names.add(event.name)
            if event._opaque:
                logger.warning(
                    "nobody receives event %s (%s): it is opaque, and only functions on a LocalHandler receive such, "
                    "as local_handler.register(...)(handler.handle) makes one of another handler",
                    event.name, event.id,
                )  # fmt: skip
                return
            logger.info(
                "nobody listens to event %s (%s): is the module with its subscribers imported?", event.name, event.id
            )

    def refused(self, event: Event[Any], pending: int) -> None:
        """Report an event that a full bus did not take; logged once a minute."""
        self.counts["refused"] += 1
        if time.monotonic() >= self._next_reminder:
            self._next_reminder = time.monotonic() + REMINDER
            logger.error(
                "the bus is full with %d events: %s (%s) is refused, as others will be", pending, event.name, event.id
            )

    def withheld(self, events: Sequence[Event[Any]], awaited: str) -> None:
        """Report events whose outcome did not come."""
        self.counts["withheld"] += len(events)
        if not events or not (self._on_withheld or logger.isEnabledFor(logging.INFO)):
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a block that is thrown away with its loop
            for event in events:
                _log_withheld(event, awaited)
                _tell_at_once(self._on_withheld, event)
        else:
            self._start(self._tell_withheld(events, awaited))

    async def hooks_ended(self, deadline: float) -> None:
        """Wait for what was started here on the running loop, until the deadline in the loop's time; then cancel it."""
        loop = asyncio.get_running_loop()
        tasks = {task for task in self._tasks if task.get_loop() is loop} - {asyncio.current_task()}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))
        for task in late:
            task.cancel()
            logger.error("on_withheld= took too long and was cancelled")

    async def _tell_withheld(self, events: Sequence[Event[Any]], awaited: str) -> None:
        left = deque(events)
        try:
            while left:
                event = left.popleft()
                _log_withheld(event, awaited)
                await self._tell(self._on_withheld, event)
                await asyncio.sleep(0)
        finally:  # a drain ends this at its deadline
            for event in left:
                _log_withheld(event, awaited)
                _tell_at_once(self._on_withheld, event)

    async def _tell_all(self, given_up: Sequence[GivenUp], error: BaseException) -> None:
        for event, subscriber, attempts in given_up:
            await self._tell(self._on_error, Failure(event, subscriber, error, attempts))

    async def _bury(self, given_up: Sequence[GivenUp], error: BaseException, reason: str) -> bool:
        """Give events to the dead-letter handler; tell whether it took them."""
        if self._dead_letters is None:
            return False
        try:
            await self._dead_letters.handle_many([_letter(*one, error, reason) for one in given_up])
        except BaseException as failure:
            names = ", ".join(f"{event.name} ({event.id})" for event, _, _ in given_up)
            logger.exception("the dead-letter handler failed: %s", names)
            if _ends_task(failure):
                raise
            return False
        return True

    async def _tell(self, hooks: Sequence[Callable[[T], object]], what: T) -> None:
        for hook in hooks:
            with _surviving(hook):
                result = hook(what)
                if inspect.isawaitable(result):
                    await result

    async def _in_time(self, work: Coroutine[Any, Any, Any], who: str) -> bool:
        """Wait for a hook or handler that must not delay a shutdown; tell whether it came to a good end."""
        task = self._start(work)
        try:
            await asyncio.wait({task}, timeout=GRACE)
        finally:
            if not task.done():
                logger.error("%s took longer than %g s after a drain's deadline, and is cancelled", who, GRACE)
                task.cancel()
        return task.done() and not task.cancelled() and bool(task.result())

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _tell_at_once(hooks: Sequence[Callable[[T], object]], what: T) -> None:
    for hook in hooks:
        with _surviving(hook):
            result = hook(what)
            if inspect.iscoroutine(result):
                result.close()  # it cannot be awaited


@contextmanager
def _surviving(hook: object) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        logger.exception("the hook %r failed", hook)
        if _ends_task(error):
            raise


def _ends_task(error: BaseException) -> bool:
    """Tell whether an exception is an exit, or the cancellation of the running task, rather than a failure."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))


def _several(keyword: str, hooks: Hook[T]) -> tuple[Callable[[T], object], ...]:
    several: tuple[Any, ...] = (hooks,)
    with suppress(TypeError):  # not every caller has a type checker
        several = (hooks,) if callable(hooks) else tuple(hooks)
    if not all(map(callable, several)):
        raise ConfigurationError(f"{keyword}={hooks!r} cannot be called: pass a function, or a list of functions")
    return several


def _log_withheld(event: Event[Any], awaited: str) -> None:
    logger.info("event %s (%s) is withheld: it waited for the %s", event.name, event.id, awaited)


def _log_lost(given_up: Sequence[GivenUp], why: str) -> None:
    for event, subscriber, attempts in given_up:
        logger.error(
            "event %s (%s) is lost to %s, %s: %s",
            event.name, event.id, subscriber, "while it ran" if attempts else "before it started", why,
        )  # fmt: skip


def _letter(event: Event[Any], subscriber: str, attempts: int, error: BaseException, reason: str) -> Event[Any]:
    try:
        message = str(error)[:MESSAGE_LENGTH].encode(errors="replace").decode()
    except Exception:  # of a class by somebody else
        message = "(its message cannot be read)"
    return event.with_headers(
        {
            "dlreason": reason,
            "dlsubscriber": subscriber,
            "dlattempts": str(attempts),
            "dlerror": type(error).__qualname__,
            "dlmessage": message,
        }
    )
