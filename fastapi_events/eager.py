"""Starts a task at once: `eager_start` of asyncio.Task, and the same for CPython 3.11."""

import asyncio
import sys
import types
from asyncio import AbstractEventLoop
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["start_eagerly"]

if sys.version_info >= (3, 12):

    def start_eagerly(work: Coroutine[Any, Any, None], loop: AbstractEventLoop) -> None:
        """Make a task of the running loop; what it does until it first suspends is done when this returns."""
        asyncio.Task(work, loop=loop, eager_start=True)

else:
    # what other implementations of tasks are to call, says the documentation of asyncio
    from asyncio import _enter_task, _leave_task

    def start_eagerly(work: Coroutine[Any, Any, None], loop: AbstractEventLoop) -> None:
        """Make a task of the running loop; what it does until it first suspends is done when this returns."""
        first = _FirstStep(work)
        rest = first.rest()
        rest.send(None)  # up to where it waits for the turn of its task
        task: asyncio.Task[None] = asyncio.Task(rest, loop=loop)
        around = asyncio.current_task(loop)
        if around is not None:
            _leave_task(loop, around)
        _enter_task(loop, task)
        try:
            first.suspended_at(work.send(None))
        except StopIteration:
            first.has_ended = True
        except (KeyboardInterrupt, SystemExit):
            first.has_ended = True
            raise
        except BaseException as error:
            first.error = error
        finally:
            _leave_task(loop, task)
            if around is not None:
                _enter_task(loop, around)

    class _FirstStep:
        """What became of a coroutine before its task began."""

        __slots__ = ("awaited", "error", "has_ended", "is_future", "work")

        def __init__(self, work: Coroutine[Any, Any, None]) -> None:
            self.work = work
            self.awaited: Any = None
            self.is_future = False
            self.has_ended = False
            self.error: BaseException | None = None

        def suspended_at(self, awaited: Any) -> None:
            """Remember what the coroutine waits for; others may wait for the same before the turn of its task."""
            self.awaited = awaited
            self.is_future = getattr(awaited, "_asyncio_future_blocking", False)
            if self.is_future:  # so says `await`, and a task takes it back at once
                awaited._asyncio_future_blocking = False

        async def rest(self) -> None:
            """Do what the coroutine has yet to do, within its task."""
            thrown = await _outcome(None)
            if self.has_ended:
                return
            if self.error is not None:
                raise self.error
            awaited = self.awaited
            if thrown is None or (self.is_future and awaited.cancel(*thrown.args)):  # cancelled before its turn came
                if self.is_future:
                    awaited._asyncio_future_blocking = True
                thrown = await _outcome(awaited)
            while True:
                try:
                    awaited = self.work.send(None) if thrown is None else self.work.throw(thrown)
                except StopIteration:
                    return
                thrown = await _outcome(awaited)

    @types.coroutine
    def _outcome(awaited: Any) -> Generator[Any, Any, BaseException | None]:
        """Have the task wait for something; return what is thrown in then."""
        try:
            yield awaited
        except GeneratorExit:
            raise
        except BaseException as error:
            return error
        return None
