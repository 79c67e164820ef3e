"""A real server in a process of its own: started on a free port, asked over sockets, signalled, read from outside."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from websockets.sync.client import ClientConnection, connect

import fastapi_events

__all__ = ["SERVERS", "Answer", "Record", "ServerProcess"]

T = TypeVar("T")

HERE = Path(__file__).parent
LIBRARY = Path(fastapi_events.__file__).parent.parent
PATIENCE = 20.0  # seconds until a wait is given up; only a failing test ever waits that long
NOTED = 5000  # characters of the server's output that a failure shows, and of the records

SERVERS: Mapping[str, Callable[[str, int], list[str]]] = {
    "uvicorn": lambda app, port: ["uvicorn", app, "--host=127.0.0.1", f"--port={port}"],
    "hypercorn": lambda app, port: ["hypercorn", app, f"--bind=127.0.0.1:{port}", "--error-logfile=-"],
    "granian": lambda app, port: ["granian", app, "--interface=asgi", "--host=127.0.0.1", f"--port={port}"],
    "gunicorn": lambda app, port: [
        "gunicorn",
        app,
        "--worker-class=uvicorn.workers.UvicornWorker",
        f"--bind=127.0.0.1:{port}",
        "--no-control-socket",
    ],
}


class Answer(NamedTuple):
    """What the client got for one request."""

    status: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line that the served application wrote: what happened to which key, in which process."""

    what: str
    key: str
    pid: int
    id: str | None = None


class ServerProcess:
    """Serve an application for the length of a `with` block; nothing of it is left running afterwards.

    Args:
        server: A key of `SERVERS`.
        directory: An empty folder for what the application records, its gates, and the server's output.
        arguments: Further command line arguments of the server.
        bus: Keywords for the application's `EventBus`, as far as JSON can say them.
        app: What is served, a `module:attribute` of this folder.
    """

    def __init__(
        self,
        server: str,
        directory: Path,
        *,
        arguments: Sequence[str] = (),
        bus: Mapping[str, object] | None = None,
        app: str = "layers:app",
    ) -> None:
        self.server = server
        self._directory = directory
        self._arguments = arguments
        self._bus = bus or {}
        self._app = app

    def __enter__(self) -> Self:
        token = uuid.uuid4().hex
        self.port = _free_port()
        (self._directory / "gates").mkdir(parents=True, exist_ok=True)
        with (self._directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *SERVERS[self.server](self._app, self.port), *self._arguments],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(HERE), str(LIBRARY), os.environ.get("PYTHONPATH", "")]),
                    "EVENTS_DIRECTORY": str(self._directory),
                    "EVENTS_BUS": json.dumps(self._bus),
                    "EVENTS_TOKEN": token,
                },
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A session of its own: its workers share its process group, so that a "kill" reaches them all.
                start_new_session=True,
            )
        try:
            self.worker = self._until_it_answers(token)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            written, recorded = self.output()[-NOTED:], self._recorded()[-NOTED:]
            error.add_note(f"--- {self.server} wrote ---\n{written}--- recorded ---\n{recorded}")

    def kill(self) -> None:
        """End the server and all of its workers at once, as `kill -9` does."""
        with suppress(ProcessLookupError):  # all of them ended by themselves
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask the server to stop, as a supervisor or a container does: SIGTERM to the process that was started."""
        self._process.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Press Ctrl-C: a terminal sends SIGINT to the server and its workers alike."""
        os.killpg(self._process.pid, signal.SIGINT)

    def exit_code(self) -> int:
        """Wait until the server has stopped; negative numbers are signals, as in `subprocess`."""
        return self._process.wait(timeout=PATIENCE)

    def output(self) -> str:
        """What server and application wrote to stdout and stderr until now."""
        return (self._directory / "output").read_text(errors="replace")

    def connect(self) -> http.client.HTTPConnection:
        """Open a keep-alive connection, which never silently reconnects."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.connect()
        connection.auto_open = 0
        return connection

    def get(self, path: str, *, over: http.client.HTTPConnection | None = None) -> Answer:
        """Send one request and read its whole answer, over a connection of its own unless one is given."""
        if over is None:
            with closing(self.connect()) as connection:
                return self.get(path, over=connection)
        over.request("GET", path)
        response = over.getresponse()
        return Answer(response.status, response.read())

    def send_only(self, path: str) -> socket.socket:
        """Send one request and leave the answer unread; the caller closes the socket."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        return client

    def websocket(self, *, event: str, key: str) -> ClientConnection:
        """Open a websocket whose every message is dispatched as an event of that name, and echoed."""
        return connect(f"ws://127.0.0.1:{self.port}/websocket?event={event}&key={key}", proxy=None)

    def open_gate(self, key: str) -> None:
        """Let everything go on that the application holds back for this key."""
        (self._directory / "gates" / key).touch()

    def records(self) -> list[Record]:
        """What the application has recorded until now, in order."""
        complete, _, _half_written = self._recorded().rpartition("\n")
        return [Record(**json.loads(line)) for line in complete.splitlines()]

    def recorded(self, key: str) -> list[str]:
        """What has happened to one key until now, in order."""
        return [record.what for record in self.records() if record.key == key]

    def wait_for(self, what: str, key: str) -> Record:
        """Wait until something has been recorded for a key, and return its first record."""

        def found() -> Record | None:
            return next((record for record in self.records() if (record.what, record.key) == (what, key)), None)

        return self.wait_until(found, f"{what!r} for {key!r} was never recorded")

    def wait_until(self, condition: Callable[[], T | None], complaint: str) -> T:
        """Wait until the condition gives something true, and return that."""
        deadline = time.monotonic() + PATIENCE
        while not (result := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(complaint)
            time.sleep(0.01)
        return result

    def _recorded(self) -> str:
        try:
            return (self._directory / "records").read_text()
        except FileNotFoundError:
            return ""

    def _until_it_answers(self, token: str) -> int:
        def ready() -> int | None:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.server} did not start:\n{self.output()}")
            try:
                answer: dict[str, Any] = json.loads(self.get("/ready").body)
            except (OSError, http.client.HTTPException):
                return None
            # Somebody else may have been given the same port: the token tells.
            return int(answer["pid"]) if answer["token"] == token else None

        return self.wait_until(ready, f"{self.server} never answered:\n{self.output()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
