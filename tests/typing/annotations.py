"""Functions under @local_handler.on: the annotation is the subscription."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends
from typing_extensions import TypeAliasType

from fastapi_events import Event, EventModel, LocalHandler, local_handler


class OrderPlaced(EventModel, name="order.placed"):
    order_id: int


class OrderShipped(EventModel, name="order.shipped"):
    carrier: str


def session() -> str:
    return ""


@local_handler.on
async def of_an_event(event: Event[OrderPlaced]) -> None: ...


@local_handler.on
def of_a_union(event: Event[OrderPlaced | OrderShipped]) -> None: ...


@local_handler.on
def of_two_events(event: Event[OrderPlaced] | Event[OrderShipped]) -> None: ...


EitherOrder = TypeAliasType("EitherOrder", Event[OrderPlaced] | Event[OrderShipped])


@local_handler.on
def of_an_alias(event: EitherOrder) -> None: ...


@local_handler.on
async def of_a_payload(order: OrderPlaced) -> None: ...


@local_handler.on
async def of_all(event: Event) -> None: ...


@local_handler.on(timeout=2.0, concurrency=3)
async def with_options(event: Event[OrderPlaced]) -> None: ...


@local_handler.on
async def with_dependency(
    event: Event[OrderPlaced], db: Annotated[str, Depends(session)], limit: int = 3, *, other: str = Depends(session)
) -> None: ...


class Service:
    async def on_placed(self, event: Event[OrderPlaced]) -> None: ...


async def the_exact_type_is_kept(event: Event[OrderPlaced], order: OrderPlaced, handler: LocalHandler) -> None:
    await of_an_event(event=event)
    await of_a_payload(order)
    await with_options(event=event)
    await with_dependency(event, "x", limit=4, other="y")
    await handler.on(Service().on_placed)(event)
    await of_an_event(order)  # E: the payload instead of the event
    await with_dependency(event)  # E: without its dependency


@local_handler.on  # E: a generator
def generator(event: Event[OrderPlaced]) -> Iterator[int]:
    yield 1


@local_handler.on  # E: a result that is thrown away
def result(event: Event[OrderPlaced]) -> int:
    return 1


@local_handler.on  # E: no parameter
async def no_parameter() -> None: ...


@local_handler.on(timeout=1.0)  # E: no positional parameter
async def no_positional(*, event: Event[OrderPlaced]) -> None: ...


@local_handler.on(timout=1.0)  # E: a misspelt option
async def misspelt(event: Event[OrderPlaced]) -> None: ...


def not_a_function(anything: Any) -> None:
    local_handler.on(anything)
    local_handler.on(OrderPlaced)  # E: a model instead of a function
    local_handler.on("order.placed")  # E: a name instead of a function
