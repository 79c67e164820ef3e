"""The examples that need no server: each in a process of its own, as a newcomer runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = {
    "typed_events": {"placed: 1", "count: 1", "cancelled: 1, too late", "best: 7"},
    "custom_handler": {"archived: 2, open: False"},
    "outside_requests": {
        "report: import.started None",
        "report: import.failed {'row': 2}",
        "main: row 2 is broken",
        "main: 1 withheld",
    },
}


@pytest.mark.parametrize("example", PRINTED)
def test_an_example_prints_what_its_subscribers_received(example: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{example}.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.splitlines()) == PRINTED[example]
    assert ended.stderr == ""
