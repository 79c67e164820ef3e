"""The handler that does nothing."""

from fastapi_events import Event, EventBus, NullHandler


async def test_takes_everything_and_does_nothing(capsys):
    async with EventBus([NullHandler()]) as bus:
        bus.dispatch("a", {"b": 1})
        await bus.drain()
        assert bus.stats().delivered == 1
        assert bus.stats().unheard == 0
    assert capsys.readouterr() == ("", "")


async def test_plain_tuples_vanish_too(capsys):
    await NullHandler().handle(("a", {"b": 1}))
    await NullHandler().handle_many([("a", None), Event("b")])
    assert capsys.readouterr() == ("", "")
