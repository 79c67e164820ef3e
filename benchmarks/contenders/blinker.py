"""blinker: named signals, awaited by the sender."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
from blinker import Signal
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, application, payloads, subscriber

SEMANTICS = "before the response; one after another; a failure is the sender's"


def can(case: Case) -> bool:
    return case.kind == "request" and not case.patterns and not case.subscriber.endswith("dependencies")


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    signal = Signal()
    receivers = [_receiver(case, calls) for _ in range(case.subscribers)]
    for receiver in receivers:
        signal.connect(receiver)

    async def emit(request: Request) -> None:
        for payload in payloads(case):
            await signal.send_async(NAME, _sync_wrapper=_in_thread, payload=payload)

    yield application(case, calls, emit)


def _receiver(case: Case, calls: Calls) -> Callable[..., Any]:
    handle = subscriber(case, calls)
    if case.subscriber == "sync":
        return lambda sender, payload: handle(payload)

    async def plain(sender: str, payload: Any) -> None:
        calls.count += 1

    async def other(sender: str, payload: Any) -> None:
        await handle(payload)

    return plain if case.subscriber == "async" else other


def _in_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(sender: str, **arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(partial(function, sender, **arguments))

    return call
