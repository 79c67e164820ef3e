"""Code written for fastapi-events 0.12.2, as its README shows it, with what docs/migration.md says has changed."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pydantic
import pytest
from fastapi import Depends, FastAPI
from fastapi.requests import Request
from fastapi.responses import JSONResponse
from litestar import Litestar, get
from litestar.enums import MediaType
from litestar.middleware import DefineMiddleware
from litestar.testing import TestClient as LitestarClient
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_events import errors
from fastapi_events.dispatcher import dispatch
from fastapi_events.handlers.aws import SQSForwardHandler
from fastapi_events.handlers.base import BaseEventHandler
from fastapi_events.handlers.echo import EchoHandler
from fastapi_events.handlers.local import LocalHandler, local_handler
from fastapi_events.handlers.null import NullHandler
from fastapi_events.middleware import EventHandlerASGIMiddleware
from fastapi_events.registry.base import BaseEventPayloadSchemaRegistry
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, registry as payload_schema
from fastapi_events.typing import Event
from tests.asgi import lifespan_of, request


class MyOwnEventHandler(BaseEventHandler):
    """The handler of the README."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def handle(self, event: Event) -> None:
        self.events.append(event)

    async def handle_many(self, events: Iterable[Event]) -> None:
        for event in events:
            await self.handle(event)


def application(*handlers: BaseEventHandler, **options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=list(handlers), **options)
    return app


def dispatch_in_request(*arguments: Any, middleware: dict[str, Any] | None = None, **options: Any) -> list[Event]:
    """Return what a handler receives of one dispatch() in an endpoint."""
    handler = MyOwnEventHandler()
    app = application(handler, **(middleware or {}))

    @app.get("/")
    def index(request: Request) -> JSONResponse:
        dispatch(*arguments, **options)
        return JSONResponse({"detail": {"msg": "hello world"}})

    with TestClient(app) as client:
        assert client.get("/").json() == {"detail": {"msg": "hello world"}}
    return handler.events


# Usage


def test_fastapi():
    (event,) = dispatch_in_request("my-fancy-event", payload={"id": 1})
    event_name, payload = event
    assert (event_name, payload) == ("my-fancy-event", {"id": 1})


def test_starlette():
    handler = MyOwnEventHandler()

    async def root(request: Request) -> JSONResponse:
        dispatch("new event", payload={"id": 1})
        return JSONResponse({})

    app = Starlette(
        routes=[Route("/", root)],
        middleware=[Middleware(EventHandlerASGIMiddleware, handlers=[handler])],
    )
    TestClient(app).get("/")
    assert handler.events == [("new event", {"id": 1})]


def test_starlite_now_called_litestar():
    handler = MyOwnEventHandler()

    @get(path="/", media_type=MediaType.TEXT)
    async def root() -> str:
        dispatch("new event", payload={"id": 1})
        return "OK"

    app = Litestar(middleware=[DefineMiddleware(EventHandlerASGIMiddleware, handlers=[handler])], route_handlers=[root])
    with LitestarClient(app) as client:
        client.get("/")
    assert handler.events == [("new event", {"id": 1})]


# Dispatching


class CatRequestedAFishEvent(pydantic.BaseModel):
    __event_name__ = "cat-requested-a-fish"

    cat_id: pydantic.UUID4


CAT = uuid.UUID("fd375d23-b0c9-4271-a9e0-e028c4cd7230")


def test_dispatching_a_dict_and_nothing():
    assert dispatch_in_request("cat-requested-a-fish", payload={"cat_id": str(CAT)}) == [
        ("cat-requested-a-fish", {"cat_id": str(CAT)})
    ]
    assert dispatch_in_request("a_cat_is_spotted") == [("a_cat_is_spotted", None)]


