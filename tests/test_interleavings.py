"""Whatever comes together: requests, blocks, chains, failures, attempts, time limits, cancellations, drains and stops.

Hypothesis makes up a `Story`; it is played on virtual time, an event loop whose clock jumps; then every event
must be accounted for.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fastapi_events import (
    BaseEventHandler,
    BusFullError,
    DrainReport,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    Failure,
    LocalHandler,
    NoBusError,
    Retry,
    Unrecoverable,
    dispatch,
)
from tests.virtual_time import run

NAMES = "abc"
DEPTH = 4
FINAL_DRAINS = 10


@dataclass(frozen=True)
class Act:
    """What a subscriber does with an event: it sleeps, then it comes to an end."""

    sleeps: tuple[float, ...]
    end: str


@dataclass(frozen=True)
class Actor:
    """A subscriber; it does the acts in turn, according to the number of the event."""

    names: str
    kind: str
    acts: tuple[Act, ...]
    attempts: int
    timeout: float | None
    concurrency: int


@dataclass(frozen=True)
class Request:
    dispatches: tuple[tuple[str, str, float], ...]  # name, what it waits for, and a sleep before it
    end: str
    cancelled_after: float | None


@dataclass(frozen=True)
class Stop:
    """The bus is stopped, within these seconds; a later request starts it again."""

    seconds: float


@dataclass(frozen=True)
class Story:
    actors: tuple[Actor, ...]
    steps: tuple[tuple[float, str | Request | int | Stop], ...]  # after a sleep: an event outside, a request, a drain
    letters: str
    max_pending: int | None
    last_drain: float


naps = st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0])
names = st.sampled_from(NAMES)
acts = st.builds(
    Act,
    st.lists(naps, max_size=2).map(tuple),
    st.sampled_from(
        [
            "return", "return", "return", "raise", "fatal", "cancelled", "cancel itself", "cancel and return",
            "unrecoverable", "hang", "chain", "chain", "chain and raise", "stubborn", "chain when cancelled",
            "block", "block that fails", "drain",
        ]
    ),
)  # fmt: skip
actors = st.builds(
    Actor,
    st.sampled_from(["a", "b", "ab", "abc"]),
    st.sampled_from(["function", "function", "function", "handler", "batch"]),
    st.lists(acts, min_size=1, max_size=4).map(tuple),
    st.integers(0, 3),
    st.sampled_from([None, None, 0.7, 2.0]),
    st.sampled_from([1, 1, 2, 3]),
)
requests = st.builds(
    Request,
    st.lists(
        st.tuples(names, st.sampled_from(["completion", "completion", "success", "failure", "now"]), naps), max_size=6
    ).map(tuple),
    st.sampled_from(["200", "200", "500", "raise"]),
    st.sampled_from([None, None, None, 0.0, 0.5, 2.0]),
)
stories = st.builds(
    Story,
    st.lists(actors, min_size=1, max_size=3).map(tuple),
    st.lists(
        st.tuples(naps, names | requests | requests | st.sampled_from([0, 1, 4, Stop(0.0), Stop(3.0)])),
        min_size=1,
        max_size=6,
    ).map(tuple),
    st.sampled_from(["none", "kept", "refused", "late"]),
    st.sampled_from([None, None, 1, 4]),
    st.sampled_from([0.0, 2.0, 60.0]),
)


class RequestError(Exception):
    pass


class Fatal(BaseException):
    pass


Pair = tuple[str, str]  # of a subscriber and the id of an event


class Letters(BaseEventHandler):
    """A dead-letter handler as the story wants it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pairs: list[Pair] = []

    async def handle(self, event: Event[Any]) -> None: ...

    async def handle_many(self, events: Iterable[Event[Any]]) -> None:
        if self.kind == "refused":
            raise OSError("disk full")
        if self.kind == "late":
            await asyncio.sleep(1.5)
        self.pairs.extend((event.headers["dlsubscriber"], event.id) for event in events)


