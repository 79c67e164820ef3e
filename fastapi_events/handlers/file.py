"""Keeps events in a file: one CloudEvent a line."""

import os
import sys
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Final

import anyio.to_thread

from fastapi_events.event import Event
from fastapi_events.handlers.base import BaseEventHandler, as_event
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, registry as default_registry

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileHandler"]

CHUNK: Final = 65_536  # bytes read at once, looking for the end of the last line
LOCKED: Final = 2**31 - 2  # the byte that is locked on Windows, where nobody can read what is locked: a far one


class FileHandler(BaseEventHandler):
    """Appends events to a file as JSON lines, each on the disk (fsync) before the call returns.

    Several processes may write to one file. Suited as `dead_letters=`.

    Args:
        path: of the file; it is created, its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)

    async def handle(self, event: Event[object] | Any) -> None:  # Any: 0.12 passed pairs
        """Append one event."""
        await self.handle_many([event])

    async def handle_many(self, events: Iterable[Event[object]]) -> None:
        """Append events, all or none of them.

        Raises:
            OSError: the file cannot be written.
            PayloadError: JSON cannot express a payload (only of an opaque event).
        """
        lines = "".join(f"{as_event(event).to_json()}\n" for event in events)
        await anyio.to_thread.run_sync(self._append, lines.encode())

    def read(self, *, registry: EventPayloadSchemaRegistry = default_registry) -> Iterator[Event[Any]]:
        """Give the events in the file, in the order in which they were written.

        A last line without its end is still being written, and left out.

        Raises:
            PayloadError: a line is no CloudEvent.
            pydantic.ValidationError: a payload does not fit its schema.
        """
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield Event.from_json(line, registry=registry)

    def _append(self, lines: bytes) -> None:
        with FileIO(self.path, "a+") as file:
            _lock(file)
            end = _end_of_lines(file)
            file.truncate(end)
            try:
                written = 0
                while written < len(lines):
                    written += file.write(lines[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def _lock(file: FileIO) -> None:
    """Wait until no other process appends; the lock ends when the file is closed."""
    if sys.platform == "win32":
        file.seek(LOCKED)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX)


def _end_of_lines(file: FileIO) -> int:
    """Return where the last whole line ends; a process that was killed may have left a part of one."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - CHUNK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
