"""What a drain waits for, what it leaves behind and tells, and that a bus starts again; on virtual time."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fastapi_events import (
    BaseEventHandler,
    DrainReport,
    Event,
    EventBus,
    Failure,
    LocalHandler,
    NoBusError,
    Retry,
    dispatch,
)
from tests.virtual_time import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Slow:
    """A subscriber that takes as many seconds as the payload says."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []

    async def __call__(self, event: Event[Any]) -> None:
        self.started.append(event.name)
        await asyncio.sleep(event.payload or 0.0)
        self.ended.append(event.name)


def local(*functions: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    for function in functions:
        handler.register(**options)(function)
    return handler


def now() -> float:
    return asyncio.get_running_loop().time()


# What is waited for


async def test_a_flood_from_outside_of_any_scope_leaves_the_loop_time_for_other_things():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with EventBus([local(Slow())]) as bus:
        for _ in range(5_000):  # a turn takes 5 ms at most, and each event takes more than 10 us
            bus.dispatch("a")
        task = asyncio.create_task(others())
        report = await bus.drain()
        task.cancel()
    assert report == DrainReport(delivered=5_000)
    assert turns > 8


async def test_what_threads_sent_before_is_given_up_at_the_deadline_by_whichever_drain_comes_first():
    async with EventBus([local(Slow())]) as bus:
        thread = threading.Thread(target=lambda: [bus.dispatch("a") for _ in range(5_000)])
        thread.start()
        thread.join()  # the loop does not run meanwhile
        reports = await asyncio.gather(bus.drain(timeout=0.0), bus.drain(timeout=0.0))
        assert bus.stats().pending == 0
    never_started = [one for report in reports for one in report.never_started]
    cancelled = [one for report in reports for one in report.cancelled]
    assert len(never_started) > 0
    assert len({one.id for one in never_started + cancelled}) == len(never_started + cancelled)
    assert bus.stats().delivered + len(never_started + cancelled) == 5_000


async def test_a_drain_ends_as_soon_as_all_is_handled():
    slow = Slow()
    async with EventBus([local(slow)]) as bus:
        bus.dispatch("a", 3.0)
        bus.dispatch("b", 5.0)
        report = await bus.drain(timeout=60.0)
        assert now() == 5.0
    assert report == DrainReport(delivered=2)
    assert report.complete


async def test_a_drain_of_nothing_takes_no_time():
    async with EventBus([local(Slow())]) as bus:
        assert await bus.drain() == DrainReport(delivered=0)
        assert now() == 0.0


async def test_by_default_a_drain_takes_the_time_that_the_bus_allows():
    async with EventBus([local(Slow())], drain_timeout=7.0) as bus:
        bus.dispatch("a", 1000.0)
        report = await bus.drain()
        assert not report.complete
        assert 7.0 <= now() <= 9.0


async def test_a_drain_waits_for_chains_of_chains():
    names: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        await asyncio.sleep(1.0)
        names.append(event.name)
        if len(event.name) < 4:
            dispatch(event.name + "+")

    async with EventBus([local(subscriber)]) as bus:
        bus.dispatch("a")
        report = await bus.drain()
    assert names == ["a", "a+", "a++", "a+++"]
    assert report.delivered == 4


async def test_a_drain_does_not_wait_for_what_is_dispatched_later():
    slow = Slow()
    async with EventBus([local(slow)]) as bus:
        bus.dispatch("before", 1.0)
        asyncio.get_running_loop().call_later(0.5, lambda: bus.dispatch("later", 10.0))
        report = await bus.drain()
        assert slow.ended == ["before"]
        assert report.complete
        assert now() == 1.0
        await bus.drain()
        assert slow.ended == ["before", "later"]


async def test_a_drain_waits_in_a_scope_that_goes_on_for_what_was_before_and_what_that_causes():
    slow = Slow()

    async def causes(event: Event[Any]) -> None:
        if event.name == "before":
            await asyncio.sleep(1.0)
            dispatch("caused", 3.0)

    async def go_on(bus: EventBus) -> None:
        async with bus.scope():
            dispatch("before", 0.5, deliver_on="now")
            while True:
                dispatch("later", 2.0, deliver_on="now")
                await asyncio.sleep(0.25)

    async with EventBus([local(slow, causes, concurrency=100)]) as bus:
        task = asyncio.create_task(go_on(bus))
        await asyncio.sleep(0.1)
        report = await bus.drain()
        assert report.complete
        assert now() == 4.0
        assert "caused" in slow.ended
        assert bus.stats().pending == 8
        task.cancel()


@pytest.mark.parametrize("turns", range(4))
async def test_an_event_that_is_being_handed_out_while_a_drain_begins_counts_once(turns):
    slow = Slow()
    handler = local(slow, concurrency=100)
    for _ in range(3):

        @handler.register("before")
        async def works(event: Event[Any]) -> None:
            time.sleep(0.006)  # noqa: ASYNC251 - longer than a delivery does before it lets the loop do other things

    has_begun = asyncio.Event()

    async def go_on(bus: EventBus) -> None:
        async with bus.scope():
            dispatch("before", 0.5, deliver_on="now")
            has_begun.set()
            while True:
                await asyncio.sleep(0.25)
                dispatch("later", 2.0, deliver_on="now")

    async with EventBus([handler]) as bus:
        task = asyncio.create_task(go_on(bus))
        await has_begun.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert (await bus.drain()).complete
        assert now() == 0.5
        task.cancel()


async def test_a_stop_waits_for_what_a_task_dispatches_after_its_cause_has_ended():
    slow = Slow()
    tasks: list[asyncio.Task[None]] = []

    async def late() -> None:
        await asyncio.sleep(1.0)
        dispatch("late", 5.0)

    async def spawns(event: Event[Any]) -> None:
        tasks.append(asyncio.create_task(late()))

    handler = LocalHandler()
    handler.register("cause")(spawns)
    handler.register("late", "before", "meanwhile")(slow)
    bus = EventBus([handler])
    await bus.ensure_open()
    bus.dispatch("cause")
    await bus.drain()
    bus.dispatch("before", 0.7)
    asyncio.get_running_loop().call_later(0.5, lambda: bus.dispatch("meanwhile", 3.0))
    assert (await bus.stop()).complete
    assert slow.ended == ["before", "meanwhile", "late"]
    assert now() == 6.0


async def test_a_drain_follows_chains_into_blocks_of_requests_that_were_open():
    attempts: list[int] = []

    async def opens_block(event: Event[Any]) -> None:
        async with bus.scope():
            dispatch("inner")

    async def fails_twice(event: Event[Any]) -> None:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise OSError

    handler = LocalHandler()
    handler.register("outer")(opens_block)
    handler.register("inner", retry=Retry(attempts=3, uniform=max))(fails_twice)

    async def request(bus: EventBus) -> None:
        async with bus.scope():
            dispatch("outer")
            await asyncio.sleep(1.0)

    async with EventBus([handler]) as bus:
        task = asyncio.create_task(request(bus))
        await asyncio.sleep(0.5)
        assert (await bus.drain()).complete
        assert attempts == [0, 1, 2]
        await task


# What is left behind


async def test_the_report_says_what_became_of_each_event_and_subscriber():
    async def fails(event: Event[Any]) -> None:
        raise KeyError

    slow, failures = Slow(), list[Failure]()
    handler = LocalHandler()
    handler.register("a", "b", "c")(slow)
    handler.register("c")(fails)
    async with EventBus([handler], on_error=failures.append) as bus:
        async with bus.scope():
            events = {name: dispatch(name, 8.0, deliver_on="now") for name in "abc"}
            report = await bus.drain(timeout=12.0)
            stats = bus.stats()
    assert slow.started == ["a", "b"]
    assert slow.ended == ["a"]
    told = {
        kind: [(left.name, left.id) for left in getattr(report, kind)]
        for kind in ("failed", "cancelled", "never_started")
    }
    assert told == {
        "failed": [("c", events["c"].id)],
        "cancelled": [("b", events["b"].id)],
        "never_started": [("c", events["c"].id)],
    }
    assert report.cancelled[0].subscriber.endswith("Slow")
    assert report.delivered == 1
    assert not report.complete
    assert (stats.delivered, stats.failed, stats.cancelled, stats.pending) == (1, 1, 2, 0)
    assert [(failure.event.name, failure.attempt) for failure in failures] == [("c", 1), ("b", 1), ("c", 0)]
    assert isinstance(failures[1].exception, asyncio.CancelledError)


async def test_a_subscriber_that_is_cut_off_may_clean_up():
    cleaned: list[float] = []

    async def subscriber(event: Event[Any]) -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            await asyncio.sleep(0.5)
            cleaned.append(now())

    async with EventBus([local(subscriber)]) as bus:
        bus.dispatch("a")
        await bus.drain(timeout=2.0)
        assert cleaned == [2.5]


async def test_one_that_ends_well_while_it_is_cut_off_counts_as_delivered_and_nothing_further_starts():
    started: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        started.append(event.name)
        try:
            await asyncio.sleep(1000.0)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)

    async with EventBus([local(subscriber)]) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="now")
            dispatch("b", deliver_on="now")
            report = await bus.drain(timeout=2.0)
    assert started == ["a"]
    assert (report.delivered, len(report.cancelled), len(report.never_started)) == (1, 0, 1)


