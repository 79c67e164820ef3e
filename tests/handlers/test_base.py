"""The extension point: one method, and what the bus promises to it."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from fastapi_events import BaseEventHandler, ConfigurationError, Event, EventBus, Failure, dispatch


class Failing(BaseEventHandler):
    """Fails for the payloads that it is told, and remembers the others."""

    def __init__(self, *payloads: object) -> None:
        self.payloads = payloads
        self.received: list[object] = []

    async def handle(self, event: Event[object]) -> None:
        if event.payload in self.payloads:
            raise KeyError(event.payload)
        self.received.append(event.payload)


def test_handle_is_what_a_handler_must_have():
    class Empty(BaseEventHandler):
        pass

    with pytest.raises(TypeError, match="handle"):
        Empty()  # type: ignore[abstract]


async def test_by_default_a_batch_goes_one_by_one_and_to_its_end():
    handler = Failing(2)
    with pytest.raises(KeyError):
        await handler.handle_many([Event("a", 1), Event("a", 2), Event("a", 3)])
    assert handler.received == [1, 3]


async def test_several_failures_come_as_a_group():
    handler = Failing(1, 3)
    with pytest.raises(ExceptionGroup) as raised:
        await handler.handle_many(iter([Event("a", 1), Event("a", 2), Event("a", 3)]))
    assert [type(error) for error in raised.value.exceptions] == [KeyError, KeyError]
    assert handler.received == [2]


async def test_by_default_only_the_events_that_failed_are_failures():
    failures: list[Failure] = []
    handler = Failing(2)
    async with EventBus([handler], on_error=failures.append) as bus:
        async with bus.scope():
            for number in (1, 2, 3):
                dispatch("a", number)
    assert handler.received == [1, 3]
    assert [(failure.event.payload, failure.subscriber, failure.attempt) for failure in failures] == [(2, "Failing", 1)]
    assert bus.stats().delivered == 2


async def test_a_handler_of_batches_gets_the_events_of_a_block_together_and_fails_for_all():
    class Batches(BaseEventHandler):
        def __init__(self) -> None:
            self.batches: list[list[object]] = []

        async def handle(self, event: Event[object]) -> None:
            raise NotImplementedError

        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            self.batches.append([event.payload for event in events])
            raise ConnectionError("no broker")

    failures: list[Failure] = []
    handler = Batches()
    async with EventBus([handler], on_error=failures.append) as bus:
        async with bus.scope():
            dispatch("a", 1)
            dispatch("a", 2)
    assert handler.batches == [[1, 2]]
    assert [failure.event.payload for failure in failures] == [1, 2]


async def test_a_handler_is_called_for_several_requests_at_once():
    class Meeting(BaseEventHandler):
        def __init__(self) -> None:
            self.barrier = asyncio.Barrier(2)

        async def handle(self, event: Event[object]) -> None:
            async with asyncio.timeout(5):
                await self.barrier.wait()

    async with EventBus([Meeting()]) as bus:

        async def block() -> None:
            async with bus.scope():
                dispatch("a")

        await asyncio.gather(block(), block())
        assert bus.stats().delivered == 2


async def test_a_handler_of_batches_may_dispatch_and_its_chains_are_bounded():
    class Echoing(BaseEventHandler):
        def __init__(self) -> None:
            self.names: list[str] = []

        async def handle(self, event: Event[object]) -> None: ...

        async def handle_many(self, events: Iterable[Event[object]]) -> None:
            for event in events:
                self.names.append(event.name)
                dispatch("again")

    handler = Echoing()
    async with EventBus([handler], max_depth=3, max_pending=1) as bus:
        async with bus.scope():
            dispatch("first")
        await bus.drain()
    assert handler.names == ["first", "again", "again"]


@pytest.mark.parametrize("name", ["handle", "handle_many"])
def test_a_handler_whose_method_is_not_async_is_refused_where_it_is_set_up(name):
    members: dict[str, Any] = {"handle": Failing.handle, name: lambda self, event: None}
    handler = type("NotAsync", (BaseEventHandler,), members)()
    with pytest.raises(ConfigurationError, match="NotAsync"):
        EventBus([handler])
