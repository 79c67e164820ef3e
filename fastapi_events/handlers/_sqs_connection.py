"""One process's way to a queue: threads that make its calls, and what waits on each event loop."""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from fastapi_events.handlers._daemon_threads import DaemonThreads
from fastapi_events.handlers._sqs_batches import Answers, Batches, Policy

__all__ = ["Connection", "Queue"]


class Queue(Protocol):
    """An open queue. Its methods block: they run in threads, several at once."""

    @property
    def max_message_bytes(self) -> int:
        """What one message may have."""
        ...

    def send(self, entries: Sequence[dict[str, Any]]) -> Answers:
        """Make one call; never raise."""
        ...

    def close(self) -> None:
        """Let go of sockets."""


class Connection:
    """Opens a queue, in a thread and at once, and makes its calls for any number of event loops.

    Args:
        owner: without it the threads end, so that a handler that is dropped leaves none behind.

    Attributes:
        opened: has the queue, or what `open_queue` raised.
    """

    def __init__(self, open_queue: Callable[[], Queue], policy: Policy, owner: object) -> None:
        self.opened: Future[Queue] = Future()
        self.opened.set_running_or_notify_cancel()  # one waiter that is cancelled does not cancel it for all
        self._open_queue = open_queue
        self._pid = os.getpid()
        self._policy = policy
        self._lock = threading.Lock()
        self._batches: dict[asyncio.AbstractEventLoop, Batches] = {}
        self._threads = DaemonThreads(policy.max_calls, name="fastapi_events-sqs", at_end=self._close_queue)
        self._end = weakref.finalize(owner, self._threads.close)
        self._end.atexit = False  # they end with the process anyway
        self._threads.submit(self._open)

    @property
    def usable(self) -> bool:
        """Whether it can make calls: not if the queue failed to open, nor in a fork, which has none of the threads."""
        return self._pid == os.getpid() and not (self.opened.done() and self.opened.exception())

    def batches(self) -> Batches:
        """Return what waits on the running event loop."""
        loop = asyncio.get_running_loop()
        batches = self._batches.get(loop)
        if batches is None:
            with self._lock:
                batches = Batches(self._submit, self._policy)
                alive = {known: waits for known, waits in self._batches.items() if not known.is_closed()}
                self._batches = {**alive, loop: batches}
        return batches

    async def finish(self) -> None:
        """Send what waits on the running event loop, then end the threads, and wait for that unless a call hangs."""
        try:
            await self.batches().finish()
        finally:
            self.close()
        if self.opened.done() and not any(batches.calls for batches in self._batches.values()):
            await asyncio.wrap_future(self._threads.ended)

    def close(self) -> None:
        """Let the threads end after the calls that they were given; later ones are refused."""
        self._end()

    def _open(self) -> None:
        try:
            queue = self._open_queue()
        except Exception as error:
            self.close()
            self.opened.set_exception(error)
        else:
            self.opened.set_result(queue)

    def _close_queue(self) -> None:
        if not self.opened.exception():
            self.opened.result().close()

    def _submit(self, entries: Sequence[dict[str, Any]], done: Callable[[Answers], object]) -> None:
        loop = asyncio.get_running_loop()
        queue = self.opened.result()

        def call() -> None:
            answers = queue.send(entries)
            with suppress(RuntimeError):  # the loop was closed: whoever waited for the answers is gone
                loop.call_soon_threadsafe(done, answers)

        self._threads.submit(call)
