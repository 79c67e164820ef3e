"""A long mixed load on a real server, with failing and slow subscribers: memory stays flat, and the counters add up.

Run by `scripts/soak [SECONDS]`; the test of the same name runs a short one. Linux only: it reads /proc.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from .process import ServerProcess

__all__ = ["Soak", "soak"]

CLIENTS = 3
PAUSE = 0.02  # seconds between two requests of a client: the load is to be long, not high
WARM_UP = 0.25  # of the time, before memory is compared


@dataclass(kw_only=True)
class Soak:
    """What was sent, and what the server's figures say.

    Attributes:
        sent: how many requests of each kind were answered.
        stats: the bus's own counters, at the end.
        counts: what the subscribers counted.
        resident: bytes of memory, once a second from the end of the warm-up.
        blocks: how many blocks Python had allocated, idle, after the warm-up and at the end.
        most_pending: the highest number of events that waited.
    """

    sent: Counter[str] = field(default_factory=Counter[str])
    stats: Mapping[str, Any] = field(default_factory=dict[str, Any])
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    resident: list[int] = field(default_factory=list[int])
    blocks: list[int] = field(default_factory=list[int])
    most_pending: int = 0

    def expected(self) -> dict[str, int]:
        """Work out from what was sent what the bus must have counted."""
        placed = sum(self.sent[kind] for kind in ("/placed", "/streamed", "/websocket"))
        placed += 2 * self.sent["/placed-in-a-thread"]
        broken = self.sent["/broken"]
        return {
            "pending": 0,
            "delivered": 4 * placed + broken,  # three subscribers and the chained event; the one that recovers
            "failed": 0,
            "dead_lettered": 2 * broken,  # the one that fails and the one that hangs
            "cancelled": 0,
            "retried": broken,
            "withheld": self.sent["/placed"] + broken,
            "refused": 0,
            "unheard": self.sent["/placed"],
        }

    def counted(self) -> dict[str, int]:
        """Return the bus's counters that can be expected."""
        return {name: self.stats[name] for name in self.expected()}

    def growth(self) -> float:
        """Return by which part the resident memory of the last third exceeds that of the first."""
        third = max(len(self.resident) // 3, 1)
        return statistics.median(self.resident[-third:]) / statistics.median(self.resident[:third]) - 1


def soak(directory: Path, *, seconds: float) -> Soak:
    """Load a uvicorn process for so long, and collect the figures."""
    result = Soak()
    with ServerProcess("uvicorn", directory, app="soak_app:app", arguments=["--no-access-log"]) as server:
        _load(server, result, seconds=seconds * WARM_UP)
        result.blocks.append(_idle(server)["blocks"])
        result.resident.clear()
        _load(server, result, seconds=seconds * (1 - WARM_UP))
        last = _idle(server)
        result.blocks.append(last["blocks"])
        result.stats, result.counts = last["stats"], last["counts"]
    return result


def _load(server: ServerProcess, result: Soak, *, seconds: float) -> None:
    """Run all clients side by side, and look at the memory meanwhile."""
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as clients:
        running = [clients.submit(_client, server, stop) for _ in range(CLIENTS)]
        try:
            deadline = time.monotonic() + seconds
            while not stop.wait(min(1.0, max(deadline - time.monotonic(), 0.0))) and time.monotonic() < deadline:
                figures = _figures(server)
                result.resident.append(figures["resident"])
                result.most_pending = max(result.most_pending, figures["stats"]["pending"])
        finally:
            stop.set()
        for client in running:
            result.sent += client.result()


def _client(server: ServerProcess, stop: threading.Event) -> Counter[str]:
    """Send requests of all kinds in turn, over one connection as long as it lives; return how many were answered."""
    sent: Counter[str] = Counter()
    numbers = iter(range(sys.maxsize))
    try:
        for kind, send in cycle(_KINDS.items()):
            if stop.wait(PAUSE):
                return sent
            for answered in send(server, kind, numbers):
                sent[kind] += answered
    except BaseException:
        stop.set()
        raise
    return sent


def _several(server: ServerProcess, path: str, numbers: Iterator[int]) -> Iterator[int]:
    with closing(server.connect()) as connection:
        for _ in range(5):
            yield server.get(f"{path}?n={next(numbers)}", over=connection).status == 200


def _broken(server: ServerProcess, path: str, numbers: Iterator[int]) -> Iterator[int]:
    yield server.get(f"{path}?n={next(numbers)}").status == 500


def _streamed(server: ServerProcess, path: str, numbers: Iterator[int]) -> Iterator[int]:
    with closing(server.send_only(f"{path}?n={next(numbers)}")) as client:
        received = b""
        while b"more" not in received:
            received += client.recv(4096)
    yield 1


def _websocket(server: ServerProcess, path: str, numbers: Iterator[int]) -> Iterator[int]:
    with server.websocket(event="order.placed", key="soak") as websocket:
        for _ in range(5):
            websocket.send(str(next(numbers)))
            websocket.recv()
            yield 1


_KINDS: Mapping[str, Callable[[ServerProcess, str, Iterator[int]], Iterator[int]]] = {
    "/placed": _several,
    "/broken": _broken,
    "/placed-in-a-thread": _several,
    "/streamed": _streamed,
    "/websocket": _websocket,
}


def _figures(server: ServerProcess) -> dict[str, Any]:
    answer = server.get("/figures")
    if answer.status != 200:
        raise RuntimeError(f"no figures: {answer}")
    figures: dict[str, Any] = json.loads(answer.body)
    return figures


def _idle(server: ServerProcess) -> dict[str, Any]:
    """Wait until the bus has nothing left to do, and return the figures of then."""

    def idle() -> dict[str, Any] | None:
        figures = _figures(server)
        return None if figures["stats"]["pending"] else figures

    return server.wait_until(idle, "the bus never became idle")


def main() -> None:
    """Soak for the seconds that the command line gives, print the figures, and fail if they do not add up."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    print(f"soaking for {seconds:.0f} s")
    with tempfile.TemporaryDirectory() as directory:
        result = soak(Path(directory), seconds=seconds)
    print(f"requests: {dict(result.sent)}, {sum(result.sent.values()) / seconds:.0f} a second")
    print(f"resident memory: {result.resident[0] >> 10} KiB first, {result.resident[-1] >> 10} KiB last")
    print(f"  last third against first: {result.growth():+.2%}")
    print(f"blocks allocated when idle: {result.blocks[0]} after the warm-up, {result.blocks[-1]} at the end")
    print(f"most events pending: {result.most_pending}")
    for name, expected in result.expected().items():
        print(f"  {name:>14} {result.stats[name]:>9}   expected {expected:>9}")
    print(f"  subscribers counted: {dict(result.counts)}")
    if result.counted() != result.expected():
        sys.exit("the counters do not add up")


if __name__ == "__main__":
    main()
