"""Functions under @local_handler.register."""

import functools
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from typing import Annotated, Any, TypedDict, assert_type

from fastapi import Depends
from pydantic import BaseModel

from fastapi_events import Event, EventModel, EventType, LocalHandler, Retry, local_handler


class Name(Enum):
    ORDER_PLACED = "order.placed"


class Shipping(TypedDict):
    order_id: int


class BaseOrder(EventModel, abstract=True):
    order_id: int


class OrderPlaced(BaseOrder, name="order.placed"):
    pass


class OrderShipped(BaseOrder, name="order.shipped"):
    carrier: str


class Registered(BaseModel):
    value: int


SCORES = EventType("scores", list[int])
SHIPPED = EventType("shipped", Shipping)


@local_handler.register(OrderPlaced)
async def asynchronous(event: Event[OrderPlaced]) -> None: ...


@local_handler.register(OrderPlaced)
def synchronous(event: Event[OrderPlaced]) -> None: ...


@local_handler.register(OrderPlaced)
async def bare(event: Event) -> None: ...


@local_handler.register(OrderPlaced)
async def of_anything(event: Event[Any]) -> None: ...


@local_handler.register(OrderPlaced)
async def of_a_base(event: Event[BaseOrder]) -> None: ...


@local_handler.register(OrderPlaced)
async def of_either(event: Event[OrderPlaced | OrderShipped]) -> None: ...


@local_handler.register(OrderPlaced)
async def of_an_object(event: object) -> None: ...


@local_handler.register("order.*")
async def of_a_pair(event: tuple[str, Any]) -> None: ...


@local_handler.register(OrderPlaced)
async def of_a_pair_with_its_payload(event: tuple[str, OrderPlaced]) -> None: ...


@local_handler.register(OrderPlaced)
async def with_a_default(event: Event[OrderPlaced], limit: int = 10) -> None: ...


@local_handler.register(Registered)
async def of_a_plain_model(event: Event[Registered]) -> None: ...


@local_handler.register(SCORES)
async def of_an_event_type(event: Event[list[int]]) -> None: ...


@local_handler.register(SHIPPED)
async def of_a_typed_dict(event: Event[Shipping]) -> None: ...


@local_handler.register("order.*")
async def by_pattern(event: Event[BaseOrder]) -> None: ...


@local_handler.register(Name.ORDER_PLACED)
async def by_enum(event: Event[OrderPlaced]) -> None: ...


@local_handler.register("order.placed", Name.ORDER_PLACED)
async def by_names(event: Event) -> None: ...


@local_handler.register(event_name="order.*")
async def by_event_name(event: Event) -> None: ...


@local_handler.register(event_name=Name.ORDER_PLACED)
def by_enum_event_name(event: Event) -> None: ...


@local_handler.register
async def of_all(event: Event) -> None: ...


@local_handler.register()
async def of_all_called(event: Event) -> None: ...


@local_handler.register(OrderPlaced, OrderShipped)
async def of_several(event: Event[OrderPlaced | OrderShipped]) -> None: ...


@local_handler.register(OrderPlaced, OrderShipped)
async def of_several_by_base(event: Event[BaseOrder]) -> None: ...


@local_handler.register(OrderPlaced, OrderShipped, Registered, SCORES, SHIPPED)
async def of_five(event: Event[OrderPlaced | OrderShipped | Registered | list[int] | Shipping]) -> None: ...


@local_handler.register(OrderPlaced | OrderShipped)
async def of_a_union(event: Event[OrderPlaced | OrderShipped]) -> None: ...


@local_handler.register(OrderPlaced, "invoice.*")
async def of_a_model_and_a_name(event: Event) -> None: ...


@local_handler.register(OrderPlaced)
@local_handler.register(OrderShipped)
async def stacked(event: Event[BaseOrder]) -> None: ...


@local_handler.register(OrderPlaced)
@local_handler.register("invoice.*")
@local_handler.register(SCORES)
def stacked_three(event: Event) -> None: ...


@local_handler.register(OrderPlaced, retry=Retry(attempts=5), timeout=2.5, concurrency=4)
async def with_options(event: Event[OrderPlaced]) -> None: ...


@local_handler.register("order.*", timeout=1)
async def by_pattern_with_options(event: Event) -> None: ...


@local_handler.register(timeout=1)
async def of_all_with_options(event: Event) -> None: ...


def session() -> str:
    return ""


SessionDep = Annotated[str, Depends(session)]


@local_handler.register(OrderPlaced)
async def with_default_dependency(event: Event[OrderPlaced], db: str = Depends(session)) -> None: ...


@local_handler.register(OrderPlaced)
async def with_annotated_dependency(event: Event[OrderPlaced], db: SessionDep) -> None: ...


@local_handler.register("order.*")
def with_keyword_dependency(event: Event, *, db: SessionDep) -> None: ...


