"""What the bus tells: records for hooks, drains and health probes."""

from dataclasses import dataclass
from typing import Any

from fastapi_events.event import Event

__all__ = ["DrainReport", "Failure", "Stats", "Undelivered"]


@dataclass(frozen=True)
class Failure:
    """A subscriber failed finally; what `on_error` gets.

    Attributes:
        event: what it was to handle.
        subscriber: its name.
        exception: of the last attempt; a CancelledError if a drain ended it.
        attempt: the number of the last attempt, from 1; 0 if it never started.
    """

    event: Event[Any]
    subscriber: str
    exception: BaseException
    attempt: int


@dataclass(frozen=True)
class Undelivered:
    """An event that a subscriber did not handle."""

    name: str
    id: str
    subscriber: str


@dataclass(frozen=True)
class DrainReport:
    """What became, during a drain, of the events that waited; counted per event and subscriber.

    Attributes:
        delivered: handled.
        failed: finally, the dead-lettered included.
        cancelled: started, and cut off at the deadline.
        never_started: given up at the deadline.
    """

    delivered: int
    failed: tuple[Undelivered, ...] = ()
    cancelled: tuple[Undelivered, ...] = ()
    never_started: tuple[Undelivered, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the deadline found nothing left."""
        return not self.cancelled and not self.never_started


@dataclass(frozen=True)
class Stats:
    """How the bus is doing; `pending` counts events, the other counters pairs of event and subscriber unless said.

    Attributes:
        pending: events that wait or are being handled.
        oldest_age: of these, in seconds; 0.0 if there are none.
        delivered: handled.
        failed: finally, the dead-lettered not included.
        dead_lettered: failed, and taken by the `dead_letters` handler.
        cancelled: started or waiting, and given up at a drain's deadline.
        retried: attempts that failed and were followed by another.
        overrun: attempts in threads that outlived their timeout.
        withheld: events whose outcome did not come.
        refused: events that a full bus did not take.
        unheard: events that nobody subscribes to.
    """

    pending: int
    oldest_age: float
    delivered: int
    failed: int
    dead_lettered: int
    cancelled: int
    retried: int
    overrun: int
    withheld: int
    refused: int
    unheard: int
