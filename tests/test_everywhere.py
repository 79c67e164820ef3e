"""From everywhere, none lost, none raising: every place from which people dispatch."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from httpx2 import ASGITransport, AsyncClient
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient

from fastapi_events import BaseEventHandler, Event, EventBus, EventHandlerASGIMiddleware, LocalHandler, dispatch
from tests.asgi import Connection, lifespan_of

Place = Callable[[FastAPI, LocalHandler], None]
places: dict[str, Place] = {}


def place(function: Place) -> Place:
    """Collect a function that makes GET / dispatch the event `here`, in one way."""
    places[function.__name__] = function
    return function


def add_inside(app: FastAPI, middleware: Any, **options: Any) -> None:
    """Add a middleware inside ours, which is there already."""
    ours = app.user_middleware.pop()
    app.add_middleware(middleware, **options)
    app.user_middleware.insert(0, ours)


@place
def sync_endpoint(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    def index() -> None:
        dispatch("here")


@place
def async_endpoint(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    async def index() -> None:
        dispatch("here")


@place
def sync_background_task(app: FastAPI, handler: LocalHandler) -> None:
    def background() -> None:
        dispatch("here")

    @app.get("/")
    async def index(tasks: BackgroundTasks) -> None:
        tasks.add_task(background)


@place
def async_background_task(app: FastAPI, handler: LocalHandler) -> None:
    async def background() -> None:
        await asyncio.sleep(0)
        dispatch("here")

    @app.get("/")
    async def index(tasks: BackgroundTasks) -> None:
        tasks.add_task(background)


@place
def to_thread(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    async def index() -> None:
        await asyncio.to_thread(dispatch, "here")


@place
def executor_of_the_loop(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    async def index() -> None:
        await asyncio.get_running_loop().run_in_executor(None, dispatch, "here")


@place
def plain_executor(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    def index() -> None:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(dispatch, "here").result()


@place
def plain_thread(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    def index() -> None:
        thread = threading.Thread(target=dispatch, args=("here",))
        thread.start()
        thread.join()


@place
def task(app: FastAPI, handler: LocalHandler) -> None:
    async def work() -> None:
        dispatch("here")

    @app.get("/")
    async def index() -> None:
        await asyncio.create_task(work())


@place
def task_group(app: FastAPI, handler: LocalHandler) -> None:
    async def work() -> None:
        dispatch("here")

    @app.get("/")
    async def index() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work())


@place
def callback_of_the_loop(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    async def index() -> None:
        asyncio.get_running_loop().call_soon(dispatch, "here")
        await asyncio.sleep(0)


@place
def async_subscriber(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    async def index() -> None:
        dispatch("cause")

    @handler.register("cause")
    async def chain(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        dispatch("here")


@place
def sync_subscriber(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    def index() -> None:
        dispatch("cause")

    @handler.register("cause")
    def chain(event: Event[Any]) -> None:
        dispatch("here")


@place
def thread_of_a_subscriber(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    def index() -> None:
        dispatch("cause")

    @handler.register("cause")
    def chain(event: Event[Any]) -> None:
        thread = threading.Thread(target=dispatch, args=("here",))
        thread.start()
        thread.join()


@place
def dependency_of_a_subscriber(app: FastAPI, handler: LocalHandler) -> None:
    @app.get("/")
    def index() -> None:
        dispatch("cause")

    def session() -> Iterator[None]:
        yield
        dispatch("here")

    @handler.register("cause")
    async def chain(event: Event[Any], session: Annotated[None, Depends(session)]) -> None: ...


@place
def middleware_inside(app: FastAPI, handler: LocalHandler) -> None:
    class Inside:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)
            if scope["type"] == "http":
                dispatch("here")

    add_inside(app, Inside)

    @app.get("/")
    async def index() -> None: ...


@place
def base_http_middleware_inside(app: FastAPI, handler: LocalHandler) -> None:
    async def inside(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        dispatch("here")
        return response

    add_inside(app, BaseHTTPMiddleware, dispatch=inside)

    @app.get("/")
    async def index() -> None: ...


@place
def endpoint_under_base_http_middleware(app: FastAPI, handler: LocalHandler) -> None:
    async def inside(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    add_inside(app, BaseHTTPMiddleware, dispatch=inside)

    @app.get("/")
    async def index(tasks: BackgroundTasks) -> None:
        tasks.add_task(dispatch, "here")


@place
def exception_handler(app: FastAPI, handler: LocalHandler) -> None:
    @app.exception_handler(HTTPException)
    async def handle(request: Request, error: Exception) -> Response:
        dispatch("here")
        return JSONResponse({}, 404)

    @app.get("/")
    async def index() -> None:
        raise HTTPException(404)


@place
def sync_exception_handler(app: FastAPI, handler: LocalHandler) -> None:
    @app.exception_handler(KeyError)
    def handle(request: Request, error: Exception) -> Response:
        dispatch("here")
        return JSONResponse({}, 409)

    @app.get("/")
    def index() -> None:
        raise KeyError


@place
def handler_of_the_500(app: FastAPI, handler: LocalHandler) -> None:
    """Outside of a user's middleware, and so of the request's scope."""

    @app.exception_handler(500)
    async def handle(request: Request, error: Exception) -> Response:
        dispatch("here")
        return JSONResponse({}, 500)

    @app.get("/")
    async def index() -> None:
        raise ZeroDivisionError


@place
def exit_of_a_sync_yield_dependency(app: FastAPI, handler: LocalHandler) -> None:
    def session() -> Iterator[None]:
        yield
        dispatch("here")

    @app.get("/")
    async def index(session: Annotated[None, Depends(session)]) -> None: ...


@place
def exit_of_an_async_yield_dependency(app: FastAPI, handler: LocalHandler) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        dispatch("here")

    @app.get("/")
    def index(session: Annotated[None, Depends(session)]) -> None: ...


@place
def exit_of_a_function_scoped_dependency(app: FastAPI, handler: LocalHandler) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        dispatch("here")

    @app.get("/")
    def index(session: Annotated[None, Depends(session, scope="function")]) -> None: ...


@place
def streaming_body(app: FastAPI, handler: LocalHandler) -> None:
    async def body() -> AsyncIterator[str]:
        yield "a"
        dispatch("here")
        yield "b"

    @app.get("/")
    async def index() -> Response:
        return StreamingResponse(body())


@place
def sync_streaming_body(app: FastAPI, handler: LocalHandler) -> None:
    def body() -> Iterator[str]:
        yield "a"
        dispatch("here")
        yield "b"

    @app.get("/")
    def index() -> Response:
        return StreamingResponse(body())


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def handle(self, event: Event[object]) -> None:
        if event.name != "cause":
            self.names.append(event.name)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def application(recorder: Recorder, handler: LocalHandler | None = None, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.add_middleware(EventHandlerASGIMiddleware, bus=EventBus([recorder, handler or LocalHandler()]))
    return app


@pytest.mark.parametrize("name", places)
@pytest.mark.parametrize("with_lifespan", [True, False], ids=["lifespan", "no lifespan"])
async def test_from_everywhere_in_a_request(name, with_lifespan, recorder):
    handler = LocalHandler()
    app = application(recorder, handler)
    bus = app.user_middleware[0].kwargs["bus"]
    places[name](app, handler)
    async with lifespan_of(app) if with_lifespan else contextlib.nullcontext():
        transport = ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/")
        await bus.drain()
        assert recorder.names == ["here"]
        assert bus.stats().pending == 0
        assert bus.stats().failed == 0
    await bus.stop()


@pytest.mark.parametrize("name", places)
@pytest.mark.parametrize("with_lifespan", [True, False], ids=["lifespan", "no lifespan"])
def test_from_everywhere_with_a_loop_for_each_client(name, with_lifespan, recorder):
    handler = LocalHandler()
    app = application(recorder, handler)
    places[name](app, handler)
    client = TestClient(app, raise_server_exceptions=False)
    for number in (1, 2):
        with client if with_lifespan else contextlib.nullcontext():
            client.get("/")
        assert recorder.names == ["here"] * number


async def test_from_the_startup_and_the_shutdown(recorder):
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        dispatch("startup")
        await asyncio.to_thread(dispatch, "startup.thread")
        yield
        dispatch("shutdown")
        await asyncio.to_thread(dispatch, "shutdown.thread")

    async with lifespan_of(application(recorder, lifespan=lifespan)):
        pass
    assert sorted(recorder.names) == ["shutdown", "shutdown.thread", "startup", "startup.thread"]


async def test_from_a_task_that_the_startup_began(recorder):
    """The README of 0.12 has one, for which it needed a middleware_id."""
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        dispatch("at.once")
        await go_on.wait()
        dispatch("long.after")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks.append(asyncio.create_task(work()))
        yield

    async with lifespan_of(application(recorder, lifespan=lifespan)):
        go_on.set()
        await tasks[0]
    assert recorder.names == ["at.once", "long.after"]


@pytest.mark.parametrize("with_lifespan", [True, False], ids=["lifespan", "no lifespan"])
async def test_from_a_task_and_from_a_thread_that_outlive_their_request(with_lifespan, recorder):
    app = application(recorder)
    bus = app.user_middleware[0].kwargs["bus"]
    go_on = threading.Event()
    begun: list[Any] = []

    async def in_task() -> None:
        await asyncio.to_thread(go_on.wait)
        dispatch("task")

    def in_thread() -> None:
        go_on.wait()
        dispatch("thread")

    @app.get("/")
    async def index() -> None:
        begun.append(asyncio.create_task(in_task()))
        begun.append(asyncio.create_task(asyncio.to_thread(in_thread)))  # keeps the context
        begun.append(asyncio.get_running_loop().run_in_executor(None, in_thread))  # does not

    async with lifespan_of(app) if with_lifespan else contextlib.nullcontext():
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            await client.get("/")
        assert recorder.names == []
        go_on.set()
        await asyncio.gather(*begun)
        await bus.drain()
        assert sorted(recorder.names) == ["task", "thread", "thread"]
    await bus.stop()


def test_from_a_thread_that_outlives_the_loop_of_its_request(recorder):
    """Without a lifespan, `TestClient` closes the loop with the response: the event is kept for the next one."""
    app = application(recorder)
    bus = app.user_middleware[0].kwargs["bus"]
    answered = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        answered.wait()
        dispatch("late", bus=bus)

    @app.get("/")
    def index() -> None:
        if not threads:
            threads.append(threading.Thread(target=work))
            threads[0].start()

    client = TestClient(app)
    client.get("/")
    answered.set()
    threads[0].join()
    assert recorder.names == []
    client.get("/")
    assert recorder.names == ["late"]


async def test_from_a_thread_long_after_the_start(recorder):
    app = application(recorder)
    async with lifespan_of(app):
        thread = threading.Thread(target=dispatch, args=("long.after",))
        thread.start()
        await asyncio.to_thread(thread.join)
    assert recorder.names == ["long.after"]


async def test_from_a_websocket(recorder):
    app = application(recorder)
    seen: list[list[str]] = []

    @app.websocket("/")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        dispatch("async")
        await asyncio.to_thread(dispatch, "sync")
        while len(recorder.names) < 2:
            await asyncio.sleep(0)
        seen.append(list(recorder.names))
        await websocket.close()
        dispatch("after.close")

    await Connection(app, {"type": "websocket.connect"}, type="websocket", path="/", subprotocols=[]).call
    assert seen == [["async", "sync"]]
    assert recorder.names == ["async", "sync", "after.close"]


async def test_from_a_worker_that_the_application_feeds(recorder):
    """A task from before the bus was started knows no scope at all."""
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:
        dispatch(await queue.get())

    task = asyncio.create_task(work())
    app = application(recorder)

    @app.get("/")
    async def index() -> None:
        await queue.put("from.worker")
        await task

    async with lifespan_of(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            await client.get("/")
    assert recorder.names == ["from.worker"]
