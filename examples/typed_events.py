"""Events that type checkers understand: models, typed names, and the shapes of subscribers."""

import asyncio

from fastapi_events import Event, EventBus, EventModel, EventType, LocalHandler, dispatch, event_is


class OrderPlaced(EventModel, name="order.placed", version=2):
    """An order was accepted."""

    id: int


class OrderCancelled(EventModel, name="order.cancelled"):
    """An order was taken back."""

    id: int
    reason: str


SCORES = EventType("scores.published", list[int])
handler = LocalHandler()


@handler.register(OrderPlaced, OrderCancelled)
async def follow(event: Event[OrderPlaced | OrderCancelled]) -> None:
    if event_is(event, OrderCancelled):
        print(f"cancelled: {event.payload.id}, {event.payload.reason}")
    else:
        print(f"placed: {event.payload.id}")


@handler.on
async def count(order: OrderPlaced) -> None:  # the annotation is the subscription
    print(f"count: {order.id}")


@handler.register(SCORES)
async def best(event: Event[list[int]]) -> None:
    print(f"best: {max(event.payload)}")


async def main() -> None:
    async with EventBus([handler]):
        dispatch(OrderPlaced(id=1))
        dispatch(OrderCancelled(id=1, reason="too late"))
        sent = dispatch(SCORES, [3, 7, 5])
    assert Event.from_json(sent.to_json()) == sent


if __name__ == "__main__":
    asyncio.run(main())
