"""Compares what calls subscribers with dependencies: this library, FastAPI's private solver, and fast-depends.

Prints two tables: what each does, found by trying it; and what a call costs, as multiples of a hand-written one. Needs
fastapi==0.165.* and fast-depends==3.*; run it as `python benchmarks/dependencies.py`.
"""

import asyncio
import gc
import inspect
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from types import SimpleNamespace
from typing import Annotated, Any

import anyio.to_thread
import fast_depends
import fastapi
from fastapi.dependencies.utils import get_dependant, solve_dependencies

from fastapi_events import Event
from fastapi_events.dependencies import compile_subscriber
from fastapi_events.scope import Scope, run_in_thread

ROUNDS = 21  # interleaved, of which the median counts
SECONDS = 0.02  # one round of one engine

EVENT = Event("order.placed", 1)

Call = Callable[[Event[Any]], Awaitable[None]]


class Ours:
    """What a bus does: compiled at registration."""

    name = "fastapi_events"
    depends = staticmethod(fastapi.Depends)

    def prepare(self, subscriber: Any, overrides: dict[Any, Any]) -> Call:
        compiled = compile_subscriber(subscriber, name="subscriber")
        scope = Scope(
            SimpleNamespace(dependency_overrides=overrides, limiter=anyio.to_thread.current_default_thread_limiter)
        )
        if compiled.is_async:
            return lambda event: compiled.call(event, scope)
        return lambda event: run_in_thread(scope, compiled.call, event, scope)


class Solver:
    """What 0.12.2 and others do: FastAPI's solver, with a request made up for it."""

    name = "FastAPI's solver"
    depends = staticmethod(fastapi.Depends)

    def prepare(self, subscriber: Any, overrides: dict[Any, Any]) -> Call:
        _, *parameters = inspect.signature(subscriber, eval_str=True).parameters.values()

        def needs() -> None: ...

        needs.__signature__ = inspect.Signature(parameters)
        dependant = get_dependant(path="", call=needs)
        provider = SimpleNamespace(dependency_overrides=overrides)
        is_async = inspect.iscoroutinefunction(subscriber)

        async def call(event: Event[Any]) -> None:
            async with AsyncExitStack() as request, AsyncExitStack() as function:
                connection = {"type": "http", "query_string": b"", "headers": []}
                connection |= {"fastapi_inner_astack": request, "fastapi_function_astack": function}
                solved = await solve_dependencies(
                    request=fastapi.Request(connection),
                    dependant=dependant,
                    dependency_overrides_provider=provider,
                    async_exit_stack=request,
                    embed_body_fields=False,
                )
                if solved.errors:
                    raise ValueError(solved.errors)
                if is_async:
                    await subscriber(event, **solved.values)
                else:
                    await anyio.to_thread.run_sync(lambda: subscriber(event, **solved.values))

        return call


class FastDepends:
    """What FastStream does; its validation of arguments is turned off."""

    name = "fast-depends"
    depends = staticmethod(fast_depends.Depends)

    def prepare(self, subscriber: Any, overrides: dict[Any, Any]) -> Call:
        provider = fast_depends.Provider()
        for original, override in overrides.items():
            provider.override(original, override)
        injected: Any = fast_depends.inject(subscriber, cast=False, dependency_provider=provider)
        if inspect.iscoroutinefunction(subscriber):
            return injected
        return lambda event: anyio.to_thread.run_sync(injected, event)


Engine = Ours | Solver | FastDepends
ENGINES: tuple[Engine, ...] = (Ours(), Solver(), FastDepends())
PROBES: dict[str, Callable[[Engine], Awaitable[str]]] = {}


def probe(question: str) -> Callable[[Any], Any]:
    """Collect what finds the answer to a question."""

    def collect(function: Any) -> Any:
        PROBES[question] = function
        return function

    return collect


async def run(engine: Engine, subscriber: Any, overrides: dict[Any, Any] | None = None) -> None:
    await engine.prepare(subscriber, overrides or {})(EVENT)


def yes(answer: bool) -> str:
    return "yes" if answer else "**no**"