async def test_nothing_starts_during_the_time_for_cleaning_up():
    started: list[str] = []

    async def cleans_up(event: Event[Any]) -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            await asyncio.sleep(0.5)

    async def quick(event: Event[Any]) -> None:
        started.append(event.name)

    handler = LocalHandler()
    handler.register("slow")(cleans_up)
    handler.register(quick)
    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("slow", deliver_on="now")
            await asyncio.sleep(0.5)
            asyncio.get_running_loop().call_at(3.2, lambda: dispatch("late", deliver_on="now"))
            await asyncio.sleep(0)
            report = await bus.drain(timeout=2.5)
            assert started == ["slow"]
        stats = bus.stats()
    assert [left.name for left in report.never_started] == ["late"]
    assert (stats.delivered, stats.cancelled, stats.pending) == (1, 2, 0)


async def test_one_that_does_not_give_in_is_given_up_and_told_once(caplog):
    let_go = asyncio.Event()
    failures: list[Failure] = []

    async def stubborn(event: Event[Any]) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        if event.name == "chains":
            dispatch("effect")

    async with EventBus([local(stubborn)], on_error=failures.append) as bus:
        async with bus.scope():
            dispatch("chains", deliver_on="now")
            dispatch("b", deliver_on="now")
            report = await bus.drain(timeout=2.0)
            assert now() <= 4.0
            assert (len(report.cancelled), len(report.never_started)) == (1, 1)
            assert bus.stats().pending == 0
            let_go.set()
            for _ in range(5):
                await asyncio.sleep(0)
            # what it caused in the end is an event as any other
            assert (await bus.drain()).complete
            assert (bus.stats().delivered, bus.stats().cancelled, bus.stats().pending) == (1, 2, 0)
    assert len(failures) == 2


