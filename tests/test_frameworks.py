"""FastAPI, Starlette, applications mounted in others, Litestar."""

import asyncio
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from litestar import Litestar, WebSocket as LitestarSocket, get, websocket
from litestar.middleware import DefineMiddleware
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.testclient import TestClient

from fastapi_events import (
    BaseEventHandler,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    LocalHandler,
    current_bus,
    dispatch,
)
from tests.asgi import lifespan_of, request

with_and_without_lifespan = pytest.mark.parametrize("with_lifespan", [True, False], ids=["lifespan", "no lifespan"])


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def start(self) -> None:
        self.names.append("start")

    async def stop(self) -> None:
        self.names.append("stop")

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)


def get_twice(client: Any, path: str = "/", *, with_lifespan: bool) -> None:
    if with_lifespan:
        with client:
            client.get(path)
            client.get(path)
    else:
        client.get(path)
        client.get(path)


@with_and_without_lifespan
def test_fastapi(with_lifespan):
    recorder = Recorder()
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder])

    @app.get("/")
    def index() -> None:
        dispatch("a")

    get_twice(TestClient(app), with_lifespan=with_lifespan)
    # without lifespan, each request of a TestClient has a loop of its own, on which the bus starts anew
    assert recorder.names == (["start", "a", "a", "stop"] if with_lifespan else ["start", "a", "start", "a"])


@with_and_without_lifespan
def test_fastapi_with_the_middleware_wrapped_around_it(with_lifespan):
    recorder = Recorder()
    app = FastAPI()

    @app.get("/")
    async def index() -> None:
        dispatch("a")

    get_twice(TestClient(EventHandlerASGIMiddleware(app, [recorder])), with_lifespan=with_lifespan)
    assert recorder.names == (["start", "a", "a", "stop"] if with_lifespan else ["start", "a", "start", "a"])


@pytest.mark.parametrize("around", [False, True], ids=["added", "wrapped around"])
def test_the_handler_of_all_exceptions_is_in_the_request_where_the_middleware_is_wrapped_around(around):
    recorder = Recorder()
    app = FastAPI()

    @app.exception_handler(Exception)
    async def apologise(request: Request, error: Exception) -> Response:
        dispatch("apologised")
        dispatch("paid", deliver_on="success")
        return Response("sorry", 500)

    @app.get("/")
    async def index() -> None:
        raise ValueError

    served: Any = app
    if around:
        served = EventHandlerASGIMiddleware(app, handlers=[recorder])
    else:
        app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder])
    with TestClient(served, raise_server_exceptions=False) as client:
        assert client.get("/").text == "sorry"
    assert recorder.names == ["start", "apologised", *([] if around else ["paid"]), "stop"]


@with_and_without_lifespan
def test_starlette(with_lifespan):
    recorder = Recorder()

    async def index(request: Request) -> Response:
        dispatch("a")
        return JSONResponse({})

    app = Starlette(
        routes=[Route("/", index)], middleware=[Middleware(EventHandlerASGIMiddleware, handlers=[recorder])]
    )
    get_twice(TestClient(app), with_lifespan=with_lifespan)
    assert recorder.names == (["start", "a", "a", "stop"] if with_lifespan else ["start", "a", "start", "a"])


async def index(request: Request) -> Response:
    dispatch(request.url.path)
    return JSONResponse(repr(current_bus()))


def test_the_middleware_of_a_route_of_a_mount_and_of_a_router():
    recorder = Recorder()
    middleware = [Middleware(EventHandlerASGIMiddleware, handlers=[recorder])]
    app = Starlette(
        routes=[
            Route("/route", index, middleware=middleware),
            Mount("/mount", routes=[Route("/in", index)], middleware=middleware),
            Mount("/router", app=Router(routes=[Route("/in", index)], middleware=middleware)),
        ]
    )
    client = TestClient(app)
    for path in ("/route", "/mount/in", "/router/in"):
        client.get(path)
    assert [name for name in recorder.names if name != "start"] == ["/route", "/mount/in", "/router/in"]


async def test_a_mounted_application_without_middleware_uses_the_outer_bus():
    recorder = Recorder()
    inner = FastAPI()
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder])
    inner.add_api_route("/", endpoint, methods=["GET"])
    app.mount("/inner", inner)
    async with lifespan_of(app):
        await request(app, "/inner/").call
    assert recorder.names == ["start", "a", "stop"]


async def endpoint() -> None:
    dispatch("a")


