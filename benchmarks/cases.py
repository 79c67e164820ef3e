"""What is measured, and what the library promises of it."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["CASES", "TARGETS", "Case", "Target"]

Subscriber = Literal["async", "sync", "yields", "sleeps", "async dependencies", "sync dependencies"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that every contender does in its own way.

    Attributes:
        kind: "request": one request through a bare Starlette app, from the ASGI call to the last subscriber's end;
            "memory": the bytes that wait in one request, per event; "call": one plain function call.
        events: dispatched by the endpoint.
        payload: "name": an event name and a dict of five items; "model": an immutable model of five fields.
        subscribers: of each event.
        subscriber: what one does: nothing ("async", and "sync", in a worker thread), `sleep(0)` ("yields"),
            2 ms of sleep ("sleeps"), or nothing with the results of two dependencies.
        patterns: subscribers with other patterns, none of which matches.
        clock: "cpu": seconds of all the process's threads; "wall" where waiting is what matters.
    """

    name: str
    title: str
    kind: Literal["request", "memory", "call"] = "request"
    events: int = 1
    payload: Literal["name", "model"] = "name"
    subscribers: int = 1
    subscriber: Subscriber = "async"
    patterns: int = 0
    clock: Literal["cpu", "wall"] = "cpu"

    @property
    def deliveries(self) -> int:
        return self.events * self.subscribers

    @property
    def unit(self) -> str:
        return "B/event" if self.kind == "memory" else "µs"


CASES = (
    Case(name="request-0", title="request, no event", events=0),
    Case(name="request-1", title="request, 1 event by name"),
    Case(name="request-1-model", title="request, 1 event by model", payload="model"),
    Case(name="request-10", title="request, 10 events by name", events=10),
    Case(name="request-10-model", title="request, 10 events by model", events=10, payload="model"),
    Case(name="request-100", title="request, 100 events by name", events=100),
    Case(name="request-100-model", title="request, 100 events by model", events=100, payload="model"),
    Case(name="fan-out-1", title="1 event to 1 subscriber, immutable", payload="model"),
    Case(name="fan-out-10", title="1 event to 10 subscribers, immutable", payload="model", subscribers=10),
    Case(name="fan-out-100", title="1 event to 100 subscribers, immutable", payload="model", subscribers=100),
    Case(name="fan-out-100-dict", title="1 event to 100 subscribers, a dict", subscribers=100),
    Case(name="patterns-1", title="100 events, 1 pattern", events=100, payload="model", patterns=1),
    Case(name="patterns-1000", title="100 events, 1,000 patterns", events=100, payload="model", patterns=1000),
    Case(
        name="dependencies-async",
        title="100 events, 2 async dependencies",
        events=100,
        payload="model",
        subscriber="async dependencies",
    ),
    Case(
        name="dependencies-sync",
        title="10 events, 2 sync dependencies",
        events=10,
        payload="model",
        subscriber="sync dependencies",
        clock="wall",
    ),
    Case(name="sync-1", title="1 event, sync subscriber", payload="model", subscriber="sync", clock="wall"),
    Case(
        name="sync-10", title="10 events, sync subscriber", events=10, payload="model", subscriber="sync", clock="wall"
    ),
    Case(
        name="sync-100",
        title="100 events, sync subscriber",
        events=100,
        payload="model",
        subscriber="sync",
        clock="wall",
    ),
    Case(name="yields", title="10 events, subscriber does sleep(0)", events=10, payload="model", subscriber="yields"),
    Case(
        name="sleeps",
        title="1 event to 50 subscribers of 2 ms",
        payload="model",
        subscribers=50,
        subscriber="sleeps",
        clock="wall",
    ),
    Case(name="memory-1000", title="1,000 pending events by name", kind="memory", events=1_000),
    Case(name="memory-1000-model", title="1,000 pending events by model", kind="memory", events=1_000, payload="model"),
    Case(name="memory-100000", title="100,000 pending events by name", kind="memory", events=100_000),
    Case(name="event-new", title="make an event", kind="call"),
    Case(name="event-to-json", title="make an event and write its JSON", kind="call"),
    Case(name="event-from-json", title="read an event's JSON, validated", kind="call", payload="model"),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A promise: the median ratio of a case to the limit, or to another case of the library, in the same run.

    Attributes:
        most: the ratio on CPython 3.11.
        most_eager: the ratio on CPython 3.12 and newer, where tasks start eagerly.
        to: the other case; None: the limit's time in the same case.
    """

    case: str
    most: float
    most_eager: float | None = None
    to: str | None = None


TARGETS = (
    Target(case="request-0", most=1.2),
    Target(case="request-1", most=2.8, most_eager=2.0),
    Target(case="request-1-model", most=2.8, most_eager=2.0),
    Target(case="request-10", most=5.5),
    Target(case="request-10-model", most=3.6),
    Target(case="request-100", most=16.0),
    Target(case="request-100-model", most=4.2),
    Target(case="patterns-1000", most=1.1, to="patterns-1"),
    Target(case="fan-out-100", most=6.0),
    Target(case="sleeps", most=1.2),
    Target(case="sync-1", most=1.5),
    Target(case="sync-10", most=1.5),
    Target(case="dependencies-sync", most=1.5),
    Target(case="dependencies-async", most=6.0),
    Target(case="memory-1000", most=2.5),
    Target(case="memory-100000", most=2.5),
)
