"""When a bus takes events: its states, the start and stop of its handlers, the event loop that it runs on."""

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Self

from fastapi_events import buses
from fastapi_events.dispatching import DISABLE_DISPATCH, dispatch_is_disabled
from fastapi_events.errors import ConfigurationError
from fastapi_events.handlers.base import EventHandler
from fastapi_events.options import check_seconds
from fastapi_events.reports import DrainReport

__all__ = ["Lifecycle"]

logger: logging.Logger = logging.getLogger("fastapi_events")


class Lifecycle(ABC):
    """Starts and stops a bus: by a middleware, with `async with`, or at the first dispatch; as often as one likes.

    Attributes:
        handlers: what receives the events.
        drain_timeout: seconds that `drain` waits by default.
        loop: the event loop on which it was started last; None if it never was.
        held: by a middleware, which will start it.
        has_lifespan: starts and stops with an application.
        is_suppressed: what is dispatched is thrown away.
    """

    def __init__(self, handlers: Iterable[EventHandler], drain_timeout: float) -> None:
        # not every caller has a type checker
        if isinstance(handlers, Iterator) or not isinstance(handlers, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError("handlers= takes a list, as in handlers=[local_handler], that can be read twice")
        check_seconds("drain_timeout", drain_timeout)
        self.handlers: tuple[EventHandler, ...] = tuple(handlers)
        self.drain_timeout = drain_timeout
        self.loop: asyncio.AbstractEventLoop | None = None
        self.held: bool = False
        self.has_lifespan: bool = False
        self.is_suppressed: bool = dispatch_is_disabled()
        self._lock = threading.RLock()  # reentrant: a signal handler or a destructor may dispatch
        self._state: Literal["new", "starting", "started", "open", "stopping", "stopped"] = "new"
        self._started: asyncio.Future[None] | None = None
        self._opening: asyncio.Task[None] | None = None

    @abstractmethod
    def open(self) -> None:
        """Begin to deliver, with what was kept so far, if the handlers have started."""

    @abstractmethod
    async def drain(self, timeout: float | None = None) -> DrainReport:
        """Wait until all events that were accepted before, and what they caused, are handled."""

    def __repr__(self) -> str:
        names = ", ".join(type(handler).__qualname__ for handler in self.handlers)
        return f"<{type(self).__qualname__} [{names}] {self._state}>"

    async def __aenter__(self) -> Self:
        await self.ensure_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def stop(self, timeout: float | None = None) -> DrainReport:
        """Drain, then stop the handlers; the bus may be started again."""
        await self._start_ended()
        if self._state == "stopped":
            return DrainReport(delivered=0)
        if self._state == "stopping":
            return await self.drain(timeout)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.drain_timeout if timeout is None else timeout)
        first = await self.drain(timeout)
        was_running = self.is_live()
        with self._lock:
            self._state = "stopping"
        try:
            rest = await self.drain(max(0.0, deadline - loop.time()))  # of what was accepted meanwhile
            if was_running:
                await _stop_handlers(self.handlers)
        finally:
            self._state = "stopped"
        return DrainReport(
            delivered=first.delivered + rest.delivered,
            failed=first.failed + rest.failed,
            cancelled=first.cancelled + rest.cancelled,
            never_started=first.never_started + rest.never_started,
        )

    async def ensure_open(self) -> None:
        """Start on the running loop unless that is done.

        Raises:
            ConfigurationError: this is not asyncio.
        """
        await self.start_handlers()
        if not self.has_lifespan:
            self.open()

    async def start_handlers(self) -> None:
        """Call the handlers' `start`; what is dispatched meanwhile is kept until `open`."""
        loop = buses.asyncio_loop()
        await self._start_ended()
        if self._state == "stopping" or (self._state in ("started", "open") and self.is_live()):
            return
        self.is_suppressed = dispatch_is_disabled()
        if self.is_suppressed:
            logger.warning("%s is set: what is dispatched is thrown away until this bus starts again", DISABLE_DISPATCH)
        self.loop, self._state = loop, "starting"
        ended = self._started = loop.create_future()
        done = 0
        try:
            for handler in self.handlers:
                if start := getattr(handler, "start", None):
                    await start()
                done += 1
            self._state = "started"
        except BaseException:
            self._state = "new"
            await _stop_handlers(self.handlers[:done])
            raise
        finally:
            ended.set_result(None)

    async def _start_ended(self) -> None:
        """Wait until no start on this loop goes on."""
        while self._state == "starting" and self._started is not None and self.loop is asyncio.get_running_loop():
            await asyncio.wait({self._started})

    def is_live(self) -> bool:
        """Tell whether events can be taken, now or in a moment."""
        return self._state in ("starting", "started", "open") and self.loop is not None and not self.loop.is_closed()

    def is_open_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether nothing is to be done before a request on this loop."""
        return self.loop is loop and self._state == "open"

    def is_waiting(self) -> bool:
        """Tell whether the bus, held by a middleware, has not been started yet (or its loop has gone)."""
        return self.held and not self.has_lifespan and self._state not in ("stopping", "stopped")

    def is_new(self) -> bool:
        """Tell whether the bus has never been started."""
        return self.loop is None

    def after_fork(self) -> None:
        """Be stopped, in a forked child: the loop is the parent's."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._started = self._opening = None
        if self._state != "new":
            self._state = "stopped"
            self.has_lifespan = False

    def _open_soon(self) -> None:
        """Start at the first dispatch, where an application without lifespan holds the bus."""
        loop = buses.running_loop()
        if self._state != "new" or not self.held or loop is None:
            return
        if self._opening is None or self._opening.get_loop().is_closed():
            self._opening = loop.create_task(self.ensure_open())
            self._opening.add_done_callback(self._opened)

    def _opened(self, task: "asyncio.Task[None]") -> None:
        self._opening = None
        if not task.cancelled() and (error := task.exception()):
            logger.error("a handler failed to start; events are kept until the first request", exc_info=error)


async def _stop_handlers(handlers: Iterable[Any]) -> None:
    for handler in handlers:
        if stop := getattr(handler, "stop", None):
            try:
                await stop()
            except Exception:
                logger.exception("%s failed to stop", type(handler).__qualname__)