async def direct_calls_stay_checked(event: Event[OrderPlaced], shipped: Event[OrderShipped]) -> None:
    assert_type(await asynchronous(event), None)
    assert_type(synchronous(event), None)
    await with_a_default(event, limit=3)
    await stacked(event)
    stacked_three(event)
    await of_a_base(event)
    await of_five(event)
    await with_default_dependency(event)
    await with_default_dependency(event, db="x")
    await with_annotated_dependency(event, "x")
    with_keyword_dependency(event, db="x")
    await asynchronous(shipped)  # E: a direct call with another event
    await with_annotated_dependency(event)  # E: a direct call without its dependency
    await with_annotated_dependency(event, 3)  # E: a direct call with a wrong dependency
    await with_default_dependency(event, bd="x")  # E: a direct call with a misspelt keyword


class Service:
    async def on_placed(self, event: Event[OrderPlaced]) -> None: ...

    def on_placed_sync(self, event: Event[OrderPlaced], limit: int = 3) -> None: ...

    async def on_shipped(self, event: Event[OrderShipped]) -> None: ...

    @staticmethod
    @local_handler.register(OrderPlaced)
    async def static(event: Event[OrderPlaced]) -> None: ...

    @classmethod
    async def of_class(cls, event: Event[OrderPlaced]) -> None: ...


class Callable_:
    async def __call__(self, event: Event[OrderPlaced]) -> None: ...


async def with_setting(setting: int, event: Event[OrderPlaced]) -> None: ...


def everything_callable(service: Service, handler: LocalHandler) -> None:
    handler.register(OrderPlaced)(service.on_placed)
    handler.register(OrderPlaced)(service.on_placed_sync)
    handler.register(OrderPlaced)(Service.static)
    handler.register(OrderPlaced)(Service.of_class)
    handler.register(OrderPlaced)(Callable_())
    handler.register(OrderPlaced)(functools.partial(with_setting, 3))
    handler.register(service.on_placed)
    handler.unregister(service.on_placed)
    handler.register(OrderPlaced)(service.on_shipped)  # E: a method of another event


@local_handler.register(OrderPlaced)  # E: a handler of the wrong model
async def wrong_model(event: Event[OrderShipped]) -> None: ...


@local_handler.register(OrderPlaced)  # E: a sync handler of the wrong model
def wrong_model_sync(event: Event[OrderShipped]) -> None: ...


@local_handler.register(BaseOrder)  # E: a handler of a derived event for a base one
async def derived_for_base(event: Event[OrderPlaced]) -> None: ...


@local_handler.register(OrderPlaced, OrderShipped)  # E: a handler of one of two
async def one_of_two(event: Event[OrderPlaced]) -> None: ...


@local_handler.register(OrderPlaced | OrderShipped)  # E: a handler of half a union
async def half_a_union(event: Event[OrderPlaced]) -> None: ...


@local_handler.register(SCORES)  # E: a handler of another payload than the event type's
async def wrong_payload(event: Event[list[str]]) -> None: ...


@local_handler.register(OrderPlaced)  # E: a handler of the payload where the event comes
async def of_the_payload(event: OrderPlaced) -> None: ...


@local_handler.register(OrderPlaced)  # E: a stacked handler of the wrong model
@local_handler.register(OrderShipped)
async def stacked_wrong(event: Event[OrderShipped]) -> None: ...


@local_handler.register(OrderPlaced)  # E: a generator
def generator(event: Event[OrderPlaced]) -> Iterator[int]:
    yield 1


@local_handler.register(OrderPlaced)  # E: an async generator
async def async_generator(event: Event[OrderPlaced]) -> AsyncIterator[int]:
    yield 1


@local_handler.register("order.*")  # E: a generator by name
def generator_by_name(event: Event) -> Iterator[int]:
    yield 1


@local_handler.register(OrderPlaced)  # E: a result that is thrown away
def result(event: Event[OrderPlaced]) -> int:
    return 1


@local_handler.register("order.*")  # E: a result that is thrown away, by name
def result_by_name(event: Event) -> bool:
    return True


@local_handler.register  # E: a result that is thrown away, bare
def result_bare(event: Event) -> str:
    return ""


@local_handler.register(OrderPlaced)  # E: no parameter
async def no_parameter() -> None: ...


@local_handler.register  # E: no parameter, bare
async def no_parameter_bare() -> None: ...


@local_handler.register(OrderPlaced)  # E: no positional parameter
async def no_positional(*, event: Event[OrderPlaced]) -> None: ...


@local_handler.register("order.*")  # E: no positional parameter, by name
async def no_positional_by_name(*, event: Event) -> None: ...


@local_handler.register("order.*")  # E: a handler of something else
async def of_an_int(event: int) -> None: ...


@local_handler.register(OrderPlaced, timout=2)  # E: a misspelt option
async def misspelt(event: Event[OrderPlaced]) -> None: ...


@local_handler.register("order.*", timeout="2")  # E: an option of the wrong type
async def wrong_option(event: Event) -> None: ...


@local_handler.register(3)  # E: an int as event name
async def by_int(event: Event) -> None: ...


@local_handler.register(OrderPlaced(order_id=1))  # E: an instance instead of the model
async def by_instance(event: Event[OrderPlaced]) -> None: ...


@local_handler.register(int)  # E: a class that is no model
async def by_class(event: Event) -> None: ...


@local_handler.register(OrderPlaced | int)  # E: a union with a class that is no model
async def by_a_union_with_it(event: Event) -> None: ...


@local_handler.register("order.*", int)  # E: a name and a class that is no model
async def by_a_name_and_it(event: Event) -> None: ...
