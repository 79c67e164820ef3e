"""From the steps of a subscriber's dependencies to one generated function."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from fastapi_events.dependencies.hops import in_bus_thread, opened_in_thread
from fastapi_events.errors import SubscriberError
from fastapi_events.event import Event
from fastapi_events.scope import Scope

__all__ = ["Call", "Step", "write_plan"]

Call: TypeAlias = Callable[[Event[Any], Scope], Any]

DEEPEST: Final = 8  # generators within one another as blocks: two blocks each, of which CPython compiles 20


@dataclass(eq=False, frozen=True)
class Step:
    """A call in a plan: of the subscriber, of a dependency, or of what visits a thread for several of them.

    Attributes:
        source: the call.
        value: what it makes.
        label: its name, for people.
        is_async: it is made on the event loop, otherwise in a thread.
        opens: it makes a context manager, whose value is meant.
        needs: what other steps make for it.
        before: lines that come before it.
    """

    source: str
    value: str
    label: str
    is_async: bool
    opens: bool
    needs: Collection[str] = ()
    before: Sequence[str] = ()

    def written(self, enter: str = "") -> list[str]:
        """Return its lines; `enter` is what enters a context manager."""
        source = f"{enter}({self.source})" if self.opens else self.source
        return [*self.before, f"{self.value} = {source}  # {self.label}"]


def write_plan(
    steps: Sequence[Step],
    names: Mapping[str, Any],
    *,
    is_async: bool,
    in_thread: Callable[..., Any] = in_bus_thread,
) -> Call:
    """Return a function of event and scope that makes the steps, of which the subscriber is the last.

    Its docstring is its source. For a coroutine `send(order, *, user, session)`, whose `user` comes from a coroutine,
    and `session` from a sync generator, that is

        async def call(event, scope):
            other = overridden(scope)
            if other is not None:
                return await other(event, scope)
            failure = None
            try:
                value_0 = await make_0()  # current_user
                def hop(stack):
                    value_1 = stack.enter_context(make_1())  # open_session
                    return (value_1,)
                async with opened_in_thread(in_thread, scope, hop, swallowed) as (value_1,):  # open_session
                    try:
                        value_2 = await make_2(event.payload, user=value_0, session=value_1)  # send
                        return
                    except BaseException as error:
                        failure = error
                        scope.closing |= {task()}
                        raise
                raise swallowed(failure)
            finally:
                if failure is not None:
                    scope.closing -= {task()}

    Args:
        steps: each after the steps that it needs.
        names: what they call; and `overridden`, where dependencies can be: it returns what to call instead.
        is_async: whether the function is to be a coroutine function. If not, all of it runs in a worker thread.
        in_thread: runs a function in a worker thread.
    """
    *before, last = steps
    if not last.is_async:
        steps = [*before, replace(last, source=f"check({last.source})")]
    prefix, wait = ("async ", "await ") if is_async else ("", "")
    body = _nest(_on_loop(steps) if is_async else steps, prefix)
    if "overridden" in names:
        guard = ["other = overridden(scope)", "if other is not None:", f"    return {wait}other(event, scope)"]
        body = [*guard, *body]
    source = "\n".join([f"{prefix}def call(event, scope):", *_indent(body)])
    name = last.label
    namespace: dict[str, Any] = {
        **names,
        "AsyncExitStack": AsyncExitStack,
        "ExitStack": ExitStack,
        "check": partial(_check, name),
        "in_thread": in_thread,
        "opened_in_thread": opened_in_thread,
        "swallowed": partial(_swallowed, name),
        "task": asyncio.current_task,
    }
    exec(compile(source, f"<plan of {name}>", "exec"), namespace)
    call: Call = namespace["call"]
    call.__doc__ = source
    return call


def _nest(steps: Sequence[Step], prefix: str) -> list[str]:
    """Write the steps one below the other, what follows the opening of something inside of its block."""
    blocks = sum(step.opens for step in steps)
    # so a failure is known even if what is open swallows it; and on the loop a drain lets it be closed
    remember = ["except BaseException as error:", "    failure = error", "    raise"]
    if prefix:
        remember.insert(2, "    scope.closing |= {task()}")
    if blocks > DEEPEST:
        enter = "await stack.enter_async_context" if prefix else "stack.enter_context"
        inside = [line for step in steps for line in step.written(enter)]
        body = [
            f"{prefix}with {'Async' if prefix else ''}ExitStack() as stack:",
            *_indent(["try:", *_indent([*inside, "return"]), *remember]),
        ]
    else:
        body = ["return"] if blocks else []
        for step in reversed(steps):
            if step.opens:
                block = f"{prefix}with {step.source} as {step.value}:  # {step.label}"
                body = [*step.before, block, *_indent(["try:", *_indent(body), *remember])]
            else:
                body = [*step.written(), *body]
    if not blocks:
        return body
    body = [*body, "raise swallowed(failure)"]
    if prefix:
        forget = ["finally:", "    if failure is not None:", "        scope.closing -= {task()}"]
        body = ["try:", *_indent(body), *forget]
    return ["failure = None", *body]


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _on_loop(steps: Sequence[Step]) -> list[Step]:
    """Return the steps as a function on the event loop makes them, with as few visits to threads as possible."""
    first = steps[0].is_async
    ways = [_alternate(steps, is_async) for is_async in (first, not first)]
    way = min(ways, key=lambda segments: sum(not segment[0].is_async for segment in segments))
    made: list[Step] = []
    for segment in way:
        made += segment if segment[0].is_async else [_visit(segment, segment[-1] is steps[-1])]
    return made


def _alternate(steps: Sequence[Step], is_async: bool) -> list[list[Step]]:
    """Make all that can be made here, then all that can be made there, and so on; the subscriber at the end."""
    segments: list[list[Step]] = []
    left = {step.value: step for step in steps}
    while left:
        segment: list[Step] = []
        for step in [*left.values()]:
            waits = len(left) > 1 if step is steps[-1] else not left.keys().isdisjoint(step.needs)
            if step.is_async is is_async and not waits:
                segment.append(left.pop(step.value))
        segments += [segment] if segment else []
        is_async = not is_async
    return segments


def _visit(steps: Sequence[Step], is_last: bool) -> Step:
    """Return the steps that one thread makes, and on the way back closes, as one step."""
    label = ", ".join(step.label for step in steps)
    values = f"({', '.join(step.value for step in steps)},)"
    opens = not is_last and any(step.opens for step in steps)
    if is_last:
        values, inside = steps[-1].value, _nest(steps, "")
    else:
        inside = [line for step in steps for line in step.written("stack.enter_context")] + [f"return {values}"]
    hop = [f"def hop({'stack' if opens else ''}):", *_indent(inside)]
    source = "opened_in_thread(in_thread, scope, hop, swallowed)" if opens else "await in_thread(scope, hop)"
    return Step(source, values, label, True, opens, before=hop)


def _check(subscriber: str, result: object) -> None:
    if result is not None and isawaitable(result):
        if asyncio.iscoroutine(result):
            result.close()
        problem = "returned something to await, when its dependencies are closed already: make it an async function"
        raise SubscriberError(f"subscriber {subscriber!r} {problem}", subscriber=subscriber)


def _swallowed(subscriber: str, failure: BaseException | None) -> BaseException:
    if isinstance(failure, asyncio.CancelledError):
        return failure
    problem = "caught an exception at its yield and did not raise it again: end its except block with raise"
    error = SubscriberError(f"a dependency of subscriber {subscriber!r} {problem}", subscriber=subscriber)
    error.__cause__ = failure
    return error
