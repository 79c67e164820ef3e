"""What reads the messages: this library, AWS Lambda Powertools, SNS and EventBridge."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.parser import parse
from aws_lambda_powertools.utilities.parser.envelopes import SqsEnvelope
from aws_lambda_powertools.utilities.parser.models import SqsRecordModel
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, Json

from fastapi_events import Event, EventHandlerASGIMiddleware, EventModel, dispatch
from fastapi_events.handlers.aws import SQSForwardHandler

from .moto import CREDENTIALS, MotoServer, Queue


class ParcelSent(EventModel, name="parcel.sent", version=3):
    number: int
    note: str = ""


class ParcelSentCloudEvent(BaseModel):
    """What a reader that has pydantic but not this library writes."""

    specversion: str
    id: str
    type: str
    source: str
    dataversion: int
    data: ParcelSent


class ParcelSentRecord(SqsRecordModel):
    body: Json[ParcelSentCloudEvent]


PARCELS = [ParcelSent(number=1, note="grüße 📦"), ParcelSent(number=2), ParcelSent(number=3, note='"\\\n')]


@pytest.fixture
def sent(queue: Queue, moto: MotoServer) -> list[Event[Any]]:
    """Events that an application has dispatched and forwarded to the queue."""
    events: list[Event[Any]] = []
    app = FastAPI()
    handler = SQSForwardHandler(queue.url, endpoint_url=moto.endpoint, attributes=["tenant"], **CREDENTIALS)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])

    @app.post("/parcels")
    async def send_parcels() -> None:
        headers = {"tenant": "t1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        events.extend(dispatch(parcel, headers=headers, subject=f"parcel/{parcel.number}") for parcel in PARCELS)

    with TestClient(app) as client:
        assert client.post("/parcels").status_code == 200
    return events


def lambda_event(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what AWS Lambda is called with for messages of a queue."""
    return {
        "Records": [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "messageAttributes": {
                    name: {
                        "dataType": value["DataType"],
                        "stringValue": value["StringValue"],
                        "stringListValues": [],
                        "binaryListValues": [],
                    }
                    for name, value in message["MessageAttributes"].items()
                },
                "md5OfBody": message["MD5OfBody"],
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:events",
                "awsRegion": "eu-west-1",
            }
            for message in messages
        ]
    }


def test_this_library_reads_typed_events(queue: Queue, sent: list[Event[Any]]) -> None:
    messages = queue.messages()

    received = [Event.from_json(message["Body"]) for message in messages]

    assert [event.payload for event in received] == PARCELS
    for event, original in zip(received, sent, strict=True):
        assert event == original
        for attribute in ("id", "time", "source", "subject", "version", "headers"):
            assert getattr(event, attribute) == getattr(original, attribute)
    assert {name: value["StringValue"] for name, value in messages[0]["MessageAttributes"].items()} == {
        "contentType": "application/cloudevents+json",
        "type": "parcel.sent",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tenant": "t1",
    }


def test_powertools_parser_reads_the_bodies(queue: Queue, sent: list[Event[Any]]) -> None:
    event = lambda_event(queue.messages())

    parsed = parse(event=event, model=ParcelSentCloudEvent, envelope=SqsEnvelope)

    assert [body.data for body in parsed] == PARCELS
    assert [body.id for body in parsed] == [original.id for original in sent]
    assert {body.dataversion for body in parsed} == {3}


def test_powertools_batch_processor_reads_typed_records_and_reports_the_one_that_failed(
    queue: Queue, sent: list[Event[Any]]
) -> None:
    messages = queue.messages()
    seen: list[ParcelSent] = []

    def handle(record: ParcelSentRecord) -> None:
        seen.append(record.body.data)
        if record.body.data.number == 2:
            raise ValueError("try again")

    response = process_partial_response(
        event=lambda_event(messages),
        record_handler=handle,
        processor=BatchProcessor(event_type=EventType.SQS, model=ParcelSentRecord),
        context=None,
    )

    assert seen == PARCELS
    assert response == {"batchItemFailures": [{"itemIdentifier": messages[1]["MessageId"]}]}


def test_powertools_batch_processor_and_from_json_work_together(queue: Queue, sent: list[Event[Any]]) -> None:
    seen: list[Event[Any]] = []

    def handle(record: SQSRecord) -> None:
        seen.append(Event.from_json(record.body))

    process_partial_response(
        event=lambda_event(queue.messages()),
        record_handler=handle,
        processor=BatchProcessor(event_type=EventType.SQS),
        context=None,
    )

    assert seen == sent


def test_a_body_passes_sns_with_raw_delivery_unchanged(moto: MotoServer, queue: Queue, sent: list[Event[Any]]) -> None:
    sns = moto.client("sns")
    topic = sns.create_topic(Name=uuid.uuid4().hex)["TopicArn"]
    subscriber = Queue(queue.client, uuid.uuid4().hex)
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=subscriber.arn, Attributes={"RawMessageDelivery": "true"})

    for message in queue.messages():
        sns.publish(TopicArn=topic, Message=message["Body"], MessageAttributes=message["MessageAttributes"])
    sns.close()

    relayed = subscriber.messages()
    assert [Event.from_json(message["Body"]) for message in relayed] == sent
    assert relayed[0]["MessageAttributes"]["type"]["StringValue"] == "parcel.sent"


def test_a_body_is_a_detail_that_eventbridge_routes_by_its_type(
    moto: MotoServer, queue: Queue, sent: list[Event[Any]]
) -> None:
    bridge = moto.client("events")
    rule = uuid.uuid4().hex
    target = Queue(queue.client, uuid.uuid4().hex)
    bridge.put_rule(Name=rule, EventPattern=json.dumps({"detail": {"type": ["parcel.sent"], "data": {"number": [2]}}}))
    bridge.put_targets(Rule=rule, Targets=[{"Id": "1", "Arn": target.arn}])

    bridge.put_events(
        Entries=[
            {"Source": "shop", "DetailType": "parcel.sent", "Detail": message["Body"], "Time": time.time()}
            for message in queue.messages()
        ]
    )
    bridge.close()

    [routed] = [json.loads(message["Body"]) for message in target.messages()]
    assert routed["detail-type"] == "parcel.sent"
    assert Event.from_json(json.dumps(routed["detail"])) == sent[1]
