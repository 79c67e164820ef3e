"""The example applications, driven in-process."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_starlette_application(capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(load("starlette_app").app) as client:
        assert client.post("/adopt/Tom").json() == {"adopted": "Tom"}
    assert capsys.readouterr().out == "note: cat.adopted {'name': 'Tom'}\n"


IN_A_PROCESS_OF_ITS_OWN = """  # it registers with the handler and the schemas of the process
import builtins
import os

from starlette.testclient import TestClient
from quickstart import app

# whole lines: print() writes a line in pieces, and another thread may print between them
builtins.print = lambda *words, **_: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
with TestClient(app, raise_server_exceptions=False) as client:
    print(client.post("/orders", json={"id": 1}).status_code, flush=True)
    print(client.post("/orders", json={}).status_code, client.get("/broken").status_code, flush=True)
"""


def test_the_quickstart() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_A_PROCESS_OF_ITS_OWN],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = ended.stdout.splitlines()
    answers = [line for line in lines if line[0].isdigit()]
    assert answers == ["201", "422 500"]
    assert lines.index("send_confirmation: order 1") < lines.index("201")  # the test client waits for handlers
    assert lines.index("422 500") < lines.index("send_confirmation: order 0")  # but not where it gets a 500
    assert sum(line.startswith("write_audit_log: order.placed ") for line in lines) == 2
    assert [line for line in lines if "OrderPlaced" in line] == ["  OrderPlaced(id=1)", "  OrderPlaced(id=0)"]
