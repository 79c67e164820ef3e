"""The middleware: when events of a request go, who waits for them, how the bus lives with the application."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from httpx2 import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    LocalHandler,
    NullHandler,
    Outcome,
    current_bus,
    dispatch,
)
from tests.asgi import Connection, lifespan_of, request


class Recorder(BaseEventHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    async def handle(self, event: Event[object]) -> None:
        self.names.append(event.name)


class Lifecycle(Recorder):
    """Writes everything that happens into one list; fails to start as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)

    async def start(self) -> None:
        self.names.append("start")
        if self.failures:
            raise self.failures.pop()

    async def stop(self) -> None:
        self.names.append("stop")


class Gate(BaseEventHandler):
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ended: list[str] = []

    async def handle(self, event: Event[object]) -> None:
        self.entered.set()
        await self.let_go.wait()
        self.ended.append(event.name)


def starlette(*handlers: BaseEventHandler, routes: Any = (), lifespan: Any = None, **options: Any) -> Starlette:
    app = Starlette(routes=[Route(path, endpoint) for path, endpoint in dict(routes).items()], lifespan=lifespan)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=handlers, **options)
    return app


# What it takes


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """Be an application that answers nothing."""


@pytest.mark.parametrize("arguments", [{}, {"handlers": [], "bus": EventBus([])}, {"bus": EventBus([]), "source": "a"}])
def test_either_handlers_or_a_bus(arguments):
    with pytest.raises(ConfigurationError):
        EventHandlerASGIMiddleware(nothing, **arguments)


def test_options_go_to_the_bus():
    middleware = EventHandlerASGIMiddleware(nothing, [NullHandler()], source="orders", max_pending=3, drain_timeout=1.0)
    assert (middleware.bus.source, middleware.bus.drain_timeout) == ("orders", 1.0)
    with pytest.raises(TypeError, match="max_pendin"):
        EventHandlerASGIMiddleware(nothing, [], max_pendin=3)
    with pytest.raises(ConfigurationError, match="read twice"):
        EventHandlerASGIMiddleware(nothing, iter([NullHandler()]))


async def test_other_scope_types_pass_untouched():
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        seen.extend(arguments)

    arguments: list[Any] = [{"type": "webtransport"}, object(), object()]
    await EventHandlerASGIMiddleware(app, [])(*arguments)
    assert all(one is other for one, other in zip(seen, arguments, strict=True))


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
def test_another_event_loop_than_asyncios_is_refused(kind):
    call = EventHandlerASGIMiddleware(nothing, [])({"type": kind}, None, None)
    with pytest.raises(ConfigurationError, match="asyncio"):
        call.send(None)


# When


def test_events_go_after_the_response_background_tasks_and_yield_dependencies():
    order: list[str] = []
    handler = LocalHandler()
    handler.register(lambda event: order.append(f"{event.name} handled"))
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])

    def session() -> Iterator[None]:
        yield
        order.append("commit")
        dispatch("in.dependency")

    class Watching:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def watch(message: Any) -> None:
                order.append(message["type"])
                await send(message)

            await self.app(scope, receive, watch)

    @app.get("/")
    def index(_: Annotated[None, Depends(session)]) -> Response:
        dispatch("in.endpoint")
        order.append("endpoint")
        return JSONResponse({}, background=BackgroundTask(background))

    def background() -> None:
        order.append("background")
        dispatch("in.background")

    app.add_middleware(Watching)
    TestClient(app).get("/")
    assert order[order.index("endpoint") :] == [
        "endpoint",
        "http.response.start",
        "http.response.body",
        "background",
        "commit",
        "in.endpoint handled",
        "in.background handled",
        "in.dependency handled",
    ]


async def plain(_: Request) -> Response:
    dispatch("a")
    return Response("done")


def sync(_: Request) -> Response:
    dispatch("a")
    return Response("done")


