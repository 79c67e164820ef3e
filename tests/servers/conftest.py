"""The servers that the tests of this folder run on."""

import uuid
from collections.abc import Iterator

import pytest

from .process import SERVERS, ServerProcess

# One xdist worker for each server, so that its shared process is started once ("--dist loadgroup").
KINDS = [pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in SERVERS]


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server, shared by all tests that leave it running."""
    with ServerProcess(request.param, tmp_path_factory.mktemp(request.param)) as process:
        yield process


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a server, for a test that starts, and stops, one of its own."""
    name: str = request.param
    return name


@pytest.fixture
def key() -> str:
    """What this test calls its events, so that tests can share a server."""
    return uuid.uuid4().hex
