"""Threads for calls that may hang: the process can exit without waiting for them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeAlias

__all__ = ["DaemonThreads"]

_Job: TypeAlias = Callable[[], object]


class DaemonThreads:
    """A fixed number of threads that run jobs, the oldest first.

    Not a `ThreadPoolExecutor`: at exit that waits for its threads, however long they hang.

    Args:
        count: how many threads, at least 1.
        name: what debuggers and `threading.enumerate()` show.
        at_end: runs in the last thread, after `close()` and the last job.
    """

    def __init__(self, count: int, *, name: str, at_end: _Job) -> None:
        self._count = count
        self._jobs: SimpleQueue[_Job | int] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.ended: Future[None] = Future()  # done after `at_end`
        self.ended.set_running_or_notify_cancel()
        for number in range(count):
            # The threads know the jobs, not this object: an owner that is forgotten can still be collected.
            threading.Thread(
                target=_work, args=(self._jobs, at_end, self.ended), name=f"{name}-{number}", daemon=True
            ).start()

    def submit(self, job: _Job) -> None:
        """Have a job run in one of the threads; it must not raise.

        Raises:
            RuntimeError: the threads were told to end.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads were told to end")
            self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end once they have run what was submitted; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(self._count)


def _work(jobs: "SimpleQueue[_Job | int]", at_end: _Job, ended: Future[None]) -> None:
    # One number goes from thread to thread at the end: how many are still there.
    while not isinstance(job := jobs.get(), int):
        job()
        del job  # what it holds must not live until the next one comes
    if job > 1:
        jobs.put(job - 1)
        return
    at_end()
    ended.set_result(None)
