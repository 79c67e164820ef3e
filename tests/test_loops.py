"""Several event loops, one after another and at once, with one module's handler, bus and application."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI
from starlette.testclient import TestClient

from fastapi_events import (
    BaseEventHandler,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    Failure,
    NoBusError,
    dispatch,
    local_handler,
)

LOOPS = 4
READINGS = 2000  # enough for one of them to coincide with a change


class Where(BaseEventHandler):
    """Remembers which event was handled on which loop."""

    def __init__(self) -> None:
        self.handled: list[tuple[str, asyncio.AbstractEventLoop]] = []

    async def handle(self, event: Event[object]) -> None:
        await asyncio.sleep(0)
        self.handled.append((event.name, asyncio.get_running_loop()))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.handled]


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Return what a sync and an async subscriber of `local_handler` hear, in turn."""
    names: list[str] = []

    @local_handler.register("loops.*")
    def sync_subscriber(event: Event[Any]) -> None:
        names.append(event.name)

    @local_handler.register("loops.*")
    async def async_subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        names.append(event.name)

    yield names
    local_handler.unregister(sync_subscriber)
    local_handler.unregister(async_subscriber)


def in_threads(*functions: Any) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def run_bus(name: str) -> None:
    async with EventBus([local_handler]) as bus:
        async with bus.scope():
            dispatch(f"loops.{name}.block")
        dispatch(f"loops.{name}.once", bus=bus)


def test_loops_one_after_another(heard):
    for number in range(LOOPS):
        asyncio.run(run_bus(str(number)))
    expected = [f"loops.{number}.{kind}" for number in range(LOOPS) for kind in ("block", "once")]
    assert sorted(heard) == sorted(expected * 2)


def test_loops_at_once(heard):
    barrier = threading.Barrier(LOOPS)

    def run(name: str) -> None:
        async def main() -> None:
            await asyncio.to_thread(barrier.wait)
            await run_bus(name)

        asyncio.run(main())

    in_threads(*(lambda name=str(number): run(name) for number in range(LOOPS)))
    expected = [f"loops.{number}.{kind}" for number in range(LOOPS) for kind in ("block", "once")]
    assert sorted(heard) == sorted(expected * 2)


def test_on_uvloop(heard):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_bus("uvloop"))
    assert sorted(heard) == ["loops.uvloop.block"] * 2 + ["loops.uvloop.once"] * 2


def test_one_bus_on_loops_one_after_another():
    where = Where()
    bus = EventBus([where])

    async def main(name: str) -> None:
        async with bus:
            async with bus.scope():
                dispatch(name)
            assert [handled for handled in where.handled if handled[1] is asyncio.get_running_loop()] == [
                (name, asyncio.get_running_loop())
            ]

    for number in range(LOOPS):
        asyncio.run(main(str(number)))
    assert where.names == ["0", "1", "2", "3"]


def test_one_bus_on_loops_at_once_delivers_on_the_loop_of_each_block():
    where = Where()
    bus = EventBus([where])
    barrier = threading.Barrier(LOOPS)
    loops: dict[str, asyncio.AbstractEventLoop] = {}

    def run(name: str) -> None:
        async def main() -> None:
            loops[name] = asyncio.get_running_loop()
            await asyncio.to_thread(barrier.wait)
            async with bus.scope():
                dispatch(name)
            await asyncio.to_thread(barrier.wait)  # all loops live until all have delivered

        asyncio.run(main())

    in_threads(*(lambda name=str(number): run(name) for number in range(LOOPS)))
    assert dict(where.handled) == loops
    assert bus.stats().pending == 0


class Throttled(Where):
    """Lets threads dispatch as many events as may be under way, and another for each that it has handled."""

    def __init__(self, under_way: int) -> None:
        super().__init__()
        self.room = threading.Semaphore(under_way)

    async def handle(self, event: Event[object]) -> None:
        await super().handle(event)
        self.room.release()


def test_what_threads_dispatch_while_a_loop_ends_is_delivered_or_refused():
    throttled = Throttled(100)  # so that neither max_pending= nor the deadline of the drain is reached
    given_up: list[str] = []

    def on_error(failure: Failure) -> None:
        given_up.append(failure.event.name)
        throttled.room.release()  # so that no thread waits for ever

    bus = EventBus([throttled], on_error=on_error)
    accepted: list[str] = []
    refused: list[str] = []

    def work(prefix: str, has_begun: threading.Event) -> None:
        while not refused:
            throttled.room.acquire()
            event = f"{prefix}.{len(accepted)}"
            try:
                bus.dispatch(event)
            except NoBusError:
                refused.append(event)
                throttled.room.release()
            else:
                accepted.append(event)
            has_begun.set()

    async def main(threads: list[threading.Thread]) -> None:
        async with bus:
            for number in range(2):
                has_begun = threading.Event()
                threads.append(threading.Thread(target=work, args=(str(number), has_begun)))
                threads[-1].start()
                await asyncio.to_thread(has_begun.wait)

    threads: list[threading.Thread] = []
    asyncio.run(main(threads))
    for thread in threads:
        thread.join()
    assert refused
    assert sorted(throttled.names) == sorted(accepted)
    assert given_up == []
    assert bus.unfinished() == []
    assert bus.stats().pending == 0


