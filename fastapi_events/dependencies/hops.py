"""What worker threads do for a function on the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread

from fastapi_events.scope import Scope, run_in_thread, undisturbed

__all__ = ["in_bus_thread", "in_free_thread", "opened_in_thread"]

T = TypeVar("T")

# Both end only when their thread has ended, cancelled or not: nothing is opened that is not closed, and nothing is
# closed while a thread may use it.
in_bus_thread: Final = partial(run_in_thread, to_end=True)


async def in_free_thread(_: Scope, function: Callable[[], T]) -> T:
    """Run a function in a thread that does not count against those of the bus, in a task that nobody cancels."""
    return await undisturbed(asyncio.ensure_future(to_thread.run_sync(function, limiter=CapacityLimiter(1))))


@asynccontextmanager
async def opened_in_thread(
    in_thread: Callable[..., Any],
    scope: Scope,
    make: Callable[[ExitStack], tuple[Any, ...]],
    swallowed: Callable[[BaseException], BaseException],
) -> AsyncGenerator[tuple[Any, ...]]:
    """Have a thread make something, and another one close what it put on the stack."""
    stack, context = ExitStack(), Context()

    def enter() -> tuple[Any, ...]:
        # both threads see one context, so that a generator can reset the context variables that it set
        nonlocal context
        context = copy_context()
        return context.run(make, stack)

    async def leave(error: BaseException | None) -> bool | None:
        # in a free thread: waiting for a place, which one may hold that waits for what is closed here, is a deadlock
        how = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        return await in_free_thread(scope, lambda: context.run(stack.__exit__, *how))

    try:
        made = await in_thread(scope, enter)
    except BaseException as error:
        if not await leave(error):
            raise
        raise swallowed(error)  # noqa: B904 - it has its cause already
    try:
        yield made
    except BaseException as error:
        if not await leave(error):
            raise
    else:
        await leave(None)