async def test_a_subscriber_that_was_given_up_takes_no_further_event_of_its_line():
    let_go = asyncio.Event()
    running = most = 0

    async def stubborn(event: Event[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while event.name == "stubborn" and not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        for _ in range(10):
            await asyncio.sleep(0)
        running -= 1

    async with EventBus([local(stubborn)]) as bus:
        async with bus.scope():
            dispatch("stubborn", deliver_on="now")
            await bus.drain(timeout=1.0)
            most = running = 0
            for _ in range(5):
                dispatch("b", deliver_on="now")
            let_go.set()
            await bus.drain()
            assert bus.stats().delivered == 5
    assert most == 1


async def test_a_backlog_that_is_given_up_is_told_too_and_what_nobody_hears_is_unheard():
    slow = Slow()
    handler = LocalHandler()
    handler.register("a")(slow)
    inside = asyncio.Event()
    leave = asyncio.Event()

    async with EventBus([handler]) as bus:

        async def block() -> None:
            async with bus.scope():
                dispatch("a")
                dispatch("nobody listens")
                inside.set()
                await leave.wait()
                dispatch("a")

        task = asyncio.create_task(block())
        await inside.wait()
        report = await bus.drain(timeout=1.0)
        stats = bus.stats()
        leave.set()
        await task
        assert slow.ended == ["a"]
    assert [left.name for left in report.never_started] == ["a"]
    assert (stats.cancelled, stats.unheard, stats.pending) == (1, 1, 0)


async def test_nothing_that_waited_for_the_end_of_a_block_begins_after_the_deadline():
    begun: list[str] = []

    async def hangs(event: Event[Any]) -> None:
        begun.append(event.name)
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)  # it may clean up

    async def request(bus: EventBus) -> None:
        async with bus.scope():
            dispatch("collected")
            await asyncio.sleep(2.2)
            dispatch("later", 0.0)

    handler = LocalHandler()
    handler.register("hangs")(hangs)
    handler.register("collected")(hangs)
    handler.register("later")(slow := Slow())
    async with EventBus([handler]) as bus:
        bus.dispatch("hangs")
        task = asyncio.create_task(request(bus))
        await asyncio.sleep(0.1)
        report = await bus.drain(timeout=2.0)
        assert [one.name for one in report.never_started] == ["collected"]
        assert (begun, bus.stats().pending) == (["hangs"], 0)
        await task
    assert (begun, slow.ended) == (["hangs"], ["later"])


async def test_who_waits_for_a_block_goes_on_when_its_events_are_given_up():
    async with EventBus([local(Slow())]) as bus:

        async def block() -> float:
            async with bus.scope():
                dispatch("a", 1000.0)
            return now()

        task = asyncio.create_task(block())
        await asyncio.sleep(0.1)
        await bus.drain(timeout=1.0)
        assert await task < 3.0


async def test_two_drains_tell_of_a_failure_both():
    async def fails(event: Event[Any]) -> None:
        await asyncio.sleep(5.0)
        raise KeyError

    async with EventBus([local(fails)]) as bus:
        bus.dispatch("a")
        first = asyncio.create_task(bus.drain(timeout=1.0))
        second = asyncio.create_task(bus.drain(timeout=60.0))
        third = asyncio.create_task(bus.drain(timeout=60.0))
        assert len((await first).cancelled) == 1
        assert (await second).complete
        bus.dispatch("b")
        fourth = asyncio.create_task(bus.drain(timeout=60.0))
        fifth = asyncio.create_task(bus.drain(timeout=60.0))
        assert [len((await drain).failed) for drain in (third, fourth, fifth)] == [0, 1, 1]


# A drain that is cancelled


async def test_a_drain_that_is_cancelled_while_it_waits_harms_nothing():
    slow = Slow()
    async with EventBus([local(slow)]) as bus:
        bus.dispatch("a", 5.0)
        drain = asyncio.create_task(bus.drain())
        await asyncio.sleep(1.0)
        drain.cancel()
        await asyncio.wait([drain])
        assert drain.cancelled()
        assert (await bus.drain()).complete
    assert slow.ended == ["a"]


@pytest.mark.parametrize("when", ["at the cleaning up", "at the dead letters"])
async def test_a_drain_that_is_cancelled_while_it_gives_up_loses_nothing_silently(when, caplog):
    class Hanging(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None:
            await asyncio.sleep(1000.0)

    async def subscriber(event: Event[Any]) -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            if when == "at the cleaning up":
                await asyncio.sleep(0.8)

    failures: list[Failure] = []
    letters = Hanging() if when == "at the dead letters" else None
    async with EventBus([local(subscriber)], dead_letters=letters, on_error=failures.append) as bus:
        with_others = [bus.dispatch(name) for name in "ab"]
        drain = asyncio.create_task(bus.drain(timeout=2.0))
        await asyncio.sleep(2.5)
        assert not drain.done()
        drain.cancel()
        await asyncio.wait([drain])
        stats = bus.stats()
    assert (stats.cancelled, stats.pending) == (2, 0)
    logged = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    assert sorted(event.id for event in with_others) == sorted(
        event.id for event in with_others for line in logged if event.id in line
    )


# Hooks


@pytest.mark.parametrize("stubborn", [False, True], ids=["hangs", "hangs on"])
async def test_a_hook_that_hangs_does_not_keep_a_drain(stubborn, caplog):
    let_go = asyncio.Event()

    async def hook(failure: Failure) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise

    async with EventBus([local(Slow())], on_error=hook) as bus:
        event = bus.dispatch("a", 1000.0)
        report = await bus.drain(timeout=2.0)
        assert now() < 10.0
        assert [left.id for left in report.cancelled] == [event.id]
        assert "on_error" in caplog.text
        let_go.set()
        await asyncio.sleep(0)


async def test_a_hook_of_withheld_events_that_hangs_is_ended_at_the_deadline(caplog):
    async def hook(event: Event[Any]) -> None:
        await asyncio.sleep(1000.0)

    async with EventBus([local(Slow())], on_withheld=hook) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
        await bus.drain(timeout=2.0)
        assert now() <= 3.0
    assert "on_withheld" in caplog.text


# Stopping, starting, stats


async def test_withheld_events_are_told_though_a_drain_has_no_time(caplog):
    caplog.set_level("INFO", "fastapi_events")
    told: list[str] = []
    async with EventBus([local(Slow())], on_withheld=lambda event: told.append(event.name)) as bus:
        async with bus.scope():
            for name in "abc":
                dispatch(name, deliver_on="failure")
        await bus.drain(timeout=0.0)
        assert bus.stats().withheld == 3
    assert told == ["a", "b", "c"]
    logged = [record.getMessage().split()[1] for record in caplog.records if "withheld:" in record.getMessage()]
    assert logged == ["a", "b", "c"]


async def test_stop_drains_and_is_idempotent():
    slow = Slow()
    bus = EventBus([local(slow)])
    async with bus:
        bus.dispatch("a", 1.0)
        assert (await bus.stop()).delivered == 1
        assert await bus.stop() == DrainReport(delivered=0)
    assert slow.ended == ["a"]
    with pytest.raises(NoBusError):
        bus.dispatch("b")


async def test_a_bus_starts_again_after_a_drain_that_gave_up():
    slow = Slow()
    bus = EventBus([local(slow)], drain_timeout=1.0)
    async with bus:
        bus.dispatch("a", 1000.0)
    async with bus:
        bus.dispatch("b", 0.5)
    assert slow.started == ["a", "b"]
    assert slow.ended == ["b"]
    assert (bus.stats().delivered, bus.stats().cancelled, bus.stats().pending) == (1, 1, 0)


async def test_no_task_is_left_after_a_drain():
    async def fails(event: Event[Any]) -> None:
        await asyncio.sleep(event.payload)
        raise KeyError

    before = asyncio.all_tasks()
    async with EventBus([local(Slow(), fails)], on_error=lambda failure: None, on_withheld=lambda event: None) as bus:
        for seconds in (0.0, 1.0, 1000.0):
            bus.dispatch("a", seconds)
        async with bus.scope():
            dispatch("withheld", 0.0, deliver_on="failure")
        await bus.drain(timeout=5.0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


async def test_the_counters_add_up():
    async def fails(event: Event[Any]) -> None:
        raise KeyError

    slow = Slow()
    handler = LocalHandler()
    handler.register("a", "b")(slow)
    handler.register("b")(fails)
    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
            dispatch("c")
            dispatch("a", deliver_on="failure")
        bus.dispatch("a", 1000.0)
        bus.dispatch("a", 1000.0)
        waiting = bus.stats()
        await asyncio.sleep(1.0)
        await bus.drain(timeout=1.0)
        stats = bus.stats()
    assert waiting.pending == 2
    assert waiting.oldest_age > 0.0
    assert (stats.delivered, stats.failed, stats.unheard, stats.withheld, stats.cancelled) == (2, 1, 1, 1, 2)
    assert (stats.pending, stats.oldest_age) == (0, 0.0)
