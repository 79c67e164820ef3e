"""Code written for fastapi-events 0.12, unannotated, gives no complaint."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# pyright: basic

from enum import Enum

from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_events.dispatcher import dispatch
from fastapi_events.handlers.aws import SQSForwardHandler
from fastapi_events.handlers.base import BaseEventHandler
from fastapi_events.handlers.echo import EchoHandler
from fastapi_events.handlers.local import local_handler
from fastapi_events.middleware import EventHandlerASGIMiddleware
from fastapi_events.registry.base import BaseEventPayloadSchemaRegistry
from fastapi_events.registry.payload_schema import registry
from fastapi_events.typing import Event


class Events(Enum):
    SIGNED_UP = "SIGNED_UP"


@registry.register
class SignUpPayload(BaseModel):
    __event_name__ = Events.SIGNED_UP
    username: str


@local_handler.register(event_name=Events.SIGNED_UP)
async def unannotated(event):
    name, payload = event
    print(name, payload)


@local_handler.register(event_name="*")
def unannotated_sync(event):
    print(event)


@local_handler.register
async def unannotated_bare(event): ...


@local_handler.register(event_name="cat*")
def annotated(event: Event):
    name, payload = event
    print(name, payload["x"])


@local_handler.register(SignUpPayload)
async def unannotated_of_a_model(event): ...


@local_handler.on
def unannotated_on(event): ...


class Custom(BaseEventHandler):
    async def handle(self, event):
        name, payload = event
        print(name, payload)


class CustomMany(BaseEventHandler):
    async def handle(self, event): ...

    async def handle_many(self, events):
        for event_name, payload in events:
            print(event_name, payload)


class CustomAnnotated(BaseEventHandler):
    async def handle(self, event: Event) -> None:
        print(event[0], event[1]["x"])


own_registry = BaseEventPayloadSchemaRegistry()


@own_registry.register(event_name="SIGNED_OUT")
class SignOutPayload(BaseModel):
    username: str


app = FastAPI()
event_handler_id = id(app)
app.add_middleware(
    EventHandlerASGIMiddleware,
    handlers=[CustomMany(), SQSForwardHandler(queue_url="https://sqs/1/queue", region_name="eu-central-1")],
    middleware_id=event_handler_id,
)
app.add_middleware(EventHandlerASGIMiddleware, handlers=[local_handler, EchoHandler(), Custom(), CustomAnnotated()])


@app.get("/")
def index():
    dispatch(Events.SIGNED_UP, payload={"username": "a"})
    dispatch("cat", payload={"x": 1})
    dispatch(event_name="cat", payload={"x": 1})
    dispatch(SignUpPayload(username="a"))
    dispatch(SignUpPayload(username="a"), event_name="other")
    dispatch("cat", middleware_id=event_handler_id)
    dispatch("SIGNED_OUT", {"username": "a"}, payload_schema_registry=own_registry)
    dispatch("cat", {"x": 1}, payload_schema_registry=registry, validate_payload=False, payload_schema_dump=True)
