"""One contender in a process of its own: does what it is told on standard input, a line of JSON at a time.

{"open": "request-10"}     → {"operations": 123} a round, or {"cannot": true}
{"round": true}            → {"cpu": seconds, "wall": seconds} of one operation, or {"bytes": of one event}
{"close": true}            → {}
{"instructions": 50}       → {}: 50 operations, for callgrind
"""

import asyncio
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

from cases import CASES, Case
from exchange import Calls, request

__all__: list[str] = []

WARM_UP = 3  # operations before the first measured one
PATIENCE = 60  # seconds for one order; then the process dies, and who gave the order says so

Operations = Callable[[int], Awaitable[None]]


def main() -> None:
    contender, cpu, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    os.sched_setaffinity(0, {cpu})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    module = importlib.import_module(f"contenders.{contender}")
    _answer(answers, {"semantics": module.SEMANTICS})
    for line in sys.stdin:
        signal.alarm(PATIENCE)
        name = json.loads(line)["open"]
        case = next(case for case in CASES if case.name == name)
        if module.can(case):
            asyncio.run(_one_case(module, case, seconds, answers))
        else:
            _answer(answers, {"cannot": True})


async def _one_case(module: Any, case: Case, seconds: float, answers: TextIO) -> None:
    calls = Calls()
    async with module.opened(case, calls) as subject:
        operations = _operations(case, calls, subject)
        await operations(0 if case.kind == "memory" else WARM_UP)
        gc.collect()
        gc.freeze()  # so that no round pays for the modules that another contender does not have
        count = 1 if case.kind == "memory" else await _fitting(operations, seconds)
        _answer(answers, {"operations": count})
        # Reading blocks the loop, and is meant to: nothing runs between rounds.
        for line in sys.stdin:
            signal.alarm(PATIENCE)
            order = json.loads(line)
            if "close" in order:
                break
            if "instructions" in order:
                await operations(order["instructions"])
                _answer(answers, {})
                continue
            gc.collect()
            cpu, wall = await _timed(operations, count)
            measured = {"bytes": calls.bytes / case.events} if case.kind == "memory" else {"cpu": cpu, "wall": wall}
            _answer(answers, measured)
    gc.unfreeze()
    _answer(answers, {})


def _operations(case: Case, calls: Calls, subject: Any) -> Operations:
    async def requests(count: int) -> None:
        for _ in range(count):
            await request(subject, calls, case.deliveries)
        await asyncio.sleep(0)  # what a contender leaves to the event loop is part of its price

    async def function_calls(count: int) -> None:
        for _ in range(count):
            subject()

    return function_calls if case.kind == "call" else requests


async def _fitting(operations: Operations, seconds: float) -> int:
    """Return how many operations take about so many seconds."""
    count = 1
    while True:
        _, wall = await _timed(operations, count)
        if wall * count >= seconds / 4 or wall >= seconds:
            return max(1, round(seconds / wall))
        count = max(count * 2, min(round(seconds / wall), count * 10))


async def _timed(operations: Operations, count: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await operations(count)
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
