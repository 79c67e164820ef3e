"""Events on their way into queues of moto, with the clients that users have."""

import asyncio
import socket
import time
from contextlib import ExitStack
from typing import Any

import pytest
from botocore.config import Config
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fastapi_events import Event, EventHandlerASGIMiddleware, ForwardError, dispatch
from fastapi_events.handlers.aws import SQSForwardHandler

from .moto import CREDENTIALS, MotoServer, Queue
from .proxy import Fault, FaultProxy


def payloads(queue: Queue) -> list[Any]:
    return [Event.from_json(message["Body"]).payload for message in queue.messages()]


def app_with(handler: SQSForwardHandler) -> FastAPI:
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])

    @app.post("/orders/{number}")
    async def place_order(number: int) -> None:
        dispatch("order.placed", number)

    return app


def test_a_client_without_a_lifespan_gives_every_request_a_loop_of_its_own(queue: Queue, moto: MotoServer) -> None:
    client = TestClient(app_with(SQSForwardHandler(queue.url, endpoint_url=moto.endpoint, **CREDENTIALS)))

    for number in range(3):
        assert client.post(f"/orders/{number}").status_code == 200

    assert payloads(queue) == [0, 1, 2]


def test_the_environment_says_where_sqs_is_and_who_asks(
    queue: Queue, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    with TestClient(app_with(SQSForwardHandler(queue.url))) as client:
        client.post("/orders/1")

    assert payloads(queue) == [1]


async def test_a_client_of_the_users_own_is_used_and_left_open(queue: Queue) -> None:
    handler = SQSForwardHandler(queue.url, client=queue.client)

    await handler.start()
    await handler.handle_many([("order.placed", 1)])
    await handler.stop()

    assert payloads(queue) == [1]


async def test_the_limits_of_the_queue_are_asked_for(moto: MotoServer, queue: Queue) -> None:
    small = Queue(queue.client, f"{queue.url.rpartition('/')[2]}-small", MaximumMessageSize="1024")
    handler = SQSForwardHandler(small.url, endpoint_url=moto.endpoint, **CREDENTIALS)

    await handler.start()
    with pytest.raises(ForwardError, match="the queue takes 1,024"):
        await handler.handle_many([("order.placed", 1), ("order.placed", "x" * 1024)])
    await handler.stop()

    assert payloads(small) == [1]


async def test_a_queue_that_was_made_smaller_since_refuses_only_what_is_too_large(
    moto: MotoServer, queue: Queue
) -> None:
    handler = SQSForwardHandler(queue.url, endpoint_url=moto.endpoint, **CREDENTIALS)
    await handler.start()
    queue.client.set_queue_attributes(QueueUrl=queue.url, Attributes={"MaximumMessageSize": "1024"})

    with pytest.raises(ForwardError) as raised:
        await handler.handle_many([("order.placed", 1), ("order.placed", "x" * 1024), ("order.placed", 2)])
    await handler.stop()

    [(event, reason)] = raised.value.rejected
    assert event.payload == "x" * 1024
    assert reason.startswith("InvalidParameterValue: ")
    assert sorted(payloads(queue)) == [1, 2]


async def test_messages_of_a_megabyte_in_all_share_a_call_and_more_do_not(
    moto: MotoServer, queue: Queue, proxy: FaultProxy
) -> None:
    handler = SQSForwardHandler(proxy.url(queue.url), endpoint_url=proxy.endpoint, linger=0.5, **CREDENTIALS)
    whole = 1_048_576 - 500  # leaves room for the envelope and the attributes

    await handler.start()
    await handler.handle_many([("a", "x" * whole), *(("a", "x" * (whole // 4 - 500)) for _ in range(4))])
    await handler.stop()

    assert sorted(proxy.calls) == [1, 4]
    assert len(queue.messages()) == 5


async def test_a_queue_that_is_not_there_rejects_every_event_at_once(moto: MotoServer, queue: Queue) -> None:
    handler = SQSForwardHandler(f"{queue.url}-gone", endpoint_url=moto.endpoint, **CREDENTIALS)

    with pytest.raises(ForwardError) as raised:
        await handler.handle_many([("order.placed", 1), ("order.placed", 2)])
    await handler.stop()

    assert len(raised.value.rejected) == 2
    assert "NonExistentQueue" in raised.value.rejected[0].reason


async def test_an_endpoint_that_is_not_there_is_tried_again_until_the_time_is_over() -> None:
    handler = SQSForwardHandler(
        "http://127.0.0.1:1/123456789012/events", endpoint_url="http://127.0.0.1:1", retry_for=0.3, **CREDENTIALS
    )

    with pytest.raises(ForwardError, match=r"EndpointConnectionError: .* \(attempts: \d+, within 0\.3 s\)"):
        await handler.handle_many([("order.placed", 1)])
    await handler.stop()


async def test_a_call_without_answer_is_made_again_after_ten_seconds(queue: Queue, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault("hang"))
    handler = SQSForwardHandler(proxy.url(queue.url), endpoint_url=proxy.endpoint, **CREDENTIALS)

    await handler.start()
    begin = time.monotonic()
    await handler.handle_many([("order.placed", 1)])
    took = time.monotonic() - begin
    await handler.stop()

    assert 10 <= took < 14
    assert proxy.calls == [1, 1]
    assert payloads(queue) == [1]


async def test_an_endpoint_that_does_not_take_connections_is_given_up_after_three_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ExitStack() as sockets:
        silent = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # more than its queue holds
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        handler = SQSForwardHandler(f"{endpoint}/1/events", endpoint_url=endpoint, **CREDENTIALS)
        begin = time.monotonic()
        await handler.start()
        took = time.monotonic() - begin
        await handler.stop()

    assert "ConnectTimeoutError" in caplog.text
    assert 3 <= took < 7


async def test_boto3s_own_options_are_honoured(queue: Queue, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault("hang"))
    handler = SQSForwardHandler(
        proxy.url(queue.url),
        endpoint_url=proxy.endpoint,
        config=Config(read_timeout=0.5, retries={"total_max_attempts": 2, "mode": "standard"}),
        retry_for=0.1,
        **CREDENTIALS,
    )

    await handler.start()
    with pytest.raises(ForwardError, match=r"no answer within 0\.1 s: it may have arrived"):
        await handler.handle_many([("order.placed", 1)])
    async with asyncio.timeout(8):  # less than the read timeout that the handler sets
        while len(proxy.calls) < 2:
            await asyncio.sleep(0.01)
    await handler.handle_many([("order.placed", 2)])
    await handler.stop()

    assert sorted(payloads(queue)) == [1, 2]  # the first by boto3's own second attempt
