"""Which bus gets an event, and what becomes of events that are dispatched before there is one."""

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    EventModel,
    Failure,
    LocalHandler,
    NoBusError,
    PayloadError,
    current_bus,
    dispatch,
    registry,
)

ROOT = Path(__file__).parent.parent


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch):
    """Forget the buses that other tests have left behind: applications in modules hold theirs for good."""
    monkeypatch.setattr("fastapi_events.buses._buses", weakref.WeakSet())


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip


# The bus that is meant


async def test_the_only_bus_that_runs():
    recorder = Recorder()
    never, stopped = EventBus([]), EventBus([])
    async with stopped:
        pass
    async with EventBus([recorder]) as bus:
        dispatch("a")
        assert current_bus() is bus
    assert recorder.names == ["a"]
    assert never.stats().pending == 0


@pytest.mark.usefixtures("alone")
async def test_without_a_bus_the_error_says_what_to_do():
    with pytest.raises(NoBusError, match="EventHandlerASGIMiddleware"):
        dispatch("a")
    with pytest.raises(NoBusError, match="EventHandlerASGIMiddleware"):
        current_bus()


@pytest.mark.usefixtures("alone")
async def test_the_error_lists_the_buses_that_do_not_run():
    async with EventBus([Recorder()]) as stopped:
        pass
    with pytest.raises(NoBusError, match=r"EventBus \[Recorder\] stopped"):
        dispatch("a")
    assert stopped.stats().pending == 0


async def test_of_several_buses_none_is_guessed():
    async with EventBus([Recorder()]) as first, EventBus([]):
        with pytest.raises(NoBusError, match=r"Recorder.*bus\.dispatch"):
            dispatch("a")
        with pytest.raises(NoBusError, match="2 buses"):
            current_bus()
        dispatch("a", bus=first)
        first.dispatch("b")
    assert first.stats().delivered == 2


async def test_of_several_buses_the_only_one_on_this_loop():
    here, there = Recorder(), Recorder()
    ready, end = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with EventBus([there]):
            dispatch("there")
            ready.set()
            await asyncio.to_thread(end.wait)

    async with EventBus([here]):
        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        await asyncio.to_thread(ready.wait)
        dispatch("here")
        end.set()
        thread.join()
    # the other one was dispatched while two buses ran, each on a loop of its own
    assert (here.names, there.names) == (["here"], ["there"])


async def test_a_dispatched_event_goes_to_the_bus_of_its_block():
    one, other = Recorder(), Recorder()
    async with EventBus([one]) as first, EventBus([other]) as second:
        async with first.scope():
            dispatch("one")
            assert current_bus() is first
            async with second.scope():
                dispatch("other")
                assert current_bus() is second
    assert (one.names, other.names) == (["one"], ["other"])


async def test_a_subscriber_dispatches_to_the_bus_that_delivers():
    names: list[str] = []
    handler = LocalHandler()

    @handler.register("cause")
    async def chain(event: Event[Any]) -> None:
        assert current_bus() is first
        dispatch("effect")

    @handler.register("effect")
    def effect(event: Event[Any]) -> None:
        names.append(type(current_bus()).__name__)

    async with EventBus([handler]) as first, EventBus([]):
        first.dispatch("cause")
        await first.drain()
    assert names == ["EventBus"]


async def test_a_bus_names_itself():
    async with EventBus([Recorder()]) as bus:
        with pytest.raises(ConfigurationError, match="bus="):
            bus.dispatch("a", bus=EventBus([]))
        with pytest.raises(ConfigurationError, match="middleware_id="):
            bus.dispatch("a", middleware_id=1)
        bus.dispatch("a", bus=bus)


