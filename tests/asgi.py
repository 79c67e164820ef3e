"""Speaks ASGI to an application, message by message, as a server does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any


class Connection:
    """One ASGI connection, which runs from its creation on: its call, and what the application sent."""

    def __init__(self, app: Any, *incoming: dict[str, Any], **scope: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in incoming:
            self.give(message)
        self.scope = {
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [],
            "asgi": {"version": "3.0"},
            **scope,
        }
        self.call = asyncio.create_task(app(self.scope, self._incoming.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self._changed.set()

    def give(self, message: dict[str, Any]) -> None:
        self._incoming.put_nowait(message)

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.sent]

    async def until(self, type_: str) -> None:
        """Wait until a message of this type was sent; of a body, until its last part was."""
        while not any(message["type"] == type_ and not message.get("more_body") for message in self.sent):
            self._changed.clear()
            async with asyncio.timeout(5):
                await self._changed.wait()


def request(app: Any, path: str = "/") -> Connection:
    return Connection(app, {"type": "http.request", "body": b"", "more_body": False}, type="http", path=path)


@contextlib.asynccontextmanager
async def lifespan_of(app: Any) -> AsyncIterator[Connection]:
    """Run an application's lifespan, as a server does."""
    lifespan = Connection(app, {"type": "lifespan.startup"}, type="lifespan", state={})
    await lifespan.until("lifespan.startup.complete")
    try:
        yield lifespan
    finally:
        lifespan.give({"type": "lifespan.shutdown"})
        await lifespan.call
    assert lifespan.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
