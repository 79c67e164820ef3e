"""Which outcome events wait for: how a request or block ended, who says what they wait for, what is withheld."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    DrainReport,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    EventModel,
    Outcome,
    dispatch,
    registry,
)


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)


class Requests:
    """A FastAPI application whose every endpoint dispatches one event for each outcome."""

    def __init__(self, **options: Any) -> None:
        self.recorder = Recorder()
        self.withheld: list[str] = []
        self.outcomes: list[Outcome] = []
        self.app = FastAPI()
        self.app.add_middleware(
            EventHandlerASGIMiddleware,
            handlers=[self.recorder],
            on_withheld=self._hear,
            is_success=self._see,
            **options,
        )

    def _hear(self, event: Event[Any]) -> None:
        self.withheld.append(event.name)

    def _see(self, outcome: Outcome) -> bool:
        self.outcomes.append(outcome)
        return outcome.exception is None and outcome.status is not None and outcome.status < 400

    def get(self, *raised: type[BaseException]) -> None:
        """Make the one request; the exceptions may come out of it."""
        with TestClient(self.app) as client:
            if raised:
                with pytest.raises(raised):
                    client.get("/")
            else:
                client.get("/")


def for_each_outcome() -> None:
    for outcome in ("completion", "success", "failure"):
        dispatch(outcome, deliver_on=outcome)


# How a request ends


def test_an_endpoint_that_returns_is_a_success():
    requests = Requests()

    @requests.app.get("/")
    def endpoint() -> None:
        for_each_outcome()

    requests.get()
    assert requests.recorder.names == ["completion", "success"]
    assert requests.withheld == ["failure"]
    assert requests.outcomes == [Outcome(200, None)]


def test_an_http_exception_is_a_failure_by_its_status():
    requests = Requests()

    @requests.app.get("/")
    async def endpoint() -> None:
        for_each_outcome()
        raise HTTPException(409)

    requests.get()
    assert requests.recorder.names == ["completion", "failure"]
    assert requests.withheld == ["success"]
    assert requests.outcomes == [Outcome(409, None)]


def test_an_unhandled_exception_is_a_failure_and_comes_out_of_the_application():
    requests = Requests()

    @requests.app.get("/")
    async def endpoint() -> None:
        for_each_outcome()
        raise ZeroDivisionError

    requests.get(ZeroDivisionError)
    assert requests.recorder.names == ["completion", "failure"]
    assert isinstance(requests.outcomes[0].exception, ZeroDivisionError)


def test_an_exception_that_the_application_answers_is_what_it_answers():
    requests = Requests()

    @requests.app.exception_handler(ZeroDivisionError)
    async def answer(request: Any, error: Exception) -> Any:
        return StreamingResponse(iter([b"never mind"]), status_code=200)

    @requests.app.get("/")
    async def endpoint() -> None:
        for_each_outcome()
        raise ZeroDivisionError

    requests.get()
    assert requests.recorder.names == ["completion", "success"]


def test_a_stream_that_breaks_half_way_is_a_failure_though_its_status_was_sent():
    requests = Requests()

    @requests.app.get("/")
    async def endpoint() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            for_each_outcome()
            raise ZeroDivisionError

        return StreamingResponse(body())

    requests.get(ZeroDivisionError)
    assert requests.recorder.names == ["completion", "failure"]
    assert requests.outcomes[0].status == 200


def test_a_commit_that_fails_after_the_response_is_a_failure():
    requests = Requests()

    async def session() -> AsyncIterator[None]:
        yield
        raise ConnectionError("the commit failed")

    @requests.app.get("/")
    async def endpoint(_: Annotated[None, Depends(session)]) -> None:
        for_each_outcome()

    requests.get(ConnectionError)
    assert requests.recorder.names == ["completion", "failure"]
    assert requests.withheld == ["success"]


def test_a_background_task_that_fails_is_a_failure():
    requests = Requests()

    def background() -> None:
        raise ZeroDivisionError

    @requests.app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        for_each_outcome()
        tasks.add_task(background)

    requests.get(ZeroDivisionError)
    assert requests.recorder.names == ["completion", "failure"]


# Who says what an event waits for


@pytest.mark.parametrize("of_middleware", [None, "success", "failure", "completion"])
@pytest.mark.parametrize("of_model", [None, "success", "failure"])
@pytest.mark.parametrize("of_dispatch", [None, "success", "failure", "completion"])
def test_dispatch_knows_best_then_the_model_then_the_middleware(of_dispatch, of_model, of_middleware):
    requests = Requests(**({} if of_middleware is None else {"deliver_on": of_middleware}))
    with registry.isolated():
        if of_model is None:

            class Order(EventModel, name="order"):
                pass
        else:

            class Order(EventModel, name="order", deliver_on=of_model):  # type: ignore[no-redef]
                pass

        @requests.app.get("/")
        async def endpoint() -> None:
            dispatch(Order(), deliver_on=of_dispatch)

        requests.get()
    effective = of_dispatch or of_model or of_middleware or "completion"
    delivered = effective in ("success", "completion")
    assert requests.recorder.names == (["order"] if delivered else [])
    assert requests.withheld == ([] if delivered else ["order"])


async def test_an_outcome_that_there_is_not_is_refused():
    async with EventBus([Recorder()]) as bus:
        with pytest.raises(ConfigurationError, match="completion"):
            bus.dispatch("a", deliver_on="sometimes")
        assert bus.stats().pending == 0


async def test_events_keep_their_order_around_those_withheld():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            for number in range(9):
                dispatch(str(number), deliver_on=("completion", "success", "failure")[number % 3])
    assert recorder.names == ["0", "1", "3", "4", "6", "7"]


async def test_what_an_event_waited_for_that_was_given_up_means_nothing_to_the_next_one():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
            report = await _drain_outside(bus, timeout=0.0)
            dispatch("b")
    assert [left.name for left in report.never_started] == ["a"]
    assert recorder.names == ["b"]


# What is withheld


async def test_what_is_withheld_is_counted_logged_and_told(caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    told: list[tuple[str, str]] = []

    async def hook(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        told.append(("async", event.id))

    def broken(event: Event[Any]) -> None:
        raise KeyError("in the hook")

    hooks = [lambda event: told.append(("sync", event.id)), broken, hook]
    async with EventBus([Recorder()], on_withheld=hooks) as bus:
        async with bus.scope():
            event = dispatch("refund.asked", deliver_on="failure")
        assert (bus.stats().withheld, bus.stats().pending) == (1, 0)
        await bus.drain()
        assert told == [("sync", event.id), ("async", event.id)]
    (record,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert all(part in record.getMessage() for part in ("refund.asked", event.id, "failure"))
    assert "in the hook" in caplog.text


async def test_a_drain_waits_for_what_a_hook_of_withheld_events_dispatches():
    recorder = Recorder()

    async def compensate(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        bus.dispatch("compensated")

    async with EventBus([recorder], on_withheld=compensate) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
        report = await bus.drain()
        assert recorder.names == ["compensated"]
    assert report.delivered == 1


async def test_a_drain_that_waits_for_a_block_ends_with_it_though_all_is_withheld():
    async with EventBus([Recorder()]) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
            drain = asyncio.create_task(_drain_outside(bus))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            assert await drain == DrainReport(delivered=0)


async def test_a_drain_waits_for_the_hooks_of_what_is_withheld_meanwhile():
    told: list[str] = []

    async def hook(event: Event[Any]) -> None:
        await asyncio.sleep(0.02)
        told.append(event.name)

    async with EventBus([Recorder()], on_withheld=hook) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
            drain = asyncio.create_task(_drain_outside(bus))
            await asyncio.sleep(0.01)
        await drain
        assert told == ["a"]


async def _drain_outside(bus: EventBus, **options: float) -> DrainReport:
    return await asyncio.get_running_loop().create_task(bus.drain(**options), context=contextvars.Context())


async def test_a_hook_that_drains_does_not_wait_for_itself():
    reports: list[bool] = []

    async def hook(event: Event[Any]) -> None:
        reports.append((await bus.drain()).complete)

    async with EventBus([Recorder()], on_withheld=hook) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
        async with asyncio.timeout(2):
            await bus.drain()
    assert reports == [True]


async def test_a_hook_that_hangs_is_ended_by_a_drain():
    begun: list[str] = []
    ended: list[str] = []

    async def hook(event: Event[Any]) -> None:
        begun.append(event.name)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(event.name)

    async with EventBus([Recorder()], on_withheld=hook) as bus:
        async with bus.scope():
            dispatch("a", deliver_on="failure")
            dispatch("b", deliver_on="failure")
        await bus.drain(timeout=0.01)
        for _ in range(5):
            await asyncio.sleep(0)
        assert begun == ended == ["a"]


async def test_many_withheld_events_make_one_task():
    before = asyncio.all_tasks()
    most = told = 0

    def hook(event: Event[Any]) -> None:
        nonlocal most, told
        told += 1
        most = max(most, len(asyncio.all_tasks() - before))

    async with EventBus([Recorder()], on_withheld=hook) as bus:
        async with bus.scope():
            for _ in range(1000):
                dispatch("a", deliver_on="failure")
        await bus.drain()
    assert told == 1000
    assert most == 1


async def test_hooks_of_many_withheld_events_leave_the_loop_time_for_other_things():
    told = most = 0

    def hook(event: Event[Any]) -> None:
        nonlocal told
        told += 1

    async with EventBus([Recorder()], on_withheld=hook) as bus:
        async with bus.scope():
            for _ in range(200):
                dispatch("a", deliver_on="failure")
        while told < 200:
            before = told
            await asyncio.sleep(0)
            most = max(most, told - before)
    assert most < 20


async def test_what_is_withheld_is_logged_where_there_is_no_hook_too(caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    async with EventBus([Recorder()]) as bus:
        async with bus.scope():
            event = dispatch("a", deliver_on="failure")
        await bus.drain()
    assert [event.id in record.getMessage() for record in caplog.records] == [True]
