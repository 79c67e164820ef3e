"""The handler that keeps events in a file."""

import asyncio
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fastapi_events import Event, EventBus, EventModel, FileHandler, LocalHandler, PayloadError, dispatch, registry


async def test_writes_one_event_a_line_and_reads_them_back(tmp_path):
    handler = FileHandler(tmp_path / "events.jsonl")
    with registry.isolated():

        class OrderPlaced(EventModel, name="order.placed", version=2):
            id: int

        async with EventBus([handler]) as bus:
            async with bus.scope():
                first = dispatch(OrderPlaced(id=1), subject="1", headers={"tenant": "x"})
                second = dispatch("plain", {"text": "two\nlines", "sign": "\u2028"})
            third = dispatch("later")
        events = list(handler.read())
    assert events == [first, second, third]
    assert [event.id for event in events] == [first.id, second.id, third.id]
    assert (events[0].subject, events[0].version, dict(events[0].headers)) == ("1", 2, {"tenant": "x"})
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 3


async def test_is_a_dead_letter_handler(tmp_path):
    local = LocalHandler()

    @local.register
    async def fails(event: Event[object]) -> None:
        raise ConnectionError("no mail server")

    dead = FileHandler(str(tmp_path / "dead.jsonl"))
    async with EventBus([local], dead_letters=dead) as bus:
        event = bus.dispatch("mail.due", {"to": "a"})
    (letter,) = dead.read()
    assert (letter, letter.id) == (event, event.id)
    assert letter.headers["dlerror"] == "ConnectionError"
    assert letter.headers["dlmessage"] == "no mail server"
    assert bus.stats().dead_lettered == 1


async def test_takes_plain_tuples(tmp_path):
    handler = FileHandler(tmp_path / "events")
    await handler.handle(("a", 1))
    await handler.handle_many([("b", 2), Event("c", 3)])
    assert [tuple(event) for event in handler.read()] == [("a", 1), ("b", 2), ("c", 3)]


async def test_of_a_batch_all_or_nothing_is_written(tmp_path):
    handler = FileHandler(tmp_path / "events")
    await handler.handle(Event("a"))
    with pytest.raises(PayloadError):
        await handler.handle_many([Event("b"), Event("c", object())])
    assert [event.name for event in handler.read()] == ["a"]


async def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        await FileHandler(tmp_path / "missing" / "events").handle(Event("a"))


async def test_a_line_that_is_no_event_is_an_error(tmp_path):
    handler = FileHandler(tmp_path / "events")
    await handler.handle(Event("a"))
    with handler.path.open("a") as file:
        file.write("{}\n")
    events = handler.read()
    assert next(events).name == "a"
    with pytest.raises(PayloadError):
        next(events)


@pytest.mark.parametrize("torn", [b"x", b'{"specversion":"1.0","id":"1', b"y" * 70_000, b"\xff" * 65_536])
@pytest.mark.parametrize("before", [0, 1, 2])
async def test_the_torn_line_of_a_writer_that_crashed_is_cut_off(tmp_path, torn, before):
    handler = FileHandler(tmp_path / "events")
    names = [str(number) for number in range(before)]
    for name in names:
        await handler.handle(Event(name))
    with handler.path.open("ab") as file:
        file.write(torn)
    assert [event.name for event in handler.read()] == names  # it might still be written
    await handler.handle(Event("next"))
    assert [event.name for event in handler.read()] == [*names, "next"]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5),
    st.binary(max_size=20),
)
def test_what_was_written_is_read_whatever_was_torn(tmp_path_factory, names, torn):
    handler = FileHandler(tmp_path_factory.mktemp("file") / "events")
    for name in names:
        asyncio.run(handler.handle(Event(name)))
        with handler.path.open("ab") as file:
            file.write(torn.replace(b"\n", b""))
    assert [event.name for event in handler.read()] == names


async def test_threads_do_not_mix_their_lines(tmp_path):
    handlers = [FileHandler(tmp_path / "events") for _ in range(4)]
    payload = "x" * 20_000
    await asyncio.gather(
        *(
            handler.handle_many([Event(f"{index}", payload)] * 5)
            for index, handler in enumerate(handlers)
            for _ in range(3)
        )
    )
    events = list(handlers[0].read())
    assert len(events) == 60
    assert {event.payload for event in events} == {payload}


def write(path: Path, name: str) -> None:
    async def main() -> None:
        handler = FileHandler(path)
        for number in range(20):
            await handler.handle_many([Event(name, [number, index, "x" * 5000]) for index in range(3)])

    asyncio.run(main())


def test_processes_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "events"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write, args=(path, name)) for name in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    events = list(FileHandler(path).read())
    for name in ("a", "b"):
        numbers = [event.payload[:2] for event in events if event.name == name]
        assert numbers == [[number, index] for number in range(20) for index in range(3)]
    # a batch stays together
    assert all([event.name for event in events[at : at + 3]] == [events[at].name] * 3 for at in range(0, 120, 3))
