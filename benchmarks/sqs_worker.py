"""What forwards events to SQS, each in a process of its own; see sqs.py.

sqs_worker.py CONTENDER PORT PORT    reads what to do from standard input, a line a round, and writes what it took

The ports are of the endpoint that answers at once and of the one that takes 10 ms.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

__all__ = ["BY_HAND"]

AT_ONCE = 100  # events that wait in requests at the same time
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
CLIENT = {"region_name": "eu-west-1", "aws_access_key_id": "id", "aws_secret_access_key": "secret"}
BY_HAND = {"plain", "ready"}  # these block, make calls of ten whatever the requests are, and one at a time

Send: TypeAlias = Callable[[Sequence[Any]], Coroutine[Any, Any, None]]
Make: TypeAlias = Callable[[int], Any]


async def work(name: str, ports: Sequence[int]) -> None:
    """Do the rounds that come on standard input."""
    addresses = {delay: f"http://127.0.0.1:{port}" for delay, port in zip((0.0, 0.01), ports, strict=True)}
    contenders = {delay: await CONTENDERS[name](address) for delay, address in addresses.items()}
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        make, send = contenders[order["delay"]]
        per_request = order["per_request"] if name not in BY_HAND else 10
        began, cpu = time.perf_counter(), time.process_time()
        if order["rate"] and name not in BY_HAND:
            await _at_a_rate(make, send, order["events"], order["rate"])
        else:
            await _at_once(make, send, order["events"], per_request, 1 if name in BY_HAND else AT_ONCE)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
        events = order["events"]
        print(json.dumps({"cpu": cpu / events * 1e6, "rate": events / seconds}), flush=True)


async def _at_once(make: Make, send: Send, events: int, per_request: int, at_once: int) -> None:
    numbers = iter(range(0, events, per_request))

    async def client() -> None:
        for first in numbers:
            await send([make(number) for number in range(first, first + per_request)])

    await asyncio.gather(*(client() for _ in range(max(1, at_once // per_request))))


async def _at_a_rate(make: Make, send: Send, events: int, rate: int) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        for number in range(events):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            requests.create_task(send([make(number)]))


def _payload(number: int) -> dict[str, Any]:
    return {"order_id": number, "customer": "ada", "lines": [{"sku": "a-1", "pieces": 2}], "total": 12.5}


async def _ours(endpoint: str) -> tuple[Make, Send]:
    from fastapi_events import Event
    from fastapi_events.handlers.aws import SQSForwardHandler

    handler = SQSForwardHandler(f"{endpoint}/1/events", endpoint_url=endpoint, **CLIENT)
    await handler.start()
    return lambda number: Event("order.placed", _payload(number), headers=HEADERS), handler.handle_many


async def _old(endpoint: str) -> tuple[Make, Send]:
    from fastapi_events.handlers.aws import SQSForwardHandler

    handler: Any = SQSForwardHandler(f"{endpoint}/1/events", endpoint_url=endpoint, **CLIENT)
    return lambda number: ("order.placed", _payload(number)), handler.handle_many


async def _plain(endpoint: str) -> tuple[Make, Send]:
    """What one writes by hand for the same messages; it blocks, and so is given calls of ten."""
    import boto3

    from fastapi_events import Event

    client = boto3.client("sqs", endpoint_url=endpoint, **CLIENT)

    async def send(events: Sequence[Event[Any]]) -> None:
        entries = [
            _entry(number, event.to_json(), event.name, event.headers["traceparent"])
            for number, event in enumerate(events)
        ]
        client.send_message_batch(QueueUrl=f"{endpoint}/1/events", Entries=entries)

    return lambda number: Event("order.placed", _payload(number), headers=HEADERS), send


async def _ready(endpoint: str) -> tuple[Make, Send]:
    """Only the call."""
    import boto3

    from fastapi_events import Event

    client = boto3.client("sqs", endpoint_url=endpoint, **CLIENT)
    body = Event("order.placed", _payload(1), headers=HEADERS).to_json()
    entries = [_entry(number, body, "order.placed", HEADERS["traceparent"]) for number in range(10)]

    async def send(events: Sequence[None]) -> None:
        client.send_message_batch(QueueUrl=f"{endpoint}/1/events", Entries=entries)

    return lambda number: None, send


def _entry(number: int, body: str, name: str, traceparent: str) -> dict[str, Any]:
    attributes = {"contentType": "application/cloudevents+json", "type": name, "traceparent": traceparent}
    return {
        "Id": str(number),
        "MessageBody": body,
        "MessageAttributes": {key: {"DataType": "String", "StringValue": text} for key, text in attributes.items()},
    }


CONTENDERS = {"ours": _ours, "old": _old, "plain": _plain, "ready": _ready}

if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], [int(port) for port in sys.argv[2:]]))
