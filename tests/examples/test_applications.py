"""The example applications, driven in-process."""

import asyncio
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


def test_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = "\n".join(block.split("```")[0] for block in text.split("```python\n")[1:])
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    with TestClient(names["app"]) as client:  # type: ignore[arg-type]
        assert client.post("/orders?id=7").json() == {"id": 7}
    out = capsys.readouterr().out
    assert "a mail about order 7" in out
    assert "OrderPlaced(id=7)" in out
    asyncio.run(names["main"]())  # type: ignore[operator]
    assert capsys.readouterr().out == "a mail about order 1\n"
    counter = names["Counter"]()  # type: ignore[operator]
    asyncio.run(counter.handle_many([("a", None), ("b", None)]))
    assert counter.seen == 2
