"""Tells what became of events that were not delivered: the log, counters, hooks, dead letters."""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

from fastapi_events.event import Event
from fastapi_events.reports import Failure, Undelivered

__all__ = ["GivenUp", "Hook", "Reporter"]

T = TypeVar("T")
Hook: TypeAlias = Callable[[T], object] | Iterable[Callable[[T], object]]
GivenUp: TypeAlias = tuple[Event[Any], str, bool]  # an event, its subscriber's name, whether it was started

REMINDER: Final = 60.0  # seconds between two log lines that say the bus is full
DEAD_LETTER_GRACE: Final = 5.0  # seconds that the dead-letter handler gets after a drain's deadline
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
        self._on_error = _several(on_error)
        self._on_withheld = _several(on_withheld)
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
            self._collectors.remove(failures)

    async def failed(self, event: Event[Any], subscriber: str, error: BaseException, attempt: int) -> None:
        """Report that a subscriber failed finally."""
        logger.error(
            "event %s (%s) failed in %s, attempt %d", event.name, event.id, subscriber, attempt, exc_info=error
        )
        for collected in self._collectors:
            collected.append(Undelivered(event.name, event.id, subscriber))
        became = "failed"
        try:
            if await self._bury([_letter(event, subscriber, attempt, error, "failed")]):
                became = "dead_lettered"
        finally:
            self.counts[became] += 1
        await self._tell(self._on_error, Failure(event, subscriber, error, attempt))

    async def gave_up(self, given_up: Sequence[GivenUp], seconds: float) -> None:
        """Report what a drain left behind at its deadline."""
        error = asyncio.CancelledError(f"given up after {seconds:g} s of draining")
        letters = [_letter(event, name, int(started), error, "drained") for event, name, started in given_up]
        try:
            async with asyncio.timeout(DEAD_LETTER_GRACE):
                kept = await self._bury(letters)
        except TimeoutError:
            kept = False
            logger.error("the dead-letter handler took longer than %g s and was given up", DEAD_LETTER_GRACE)
        self.counts["dead_lettered" if kept else "cancelled"] += len(letters)
        for event, subscriber, started in given_up:
            if not kept:
                logger.error(
                    "event %s (%s) is lost to %s: a drain gave it up after %g s, %s",
                    event.name, event.id, subscriber, seconds, "while it ran" if started else "before it started",
                )  # fmt: skip
            await self._tell(self._on_error, Failure(event, subscriber, error, int(started)))

    def lost(self, given_up: Sequence[GivenUp]) -> None:
        """Report what the end of an event loop cancelled; nothing can be awaited any more."""
        self.counts["cancelled"] += len(given_up)
        error = asyncio.CancelledError("the event loop ended")
        for event, subscriber, started in given_up:
            logger.error(
                "event %s (%s) is lost to %s: its event loop ended %s",
                event.name, event.id, subscriber, "while it ran" if started else "before it started",
            )  # fmt: skip
            for hook in self._on_error:
                if not inspect.iscoroutinefunction(hook):
                    _call(hook, Failure(event, subscriber, error, int(started)))

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

    def withheld(self, events: Iterable[Event[Any]], awaited: str) -> None:
        """Report events whose outcome did not come."""
        for event in events:
            self.counts["withheld"] += 1
            logger.info("event %s (%s) is withheld: it waited for the %s", event.name, event.id, awaited)
            if self._on_withheld:
                task = asyncio.get_running_loop().create_task(self._tell(self._on_withheld, event))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _bury(self, letters: list[Event[Any]]) -> bool:
        """Give events to the dead-letter handler; tell whether it took them."""
        if self._dead_letters is None or not letters:
            return False
        try:
            await self._dead_letters.handle_many(letters)
        except Exception:
            names = ", ".join(f"{letter.name} ({letter.id})" for letter in letters)
            logger.exception("the dead-letter handler failed: %s", names)
            return False
        return True

    async def _tell(self, hooks: Sequence[Callable[[T], object]], what: T) -> None:
        for hook in hooks:
            result = _call(hook, what)
            if inspect.isawaitable(result):
                try:
                    await result
                except Exception:
                    logger.exception("the hook %r failed", hook)


def _call(hook: Callable[[T], object], what: T) -> object:
    try:
        return hook(what)
    except Exception:
        logger.exception("the hook %r failed", hook)
        return None


def _several(hooks: Hook[T]) -> tuple[Callable[[T], object], ...]:
    return (hooks,) if callable(hooks) else tuple(hooks)


def _letter(event: Event[Any], subscriber: str, attempts: int, error: BaseException, reason: str) -> Event[Any]:
    message = str(error)[:MESSAGE_LENGTH].encode(errors="replace").decode()
    return event.with_headers(
        {
            "dlreason": reason,
            "dlsubscriber": subscriber,
            "dlattempts": str(attempts),
            "dlerror": type(error).__qualname__,
            "dlmessage": message,
        }
    )
