"""Events from a script or a worker, where there is no request: at once, or together at the end of a block."""

import asyncio

from fastapi_events import Event, EventBus, LocalHandler, dispatch

handler = LocalHandler()


@handler.register("import.*")
async def report(event: Event) -> None:
    print(f"report: {event.name} {event.payload}")


async def main() -> None:
    async with EventBus([handler]) as bus:
        dispatch("import.started")
        await bus.drain()
        try:
            async with bus.scope():
                dispatch("import.row", {"row": 1}, deliver_on="success")
                dispatch("import.failed", {"row": 2}, deliver_on="failure")
                raise ValueError("row 2 is broken")
        except ValueError as error:
            print(f"main: {error}")
        print(f"main: {bus.stats().withheld} withheld")


if __name__ == "__main__":
    asyncio.run(main())
