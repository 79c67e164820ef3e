"""A task that starts at once is a task like any other, on every version of Python."""

import asyncio
import gc
from typing import Any

import pytest

from fastapi_events.eager import start_eagerly


async def test_it_has_begun_when_this_returns_and_goes_on_in_the_same_task():
    loop, gate = asyncio.get_running_loop(), asyncio.Event()
    steps: list[tuple[str, asyncio.Task[Any] | None]] = []

    async def work() -> None:
        steps.append(("begun", asyncio.current_task()))
        await gate.wait()
        steps.append(("goes on", asyncio.current_task()))
        await asyncio.sleep(0)
        steps.append(("ends", asyncio.current_task()))

    start_eagerly(work(), loop)
    assert [step for step, _ in steps] == ["begun"]
    task = steps[0][1]
    assert task is not None
    assert task in asyncio.all_tasks()
    assert task is not asyncio.current_task()
    gate.set()
    await task
    assert steps == [("begun", task), ("goes on", task), ("ends", task)]


async def test_from_a_callback_outside_of_any_task():
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    tasks: list[asyncio.Task[Any] | None] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())

    def callback() -> None:
        tasks.append(asyncio.current_task())
        start_eagerly(work(), loop)
        tasks.append(asyncio.current_task())
        done.set()

    loop.call_soon(callback)
    await done.wait()
    before, within, after = tasks
    assert (before, after) == (None, None)
    assert within is not None


@pytest.mark.parametrize("suspends", [False, True])
async def test_an_exception_is_that_of_the_task(suspends):
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))

    async def work() -> None:
        if suspends:
            await asyncio.sleep(0)
        raise ValueError("mine")

    start_eagerly(work(), loop)
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert [repr(context["exception"]) for context in told] == ["ValueError('mine')"]


async def test_what_ends_the_program_comes_out_at_once_and_only_once():
    async def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_eagerly(work(), asyncio.get_running_loop())
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_cancellation_comes_out_where_it_waits(swallows):
    tasks: list[asyncio.Task[Any]] = []
    ended: list[str] = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            if not swallows:
                raise
        await asyncio.sleep(0)
        ended.append("done")

    start_eagerly(work(), asyncio.get_running_loop())
    tasks[0].cancel()  # before the loop turns
    await asyncio.wait(tasks, timeout=10)
    assert tasks[0].cancelled() is not swallows
    assert ended == (["cancelled", "done"] if swallows else ["cancelled"])


async def test_others_may_wait_for_the_same_before_the_loop_turns():
    loop, ready = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    ended: list[str] = []

    async def work(name: str) -> None:
        ended.append(f"{name} {await ready}")

    start_eagerly(work("first"), loop)
    start_eagerly(work("second"), loop)
    loop.call_soon(ready.set_result, "ready")
    await ready
    await asyncio.sleep(0)
    assert ended == ["first ready", "second ready"]


async def test_a_cancellation_says_why():
    """By that anyio knows its own."""
    tasks: list[asyncio.Task[Any]] = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await asyncio.get_running_loop().create_future()

    start_eagerly(work(), asyncio.get_running_loop())
    tasks[0].cancel("because")
    with pytest.raises(asyncio.CancelledError) as raised:
        await tasks[0]
    assert raised.value.args == ("because",)