async def test_a_thread_hands_over_to_the_loop_of_the_bus():
    loops: list[object] = []

    class Here(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            loops.append(asyncio.get_running_loop())

    async with EventBus([Here()]) as bus:
        with ThreadPoolExecutor() as executor:
            executor.submit(dispatch, "from a plain executor").result()
        await bus.drain()
    assert loops == [asyncio.get_running_loop()]


async def test_many_threads_lose_nothing():
    recorder = Recorder()

    def work(number: int) -> None:
        for index in range(100):
            dispatch(f"{number}.{index}")

    async with EventBus([recorder]) as bus:
        async with bus.scope():
            await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(4)))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4, 8)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    assert sorted(recorder.names) == sorted(f"{number}.{index}" for number in range(8) for index in range(100))
    assert bus.stats().pending == 0


@pytest.mark.usefixtures("alone")
def test_a_thread_is_told_when_the_loop_has_gone():
    bus = EventBus([Recorder()])

    async def main() -> None:
        await bus.ensure_open()  # and nobody stops it

    asyncio.run(main())
    with pytest.raises(NoBusError, match="loop is closed"):
        bus.dispatch("late")
    with pytest.raises(NoBusError):
        dispatch("late")
    assert bus.stats().pending == 0


def test_what_a_thread_handed_to_a_loop_that_closes_is_not_forgotten():
    recorder = Recorder()
    bus = EventBus([recorder])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(bus.ensure_open())
    thread = threading.Thread(target=bus.dispatch, args=("handed over",))
    thread.start()
    thread.join()
    loop.close()
    assert [event.name for event in bus.unfinished()] == ["handed over"]
    assert recorder.names == []


def test_buses_that_nobody_holds_are_forgotten():
    bus = weakref.ref(EventBus([]))
    gc.collect()
    assert bus() is None


# A bus that is thrown away


class Thrown:
    """A bus whose events are lost with it, and what it says of them."""

    def __init__(self) -> None:
        self.handler = Recorder()
        self.failures: list[Failure] = []
        self.bus: EventBus | None = EventBus([self.handler], on_error=self.failures.append)

    def lost(self) -> list[tuple[str, str, int]]:
        """Throw the bus away."""
        self.bus = None
        gc.collect()
        return [(failure.event.name, failure.subscriber, failure.attempt) for failure in self.failures]


@pytest.fixture
def thrown() -> Thrown:
    return Thrown()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_what_a_bus_kept_that_was_never_opened_is_lost_with_it(caplog):
    failures: list[Failure] = []
    first = EventHandlerASGIMiddleware(None, [Recorder()], on_error=failures.append)
    event = first.bus.dispatch("kept")
    del first
    gc.collect()
    assert [failure.event for failure in failures] == [event]
    assert [record.levelname for record in caplog.records if event.id in record.getMessage()] == ["ERROR"]
    assert f"event kept ({event.id}) is lost to Recorder, before it started: its bus was thrown away" in caplog.text


def test_what_a_thread_handed_to_a_loop_that_closes_is_lost_with_the_bus(thrown, loop):
    loop.run_until_complete(thrown.bus.ensure_open())
    in_thread = threading.Thread(target=thrown.bus.dispatch, args=("handed over",))
    in_thread.start()
    in_thread.join()
    del in_thread
    loop.close()
    assert thrown.lost() == [("handed over", "Recorder", 0)]


def test_what_has_not_begun_when_the_loop_closes_is_lost_with_the_bus(thrown, loop):
    loop.run_until_complete(thrown.bus.ensure_open())
    loop.call_soon(thrown.bus.dispatch, "arrived")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert thrown.lost() == [("arrived", "Recorder", 0)]


async def never_ends(bus: EventBus) -> None:
    async with bus.scope():
        bus.dispatch("collected")
        await asyncio.get_running_loop().create_future()


def test_what_a_block_collected_is_lost_with_the_bus_and_the_loop(thrown, loop):
    loop.create_task(never_ends(thrown.bus))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert thrown.lost() == [("collected", "Recorder", 0)]


def test_a_block_that_is_thrown_away_with_its_loop_leaves_nothing_pending(thrown, loop):
    loop.create_task(never_ends(thrown.bus))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gc.collect()
    assert [failure.event.name for failure in thrown.failures] == ["collected"]
    assert thrown.bus.stats().pending == 0


