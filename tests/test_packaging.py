"""The package as its users get it: what it exports, what it loads, what the wheel holds."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import fastapi_events

ROOT = Path(__file__).parent.parent
IMPORTED_BY_USERS = {
    "dispatcher",
    "errors",
    "handlers.aws",
    "handlers.base",
    "handlers.echo",
    "handlers.file",
    "handlers.local",
    "handlers.null",
    "handlers.only",
    "middleware",
    "registry.base",
    "registry.payload_schema",
    "typing",
}
MODULES = [module.name for module in pkgutil.walk_packages(fastapi_events.__path__, "fastapi_events.")]


def public_names(module: ModuleType) -> set[str]:
    """Return the names in a module that hold neither a module nor anything private."""
    return {name for name, value in vars(module).items() if name[0] != "_" and not isinstance(value, ModuleType)}


def test_the_package_exports_exactly_what_it_lists():
    assert set(fastapi_events.__all__) == public_names(fastapi_events)


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_a_module_lists_is_there_once(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])

    assert set(exported) <= set(vars(module))
    assert len(exported) == len(set(exported))


@pytest.mark.parametrize("name", sorted(IMPORTED_BY_USERS))
def test_a_module_that_users_import_lists_every_class_and_function_that_it_defines(name):
    module = importlib.import_module(f"fastapi_events.{name}")
    defined = {
        public
        for public in public_names(module)
        if inspect.isroutine(vars(module)[public]) or inspect.isclass(vars(module)[public])
        if vars(module)[public].__module__ == module.__name__
    }

    assert defined <= set(module.__all__)


def test_importing_loads_no_optional_package():
    modules = [name for name in MODULES if name != "fastapi_events.handlers.aws"]
    program = f"import sys, fastapi_events, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()

    assert "fastapi_events.middleware" in loaded
    assert {"boto3", "botocore", "fastapi", "opentelemetry"}.isdisjoint(loaded)


def test_the_wheel_holds_the_whole_package_and_says_that_it_is_typed(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fastapi_events/")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "fastapi_events").rglob("*.py")}

    assert packed == sources | {"fastapi_events/py.typed"}
