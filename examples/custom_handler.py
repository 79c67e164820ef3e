"""A handler of your own: it forwards batches, and opens and closes what it needs."""

import asyncio
from collections.abc import Iterable

from fastapi_events import BaseEventHandler, Event, EventBus, Failure, dispatch, only


class Archive(BaseEventHandler):
    """Keeps events as JSON; a stand-in for something with a connection."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_open = False

    async def start(self) -> None:
        self.is_open = True

    async def stop(self) -> None:
        self.is_open = False

    async def handle(self, event: Event) -> None:
        await self.handle_many([event])

    async def handle_many(self, events: Iterable[Event]) -> None:
        if not self.is_open:
            raise ConnectionError("the archive is closed")
        self.lines.extend(event.to_json() for event in events)


def tell(failure: Failure) -> None:
    print(f"{failure.subscriber} failed with {failure.event.name}: {failure.exception}")


async def main() -> None:
    archive = Archive()
    async with EventBus([only(archive, "invoice.*")], on_error=tell) as bus:
        async with bus.scope():  # what is dispatched in the block is delivered together, at its end
            dispatch("invoice.sent", {"number": 1})
            dispatch("invoice.paid", {"number": 1})
            dispatch("coffee.made")
    print(f"archived: {len(archive.lines)}, open: {archive.is_open}")


if __name__ == "__main__":
    asyncio.run(main())
