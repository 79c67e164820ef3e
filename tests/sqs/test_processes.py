"""Promises about the event loop and the process: it runs on, it may fork, it may exit."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fastapi_events
from fastapi_events import Event
from fastapi_events.handlers.aws import SQSForwardHandler

from .moto import CREDENTIALS, Queue
from .proxy import Fault, FaultProxy

LIBRARY = Path(fastapi_events.__file__).parent.parent

BEAT = 0.005  # seconds
LATE = 0.05  # seconds
ROUNDS = 5  # a machine that is busy with other things delays a beat now and then, though not in every round


async def test_the_event_loop_runs_on_while_the_endpoint_takes_a_second_a_call(queue: Queue, proxy: FaultProxy) -> None:
    proxy.always = Fault("slow", seconds=1.0)
    handler = SQSForwardHandler(proxy.url(queue.url), endpoint_url=proxy.endpoint, **CREDENTIALS)
    await handler.start()
    worst: list[float] = []

    for number in range(ROUNDS):
        requests = [asyncio.create_task(handler.handle_many([("beat", number)])) for number in range(45)]
        worst.append(await latest_beat(seconds=1.2))
        await asyncio.gather(*requests)
        if worst[-1] <= LATE:
            break

    await handler.stop()
    assert min(worst) <= LATE
    assert len(queue.messages()) == 45 * len(worst)
    assert sum(proxy.calls) == 45 * len(worst)


async def test_one_client_is_made_at_start_and_none_for_an_event(queue: Queue, proxy: FaultProxy) -> None:
    handler = SQSForwardHandler(proxy.url(queue.url), endpoint_url=proxy.endpoint, **CREDENTIALS)

    await asyncio.gather(*(handler.start() for _ in range(5)))
    opened = [proxy.opened]  # each client asks once for the queue's attributes
    await asyncio.gather(*(handler.handle_many([("order.placed", number)]) for number in range(50)))
    await asyncio.to_thread(asyncio.run, handler.handle_many([("order.placed", 50)]))
    opened.append(proxy.opened)
    await handler.stop()

    assert opened == [1, 1]
    assert len(queue.messages()) == 51


async def test_there_are_as_many_connections_as_threads(
    queue: Queue, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.always = Fault("slow", seconds=0.1)
    handler = SQSForwardHandler(
        proxy.url(queue.url), endpoint_url=proxy.endpoint, threads=12, max_batch_size=1, **CREDENTIALS
    )

    await handler.handle_many([("order.placed", number) for number in range(24)])
    await handler.stop()

    assert len(proxy.calls) == 24
    assert "Connection pool is full" not in caplog.text  # what urllib3 says when it has to throw one away


async def latest_beat(*, seconds: float) -> float:
    """Return by how much the latest of many beats was late."""
    latest = 0.0
    end = time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        await asyncio.sleep(BEAT)
        latest = max(latest, time.monotonic() - begin - BEAT)
    return latest


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that makes its handler with `HANDLER`."""
    arguments = {**CREDENTIALS, **options}
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        env={**os.environ, "PYTHONPATH": str(LIBRARY), "HANDLER": repr(arguments)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


EXITING = """
import asyncio, os, sys, time
from fastapi_events.handlers.aws import SQSForwardHandler

handler = SQSForwardHandler(**eval(os.environ["HANDLER"]), linger=0.0)

async def main():
    await handler.start()
    try:
        async with asyncio.timeout(1):
            await handler.handle_many([("order.placed", 1)])
    except TimeoutError:
        print("gave up", flush=True)
    await handler.stop()

asyncio.run(main())
print("leaving", flush=True)
"""


def test_a_process_exits_while_a_call_hangs(queue: Queue, proxy: FaultProxy) -> None:
    proxy.always = Fault("hang", seconds=60.0)

    begin = time.monotonic()
    ended = run(EXITING, queue_url=proxy.url(queue.url), endpoint_url=proxy.endpoint)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("gave up\nleaving\n", "", 0)
    assert proxy.hanging.is_set()
    assert time.monotonic() - begin < 8  # the call itself would take ten seconds


FORKING = """
import asyncio, os, boto3
from fastapi_events.handlers.aws import SQSForwardHandler

options = eval(os.environ["HANDLER"])
if os.environ["CLIENT"]:
    url = options.pop("queue_url")
    handler = SQSForwardHandler(url, client=boto3.client("sqs", **options))
else:
    handler = SQSForwardHandler(**options)

def send(name):
    asyncio.run(handler.handle_many([(name, number) for number in range(25)]))

send("before")
children = []
for number in range(2):
    child = os.fork()
    if not child:
        send(f"child{number}")
        asyncio.run(handler.stop())
        os._exit(0)
    children.append(child)
send("parent")
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
asyncio.run(handler.stop())
print(codes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("client", ["", "given"])
def test_a_handler_works_on_both_sides_of_a_fork(
    queue: Queue, proxy: FaultProxy, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT", client)

    ended = run(FORKING, queue_url=proxy.url(queue.url), endpoint_url=proxy.endpoint)

    assert (ended.stdout, ended.stderr) == ("[0, 0]\n", "")
    arrived = sorted((event.name, event.payload) for event in map(read, queue.messages()))
    assert arrived == sorted((name, n) for name in ("before", "child0", "child1", "parent") for n in range(25))
    users = [{Event.from_json(body).name for body in bodies} for bodies in proxy.bodies.values()]
    assert all(len(names - {"before"}) <= 1 for names in users)  # no two processes share a connection
    assert all("before" not in names or names <= {"before", "parent"} for names in users)


def read(message: dict[str, Any]) -> Event[Any]:
    return Event.from_json(message["Body"])
