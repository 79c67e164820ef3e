"""How many events a bus has taken, and what became of them, counted without a lock where events are delivered."""

import asyncio
import math
import threading
from weakref import ref

__all__ = ["Ledger", "Tally"]


class Tally:
    """What the deliveries on one event loop count; only its thread does, so without a lock.

    Attributes:
        delivered: pairs of an event and a subscriber that handled it.
        finished: events that no subscriber has yet to finish with.
    """

    __slots__ = ("delivered", "finished")

    def __init__(self) -> None:
        self.delivered: int = 0
        self.finished: int = 0


class Ledger:
    """Counts the events of a bus; `lock` is the bus's own.

    Args:
        lock: to be held by whoever calls `take`.
        most: how many events may be pending; None for no bound.
    """

    def __init__(self, lock: "threading.RLock", most: int | None) -> None:
        self._lock = lock
        self._most = math.inf if most is None else most
        self._full_at = self._most  # so many taken may be too many: what finished has to be counted first
        self._taken = 0  # but for those that were given back
        self._tallies: dict[ref[asyncio.AbstractEventLoop], Tally] = {}  # of loops that have gone as well

    @property
    def delivered(self) -> int:
        """How many pairs of event and subscriber were handled."""
        return sum(tally.delivered for tally in list(self._tallies.values()))

    @property
    def pending(self) -> int:
        """How many events wait or are being handled."""
        finished = self._finished()  # first: other threads may go on
        return self._taken - finished

    def take(self, count: int, is_exempt: bool) -> bool:
        """Count events as pending; tell whether there was room. The exempt are taken in any case."""
        if self._taken >= self._full_at and not is_exempt:
            self._full_at = self._most + self._finished()
            if self._taken >= self._full_at:
                return False
        self._taken += count
        return True

    def give_back(self, count: int) -> None:
        """Count events as no longer pending that no delivery got."""
        with self._lock:
            self._taken -= count

    def tally(self, loop: asyncio.AbstractEventLoop) -> Tally:
        """Return where the deliveries on this loop count."""
        key = ref(loop)
        # setdefault: a signal handler or a destructor may ask in between
        return self._tallies.get(key) or self._tallies.setdefault(key, Tally())

    def _finished(self) -> int:
        return sum(tally.finished for tally in list(self._tallies.values()))
