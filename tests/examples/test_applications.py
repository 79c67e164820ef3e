"""The example applications, driven in-process."""

import importlib.util
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
