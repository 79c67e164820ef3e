"""examples/sqs.py, with its own servers."""

import os
import subprocess
import sys
from pathlib import Path

import fastapi_events

EXAMPLE = Path(__file__).parents[2] / "examples" / "sqs.py"
LIBRARY = Path(fastapi_events.__file__).parent.parent


def test_a_reader_gets_typed_events_of_a_queue() -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.stderr, ended.returncode) == ("", 0)
    sent, received = ended.stdout.splitlines()[:3], ended.stdout.splitlines()[3:]
    assert sent == ["POST /orders/1?customer=ada: 202", "POST /orders/2?customer=grace: 202", "DELETE /orders/1: 202"]
    assert sorted(received) == [  # a standard queue keeps no order
        "received: order 1 was cancelled",
        "received: order 1 was placed by ada",
        "received: order 2 was placed by grace",
    ]
