"""A slow handler delays nobody: not the response it follows, nor the next one on the same connection."""

from contextlib import closing

import pytest

from .process import ServerProcess

ENDPOINTS = [
    ("/normal", 200),
    ("/sync", 200),
    ("/streaming", 200),
    ("/background", 200),
    ("/dependency", 200),
    ("/nowhere", 404),
    ("/crash", 500),
    ("/around/normal", 200),
    ("/around/streaming", 200),
    ("/around/background", 200),
    ("/around/crash", 500),
    ("/inside/normal", 200),
    ("/inside/streaming", 200),
    ("/inside/background", 200),
    ("/inside/crash", 500),
]


@pytest.mark.parametrize("path, status", ENDPOINTS)
def test_a_response_is_complete_while_its_handlers_still_work(
    server: ServerProcess, key: str, path: str, status: int
) -> None:
    answer = server.get(f"{path}?key={key}")
    server.wait_for("started", key)

    assert answer.status == status
    assert server.recorded(key) == ["started"]

    server.open_gate(key)
    server.wait_for("finished", key)
    server.wait_for("finished in a thread", key)
    assert sorted(server.recorded(key)) == ["finished", "finished in a thread", "started"]


# Not after a 500: servers close that connection themselves.
@pytest.mark.parametrize("path, status", [(path, status) for path, status in ENDPOINTS if status != 500])
def test_a_connection_is_usable_again_while_the_handlers_of_its_last_request_still_work(
    server: ServerProcess, key: str, path: str, status: int
) -> None:
    with closing(server.connect()) as connection:
        first = server.get(f"{path}?key={key}", over=connection)
        second = server.get("/ready", over=connection)

    assert (first.status, second.status) == (status, 200)
    assert "finished" not in server.recorded(key)

    server.open_gate(key)
    server.wait_for("finished", key)


def test_a_connection_stays_usable_whatever_its_handlers_raise(server: ServerProcess, key: str) -> None:
    with closing(server.connect()) as connection:
        answers = [server.get(f"/in-request?event=failing&key={key}", over=connection) for _ in range(5)]

        def reported() -> list[str] | None:
            reports = [what for what in server.recorded(key) if what == "reported RuntimeError"]
            return reports if len(reports) == 5 else None

        server.wait_until(reported, "not every failure was reported")
        last = server.get("/ready", over=connection)

    assert [answer.status for answer in answers] == [200] * 5
    assert last.status == 200
