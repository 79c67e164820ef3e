"""Measures all contenders side by side: one process each, told in turn to do one round, so that they share the weather.

A result is a list of samples, one a round; the samples of equal place in two lists were taken one after the other, and
their ratio is what counts.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from cases import Case
from contenders import CONTENDERS

__all__ = ["HERE", "Effort", "Worker", "WorkerDiedError", "environment_of", "measure", "process_environment"]

HERE = Path(__file__).parent


class Effort:
    """How long to measure.

    Attributes:
        processes: fresh ones, of each contender.
        rounds: in each process.
        seconds: one round.
        requests: in one round against a server.
        server_rounds: in all.
    """

    def __init__(self, *, quick: bool, rounds: int | None) -> None:
        self.processes = 1 if quick else 3
        self.rounds = rounds or (5 if quick else 8)
        self.seconds = 0.004 if quick else 0.010
        self.requests = 400 if quick else 1_500
        self.server_rounds = rounds or (3 if quick else 11)


class WorkerDiedError(Exception):
    """The process ended, or took too long; its own words are on standard error."""


class Worker:
    """A process of one contender, which does nothing but what it is told."""

    def __init__(self, name: str, environment: Path, *, cpu: int, seconds: float, command: Sequence[str] = ()) -> None:
        python = environment_of(name, environment)
        self.process = subprocess.Popen(
            [*command, str(python), str(HERE / "worker.py"), name, str(cpu), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=process_environment(name),
        )
        self.semantics: str = self._answer()["semantics"]

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerDiedError from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerDiedError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def environment_of(name: str, environment: Path) -> Path:
    """Return the Python that has the contender's package."""
    return environment / CONTENDERS[name].environment / "bin" / "python"


def process_environment(name: str) -> dict[str, str]:
    """Return the environment variables of a contender's process; only this library's finds this library."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"PYTHONHASHSEED": "0"} | ({"PYTHONPATH": str(HERE.parent)} if name == "ours" else {})


def measure(environment: Path, cases: Sequence[Case], names: Sequence[str], effort: Effort, cpu: int) -> dict[str, Any]:
    """Return `{"samples": {case: {contender: [sample, ...]}}, "semantics": {contender: text}, "failed": [...]}`."""
    samples: dict[str, dict[str, list[dict[str, float]]]] = {case.name: {} for case in cases}
    semantics: dict[str, str] = {}
    failed: set[str] = set()
    for process in range(effort.processes if cases else 0):
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name in names:
                try:
                    worker = Worker(name, environment, cpu=cpu, seconds=effort.seconds)
                except WorkerDiedError:
                    failed.add(f"{name}: does not start")
                    continue
                workers[name] = stack.enter_context(worker)
                semantics[name] = worker.semantics
            for case in cases:
                _say(f"process {process + 1} of {effort.processes}, {case.name}")
                rounds = 1 if case.kind == "memory" else effort.rounds
                for name in _one_case(case, workers, rounds, samples[case.name]):
                    failed.add(f"{name}: {case.name}")
                    _say(f"{name} failed in {case.name}\n")
                    with workers.pop(name):
                        pass
                    try:
                        workers[name] = stack.enter_context(Worker(name, environment, cpu=cpu, seconds=effort.seconds))
                    except WorkerDiedError:
                        failed.add(f"{name}: does not start again")
    _say("")
    return {"samples": samples, "semantics": semantics, "failed": sorted(failed)}


def _one_case(
    case: Case, workers: dict[str, Worker], rounds: int, samples: dict[str, list[dict[str, float]]]
) -> list[str]:
    """Add the samples of one process each; return who failed, whose samples of this process are left out."""
    failed = []
    taken: dict[str, list[dict[str, float]]] = {}
    for name, worker in workers.items():
        try:
            if "cannot" not in worker.ask(open=case.name):
                taken[name] = []
        except WorkerDiedError:
            failed.append(name)
    for name in _in_turn(list(taken), rounds):
        if name in failed:
            continue
        try:
            taken[name].append(workers[name].ask(round=True))
        except WorkerDiedError:
            failed.append(name)
    for name in taken.keys() - set(failed):
        try:
            workers[name].ask(close=True)
        except WorkerDiedError:
            failed.append(name)
    for name in taken.keys() - set(failed):
        samples.setdefault(name, []).extend(taken[name])
    return failed


def _in_turn(names: list[str], rounds: int) -> Iterator[str]:
    """Give every name once a round, in another order each time."""
    order = random.Random(7)
    for _ in range(rounds):
        order.shuffle(names)
        yield from names


def _say(text: str) -> None:
    """Show progress on one line of a terminal, and nothing where nobody looks."""
    if sys.stderr.isatty() or text.endswith("\n"):
        print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)