async def stream(_: Request) -> Response:
    async def body() -> AsyncIterator[str]:
        for part in "one", "two":
            dispatch("a")
            yield part

    return StreamingResponse(body())


async def missing(_: Request) -> Response:
    dispatch("a")
    raise StarletteHTTPException(404)


async def broken(_: Request) -> Response:
    dispatch("a")
    raise ZeroDivisionError("in the endpoint")


@pytest.mark.parametrize("endpoint", [plain, sync, stream, missing])
@pytest.mark.parametrize("with_lifespan", [True, False], ids=["lifespan", "no lifespan"])
async def test_a_slow_handler_does_not_delay_the_response_and_the_call_waits_for_it(endpoint, with_lifespan):
    gate = Gate()
    app = starlette(gate, routes={"/": endpoint})
    async with lifespan_of(app) if with_lifespan else contextlib.nullcontext():
        connection = request(app)
        await connection.until("http.response.body")
        await gate.entered.wait()
        assert not connection.call.done()
        gate.let_go.set()
        await connection.call
    assert gate.ended == ["a", "a"] if endpoint is stream else ["a"]


async def test_a_500_is_not_delayed_and_its_events_are_handed_off():
    gate = Gate()
    app = starlette(gate, routes={"/": broken})
    async with lifespan_of(app):
        connection = request(app)
        await connection.until("http.response.body")
        with pytest.raises(ZeroDivisionError):
            await connection.call
        assert gate.ended == []
        gate.let_go.set()
    assert gate.ended == ["a"]
    assert connection.sent[0]["status"] == 500


async def test_without_lifespan_the_call_waits_even_after_an_exception():
    gate = Gate()
    app = starlette(gate, routes={"/": broken})
    connection = request(app)
    await gate.entered.wait()
    assert not connection.call.done()
    gate.let_go.set()
    with pytest.raises(ZeroDivisionError):
        await connection.call
    assert gate.ended == ["a"]


