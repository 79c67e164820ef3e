"""A proxy in front of an SQS endpoint, which does to calls what networks and SQS do on bad days."""

import http.client
import json
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

__all__ = ["Fault", "FaultProxy"]


@dataclass(frozen=True)
class Fault:
    """What happens to one call of SendMessageBatch.

    Attributes:
        kind: "throttled" and "forbidden": 400 and 403 with a throttling code. "unavailable": 503, in HTML.
            "partial": the entries at `positions` fail, the others arrive. "hang", "reset": nothing arrives.
            "hang after", "reset after": all arrives, and no answer comes back. "slow": both, after `seconds`.
        positions: of entries in the call.
        sender_fault: what "partial" says of them.
        seconds: how long "slow" takes, and "hang" until the connection is closed.
    """

    kind: Literal[
        "throttled", "forbidden", "unavailable", "partial", "hang", "hang after", "reset", "reset after", "slow"
    ]
    positions: frozenset[int] = frozenset()
    sender_fault: bool = False
    seconds: float = 30.0


class FaultProxy:
    """A proxy for the length of a `with` block. Each call takes the next of `faults`, or else `always`.

    Attributes:
        calls: how many messages each call had.
        opened: how often a queue was asked for its attributes.
        bodies: by connection: the first message of each of its calls.
        hanging: set while a call hangs.
    """

    def __init__(self, port: int) -> None:
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.calls: list[int] = []
        self.opened = 0
        self.bodies: defaultdict[object, list[str]] = defaultdict(list)
        self.hanging = threading.Event()
        self.released = threading.Event()
        self.forwarding = threading.Lock()
        self._target = port
        self._under_way = 0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Exchange)
        self._server.proxy = self
        self._server.target = self._target
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Count a call as being under way."""
        with self._changed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def wait_until_quiet(self) -> None:
        """Wait for calls that their callers have given up: they may yet put something into the queue."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._under_way, timeout=30)

    def url(self, queue_url: str) -> str:
        """Return the URL of a queue behind this proxy."""
        return f"{self.endpoint}/{queue_url.split('/', 3)[3]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy
    target: int

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone: they time out on purpose."""


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        proxy = self.server.proxy
        if not self.headers.get("X-Amz-Target", "").endswith(".SendMessageBatch"):
            proxy.opened += 1
            self._answer(*self._forward(request))
            return
        with proxy.exchange():
            proxy.calls.append(len(request["Entries"]))
            proxy.bodies[self.client_address].append(request["Entries"][0]["MessageBody"])
            fault = proxy.faults.popleft() if proxy.faults else proxy.always
            if fault is None:
                self._answer(*self._forward(request))
            else:
                self._suffer(fault, request)

    def _suffer(self, fault: Fault, request: dict[str, Any]) -> None:
        match fault.kind:
            case "throttled":
                self._answer(400, _error("RequestThrottled"))
            case "forbidden":
                self._answer(403, _error("ThrottlingException"))
            case "unavailable":
                self._answer(503, b"<html>Service Unavailable</html>", "text/html")
            case "partial":
                self._answer(200, self._forward_some(fault, request))
            case "slow":
                self.server.proxy.released.wait(fault.seconds)
                self._answer(*self._forward(request))
            case "hang" | "hang after" | "reset" | "reset after":
                if fault.kind.endswith("after"):
                    self._forward(request)
                if fault.kind.startswith("hang"):
                    self.server.proxy.hanging.set()
                    self.server.proxy.released.wait(fault.seconds)
                # closed with this option, a connection is reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

    def _forward_some(self, fault: Fault, request: dict[str, Any]) -> bytes:
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        kept = [entry for position, entry in enumerate(request["Entries"]) if position not in fault.positions]
        if kept:
            answer.update(json.loads(self._forward({**request, "Entries": kept})[1]))
        answer["Failed"] = [
            {"Id": entry["Id"], "Code": "InternalError", "Message": "a fault", "SenderFault": fault.sender_fault}
            for position, entry in enumerate(request["Entries"])
            if position in fault.positions
        ]
        return json.dumps(answer).encode()

    def _forward(self, request: dict[str, Any]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        try:
            headers = {name: self.headers[name] for name in ("X-Amz-Target", "Content-Type", "Authorization")}
            with self.server.proxy.forwarding:  # moto looks for a duplicate and adds the message in two steps
                connection.request("POST", self.path, json.dumps(request), headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, body: bytes, content_type: str = "application/x-amz-json-1.0") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _error(code: str) -> bytes:
    return json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "slow down"}).encode()