def test_a_block_that_waits_for_its_events_is_thrown_away_with_its_loop(loop):
    failures: list[Failure] = []
    local = LocalHandler()

    @local.register("a")
    async def hangs(event: Event[Any]) -> None:
        await asyncio.get_running_loop().create_future()

    async def block(bus: EventBus) -> None:
        async with bus.scope():
            bus.dispatch("a")

    loop.create_task(block(EventBus([local], on_error=failures.append)))
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gc.collect()  # an exception in a destructor would fail this test
    assert [(failure.event.name, failure.attempt) for failure in failures] == [("a", 1)]


@pytest.mark.parametrize("options", [{}, {"timeout": 60.0}], ids=["plain", "with a timeout"])
def test_a_subscriber_that_objects_to_being_thrown_away_is_lost_once_and_its_own_exception_seen(
    monkeypatch, loop, options
):
    failures: list[Failure] = []
    objections: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: objections.append(unraisable.exc_value))
    local = LocalHandler()

    @local.register("a", **options)
    async def objects(event: Event[Any]) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise KeyError("mine")

    async def begin() -> None:
        bus = EventBus([local], on_error=failures.append)
        await bus.ensure_open()
        bus.dispatch("a")

    loop.run_until_complete(begin())
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gc.collect()
    assert list(map(repr, objections)) == ["KeyError('mine')"]
    assert [(failure.event.name, failure.attempt) for failure in failures] == [("a", 1)]


# middleware_id


def wrapped(recorder: Recorder, **options: Any) -> EventHandlerASGIMiddleware:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response()(scope, receive, send)

    return EventHandlerASGIMiddleware(app, handlers=[recorder], **options)


@pytest.mark.parametrize("middleware_id", [7, "orders", ("a", 1)], ids=str)
async def test_a_bus_is_found_by_its_middleware_id(middleware_id):
    one, other = Recorder(), Recorder()
    first, second = wrapped(one, middleware_id=middleware_id), wrapped(other, middleware_id="another")
    async with first.bus, second.bus:
        dispatch("a", middleware_id=middleware_id)
    assert (one.names, other.names) == (["a"], [])


async def test_a_wrong_middleware_id_is_an_error_that_lists_the_right_ones():
    app = wrapped(Recorder(), middleware_id="right")
    async with app.bus:
        with pytest.raises(NoBusError, match=r"'wrong'.*'right'"):
            dispatch("a", middleware_id="wrong")
        with pytest.raises(NoBusError, match=r"'wrong'.*'right'"):
            await asyncio.to_thread(dispatch, "a", middleware_id="wrong")


async def test_a_second_middleware_of_an_id_replaces_the_first_and_it_is_logged(caplog):
    one, other = Recorder(), Recorder()
    first = wrapped(one, middleware_id="the same")
    assert caplog.text == ""
    second = wrapped(other, middleware_id="the same")
    assert "'the same'" in caplog.text
    async with first.bus, second.bus:
        dispatch("a", middleware_id="the same")
    assert (one.names, other.names) == ([], ["a"])


async def test_the_same_bus_may_be_named_twice(caplog):
    async with EventBus([]) as bus:
        for _ in range(2):
            EventHandlerASGIMiddleware(wrapped(Recorder()), bus=bus, middleware_id="one bus")
    assert caplog.text == ""


# At import time: programs of their own, because the first bus of a process is meant


EARLY = """
    import asyncio, importlib, os, pathlib, sys
    from fastapi_events import BaseEventHandler, EventBus, EventHandlerASGIMiddleware, dispatch

    folder = os.environ["FOLDER"]
    sys.path.append(folder)

    def imported(name, options="{}"):
        source = f"from fastapi_events import dispatch; dispatch('{name}', **{options})"
        pathlib.Path(folder, f"{name}.py").write_text(source)
        importlib.import_module(name)

    class Printer(BaseEventHandler):
        def __init__(self, name):
            self.name = name

        async def handle(self, event):
            print(self.name, event.name)

    async def use(*buses):
        for bus in buses:
            async with bus:
                pass
"""