async def test_a_mounted_application_with_middleware_has_its_own_bus():
    outer, inner = Recorder(), Recorder()
    inner_app = FastAPI()
    inner_app.add_middleware(EventHandlerASGIMiddleware, handlers=[inner])
    inner_app.add_api_route("/", endpoint, methods=["GET"])
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[outer])
    app.add_api_route("/", endpoint, methods=["GET"])
    app.mount("/inner", inner_app)
    async with lifespan_of(app):
        await request(app, "/").call
        await request(app, "/inner/").call
        await request(app, "/inner/").call
    assert outer.names == ["start", "a", "stop"]
    assert inner.names == ["start", "a", "a"]  # started by its first request; nobody tells it of the shutdown


async def test_a_mounted_application_may_share_the_bus_of_the_outer_one():
    recorder = Recorder()
    bus = EventBus([recorder])
    inner_app = Starlette(routes=[Route("/", index)])
    app = Starlette(routes=[Mount("/inner", inner_app), Route("/", index)])
    for one in (app, inner_app):
        one.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    async with lifespan_of(app):
        await request(app, "/inner/").call
        await request(app, "/").call
    assert recorder.names == ["start", "/inner/", "/", "stop"]


async def test_only_the_mounted_application_has_a_bus():
    recorder = Recorder()
    inner_app = FastAPI()
    inner_app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder])
    inner_app.add_api_route("/", endpoint, methods=["GET"])
    app = Starlette(routes=[Mount("/inner", inner_app)])
    async with lifespan_of(app):
        await request(app, "/inner/").call
    assert recorder.names == ["start", "a"]


async def test_a_subscriber_gets_the_path_below_the_mount():
    from starlette.requests import HTTPConnection

    handler = LocalHandler()
    seen: list[str] = []

    @handler.register
    async def subscriber(event: Event[Any], connection: HTTPConnection) -> None:
        seen.append(connection.url.path)

    app = Starlette(routes=[Mount("/inner", Starlette(routes=[Route("/in", index)]))])
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])
    await request(app, "/inner/in").call
    assert seen == ["/inner/in"]


def test_a_router_included_in_fastapi():
    recorder = Recorder()
    router = APIRouter(prefix="/router")
    router.add_api_route("/", endpoint, methods=["GET"])
    app = FastAPI()
    app.include_router(router)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder])
    TestClient(app).get("/router/")
    assert recorder.names == ["start", "a"]


# Litestar


@get("/", sync_to_thread=True)
def litestar_sync() -> str:
    dispatch("sync")
    return "done"


@get("/async")
async def litestar_async() -> str:
    dispatch("async")
    await asyncio.to_thread(dispatch, "thread")
    return "done"


@get("/broken")
async def litestar_broken() -> str:
    dispatch("broken")
    dispatch("withheld", deliver_on="success")
    raise ZeroDivisionError


@websocket("/socket")
async def litestar_socket(socket: LitestarSocket) -> None:
    await socket.accept()
    dispatch("socket")
    await socket.send_text(repr(current_bus()))
    await socket.close()


def use_litestar(app: Any) -> None:
    with LitestarClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").text == client.get("/async").text == "done"
        assert client.get("/broken").status_code == 500
        with client.websocket_connect("/socket") as socket:
            assert "EventBus" in socket.receive_text()


ROUTES: list[Any] = [litestar_sync, litestar_async, litestar_broken, litestar_socket]


def test_litestar_with_the_middleware_of_its_stack():
    recorder = Recorder()
    app = Litestar(ROUTES, middleware=[DefineMiddleware(EventHandlerASGIMiddleware, handlers=[recorder])])
    use_litestar(app)
    # the stack is built once for each route, and so is the bus
    assert [name for name in recorder.names if name != "start"] == ["sync", "async", "thread", "broken", "socket"]


def test_litestar_with_one_bus_for_its_stack():
    recorder = Recorder()
    app = Litestar(ROUTES, middleware=[DefineMiddleware(EventHandlerASGIMiddleware, bus=EventBus([recorder]))])
    use_litestar(app)
    assert recorder.names == ["start", "sync", "async", "thread", "broken", "socket"]


def test_litestar_with_the_middleware_wrapped_around_it():
    recorder = Recorder()
    app = Litestar(ROUTES, on_startup=[lambda: dispatch("startup")], on_shutdown=[lambda: dispatch("shutdown")])
    use_litestar(EventHandlerASGIMiddleware(app, [recorder]))
    names = ["start", "startup", "sync", "async", "thread", "broken", "socket", "shutdown", "stop"]
    assert recorder.names == names
