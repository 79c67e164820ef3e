"""The queues that the tests of this folder use."""

import uuid
from collections.abc import Iterator

import pytest

from .moto import MotoServer, Queue
from .proxy import FaultProxy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of this folder in one xdist worker, so that moto is started once."""
    for item in items:
        if item.path.parent.name == "sqs":
            item.add_marker(pytest.mark.xdist_group("sqs"))


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """A running moto."""
    with MotoServer() as server:
        yield server


@pytest.fixture
def queue(moto: MotoServer) -> Iterator[Queue]:
    """A standard queue of the test's own."""
    client = moto.client("sqs")
    yield Queue(client, uuid.uuid4().hex)
    client.close()


@pytest.fixture
def proxy(moto: MotoServer) -> Iterator[FaultProxy]:
    """A proxy in front of moto."""
    with FaultProxy(moto.port) as running:
        yield running