def run_early(folder: Path, program: str) -> list[str]:
    ended = run(textwrap.dedent(EARLY) + textwrap.dedent(program), FOLDER=str(folder))
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_what_is_dispatched_at_import_goes_to_the_first_bus_that_opens(tmp_path):
    assert run_early(
        tmp_path,
        """
        imported("before")
        never, first, second = EventBus([Printer("never")]), EventBus([Printer("first")]), EventBus([Printer("second")])
        imported("between")
        dispatch("main")
        asyncio.run(use(first, second))
    """,
    ) == ["first before", "first between", "first main"]


def test_an_application_that_a_server_imports_on_its_running_loop_may_dispatch_at_import(tmp_path):
    assert run_early(
        tmp_path,
        """
        async def main():
            imported("on_a_loop")
            await asyncio.to_thread(imported, "in_a_thread")
            await use(EventBus([Printer("bus")]))
            imported("later")
            await use(EventBus([Printer("another")]))

        asyncio.run(main())
    """,
    ) == ["bus on_a_loop", "bus in_a_thread", "another later"]


def test_events_for_an_id_wait_for_the_bus_of_that_id(tmp_path):
    assert run_early(
        tmp_path,
        """
        imported("named", "{'middleware_id': 'later'}")
        imported("plain")
        first = EventBus([Printer("first")])
        app = EventHandlerASGIMiddleware(None, [Printer("second")], middleware_id="later")
        imported("named_again", "{'middleware_id': 'later'}")
        asyncio.run(use(first, app.bus))
    """,
    ) == ["first plain", "second named", "second named_again"]


def test_a_middleware_stack_that_is_built_twice_loses_no_early_event(tmp_path):
    assert run_early(
        tmp_path,
        """
        import gc
        from starlette.applications import Starlette
        from starlette.testclient import TestClient

        imported("early")
        app = Starlette()
        app.add_middleware(EventHandlerASGIMiddleware, handlers=[Printer("app")])
        app.middleware_stack = app.build_middleware_stack()
        app.middleware_stack = app.build_middleware_stack()  # as instrumentation does
        gc.collect()
        with TestClient(app):
            pass
    """,
    ) == ["app early"]


@pytest.mark.usefixtures("alone")
async def test_a_thread_that_is_too_late_for_import_time_gets_an_error():
    with pytest.raises(NoBusError, match="EventHandlerASGIMiddleware"):
        await asyncio.to_thread(dispatch, "from a sync endpoint of an application without middleware")
    with pytest.raises(NoBusError, match="'nobody'"):
        await asyncio.to_thread(dispatch, "the same", middleware_id="nobody")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_in_a_forked_child_nothing_is_taken_that_only_the_parent_would_deliver():
    ended = run("""
        import asyncio
        import os
        import warnings
        from fastapi_events import BaseEventHandler, EventBus, NoBusError, dispatch

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads

        class Printer(BaseEventHandler):
            async def handle(self, event):
                print(event.name, flush=True)

        bus = EventBus([Printer()])

        async def main():
            async with bus, bus.scope():
                dispatch("parent")
                child = os.fork()
                if not child:
                    for attempt in (dispatch, bus.dispatch):
                        try:
                            attempt("child")
                        except NoBusError as error:
                            print("refused", bus.stats().pending, flush=True)
                    os._exit(0)
                os.waitpid(child, 0)

        asyncio.run(main())
    """)
    assert ended.stdout.split("\n") == ["refused 0", "refused 0", "parent", ""]
    assert ended.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_what_is_dispatched_before_a_fork_is_not_handled_by_every_worker():
    ended = run("""
        import asyncio
        import os
        from fastapi_events import BaseEventHandler, EventBus, dispatch

        class Printer(BaseEventHandler):
            async def handle(self, event):
                print(event.name, flush=True)

        async def main():
            async with bus:
                dispatch("of the worker")

        bus = EventBus([Printer()])
        dispatch("imported")
        bus.dispatch("kept")
        child = os.fork()
        if not child:
            asyncio.run(main())
            os._exit(0)
        os.waitpid(child, 0)
        asyncio.run(main())
    """)
    assert ended.stdout.split("\n") == ["of the worker", "imported", "kept", "of the worker", ""]
    assert ended.stderr.startswith("2 events stay in the parent of this process, which began no bus: imported (")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_worker_without_a_bus_of_its_own_keeps_nothing_for_one():
    ended = run("""
        import os
        from fastapi_events import NoBusError, dispatch

        child = os.fork()
        if not child:
            try:
                dispatch("child")
            except NoBusError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """)
    assert ended.stdout.startswith("there is no bus: ")


