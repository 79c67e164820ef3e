"""Serializers of a forward handler."""

import json
from typing import Any

from fastapi_events import Event, EventModel
from fastapi_events.handlers.aws import SQSForwardHandler
from fastapi_events.typing import Serializer


class OrderPlaced(EventModel, name="order.placed"):
    order_id: int


def bare(event: Event) -> str:
    return json.dumps(event)


def of_anything(event: Event[Any]) -> str:
    return event.to_json()


def of_objects(event: Event[object]) -> str:
    return event.name


def to_bytes(event: Event) -> bytes:
    return event.to_json().encode()


async def asynchronous(event: Event) -> str:
    return event.to_json()


def of_nothing() -> str:
    return ""


URL = "https://sqs.eu-west-1.amazonaws.com/1/orders"
SQSForwardHandler(URL, serializer=bare)
SQSForwardHandler(URL, serializer=of_anything)
SQSForwardHandler(URL, serializer=of_objects)
SQSForwardHandler(URL, serializer=Event.to_json)
SQSForwardHandler(URL, serializer=lambda event: json.dumps([event.name, event.payload]))
serializer: Serializer = bare
SQSForwardHandler(URL, serializer=to_bytes)  # E: bytes
SQSForwardHandler(URL, serializer=asynchronous)  # E: an async serializer
SQSForwardHandler(URL, serializer=of_nothing)  # E: no parameter
SQSForwardHandler(URL, serializer=json)  # E: a module