@probe("`fastapi.Depends`, as default and in `Annotated`")
async def takes_fastapi_depends(engine: Engine) -> str:
    seen = []

    def one() -> int:
        return 1

    async def subscriber(
        event: Event, a: int = fastapi.Depends(one), b: Annotated[Any, fastapi.Depends(one)] = None
    ) -> None:
        seen.append((a, b))

    await run(engine, subscriber)
    return yes(seen == [(1, 1)])


@probe("a Depends for applications without FastAPI")
async def has_its_own(engine: Engine) -> str:
    return yes(not isinstance(engine, Solver))


@probe("made once for a call; `use_cache=False` respected")
async def caches(engine: Engine) -> str:
    seen = []

    async def made() -> object:
        return object()

    async def subscriber(
        event: Event,
        a: Annotated[object, engine.depends(made)],
        b: Annotated[object, engine.depends(made)],
        c: Annotated[object, engine.depends(made, use_cache=False)],
    ) -> None:
        seen.append((a is b, a is c))

    await run(engine, subscriber)
    return yes(seen == [(True, False)])


async def log_of_generators(engine: Engine, *, fails: bool) -> list[str]:
    log = []

    async def first() -> AsyncIterator[None]:
        log.append("open first")
        try:
            yield
        except LookupError:
            log.append("LookupError")
            raise
        finally:
            log.append("close first")

    def second() -> Iterator[None]:
        log.append("open second")
        yield
        log.append("close second")

    async def subscriber(
        event: Event, a: Annotated[None, engine.depends(first)], b: Annotated[None, engine.depends(second)]
    ) -> None:
        log.append("handle")
        if fails:
            raise LookupError

    try:
        await run(engine, subscriber)
    except LookupError:
        log.append("raised")
    return log


@probe("`yield` dependencies are closed afterwards, in reverse order")
async def closes(engine: Engine) -> str:
    log = await log_of_generators(engine, fails=False)
    return yes(log == ["open first", "open second", "handle", "close second", "close first"])


@probe("the subscriber's exception is thrown into `yield` dependencies")
async def throws(engine: Engine) -> str:
    return yes("LookupError" in await log_of_generators(engine, fails=True))


@probe("overrides for tests")
async def overrides(engine: Engine) -> str:
    seen = []

    async def real() -> str:
        return "real"

    async def fake() -> str:
        return "fake"

    async def subscriber(event: Event, value: Annotated[str, engine.depends(real)]) -> None:
        seen.append(value)

    await run(engine, subscriber, {real: fake})
    own = "its own provider" if isinstance(engine, FastDepends) else "`app.dependency_overrides`"
    return own if seen == ["fake"] else yes(False)


@probe("visits to worker threads for three sync dependencies of an async subscriber")
async def hops(engine: Engine) -> str:
    visit: ContextVar[object] = ContextVar("visit")
    visits = set()

    def dependency() -> Callable[[], None]:
        def made() -> None:
            visit.set(visit.get(None) or object())  # a visit has a copy of the context, for all that it makes
            visits.add(visit.get() if threading.current_thread() is not threading.main_thread() else None)

        return made

    async def subscriber(
        event: Event,
        a: Annotated[None, engine.depends(dependency())],
        b: Annotated[None, engine.depends(dependency())],
        c: Annotated[None, engine.depends(dependency())],
    ) -> None: ...

    await run(engine, subscriber)
    return "0: they **block the event loop**" if None in visits else str(len(visits))


@probe("`Request` where there is none")
async def request(engine: Engine) -> str:
    seen = []

    def wants(request: fastapi.Request) -> fastapi.Request:
        return request

    async def subscriber(event: Event, request: Annotated[Any, engine.depends(wants)]) -> None:
        seen.append(request)

    try:
        await run(engine, subscriber)
    except Exception as error:
        return f"an error for the event (`{type(error).__name__}`)"
    return "a made-up one, **silently**"


@probe("`Header()` in the graph")
async def header(engine: Engine) -> str:
    def wants(token: Annotated[str, fastapi.Header()]) -> str:
        return token

    async def subscriber(event: Event, token: Annotated[str, engine.depends(wants)]) -> None: ...

    try:
        call = engine.prepare(subscriber, {})
    except Exception:
        return "refused at registration"
    try:
        await call(EVENT)
    except Exception as error:
        return f"an error for each event (`{type(error).__name__}`)"
    return "read from the made-up request"