class Play:
    """A story being played, and what was seen of it."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.sent: dict[str, str] = {}  # names by the ids of events that were accepted
        self.places: dict[str, object] = {}  # the scopes of events, by their ids
        self.waits: dict[str, tuple[object, str]] = {}  # the scope whose end an event waits for, and which end
        self.ends: dict[object, str] = {}  # success or failure, of scopes that have ended
        self.orders: dict[tuple[object, bool], list[str]] = {}  # by scope, and whether they wait for its end
        self.refused = 0
        self.late = 0  # events that a stopped bus did not take
        self.wrong: list[str] = []  # what should not have been seen
        self.starts: list[Pair] = []
        self.succeeded: list[Pair] = []
        self.stubborn: set[Pair] = set()
        self.running: Counter[tuple[str, object]] = Counter()
        self.first_ended: set[Pair] = set()  # whose first attempt has ended
        self.returned: dict[int, set[Pair]] = {}  # the same when the call of a request ended
        self.withheld: list[str] = []
        self.failures: list[Failure] = []
        self.reports: list[DrainReport] = []
        self.letters = Letters(story.letters)
        self.errors: list[dict[str, Any]] = []
        self.actors: dict[str, Actor] = {}  # by the names of subscribers
        self.left: set[asyncio.Task[Any]] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self.bus = EventBus(
            [*self._handlers()],
            max_pending=story.max_pending,
            max_depth=DEPTH,
            on_error=self.failures.append,
            on_withheld=lambda event: self.withheld.append(event.id),
            dead_letters=None if story.letters == "none" else self.letters,
        )
        self.app = EventHandlerASGIMiddleware(self._answer, bus=self.bus)

    def _handlers(self) -> Iterator[Any]:
        for number, actor in enumerate(self.story.actors):
            handler = self._handler(f"actor{number}", actor)
            if isinstance(handler, LocalHandler):
                self.actors[f"{__name__}.actor{number}"] = actor
            else:
                self.actors[f"actor{number}"] = actor
            yield handler

    def _handler(self, name: str, actor: Actor) -> Any:
        play = self

        async def function(event: Event[Any]) -> None:
            await play.act(f"{__name__}.{name}", actor, [event])

        class Handler(BaseEventHandler):
            async def handle(self, event: Event[Any]) -> None:
                await play.act(name, actor, [event])

        class Batch:
            async def handle_many(self, events: Iterable[Event[Any]]) -> None:
                await play.act(name, actor, list(events))

        function.__qualname__ = Handler.__qualname__ = Batch.__qualname__ = name
        if actor.kind == "handler":
            return Handler()
        if actor.kind == "batch":
            return Batch()
        retry = Retry(attempts=actor.attempts, initial=2.0, uniform=lambda low, high: high) if actor.attempts else None
        handler = LocalHandler()
        handler.register(*actor.names, retry=retry, timeout=actor.timeout, concurrency=actor.concurrency)(function)
        return handler

    # What goes on

    def send(self, name: str, place: object = None, causes: Iterable[str] = (), **options: Any) -> str | None:
        """Dispatch an event and remember it if it was accepted, with the scope that it belongs to."""
        deliver_on = options.get("deliver_on", "now")
        try:
            event = dispatch(name, **options)
        except BusFullError:
            self.refused += 1
            if causes or self.bus.stats().pending < (self.story.max_pending or 0):
                self.wrong.append(f"{name} was refused, by a bus that is not full or by a subscriber's")
            return None
        except NoBusError:
            self.late += 1
            if deliver_on != "now":
                self.wrong.append(f"{name} came too late for its scope, which is open")
            return None
        if not causes and self.bus.stats().pending > (self.story.max_pending or math.inf):
            self.wrong.append(f"{name} was taken by a full bus")
        if causes and event.headers["causationid"] not in causes:
            self.wrong.append(f"{name} tells of another cause")
        self.sent[event.id] = name
        # what an event causes is delivered in the same scope, unless a block was opened for it
        self.places[event.id] = event.id if place is None else place
        if deliver_on != "now":
            self.waits[event.id] = (place, deliver_on)
        self.orders.setdefault((self.places[event.id], deliver_on == "now"), []).append(event.id)
        return event.id

    async def act(self, subscriber: str, actor: Actor, events: list[Event[Any]]) -> None:
        pairs = [(subscriber, event.id) for event in events]
        places = {(subscriber, self.places[event.id]) for event in events}
        for pair in pairs:
            self.starts.append(pair)
            if pair[1] in self.waits and self.waits[pair[1]][0] not in self.ends:
                self.wrong.append(f"{pair} began before the end of its scope")
        for place in places:
            self.running[place] += 1
            if self.running[place] > (actor.concurrency if actor.kind == "function" else 1):
                self.wrong.append(f"too many at once: {place}")
        unwilling = False

        def does_not_give_in() -> None:  # a drain gives it up, and does not wait for it
            nonlocal unwilling
            unwilling = True
            self.running.subtract(places)
            self.stubborn.update(pairs)

        try:
            await self._act(actor.acts[len(self.starts) % len(actor.acts)], events, does_not_give_in)
            self.succeeded.extend(pairs)
        finally:
            self.first_ended.update(pairs)
            if not unwilling:
                self.running.subtract(places)

    async def _act(self, act: Act, events: list[Event[Any]], does_not_give_in: Callable[[], None]) -> None:
        for seconds in act.sleeps:
            await asyncio.sleep(seconds)
        task = asyncio.current_task()
        assert task is not None
        ids = [event.id for event in events]
        place = self.places[ids[0]]
        match act.end:
            case "raise":
                raise KeyError
            case "fatal":
                raise Fatal
            case "cancelled":
                raise asyncio.CancelledError
            case "cancel itself":
                task.cancel()
                await asyncio.sleep(0)
            case "cancel and return":
                task.cancel()
            case "unrecoverable":
                raise Unrecoverable
            case "hang":
                await asyncio.get_running_loop().create_future()
            case "chain":
                self.send("c", place, ids)
            case "chain and raise":
                self.send("b", place, ids)
                raise KeyError
            case "block":
                await self._block(ids, None, does_not_give_in)
            case "block that fails":
                await self._block(ids, KeyError(), does_not_give_in)
            case "drain":
                drain = asyncio.create_task(self._drain(1.0))
                self.tasks.append(drain)
                await asyncio.shield(drain)
            case "stubborn":
                try:
                    await asyncio.sleep(1000.0)
                except asyncio.CancelledError:
                    does_not_give_in()
                    await asyncio.sleep(3.0)
            case "chain when cancelled":
                try:
                    await asyncio.sleep(1000.0)
                finally:
                    self.send("a", place, ids)

    async def _block(self, ids: list[str], error: Exception | None, does_not_give_in: Callable[[], None]) -> None:
        place = object()
        async with self.bus.scope():
            try:
                for name, deliver_on in [("a", "success"), ("b", "failure"), ("c", "completion")]:
                    self.send(name, place, ids, deliver_on=deliver_on)
                    await asyncio.sleep(0.5)
                if error is not None:
                    raise error
            except asyncio.CancelledError:
                does_not_give_in()  # before the first attempts at the events of the block have ended
                self.ends[place] = "failure"
                raise
            except BaseException:
                self.ends[place] = "failure"
                raise
            self.ends[place] = "success"

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        number: int = scope["number"]
        asked: Request = scope["request"]
        try:
            for name, deliver_on, seconds in asked.dispatches:
                await asyncio.sleep(seconds)
                self.send(name, number, deliver_on=deliver_on)
            if asked.end == "raise":
                raise RequestError
            await send({"type": "http.response.start", "status": int(asked.end), "headers": []})
            await send({"type": "http.response.body", "body": b""})
        except BaseException:
            self.ends[number] = "failure"
            raise
        self.ends[number] = "success" if asked.end == "200" else "failure"

    async def _request(self, number: int, asked: Request) -> None:
        async def nothing(message: Any = None) -> Any:
            return None

        call = asyncio.create_task(self.app({"type": "http", "number": number, "request": asked}, nothing, nothing))
        if asked.cancelled_after is not None:
            await asyncio.sleep(asked.cancelled_after)
            call.cancel()
        await asyncio.wait({call})
        if call.cancelled():
            assert asked.cancelled_after is not None
            return
        if type(call.exception()) is not (RequestError if asked.end == "raise" else type(None)):
            self.wrong.append(f"out of the application came {call.exception()!r}")
        self.returned[number] = set(self.first_ended)

    async def _drain(self, step: float | Stop) -> None:
        if isinstance(step, Stop):
            self.reports.append(await self.bus.stop(step.seconds))
        else:
            self.reports.append(await self.bus.drain(timeout=step))

    async def play(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        before = asyncio.all_tasks()
        async with self.bus:
            for number, (seconds, step) in enumerate(self.story.steps):
                await asyncio.sleep(seconds)
                if isinstance(step, Request):
                    self.tasks.append(asyncio.create_task(self._request(number, step)))
                elif isinstance(step, str):
                    self.send(step, bus=self.bus)
                else:
                    self.tasks.append(asyncio.create_task(self._drain(step)))
            await asyncio.sleep(50.0)  # by then no application dispatches any more
            self.reports.append(await self.bus.stop(self.story.last_drain))
        for _ in range(FINAL_DRAINS):  # what subscribers dispatched while they were cut off
            self.reports.append(await self.bus.drain(timeout=5.0))
        began = loop.time()
        if await self.bus.drain() != DrainReport(delivered=0) or loop.time() > began:
            self.wrong.append("a drain found something where nothing is left")
        await asyncio.sleep(5000.0)
        self.left = asyncio.all_tasks() - before
        for task in self.tasks:
            task.result()

    # What must be so

    def check(self) -> None:
        stats = self.bus.stats()
        told = [(failure.subscriber, failure.event.id) for failure in self.failures]
        given_up = [
            (failure.subscriber, failure.event.id) for failure in self.failures if "given up" in str(failure.exception)
        ]
        succeeded = [pair for pair in self.succeeded if pair not in self.stubborn or pair not in given_up]
        expected = [
            (subscriber, id_)
            for id_, name in self.sent.items()
            for subscriber, actor in self.actors.items()
            if id_ not in self.withheld and (actor.kind != "function" or name in actor.names)
        ]
        heard = {id_ for _, id_ in expected}

        # each pair came to exactly one end
        assert Counter(told) + Counter(succeeded) == Counter(expected)
        assert sorted(pair for report in self.reports for pair in _pairs(report)) == sorted(given_up)
        # so did each event, and the counters say the same
        assert len(set(self.withheld)) == len(self.withheld) == stats.withheld
        assert stats.unheard == len(self.sent) - len(heard) - len(self.withheld)
        assert stats.refused == self.refused
        assert stats.delivered == len(succeeded)
        assert stats.failed + stats.dead_lettered + stats.cancelled == len(told)
        assert (stats.pending, stats.oldest_age) == (0, 0.0)
        if self.story.letters == "kept":
            assert Counter(self.letters.pairs) == Counter(told)
            assert stats.dead_lettered == len(told)
        elif self.story.letters == "late":
            assert Counter(self.letters.pairs) <= Counter(told)
        else:
            assert (stats.dead_lettered, stats.cancelled) == (0, len(given_up))
        # the outcome that an event waited for came, or it was withheld, or given up before
        vain = {id_ for id_, (place, end) in self.waits.items() if end not in ("completion", self.ends[place])}
        assert vain >= set(self.withheld)
        assert vain.isdisjoint(id_ for _, id_ in self.starts)
        # what never started was not seen, and what was started not more often than allowed
        starts = Counter(self.starts)
        assert not [pair for report in self.reports for pair in _pairs(report, started=False) if starts[pair]]
        for subscriber, id_ in starts:
            assert starts[subscriber, id_] <= max(1, self.actors[subscriber].attempts)
        for failure in self.failures:
            assert failure.attempt == starts[failure.subscriber, failure.event.id]
        again = sum(starts.values()) - len(starts)
        assert again <= stats.retried <= again + len(given_up)  # which may be while they wait
        # in order, and not too many at once
        first = {pair: index for index, pair in reversed([*enumerate(self.starts)])}
        for subscriber, actor in self.actors.items():
            for ids in self.orders.values() if actor.concurrency == 1 or actor.kind != "function" else ():
                order = [first[subscriber, id_] for id_ in ids if (subscriber, id_) in first]
                assert order == sorted(order)
        # the call of a request ended after the first attempts at its events, unless they were given up
        for number, ended in self.returned.items():
            for subscriber, id_ in expected:
                waits = self.waits.get(id_, (None, ""))[0] == number and self.actors[subscriber].attempts < 2
                assert not waits or (subscriber, id_) in ended or (subscriber, id_) in given_up
        # nothing came out of the application but its own, and nothing is left
        assert self.wrong == []
        assert self.errors == []
        assert self.left == set()


def _pairs(report: DrainReport, *, started: bool = True) -> list[Pair]:
    left = (*report.cancelled, *report.never_started) if started else report.never_started
    return [(one.subscriber, one.id) for one in left]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Keep the log still: it would cost more time than all the rest."""
    logger = logging.getLogger("fastapi_events")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(stories)
def test_every_event_is_accounted_for(story):
    async def main() -> Play:
        play = Play(story)
        await play.play()
        return play

    run(main()).check()
