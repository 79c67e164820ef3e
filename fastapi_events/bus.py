"""The waist: events come in, the subscribers of every handler get them; limits, drain."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from typing import Any, Self
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter
from typing_extensions import TypedDict

from fastapi_events import buses
from fastapi_events.cloud_event import check_headers, check_text
from fastapi_events.delivery import Delivery
from fastapi_events.direct import deliver
from fastapi_events.dispatching import MAX_DEPTH, Dispatcher, check_registry
from fastapi_events.drains import UnderWay
from fastapi_events.errors import BusFullError, ConfigurationError, NoBusError, PayloadError
from fastapi_events.event import DEFAULT_SOURCE, Event
from fastapi_events.handlers.base import EventHandler
from fastapi_events.ledger import Ledger
from fastapi_events.lifecycle import Lifecycle
from fastapi_events.options import check_count
from fastapi_events.outcome import (
    DeliverOn,
    Outcome,
    check_deliver_on,
    check_is_success,
    is_success_by_default,
    split,
)
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry, registry as default_registry
from fastapi_events.reporter import GivenUp, Hook, Reporter
from fastapi_events.reports import DrainReport, Failure, Stats, Undelivered
from fastapi_events.scope import Scope, current_scope
from fastapi_events.subscriber import Subscriber, as_subscriber, route_to

__all__ = ["BusOptions", "EventBus", "current_bus"]


class BusOptions(TypedDict, total=False, closed=True):
    """The keywords of EventBus."""

    source: str
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None
    deliver_on: DeliverOn
    is_success: Callable[[Outcome], bool] | None
    on_error: Hook[Failure]
    on_withheld: Hook[Event[Any]]
    dead_letters: EventHandler | None
    max_pending: int | None
    max_depth: int
    drain_timeout: float
    max_threads: int
    registry: EventPayloadSchemaRegistry
    payload_schema_dump: bool


class EventBus(Lifecycle, Dispatcher):
    """Carries events from `dispatch` to handlers, within one process and at most once.

    `EventHandlerASGIMiddleware` starts and stops a bus with its application; elsewhere `async with bus:` does.

    Args:
        handlers: what receives the events; each gets every one, unless it routes or is wrapped in `only`.
        source: who dispatches, as the events say.
        headers: added to every event; a callable is asked at every dispatch.
        deliver_on: the default of `dispatch`.
        is_success: tells of a request or block whether it succeeded; by default, if no exception came out of it, and
            of a request if a response with a status below 400 was begun.
        on_error: one or several callables that get a `Failure` for each event that a subscriber finally failed.
        on_withheld: the same with each event whose outcome did not come.
        dead_letters: a handler that gets the events that a subscriber finally failed.
        max_pending: how many events may wait or be handled; None for no bound.
        max_depth: how long a chain of events that cause one another may be.
        drain_timeout: seconds that `drain` waits, and that the shutdown of an application takes for it in all.
        max_threads: how many sync subscribers run at once.
        registry: where names find their schemas.
        payload_schema_dump: hand models over as dicts.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        handlers: Iterable[EventHandler] = (),
        *,
        source: str = DEFAULT_SOURCE,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        deliver_on: DeliverOn = "completion",
        is_success: Callable[[Outcome], bool] | None = None,
        on_error: Hook[Failure] = (),
        on_withheld: Hook[Event[Any]] = (),
        dead_letters: EventHandler | None = None,
        max_pending: int | None = 100_000,
        max_depth: int = MAX_DEPTH,
        drain_timeout: float = 20.0,
        max_threads: int = 40,
        registry: EventPayloadSchemaRegistry = default_registry,
        payload_schema_dump: bool = False,
    ) -> None:
        super().__init__(handlers, drain_timeout)
        check_deliver_on(deliver_on)
        check_count("max_threads", max_threads)
        check_count("max_depth", max_depth)
        if max_pending is not None:
            check_count("max_pending", max_pending)
        if is_success is not None:
            check_is_success(is_success)
        check_registry("registry", registry)
        try:
            check_text("source", source)
            if headers and not callable(headers):
                check_headers(headers)
        except PayloadError as error:
            raise ConfigurationError(str(error)) from error
        if dead_letters is not None:
            try:
                as_subscriber(dead_letters)
            except ConfigurationError as error:
                raise ConfigurationError(f"dead_letters= takes a handler, as FileHandler(path) is: {error}") from error
        self.source = source
        self.headers = headers
        self.deliver_on: DeliverOn = deliver_on
        self.max_depth = max_depth
        self.registry = registry
        self.payload_schema_dump = payload_schema_dump
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.copies_payloads: bool = dead_letters is not None
        self.reporter: Reporter = Reporter(on_error, on_withheld, dead_letters)
        self._route = route_to(self.handlers)
        self._is_success = is_success_by_default if is_success is None else is_success
        self._max_threads = max_threads
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()
        self._max_pending = max_pending
        self._empty()
        buses.enrol(self)

    def _empty(self) -> None:
        self._ledger = Ledger(self._lock, self._max_pending)
        self.under_way: UnderWay = UnderWay(self, self._lock)

    def __del__(self, process_ends: Callable[[], bool] = sys.is_finalizing) -> None:  # `sys` may have gone by then
        """Report what is lost with a bus that nobody holds any more."""
        is_usable = hasattr(self, "_ledger")  # else its arguments could not work
        if not is_usable or not self._ledger.pending or process_ends():  # whose exit has reported it
            return
        for delivery in list(self.under_way.deliveries):
            self.reporter.lost(delivery.give_up(), "its event loop ended")
        # requests and blocks that are thrown away as well tell of their own
        self.reporter.lost(self.lose(self.under_way.not_begun()), "its bus was thrown away")

    @asynccontextmanager
    async def scope(self) -> AsyncGenerator[None]:
        """Collect the events dispatched in the block; deliver them at its end, and wait for their first attempts.

        For events with `deliver_on`, an exception makes the block a failure; it goes on after the delivery.
        """
        await self.ensure_open()
        scope = Scope(self, asyncio.get_running_loop(), collects=True, parent=current_scope.get())
        current_scope.set(scope)
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            delivery = self.end_scope(scope, exception=raised)
            current_scope.set(scope.parent)
            if delivery is not None:
                await delivery.settled()

    async def drain(self, timeout: float | None = None) -> DrainReport:
        """Wait until all events that were accepted before on this event loop, and what they caused, are handled.

        A running request is waited for if it has dispatched events, but not the one that calls this; two requests or
        subscribers that drain do not wait for each other. What is left at the deadline is cancelled or never starts;
        it goes to `dead_letters`, else to the log, to `on_error`, and into the report of the first drain that gives up.

        Args:
            timeout: seconds; by default `drain_timeout`.
        """
        seconds = self.drain_timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        delivered = self._ledger.delivered
        if self._opening is not None and self._opening.get_loop() is loop:
            await asyncio.wait({self._opening}, timeout=seconds)
        with self.reporter.collecting() as failed:
            given_up = await self.under_way.drain(seconds, deadline, is_last=self._state == "stopping")
        left = [(Undelivered(event.name, event.id, name), attempts) for event, name, attempts in given_up]
        return DrainReport(
            delivered=self._ledger.delivered - delivered,
            failed=tuple(failed),
            cancelled=tuple(one for one, attempts in left if attempts),
            never_started=tuple(one for one, attempts in left if not attempts),
        )

    def stats(self) -> Stats:
        """Return how the bus is doing, for a health probe; cheap unless very many events wait."""
        oldest = self.under_way.oldest()
        age = 0.0 if oldest is None else max((time.time_ns() - oldest) / 1e9, 0.0)
        counts = self.reporter.counts
        return Stats(pending=self._ledger.pending, oldest_age=age, delivered=self._ledger.delivered, **counts)

    # For the middleware

    def after_fork(self) -> None:
        """Be stopped, in a forked child: the loop, and what is pending, are the parent's."""
        super().after_fork()
        self._empty()

    def unfinished(self) -> list[Event[Any]]:
        """Return events that were accepted and not handled, as far as this can be told when no loop runs any more."""
        return self.under_way.unfinished()

    def open(self) -> None:
        """Begin to deliver, with what was kept so far, if the handlers have started."""
        with self._lock:
            if self._state != "started":
                return
            self._state = "open"
            early = buses.take_early(self)
            self._ledger.take(len(early), True)
            kept = [(event, None, context) for event, context in early] + self.under_way.kept
            self.under_way.kept = []
        for event, scope, context in kept:
            self._hand_over(event, scope, context)

    def end_scope(
        self, scope: Scope, status: int | None = None, exception: BaseException | None = None
    ) -> Delivery | None:
        """Deliver what waited for the end of a request or block, which ended with this status and exception.

        Returns:
            What goes on with its first attempts; None if they have ended already.
        """
        scope.ended = True  # `accept` looks after it has appended, so one of the two sees the other
        if scope.backlog:  # a lock takes 3 % of a request without events
            with self._lock:
                backlog, scope.backlog = scope.backlog, None
            try:
                self._send_off(backlog, scope, status, exception)
            finally:
                self.under_way.scopes.discard(scope)
        scope.backlog = None
        delivery: Delivery | None = scope.delivery
        if delivery is None or delivery not in self.under_way.deliveries:
            scope.disconnect()
        if self.under_way.watchers:
            self.under_way.changed()
        return None if delivery is None or delivery.is_settled() else delivery

    # For dispatching

    def accept(self, event: Event[Any], scope: Scope | None, deliver_on: DeliverOn) -> None:
        """Take an event: into the backlog of an open scope, else to its subscribers; from any thread.

        Raises:
            BusFullError: `max_pending` events wait, and no subscriber dispatched this one.
            NoBusError: the bus was stopped, or its loop was.
        """
        with self._lock:
            is_caused = event._chain != ()
            is_taken = self._ledger.take(1, is_caused)
            waits = scope is not None and deliver_on != "now" and (not is_caused or scope.collects())
            backlog = scope.backlog if waits and scope is not None else None
            if is_taken and scope is not None and backlog is not None:
                if not backlog:
                    self.under_way.scopes.add(scope)
                if deliver_on != "completion":
                    if scope.conditions is None:
                        scope.conditions = {}
                    scope.conditions[id(event)] = deliver_on
                backlog.append(event)
                if not scope.ended:
                    return
                backlog[:] = [other for other in backlog if other is not event]  # the end may not have seen it
                if not backlog:
                    self.under_way.scopes.discard(scope)
        if not is_taken:
            pending, collected = self._ledger.pending, self.under_way.collected()
            self.reporter.refused(event, pending)
            raise BusFullError(
                f"event {event.name} is refused: {pending} events wait, as many as max_pending= allows, {collected} of "
                "them for the end of a request or block; slow down, speed up the subscribers, raise max_pending=, or "
                'dispatch with deliver_on="now" in a request that lasts'
            )
        self._hand_over(event, scope, copy_context())

    # For deliveries

    def limiter(self) -> CapacityLimiter:
        """Return what bounds the bus's worker threads on the running loop."""
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = CapacityLimiter(self._max_threads)
        return limiter

    def subscribers(self, event: Event[Any]) -> Sequence[Subscriber]:
        """Return who receives an event, each once."""
        found = self._route(event[0])
        return [subscriber for subscriber in found if subscriber.is_function] if event._opaque else found

    def delivery_of(self, scope: Scope) -> Delivery:
        """Return what goes on with the events of a scope; made when it is first asked for."""
        if scope.delivery is None or scope.delivery.loop.is_closed():
            loop = asyncio.get_running_loop()
            scope.delivery = Delivery(self, scope, loop, self._ledger.tally(loop))
        return scope.delivery  # type: ignore[no-any-return]

    # For drains

    def deliver(self, event: Event[Any], scope: Scope | None, context: Context) -> None:
        """Give an event to its subscribers, on the running loop."""
        loop = asyncio.get_running_loop()
        if scope is None:
            scope = Scope(self, loop)
            scope.ended = True  # it has no request or block
        deliver(scope, loop, self._ledger.tally(loop), (event,), context)

    def lose(self, events: Sequence[Event[Any]]) -> list[GivenUp]:
        """Count events as no longer pending; return them with each subscriber that does not get them."""
        given_up: list[GivenUp] = []
        for event in events:
            subscribers = self.subscribers(event)
            if not subscribers:
                self.reporter.unheard(event)
            given_up.extend((event, subscriber.name, 0) for subscriber in subscribers)
        self._ledger.give_back(len(events))
        return given_up

    # Delivering

    def _target(self, bus: Any, middleware_id: Hashable | None) -> tuple[Self, Scope | None]:
        if bus not in (None, self) or middleware_id is not None:
            raise ConfigurationError("bus.dispatch() has its bus: leave bus= and middleware_id= out")
        return self, buses.scope_of(self)

    def _hand_over(self, event: Event[Any], scope: Scope | None, context: Context) -> None:
        """Deliver an event now, on the loop of its scope or of the bus; or keep it until the bus is open."""
        here = buses.running_loop()
        with self._lock:
            loop = self.loop
            if scope is not None and scope.loop is not None and not scope.loop.is_closed():
                loop = scope.loop
            is_closed = loop is None or loop.is_closed()
            if self._state == "open" and is_closed and self.is_waiting():
                self._state = "new"
            waits = self._state in ("new", "starting", "started")
            is_stopped = self._state == "stopped" or (self._state == "stopping" and not event._chain)
            if waits:
                self.under_way.kept.append((event, scope, context))
            elif loop is not None and not is_closed and not is_stopped and (scope is None or loop is not here):
                is_closed = not self.under_way.send(loop, (event, scope, context))
        if waits:
            self._open_soon()
        elif loop is None or is_stopped or is_closed:
            self._ledger.give_back(1)
            why = "the bus was stopped" if is_stopped else "its event loop is closed"
            raise NoBusError(f"event {event.name} ({event.id}) is too late: {why}; start the bus again")
        elif loop is here and scope is not None:
            self.delivery_of(scope).add(event, context)

    def _send_off(
        self, backlog: list[Event[Any]], scope: Scope, status: int | None, exception: BaseException | None
    ) -> None:
        """Deliver the events of a scope that has ended; or keep them until the bus is open."""
        loop: Any = scope.loop
        if scope.conditions:
            outcome = Outcome(status, exception)
            backlog, withheld, awaited = split(backlog, scope.conditions, outcome, self._is_success)
            self._ledger.give_back(len(withheld))
            self.reporter.withheld(withheld, awaited)
        if self._state in ("new", "starting"):
            context = copy_context()
            with self._lock:
                self.under_way.kept.extend((event, scope, context) for event in backlog)
        elif not loop.is_running() or (exception is not None and loop is not buses.running_loop()):
            # it is thrown away with its loop, maybe in another thread; which loop runs is asked only after an
            # exception, as that is a system call on CPython 3.11, which took 2 % of a request
            self.reporter.lost(self.lose(backlog), "its event loop ended")
        elif backlog:
            deliver(scope, loop, self._ledger.tally(loop), backlog, copy_context())


def current_bus() -> EventBus:
    """Return the bus of the running request, block or delivery, else the only one that runs; usable with Depends.

    Raises:
        NoBusError: there is none, or there are several.
    """
    scope = current_scope.get()
    bus = scope.bus if scope is not None and scope.bus is not None else buses.find(None)
    if bus is None:
        raise NoBusError("there is no bus: add EventHandlerASGIMiddleware to the application, or use `async with bus:`")
    return bus  # type: ignore[no-any-return]
