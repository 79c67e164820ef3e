"""Clients that leave early, and connections that stay open."""

from contextlib import closing

import pytest

from .process import ServerProcess


@pytest.mark.parametrize("prefix", ["", "/around", "/inside"])
def test_a_client_that_leaves_before_its_answer_takes_no_event_along(
    server: ServerProcess, key: str, prefix: str
) -> None:
    with closing(server.send_only(f"{prefix}/held?key={key}")):
        server.wait_for("held", key)
    server.open_gate(f"answer-{key}")
    server.wait_for("started", key)

    server.open_gate(key)

    server.wait_for("finished", key)
    server.wait_for("finished in a thread", key)


@pytest.mark.parametrize("prefix", ["", "/around", "/inside"])
def test_a_client_that_leaves_in_the_middle_of_a_stream_takes_no_event_along(
    server: ServerProcess, key: str, prefix: str
) -> None:
    with closing(server.send_only(f"{prefix}/endless?key={key}")) as client:
        received = b""
        while b"more" not in received:
            received += client.recv(4096)
    server.wait_for("left", key)
    server.wait_for("started", key)

    server.open_gate(key)

    server.wait_for("finished", key)
    server.wait_for("finished in a thread", key)


def test_a_websocket_has_its_events_handled_while_it_is_open(server: ServerProcess, key: str) -> None:
    with server.websocket(event="gated", key=key) as websocket:
        for event in (f"first-{key}", f"second-{key}"):
            websocket.send(event)
            echoed = websocket.recv()
            server.wait_for("started", event)
            server.open_gate(event)
            server.wait_for("finished", event)
            server.wait_for("finished in a thread", event)

            assert echoed == event
        assert server.recorded(key) == []

    server.wait_for("disconnected", key)
    server.wait_for("finished", key)
