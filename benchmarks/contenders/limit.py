"""The limit: a hand-written app that appends to a list and, after the response, awaits the function directly.

It has no isolation, no snapshot, no JSON, no retries and no drain: nothing that does more can be faster.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from pydantic_core import from_json, to_json
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cases import Case
from exchange import NAME, Calls, FrozenOrder, application, payloads, subscriber

SEMANTICS = "no isolation, no copy, no JSON"


def can(case: Case) -> bool:
    return True


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp | Callable[[], object]]:
    if case.kind == "call":
        yield _function(case)
        return

    def emit(request: Request) -> None:
        append = request.scope["events"].append
        for payload in payloads(case):
            append((NAME, payload))

    yield application(case, calls, emit, middleware=[Middleware(AfterResponse, deliver=_delivery(case, calls))])


class AfterResponse:
    def __init__(self, app: ASGIApp, *, deliver: Callable[[list[Any]], Any]) -> None:
        self.app = app
        self.deliver = deliver

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        events = scope["events"] = []
        await self.app(scope, receive, send)
        await self.deliver(events)


def _delivery(case: Case, calls: Calls) -> Callable[[list[Any]], Any]:
    if case.subscriber == "async dependencies":
        return _with_async_dependencies(calls)
    if case.subscriber == "sync dependencies":
        return _with_sync_dependencies(calls)
    subscribers = [subscriber(case, calls) for _ in range(case.subscribers)]
    only = subscribers[0]

    async def to_one(events: list[Any]) -> None:
        for event in events:
            await only(event)

    async def to_each(events: list[Any]) -> None:
        for event in events:
            for function in subscribers:
                await function(event)

    async def to_all_at_once(events: list[Any]) -> None:
        for event in events:
            await asyncio.gather(*[function(event) for function in subscribers])

    async def in_thread(events: list[Any]) -> None:
        await anyio.to_thread.run_sync(_call_each, only, events)

    if case.subscriber == "sync":
        return in_thread
    if case.subscriber == "sleeps":
        return to_all_at_once
    return to_one if case.subscribers == 1 else to_each


def _call_each(function: Callable[[Any], None], events: Sequence[Any]) -> None:
    for event in events:
        function(event)


def _with_async_dependencies(calls: Calls) -> Callable[[list[Any]], Any]:
    async def number() -> int:
        return 1

    async def text() -> str:
        return "a"

    async def handle(event: Any, first: int, second: str) -> None:
        calls.count += 1

    async def deliver(events: list[Any]) -> None:
        for event in events:
            await handle(event, await number(), await text())

    return deliver


def _with_sync_dependencies(calls: Calls) -> Callable[[list[Any]], Any]:
    def number() -> int:
        return 1

    def text() -> str:
        return "a"

    async def handle(event: Any, first: int, second: str) -> None:
        calls.count += 1

    def both() -> tuple[int, str]:
        return number(), text()

    async def deliver(events: list[Any]) -> None:
        for event in events:
            await handle(event, *await anyio.to_thread.run_sync(both))

    return deliver


@dataclasses.dataclass(slots=True)
class Record:
    name: str
    payload: Any
    id: str
    time: str
    source: str


def _function(case: Case) -> Callable[[], object]:
    """What one writes by hand: a record of the same attributes, one `to_json`, one `from_json` and a validation."""
    payload = payloads(case)[0]
    id_, time = "01890a5d-ac96-774b-bcce-b302099a8057", "2026-01-31T12:00:00.000000Z"

    def new() -> Record:
        return Record(NAME, payload, id_, time, "bench")

    def write() -> bytes:
        record = new()
        return to_json(
            {
                "specversion": "1.0",
                "id": record.id,
                "source": record.source,
                "type": record.name,
                "time": record.time,
                "datacontenttype": "application/json",
                "data": record.payload,
            }
        )

    data = write()

    def read() -> Record:
        attributes = from_json(data)
        order = FrozenOrder.model_validate(attributes["data"])
        return Record(attributes["type"], order, attributes["id"], attributes["time"], attributes["source"])

    return {"event-new": new, "event-to-json": write, "event-from-json": read}[case.name]
