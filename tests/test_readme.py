"""The code blocks of the README, run in order, in a process of their own."""

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
DRIVER = """
import asyncio
from starlette.testclient import TestClient

with TestClient(app) as client:
    assert client.post("/orders?id=7").json() == {"id": 7}
asyncio.run(main())
counter = Counter()
asyncio.run(counter.handle_many([("a", None), ("b", None)]))
print("counted", counter.seen)
"""


def test_the_code_blocks_run(tmp_path: Path) -> None:
    blocks = [block.split("```")[0] for block in README.read_text().split("```python\n")[1:]]
    script = tmp_path / "readme.py"
    script.write_text("\n".join([*blocks, DRIVER]))
    ended = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "a mail about order 7" in lines
    assert "  OrderPlaced(id=7)" in lines
    assert lines[-2:] == ["a mail about order 1", "counted 2"]
    assert ended.stderr == ""
