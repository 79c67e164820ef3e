"""litestar's SimpleEventEmitter, in a Starlette app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.events import EventListener, SimpleEventEmitter
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, application, payloads, subscriber

SEMANTICS = "at once, maybe before the response; nobody waits; a failure ends the emitter; no order"


def can(case: Case) -> bool:
    return case.kind == "request" and not case.patterns and not case.subscriber.endswith("dependencies")


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    listeners = [EventListener(NAME)(subscriber(case, calls)) for _ in range(case.subscribers)]
    async with SimpleEventEmitter(listeners) as emitter:

        def emit(request: Request) -> None:
            for payload in payloads(case):
                emitter.emit(NAME, payload)

        yield application(case, calls, emit)
