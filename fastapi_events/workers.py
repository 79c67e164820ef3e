"""The tasks that do the work of a delivery: as many as are needed, each with its turn of the event loop."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic
from typing import Any

from fastapi_events.direct import SLICE, Begun

__all__ = ["Workers"]


class Workers(ABC):
    """Tasks of the bus that share some work, piece by piece; one more is made as soon as all of them wait.

    Attributes:
        loop: the event loop that they run on.
        is_stopped: nothing more begins: a drain gives up, or the loop ends.
        slice_end: when, by `monotonic()`, it is time to let the event loop do other things.
    """

    __slots__ = ("_coming", "_is_pausing", "_reinforcement", "_workers", "is_stopped", "loop", "slice_end")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.is_stopped: bool = False
        self.slice_end: float = 0.0
        self._workers: set[asyncio.Task[None]] = set()
        self._coming = 0  # workers that have yet to begin
        self._reinforcement: asyncio.Handle | None = None
        self._is_pausing = False

    @abstractmethod
    def _has_work(self) -> bool:
        """Tell whether there is something to do now."""

    @abstractmethod
    def _room(self) -> int:
        """Return for how many more workers there is something to do."""

    @abstractmethod
    async def _do(self, worker: Any, begun: Begun | None) -> Begun | None:
        """Do a piece: go on with a call that was begun, or take one that waits; return the call that this has begun."""

    @abstractmethod
    def _ended(self) -> None:
        """Do what is to be done when no worker is left."""

    def _call_reinforcement(self) -> None:
        """Have a worker made as soon as the loop runs, unless the present one has done all by then."""
        if self._reinforcement is None:
            self._reinforcement = self.loop.call_soon(self._reinforce)

    def _reinforce(self) -> None:
        self._reinforcement = None
        if self._has_work():
            self._employ()

    def _dismiss_reinforcement(self) -> None:
        if self._reinforcement is not None:
            self._reinforcement.cancel()
            self._reinforcement = None

    def _employ(self) -> None:
        # not by way of the loop: a task factory that starts tasks eagerly would nest one worker in another
        work = self._work(waits=True)
        work.send(None)  # up to where it waits for its turn: if it is cancelled there, it learns of that
        asyncio.Task(work, loop=self.loop)

    def _employ_more(self) -> None:
        """Employ workers for what is left, now that one has to wait.

        Up to as many as there are already: so a hundred subscribers that suspend have all begun after seven turns of
        the loop, not after a hundred.
        """
        if self._reinforcement is not None or self.is_stopped:
            return
        for _ in range(min(self._room(), len(self._workers)) - self._coming):
            self._employ()

    async def _work(self, begun: Begun | None = None, *, waits: bool = False) -> None:
        worker: Any = None
        try:
            if waits:
                self._coming += 1
                try:
                    await asyncio.sleep(0)
                finally:
                    self._coming -= 1
                self.slice_end = monotonic() + SLICE
            worker = asyncio.current_task(self.loop)
            self._workers.add(worker)
            if begun is None and worker.cancelling():
                await self.uncancel()
            while begun is not None or self._has_work():
                begun = await self._do(worker, begun)
                if begun is None and worker.cancelling():
                    await self.uncancel()
                if begun is None and self._has_work() and self.has_had_enough():
                    if self._is_pausing:
                        break  # two that go on after a pause would take two slices of each turn of the loop
                    self._dismiss_reinforcement()  # and so would a new one
                    self._is_pausing = True
                    await self.pause()
                    self._is_pausing = False
        except GeneratorExit:
            self.is_stopped = True
            raise
        finally:
            self._workers.discard(worker)
            if self._has_work():
                self._call_reinforcement()
            elif not self._workers:
                self._ended()

    def has_had_enough(self) -> bool:
        """Tell whether it is time to let the event loop do other things, or nothing more may begin."""
        return self.is_stopped or monotonic() >= self.slice_end

    async def pause(self) -> None:
        """Let the event loop do other things."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            self.ends_worker(error)
        self.slice_end = monotonic() + SLICE

    def ends_worker(self, error: BaseException) -> bool:
        """Tell whether an exception ends the running worker, rather than tells of a failure; if so, stop."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.is_stopped = True
            return True
        if self.is_stopped and not self.loop.is_running():  # this is thrown away, and the subscriber objects
            return True
        if not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            return False
        if not self.is_stopped and isinstance(error, asyncio.CancelledError):
            self.is_stopped = bool(_worker().cancelling()) and _is_ending(self.loop)
        return self.is_stopped

    async def uncancel(self) -> None:
        """Go on, if it was a subscriber that cancelled the running worker."""
        worker = _worker()
        if not worker.cancelling() or self.is_stopped:
            return
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # it may not have come out yet
        if _is_ending(self.loop):
            self.is_stopped = True
        while worker.cancelling() and not self.is_stopped:
            worker.uncancel()


def _worker() -> Any:
    return asyncio.current_task()


def _is_ending(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether the loop cancels all its tasks, as asyncio.run does at its end."""
    current = asyncio.current_task()
    return all(task.cancelling() or task is current for task in asyncio.all_tasks(loop))
