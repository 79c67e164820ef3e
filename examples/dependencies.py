"""Subscribers that take the dependencies of the routes: each call has a database session of its own.

Run it with `uvicorn dependencies:app --app-dir examples`; it needs `sqlalchemy[asyncio]` and `aiosqlite`, and keeps
`shop.db`, anew each time, in the folder where it is started. Then order more than there is:
`curl -X POST http://127.0.0.1:8000/orders -H 'Content-Type: application/json' -d '{"id": 1, "pieces": 7}'`, the same
with `"id": 2`, and look at `curl http://127.0.0.1:8000/stock`: 3 are left, and only order 1 has been confirmed.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastapi_events import EventHandlerASGIMiddleware, EventModel, dispatch, local_handler

engine = create_async_engine("sqlite+aiosqlite:///shop.db")
new_session = async_sessionmaker(engine)


class Base(DeclarativeBase):
    """What is kept in the database."""


class OrderRow(Base):
    """An order; confirmed once its pieces are taken from the stock."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    pieces: Mapped[int]
    confirmed: Mapped[bool] = mapped_column(default=False)


class StockRow(Base):
    """How many pieces there are."""

    __tablename__ = "stock"

    id: Mapped[int] = mapped_column(primary_key=True)
    pieces: Mapped[int]


class OrderPlaced(EventModel, name="order.placed"):
    """An order was stored."""

    id: int
    pieces: int


async def open_session() -> AsyncGenerator[AsyncSession]:
    # commits at the end of a route or a subscriber, and rolls back what an exception left half done
    async with new_session() as session, session.begin():
        yield session


Session = Annotated[AsyncSession, Depends(open_session)]


class Orders:
    """Finds orders."""

    def __init__(self, session: Session) -> None:
        self.session = session

    async def get(self, order_id: int) -> OrderRow:
        """Return an order, or raise NoResultFound."""
        return await self.session.get_one(OrderRow, order_id)


class OutOfStockError(Exception):
    """There are fewer pieces than were ordered."""


@local_handler.on
async def confirm(order: OrderPlaced, orders: Annotated[Orders, Depends()], session: Session) -> None:
    # one session: that of `orders` is this one
    row = await orders.get(order.id)  # the route's session has committed it before
    row.confirmed = True
    stock = await session.get_one(StockRow, 1)
    stock.pieces -= order.pieces
    await session.flush()
    if stock.pieces < 0:
        raise OutOfStockError(f"order {order.id}: {-stock.pieces} pieces too many")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    async with new_session() as session, session.begin():
        session.add(StockRow(id=1, pieces=10))
    yield
    await engine.dispose()


class Order(BaseModel):
    """What a client sends."""

    id: int
    pieces: int


class Stock(BaseModel):
    """What a client reads."""

    pieces: int
    confirmed_orders: list[int]


app = FastAPI(lifespan=lifespan)
app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler])


@app.post("/orders", status_code=202)
async def place_order(order: Order, session: Session) -> Order:
    session.add(OrderRow(id=order.id, pieces=order.pieces))
    dispatch(OrderPlaced(id=order.id, pieces=order.pieces))
    return order


@app.get("/stock")
async def read_stock(session: Session) -> Stock:
    stock = await session.get_one(StockRow, 1)
    confirmed = await session.scalars(select(OrderRow.id).where(OrderRow.confirmed).order_by(OrderRow.id))
    return Stock(pieces=stock.pieces, confirmed_orders=list(confirmed))