def test_dispatching_a_model():
    model = CatRequestedAFishEvent(cat_id=CAT)
    assert dispatch_in_request(model) == [("cat-requested-a-fish", model)]
    assert dispatch_in_request(model, event_name="other") == [("other", model)]
    assert dispatch_in_request(model, payload_schema_dump=True) == [("cat-requested-a-fish", {"cat_id": CAT})]
    assert dispatch_in_request(model, middleware={"payload_schema_dump": True}) == [
        ("cat-requested-a-fish", {"cat_id": CAT})
    ]
    (event,) = dispatch_in_request(model, payload_schema_dump=False, middleware={"payload_schema_dump": True})
    assert event[1] == model


# Validation


class UserEvents(Enum):
    SIGNED_UP = "USER_SIGNED_UP"
    ACTIVATED = "USER_ACTIVATED"


@pytest.fixture
def sign_up():
    with payload_schema.isolated():

        @payload_schema.register(event_name=UserEvents.SIGNED_UP)
        class SignUpPayload(BaseModel):
            user_id: uuid.UUID
            created_at: datetime
            newsletter: bool = False

        yield SignUpPayload


USER = {"user_id": "9e79cdbb-b216-40f7-9a05-20d223dee89a", "created_at": datetime(2026, 1, 31, tzinfo=UTC)}


@pytest.mark.parametrize("name", [UserEvents.SIGNED_UP, "USER_SIGNED_UP"])
def test_the_payload_of_a_registered_name_is_validated(sign_up, name):
    with pytest.raises(pydantic.ValidationError):
        dispatch_in_request(name)
    with pytest.raises(pydantic.ValidationError):
        dispatch_in_request(name, {"user_id": USER["user_id"]})
    assert dispatch_in_request(name, USER) == [("USER_SIGNED_UP", sign_up(**USER))]
    assert dispatch_in_request(event_name=name, payload=USER, payload_schema_dump=True) == [
        (
            "USER_SIGNED_UP",
            {"user_id": uuid.UUID(USER["user_id"]), "created_at": USER["created_at"], "newsletter": False},
        )
    ]


def test_validation_may_be_left_out(sign_up):
    assert dispatch_in_request(UserEvents.SIGNED_UP, {"a": 1}, validate_payload=False) == [("USER_SIGNED_UP", {"a": 1})]


def test_a_name_without_schema_passes(sign_up):
    payload = {"user_id": "9e79cdbb-b216-40f7-9a05-20d223dee89a"}
    assert dispatch_in_request(UserEvents.ACTIVATED, payload) == [("USER_ACTIVATED", payload)]


def test_a_schema_may_name_itself():
    with payload_schema.isolated():

        @payload_schema.register
        class SignUpPayload(BaseModel):
            __event_name__ = "USER_SIGNED_UP"

            user_id: uuid.UUID

        payload = SignUpPayload(user_id=USER["user_id"])
        assert payload_schema["USER_SIGNED_UP"] is payload_schema.get(UserEvents.SIGNED_UP) is SignUpPayload
        assert dispatch_in_request(payload) == [("USER_SIGNED_UP", payload)]


@pytest.mark.parametrize("base", [BaseEventPayloadSchemaRegistry, EventPayloadSchemaRegistry])
def test_a_registry_of_ones_own(base):
    class MyRegistry(base):
        pass

    own = MyRegistry()

    @own.register(event_name="number")
    class Number(BaseModel):
        value: int

    assert dispatch_in_request("number", {"value": "1"}, payload_schema_registry=own) == [("number", Number(value=1))]
    assert dispatch_in_request("number", {"value": "1"}) == [("number", {"value": "1"})]


# Errors


def test_the_errors_that_people_catch():
    with pytest.raises(errors.MultiplePayloadsDetectedDuringDispatch):
        dispatch_in_request(CatRequestedAFishEvent(cat_id=CAT), payload={"cat_id": CAT})
    with pytest.raises(errors.MissingEventNameError):
        dispatch_in_request(payload={"a": 1})
    with pytest.raises(errors.MissingEventNameDuringDispatch):
        dispatch_in_request(payload={"a": 1})
    with pytest.raises(errors.MissingEventNameDuringRegistration):

        @payload_schema.register
        class Nameless(BaseModel):
            pass

    with pytest.raises(errors.ConfigurationError):

        @payload_schema.register(event_name="no model")
        class NoModel:
            pass

    assert issubclass(errors.MultiplePayloadsDetectedDuringDispatch, ValueError)
    assert issubclass(errors.MissingEventNameDuringDispatch, errors.FastapiEventError)
    assert issubclass(errors.FastapiEventError, Exception)
    assert issubclass(errors.NoBusError, LookupError)


