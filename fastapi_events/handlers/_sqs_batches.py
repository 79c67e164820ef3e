"""Messages on their way to SQS, on one event loop: full calls, the order of groups, further attempts."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from fastapi_events.errors import Rejection
from fastapi_events.event import Event
from fastapi_events.handlers._sqs_message import Message

__all__ = ["Answers", "Batches", "Delivery", "Policy", "Refusal", "Submit"]

MAX_CALL_BYTES: Final = 1_048_576  # of all messages of one call, their attributes included
FIRST_BACKOFF: Final = 0.1  # seconds; doubles with every attempt
MAX_BACKOFF: Final = 5.0  # seconds


class Policy(NamedTuple):
    """When to call, and how long to go on.

    Attributes:
        max_batch_size: messages in a call, 1 to 10.
        max_calls: calls at once.
        linger: seconds that a message waits for its call to fill.
        retry_for: seconds from a message's first call until it is given up.
        ordered: whether the order within a message group matters.
    """

    max_batch_size: int
    max_calls: int
    linger: float
    retry_for: float
    ordered: bool


class Refusal(NamedTuple):
    """Why a message of a call did not arrive.

    Attributes:
        reason: in SQS's or the network's words.
        again: whether another attempt may help.
        alone: whether it may help to send it without the others of the call, one of which may be at fault.
    """

    reason: str
    again: bool
    alone: bool = False


Answers: TypeAlias = Sequence[Refusal | None]  # of one call, in its order; None for a message that arrived

# Makes a call elsewhere, then passes its answers to the function, on the event loop. Raises RuntimeError when no more
# calls can be made.
Submit: TypeAlias = Callable[[Sequence[dict[str, Any]], Callable[[Answers], object]], object]


class Delivery:
    """What became of the events of one `handle_many`.

    Attributes:
        done: a future; has a result once every event has arrived or was rejected.
        rejected: the events that finally did not arrive.
        withdrawn: nobody waits any more, so what is not in a call yet must not be sent.
    """

    __slots__ = ("_open", "done", "rejected", "withdrawn")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.rejected: list[Rejection] = []
        self.withdrawn = False
        self._open = 1  # until the caller has added its last event, and calls end() itself

    def begin(self) -> None:
        self._open += 1

    def end(self) -> None:
        self._open -= 1
        if not self._open and not self.done.done():
            self.done.set_result(None)


class _Waiting:
    """A message until its fate is known.

    Attributes:
        due: loop time at which it goes even in a call that is not full.
        deadline: loop time at which it is given up; set at its first call.
        attempts: calls it was in.
        refused: why the last call did not take it; empty while it is in a call.
        alone: whether it needs a call of its own.
        settled: whether its delivery was told. What the call it is in brings is then of no interest.
    """

    __slots__ = ("alone", "attempts", "deadline", "delivery", "due", "event", "message", "refused", "settled")

    def __init__(self, event: Event[Any], message: Message, delivery: Delivery, due: float) -> None:
        self.event = event
        self.message = message
        self.delivery = delivery
        self.due = due
        self.deadline = 0.0
        self.attempts = 0
        self.refused = ""
        self.alone = False
        self.settled = False


class Batches:
    """Fills calls across requests, makes them, and tells each delivery what became of its events.

    Everything here runs on one event loop; only the calls run elsewhere. A call is filled when it is made, not
    before: while all calls that may run at once are running, the next ones grow fuller.

    With `Policy.ordered`, each group has one message on its way, and the next one starts when its fate is known:
    SQS may refuse one message of a call and take another one behind it.

    Attributes:
        calls: how many are being made.
        deliveries: that someone waits for.
    """

    def __init__(self, submit: Submit, policy: Policy) -> None:
        self.calls = 0
        self.deliveries: set[Delivery] = set()
        self._submit = submit
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._ready: deque[_Waiting] = deque()
        self._ready_bytes = 0
        self._behind: dict[str, deque[_Waiting]] = {}  # by group: what waits for the group's message on its way
        self._tried: dict[_Waiting, None] = {}  # has a deadline and is not settled; the first deadline first
        self._timer: asyncio.TimerHandle | None = None  # for what lingers
        self._watchdog: asyncio.TimerHandle | None = None  # for deadlines

    def deliver(self) -> Delivery:
        """Begin a delivery; whoever does waits for its `done`, and then discards it from `deliveries`."""
        delivery = Delivery(self._loop.create_future())
        self.deliveries.add(delivery)
        return delivery

    def add(self, event: Event[Any], message: Message, delivery: Delivery) -> None:
        """Send a message soon: when its call is full, or after the linger time."""
        delivery.begin()
        waiting = _Waiting(event, message, delivery, self._loop.time() + self._policy.linger)
        if self._policy.ordered and message.group is not None:
            behind = self._behind.get(message.group)
            if behind is not None:
                behind.append(waiting)
                return
            self._behind[message.group] = deque()
        self._ready.append(waiting)
        self._ready_bytes += message.size
        if self._is_full():
            self._pump()
        elif self._timer is None:
            self._timer = self._loop.call_at(waiting.due, self._on_timer)

    async def finish(self) -> None:
        """Let nothing linger, and return once every delivery is done or withdrawn."""
        for waiting in self._ready:
            waiting.due = 0.0
        self._pump()
        if self.deliveries:
            await asyncio.wait([delivery.done for delivery in self.deliveries])

    def _is_full(self) -> bool:
        return len(self._ready) >= self._policy.max_batch_size or self._ready_bytes >= MAX_CALL_BYTES

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _pump(self) -> None:
        """Make the calls that are full or due."""
        while self._ready and self.calls < self._policy.max_calls:
            due = self._ready[0].due
            if not self._is_full() and due > self._loop.time():
                if self._timer is None:
                    self._timer = self._loop.call_at(due, self._on_timer)
                return
            if batch := self._take():
                self._call(batch)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._ready and len(batch) < self._policy.max_batch_size:
            waiting = self._ready[0]
            if batch and (waiting.alone or batch[0].alone or size + waiting.message.size > MAX_CALL_BYTES):
                break
            self._ready.popleft()
            self._ready_bytes -= waiting.message.size
            if waiting.settled or waiting.delivery.withdrawn:
                self._finish(waiting)
                continue
            batch.append(waiting)
            size += waiting.message.size
        return batch

    def _call(self, batch: list[_Waiting]) -> None:
        deadline = self._loop.time() + self._policy.retry_for
        entries: list[dict[str, Any]] = []
        for number, waiting in enumerate(batch):
            entry = waiting.message.entry
            entry["Id"] = str(number)
            entries.append(entry)
            waiting.attempts += 1
            waiting.refused = ""
            if not waiting.deadline:
                waiting.deadline = deadline
                self._tried[waiting] = None
        if self._watchdog is None:
            self._watchdog = self._loop.call_at(deadline, self._on_watchdog)
        self.calls += 1
        try:
            self._submit(entries, partial(self._on_answers, batch))
        except RuntimeError:
            stopped = Refusal("the handler was stopped before it could be sent", again=False)
            self._loop.call_soon(self._on_answers, batch, [stopped] * len(batch))

    def _on_answers(self, batch: list[_Waiting], answers: Answers) -> None:
        self.calls -= 1
        again: list[_Waiting] = []
        alone: list[_Waiting] = []
        for waiting, refusal in zip(batch, answers, strict=True):
            if refusal is None or waiting.settled or waiting.delivery.withdrawn:
                self._finish(waiting)
            elif refusal.alone and len(batch) > 1:
                waiting.refused = refusal.reason
                waiting.alone = True
                alone.append(waiting)
            elif refusal.again:
                waiting.refused = refusal.reason
                again.append(waiting)
            else:
                self._finish(waiting, refusal.reason)
        if again:
            self._back_off(again)
        self._go_first(alone)

    def _back_off(self, failed: list[_Waiting]) -> None:
        """Send the failed messages of a call again, and only those, after exponential backoff with full jitter."""
        doublings = max(waiting.attempts for waiting in failed) - 1
        at = self._loop.time() + random.uniform(0.0, min(MAX_BACKOFF, FIRST_BACKOFF * 2.0**doublings))
        self._loop.call_at(at, self._go_first, failed)

    def _go_first(self, messages: list[_Waiting]) -> None:
        """Put messages, in their order, before all others, and send them without lingering."""
        for waiting in reversed(messages):
            waiting.due = 0.0
            self._ready.appendleft(waiting)
            self._ready_bytes += waiting.message.size
        self._pump()

    def _finish(self, waiting: _Waiting, reason: str | None = None) -> None:
        """Settle a message that is in no call any more, and let the next one of its group become ready."""
        if not waiting.settled:
            self._settle(waiting, reason)
        group = waiting.message.group
        if group is None or not self._policy.ordered:
            return
        behind = self._behind[group]
        if not behind:
            del self._behind[group]
            return
        following = behind.popleft()
        following.due = 0.0
        self._ready.appendleft(following)
        self._ready_bytes += following.message.size

    def _settle(self, waiting: _Waiting, reason: str | None) -> None:
        waiting.settled = True
        self._tried.pop(waiting, None)
        if reason is not None:
            waiting.delivery.rejected.append(Rejection(waiting.event, reason))
        waiting.delivery.end()

    def _on_watchdog(self) -> None:
        """Give up messages whose time is over. A call cannot be recalled, so their groups still wait for it."""
        self._watchdog = None
        now = self._loop.time()
        for waiting in list(self._tried):
            if waiting.deadline > now:
                self._watchdog = self._loop.call_at(waiting.deadline, self._on_watchdog)
                return
            within = f"within {self._policy.retry_for:g} s"
            refused = waiting.refused and f"{waiting.refused} (attempts: {waiting.attempts}, {within})"
            self._settle(waiting, refused or f"no answer {within}: it may have arrived")
