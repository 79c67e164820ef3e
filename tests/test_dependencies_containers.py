"""Database sessions and dependency containers in subscribers, with the lines that docs/dependencies.md shows."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import dishka
import pytest
import svcs
import svcs.fastapi
from dishka.integrations.fastapi import FromDishka, inject, setup_dishka
from fastapi import Depends, FastAPI
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import Field, Session, SQLModel, create_engine, select as sqlmodel_select
from starlette.testclient import TestClient
from that_depends import BaseContainer, ContextScopes, container_context, providers

from fastapi_events import EventBus, EventHandlerASGIMiddleware, Failure, LocalHandler, dispatch

T = TypeVar("T")


class Base(DeclarativeBase): ...


class Receipt(Base):
    __tablename__ = "receipt"

    order_id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(40))


class Invoice(SQLModel, table=True):
    order_id: int = Field(primary_key=True)


class Connection:
    """Stands for what a container makes: writes what becomes of it into a log."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name
        log.append(f"open {name}")

    def close(self, error: BaseException | None) -> None:
        self.log.append(f"roll back {self.name}" if error else f"commit {self.name}")


async def deliver(handler: LocalHandler, *payloads: object) -> list[Failure]:
    failures: list[Failure] = []
    async with EventBus([handler], on_error=failures.append) as bus, bus.scope():
        for payload in payloads:
            bus.dispatch("order.placed", payload)
    return failures


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


async def test_each_call_has_an_sqlalchemy_session_of_its_own_which_a_failure_rolls_back(engine: AsyncEngine) -> None:
    sessions: list[AsyncSession] = []
    new_session = async_sessionmaker(engine, expire_on_commit=False)

    async def session() -> AsyncIterator[AsyncSession]:
        async with new_session() as session, session.begin():
            yield session

    async def save(order_id: int, session: Annotated[AsyncSession, Depends(session)]) -> None:
        sessions.append(session)
        session.add(Receipt(order_id=order_id, text=f"receipt {order_id}"))
        await session.flush()
        if order_id == 2:
            raise LookupError("no such order")

    handler = LocalHandler()
    handler.register("order.placed")(save)
    failures = await deliver(handler, 1, 2, 3)

    async with new_session() as reading:
        assert list(await reading.scalars(select(Receipt.order_id).order_by(Receipt.order_id))) == [1, 3]
    assert [repr(failure.exception) for failure in failures] == ["LookupError('no such order')"]
    assert len(set(map(id, sessions))) == 3
    assert not any(session.in_transaction() for session in sessions)


def test_a_subscriber_sees_what_the_session_of_its_request_committed(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    new_session = async_sessionmaker(engine)
    seen = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    async def session() -> AsyncIterator[AsyncSession]:
        async with new_session() as session, session.begin():
            yield session

    OwnSession = Annotated[AsyncSession, Depends(session)]  # noqa: N806 - a type
    handler = LocalHandler()
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])

    @app.post("/orders/{order_id}")
    async def place(order_id: int, session: OwnSession) -> None:
        session.add(Receipt(order_id=order_id, text="receipt"))
        dispatch("order.placed", order_id)

    @handler.register("order.placed")
    async def read(order_id: int, session: OwnSession) -> None:
        receipt = await session.get(Receipt, order_id)
        seen.append(receipt and receipt.text)

    with TestClient(app) as client:
        client.post("/orders/7").raise_for_status()

    assert seen == ["receipt"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_a_sync_sqlmodel_session_works_in_both_kinds_of_subscribers(tmp_path: Path, is_async: bool) -> None:
    # the session of an async subscriber is opened and closed by threads, and used on the event loop
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = create_engine(url, connect_args={"check_same_thread": False})
    SQLModel.metadata.create_all(engine)

    def session() -> Iterator[Session]:
        with Session(engine) as session, session.begin():
            yield session

    def save(order_id: int, session: Annotated[Session, Depends(session)]) -> None:
        session.add(Invoice(order_id=order_id))
        session.flush()
        if order_id == 2:
            raise LookupError("no such order")

    async def save_asynchronously(order_id: int, session: Annotated[Session, Depends(session)]) -> None:
        save(order_id, session)

    handler = LocalHandler()
    handler.register("order.placed")(save_asynchronously if is_async else save)
    failures = await deliver(handler, 1, 2, 3)

    with Session(engine) as reading:
        assert reading.exec(sqlmodel_select(Invoice.order_id).order_by(Invoice.order_id)).all() == [1, 3]
    engine.dispose()
    assert [repr(failure.exception) for failure in failures] == ["LookupError('no such order')"]


def make_dishka_container(log: list[str]) -> dishka.AsyncContainer:
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)

    async def connection() -> AsyncIterator[Connection]:
        connection = Connection(log, "connection")
        error = yield connection
        connection.close(error)

    provider.provide(connection)
    return dishka.make_async_container(provider)


