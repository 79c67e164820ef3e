"""The Python of docs/sqs.md does what the page says."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fastapi_events import Event, registry

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
        client.close()


def test_the_page_runs(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    queue, fifo = Queue(aws, "orders"), Queue(aws, "orders.fifo")
    application, serializer, ordered, reader, in_lambda, dead_letters = BLOCKS
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

    exec(in_lambda, page)
    record = {"messageId": "m1", "body": first["Body"], "eventSource": "aws:sqs"}
    assert page["lambda_handler"]({"Records": [record]}, None) == {"batchItemFailures": []}
    assert capsys.readouterr().out == "order 1 was placed by ada\n"

    exec(dead_letters, page)
    Path("not-sent.jsonl").write_text(Event("order.placed", {"id": 4, "customer": "mary"}, id="4").to_json() + "\n")
    asyncio.run(page["send_again"]())
    [message] = fifo.messages()
    assert Event.from_json(message["Body"]).payload.id == 4


async def send(handler: Any, event: Event[Any]) -> None:
    await handler.handle(event)
    await handler.stop()
