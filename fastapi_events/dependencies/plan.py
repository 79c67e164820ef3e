"""From the steps of a subscriber's dependencies to one generated function."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from anyio import from_thread

from fastapi_events.dependencies.hops import Hop, opened_on_loop
from fastapi_events.dependencies.signatures import Kind
from fastapi_events.errors import SubscriberError
from fastapi_events.event import Event
from fastapi_events.scope import Scope, run_in_thread

__all__ = ["Call", "Step", "write_plan"]

Call: TypeAlias = Callable[[Event[Any], Scope], Any]

_Item: TypeAlias = tuple[list[str], bool]  # lines, and whether what follows belongs into the block that they open

DEEPEST: Final = 8  # generators within one another in one function: two blocks each, of which CPython compiles 20


@dataclass(eq=False)
class Step:
    """One call that a plan makes.

    Attributes:
        call: what to call.
        kind: how; None for what the library itself makes, at once.
        label: its name, for people.
        arguments: keyword (None: by position) and value, which is an earlier step's or an expression.
        number: its place in the plan.
    """

    call: Callable[..., Any]
    kind: Kind | None
    label: str
    arguments: "list[tuple[str | None, Step | str]]"
    number: int = 0

    @property
    def in_thread(self) -> bool:
        return self.kind in (Kind.FUNCTION, Kind.GENERATOR)

    @property
    def needs(self) -> "list[Step]":
        return [value for _, value in self.arguments if isinstance(value, Step)]

    @property
    def opens(self) -> bool:
        return self.kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR)

    @property
    def value(self) -> str:
        return f"value_{self.number}"

    @property
    def source(self) -> str:
        arguments = ", ".join(
            (f"{keyword}=" if keyword else "") + (value.value if isinstance(value, Step) else value)
            for keyword, value in self.arguments
        )
        return f"make_{self.number}({arguments})"


def write_plan(
    steps: Sequence[Step], *, is_async: bool, overridden: Callable[[Scope], Call | None] | None = None
) -> Call:
    """Return a function of event and scope that makes the steps, of which the subscriber is the last.

    Its docstring is its source. For a coroutine `send(order, *, user, session)`, whose `session` comes from a sync
    generator that needs `settings`, which come from a coroutine as `user` does, that is

        async def call(event, scope):
            other = overridden(scope)
            if other is not None:
                return await other(event, scope)
            failure = None
            value_0 = await make_0(event=event)  # current_user
            value_1 = await make_1()  # settings
            def hop(stack):
                value_2 = stack.enter_context(make_2(settings=value_1))  # open_session
                return (value_2,)
            async with Hop(scope, hop, swallowed) as (value_2,):
                try:
                    await make_3(event.payload, user=value_0, session=value_2)  # send
                    return
                except BaseException as error:
                    failure = error
                    raise
            raise swallowed(failure)

    Args:
        steps: each after the steps that it needs.
        is_async: whether the function is to be a coroutine function. If not, all of it runs in a worker thread; what
            is asynchronous all the same (an override can be) makes the thread wait for the event loop.
        overridden: what to call instead while dependencies are overridden.
    """
    for number, step in enumerate(steps):
        step.number = number
    items = _items_on_loop(steps) if is_async else _items_in_thread(steps)
    prefix, wait = ("async ", "await ") if is_async else ("", "")
    guard = ["other = overridden(scope)", "if other is not None:", f"    return {wait}other(event, scope)"]
    lines = [f"{prefix}def call(event, scope):", *_indent(guard if overridden else []), *_indent(_nest(items, prefix))]
    name = steps[-1].label
    namespace: dict[str, Any] = {f"make_{step.number}": _maker(step, is_async=is_async) for step in steps}
    namespace.update(
        Hop=Hop,
        check=partial(_check_result, name),
        overridden=overridden,
        run_in_thread=run_in_thread,
        swallowed=partial(_swallowed, name),
    )
    source = "\n".join(lines)
    exec(compile(source, f"<plan of {name}>", "exec"), namespace)
    call: Call = namespace["call"]
    call.__doc__ = source
    return call


def _maker(step: Step, *, is_async: bool) -> Callable[..., Any]:
    match step.kind:
        case Kind.GENERATOR:
            return contextmanager(step.call)
        case Kind.ASYNC_GENERATOR:
            manager = asynccontextmanager(step.call)
            return manager if is_async else lambda *args, **kwargs: opened_on_loop(manager(*args, **kwargs))
        case Kind.COROUTINE if not is_async:
            return lambda *args, **kwargs: from_thread.run(partial(step.call, *args, **kwargs))
        case _:
            return step.call


def _nest(items: Sequence[_Item], prefix: str) -> list[str]:
    """Write the items one below the other, what follows a block's opening inside of it."""
    opening = [index for index, (_, opens) in enumerate(items) if opens]
    if not opening:
        return [line for lines, _ in items for line in lines]
    if len(opening) > DEEPEST:
        split = opening[DEEPEST - 1] + 1
        wait = "await " if prefix else ""
        deeper = [f"{prefix}def deeper():", *_indent(_nest(items[split:], prefix)), f"return {wait}deeper()"]
        return _nest([*items[:split], (deeper, False)], prefix)
    *before, (last, _) = items
    body = [*last, "return"]
    for lines, opens in reversed(before):
        body = [*lines, *(_indent(_remembering_failure(body)) if opens else body)]
    return ["failure = None", *body, "raise swallowed(failure)"]