@pytest.mark.parametrize("options", ["", ", middleware_id='shop'"])
def test_a_process_that_never_has_a_bus_is_told_after_a_thousand_events(options):
    ended = run(f"""
        from fastapi_events import NoBusError, dispatch

        try:
            for number in range(2_000):
                dispatch("a"{options})
        except NoBusError as error:
            print(number, error)
    """)
    assert ended.stdout.startswith("1000 event a is refused: no bus has run yet in this process, and 1000 events wait")
    assert "1000 events" in ended.stderr


def test_what_nobody_took_is_logged_at_exit():
    ended = run("""
        import asyncio
        from fastapi_events import EventBus, EventHandlerASGIMiddleware, NullHandler, dispatch

        print(dispatch("for.nobody").id)
        print(dispatch("for.an.id", middleware_id="never built").id)
        kept = EventBus([NullHandler()])
        print(kept.dispatch("for.a.bus.that.never.opened").id)
        held = EventHandlerASGIMiddleware(None, [NullHandler()]).bus
        print(dispatch("for.a.middleware.that.is.never.called", bus=held).id)
    """)
    assert "4 events" in ended.stderr
    for event_id in ended.stdout.split():
        assert ended.stderr.count(event_id) == 1


def test_a_bus_that_outlives_its_module_at_exit_says_nothing_more():
    ended = run("""
        import sys
        import threading
        from fastapi_events import EventHandlerASGIMiddleware, NullHandler, dispatch

        EventHandlerASGIMiddleware(None, [NullHandler()], middleware_id="held")
        print(dispatch("kept", middleware_id="held").id)
        has_begun = threading.Event()

        def hold(*modules):
            has_begun.set()
            threading.Event().wait()

        modules = sys.modules["fastapi_events.bus"], sys.modules["fastapi_events.buses"]
        threading.Thread(target=hold, args=modules, daemon=True).start()
        has_begun.wait()
    """)
    assert ended.stderr.count(ended.stdout.strip()) == 1
    assert "Exception ignored" not in ended.stderr


def test_nothing_is_logged_at_exit_where_all_was_delivered():
    ended = run("""
        import asyncio
        from fastapi_events import EventBus, NullHandler, dispatch

        dispatch("early")

        async def main():
            async with EventBus([NullHandler()]) as bus:
                dispatch("a")

        asyncio.run(main())
    """)
    assert ended.stderr == ""


def test_what_is_left_when_the_loop_is_torn_down_is_logged():
    ended = run("""
        import asyncio
        from fastapi_events import EventBus, LocalHandler, dispatch

        handler = LocalHandler()

        @handler.register
        async def slow(event):
            await asyncio.sleep(60)

        bus = EventBus([handler])

        async def main():
            await bus.ensure_open()
            print(dispatch("running").id)
            await asyncio.sleep(0.01)
            print(dispatch("fresh").id)

        asyncio.run(main())
    """)
    for event_id in ended.stdout.split():
        assert event_id in ended.stderr
    assert "Traceback" not in ended.stderr


# FASTAPI_EVENTS_DISABLE_DISPATCH

DISABLE = "FASTAPI_EVENTS_DISABLE_DISPATCH"


@pytest.mark.parametrize("value", ["1", "true", "True", "YES", "on", "t", "y"])
async def test_dispatching_can_be_suppressed(value, monkeypatch):
    monkeypatch.setenv(DISABLE, value)
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            assert dispatch("a").name == "a"
        bus.dispatch("b")
    assert recorder.names == []
    assert bus.stats().pending == 0


