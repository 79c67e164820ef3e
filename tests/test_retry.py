"""Further attempts and time limits, on virtual time; for those of threads see test_threads.py."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fastapi_events import (
    ConfigurationError,
    Event,
    EventBus,
    Failure,
    LocalHandler,
    Retry,
    SubscriberError,
    Unrecoverable,
    dispatch,
)
from tests.virtual_time import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Flaky:
    """A subscriber that fails as often as it is told, and remembers when it was started."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or OSError("flaky")
        self.starts: list[tuple[str, float]] = []
        self.ended: list[str] = []

    async def __call__(self, event: Event[Any]) -> None:
        self.starts.append((event.name, asyncio.get_running_loop().time()))
        if self.failures:
            self.failures -= 1
            raise self.error
        self.ended.append(event.name)

    @property
    def times(self) -> list[float]:
        return [time for _, time in self.starts]


def upper(low: float, high: float) -> float:
    """Stand in for the random number: always the longest wait."""
    return high


def local(function: Callable[..., Any], **options: Any) -> LocalHandler:
    handler = LocalHandler()
    handler.register(**options)(function)
    return handler


# When, and how often


async def test_an_attempt_follows_until_one_succeeds_and_waits_longer_each_time():
    flaky = Flaky(failures=3)
    retry = Retry(attempts=5, initial=0.5, maximum=1.5, uniform=upper)
    async with EventBus([local(flaky, retry=retry)]) as bus:
        bus.dispatch("a")
        assert (await bus.drain()).delivered == 1
        stats = bus.stats()
    assert flaky.times == [0.0, 0.5, 1.5, 3.0]
    assert (stats.delivered, stats.retried, stats.failed) == (1, 3, 0)