def _remembering_failure(body: list[str]) -> list[str]:
    return ["try:", *_indent(body), "except BaseException as error:", "    failure = error", "    raise"]


def _items_in_thread(steps: Sequence[Step]) -> list[_Item]:
    *before, last = steps
    items: list[_Item] = [
        ([f"with {step.source} as {step.value}:  # {step.label}" if step.opens else _assignment(step)], step.opens)
        for step in before
    ]
    return [*items, ([f"check({last.source})  # {last.label}"], False)]


def _items_on_loop(steps: Sequence[Step]) -> list[_Item]:
    items: list[_Item] = []
    for segment in _segments(steps):
        if not segment[0].in_thread:
            for step in segment:
                if step.opens:
                    items.append(([f"async with {step.source} as {step.value}:  # {step.label}"], True))
                elif step is steps[-1]:
                    items.append(([f"await {step.source}  # {step.label}"], False))
                else:
                    items.append(([_assignment(step, "" if step.kind is None else "await ")], False))
        elif segment[-1] is steps[-1]:
            hop = ["def hop():", *_indent(_nest(_items_in_thread(segment), ""))]
            items.append(([*hop, "await run_in_thread(scope, hop, to_end=True)"], False))
        else:
            items.append(_hop(segment))
    return items


def _hop(segment: Sequence[Step]) -> _Item:
    """Write the steps that one thread makes, and on the way back closes, for a function on the event loop."""
    values = f"({', '.join(step.value for step in segment)},)"
    opens = any(step.opens for step in segment)
    lines = [
        f"{step.value} = stack.enter_context({step.source})  # {step.label}" if step.opens else _assignment(step)
        for step in segment
    ]
    hop = [f"def hop({'stack' if opens else ''}):", *_indent([*lines, f"return {values}"])]
    if opens:
        return [*hop, f"async with Hop(scope, hop, swallowed) as {values}:"], True
    return [*hop, f"{values} = await run_in_thread(scope, hop, to_end=True)"], False


def _segments(steps: Sequence[Step]) -> list[list[Step]]:
    """Group the steps by where they run, so that threads are entered as rarely as possible.

    Steps keep their order within a group.
    """
    first = steps[0].in_thread
    ways = [_alternate(steps, in_thread) for in_thread in (first, not first)]
    return min(ways, key=lambda segments: sum(segment[0].in_thread for segment in segments))


def _alternate(steps: Sequence[Step], in_thread: bool) -> list[list[Step]]:
    """Make all that can be made here, then all that can be made there, and so on."""
    segments: list[list[Step]] = []
    made: set[Step] = set()
    while len(made) < len(steps):
        segment: list[Step] = []
        for step in steps:
            needed = steps[:-1] if step is steps[-1] else step.needs
            if step not in made and step.in_thread is in_thread and made.issuperset(needed):
                segment.append(step)
                made.add(step)
        if segment:
            segments.append(segment)
        in_thread = not in_thread
    return segments


def _assignment(step: Step, wait: str = "") -> str:
    return f"{step.value} = {wait}{step.source}  # {step.label}"


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _check_result(subscriber: str, result: object) -> None:
    if result is not None and isawaitable(result):
        if asyncio.iscoroutine(result):
            result.close()
        raise SubscriberError(
            f"subscriber {subscriber!r} returned something to await, when its dependencies are closed already: "
            "make it an async function",
            subscriber=subscriber,
        )


def _swallowed(subscriber: str, failure: BaseException | None) -> BaseException:
    if isinstance(failure, asyncio.CancelledError):
        return failure
    error = SubscriberError(
        f"a dependency of subscriber {subscriber!r} caught an exception at its yield and did not raise it again: "
        "end its except block with raise",
        subscriber=subscriber,
    )
    error.__cause__ = failure
    return error
