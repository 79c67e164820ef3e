"""moto's server in a process of its own, and the queues on it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from types import TracebackType
from typing import Any, Self

import boto3

__all__ = ["CREDENTIALS", "MotoServer", "Queue"]

PATIENCE = 30.0  # seconds to wait for the server; it imports a great deal
CREDENTIALS = {"region_name": "eu-west-1", "aws_access_key_id": "id", "aws_secret_access_key": "secret"}


class MotoServer:
    """An AWS for the length of a `with` block."""

    def __enter__(self) -> Self:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host=127.0.0.1", f"--port={self.port}"],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def client(self, service: str) -> Any:
        """Make a client of its own for an AWS service."""
        return boto3.client(service, endpoint_url=self.endpoint, **CREDENTIALS)

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/moto-api/data.json", timeout=PATIENCE):
                    return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)


class Queue:
    """A queue, as its readers see it."""

    def __init__(self, client: Any, name: str, **attributes: str) -> None:
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        self.client = client
        self.url: str = client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]

    @property
    def arn(self) -> str:
        answer = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    def messages(self) -> list[dict[str, Any]]:
        """Take all messages out of the queue, in its order."""
        taken: list[dict[str, Any]] = []
        while batch := self._receive():
            taken.extend(batch)
            self.client.delete_message_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(batch)
                ],
            )
        return taken

    def _receive(self) -> list[dict[str, Any]]:
        answer = self.client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        return list(answer.get("Messages", []))