def test_a_dispatch_in_no_application_is_a_lookup_error():
    async def main() -> None:
        with pytest.raises(LookupError):
            dispatch("date", middleware_id=-1)

    asyncio.run(main())


# Handling


@pytest.fixture
def heard():
    """Return what the subscribers of the README hear, on the handler of the module."""
    names: list[tuple[str, str]] = []

    @local_handler.register(event_name="cat*")
    def handle_all_cat_events(event: Event) -> None:
        event_name, _payload = event
        names.append(("cat", event_name))

    @local_handler.register(event_name="cat*")
    def handle_all_cat_events_another_way(event: Event) -> None:
        names.append(("another way", event[0]))

    @local_handler.register(event_name="*")
    async def handle_all_events(event: Event) -> None:
        names.append(("all", event[0]))

    @local_handler.register
    async def bare(event: Event) -> None:
        names.append(("bare", event[0]))

    yield names
    for function in (handle_all_cat_events, handle_all_cat_events_another_way, handle_all_events, bare):
        local_handler.unregister(function)


def test_events_are_handled_locally(heard):
    app = application(local_handler)

    @app.get("/{name}")
    async def index(name: str) -> None:
        dispatch(name)

    client = TestClient(app)
    client.get("/cat_eats_a_fish")
    client.get("/dog")
    assert sorted(heard) == sorted(
        [(who, "cat_eats_a_fish") for who in ("cat", "another way", "all", "bare")] + [("all", "dog"), ("bare", "dog")]
    )


def test_a_subscriber_by_event_name_receives_the_event_whatever_its_annotation_says():
    handler = LocalHandler()
    received: list[tuple[Any, Any]] = []

    @handler.register(event_name="user.*")
    async def as_a_dict(event: dict) -> None:
        name, payload = event
        received.append((name, payload))

    @handler.register(event_name="user.*")
    def as_a_model(event: CatRequestedAFishEvent, depending: Any = Depends(lambda: None)) -> None:
        name, payload = event
        received.append((name, payload))

    async def as_a_list(event: list) -> None:
        name, payload = event
        received.append((name, payload))

    handler.register(as_a_list, event_name="user.*")
    app = application(handler)

    @app.get("/")
    def index() -> None:
        dispatch("user.signed_up", {"name": "Ada", "mail": "ada@example.org"})

    TestClient(app).get("/")
    assert received == [("user.signed_up", {"name": "Ada", "mail": "ada@example.org"})] * 3


def test_a_subscriber_receives_the_event_for_all_its_names_or_for_none():
    def takes_payload(payload: CatRequestedAFishEvent) -> None: ...
    def takes_event(event: Event) -> None: ...
    def takes_either(event: Event | CatRequestedAFishEvent) -> None: ...

    for first, second in (({}, {"event_name": "a"}), ({"event_name": "a"}, {})):
        handler = LocalHandler()
        handler.register(takes_payload, **first)
        with pytest.raises(errors.SubscriberError, match="use event_name= for all its events"):
            handler.register(takes_payload, **second)
        handler.register(takes_event, **first)
        handler.register(takes_event, **second)
    handler.register(takes_either, event_name="a")


def test_dependencies_in_subscribers():
    handler = LocalHandler()
    seen: list[str] = []

    async def get_db_conn() -> str:
        return "connection"

    async def get_db_session(db_conn: str = Depends(get_db_conn)) -> str:
        return f"session on a {db_conn}"

    @handler.register(event_name="*")
    async def handle_all_events(event: Event, db_session: str = Depends(get_db_session)) -> None:
        seen.append(db_session)

    app = application(handler)

    @app.get("/")
    def index() -> None:
        dispatch("a")

    TestClient(app).get("/")
    assert seen == ["session on a connection"]