@pytest.mark.parametrize("value", ["", " ", "0", "false", "No", "off"])
async def test_dispatching_is_not_suppressed(value, monkeypatch):
    monkeypatch.setenv(DISABLE, value)
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        bus.dispatch("a")
    assert recorder.names == ["a"]


async def test_suppressed_events_are_validated(monkeypatch):
    monkeypatch.setenv(DISABLE, "1")
    with registry.isolated():

        class Order(EventModel, name="order"):
            id: int

        async with EventBus([]) as bus:
            for to_bus in (dispatch, bus.dispatch):
                with pytest.raises(ValueError, match="validation error"):
                    to_bus("order", {"id": "x"})
                with pytest.raises(PayloadError, match="JSON"):
                    to_bus("a", object())


@pytest.mark.usefixtures("alone")
async def test_no_bus_is_needed_where_dispatching_is_suppressed(monkeypatch):
    monkeypatch.setenv(DISABLE, "1")
    event = dispatch("a", {"b": 1})
    assert (event.name, event.payload) == ("a", {"b": 1})
    await asyncio.to_thread(dispatch, "a", middleware_id="nobody")
    with pytest.raises(PayloadError):
        dispatch("a", object())
    monkeypatch.delenv(DISABLE)
    recorder = Recorder()
    async with EventBus([recorder]):
        pass
    assert recorder.names == []


def test_an_unknown_value_is_named(monkeypatch):
    monkeypatch.setenv(DISABLE, "Perhaps")
    with pytest.raises(ConfigurationError, match=r"FASTAPI_EVENTS_DISABLE_DISPATCH.*'Perhaps'"):
        EventBus([])


async def test_an_unknown_value_is_named_when_the_bus_is_opened(monkeypatch):
    bus = EventBus([])
    monkeypatch.setenv(DISABLE, "perhaps")
    with pytest.raises(ConfigurationError, match="perhaps"):
        async with bus:
            pytest.fail("the bus did not open")


async def test_the_variable_is_read_when_the_bus_opens_and_not_at_every_dispatch(monkeypatch):
    recorder = Recorder()
    bus = EventBus([recorder])
    async with bus:
        monkeypatch.setenv(DISABLE, "1")
        bus.dispatch("not read")
    async with bus:
        bus.dispatch("read")
        monkeypatch.delenv(DISABLE)
        bus.dispatch("not read again")
    assert recorder.names == ["not read"]


def test_a_block_that_ends_on_another_loop_than_it_began_on_is_told(caplog):
    handled: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        handled.append(event.name)

    async def begin() -> None:
        await bus.ensure_open()
        await block.__aenter__()
        bus.dispatch("a")

    handler = LocalHandler()
    handler.register("a")(subscriber)
    bus = EventBus([handler])
    block = bus.scope()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    context = contextvars.copy_context()
    context.run(first.run_until_complete, begin())
    context.run(second.run_until_complete, block.__aexit__(None, None, None))
    first.close()
    second.close()
    assert handled == []
    assert (bus.stats().cancelled, bus.stats().pending) == (1, 0)
    assert caplog.text.count("its event loop ended") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_ends_the_program_outside_of_a_scope_stays_alone(caplog):
    handled: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        if event.name == "a":
            raise SystemExit(3)
        handled.append(event.name)

    async def main() -> None:
        await bus.ensure_open()
        bus.dispatch("a")
        bus.dispatch("b")
        await asyncio.sleep(60)

    handler = LocalHandler()
    handler.register("*")(subscriber)
    bus, loop = EventBus([handler]), asyncio.new_event_loop()
    task = loop.create_task(main())
    with pytest.raises(SystemExit):
        loop.run_until_complete(task)
    report = loop.run_until_complete(bus.stop())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    assert handled == ["b"]
    assert report.never_started == ()
    assert (bus.stats().delivered, bus.stats().cancelled, bus.stats().pending) == (1, 1, 0)
    assert caplog.text.count("is lost") == 1
