"""What other layers of the stack do to a call does not reach the handlers."""

from contextlib import closing

import pytest

from .process import ServerProcess

TIMEOUTS = ["/anyio-timeout", "/asyncio-timeout"]


@pytest.mark.parametrize("prefix", TIMEOUTS)
def test_a_timeout_around_the_application_does_not_end_the_handlers(
    server: ServerProcess, key: str, prefix: str
) -> None:
    answer = server.get(f"{prefix}/normal?key={key}")
    server.wait_for("timed out", key)

    assert answer.status == 200
    assert server.recorded(key) == ["started", "timed out"]

    server.open_gate(key)
    server.wait_for("finished", key)
    server.wait_for("finished in a thread", key)


@pytest.mark.parametrize("prefix", TIMEOUTS)
def test_the_events_of_an_endpoint_that_a_timeout_cancels_are_handled(
    server: ServerProcess, key: str, prefix: str
) -> None:
    with closing(server.send_only(f"{prefix}/held?key={key}")):
        server.wait_for("timed out", key)
        server.wait_for("started", key)

    assert "answered" not in server.recorded(key)

    server.open_gate(key)
    server.wait_for("finished", key)
    server.wait_for("finished in a thread", key)