def test_events_dispatched_within_subscribers():
    handler = LocalHandler()
    names: list[str] = []

    @handler.register(event_name="cat-spotted")
    async def chain(event: Event) -> None:
        dispatch("cat-fed", payload={"fish": 1})

    @handler.register(event_name="cat-fed")
    def fed(event: Event) -> None:
        names.append(event[0])
        if event[1]["fish"] < 3:
            dispatch("cat-fed", payload={"fish": event[1]["fish"] + 1})

    app = application(handler)

    @app.get("/")
    def index() -> None:
        dispatch("cat-spotted")

    TestClient(app).get("/")
    assert names == ["cat-fed"] * 3


def test_a_custom_handler_that_handles_one_by_one():
    class OneByOne(BaseEventHandler):
        def __init__(self, prefix: str) -> None:  # without super().__init__(), which did not exist
            self.lines: list[str] = []
            self.prefix = prefix

        async def handle(self, event: Event) -> None:
            assert isinstance(event, tuple)
            assert len(event) == 2
            self.lines.append(self.prefix + json.dumps(event))

    handler = OneByOne("> ")
    app = application(handler, NullHandler())

    @app.get("/")
    def index() -> None:
        dispatch("a", payload={"b": 1})
        dispatch(UserEvents.ACTIVATED)

    TestClient(app).get("/")
    assert handler.lines == ['> ["a", {"b": 1}]', '> ["USER_ACTIVATED", null]']


@pytest.mark.parametrize("event", [("cat", {"id": 1}), (UserEvents.ACTIVATED, None)])
async def test_plain_tuples_are_taken_by_the_built_in_handlers(event, heard, capsys):
    for handler in (EchoHandler(), NullHandler(), local_handler):
        await handler.handle(event)
        await handler.handle_many([event, event])
    name = event[0] if isinstance(event[0], str) else event[0].value
    assert heard.count(("all", name)) == 3
    assert capsys.readouterr().out.count(name) == 3


def test_the_sqs_handler_is_made_as_before():
    url = "https://sqs.eu-central-1.amazonaws.com/123456789012/test-queue"
    handler = SQSForwardHandler(queue_url=url, region_name="eu-central-1")
    assert isinstance(handler, BaseEventHandler)
    SQSForwardHandler(url, "eu-central-1", serializer=lambda event: json.dumps(event), max_batch_size=5)


# Cookbook


@pytest.mark.parametrize("value", ["1", "True", "true", "on", "yes"])
def test_suppressing_events(value, monkeypatch):
    monkeypatch.setenv("FASTAPI_EVENTS_DISABLE_DISPATCH", value)
    assert dispatch_in_request("a") == []


async def test_dispatching_outside_of_a_request_by_middleware_id():
    handler = MyOwnEventHandler()
    tasks: list[asyncio.Task[None]] = []
    app: FastAPI

    async def dispatch_task() -> None:
        for index in range(3):
            dispatch("date", payload={"idx": index}, middleware_id=event_handler_id)
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:  # the README has on_event, which Starlette has dropped
        tasks.append(asyncio.create_task(dispatch_task()))
        yield

    app = FastAPI(lifespan=lifespan)
    event_handler_id: int = id(app)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler], middleware_id=event_handler_id)

    @app.get("/")
    def index(request: Request) -> JSONResponse:
        dispatch("hello", payload={"id": 1})
        return JSONResponse({"detail": {"msg": "hello world"}})

    async with lifespan_of(app):
        await request(app).call
        await tasks[0]
    assert sorted(handler.events, key=repr) == [
        ("date", {"idx": 0}),
        ("date", {"idx": 1}),
        ("date", {"idx": 2}),
        ("hello", {"id": 1}),
    ]
