"""Starlette's BackgroundTasks: no bus, the endpoint names the function."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.background import BackgroundTasks
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import NAME, Calls, application, payloads, subscriber

SEMANTICS = "no names; one after another; a failure stops the rest and reaches the server"


def can(case: Case) -> bool:
    return case.kind != "call" and not case.patterns and not case.subscriber.endswith("dependencies")


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    subscribers = [subscriber(case, calls) for _ in range(case.subscribers)]

    def emit(request: Request) -> BackgroundTasks:
        tasks = BackgroundTasks()
        for payload in payloads(case):
            for function in subscribers:
                tasks.add_task(function, (NAME, payload))
        return tasks

    yield application(case, calls, emit)
