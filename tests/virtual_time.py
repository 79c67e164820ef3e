"""An event loop whose clock jumps to the next timer, so that no test waits for seconds to pass."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

REAL_PATIENCE = 5.0  # seconds of the real clock for which a loop without timers waits, as for a thread


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: where it would sleep until a timer, the clock is set to that time.

    Threads and sockets are served, but the clock does not wait for them while there are timers.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(REAL_PATIENCE)
            if not ready:
                raise RuntimeError("everything waits, and nothing can end it")
            return ready
        ready = super().select(0)
        if not ready:
            self._loop.now += timeout
        return ready


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as asyncio.run does."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
