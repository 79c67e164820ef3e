"""Blocks: what belongs to one, when it goes, in which context."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from fastapi_events import (
    BaseEventHandler,
    Event,
    EventBus,
    EventModel,
    LocalHandler,
    current_bus,
    dispatch,
    registry,
)
from fastapi_events.delivery import Delivery
from fastapi_events.scope import Scope


class Recorder(BaseEventHandler):
    """Remembers the names and payloads that it received."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.payloads: list[object] = []

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)
        self.payloads.append(event.payload)


class Gate:
    """A subscriber that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ended: list[str] = []

    async def __call__(self, event: Event[Any]) -> None:
        self.entered.set()
        await self.let_go.wait()
        self.ended.append(event.name)


def bus_of(*functions: Callable[..., Any], **options: Any) -> EventBus:
    handler = LocalHandler()
    for function in functions:
        handler.register(function)
    return EventBus([handler], **options)


async def test_a_block_delivers_at_its_end_and_waits():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("a")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert recorder.names == []
        assert recorder.names == ["a"]


async def test_a_block_starts_the_bus():
    class Starting(Recorder):
        async def start(self) -> None:
            self.names.append("start")

    handler = Starting()
    bus = EventBus([handler])
    async with bus.scope():
        dispatch("a")
    assert handler.names == ["start", "a"]
    await bus.stop()


async def test_outside_a_block_an_event_goes_at_once_but_not_on_the_stack_of_dispatch():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        bus.dispatch("a", deliver_on="success")
        assert recorder.names == []
        await bus.drain()
        assert recorder.names == ["a"]


@pytest.mark.parametrize("deliver_on", ["completion", "success", "failure", "now"])
@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
async def test_the_outcome_of_a_block_decides_what_is_delivered(deliver_on, fails, caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    recorder = Recorder()
    withheld: list[str] = []
    async with EventBus([recorder], on_withheld=lambda event: withheld.append(event.name)) as bus:
        try:
            async with bus.scope():
                event = dispatch("a", deliver_on=deliver_on)
                dispatch("b")
                if fails:
                    raise KeyError("the block")
        except KeyError:
            assert fails
        await bus.drain()
        stats = bus.stats()
    comes = deliver_on in ("completion", "now", "failure" if fails else "success")
    assert recorder.names == (["a", "b"] if comes else ["b"])
    assert withheld == ([] if comes else ["a"])
    assert stats.withheld == len(withheld)
    assert stats.pending == 0
    logged = [
        record for record in caplog.records if event.id in record.getMessage() and "withheld" in record.getMessage()
    ]
    assert [(record.levelno, "a" in record.getMessage()) for record in logged] == [(logging.INFO, True)] * len(withheld)


async def test_the_exception_of_a_block_comes_out_after_the_delivery():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("a")
                raise KeyError("the block")
        assert recorder.names == ["a"]


async def test_what_the_outcome_is_can_be_told_otherwise():
    recorder = Recorder()
    bus = EventBus([recorder], is_success=lambda outcome: isinstance(outcome.exception, KeyError), deliver_on="success")
    async with bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("after KeyError")
                raise KeyError
        async with bus.scope():
            dispatch("after nothing")
            dispatch("however it ends", deliver_on="completion")
    assert recorder.names == ["after KeyError", "however it ends"]


async def test_a_failing_is_success_loses_nothing_and_masks_nothing(caplog):
    def is_success(outcome: object) -> bool:
        raise ZeroDivisionError("in is_success")

    recorder = Recorder()
    withheld: list[str] = []
    bus = EventBus([recorder], is_success=is_success, on_withheld=lambda event: withheld.append(event.name))
    async with bus:
        with pytest.raises(KeyError):
            async with bus.scope():
                dispatch("whatever comes")
                dispatch("on success", deliver_on="success")
                raise KeyError("the block")
    assert recorder.names == ["whatever comes"]
    assert withheld == ["on success"]
    assert "ZeroDivisionError" in caplog.text


async def test_the_model_says_what_its_events_wait_for():
    recorder = Recorder()
    with registry.isolated():

        class RefundAsked(EventModel, deliver_on="failure"):
            pass

        async with EventBus([recorder]) as bus:
            async with bus.scope():
                dispatch(RefundAsked())
            with pytest.raises(KeyError):
                async with bus.scope():
                    dispatch(RefundAsked())
                    raise KeyError
            async with bus.scope():
                dispatch(RefundAsked(), deliver_on="completion")
    assert recorder.names == ["RefundAsked", "RefundAsked"]


async def test_an_inner_block_delivers_its_own_events():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("outer.1")
            async with bus.scope():
                dispatch("inner")
            assert recorder.names == ["inner"]
            dispatch("outer.2")
    assert recorder.names == ["inner", "outer.1", "outer.2"]


async def test_a_block_of_another_bus_does_not_hide_an_open_one():
    one, other = Recorder(), Recorder()
    async with EventBus([one]) as first, EventBus([other]) as second:
        async with first.scope():
            async with second.scope():
                first.dispatch("a")
                await asyncio.sleep(0)
            await first.drain()
            assert one.names == []
        assert one.names == ["a"]
    assert other.names == []


async def test_threads_and_tasks_within_a_block_belong_to_it():
    recorder = Recorder()

    async def in_task() -> None:
        dispatch("task")

    async with EventBus([recorder]) as bus:
        async with bus.scope():
            await asyncio.create_task(in_task())
            await asyncio.to_thread(dispatch, "thread")
            await asyncio.sleep(0)
            assert recorder.names == []
    assert recorder.names == ["task", "thread"]


async def test_a_task_that_outlives_its_block_dispatches_at_once():
    recorder = Recorder()
    ended = asyncio.Event()

    async def in_task() -> None:
        await ended.wait()
        dispatch("late")

    async with EventBus([recorder]) as bus:
        async with bus.scope():
            task = asyncio.create_task(in_task())
        ended.set()
        await task
        await bus.drain()
        assert recorder.names == ["late"]


@pytest.mark.parametrize("explicit", [False, True], ids=["dispatch", "bus.dispatch"])
async def test_a_task_that_outlives_its_block_dispatches_to_the_block_around_it(explicit):
    recorder = Recorder()
    withheld: list[str] = []
    async with EventBus([recorder], on_withheld=lambda event: withheld.append(event.name)) as bus:
        has_ended = asyncio.Event()

        async def work() -> None:
            await has_ended.wait()
            (bus.dispatch if explicit else dispatch)("late", deliver_on="success")

        with contextlib.suppress(ValueError):
            async with bus.scope():
                async with bus.scope():
                    task = asyncio.create_task(work())
                has_ended.set()
                await task
                await bus.drain()
                assert recorder.names == []
                raise ValueError
    assert (recorder.names, withheld) == ([], ["late"])


async def test_an_event_that_goes_now_does_not_wait_for_its_block():
    recorder = Recorder()
    async with EventBus([recorder]) as bus:
        async with bus.scope():
            dispatch("at.end")
            dispatch("now", deliver_on="now")
            await bus.drain()
            assert recorder.names == ["now"]
    assert recorder.names == ["now", "at.end"]


@pytest.mark.parametrize("explicit", [False, True], ids=["dispatch()", "bus.dispatch()"])
async def test_the_chain_of_an_event_that_goes_now_goes_at_once_too(explicit):
    names: list[str] = []

    async def chain(event: Event[Any], bus: EventBus) -> None:
        names.append(event.name)
        if event.name == "now":
            (bus.dispatch if explicit else dispatch)("effect")

    async with bus_of(chain) as bus:
        async with bus.scope():
            dispatch("now", deliver_on="now")
            await bus.drain()
            assert names == ["now", "effect"]


@pytest.mark.parametrize("explicit", [False, True], ids=["dispatch()", "bus.dispatch()"])
async def test_the_chain_of_an_inner_block_does_not_wait_for_the_outer_one(explicit):
    names: list[str] = []

    async def chain(event: Event[Any], bus: EventBus) -> None:
        names.append(event.name)
        if event.name == "inner":
            (bus.dispatch if explicit else dispatch)("effect")

    async with bus_of(chain) as bus:
        async with bus.scope():
            async with bus.scope():
                dispatch("inner")
            assert names == ["inner", "effect"]


async def test_a_block_in_a_subscriber_collects():
    order: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        if event.name != "cause":
            order.append(event.name)
            return
        async with current_bus().scope():
            dispatch("effect")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append("end of block")
        order.append("after block")

    async with bus_of(subscriber) as bus:
        async with bus.scope():
            dispatch("cause")
    assert order == ["end of block", "effect", "after block"]


async def test_a_block_that_is_cancelled_is_a_failure_and_its_events_go_out():
    recorder = Recorder()

    async with EventBus([recorder]) as bus:

        async def block() -> None:
            async with bus.scope():
                dispatch("completion")
                dispatch("failure", deliver_on="failure")
                dispatch("success", deliver_on="success")
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(block())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert recorder.names == ["completion", "failure"]


async def test_who_waits_for_a_block_may_be_cancelled_without_harm_to_the_events():
    gate = None
    async with bus_of(lambda event: None) as bus:
        gate = Gate()
        handler = LocalHandler()
        handler.register(gate)
        async with EventBus([handler]) as other:

            async def block() -> None:
                async with other.scope():
                    other.dispatch("a")

            task = asyncio.create_task(block())
            await gate.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.let_go.set()
            assert (await other.drain()).complete
    assert gate.ended == ["a"]
    assert bus.stats().pending == 0


async def test_a_block_does_not_wait_for_further_attempts():
    from fastapi_events import Retry

    attempts: list[int] = []
    again = asyncio.Event()

    async def wait(seconds: float) -> None:
        await again.wait()

    handler = LocalHandler()

    @handler.register(retry=Retry(attempts=2, sleep=wait))
    async def flaky(event: Event[Any]) -> None:
        attempts.append(len(attempts) + 1)
        if len(attempts) == 1:
            raise OSError("first")

    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
        assert attempts == [1]
        again.set()
        await bus.drain()
        assert attempts == [1, 2]


async def test_a_closed_block_keeps_nothing_alive():
    class Payload(EventModel, name="heavy"):
        pass

    references: list[weakref.ref[Any]] = []

    async def subscriber(event: Event[Any]) -> None:
        references.append(weakref.ref(event.payload))

    async with bus_of(subscriber) as bus:
        async with bus.scope():
            dispatch(Payload())
        await asyncio.sleep(0)
        gc.collect()
        assert [reference() for reference in references] == [None]


# Context


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


async def test_a_closed_block_is_no_garbage_to_collect():
    local = LocalHandler()
    local.register("a")(Recorder().handle)

    def ours() -> int:
        return sum(isinstance(one, (Scope, Delivery)) for one in gc.get_objects())

    async with EventBus([local]) as bus:
        gc.collect()
        gc.disable()
        try:
            before = ours()
            async with bus.scope():
                bus.dispatch("a")
                assert ours() > before
            bus.dispatch("a")  # at once, in a scope of its own
            await bus.drain()
            assert ours() == before
        finally:
            gc.enable()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_subscribers_see_the_context_in_which_the_block_ended(kind):
    seen: list[str] = []

    async def async_subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())
        tenant.set("changed by a subscriber")

    def sync_subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())
        tenant.set("changed by a subscriber")

    subscriber = async_subscriber if kind == "async" else sync_subscriber
    other: list[str] = []

    async def second(event: Event[Any]) -> None:
        other.append(tenant.get())

    async with bus_of(subscriber, second) as bus:
        async with bus.scope():
            tenant.set("at dispatch")
            dispatch("a")
            tenant.set("at the end")
    assert seen == other == ["at the end"]
    assert tenant.get() == "at the end"


async def test_outside_a_block_subscribers_see_the_context_of_the_dispatch():
    seen: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())

    async with bus_of(subscriber) as bus:
        for name in ("one", "two"):
            tenant.set(name)
            bus.dispatch("a")
        tenant.set("later")
        await bus.drain()
    assert seen == ["one", "two"]


async def test_events_that_are_kept_keep_their_context():
    seen: list[str] = []

    async def subscriber(event: Event[Any]) -> None:
        seen.append(tenant.get())

    bus = bus_of(subscriber)
    tenant.set("at dispatch")
    bus.dispatch("a")
    tenant.set("at start")
    async with bus:
        pass
    assert seen == ["at dispatch"]
