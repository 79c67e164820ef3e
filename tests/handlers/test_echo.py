"""The handler that shows events to a person."""

import io
import sys
from datetime import UTC, datetime

from fastapi_events import EchoHandler, Event, EventBus, EventModel, dispatch, registry


async def test_shows_name_id_time_and_payload(capsys):
    event = Event("order.placed", {"id": 1}, id="the-id", time=datetime(2026, 1, 31, 12, tzinfo=UTC))
    await EchoHandler().handle(event)
    assert capsys.readouterr().out == "order.placed the-id 2026-01-31T12:00:00+00:00\n  {'id': 1}\n"


async def test_a_long_payload_is_pretty_printed_below_the_name(capsys):
    lines = [{"sku": f"article-{number}", "amount": number} for number in range(5)]
    await EchoHandler().handle(Event("order.placed", {"b": lines, "a": "the order of the keys is kept"}))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("order.placed ")
    assert len(rest) > 3
    assert all(line.startswith("  ") for line in rest)
    assert rest[0].startswith("  {'b': [{'sku': 'article-0', 'amount': 0},")


async def test_writes_to_what_stdout_is_at_that_moment(monkeypatch):
    handler = EchoHandler()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    await handler.handle(Event("a"))
    assert stream.getvalue().startswith("a ")


async def test_writes_to_any_stream_and_in_order(capsys):
    stream = io.StringIO()
    with registry.isolated():

        class OrderPlaced(EventModel, name="order.placed"):
            id: int

        async with EventBus([EchoHandler(stream)]) as bus:
            async with bus.scope():
                dispatch(OrderPlaced(id=1))
                dispatch("second", None)
    shown = stream.getvalue().splitlines()
    assert [line.split()[0] for line in shown[::2]] == ["order.placed", "second"]
    assert shown[1::2] == ["  OrderPlaced(id=1)", "  None"]
    assert capsys.readouterr().out == ""


async def test_takes_plain_tuples(capsys):
    await EchoHandler().handle(("a", {"b": 1}))
    await EchoHandler().handle_many([("c", None)])
    assert "{'b': 1}" in capsys.readouterr().out
