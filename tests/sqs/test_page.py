"""The Python of docs/sqs.md does what the page says."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fastapi_events import Event, EventBus, only, registry

from .moto import CREDENTIALS, MotoServer, Queue

PAGE = (Path(__file__).parents[2] / "docs" / "sqs.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def aws(moto: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The environment that the page assumes, and a client for it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", CREDENTIALS["region_name"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    with registry.isolated():
        client = moto.client("sqs")
        yield client
        for url in client.list_queues().get("QueueUrls", []):
            if re.search(r"/(orders|dead)(\.fifo)?$", url):  # the names that the page has
                client.delete_queue(QueueUrl=url)
        client.close()


def test_the_page_runs(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    queue = Queue(aws, "orders")
    fifo = Queue(aws, "orders.fifo", **settings("orders.fifo", Queue(aws, "dead.fifo").arn))
    application, serializer, ordered, reader, in_lambda, _ = BLOCKS
    page: dict[str, Any] = {}

    exec(application, page)
    with TestClient(page["app"]) as client:
        client.post("/orders/1?customer=ada")
    [first] = queue.messages()
    assert Event.from_json(first["Body"]).payload == page["OrderPlaced"](id=1, customer="ada")

    exec(serializer, page)
    asyncio.run(send(page["handler"], Event("order.placed", page["OrderPlaced"](id=2, customer="grace"))))
    [message] = queue.messages()
    assert json.loads(message["Body"]) == ["order.placed", {"id": 2, "customer": "grace"}]
    assert "contentType" not in message["MessageAttributes"]

    exec(ordered, page)
    asyncio.run(send(page["handler"], Event("order.placed", {"id": 3, "customer": "joan"}, subject="order/3", id="3")))
    [message] = fifo.messages()
    assert message["Attributes"]["MessageGroupId"] == "order/3"
    assert message["Attributes"]["MessageDeduplicationId"] == "3"

    exec(reader.replace("WaitTimeSeconds=20", "WaitTimeSeconds=0"), page)
    asyncio.run(send(page["handler"], Event("order.placed", {"id": 5, "customer": "lynn"}, id="5")))
    page["read"](fifo.url)
    assert capsys.readouterr().out == "order.placed id=5 customer='lynn' 5\n"
    assert fifo.messages() == []

    record = {"messageId": "m1", "body": first["Body"], "eventSource": "aws:sqs"}
    for code in (in_lambda, for_fifo_queues(in_lambda)):
        exec(code, page)
        assert page["lambda_handler"]({"Records": [record]}, None) == {"batchItemFailures": []}
        assert capsys.readouterr().out == "order 1 was placed by ada\n"


def test_what_could_not_be_sent_is_sent_again_as_the_page_shows(aws: Any) -> None:
    application, *_, dead_letters = BLOCKS
    page: dict[str, Any] = {}

    exec(application, page)
    with TestClient(page["app"]) as client:  # there is no queue yet
        client.post("/orders/4?customer=mary")
    [letter] = Path("not-sent.jsonl").read_text().splitlines()
    queue = Queue(aws, "orders", **settings("orders", Queue(aws, "dead").arn))
    exec(dead_letters, page)
    asyncio.run(page["send_again"]())

    [message] = queue.messages()
    event = Event.from_json(message["Body"])
    assert event.id == json.loads(letter)["id"]
    assert event.payload.id == 4
    assert "NonExistentQueue" in event.headers["dlmessage"]


def test_the_handler_is_wrapped_to_forward_only_some_events(aws: Any) -> None:
    queue = Queue(aws, "orders")
    page: dict[str, Any] = {}
    exec(BLOCKS[0], page)
    [wrapped] = re.findall(r"`(only\(handler, .*?\))`", PAGE)

    async def forward() -> None:
        async with EventBus([eval(wrapped, {**page, "only": only})]) as bus:
            bus.dispatch(page["OrderPlaced"](id=1, customer="ada"))
            bus.dispatch("invoice.paid")
            bus.dispatch("order.cancelled")

    asyncio.run(forward())
    assert {Event.from_json(message["Body"]).name for message in queue.messages()} == {"order.placed", "invoice.paid"}


def test_the_policy_is_one_that_iam_reads(moto: MotoServer) -> None:
    iam = moto.client("iam")
    [policy] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)

    made = iam.create_policy(PolicyName="sender", PolicyDocument=policy)["Policy"]
    iam.delete_policy(PolicyArn=made["Arn"])
    iam.close()

    [statement] = json.loads(policy)["Statement"]
    assert statement["Action"] == ["sqs:SendMessage", "sqs:GetQueueAttributes"]


def settings(name: str, dead_letter_arn: str) -> dict[str, str]:
    """Return what the page recommends for a queue."""
    rows = dict(re.findall(r"^\| (`[A-Z].*?`) \| (.*?) \|$", PAGE, re.MULTILINE))
    recommended = {
        "MessageRetentionPeriod": str(14 * 24 * 3600),
        "RedrivePolicy": rows["`RedrivePolicy`"].split("`")[1].replace("…", dead_letter_arn),
    }
    if name.endswith(".fifo"):
        recommended["ContentBasedDeduplication"] = "false"
        names = "`DeduplicationScope`, `FifoThroughputLimit`"
        recommended.update(zip(re.findall("`(.*?)`", names), re.findall("`(.*?)`", rows[names]), strict=True))
    return recommended


def for_fifo_queues(code: str) -> str:
    """Return a Lambda function's code as the page says it must be for FIFO queues."""
    code = code.replace("import BatchProcessor, EventType,", "import SqsFifoPartialProcessor,")
    return code.replace("BatchProcessor(event_type=EventType.SQS)", "SqsFifoPartialProcessor()")


async def send(handler: Any, event: Event[Any]) -> None:
    await handler.handle(event)
    await handler.stop()
