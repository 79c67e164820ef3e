"""What worker threads do for a function on the event loop, and the other way round."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, TypeVar

from anyio import CapacityLimiter, from_thread, to_thread

from fastapi_events.scope import Scope, run_in_thread, undisturbed

__all__ = ["Hop", "opened_on_loop"]

T = TypeVar("T")


class Hop:
    """What one worker thread made for a function on the event loop; another one closes it.

    Entering and leaving end only when their thread has ended, cancelled or not: nothing is opened that is not closed,
    and nothing is closed while a thread may use it.
    """

    def __init__(
        self,
        scope: Scope,
        make: Callable[[ExitStack], tuple[Any, ...]],
        swallowed: Callable[[BaseException], BaseException],
    ) -> None:
        self._scope = scope
        self._make = make
        self._swallowed = swallowed
        self._stack = ExitStack()
        self._context = Context()

    async def __aenter__(self) -> tuple[Any, ...]:
        try:
            return await run_in_thread(self._scope, self._enter, to_end=True)
        except BaseException as error:
            if not await self.__aexit__(type(error), error, error.__traceback__):
                raise
            failure = error
        raise self._swallowed(failure)

    def _enter(self) -> tuple[Any, ...]:
        # both threads see one context, so that a generator can reset the context variables that it set
        self._context = copy_context()
        return self._context.run(self._make, self._stack)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        def leave() -> bool | None:
            return self._context.run(self._stack.__exit__, kind, error, traceback)

        # a limiter of its own: waiting for a thread that waits for what is closed here would be a deadlock; and a task
        # of its own, which nobody cancels: what was opened is closed
        return bool(await undisturbed(asyncio.ensure_future(to_thread.run_sync(leave, limiter=CapacityLimiter(1)))))


@contextmanager
def opened_on_loop(manager: AbstractAsyncContextManager[T]) -> Generator[T]:
    """Enter and leave an async context manager on the event loop, from a worker thread that waits for it."""
    value = from_thread.run(manager.__aenter__)
    try:
        yield value
    except BaseException as error:
        if not from_thread.run(manager.__aexit__, type(error), error, error.__traceback__):
            raise
    else:
        from_thread.run(manager.__aexit__, None, None, None)
