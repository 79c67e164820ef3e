"""Django's signals, in the form that catches errors."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from django.dispatch import Signal
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, application, payloads, subscriber

SEMANTICS = "before the response"


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
            await signal.asend_robust(NAME, payload=payload)

    yield application(case, calls, emit)


def _receiver(case: Case, calls: Calls) -> Callable[..., Any]:
    handle = subscriber(case, calls)
    if case.subscriber == "sync":
        return lambda signal, sender, payload, **_: handle(payload)

    async def plain(signal: Signal, sender: str, payload: Any, **_: Any) -> None:
        calls.count += 1

    async def other(signal: Signal, sender: str, payload: Any, **_: Any) -> None:
        await handle(payload)

    return plain if case.subscriber == "async" else other