async def settings() -> str:
    return "settings"


def sync_settings() -> str:
    return "settings"


class Graph:
    """A graph of dependencies, for one kind of Depends; `by_hand` does without any."""

    def __init__(self, depends: Any) -> None:
        async def users(settings: Annotated[str, depends(settings)]) -> str:
            return settings

        async def session(settings: Annotated[str, depends(settings)]) -> AsyncIterator[str]:
            yield settings

        def sync_users(settings: Annotated[str, depends(sync_settings)]) -> str:
            return settings

        def sync_session(settings: Annotated[str, depends(sync_settings)]) -> Iterator[str]:
            yield settings

        async def two(event: Event, users: Annotated[str, depends(users)]) -> None: ...

        async def three(
            event: Event, users: Annotated[str, depends(users)], session: Annotated[str, depends(session)]
        ) -> None: ...

        async def two_sync(event: Event, users: Annotated[str, depends(sync_users)]) -> None: ...

        def all_sync(
            event: Event, users: Annotated[str, depends(sync_users)], session: Annotated[str, depends(sync_session)]
        ) -> None: ...

        async def two_by_hand(event: Event) -> None:
            await two(event, users=await users(await settings()))

        open_session, open_sync_session = asynccontextmanager(session), contextmanager(sync_session)

        async def three_by_hand(event: Event) -> None:
            known = await settings()
            found = await users(known)
            async with open_session(known) as opened:
                await three(event, users=found, session=opened)

        async def two_sync_by_hand(event: Event) -> None:
            await two_sync(event, users=await anyio.to_thread.run_sync(lambda: sync_users(sync_settings())))

        def all_by_hand(event: Event) -> None:
            known = sync_settings()
            found = sync_users(known)
            with open_sync_session(known) as opened:
                all_sync(event, users=found, session=opened)

        self.subscribers = {
            "two coroutines": two,
            "two coroutines and an async `yield`": three,
            "two functions, async subscriber": two_sync,
            "two functions and a `yield`, sync subscriber": all_sync,
        }
        self.by_hand: dict[str, Call] = {
            "two coroutines": two_by_hand,
            "two coroutines and an async `yield`": three_by_hand,
            "two functions, async subscriber": two_sync_by_hand,
            "two functions and a `yield`, sync subscriber": lambda event: anyio.to_thread.run_sync(all_by_hand, event),
        }


async def seconds_per_call(call: Call) -> float:
    calls = 0
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < SECONDS:
        for _ in range(20):
            await call(EVENT)
        calls += 20
    return elapsed / calls


async def measure(graph: str) -> list[str]:
    """Return the microseconds of the hand-written call, and of each engine how often that it takes."""
    by_hand = Graph(fastapi.Depends).by_hand[graph]
    calls = [engine.prepare(Graph(engine.depends).subscribers[graph], {}) for engine in ENGINES]
    for call in (by_hand, *calls):
        await call(EVENT)
    base: list[float] = []
    ratios: list[list[float]] = [[] for _ in calls]
    gc.disable()
    for _ in range(ROUNDS):
        base.append(await seconds_per_call(by_hand))
        for of_engine, call in zip(ratios, calls, strict=True):
            of_engine.append(await seconds_per_call(call) / base[-1])
        gc.collect()
    gc.enable()
    times = (f"{statistics.median(of_engine):.1f} ×" for of_engine in ratios)
    return [f"{statistics.median(base) * 1e6:.1f} µs", *times]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


async def main() -> None:
    names = [engine.name for engine in ENGINES]
    print(f"FastAPI {fastapi.__version__}, fast-depends {version('fast-depends')}\n")
    print_table(
        ["", *names], [[question, *[await find(engine) for engine in ENGINES]] for question, find in PROBES.items()]
    )
    print("\nOne call of a subscriber, as multiples of a hand-written one:\n")
    print_table(
        ["dependencies", "by hand", *names],
        [[graph, *await measure(graph)] for graph in Graph(fastapi.Depends).by_hand],
    )


if __name__ == "__main__":
    asyncio.run(main())