async def test_after_the_last_attempt_the_failure_is_told_once(caplog):
    failures: list[Failure] = []
    flaky = Flaky(failures=99)
    async with EventBus([local(flaky, retry=Retry(attempts=4))], on_error=failures.append) as bus:
        event = bus.dispatch("a")
        report = await bus.drain()
        stats = bus.stats()
    assert len(flaky.starts) == 4
    assert [(failure.event.id, failure.attempt, failure.exception) for failure in failures] == [
        (event.id, 4, flaky.error)
    ]
    assert [(failed.name, failed.id) for failed in report.failed] == [("a", event.id)]
    assert (stats.failed, stats.retried) == (1, 3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3 + [logging.ERROR]


@given(attempt=st.integers(1, 5000), initial=st.floats(0, 1e6), maximum=st.floats(0, 1e6))
def test_waits_are_bounded_by_the_maximum_and_the_doubled_initial(attempt, initial, maximum):
    wait = Retry(attempts=10_000, initial=initial, maximum=maximum).delay(attempt)
    assert 0.0 <= wait <= maximum
    if attempt < 50:
        assert wait <= initial * 2.0 ** (attempt - 1)


def test_waits_are_spread_over_the_whole_range():
    waits = [Retry(initial=1.0).delay(1) for _ in range(1000)]
    assert min(waits) < 0.1
    assert max(waits) > 0.9


@pytest.mark.parametrize(
    "error, starts",
    [
        (ConnectionResetError(), 3),
        (OSError(), 3),
        (KeyError(), 1),
        (Unrecoverable("no such customer"), 1),
        (asyncio.CancelledError(), 1),
    ],
    ids=repr,
)
async def test_only_the_exceptions_that_were_named_are_worth_another_attempt(error, starts):
    flaky = Flaky(failures=99, error=error)
    async with EventBus([local(flaky, retry=Retry(on=(OSError, TimeoutError)))]) as bus:
        bus.dispatch("a")
        await bus.drain()
        assert bus.stats().failed == 1
    assert len(flaky.starts) == starts


@pytest.mark.parametrize(
    "error",
    [
        Unrecoverable("no such customer"),
        ConfigurationError("no such queue"),
        SubscriberError("it came without a Request", subscriber="flaky"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("on", [BaseException, Exception, ValueError], ids=lambda on: on.__name__)
async def test_what_another_attempt_cannot_help_ends_at_once_whichever_exceptions_are_retried(error, on):
    flaky = Flaky(failures=99, error=error)
    async with EventBus([local(flaky, retry=Retry(on=on))]) as bus:
        bus.dispatch("a")
        await bus.drain()
        assert (bus.stats().failed, bus.stats().retried) == (1, 0)
    assert len(flaky.starts) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"initial": -1.0},
        {"maximum": -0.1},
        {"on": "OSError"},
        {"on": (OSError, "TimeoutError")},
        {"on": int},
        {"on": OSError()},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigurationError):
        Retry(**options)


async def test_every_attempt_gets_the_payload_as_it_was_dispatched():
    payloads: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        payloads.append(repr(event.payload))
        event.payload["lines"].append("left by a failed attempt")
        raise OSError

    failures: list[Failure] = []
    async with EventBus([local(subscriber, retry=Retry())], on_error=failures.append) as bus:
        bus.dispatch("a", {"lines": [1]})
    assert payloads == ["{'lines': [1]}"] * 3
    assert failures[0].event.payload == {"lines": [1]}


@pytest.mark.parametrize("where", ["sleep", "uniform"])
async def test_a_wait_that_fails_ends_the_attempts_with_that_error(where):
    def fail(*arguments: float) -> Any:
        raise ZeroDivisionError(where)

    failures: list[Failure] = []
    flaky = Flaky(failures=1)
    after: list[str] = []

    async def other(event: Event[Any]) -> None:
        after.append(event.name)

    handler = local(flaky, retry=Retry(attempts=2, **{where: fail}))
    handler.register(other)
    async with EventBus([handler], on_error=failures.append) as bus:
        bus.dispatch("a")
        bus.dispatch("b")
    assert [type(failure.exception) for failure in failures] == [ZeroDivisionError]
    assert flaky.ended == ["b"]
    assert sorted(after) == ["a", "b"]


# Order, and who waits


async def test_further_events_wait_behind_an_attempt_and_other_subscribers_do_not():
    flaky = Flaky(failures=1)
    others: list[tuple[str, float]] = []

    async def other(event: Event[Any]) -> None:
        others.append((event.name, asyncio.get_running_loop().time()))

    handler = local(flaky, retry=Retry(initial=8.0, maximum=8.0, uniform=upper))
    handler.register(other)
    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
        await bus.drain()
    assert flaky.starts == [("a", 0.0), ("a", 8.0), ("b", 8.0)]
    assert others == [("a", 0.0), ("b", 0.0)]


async def test_a_block_waits_for_first_attempts_only():
    flaky = Flaky(failures=2)
    async with EventBus([local(flaky, retry=Retry(initial=8.0, maximum=8.0, uniform=upper))]) as bus:
        async with bus.scope():
            dispatch("a")
        assert flaky.times == [0.0]
        assert bus.stats().pending == 1
        await bus.drain()
    assert flaky.times == [0.0, 8.0, 16.0]


async def test_with_concurrency_the_block_waits_for_the_first_attempts_of_all():
    ended: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        if event.name == "flaky":
            raise OSError
        await asyncio.sleep(3.0)
        ended.append(event.name)

    retry = Retry(attempts=2, initial=60.0, maximum=60.0, uniform=upper)
    async with EventBus([local(subscriber, retry=retry, concurrency=2)], drain_timeout=100) as bus:
        async with bus.scope():
            dispatch("flaky")
            dispatch("slow")
            dispatch("waits")
        assert ended == ["slow", "waits"]
        assert asyncio.get_running_loop().time() == pytest.approx(6.0)


@pytest.mark.parametrize("failures", [1, 2], ids=["succeeds", "fails"])
async def test_the_end_of_the_last_attempt_at_one_event_does_not_end_the_wait_for_another(failures):
    ended: list[str] = []
    flaky = Flaky(failures)

    async def subscriber(event: Event[Any]) -> None:
        if event.name == "flaky":
            await flaky(event)
        else:
            await asyncio.sleep(3.0)
            ended.append(event.name)

    retry = Retry(attempts=2, initial=1.0, uniform=upper)
    async with EventBus([local(subscriber, retry=retry, concurrency=2)]) as bus:
        async with bus.scope():
            dispatch("flaky")
            dispatch("slow")
        assert flaky.times == [0.0, 1.0]
        assert ended == ["slow"]


async def test_a_block_does_not_wait_behind_attempts_that_take_every_place():
    async def subscriber(event: Event[Any]) -> None:
        raise OSError

    retry = Retry(attempts=2, initial=9.0, maximum=9.0, uniform=upper)
    async with EventBus([local(subscriber, retry=retry, concurrency=2)], drain_timeout=100) as bus:
        async with bus.scope():
            for _ in range(6):
                dispatch("a")
        assert asyncio.get_running_loop().time() == 0.0
        assert bus.stats().pending == 6


async def test_a_block_does_not_wait_for_what_comes_behind_an_attempt_that_is_to_follow():
    flaky = Flaky(failures=1)

    async def chains(event: Event[Any]) -> None:
        if event.name == "a":
            await asyncio.sleep(1.0)
            dispatch("b")
            await asyncio.sleep(1.0)
            dispatch("c")

    handler = local(flaky, retry=Retry(initial=8.0, maximum=8.0, uniform=upper))
    handler.register(chains)
    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
        assert asyncio.get_running_loop().time() == 2.0
        await bus.drain()
    assert flaky.starts == [("a", 0.0), ("a", 8.0), ("b", 8.0), ("c", 8.0)]


async def test_an_attempt_knows_nothing_of_the_cancellations_of_the_last_one():
    cancelling: list[int] = []

    async def cancels_itself(event: Event[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelling.append(task.cancelling())
        for _ in range(3):
            task.cancel()
        await asyncio.sleep(0)

    async with EventBus([local(cancels_itself, retry=Retry(on=BaseException))]) as bus:
        bus.dispatch("a")
        await bus.drain()
        assert bus.stats().failed == 1
    assert cancelling == [0, 0, 0]


# Timeout


@pytest.mark.parametrize("retry", [None, Retry(attempts=3, initial=0.0)], ids=["no retry", "retry"])
async def test_an_attempt_has_its_time_and_no_more(retry):
    failures: list[Failure] = []
    starts: list[float] = []

    async def hangs(event: Event[Any]) -> None:
        starts.append(asyncio.get_running_loop().time())
        if event.name == "hangs":
            await asyncio.get_running_loop().create_future()

    async with EventBus([local(hangs, timeout=2.0, retry=retry)], on_error=failures.append) as bus:
        async with bus.scope():
            dispatch("hangs")
            dispatch("b")
        await bus.drain()
        assert bus.stats().delivered == 1
    (failure,) = failures
    assert isinstance(failure.exception, TimeoutError)
    assert "2.0 s" in str(failure.exception)
    assert failure.attempt == len(starts) - 1
    assert starts == [0.0, 2.0] if retry is None else [0.0, 2.0, 4.0, 6.0]


async def test_a_timeout_error_of_the_subscriber_is_not_mistaken_for_its_time_limit():
    failures: list[Failure] = []
    mine = TimeoutError("the database")

    async def subscriber(event: Event[Any]) -> None:
        raise mine

    async with EventBus([local(subscriber, timeout=60.0)], on_error=failures.append) as bus:
        bus.dispatch("a")
    assert [failure.exception for failure in failures] == [mine]


async def test_one_whose_time_limit_has_passed_closes_what_it_has_open_though_a_drain_ends_meanwhile():
    closed: list[float] = []

    async def subscriber(event: Event[Any]) -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            await asyncio.sleep(0.5)
            closed.append(asyncio.get_running_loop().time())

    failures: list[Failure] = []
    async with EventBus([local(subscriber, timeout=2.0)], on_error=failures.append) as bus:
        bus.dispatch("a")
        report = await bus.drain(timeout=2.2)
        stats = bus.stats()
    assert closed == [2.5]
    assert [type(failure.exception) for failure in failures] == [TimeoutError]
    assert (len(report.failed), stats.failed, stats.cancelled) == (1, 1, 0)


# The user's own decorators


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(event: Event[Any]) -> None:
        try:
            await function(event)
        except OSError:
            await function(event)

    return wrapper


@pytest.mark.parametrize("options", [{}, {"retry": Retry(attempts=2)}], ids=["plain", "with our retry"])
async def test_a_decorator_that_tries_again_works_with_and_without_ours(options):
    flaky = Flaky(failures=1 if not options else 3)

    @twice
    async def subscriber(event: Event[Any]) -> None:
        await flaky(event)

    async with EventBus([local(subscriber, **options)]) as bus:
        bus.dispatch("a")
        await bus.drain()
        assert bus.stats().delivered == 1
    assert flaky.ended == ["a"]


# Drain


async def test_a_drain_waits_for_further_attempts():
    flaky = Flaky(failures=2)
    async with EventBus([local(flaky, retry=Retry(initial=5.0, maximum=5.0, uniform=upper))]) as bus:
        bus.dispatch("a")
        report = await bus.drain(timeout=11.0)
    assert report.complete
    assert flaky.times == [0.0, 5.0, 10.0]


async def test_what_a_drain_gives_up_is_told_with_the_attempts_that_were_begun():
    failures: list[Failure] = []
    flaky = Flaky(failures=99)
    retry = Retry(attempts=9, initial=5.0, maximum=5.0, uniform=upper)
    async with EventBus([local(flaky, retry=retry)], on_error=failures.append) as bus:
        first = bus.dispatch("a")
        report = await bus.drain(timeout=12.0)
    assert flaky.times == [0.0, 5.0, 10.0]
    assert [left.id for left in report.cancelled] == [first.id]
    assert [failure.attempt for failure in failures] == [3]


async def test_no_attempt_follows_a_wait_that_outlives_the_deadline():
    let_go = asyncio.Event()

    async def stubborn(seconds: float) -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    flaky = Flaky(failures=1)
    async with EventBus([local(flaky, retry=Retry(sleep=stubborn))]) as bus:
        bus.dispatch("a")
        report = await bus.drain(timeout=2.0)
        let_go.set()
        await asyncio.sleep(1.0)
        assert (bus.stats().cancelled, bus.stats().delivered, bus.stats().pending) == (1, 0, 0)
    assert len(report.cancelled) == 1
    assert flaky.times == [0.0]


async def test_what_fails_while_it_is_cut_off_is_not_said_to_be_tried_again(caplog):
    async def fails_late(event: Event[Any]) -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            raise OSError

    async with EventBus([local(fails_late, retry=Retry(initial=8.0, uniform=upper))]) as bus:
        bus.dispatch("a")
        report = await bus.drain(timeout=2.0)
        assert (bus.stats().retried, bus.stats().cancelled) == (0, 1)
    assert len(report.cancelled) == 1
    assert "another follows" not in caplog.text
