"""An application whose events go to an SQS queue, and a reader that gets them back as typed events.

Run it with `python examples/sqs.py`; it needs `boto3`, `uvicorn` and `moto[server]`, which stands in for AWS here. With
a queue of your own, set QUEUE_URL and what boto3 needs, and serve `sqs:app`.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from fastapi import FastAPI

from fastapi_events import Event, EventHandlerASGIMiddleware, EventModel, dispatch
from fastapi_events.handlers.aws import SQSForwardHandler


class OrderPlaced(EventModel, name="order.placed", version=1):
    """An order was accepted."""

    id: int
    customer: str


class OrderCancelled(EventModel, name="order.cancelled"):
    """A customer has changed his mind."""

    id: int


app = FastAPI()
if queue_url := os.environ.get("QUEUE_URL"):
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[SQSForwardHandler(queue_url)])


@app.post("/orders/{order_id}", status_code=202)
async def place_order(order_id: int, customer: str) -> None:
    dispatch(OrderPlaced(id=order_id, customer=customer), subject=f"order/{order_id}")


@app.delete("/orders/{order_id}", status_code=202)
async def cancel_order(order_id: int) -> None:
    dispatch(OrderCancelled(id=order_id), subject=f"order/{order_id}")


def read(sqs: Any, url: str) -> None:
    """Print what is in the queue, and take it out."""
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages"):
        for message in messages:
            match Event.from_json(message["Body"]):
                case Event(_, OrderPlaced() as order):
                    print(f"received: order {order.id} was placed by {order.customer}")
                case Event(_, OrderCancelled() as order):
                    print(f"received: order {order.id} was cancelled")
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def main() -> None:
    with serving("moto.server", "--host=127.0.0.1") as aws:
        os.environ.update(
            AWS_ENDPOINT_URL_SQS=aws,
            AWS_DEFAULT_REGION="eu-west-1",
            AWS_ACCESS_KEY_ID="anyone",
            AWS_SECRET_ACCESS_KEY="anything",
        )
        sqs = boto3.client("sqs")
        os.environ["QUEUE_URL"] = url = sqs.create_queue(QueueName="orders")["QueueUrl"]
        with serving("uvicorn", "sqs:app", "--app-dir", str(Path(__file__).parent)) as shop:
            for method, path in [
                ("POST", "/orders/1?customer=ada"),
                ("POST", "/orders/2?customer=grace"),
                ("DELETE", "/orders/1"),
            ]:
                with urllib.request.urlopen(urllib.request.Request(shop + path, method=method)) as response:
                    print(f"{method} {path}: {response.status}")
        read(sqs, url)
        sqs.close()


@contextmanager
def serving(*module: str) -> Iterator[str]:
    """Run a server in a process of its own, and tell its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", *module, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if server.poll() is not None:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
