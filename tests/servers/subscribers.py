"""What the served application does with its events: handlers that append to a file, so that it is read from outside."""

import asyncio
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from fastapi_events import Event, EventBus, Failure, FileHandler, LocalHandler, dispatch

DIRECTORY = Path(os.environ["EVENTS_DIRECTORY"])
HANDLING = 0.6  # seconds that a handler takes, unless its event says otherwise

logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(name)s:%(message)s")
subscribers = LocalHandler()


def record(what: str, key: str, *, id: str | None = None) -> None:
    """Append a line that survives whatever happens to this process next."""
    line = json.dumps({"what": what, "key": key, "id": id, "pid": os.getpid()}) + "\n"
    # One write to a file opened for appending: lines of several threads and processes do not mix.
    descriptor = os.open(DIRECTORY / "records", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def is_open(key: str) -> bool:
    """Tell whether the test lets go on what is held back for this key."""
    return (DIRECTORY / "gates" / key).exists()


async def gate(key: str) -> None:
    """Wait until the test lets go on what is held back for this key."""
    while not is_open(key):
        await asyncio.sleep(0.01)


async def report(failure: Failure) -> None:
    """Record what the bus tells about a failed subscriber."""
    record(f"reported {type(failure.exception).__name__}", failure.event.payload["key"], id=failure.event.id)


options: dict[str, Any] = json.loads(os.environ["EVENTS_BUS"])
if "dead_letters" in options:
    options["dead_letters"] = FileHandler(options["dead_letters"])
bus = EventBus([subscribers], on_error=report, **options)


@subscribers.register("gated")
async def handle_gated(event: Event[Any]) -> None:
    """Take as long as the test wants."""
    key = event.payload["key"]
    record("started", key, id=event.id)
    await gate(key)
    record("finished", key, id=event.id)


@subscribers.register("gated")
def handle_gated_in_a_thread(event: Event[Any]) -> None:
    """Take as long as the test wants, in a worker thread."""
    key = event.payload["key"]
    while not is_open(key):
        time.sleep(0.01)
    record("finished in a thread", key, id=event.id)


@subscribers.register("slow")
async def handle_slow(event: Event[Any]) -> None:
    """Take the event's own time, then dispatch what it brings along."""
    key = event.payload["key"]
    record("started", key, id=event.id)
    await asyncio.sleep(event.payload.get("seconds", HANDLING))
    record("finished", key, id=event.id)
    if chained := event.payload.get("then"):
        dispatch("slow", {"key": chained})


@subscribers.register("slow")
def handle_slow_in_a_thread(event: Event[Any]) -> None:
    """Take the event's own time, in a worker thread."""
    time.sleep(event.payload.get("seconds", HANDLING))
    record("finished in a thread", event.payload["key"], id=event.id)


@subscribers.register("hanging")
async def handle_hanging(event: Event[Any]) -> None:
    """Never end."""
    record("started", event.payload["key"], id=event.id)
    await asyncio.Event().wait()


@subscribers.register("failing")
async def handle_failing(event: Event[Any]) -> None:
    """Fail, always."""
    record("started", event.payload["key"], id=event.id)
    raise RuntimeError("the handler failed")
