"""The CloudEvents SDK: the same envelope without a bus."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from cases import Case
from exchange import NAME, Calls, payloads

SEMANTICS = "no validation of the payload"


def can(case: Case) -> bool:
    return case.kind == "call"


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[Callable[[], object]]:
    payload = dict(payloads(case)[0])  # a model gives its items too
    format_ = JSONFormat()

    def new() -> CloudEvent:
        return CloudEvent({"type": NAME, "source": "bench"}, payload)

    def write() -> bytes:
        return format_.write(new())

    data = write()

    def read() -> object:
        return format_.read(None, data)

    yield {"event-new": new, "event-to-json": write, "event-from-json": read}[case.name]
