"""Serves the quickstart with a real server, sends it requests, and shows what its handlers received and when.

Then runs the SQS example, where events go through a queue to a reader. Exits with an error if something is not what
must be: every event after its response, none lost, none invented.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, NamedTuple, Self

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 15.0  # seconds to wait for anything that must happen

# What each handler of the quickstart prints for an event, the slowest handler last.
HANDLERS = {
    "write_audit_log": "^write_audit_log: order.placed",
    "EchoHandler": "^order.placed ",
    "send_confirmation": "^send_confirmation: order",
}

# What the SQS example prints: the requests to its application, then what its reader took out of the queue.
SENT = ["POST /orders/1?customer=ada: 202", "POST /orders/2?customer=grace: 202", "DELETE /orders/1: 202"]
RECEIVED = [
    "received: order 1 was cancelled",
    "received: order 1 was placed by ada",
    "received: order 2 was placed by grace",
]


def main() -> None:
    """Run every part of the demonstration."""
    signal.signal(signal.SIGTERM, leave)
    with Server("quickstart:app") as server:
        show_quickstart(server)
    show_sqs()
    print("\neverything is as it must be")


def leave(number: int, _frame: FrameType | None) -> None:
    """End the demonstration as Ctrl-C does, so that no server is left behind."""
    raise SystemExit(f"stopped by {signal.Signals(number).name}")


def show_quickstart(server: "Server") -> None:
    """Send the quickstart an order, a bad order, a request that fails, and an order just before SIGTERM."""
    show_exchange(server, "POST", "/orders", {"id": 1}, status=201)
    show_exchange(server, "POST", "/orders", {"id": "many"}, status=422)
    show_exchange(server, "GET", "/broken", status=500)
    show_exchange(server, "POST", "/orders", {"id": 2}, status=201, stop=True)

    for handler, pattern in HANDLERS.items():
        count = sum(bool(re.search(pattern, line.text)) for line in server.stdout.lines)
        require(count == 3, f"{handler} received {count} events instead of 3")
    require(server.process.returncode in {0, -signal.SIGTERM}, f"the server exited with {server.process.returncode}")
    require(any("shutdown complete" in line.text for line in server.stderr.lines), "the shutdown was not clean")


def show_exchange(
    server: "Server", method: str, path: str, payload: object = None, *, status: int, stop: bool = False
) -> None:
    """Send a request, print its response and then what the handlers received, and check the order of all that.

    Args:
        server: where to send it.
        method: the HTTP method.
        path: the path.
        payload: the body, as JSON.
        status: the status that the response must have. With 422 the handlers must receive nothing.
        stop: stop the server as soon as the response is there.
    """
    start = len(server.stdout.lines)
    print(f"\n{method} {path} {'' if payload is None else json.dumps(payload)}")
    response = server.request(method, path, payload)
    print(f"   the client has its {response.status} after {response.duration * 1000:.0f} ms: {response.body}")
    require(response.status == status, f"{method} {path}: {response.status} instead of {status}")
    if stop:
        print("   SIGTERM")
        server.terminate()

    answered = server.stdout.wait_for(f'"{method} {path} HTTP/1.1" {status}', start)
    if status == 422:
        print("   no event")
        return
    received = {handler: server.stdout.wait_for(pattern, start) for handler, pattern in HANDLERS.items()}
    for line in server.stdout.lines[answered.number + 1 :]:
        print(f"   {(line.time - answered.time) * 1000:+5.0f} ms  {line.text}")
    for handler, line in received.items():
        require(line.number > answered.number, f"{handler} received the event before the response was sent")
    require(response.time < received["send_confirmation"].time, "the client had to wait for send_confirmation")


def show_sqs() -> None:
    """Run the SQS example: an application, a stand-in for AWS on this machine, and a reader that gets typed events."""
    print("\npython examples/sqs.py")
    if not all(map(find_spec, ("boto3", "moto", "flask"))):  # moto without [server] has no flask
        print("   skipped: to see events go through an SQS queue, pip install boto3 'moto[server]'")
        return
    began = time.monotonic()
    command = [sys.executable, "-u", str(EXAMPLES / "sqs.py")]
    # In a session of its own: that way the servers that it starts can be stopped with it.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output = output_of(process.stdout)
        for number in range(len(SENT) + len(RECEIVED)):
            line = output.wait_for("", number)
            print(f"   {(line.time - began) * 1000:+5.0f} ms  {line.text}")
        code = process.wait(PATIENCE)
        output.join()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
    printed = [line.text for line in output.lines]
    require(code == 0, f"examples/sqs.py exited with {code}")
    require(printed[: len(SENT)] == SENT, f"the application was to get {SENT}")
    require(sorted(printed[len(SENT) :]) == RECEIVED, f"the reader was to get {RECEIVED}")  # a queue keeps no order


def require(condition: bool, otherwise: str) -> None:
    """Leave with an error unless the condition holds."""
    if not condition:
        raise SystemExit(f"NOT as it must be: {otherwise}")


class Line(NamedTuple):
    """A line of output: its place (from 0), its text, and when it came (seconds of the monotonic clock)."""

    number: int
    text: str
    time: float


class Output:
    """What a process writes to one of its streams, line by line."""

    def __init__(self, stream: IO[str]) -> None:
        self.lines: list[Line] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream,))
        self._reader.start()

    def wait_for(self, pattern: str, start: int = 0) -> Line:
        """Return the first line from number `start` on in which the pattern is found; wait PATIENCE for it."""

        def find() -> Line | None:
            return next((line for line in self.lines[start:] if re.search(pattern, line.text)), None)

        with self._news:
            line = self._news.wait_for(find, PATIENCE)
        if line is None:
            raise SystemExit(f"NOT as it must be: no line with {pattern!r} within {PATIENCE:.0f} seconds")
        return line

    def join(self) -> None:
        """Wait until the process has closed the stream."""
        self._reader.join(PATIENCE)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for text in stream:
                with self._news:
                    self.lines.append(Line(len(self.lines), text.rstrip(), time.monotonic()))
                    self._news.notify_all()


def output_of(stream: IO[str] | None) -> Output:
    """Read what a process writes to a stream; None is what Popen has where it was not asked for one."""
    if stream is None:
        raise RuntimeError("the process has no output to read")
    return Output(stream)


class Response(NamedTuple):
    """What the client got; when it had all of it (seconds of the monotonic clock), and how long that took (seconds)."""

    status: int
    body: str
    time: float
    duration: float


class Server:
    """An example, served by uvicorn in a process of its own, on a free port of 127.0.0.1.

    The access log and what the handlers print share `stdout`: their order there is the order in which they happened.
    """

    def __init__(self, app: str) -> None:
        command = [sys.executable, "-m", "uvicorn", app, "--app-dir", str(EXAMPLES), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.stdout = output_of(self.process.stdout)
        self.stderr = output_of(self.process.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.terminate()
        except subprocess.TimeoutExpired:
            self.process.kill()
        if error is not None:
            print("\nthe server wrote:", *(line.text for line in self.stdout.lines + self.stderr.lines), sep="\n   ")

    def request(self, method: str, path: str, payload: object = None) -> Response:
        """Send a request on a connection of its own, and read all of the response."""
        running = self.stderr.wait_for("running on http://127.0.0.1:")
        port = int(re.findall("127.0.0.1:([0-9]+)", running.text)[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        sent = time.monotonic()
        connection.request(
            method, path, None if payload is None else json.dumps(payload), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        body = response.read().decode()
        received = time.monotonic()
        connection.close()
        return Response(response.status, body, received, received - sent)

    def terminate(self) -> None:
        """Stop the server as an operator does, and wait until it has exited."""
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.stdout.join()
        self.stderr.join()


if __name__ == "__main__":
    main()
