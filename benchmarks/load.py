"""A load generator: so many requests over some kept-alive connections to one server on this machine, then it ends.

load.py CPU PORT PATH REQUESTS CONNECTIONS    → {"seconds": ..., "p50": ..., "p99": ...} in seconds
"""

import asyncio
import json
import os
import sys
import time

import uvloop

__all__: list[str] = []

PATIENCE = 60  # seconds


class Client(asyncio.Protocol):
    """One connection: sends the next request when the answer to the last has arrived whole."""

    left = 0
    latencies: list[float] = []  # noqa: RUF012  # shared by the connections, as `left` is
    done: asyncio.Future[None]

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self) -> None:
        if Client.left == 0:
            return
        Client.left -= 1
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.received.endswith(b"\r\n\r\nok"):
            return
        Client.latencies.append(time.perf_counter() - self.sent_at)
        if not self.received.startswith(b"HTTP/1.1 200 "):
            self.fail(f"the server answered {self.received[:60]!r}")
            return
        self.received = b""
        if len(Client.latencies) == Client.total and not Client.done.done():
            Client.done.set_result(None)
        self.send()

    total = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the server closed a connection: {exc}")

    def fail(self, why: str) -> None:
        if not Client.done.done():
            Client.done.set_exception(RuntimeError(why))


async def main() -> None:
    cpu, port = int(sys.argv[1]), int(sys.argv[2])
    path, requests, connections = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    os.sched_setaffinity(0, {cpu})
    loop = asyncio.get_running_loop()
    Client.done = loop.create_future()
    Client.left = Client.total = requests
    request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    clients = [
        (await loop.create_connection(lambda: Client(request), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    _stay_awake(loop)
    start = time.perf_counter()
    for client in clients:
        client.send()
    await asyncio.wait_for(Client.done, PATIENCE)
    seconds = time.perf_counter() - start
    ordered = sorted(Client.latencies)
    print(json.dumps({"seconds": seconds, "p50": _quantile(ordered, 0.5), "p99": _quantile(ordered, 0.99)}))


def _stay_awake(loop: asyncio.AbstractEventLoop) -> None:
    """Never sleep: a server that has to wake its client pays for that, the more the slower it is."""
    loop.call_soon(_stay_awake, loop)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
