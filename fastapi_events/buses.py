"""Which buses there are in this process, and which one is meant."""

import asyncio
import atexit
import logging
import os
import sys
import threading
from collections.abc import Hashable
from contextvars import Context, copy_context
from typing import Any, Final
from weakref import WeakSet

from fastapi_events.errors import ConfigurationError, NoBusError
from fastapi_events.event import Event
from fastapi_events.scope import Scope, current_scope

__all__ = ["asyncio_loop", "claim_id", "enrol", "find", "keep", "running_loop", "scope_of", "take_early"]

EARLY: Final = 1_000  # events at most that wait for the first bus
LISTED: Final = 20  # events at most that a line of the log names

logger: logging.Logger = logging.getLogger("fastapi_events")

_buses: WeakSet[Any] = WeakSet()
_by_id: dict[Hashable, Any] = {}
_early: list[tuple[Event[Any], Hashable | None, Context]] = []  # dispatched before there was a bus
_lock = threading.RLock()  # reentrant: a destructor may dispatch
_process: Final = os.getpid()


def enrol(bus: Any) -> None:
    """Remember a new bus."""
    with _lock:
        _buses.add(bus)


def claim_id(middleware_id: Hashable, bus: Any) -> None:
    """Give a bus the id by which `dispatch(middleware_id=...)` finds it."""
    try:
        known = _by_id.get(middleware_id)
    except TypeError as error:
        raise ConfigurationError(f"middleware_id={middleware_id!r} cannot be looked up: {error}") from error
    if known is not None and known is not bus:
        logger.warning("middleware_id=%r now stands for another bus: the one before is not found by it", middleware_id)
    _by_id[middleware_id] = bus


def keep(event: Event[Any], middleware_id: Hashable | None) -> None:
    """Keep an event for the first bus (of that id).

    Raises:
        NoBusError: so many wait already that there may never be one.
    """
    with _lock:
        if len(_early) >= EARLY:
            raise NoBusError(
                f"event {event.name} is refused: no bus has run yet in this process, and {EARLY} events wait for one; "
                "dispatch within `async with EventBus([...])`, or leave it to the application's process"
            )
        _early.append((event, middleware_id, copy_context()))
    logger.info("event %s (%s) waits for the first bus of this process", event.name, event.id)


def take_early(bus: Any) -> list[tuple[Event[Any], Context]]:
    """Give a bus that opens the events that were kept for it; the first one gets those for no id."""
    with _lock:
        early = _early[:]
        _early[:] = [kept for kept in early if kept[1] is not None and _by_id.get(kept[1]) is not bus]
        return [(event, context) for event, wanted, context in early if wanted is None or _by_id.get(wanted) is bus]


def find(middleware_id: Hashable | None) -> Any:
    """Return the bus of that id, or the only one that can take events; None where there is none yet.

    Raises:
        NoBusError: there is none although it is too late to wait for the first one, or there are several.
    """
    loop = running_loop()
    if middleware_id is not None:
        bus = _by_id.get(middleware_id)
        if bus is None and not _is_early(loop):
            ids = ", ".join(map(repr, _by_id)) or "none"
            raise NoBusError(
                f"no middleware has middleware_id={middleware_id!r} (there are: {ids}): check both places; that of a "
                "mounted application is there from its first request on"
            )
        return bus
    known = _all()
    live = [bus for bus in known if bus.is_live()] or [bus for bus in known if bus.is_waiting()]
    if len(live) > 1:
        live = [bus for bus in live if bus.loop is loop and loop is not None] or live
    if len(live) > 1:
        listed = ", ".join(map(_described, live))
        raise NoBusError(
            f"it is not clear which of {len(live)} buses is meant ({listed}): "
            "use bus.dispatch(...), bus=, or middleware_id="
        )
    if not live and not _is_early(loop):
        listed = f" that runs (there are: {', '.join(map(repr, known))})" if known else ""
        raise NoBusError(
            f"there is no bus{listed}: add EventHandlerASGIMiddleware(handlers=[...]) to the application, "
            "or outside of one dispatch within `async with EventBus([...])`"
        )
    return live[0] if live else None


def scope_of(bus: Any) -> Scope | None:
    """Return the bus's innermost open scope in this context, else its innermost one."""
    innermost = None
    scope = current_scope.get()
    while scope is not None:
        if scope.bus is bus:
            if scope.collects():
                return scope
            innermost = innermost or scope
        scope = scope.parent
    return innermost


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop.

    Raises:
        ConfigurationError: there is none of asyncio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise ConfigurationError("an EventBus runs on asyncio only (uvloop included)") from error


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop of this thread, None if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _all() -> list[Any]:
    with _lock:
        return list(_buses)


def _described(bus: Any) -> str:
    ids = [repr(middleware_id) for middleware_id, other in _by_id.items() if other is bus]
    return f"{bus!r} of middleware_id={' and '.join(ids)}" if ids else repr(bus)


def _is_early(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether the application is still being set up: a module is imported, or no loop has run any bus yet."""
    is_main = loop is None and threading.current_thread() is threading.main_thread()
    # a forked worker, as of Celery, may never have a bus, and end without a word
    if is_main and os.getpid() == _process and all(bus.is_new() for bus in _all()):
        return True
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        # some servers import the application on a loop that runs already
        if getattr(frame.f_globals.get("__spec__"), "_initializing", False):
            return True
    return False


@atexit.register
def _report_at_exit() -> None:
    left = [event for event, _, _ in _early]
    for bus in _all():
        left.extend(bus.unfinished())
    if left:
        logger.error("the process ends before %d events were delivered: %s", len(left), _listed(left))


def _listed(events: list[Event[Any]]) -> str:
    names = ", ".join(f"{event.name} ({event.id})" for event in events[:LISTED])
    return f"{names} and {len(events) - LISTED} more" if len(events) > LISTED else names


def _after_fork() -> None:
    _lock.release()
    current_scope.set(None)  # only the parent will see its end
    left = [event for event, _, _ in _early]
    _early.clear()
    for bus in _all():
        if bus.is_new():
            left.extend(bus.unfinished())
        bus.after_fork()
    if left:
        logger.warning("%d events stay in the parent of this process, which began no bus: %s", len(left), _listed(left))


if hasattr(os, "register_at_fork"):  # not on Windows
    # held meanwhile, as no other thread of the parent would release it in the child
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