def from_dishka(container: dishka.AsyncContainer, type_: type[T]) -> Any:
    async def services() -> AsyncIterator[dishka.AsyncContainer]:
        async with container() as services:
            yield services

    async def get(services: Annotated[dishka.AsyncContainer, Depends(services)]) -> T:
        return await services.get(type_)

    return Depends(get)


async def test_dishka_opens_a_container_for_each_call() -> None:
    log: list[str] = []
    container = make_dishka_container(log)

    async def save(order_id: int, connection: Annotated[Connection, from_dishka(container, Connection)]) -> None:
        log.append(f"save {order_id} over {connection.name}")
        if order_id == 2:
            raise LookupError("no such order")

    handler = LocalHandler()
    handler.register("order.placed")(save)
    failures = await deliver(handler, 1, 2)
    await container.close()

    assert len(failures) == 1
    assert log == [
        "open connection", "save 1 over connection", "commit connection",
        "open connection", "save 2 over connection", "roll back connection",
    ]  # fmt: skip


def test_dishka_in_a_route_and_in_the_subscriber_of_its_event_are_two_containers() -> None:
    log: list[str] = []
    container = make_dishka_container(log)
    handler = LocalHandler()
    app = FastAPI()
    setup_dishka(container, app)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])  # last: around dishka's

    @app.post("/orders/{order_id}")
    @inject
    async def place(order_id: int, connection: FromDishka[Connection]) -> None:
        log.append("place")
        dispatch("order.placed", order_id)

    @handler.register("order.placed")
    async def save(order_id: int, connection: Annotated[Connection, from_dishka(container, Connection)]) -> None:
        log.append("save")

    with TestClient(app) as client:
        client.post("/orders/7").raise_for_status()

    one_call = ["open connection", "place", "commit connection"]
    assert log == [*one_call, *(line.replace("place", "save") for line in one_call)]


async def test_svcs_opens_a_container_for_each_call() -> None:
    log: list[str] = []
    registry = svcs.Registry()

    async def connection() -> AsyncIterator[Connection]:
        connection = Connection(log, "connection")
        yield connection
        connection.close(None)

    registry.register_factory(Connection, connection)

    async def services() -> AsyncIterator[svcs.Container]:
        async with svcs.Container(registry) as services:
            yield services

    async def save(order_id: int, services: Annotated[svcs.Container, Depends(services)]) -> None:
        connection = await services.aget(Connection)
        log.append(f"save {order_id} over {connection.name}")

    handler = LocalHandler()
    handler.register("order.placed")(save)
    failures = await deliver(handler, 1, 2)

    assert failures == []
    assert log == [
        "open connection", "save 1 over connection", "commit connection",
        "open connection", "save 2 over connection", "commit connection",
    ]  # fmt: skip


def test_the_container_that_svcs_has_for_fastapi_works_for_the_events_of_requests() -> None:
    log: list[str] = []
    handler = LocalHandler()

    @svcs.fastapi.lifespan
    async def lifespan(app: FastAPI, registry: svcs.Registry) -> AsyncIterator[None]:
        registry.register_factory(Connection, lambda: Connection(log, "connection"))
        yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])

    @app.post("/orders/{order_id}")
    async def place(order_id: int, services: svcs.fastapi.DepContainer) -> None:
        dispatch("order.placed", order_id)

    @handler.register("order.placed")
    async def save(order_id: int, services: svcs.fastapi.DepContainer) -> None:
        connection = services.get(Connection)
        log.append(f"save {order_id} over {connection.name}")

    with TestClient(app) as client:
        client.post("/orders/7").raise_for_status()

    assert log == ["open connection", "save 7 over connection"]


async def test_that_depends_opens_a_context_for_each_call() -> None:
    log: list[str] = []

    async def make_connection() -> AsyncIterator[Connection]:
        connection = Connection(log, "connection")
        yield connection
        connection.close(None)

    class Container(BaseContainer):
        default_scope = ContextScopes.ANY
        connection = providers.ContextResource(make_connection)

    async def connection() -> AsyncIterator[Connection]:
        async with container_context(Container):
            yield await Container.connection.resolve()

    async def save(order_id: int, connection: Annotated[Connection, Depends(connection)]) -> None:
        log.append(f"save {order_id} over {connection.name}")

    handler = LocalHandler()
    handler.register("order.placed")(save)
    failures = await deliver(handler, 1, 2)

    assert failures == []
    assert log == [
        "open connection", "save 1 over connection", "commit connection",
        "open connection", "save 2 over connection", "commit connection",
    ]  # fmt: skip


def test_the_code_in_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "dependencies.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert "Depends(open_session)" in code
    assert (ran.returncode, ran.stderr) == (0, "")
