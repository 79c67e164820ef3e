"""A uvicorn server of one contender: /0, /1 and /10 dispatch so many events by name; /used tells the CPU time.

Standard output gets the port.
"""

import asyncio
import importlib
import json
import os
import socket
import sys
import time
from contextlib import AsyncExitStack

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from cases import CASES
from exchange import Calls

__all__: list[str] = []


class Front:
    """Sends each path to the app of its case."""

    def __init__(self) -> None:
        self.apps: dict[str, ASGIApp] = {}
        self.calls = Calls()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/used":
            body = json.dumps({"cpu": time.process_time(), "deliveries": self.calls.count}).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        app = self.apps[scope["path"]]
        scope["path"] = "/"
        await app(scope, receive, send)


async def main() -> None:
    contender, cpu = sys.argv[1], int(sys.argv[2])
    os.sched_setaffinity(0, {cpu})
    module = importlib.import_module(f"contenders.{contender}")
    front = Front()
    async with AsyncExitStack() as stack:
        for case in CASES:
            if case.name in ("request-0", "request-1", "request-10"):
                app = await stack.enter_async_context(module.opened(case, front.calls))
                front.apps[f"/{case.events}"] = app
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(front, lifespan="off", log_level="warning", access_log=False)
        await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvicorn.Config(None).get_loop_factory()) as runner:  # type: ignore[arg-type]
        runner.run(main())
