"""psygnal: typed signals; one task calls the coroutines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psygnal
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import Calls, application, payloads, subscriber

SEMANTICS = "at once, maybe before the response; one after another; nobody waits; sync ones block the loop"


def can(case: Case) -> bool:
    return case.kind == "request" and not case.patterns and case.subscriber in ("async", "yields")


class Shop:
    placed = psygnal.Signal(object)


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    backend = psygnal.set_async_backend("asyncio")
    await backend.running.wait()
    shop = Shop()
    subscribers = [subscriber(case, calls) for _ in range(case.subscribers)]
    for function in subscribers:
        shop.placed.connect(function)

    def emit(request: Request) -> None:
        for payload in payloads(case):
            shop.placed.emit(payload)

    try:
        yield application(case, calls, emit)
    finally:
        backend.close()
        psygnal._async.clear_async_backend()  # noqa: SLF001  # the next case has a loop of its own
