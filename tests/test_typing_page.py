"""The code of docs/typing.md runs; tests/typing/run.py has the type checkers read it."""

import subprocess
import sys
from pathlib import Path

from tests.typing.run import PAGE, code_of

DRIVER = """
import asyncio

asyncio.run(test_customers_get_a_mail())
asyncio.run(test_an_order_is_announced())
asyncio.run(local_handler.handle(SHIPPED({"order_id": 1, "carrier": "bike"})))
assert narrow(SCORES([1, 2])) == 2
assert narrow(Event("order.placed", OrderPlaced(order_id=7))) == 7
"""


def test_the_code_blocks_run(tmp_path: Path) -> None:
    script = code_of(PAGE, tmp_path)
    script.write_text(script.read_text() + DRIVER)
    ended = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