@pytest.mark.usefixtures("hasty")
def test_what_is_unfinished_can_be_told_while_threads_dispatch():
    throttled = Throttled(100)
    bus = EventBus([throttled])
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            throttled.room.acquire()
            bus.dispatch("loops.unfinished")

    def read() -> list[list[str]]:
        try:
            return [[event.id for event in bus.unfinished()] for _ in range(READINGS)]
        finally:
            enough.set()

    async def main() -> list[list[str]]:
        async with bus:
            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                return await asyncio.to_thread(read)
            finally:
                for thread in threads:
                    await asyncio.to_thread(thread.join)

    readings = asyncio.run(main())
    assert any(readings)
    assert all(len(set(reading)) == len(reading) for reading in readings)
    assert bus.unfinished() == []


class Slow(Where):
    """Starts slowly, and once in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[asyncio.AbstractEventLoop] = []

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        self.starts.append(asyncio.get_running_loop())


def test_one_bus_that_loops_start_at_once_loses_nothing():
    slow = Slow()
    bus = EventBus([slow])
    barrier = threading.Barrier(LOOPS)

    def run(name: str) -> None:
        async def main() -> None:
            await asyncio.to_thread(barrier.wait)
            async with bus.scope():
                dispatch(name)
            while len(slow.handled) < LOOPS:
                await asyncio.sleep(0.001)

        asyncio.run(asyncio.wait_for(main(), 5))

    in_threads(*(lambda name=str(number): run(name) for number in range(LOOPS)))
    assert sorted(slow.names) == ["0", "1", "2", "3"]
    assert bus.stats().pending == 0


@pytest.fixture(scope="module")
def module_app() -> tuple[FastAPI, Where]:
    """Stand for an application and a bus at the top of a module, which all tests use."""
    where = Where()
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, bus=EventBus([where]), middleware_id="the module's")

    @app.get("/sync/{name}")
    def sync_endpoint(name: str) -> None:
        dispatch(name)

    @app.get("/async/{name}")
    async def async_endpoint(name: str) -> None:
        dispatch(name)
        await asyncio.to_thread(dispatch, name, middleware_id="the module's")

    return app, where


@pytest.mark.parametrize("number", range(3))
def test_one_application_with_a_client_in_every_test(module_app, number):
    app, where = module_app
    where.handled.clear()
    with TestClient(app) as client:
        client.get("/sync/one")
        client.get("/async/two")
    assert where.names == ["one", "two", "two"]
    assert len({id(loop) for _, loop in where.handled}) == 1


@pytest.mark.parametrize("number", range(3))
def test_one_application_with_a_client_without_lifespan_in_every_test(module_app, number):
    app, where = module_app
    where.handled.clear()
    client = TestClient(app)
    client.get("/sync/one")
    client.get("/async/two")
    assert where.names == ["one", "two", "two"]


def test_with_and_without_lifespan_in_turn(module_app):
    app, where = module_app
    where.handled.clear()
    client = TestClient(app)
    client.get("/sync/before")
    with client:
        client.get("/sync/within")
    client.get("/sync/after")
    assert where.names == ["before", "within", "after"]


def test_clients_at_once(module_app):
    app, where = module_app
    where.handled.clear()

    def use(name: str) -> None:
        client = TestClient(app)
        for _ in range(5):
            client.get(f"/async/{name}")

    in_threads(*(lambda name=str(number): use(name) for number in range(LOOPS)))
    assert sorted(where.names) == sorted([str(number) for number in range(LOOPS)] * 10)


def test_the_application_has_nothing_pending(module_app):
    app, _ = module_app
    bus = app.user_middleware[0].kwargs["bus"]
    assert bus.stats().pending == 0
    asyncio.run(bus.stop())  # or it would wait for a loop, and be found by other tests


async def test_async_tests_with_the_same_handler(heard):
    await run_bus("async")
    assert len(heard) == 4


async def test_async_tests_with_the_same_handler_again(heard):
    await run_bus("again")
    assert len(heard) == 4
