"""What the soak serves: subscribers that succeed, fail, hang, recover and chain, and the figures that must agree."""

import asyncio
import gc
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_events import Event, EventBus, EventHandlerASGIMiddleware, LocalHandler, Retry, dispatch

TOKEN = os.environ["EVENTS_TOKEN"]
counts: Counter[str] = Counter()
counting = threading.Lock()  # sync subscribers run in threads
failed_once: set[str] = set()
subscribers = LocalHandler()


def count(what: str) -> None:
    """Add one to a figure, from any thread."""
    with counting:
        counts[what] += 1


class DeadLetters:
    """Counts the events that it is given."""

    async def handle_many(self, events: Iterable[Event[Any]]) -> None:
        """Count, and forget."""
        for _ in events:
            count("dead letters")


bus = EventBus([subscribers], dead_letters=DeadLetters(), **json.loads(os.environ["EVENTS_BUS"]))


@subscribers.register("order.placed", "order.counted")
async def succeed(event: Event[Any]) -> None:
    """Succeed at once."""
    count("succeeded")


@subscribers.register("order.placed")
def succeed_in_a_thread(event: Event[Any]) -> None:
    """Succeed in a thread."""
    count("succeeded")


@subscribers.register("order.placed")
async def succeed_slowly(event: Event[Any]) -> None:
    """Succeed after a while, and cause another event."""
    await asyncio.sleep(0.05)
    dispatch("order.counted", {"n": event.payload["n"]})
    count("succeeded")


@subscribers.register("order.broken")
async def fail(event: Event[Any]) -> None:
    """Fail, always."""
    raise RuntimeError("always")


@subscribers.register("order.broken", timeout=0.02)
async def hang(event: Event[Any]) -> None:
    """Take longer than allowed."""
    await asyncio.sleep(60)


@subscribers.register("order.broken", retry=Retry(attempts=3, initial=0.01))
async def recover(event: Event[Any]) -> None:
    """Fail at the first attempt, succeed at the second."""
    if event.id not in failed_once:
        failed_once.add(event.id)
        count("failed once")
        raise ConnectionError("once")
    failed_once.remove(event.id)
    count("succeeded")


app = FastAPI()
app.add_middleware(EventHandlerASGIMiddleware, bus=bus)


@app.get("/ready")
async def ready() -> dict[str, object]:
    """Tell the test that this is its server."""
    return {"token": TOKEN, "pid": os.getpid()}


@app.get("/figures")
async def figures() -> dict[str, object]:
    """Tell what was counted here and in the bus, and how much memory is in use."""
    gc.collect()
    _size, resident_pages, *_ = Path("/proc/self/statm").read_text().split()
    return {
        "counts": dict(counts),
        "stats": asdict(bus.stats()),
        "blocks": sys.getallocatedblocks(),
        "resident": int(resident_pages) * os.sysconf("SC_PAGE_SIZE"),
    }


@app.get("/placed")
async def placed(n: int) -> dict[str, int]:
    """Succeed: three subscribers and a chain, an event that waits for a failure, one that nobody hears."""
    dispatch("order.placed", {"n": n, "lines": [{"sku": "a", "count": 2}] * 20})
    dispatch("order.placed.undone", {"n": n}, deliver_on="failure")
    dispatch("order.archived", {"n": n})
    return {"n": n}


@app.get("/placed-in-a-thread")
def placed_in_a_thread(n: int) -> dict[str, int]:
    """Dispatch from a thread of this request and from one outside any request."""
    dispatch("order.placed", {"n": n})
    outside = threading.Thread(target=dispatch, args=("order.placed", {"n": n}))
    outside.start()
    outside.join()
    return {"n": n}


@app.get("/broken")
async def broken(n: int) -> None:
    """Fail, with subscribers that fail too."""
    dispatch("order.broken", {"n": n})
    dispatch("order.placed", {"n": n}, deliver_on="success")
    raise RuntimeError("the endpoint failed")


@app.get("/streamed")
async def streamed(n: int) -> StreamingResponse:
    """Dispatch in a body that ends only when the client leaves."""

    async def body() -> AsyncIterator[str]:
        dispatch("order.placed", {"n": n})
        while True:
            yield "more "
            await asyncio.sleep(0.01)

    return StreamingResponse(body())


@app.websocket("/websocket")
async def websocket(websocket: WebSocket, event: str) -> None:
    """Dispatch every message."""
    await websocket.accept()
    async for text in websocket.iter_text():
        dispatch(event, {"n": int(text)})
        await websocket.send_text(text)
