"""Compares what forwarding events to SQS costs, against an endpoint of our own that answers at once or after 10 ms.

sqs.py [--quick] [--rounds N] [--old PYTHON]    → tables in Markdown

Needs this library and boto3. fastapi-events 0.12.2 has this library's import name, so that it is measured with another
interpreter: `--old`, else one in a temporary environment, made with pip. `sqs_worker.py` is what is measured; started
by itself, as `sqs.py endpoint SECONDS`, this is the other end.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqs_worker import BY_HAND

__all__: list[str] = []

WORKER = Path(__file__).with_name("sqs_worker.py")
ROUNDS = 21
FEW = 3  # where a rough look will do; at a rate the figures hardly vary
TITLES = {
    "plain": "plain boto3, calls of ten",
    "ready": "the same, bodies written before",
    "ours": "SQSForwardHandler",
    "old": "fastapi-events 0.12.2",
}


@dataclass(frozen=True)
class Case:
    """How the events come.

    Attributes:
        delay: seconds that the endpoint takes.
        per_request: events of one request.
        rate: requests a second, one after the other; None: as many as are done, 100 events at a time.
    """

    title: str
    delay: float
    per_request: int
    rate: int | None = None


CASES = [
    Case("1 event a request", 0.0, 1),
    Case("10 events a request", 0.0, 10),
    Case("1 event a request, endpoint takes 10 ms", 0.01, 1),
    Case("10 events a request, endpoint takes 10 ms", 0.01, 10),
    Case("1 event a request, 500 requests/s, endpoint takes 10 ms", 0.01, 1, rate=500),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a rough look in seconds: {FEW} rounds")
    parser.add_argument(
        "--rounds", type=int, help=f"rounds of each case, {ROUNDS} unless told; at a rate {FEW} at most"
    )
    parser.add_argument("--old", metavar="PYTHON", help="an interpreter that has fastapi-events 0.12.2 and boto3")
    options = parser.parse_args()
    rounds = options.rounds or (FEW if options.quick else ROUNDS)
    with ExitStack() as stack:
        old = options.old or stack.enter_context(_old_environment())
        endpoints = {
            delay: stack.enter_context(_process(sys.executable, __file__, "endpoint", delay)) for delay in (0.0, 0.01)
        }
        ports = {delay: int(_line(endpoint)) for delay, endpoint in endpoints.items()}
        workers = {
            name: stack.enter_context(_process(old if name == "old" else sys.executable, WORKER, name, *ports.values()))
            for name in TITLES
        }
        for case in CASES:
            samples = _measure(case, workers, ports, rounds=min(rounds, FEW) if case.rate else rounds)
            print(_table(case, samples), flush=True)
    print("CPU time is that of all threads of the process; the ratio is the median of paired rounds.")


def _measure(
    case: Case, workers: dict[str, subprocess.Popen[str]], ports: dict[float, int], *, rounds: int
) -> dict[str, list[dict[str, float]]]:
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(-1, rounds):  # the first is to warm up
        for name, worker in workers.items():
            # 0.12.2 sends events of single requests one by one: fewer say as much
            events = 50 if name == "old" else 300
            _calls(ports[case.delay])
            order = {"delay": case.delay, "per_request": case.per_request, "rate": case.rate, "events": events}
            sample = _ask(worker, order)
            if number >= 0:
                samples[name].append({**sample, "calls": _calls(ports[case.delay]) / events})
    return samples


def _table(case: Case, samples: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        f"**{case.title}**",
        "",
        "| | events/s | calls/event | CPU µs/event | to plain boto3 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, measured in samples.items():
        if case.rate and name in BY_HAND:
            continue
        middle = {key: statistics.median(sample[key] for sample in measured) for key in ("rate", "calls", "cpu")}
        pairs = zip(measured, samples["plain"], strict=True)
        ratio = statistics.median(sample["cpu"] / plain["cpu"] for sample, plain in pairs)
        # where requests come at a rate, most of the time goes into waiting for the next one
        cpu = "– | –" if case.rate else f"{middle['cpu']:.0f} | {ratio:.2f}"
        lines.append(f"| {TITLES[name]} | {middle['rate']:,.0f} | {middle['calls']:.2f} | {cpu} |")
    return "\n".join([*lines, ""])


@contextmanager
def _process(python: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [python, *map(str, arguments)]
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH" or "old" not in arguments}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def _old_environment() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        packages = ["fastapi-events==0.12.2", *(f"{name}=={version(name)}" for name in ("boto3", "starlette"))]
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        yield python


def _ask(worker: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, float]:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(order) + "\n")
    worker.stdin.flush()
    answer: dict[str, float] = json.loads(_line(worker))
    return answer


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args} ended: see above")
    return line


def _calls(port: int) -> int:
    """Return how many calls there were since this was last asked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        return int(answer.read())


async def serve(delay: float) -> None:
    """Answer calls as SQS does, without looking at more than the ids."""
    calls = 0

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if head.startswith(b"get "):
                    body = str(calls).encode()
                    calls = 0
                else:
                    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                    body = _answer(await reader.readexactly(length))
                    calls += b".sendmessage" in head
                    await asyncio.sleep(delay)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(exchange, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _answer(request: bytes) -> bytes:
    content = json.loads(request)
    identity = {
        "MessageId": "5fea7756-0ea4-451a-a703-a558b933e274",
        "MD5OfMessageBody": "5fea77560ea4451aa703a558b933e274",
    }
    if "Entries" in content:
        return json.dumps({"Successful": [{"Id": entry["Id"], **identity} for entry in content["Entries"]]}).encode()
    if "MessageBody" in content:
        return json.dumps(identity).encode()
    return json.dumps({"Attributes": {"MaximumMessageSize": "1048576"}}).encode()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["endpoint", delay]:
            asyncio.run(serve(float(delay)))
        case _:
            main()
