"""Measures the contenders under uvicorn: requests a second, the 99th percentile, the server's CPU time a request."""

import json
import random
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from contenders import CONTENDERS
from measure import HERE, Effort, environment_of, process_environment

__all__ = ["EVENTS", "SERVED", "measure_servers"]

SERVED = ("limit", "ours", "old")
EVENTS = (0, 1, 10)
CONNECTIONS = 16


def measure_servers(environment: Path, names: Sequence[str], effort: Effort, cpus: tuple[int, int]) -> dict[str, Any]:
    """Return `{contender: {events: [{"rate", "p50", "p99", "cpu"}, ...]}}`; a sample a round, in turn."""
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        ports = {name: stack.enter_context(_Server(name, environment, cpus[0])).port for name in names}
        work = [(name, events) for name in names for events in EVENTS]
        for name, events in work:
            _one_round(environment, ports[name], events, max(100, effort.requests // 5), cpus)  # warm up
        order = random.Random(7)
        for _ in range(effort.server_rounds):
            order.shuffle(work)
            for name, events in work:
                sample = _one_round(environment, ports[name], events, effort.requests, cpus)
                samples.setdefault(name, {}).setdefault(str(events), []).append(sample)
    return samples


class _Server:
    def __init__(self, name: str, environment: Path, cpu: int) -> None:
        self.process = subprocess.Popen(
            [str(environment_of(name, environment)), str(HERE / "server.py"), name, str(cpu)],
            stdout=subprocess.PIPE,
            text=True,
            env=process_environment(name),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of {CONTENDERS[name].title} did not start")
        self.port = int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def _one_round(environment: Path, port: int, events: int, requests: int, cpus: tuple[int, int]) -> dict[str, float]:
    before = _used(port)
    loaded = subprocess.run(
        [
            str(environment / "peers" / "bin" / "python"),
            str(HERE / "load.py"),
            *map(str, (cpus[1], port, f"/{events}", requests, CONNECTIONS)),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=90,
    )
    result = json.loads(loaded.stdout)
    after = _used(port)
    deadline = time.monotonic() + 10
    while after["deliveries"] - before["deliveries"] < requests * events and time.monotonic() < deadline:
        after = _used(port)
    came = after["deliveries"] - before["deliveries"]
    if came != requests * events:
        raise RuntimeError(f"{requests * events} deliveries expected, {came} came")
    return {
        "rate": requests / result["seconds"],
        "p50": result["p50"],
        "p99": result["p99"],
        "cpu": (after["cpu"] - before["cpu"]) / requests,
    }


def _used(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/used", timeout=10) as response:
        used: dict[str, Any] = json.load(response)
    return used
