"""What a stopping server does to events that are not handled yet, and what it cannot take along."""

import signal
from pathlib import Path

import pytest

from fastapi_events import FileHandler

from .process import ServerProcess

CLEAN = {0, -signal.SIGTERM}  # uvicorn raises its signal again when it is done
ONCE = ["finished", "finished in a thread", "started"]

# How long a server waits for running calls. The handlers of these tests take longer.
SHORT_GRACE = {"uvicorn": ["--timeout-graceful-shutdown=1"], "hypercorn": ["--graceful-timeout=1"]}
# When the supervising process kills its worker, whatever that is doing.
SHORT_KILL_TIMEOUT = {"granian": ["--workers-kill-timeout=1"], "gunicorn": ["--graceful-timeout=1"]}


def test_a_terminated_server_first_handles_what_it_accepted(kind: str, tmp_path: Path) -> None:
    with ServerProcess(kind, tmp_path) as server:
        server.get("/slow?key=in-request&then=chained")
        server.get("/outside?event=slow&key=outside")
        for key in ("in-request", "outside"):
            server.wait_for("started", key)
        server.terminate()

        assert server.exit_code() in CLEAN
        for key in ("opening", "in-request", "chained", "outside", "closing"):
            assert sorted(server.recorded(key)) == ONCE, key
        # What handlers use is closed by the application's own shutdown code: they come first.
        whats = [(record.what, record.key) for record in server.records()]
        closing = whats.index(("closing", "application"))
        assert all(closing > whats.index(("finished", key)) for key in ("in-request", "chained", "outside"))
        assert closing < whats.index(("started", "closing"))


@pytest.mark.parametrize("kind", SHORT_GRACE)
def test_handlers_outlive_the_grace_that_a_server_gives_to_calls(kind: str, tmp_path: Path) -> None:
    with ServerProcess(kind, tmp_path, arguments=SHORT_GRACE[kind]) as server:
        server.get("/slow?key=in-request&seconds=1.8&then=chained")
        server.wait_for("started", "in-request")
        server.terminate()

        assert server.exit_code() in CLEAN
        for key in ("in-request", "chained", "closing"):
            assert sorted(server.recorded(key)) == ONCE, key


@pytest.mark.parametrize("kind", SHORT_KILL_TIMEOUT)
def test_a_kill_timeout_that_is_shorter_than_the_handlers_loses_them(kind: str, tmp_path: Path) -> None:
    with ServerProcess(kind, tmp_path, arguments=SHORT_KILL_TIMEOUT[kind]) as server:
        server.get("/slow?key=in-request&seconds=10")
        server.wait_for("started", "in-request")
        server.terminate()
        server.exit_code()

        assert server.recorded("in-request") == ["started"]
        assert server.recorded("application") == []


@pytest.mark.parametrize("kind", ["hypercorn", "granian"])
def test_a_second_interrupt_hurts_no_handler(kind: str, tmp_path: Path) -> None:
    with ServerProcess(kind, tmp_path) as server:
        server.get("/slow?key=in-request&then=chained")
        server.wait_for("started", "in-request")
        server.interrupt()
        server.wait_for("started", "chained")
        server.interrupt()

        assert server.exit_code() == 0
        assert sorted(server.recorded("in-request")) == ONCE
        assert sorted(server.recorded("chained")) == ONCE


# gunicorn's worker is not here: the second signal ends it on the spot, and nothing is left that could tell.
def test_a_second_interrupt_skips_the_drain_of_uvicorn_and_the_log_names_what_it_cost(tmp_path: Path) -> None:
    with ServerProcess("uvicorn", tmp_path) as server:
        server.get("/slow?key=in-request&then=chained")
        server.wait_for("started", "in-request")
        server.interrupt()
        lost = server.wait_for("started", "chained")
        server.interrupt()
        server.exit_code()

        assert sorted(server.recorded("in-request")) == ONCE
        assert "finished" not in server.recorded("chained")
        assert str(lost.id) in server.output()


def test_a_websocket_that_is_open_at_shutdown_has_its_events_handled(kind: str, tmp_path: Path) -> None:
    # On asyncio's own loop of CPython >= 3.12, hypercorn waits for an open websocket for ever.
    loop = ["--worker-class=uvloop"] if kind == "hypercorn" else []
    with ServerProcess(kind, tmp_path, arguments=[*SHORT_GRACE.get(kind, []), *loop]) as server:
        with server.websocket(event="slow", key="socket") as websocket:
            websocket.send("message")
            server.wait_for("started", "message")
            server.terminate()
            server.exit_code()

        assert sorted(server.recorded("message")) == ONCE
        assert sorted(server.recorded("socket")) == ["disconnected", *ONCE]


def test_what_is_left_when_the_drain_ends_becomes_a_dead_letter(kind: str, tmp_path: Path) -> None:
    # gunicorn's worker waits for its calls until it is killed: there, only what no call waits for can be given up.
    keys = ["outside"] if kind == "gunicorn" else ["outside", "in-request"]
    dead = tmp_path / "dead"
    bus = {"drain_timeout": 0.3, "dead_letters": str(dead)}
    with ServerProcess(kind, tmp_path, arguments=SHORT_GRACE.get(kind, []), bus=bus) as server:
        for key in keys:
            server.get(f"/{key}?event=hanging&key={key}")
        ids = {key: server.wait_for("started", key).id for key in keys}
        server.terminate()

        assert server.exit_code() in CLEAN
        left = {event.payload["key"]: event.id for event in FileHandler(dead).read()}
        assert left.items() >= ids.items()
        assert all(server.recorded(key) == ["started", "reported CancelledError"] for key in keys)
        # Dispatched by the application's shutdown code, when no time is left: whatever becomes of it is told.
        assert sorted(server.recorded("closing")) == ONCE or "closing" in left


@pytest.mark.parametrize("path", ["/slow", "/crash-slowly"])
def test_a_server_without_lifespan_waits_for_what_its_calls_dispatched(path: str, tmp_path: Path) -> None:
    with ServerProcess("uvicorn", tmp_path, arguments=["--lifespan=off"]) as server:
        server.get(f"{path}?key=in-request")
        server.wait_for("started", "in-request")
        server.terminate()

        assert server.exit_code() in CLEAN
        assert sorted(server.recorded("in-request")) == ONCE


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_a_killed_process_loses_what_it_had_not_handled_and_nothing_else(kind: str, tmp_path: Path) -> None:
    with ServerProcess(kind, tmp_path) as server:
        server.get("/slow?key=handled&seconds=0")
        server.wait_for("finished", "handled")
        server.wait_for("finished in a thread", "handled")
        server.get("/slow?key=lost&seconds=10")
        server.wait_for("started", "lost")
        server.kill()

    with ServerProcess(kind, tmp_path) as server:
        server.wait_for("finished", "opening")

        assert sorted(server.recorded("handled")) == ONCE
        assert server.recorded("lost") == ["started"]