async def test_the_call_waits_for_chains():
    names: list[str] = []
    handler = LocalHandler()

    @handler.register
    async def chain(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        names.append(event.name)
        if len(names) < 4:
            dispatch(f"after {event.name}")

    await request(starlette(handler, routes={"/": plain})).call
    assert names == ["a", "after a", "after after a", "after after after a"]


async def test_a_cancelled_request_harms_no_event():
    gate = Gate()
    app = starlette(gate, routes={"/": plain})
    async with lifespan_of(app):
        connection = request(app)
        await gate.entered.wait()
        connection.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connection.call
        gate.let_go.set()
    assert gate.ended == ["a"]


async def test_a_request_that_is_cancelled_in_the_endpoint_delivers_its_events():
    recorder = Recorder()
    entered = asyncio.Event()

    async def endpoint(_: Request) -> Response:
        dispatch("completion")
        dispatch("success", deliver_on="success")
        dispatch("failure", deliver_on="failure")
        entered.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    app = starlette(recorder, routes={"/": endpoint})
    async with lifespan_of(app):
        connection = request(app)
        await entered.wait()
        connection.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connection.call
    assert recorder.names == ["completion", "failure"]


async def test_a_failing_subscriber_reaches_neither_client_nor_server_and_masks_nothing(caplog):
    handler = LocalHandler()

    @handler.register
    async def fails(event: Event[Any]) -> None:
        raise KeyError("in a subscriber")

    app = starlette(handler, routes={"/": plain, "/broken": broken})
    await request(app).call
    with pytest.raises(ZeroDivisionError):
        await request(app, "/broken").call
    assert len([record for record in caplog.records if "failed in" in record.getMessage()]) == 2


# wait=False


async def test_a_middleware_that_does_not_wait_leaves_it_to_the_lifespan():
    gate = Gate()
    app = starlette(gate, routes={"/": plain}, wait=False)
    async with lifespan_of(app):
        await request(app).call
        await gate.entered.wait()
        gate.let_go.set()
        assert gate.ended == []
    assert gate.ended == ["a"]


async def test_not_waiting_is_ignored_without_lifespan_and_that_is_logged_once(caplog):
    names: list[str] = []
    handler = LocalHandler()
    handler.register(lambda event: names.append(event.name))  # in a thread
    app = starlette(handler, routes={"/": plain}, wait=False)
    for number in range(1, 4):
        await request(app).call
        assert names == ["a"] * number
    assert len([record for record in caplog.records if "wait=False" in record.getMessage()]) == 1


# Which outcome


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Dispatch one event for each outcome, then do as the path says."""
    for outcome in ("completion", "success", "failure", "now"):
        dispatch(outcome, deliver_on=outcome)
    match scope["path"].strip("/"):
        case "nothing":
            return
        case "raise":
            raise ZeroDivisionError
        case "midway":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ZeroDivisionError
        case status:
            await Response(status_code=int(status))(scope, receive, send)


@pytest.mark.parametrize(
    "path, outcome",
    [
        ("200", "success"),
        ("204", "success"),
        ("302", "success"),
        ("399", "success"),
        ("400", "failure"),
        ("404", "failure"),
        ("500", "failure"),
        ("raise", "failure"),
        ("midway", "failure"),
        ("nothing", "failure"),
    ],
)
async def test_the_outcome_of_a_request_decides_what_is_delivered(path, outcome):
    recorder = Recorder()
    withheld: list[str] = []
    app = EventHandlerASGIMiddleware(answer, [recorder], on_withheld=lambda event: withheld.append(event.name))
    with contextlib.suppress(ZeroDivisionError):
        await request(app, f"/{path}").call
    await app.bus.drain()
    assert sorted(recorder.names) == sorted(["completion", "now", outcome])
    assert sorted([*withheld, outcome]) == ["failure", "success"]
    assert app.bus.stats().withheld == 1


async def test_the_middleware_may_set_what_events_wait_for_and_what_success_is():
    recorder = Recorder()
    outcomes: list[Outcome] = []

    async def endpoint(request: Request) -> Response:
        dispatch(request.url.path.strip("/"))
        return Response(status_code=int(request.url.path.strip("/")))

    def is_success(outcome: Outcome) -> bool:
        outcomes.append(outcome)
        return outcome.status in (200, 404)

    app = starlette(recorder, routes={"/200": endpoint, "/404": endpoint, "/410": endpoint},
                    deliver_on="success", is_success=is_success)  # fmt: skip
    for path in ("/200", "/404", "/410"):
        await request(app, path).call
    assert recorder.names == ["200", "404"]
    assert outcomes == [Outcome(200, None), Outcome(404, None), Outcome(410, None)]


def test_a_commit_that_fails_after_the_response_is_a_failure():
    recorder = Recorder()
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder], deliver_on="success")

    async def session() -> AsyncIterator[None]:
        yield
        raise ConnectionError("the commit failed")

    @app.get("/")
    async def index(_: Annotated[None, Depends(session)]) -> None:
        dispatch("order.placed")

    @app.get("/refused")
    async def refused() -> None:
        dispatch("order.refused")
        raise HTTPException(409)

    client = TestClient(app)
    with pytest.raises(ConnectionError):
        client.get("/")
    assert client.get("/refused").status_code == 409
    assert recorder.names == []


# Now, websockets


async def test_an_event_that_goes_now_is_handled_while_the_response_streams():
    handler = LocalHandler()
    seen: list[tuple[str, str]] = []
    handled = asyncio.Event()

    @handler.register
    async def subscriber(event: Event[Any], request: Request) -> None:
        seen.append((event.name, request.url.path))
        handled.set()

    async def endpoint(_: Request) -> Response:
        async def body() -> AsyncIterator[str]:
            dispatch("at.end")
            for name in ("first", "second"):
                handled.clear()
                dispatch(name, deliver_on="now")
                await handled.wait()
                yield name

        return StreamingResponse(body())

    await request(starlette(handler, routes={"/stream": endpoint}), "/stream").call
    assert seen == [("first", "/stream"), ("second", "/stream"), ("at.end", "/stream")]


async def test_the_events_of_a_websocket_are_handled_while_it_is_open():
    handler = LocalHandler()
    seen: list[tuple[str, str]] = []
    handled = asyncio.Event()

    @handler.register
    async def subscriber(event: Event[Any], websocket: WebSocket) -> None:
        seen.append((event.name, websocket.url.path))
        handled.set()

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        for name in ("completion", "success", "failure", "now"):
            handled.clear()
            dispatch(name, deliver_on=name)
            await handled.wait()
            await websocket.send_text(name)
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/socket", endpoint)])
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])
    connection = Connection(app, {"type": "websocket.connect"}, type="websocket", path="/socket", subprotocols=[])
    await connection.call
    assert [name for name, _ in seen] == ["completion", "success", "failure", "now"]
    assert {path for _, path in seen} == {"/socket"}
    assert connection.types.count("websocket.send") == 4


async def test_the_call_of_a_websocket_waits_for_its_last_events():
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        dispatch("last")
        raise ConnectionError("the socket broke")

    connection = Connection(EventHandlerASGIMiddleware(app, [gate]), type="websocket")
    await gate.entered.wait()
    assert not connection.call.done()
    gate.let_go.set()
    with pytest.raises(ConnectionError):
        await connection.call
    assert gate.ended == ["last"]


# Context


number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


async def test_subscribers_see_the_context_in_which_the_request_ended():
    seen: list[int] = []
    handler = LocalHandler()
    handler.register(lambda event: seen.append(number.get()))

    class Counting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            number.set(number.get() + 1)
            await self.app(scope, receive, send)

    app = Counting(starlette(handler, routes={"/": plain}))
    await request(app).call
    number.set(10)
    await request(app).call
    assert seen == [1, 11]


async def test_nothing_of_a_request_stays_in_the_context_of_its_caller():
    recorder = Recorder()
    app = EventHandlerASGIMiddleware(answer, [recorder])
    async with EventBus([]) as other, app.bus:

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: Any) -> None: ...

        async with other.scope():
            await app({"type": "http", "path": "/200"}, receive, send)
            assert current_bus() is other


# Letting go


class Mortal(dict[str, Any]):
    """A connection scope that can be watched."""


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("name", ["a", None], ids=["with events", "without events"])
async def test_what_outlives_a_connection_keeps_nothing_of_it_alive(kind, name):
    tasks: list[asyncio.Task[None]] = []
    end = asyncio.Event()

    async def outlives() -> None:
        await end.wait()
        dispatch("late")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(outlives()))
        if name is not None:
            dispatch(name, deliver_on="now")
            dispatch(name)

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    recorder = Recorder()
    middleware = EventHandlerASGIMiddleware(app, [recorder])
    connection = Mortal(type=kind)
    reference = weakref.ref(connection)
    await middleware(connection, receive, send)
    del connection
    gc.collect()
    assert reference() is None
    end.set()
    await tasks[0]
    await middleware.bus.drain()
    assert recorder.names == ([name] * 2 if name else []) + ["late"]


# Starting, with a lifespan


async def test_a_bus_lives_with_its_application():
    handler = Lifecycle()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        dispatch("in startup")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        handler.names.append("startup")
        yield
        handler.names.append("shutdown")
        dispatch("in shutdown")

    app = starlette(handler, routes={"/": plain}, lifespan=lifespan)
    async with lifespan_of(app):
        async with asyncio.timeout(5):
            await app_bus(app).drain()
        assert handler.names == ["start", "startup", "in startup"]
        await request(app).call
        app_bus(app).dispatch("just before")
    assert handler.names[3:] == ["a", "just before", "shutdown", "in shutdown", "stop"]


def app_bus(app: Starlette) -> EventBus:
    stack: Any = app.middleware_stack
    while not isinstance(stack, EventHandlerASGIMiddleware):
        stack = stack.app
    return stack.bus


async def test_an_application_starts_again():
    handler = Lifecycle()
    app = starlette(handler, routes={"/": plain})
    for _ in range(2):
        async with lifespan_of(app):
            await request(app).call
    assert handler.names == ["start", "a", "stop"] * 2


async def test_a_handler_that_does_not_start_fails_the_startup_of_the_application():
    first, handler = Lifecycle(), Lifecycle(ConnectionError("no broker"))
    reached: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        reached.append("startup")
        yield

    app = starlette(first, handler, lifespan=lifespan)
    connection = Connection(app, {"type": "lifespan.startup"}, type="lifespan", state={})
    with pytest.raises(ConnectionError):
        await connection.call
    assert connection.types == ["lifespan.startup.failed"]
    assert "no broker" in connection.sent[0]["message"]
    assert reached == []
    assert first.names == ["start", "stop"]
    assert handler.names == ["start"]
    async with lifespan_of(app):
        pass
    assert handler.names == ["start", "start", "stop"]


async def test_what_was_dispatched_in_a_startup_that_failed_is_delivered():
    handler = Lifecycle()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        dispatch("startup.began")
        raise ConnectionError("no database")
        yield

    app = starlette(handler, lifespan=lifespan)
    connection = Connection(app, {"type": "lifespan.startup"}, type="lifespan", state={})
    with pytest.raises(ConnectionError):
        await connection.call
    assert connection.types == ["lifespan.startup.failed"]
    assert handler.names == ["start", "startup.began", "stop"]


async def test_an_application_that_refuses_lifespans_is_started_by_its_first_request():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        dispatch("a")
        await Response()(scope, receive, send)

    handler = Lifecycle()
    middleware = EventHandlerASGIMiddleware(app, [handler])
    with pytest.raises(NotImplementedError):
        await Connection(middleware, {"type": "lifespan.startup"}, type="lifespan").call
    await request(middleware).call
    assert handler.names == ["start", "a"]
    await middleware.bus.stop()


async def test_a_startup_that_ends_without_an_answer_leaves_the_start_to_the_first_request():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            dispatch("in startup")
            raise NotImplementedError
        dispatch("a")
        await Response()(scope, receive, send)

    handler = Lifecycle()
    middleware = EventHandlerASGIMiddleware(app, [handler])
    with pytest.raises(NotImplementedError):
        await Connection(middleware, {"type": "lifespan.startup"}, type="lifespan").call
    await request(middleware).call
    await middleware.bus.drain()
    assert handler.names[0] == "start"
    assert sorted(handler.names[1:]) == ["a", "in startup"]


async def test_both_drains_of_a_shutdown_share_the_timeout(caplog):
    """The first drain takes nearly all of it, so the second ends at once, although its event never would."""
    gate = Gate()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        dispatch("in shutdown")

    app = starlette(gate, routes={"/": plain}, lifespan=lifespan, wait=False, drain_timeout=0.2)
    began = 0.0
    async with lifespan_of(app):
        await request(app).call
        await gate.entered.wait()
        began = time.monotonic()
    assert 0.2 <= time.monotonic() - began < 0.35
    assert gate.ended == []
    lost = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    assert ["event a " in lost[0], "event in shutdown " in lost[1]] == [True, True]


async def test_a_block_and_a_drain_in_the_startup_do_not_hang():
    handler = Lifecycle()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with current_bus().scope():
            dispatch("block")
        await current_bus().drain()
        handler.names.append("startup")
        yield
        async with current_bus().scope():
            dispatch("block")
        await current_bus().drain()
        handler.names.append("shutdown")

    async with lifespan_of(starlette(handler, lifespan=lifespan)):
        pass
    assert handler.names == ["start", "block", "startup", "block", "shutdown", "stop"]


# Starting, without a lifespan


async def test_without_lifespan_the_first_request_starts_the_bus_once():
    handler = Lifecycle()
    app = starlette(handler, routes={"/": plain})
    await asyncio.gather(*(request(app).call for _ in range(5)))
    assert handler.names == ["start"] + ["a"] * 5


async def test_without_lifespan_the_first_dispatch_in_a_loop_starts_the_bus_that_a_middleware_holds():
    handler = Lifecycle()
    middleware = EventHandlerASGIMiddleware(nothing, [handler])
    dispatch("a", bus=middleware.bus)
    await middleware.bus.drain()
    assert handler.names == ["start", "a"]
    await middleware.bus.stop()


async def test_a_drain_waits_for_a_start_under_way():
    class Slow(Lifecycle):
        async def start(self) -> None:
            for _ in range(10):
                await asyncio.sleep(0)
            await super().start()

    handler = Slow()
    middleware = EventHandlerASGIMiddleware(nothing, [handler])
    dispatch("a", bus=middleware.bus)
    assert (await middleware.bus.drain()).delivered == 1
    assert handler.names == ["start", "a"]
    await middleware.bus.stop()


@pytest.mark.parametrize("error", [ConnectionError, ConfigurationError])
async def test_where_a_handler_does_not_start_the_request_goes_on_and_the_next_one_tries_again(error, caplog):
    handler = Lifecycle(error("no broker"))
    app = starlette(handler, routes={"/": plain})
    first = request(app)
    await first.call
    assert first.sent[0]["status"] == 200
    assert handler.names == ["start"]
    assert "no broker" in caplog.text
    assert app_bus(app).stats().pending == 1
    await request(app).call
    await app_bus(app).drain()
    assert handler.names == ["start", "start", "a", "a"]


async def test_where_a_handler_does_not_start_a_dispatch_is_kept_for_the_first_request(caplog):
    handler = Lifecycle(ConnectionError("no broker"))
    app = EventHandlerASGIMiddleware(answer, [handler])
    app.bus.dispatch("early")
    await app.bus.drain()
    assert handler.names == ["start"]
    assert "no broker" in caplog.text
    await request(app, "/200").call
    await app.bus.drain()
    assert handler.names[:2] == ["start", "start"]
    assert "early" in handler.names


# Several middlewares


async def test_a_bus_shared_by_two_middlewares_starts_once_and_delivers_once():
    handler = Lifecycle()
    bus = EventBus([handler])
    app = Starlette(routes=[Route("/", plain)])
    app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
    async with lifespan_of(app):
        await request(app).call
    assert handler.names == ["start", "a", "stop"]


async def test_two_stacks_of_one_list_of_handlers():
    recorder = Recorder()
    handlers = [recorder]
    first, second = starlette(*handlers, routes={"/": plain}), starlette(*handlers, routes={"/": plain})
    for app in (first, second, first):
        await request(app).call
    app.middleware_stack = app.build_middleware_stack()
    await request(app).call
    assert recorder.names == ["a"] * 4


async def test_two_middlewares_with_a_bus_each():
    outer, inner = Recorder(), Recorder()

    class Between:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            dispatch("between")
            await self.app(scope, receive, send)
            dispatch("outer", middleware_id="the outer one")

    app = EventHandlerASGIMiddleware(
        Between(EventHandlerASGIMiddleware(answer, [inner])), [outer], middleware_id="the outer one"
    )
    async with app.bus:
        await request(app, "/200").call
    assert outer.names == ["between", "outer"]
    assert sorted(inner.names) == ["completion", "now", "success"]


# In endpoints


def test_the_bus_is_a_dependency_of_sync_and_async_endpoints():
    recorder = Recorder()
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[recorder])

    @app.get("/sync")
    def sync_endpoint(bus: Annotated[EventBus, Depends(current_bus)]) -> None:
        bus.dispatch("sync")

    @app.get("/async")
    async def async_endpoint(bus: Annotated[EventBus, Depends(current_bus)]) -> None:
        bus.dispatch("async")
        await bus.drain()
        assert recorder.names == ["sync"]

    client = TestClient(app)
    assert client.get("/sync").status_code == client.get("/async").status_code == 200
    assert recorder.names == ["sync", "async"]


async def test_a_block_in_an_endpoint_delivers_before_the_response():
    recorder = Recorder()

    async def endpoint(_: Request) -> Response:
        dispatch("of.request")
        async with current_bus().scope():
            dispatch("of.block")
        return JSONResponse(recorder.names)

    app = starlette(recorder, routes={"/": endpoint})
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/")).json() == ["of.block"]
    assert recorder.names == ["of.block", "of.request"]


async def test_a_drain_in_an_endpoint_waits_for_other_requests_and_not_for_its_own():
    gate = Gate()

    async def draining(_: Request) -> Response:
        dispatch("own")
        report = await current_bus().drain()
        return JSONResponse([report.complete, gate.ended])

    app = starlette(gate, routes={"/": plain, "/drain": draining})
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        other = asyncio.create_task(client.get("/"))
        await gate.entered.wait()
        drain = asyncio.create_task(client.get("/drain"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not drain.done()
        gate.let_go.set()
        assert (await drain).json() == [True, ["a"]]
        await other
    assert gate.ended == ["a", "own"]


async def test_requests_at_once_do_not_mix_their_events():
    batches: list[list[str]] = []

    class Batches(BaseEventHandler):
        async def handle(self, event: Event[object]) -> None: ...

        async def handle_many(self, events: Any) -> None:
            batches.append([event.name for event in events])

    async def endpoint(request: Request) -> Response:
        for _ in range(5):
            dispatch(request.query_params["who"])
            await asyncio.sleep(0)
        return Response()

    app = starlette(Batches(), routes={"/": endpoint})
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        await asyncio.gather(*(client.get(f"/?who={who}") for who in "abc"))
    assert sorted(batches) == [["a"] * 5, ["b"] * 5, ["c"] * 5]


async def test_a_request_within_a_subscriber_has_its_own_events():
    names: list[str] = []
    handler = LocalHandler()
    app = starlette(handler, routes={"/": plain})

    @handler.register
    async def subscriber(event: Event[Any]) -> None:
        names.append(event.name)
        if event.name == "cause":
            await request(app).call
            names.append("after the request")

    app_of_bus = EventHandlerASGIMiddleware(nothing, [handler])
    app_of_bus.bus.dispatch("cause")
    await app_of_bus.bus.drain()
    assert names == ["cause", "a", "after the request"]


async def test_overrides_of_an_application_count_where_the_middleware_is_wrapped_around_it():
    made: list[str] = []
    handler = LocalHandler()

    def settings() -> str:
        return "real"

    @handler.register
    async def subscriber(event: Event[Any], settings: Annotated[str, Depends(settings)]) -> None:
        made.append(settings)

    app = FastAPI()
    app.dependency_overrides[settings] = lambda: "fake"

    @app.get("/")
    async def index() -> None:
        dispatch("a")

    await request(EventHandlerASGIMiddleware(app, [handler])).call
    assert made == ["fake"]


def test_a_connection_that_is_given_to_a_subscriber_is_the_one_of_its_event():
    seen: list[str] = []
    handler = LocalHandler()

    @handler.register
    def subscriber(event: Event[Any], connection: HTTPConnection) -> None:
        seen.append(connection.url.path)

    app = starlette(handler, routes={"/": plain})
    TestClient(app).get("/")
    assert seen == ["/"]


def test_the_log_says_nothing_where_nothing_is_wrong(caplog):
    caplog.set_level(logging.INFO, "fastapi_events")
    with TestClient(starlette(Recorder(), routes={"/": plain})) as client:
        client.get("/")
    assert [record for record in caplog.records if record.name == "fastapi_events"] == []
