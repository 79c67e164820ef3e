"""bubus: an event bus with pydantic events, a queue and a history."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import bubus
from starlette.requests import Request
from starlette.types import ASGIApp

from cases import Case
from exchange import Calls, application, payloads, subscriber

SEMANTICS = "at once, maybe before the response; one after another; keeps results; sync ones block the loop"


class OrderPlaced(bubus.BaseEvent[None]):
    order_id: int
    customer: str
    total: float
    currency: str
    paid: bool


def can(case: Case) -> bool:
    # It knows no event without a model. 100 events in one request take it two seconds.
    return (
        case.kind == "request"
        and (case.payload == "model" or not case.events)
        and not case.patterns
        and case.deliveries <= 10
        and case.subscriber in ("async", "yields")
    )


@asynccontextmanager
async def opened(case: Case, calls: Calls) -> AsyncIterator[ASGIApp]:
    bus = bubus.EventBus()
    for _ in range(case.subscribers):
        bus.on(OrderPlaced, _named(subscriber(case, calls)))

    def emit(request: Request) -> None:
        for order in payloads(case, OrderPlaced):
            bus.dispatch(order)

    yield application(case, calls, emit)
    await bus.stop(clear=True, timeout=1)


def _named(handle: Any) -> Any:
    handle.__name__ = f"{handle.__name__}_{id(handle)}"  # it warns of two handlers of one name
    return handle
