"""pyee: an event emitter that makes a task for each coroutine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pyee.asyncio import AsyncIOEventEmitter
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, application, payloads, subscriber

SEMANTICS = "at once, maybe before the response; nobody waits; sync ones block the loop; no order"


def can(case: Case) -> bool:
    return case.kind == "request" and not case.patterns and case.subscriber in ("async", "yields", "sleeps")


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    emitter = AsyncIOEventEmitter()
    for _ in range(case.subscribers):
        emitter.add_listener(NAME, subscriber(case, calls))

    def emit(request: Request) -> None:
        for payload in payloads(case):
            emitter.emit(NAME, payload)

    yield application(case, calls, emit)
    await emitter.wait_for_complete()
