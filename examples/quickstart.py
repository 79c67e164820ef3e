"""A FastAPI application that says what happened, and functions that act on it after the response.

Run it with `uvicorn quickstart:app --app-dir examples`, then send it an order:
`curl -X POST http://127.0.0.1:8000/orders -H 'Content-Type: application/json' -d '{"id": 1}'`
"""

import asyncio

from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_events import EchoHandler, Event, EventHandlerASGIMiddleware, EventModel, dispatch, local_handler


class OrderPlaced(EventModel, name="order.placed"):
    """An order was accepted."""

    id: int


@local_handler.register(OrderPlaced)
async def send_confirmation(event: Event[OrderPlaced]) -> None:
    await asyncio.sleep(0.3)  # a slow mail server: the client does not wait for it
    print(f"send_confirmation: order {event.payload.id}", flush=True)


@local_handler.register("order.*")
def write_audit_log(event: Event) -> None:
    print(f"write_audit_log: {event.name} {event.id}", flush=True)


class Order(BaseModel):
    """What a client sends."""

    id: int


app = FastAPI()
app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler, EchoHandler()])


@app.post("/orders", status_code=201)
async def place_order(order: Order) -> Order:
    dispatch(OrderPlaced(id=order.id))
    return order


@app.get("/broken")
async def broken() -> None:
    dispatch(OrderPlaced(id=0))
    raise RuntimeError("this endpoint fails after it has dispatched")
