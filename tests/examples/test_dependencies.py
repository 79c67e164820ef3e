"""examples/dependencies.py, served by uvicorn, with its database in a file."""

import json
import re
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_subscriber_that_fails_leaves_nothing_half_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "uvicorn", "dependencies:app", "--app-dir", str(EXAMPLES), "--port", "0"]
    log: list[str] = []
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as server:
        try:
            for line in server.stderr:
                log.append(line)
                if address := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            assert address, "".join(log)
            for order_id in (1, 2):
                request = urllib.request.Request(
                    f"{address[1]}/orders",
                    json.dumps({"id": order_id, "pieces": 7}).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=10) as response:
                    assert response.status == 202
        finally:
            server.terminate()  # which waits for what the subscribers do
        log.extend(server.stderr)

    with sqlite3.connect(tmp_path / "shop.db") as database:
        assert database.execute("SELECT pieces FROM stock").fetchall() == [(3,)]
        # the two requests are delivered side by side: either order may find the stock too small
        assert sorted(database.execute("SELECT confirmed FROM orders").fetchall()) == [(0,), (1,)]
    database.close()
    assert ": 4 pieces too many" in "".join(log)
