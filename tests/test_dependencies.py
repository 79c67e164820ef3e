"""Dependencies in subscribers, as in routes: with `fastapi.Depends` and with our own."""

import asyncio
import functools
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Body, Cookie, Depends, FastAPI, File, Form, Header, Path, Query, Security
from fastapi.security import APIKeyHeader, OAuth2PasswordBearer, SecurityScopes
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel, Field
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.websockets import WebSocket
from typing_extensions import TypeAliasType

import fastapi_events
from fastapi_events import (
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    EventModel,
    EventType,
    LocalHandler,
    Retry,
    SubscriberError,
    dispatch,
)
from fastapi_events.dependencies import compile_subscriber
from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry
from fastapi_events.scope import Scope

with_both_depends = pytest.mark.parametrize("depends", [Depends, fastapi_events.Depends], ids=["fastapi", "own"])
for_both_kinds = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])


class OrderPlaced(BaseModel):
    order_id: int = 7


class UserCreated(BaseModel):
    user_id: int = 1


async def deliver(subscriber: Any, payload: object = None) -> None:
    """Register a subscriber and hand it one event; what it raises comes out."""
    handler = LocalHandler()
    handler.register(subscriber)
    await handler.handle(Event("order.placed", payload))


def of_kind(function: Callable[..., object], is_async: bool) -> Any:
    """Return the function, or a coroutine function of the same signature."""
    if not is_async:
        return function

    async def asynchronous(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    asynchronous.__signature__ = inspect.signature(function)
    return asynchronous


class Log(list[Any]):
    """What happened, in order; the dependencies that it makes write into it."""

    def sync_generator(self, name: str) -> Callable[[], Iterator[str]]:
        def generator() -> Iterator[str]:
            self.append(f"open {name}")
            try:
                yield name
            except BaseException as error:
                self.append(f"{type(error).__name__} in {name}")
                raise
            finally:
                self.append(f"close {name}")

        return generator

    def async_generator(self, name: str) -> Callable[[], AsyncIterator[str]]:
        async def generator() -> AsyncIterator[str]:
            self.append(f"open {name}")
            try:
                yield name
            except BaseException as error:
                await asyncio.sleep(0)
                self.append(f"{type(error).__name__} in {name}")
                raise
            finally:
                await asyncio.sleep(0)
                self.append(f"close {name}")

        return generator

    def generator(self, name: str, is_async: bool) -> Callable[[], Any]:
        return self.async_generator(name) if is_async else self.sync_generator(name)


@with_both_depends
@for_both_kinds
async def test_a_dependency_is_a_default_or_part_of_the_annotation(depends: Any, is_async: bool) -> None:
    received = []

    async def one() -> int:
        return 1

    def two() -> int:
        return 2

    def subscriber(
        event: Event, a: Annotated[int, depends(one)], b: int = depends(two), *, c: int = depends(one)
    ) -> None:
        received.append((event.name, a, b, c))

    await deliver(of_kind(subscriber, is_async))

    assert received == [("order.placed", 1, 2, 1)]


@with_both_depends
@for_both_kinds
async def test_depends_without_an_argument_calls_the_type_of_the_parameter(depends: Any, is_async: bool) -> None:
    class Settings:
        def __init__(self, limit: int = 3) -> None:
            self.limit = limit

    class Service:
        def __init__(self, settings: Settings = depends()) -> None:
            self.limit = settings.limit

    received = []

    def subscriber(event: Event, a: Annotated[Service, depends()], b: Service = depends()) -> None:
        received.append((a.limit, a is b))

    await deliver(of_kind(subscriber, is_async))

    assert received == [(3, True)]


@for_both_kinds
async def test_security_is_a_dependency_like_others(is_async: bool) -> None:
    received = []

    async def made() -> object:
        return object()

    def subscriber(
        event: Event,
        shared: Annotated[object, Security(made)],
        again: Annotated[object, Depends(made)],
        scoped: object = Security(made, scopes=["admin"]),
    ) -> None:
        received.append((shared is again, shared is scoped))

    await deliver(of_kind(subscriber, is_async))

    assert received == [(True, False)]


class Callables:
    """Every kind of thing that can be a dependency; each makes 'made'."""

    class Object:
        def __call__(self) -> str:
            return "made"

    class AsyncObject:
        async def __call__(self) -> str:
            return "made"

    class GeneratorObject:
        def __call__(self) -> Iterator[str]:
            yield "made"

    class AsyncGeneratorObject:
        async def __call__(self) -> AsyncIterator[str]:
            yield "made"

    class Unhashable:
        __hash__ = None

        def __call__(self) -> str:
            return "made"

    class Class:
        def __eq__(self, other: object) -> bool:
            return other == "made"

        __hash__ = None

    def function(self) -> str:
        return "made"

    async def coroutine(self) -> str:
        return "made"

    def generator(self) -> Iterator[str]:
        yield "made"

    async def async_generator(self) -> AsyncIterator[str]:
        yield "made"

    @staticmethod
    def static() -> str:
        return "made"

    def all(self) -> dict[str, Callable[..., object]]:
        @functools.wraps(self.coroutine)
        def wrapped_coroutine() -> Awaitable[str]:
            return self.coroutine()

        @functools.wraps(self.async_generator)
        def wrapped_generator() -> AsyncIterator[str]:
            return self.async_generator()

        return {
            "function": self.function,
            "coroutine function": self.coroutine,
            "generator function": self.generator,
            "async generator function": self.async_generator,
            "lambda": lambda: "made",
            "class": self.Class,
            "static method": self.static,
            "static method, not bound": staticmethod(self.static),
            "callable object": self.Object(),
            "callable object, async": self.AsyncObject(),
            "callable object, generator": self.GeneratorObject(),
            "callable object, async generator": self.AsyncGeneratorObject(),
            "callable object without a hash": self.Unhashable(),
            "partial": functools.partial(str, "made"),
            "partial of a coroutine function": functools.partial(functools.partial(self.coroutine)),
            "partial of a generator function": functools.partial(self.generator),
            "decorated coroutine function": wrapped_coroutine,
            "decorated async generator function": wrapped_generator,
            "builtin without a signature": "made".__str__,
        }


@pytest.mark.parametrize("kind", Callables().all())
@for_both_kinds
async def test_anything_callable_can_be_a_dependency(kind: str, is_async: bool) -> None:
    dependency = Callables().all()[kind]
    received = []

    def subscriber(event: Event, value: Annotated[Any, Depends(dependency)]) -> None:
        received.append(value)

    await deliver(of_kind(subscriber, is_async))

    assert received == ["made"]


async def test_anything_callable_can_be_a_subscriber() -> None:
    received: list[object] = []

    def one() -> int:
        return 1

    class Service:
        def method(self, event: Event, value: Annotated[int, Depends(one)]) -> None:
            received.append(("method", value))

        async def async_method(self, event: Event, value: Annotated[int, Depends(one)]) -> None:
            received.append(("async method", value))

        @staticmethod
        def static(event: Event, value: Annotated[int, Depends(one)]) -> None:
            received.append(("static", value))

        async def __call__(self, event: Event, value: Annotated[int, Depends(one)]) -> None:
            received.append(("object", value))

    async def with_options(option: str, event: Event, value: Annotated[int, Depends(one)]) -> None:
        received.append((option, value))

    service = Service()
    for subscriber in (
        service.method,
        service.async_method,
        service.static,
        service,
        functools.partial(with_options, "partial"),
        received.append,
    ):
        await deliver(subscriber)

    assert received == [
        ("method", 1),
        ("async method", 1),
        ("static", 1),
        ("object", 1),
        ("partial", 1),
        Event("order.placed", None),
    ]


@for_both_kinds
async def test_arguments_that_are_positional_only_variadic_or_have_defaults(is_async: bool) -> None:
    received = []

    def two(*args: object, **kwargs: object) -> int:
        return 2 + len(args) + len(kwargs)

    def subscriber(
        event: Event, limit: int = 5, two: int = Depends(two), /, *args: int, name: str = "n", **kwargs: int
    ) -> None:
        received.append((limit, two, args, name, kwargs))

    await deliver(of_kind(subscriber, is_async))

    assert received == [(5, 2, (), "n", {})]


@for_both_kinds
async def test_dependencies_have_dependencies_and_are_made_once_for_a_call(is_async: bool) -> None:
    made = Log()
    received = []

    async def settings() -> str:
        made.append("settings")
        return "settings"

    def engine(settings: Annotated[str, Depends(settings)]) -> str:
        made.append("engine")
        return f"engine({settings})"

    async def users(engine: Annotated[str, Depends(engine)]) -> str:
        made.append("users")
        return f"users({engine})"

    def orders(engine: Annotated[str, Depends(engine)], settings: Annotated[str, Depends(settings)]) -> str:
        made.append("orders")
        return f"orders({engine}, {settings})"

    def subscriber(
        event: Event, users: Annotated[str, Depends(users)], orders: Annotated[str, Depends(orders)]
    ) -> None:
        received.append((users, orders))

    handler = LocalHandler()
    handler.register(of_kind(subscriber, is_async))
    for _ in range(2):
        await handler.handle(Event("order.placed"))

    assert received == [("users(engine(settings))", "orders(engine(settings), settings)")] * 2
    assert sorted(made) == sorted(["settings", "engine", "users", "orders"] * 2)


async def test_use_cache_false_makes_a_value_of_its_own() -> None:
    received = []

    async def made() -> object:
        return object()

    async def subscriber(
        event: Event,
        shared: Annotated[object, Depends(made)],
        again: Annotated[object, Depends(made)],
        own: Annotated[object, Depends(made, use_cache=False)],
        other: Annotated[object, Depends(made, use_cache=False)],
    ) -> None:
        received.append([shared, again, own, other])

    await deliver(subscriber)

    [[shared, again, own, other]] = received
    assert shared is again
    assert len({shared, own, other}) == 3


async def test_a_value_of_its_own_is_shared_with_what_comes_later_as_in_a_route() -> None:
    received = {}

    async def made() -> object:
        return object()

    def declared(receiver: str) -> Callable[..., Any]:
        async def function(
            event: Event = None,
            own: object = Depends(made, use_cache=False),
            shared: object = Depends(made),
            other: object = Depends(made, use_cache=False),
        ) -> None:
            received[receiver] = (own is shared, other is shared)

        return function

    route, subscriber = declared("route"), declared("subscriber")
    route.__signature__ = inspect.Signature([*inspect.signature(route).parameters.values()][1:])
    app = FastAPI()
    app.get("/")(route)
    TestClient(app).get("/")
    await deliver(subscriber)

    assert received == {"route": (True, False), "subscriber": (True, False)}


@for_both_kinds
async def test_two_subscribers_of_an_event_share_nothing_that_was_made_for_them(is_async: bool) -> None:
    log = Log()
    received: list[object] = []

    def session(name: Annotated[str, Depends(log.sync_generator("session"))]) -> object:
        return object()

    def first(event: Event, session: Annotated[object, Depends(session)]) -> None:
        received.append(session)

    def second(event: Event, session: Annotated[object, Depends(session)]) -> None:
        received.append(session)

    handler = LocalHandler()
    handler.register(of_kind(first, is_async))
    handler.register(of_kind(second, is_async))
    async with EventBus([handler]) as bus:
        bus.dispatch("order.placed")

    assert len(set(received)) == 2
    assert (log.count("open session"), log.count("close session")) == (2, 2)


@for_both_kinds
async def test_dependencies_may_be_chained_as_deep_as_one_likes(is_async: bool) -> None:
    received = []
    closed = []

    def zero() -> int:
        return 0

    def after(needed: Any, number: int) -> Any:
        async def coroutine(value: Annotated[int, Depends(needed)]) -> int:
            return value + 1

        def function(value: Annotated[int, Depends(needed)]) -> int:
            return value + 1

        async def async_generator(value: Annotated[int, Depends(needed)]) -> AsyncIterator[int]:
            yield value + 1
            closed.append(value + 1)

        def generator(value: Annotated[int, Depends(needed)]) -> Iterator[int]:
            yield value + 1
            closed.append(value + 1)

        return (coroutine, function, async_generator, generator)[number % 4]

    last: Any = zero
    for number in range(100):
        last = after(last, number)

    def subscriber(event: Event, value: Annotated[int, Depends(last)]) -> None:
        received.append(value)

    await deliver(of_kind(subscriber, is_async))

    assert received == [100]
    assert closed == [number for number in range(100, 0, -1) if number % 4 in (3, 0)]


@for_both_kinds
async def test_a_value_is_shared_only_by_declarations_of_the_same_lifetime(is_async: bool) -> None:
    # `scope` is new in FastAPI 0.121: what is declared so differs in a route, and here
    received = []

    def session() -> Iterator[object]:
        yield object()

    def declared(lifetime: str | None) -> Any:
        return Annotated[object, SimpleNamespace(dependency=session, use_cache=True, scope=lifetime)]

    def subscriber(
        event: Event,
        default: declared(None),
        request: declared("request"),
        function: declared("function"),
    ) -> None:
        received.append((default is request, default is function))

    await deliver(of_kind(subscriber, is_async))

    assert received == [(True, False)]


NODES = st.lists(
    st.tuples(
        st.sampled_from(["function", "generator"]), st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=3)
    ),
    min_size=1,
    max_size=6,
)


def graph(nodes: list[tuple[str, list[tuple[int, bool]]]], is_async: bool, log: Log) -> list[inspect.Parameter]:
    """Build dependencies that need earlier ones; return the parameters of a function that needs them all."""
    made: list[Any] = []

    def parameters(needs: list[tuple[int, bool]]) -> list[inspect.Parameter]:
        return [
            inspect.Parameter(
                f"need_{position}",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[str, Depends(made[index % len(made)], use_cache=use_cache)],
            )
            for position, (index, use_cache) in enumerate(needs if made else [])
        ]

    for kind, needs in nodes:
        name = f"{kind} {len(made)}"

        def function(name: str = name, **needs: str) -> str:
            value = f"{name}, call {len(log)}"
            log.append(f"make {value} of {list(needs.values())}")
            return value

        async def coroutine(name: str = name, **needs: str) -> str:
            return function(name, **needs)

        def generator(name: str = name, **needs: str) -> Iterator[str]:
            yield function(name, **needs)
            log.append(f"close {name}")

        async def async_generator(name: str = name, **needs: str) -> AsyncIterator[str]:
            yield function(name, **needs)
            log.append(f"close {name}")

        one: Any = (
            (coroutine if is_async else function)
            if kind == "function"
            else (async_generator if is_async else generator)
        )
        one.__signature__ = inspect.Signature(parameters(needs))
        made.append(one)
    return parameters([(index, True) for index in range(len(nodes))])


@given(nodes=NODES, is_async=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_calls_are_those_of_a_route_in_the_same_order(nodes: list[Any], is_async: bool) -> None:
    of_route, of_subscriber = Log(), Log()
    app = FastAPI()

    def endpoint(**needs: str) -> None:
        of_route.append(f"call with {list(needs.values())}")

    def subscriber(event: Event, **needs: str) -> None:
        of_subscriber.append(f"call with {list(needs.values())}")

    route = of_kind(endpoint, is_async)
    route.__signature__ = inspect.Signature(graph(nodes, is_async, of_route))
    app.get("/")(route)
    handler = LocalHandler()
    event = inspect.Parameter("event", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    subscriber.__signature__ = inspect.Signature([event, *graph(nodes, is_async, of_subscriber)])
    handler.register(of_kind(subscriber, is_async))

    TestClient(app).get("/")
    asyncio.run(handler.handle(Event("order.placed")))

    assert of_subscriber == of_route


@for_both_kinds
@pytest.mark.parametrize("generators_are_async", [True, False], ids=["async generators", "sync generators"])
async def test_what_is_open_is_closed_after_the_subscriber_in_reverse_order(
    is_async: bool, generators_are_async: bool
) -> None:
    log = Log()
    first, second = log.generator("first", generators_are_async), log.generator("second", generators_are_async)

    def subscriber(event: Event, a: Annotated[str, Depends(first)], b: Annotated[str, Depends(second)]) -> None:
        log.append(f"handle with {a} and {b}")

    await deliver(of_kind(subscriber, is_async))

    assert log == ["open first", "open second", "handle with first and second", "close second", "close first"]


@for_both_kinds
@pytest.mark.parametrize("first_is_async", [True, False])
@pytest.mark.parametrize("second_is_async", [True, False])
async def test_the_subscribers_exception_is_thrown_into_what_is_open(
    is_async: bool, first_is_async: bool, second_is_async: bool
) -> None:
    log = Log()
    first, second = log.generator("first", first_is_async), log.generator("second", second_is_async)

    def needs_both(a: Annotated[str, Depends(first)], b: Annotated[str, Depends(second)]) -> None: ...

    def subscriber(event: Event, both: Annotated[None, Depends(needs_both)]) -> None:
        raise LookupError("no such order")

    with pytest.raises(LookupError, match="no such order"):
        await deliver(of_kind(subscriber, is_async))

    assert sorted(log[:2]) == ["open first", "open second"]
    last, other = log[1].split()[1], log[0].split()[1]
    assert log[2:] == [f"LookupError in {last}", f"close {last}", f"LookupError in {other}", f"close {other}"]


@for_both_kinds
@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
@pytest.mark.parametrize("failing_is_async", [True, False], ids=["coroutine", "function"])
async def test_a_dependency_that_fails_is_a_failure_that_what_is_open_hears_of(
    is_async: bool, generator_is_async: bool, failing_is_async: bool
) -> None:
    log = Log()
    session = log.generator("session", generator_is_async)

    def failing(session: Annotated[str, Depends(session)]) -> None:
        raise LookupError("no such user")

    def subscriber(event: Event, value: Annotated[None, Depends(of_kind(failing, failing_is_async))]) -> None:
        log.append("handle")

    with pytest.raises(LookupError, match="no such user"):
        await deliver(of_kind(subscriber, is_async))

    assert log == ["open session", "LookupError in session", "close session"]


@for_both_kinds
@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
@pytest.mark.parametrize("what_fails", ["subscriber", "dependency"])
async def test_an_exception_that_a_dependency_swallows_is_a_failure_all_the_same(
    is_async: bool, generator_is_async: bool, what_fails: str
) -> None:
    def swallowing() -> Iterator[None]:
        try:
            yield
        except LookupError:
            return

    async def async_swallowing() -> AsyncIterator[None]:
        try:
            yield
        except LookupError:
            return

    def fail(where: str) -> None:
        if where == what_fails:
            raise LookupError(where)

    def dependency(_: Annotated[None, Depends(async_swallowing if generator_is_async else swallowing)]) -> None:
        fail("dependency")

    def subscriber(event: Event, _: Annotated[None, Depends(dependency)]) -> None:
        fail("subscriber")

    with pytest.raises(SubscriberError, match="caught an exception at its yield and did not raise it again") as caught:
        await deliver(of_kind(subscriber, is_async))

    assert repr(caught.value.__cause__) == f"LookupError('{what_fails}')"


@for_both_kinds
@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
async def test_a_generator_that_yields_twice_is_a_failure(is_async: bool, generator_is_async: bool) -> None:
    def twice() -> Iterator[int]:
        yield 1
        yield 2

    async def async_twice() -> AsyncIterator[int]:
        yield 1
        yield 2

    def subscriber(event: Event, _: Annotated[int, Depends(async_twice if generator_is_async else twice)]) -> None: ...

    with pytest.raises(RuntimeError, match="generator didn't stop"):
        await deliver(of_kind(subscriber, is_async))


@for_both_kinds
@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
async def test_what_cannot_be_closed_is_a_failure_that_the_dependencies_around_it_hear_of(
    is_async: bool, generator_is_async: bool
) -> None:
    log = Log()
    session = log.generator("session", generator_is_async)

    def transaction(_: Annotated[str, Depends(session)]) -> Iterator[None]:
        yield
        raise LookupError("cannot commit")

    async def async_transaction(_: Annotated[str, Depends(session)]) -> AsyncIterator[None]:
        yield
        raise LookupError("cannot commit")

    def subscriber(
        event: Event, _: Annotated[None, Depends(async_transaction if generator_is_async else transaction)]
    ) -> None:
        log.append("handle")

    with pytest.raises(LookupError, match="cannot commit"):
        await deliver(of_kind(subscriber, is_async))

    assert log == ["open session", "handle", "LookupError in session", "close session"]


@for_both_kinds
@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
async def test_a_dependency_may_turn_the_subscribers_exception_into_another(
    is_async: bool, generator_is_async: bool
) -> None:
    def translating() -> Iterator[None]:
        try:
            yield
        except LookupError as error:
            raise ValueError("no such order") from error

    async def async_translating() -> AsyncIterator[None]:
        try:
            yield
        except LookupError as error:
            raise ValueError("no such order") from error

    def subscriber(
        event: Event, _: Annotated[None, Depends(async_translating if generator_is_async else translating)]
    ) -> None:
        raise LookupError

    with pytest.raises(ValueError, match="no such order"):
        await deliver(of_kind(subscriber, is_async))


@for_both_kinds
@pytest.mark.parametrize("generators_are_async", [True, False], ids=["async generators", "sync generators"])
async def test_there_may_be_many_open_at_once(is_async: bool, generators_are_async: bool) -> None:
    log = Log()
    received = []
    names = [f"number {number}" for number in range(100)]
    parameters = [
        inspect.Parameter(
            f"p{position}",
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[str, Depends(log.generator(name, generators_are_async))],
        )
        for position, name in enumerate(names)
    ]

    def subscriber(event: Event, **values: str) -> None:
        received.extend(values.values())
        raise LookupError

    event = inspect.Parameter("event", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    subscriber.__signature__ = inspect.Signature([event, *parameters])

    with pytest.raises(LookupError):
        await deliver(of_kind(subscriber, is_async))

    assert received == names
    closed = [line for name in reversed(names) for line in (f"LookupError in {name}", f"close {name}")]
    assert log == [*(f"open {name}" for name in names), *closed]


@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
async def test_a_timeout_reaches_what_is_open(generator_is_async: bool) -> None:
    log = Log()
    session = log.generator("session", generator_is_async)

    async def subscriber(event: Event, session: Annotated[str, Depends(session)]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await deliver(subscriber)

    assert log == ["open session", "CancelledError in session", "close session"]


@pytest.mark.parametrize("generator_is_async", [True, False], ids=["async generator", "sync generator"])
async def test_a_timeout_that_a_dependency_swallows_stays_a_timeout(generator_is_async: bool) -> None:
    def swallowing() -> Iterator[None]:
        with suppress(BaseException):
            yield

    async def async_swallowing() -> AsyncIterator[None]:
        with suppress(BaseException):
            yield

    async def subscriber(
        event: Event, _: Annotated[None, Depends(async_swallowing if generator_is_async else swallowing)]
    ) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await deliver(subscriber)


async def test_what_a_thread_opened_while_its_event_was_cancelled_is_closed() -> None:
    log = Log()
    started, may_go_on = threading.Event(), threading.Event()

    def session() -> Iterator[None]:
        started.set()
        may_go_on.wait(10)
        try:
            yield
        except asyncio.CancelledError:
            log.append("rolled back")
            raise
        finally:
            log.append("closed")

    async def subscriber(event: Event, _: Annotated[None, Depends(session)]) -> None:
        log.append("handled")

    task = asyncio.create_task(deliver(subscriber))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.wait([task], timeout=0.1)
    assert not task.done()
    may_go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["rolled back", "closed"]


async def test_closing_in_a_thread_is_waited_for_however_often_its_event_is_cancelled() -> None:
    log = Log()
    closing, may_close = threading.Event(), threading.Event()

    async def connection() -> AsyncIterator[None]:
        yield
        log.append("connection closed")

    def session(_: Annotated[None, Depends(connection)]) -> Iterator[None]:
        yield
        closing.set()
        may_close.wait(10)
        log.append("session closed")

    async def subscriber(event: Event, _: Annotated[None, Depends(session)]) -> None: ...

    task = asyncio.create_task(deliver(subscriber))
    await asyncio.to_thread(closing.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    may_close.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log[0] == "session closed"


async def test_a_sync_subscriber_keeps_what_is_open_until_its_thread_ends() -> None:
    log = Log()
    started, may_go_on = threading.Event(), threading.Event()

    def subscriber(event: Event, session: Annotated[str, Depends(log.async_generator("session"))]) -> None:
        started.set()
        may_go_on.wait(10)
        log.append("handled")

    task = asyncio.create_task(deliver(subscriber))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.wait([task], timeout=0.1)
    assert log == ["open session"]
    may_go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["open session", "handled", "CancelledError in session", "close session"]


async def test_closing_does_not_wait_for_the_threads_of_the_bus() -> None:
    # each open session holds what the only thread of the bus waits for
    log = Log()
    pool = threading.Semaphore(1)

    def session() -> Iterator[None]:
        pool.acquire()
        yield
        pool.release()

    async def subscriber(event: Event, _: Annotated[None, Depends(session)]) -> None:
        await asyncio.sleep(0)
        log.append(event.payload)

    handler = LocalHandler()
    handler.register(subscriber, concurrency=4)
    async with asyncio.timeout(10), EventBus([handler], max_threads=1) as bus:
        for number in range(4):
            bus.dispatch("order.placed", number)
        await bus.drain()

    assert sorted(log) == [0, 1, 2, 3]


_hop: ContextVar[object] = ContextVar("hop")


def hop() -> tuple[bool, object]:
    """Tell whether this runs on the event loop, and in which visit to a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        visit = _hop.get(None) or object()
        _hop.set(visit)
        return False, visit
    return True, None


async def test_a_sync_subscriber_whose_dependencies_are_sync_takes_one_hop() -> None:
    hops = []

    def engine() -> Iterator[None]:
        hops.append(hop())
        yield
        hops.append(hop())

    def session(_: Annotated[None, Depends(engine)]) -> None:
        hops.append(hop())

    def subscriber(event: Event, _: Annotated[None, Depends(session)]) -> None:
        hops.append(hop())

    handler = LocalHandler()
    handler.register(subscriber)
    async with EventBus([handler]) as bus, bus.scope():
        for _ in range(3):
            bus.dispatch("order.placed")

    assert len(hops) == 12
    assert len(set(hops)) == 1  # even the events of a scope share it
    assert hops[0][0] is False


async def test_the_sync_dependencies_of_an_async_subscriber_take_one_hop() -> None:
    hops = {}

    def settings() -> None:
        hops["settings"] = hop()

    async def user() -> None:
        hops["user"] = hop()

    def engine(_: Annotated[None, Depends(settings)]) -> Iterator[None]:
        hops["engine"] = hop()
        yield

    async def tenant(_: Annotated[None, Depends(user)]) -> None:
        hops["tenant"] = hop()

    def session(a: Annotated[None, Depends(engine)], b: Annotated[None, Depends(tenant)]) -> None:
        hops["session"] = hop()

    async def subscriber(event: Event, a: Annotated[None, Depends(session)], b: Annotated[None, Depends(user)]) -> None:
        hops["subscriber"] = hop()

    await deliver(subscriber)

    on_loop = (True, None)
    assert hops["user"] == hops["tenant"] == hops["subscriber"] == on_loop
    assert hops["settings"] == hops["engine"] == hops["session"] != on_loop


async def test_a_sync_subscriber_shares_its_hop_with_what_comes_just_before() -> None:
    hops = {}

    def settings() -> None:
        hops["settings"] = hop()

    async def engine(_: Annotated[None, Depends(settings)]) -> None:
        hops["engine"] = hop()

    def session(_: Annotated[None, Depends(engine)]) -> Iterator[None]:
        hops["session"] = hop()
        yield
        hops["session closed"] = hop()

    def subscriber(event: Event, _: Annotated[None, Depends(session)]) -> None:
        hops["subscriber"] = hop()

    await deliver(subscriber)

    assert hops["engine"] == (True, None)
    assert hops["session"] == hops["subscriber"] == hops["session closed"]
    assert hops["settings"] not in (hops["engine"], hops["session"])


@for_both_kinds
async def test_context_variables_are_those_of_the_dispatch_and_may_be_reset(is_async: bool) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    seen = []

    def session() -> Iterator[str]:
        before = tenant.get()
        token = tenant.set("changed")
        yield before
        tenant.reset(token)

    async def current() -> str:
        return tenant.get()

    def subscriber(event: Event, a: Annotated[str, Depends(session)], b: Annotated[str, Depends(current)]) -> None:
        seen.append((a, b))

    tenant.set("acme")
    await deliver(of_kind(subscriber, is_async))

    assert seen == [("acme", "acme")]


@for_both_kinds
async def test_event_and_payload_are_supplied_by_type_anywhere_in_the_graph(is_async: bool) -> None:
    received = []

    def order_id(order: OrderPlaced, event: Event[OrderPlaced]) -> tuple[int, bool]:
        return order.order_id, event.payload is order

    async def maybe_user(
        user: UserCreated | None, order: OrderPlaced | UserCreated, other: UserCreated = None
    ) -> object:
        return (user, order, other)

    def subscriber(
        event: Event[OrderPlaced],
        order: OrderPlaced,
        again: Event,
        order_id: Annotated[Any, Depends(order_id)],
        maybe: Annotated[object, Depends(maybe_user)],
    ) -> None:
        received.append((order, again is event, order_id, maybe))

    await deliver(of_kind(subscriber, is_async), OrderPlaced())

    order = OrderPlaced()
    assert received == [(order, True, (7, True), (None, order, None))]


async def test_a_dependency_that_wants_another_payload_is_an_error_that_says_so() -> None:
    def user_id(user: UserCreated) -> int:
        return user.user_id

    def subscriber(event: Event, user_id: Annotated[int, Depends(user_id)]) -> None: ...

    with pytest.raises(SubscriberError, match=r"→ user_id, parameter 'user', event 'order\.placed': .* no UserCreated"):
        await deliver(subscriber, OrderPlaced())


async def test_the_bus_is_supplied_by_type() -> None:
    received = []

    def names(bus: EventBus) -> EventBus:
        return bus

    async def subscriber(event: Event, bus: EventBus, again: Annotated[EventBus, Depends(names)]) -> None:
        received.extend([bus, again])

    handler = LocalHandler()
    handler.register(subscriber)
    async with EventBus([handler]) as bus:
        bus.dispatch("order.placed")
        await bus.drain()

    assert received == [bus, bus]
    with pytest.raises(SubscriberError, match=r"parameter 'bus', event 'order\.placed': no bus delivers it"):
        await handler.handle(Event("order.placed"))


Pair = tuple[int, int]


@pytest.mark.parametrize(
    "annotation,takes_payload",
    [
        (inspect.Parameter.empty, False),
        (Any, False),
        (object, False),
        (Event, False),
        (Event[OrderPlaced], False),
        (Event[OrderPlaced] | Event[UserCreated], False),
        (Annotated[Event[OrderPlaced], "described"], False),
        (tuple, False),
        (tuple[str, Any], False),
        ("Event[OrderPlaced]", False),
        ("NotDefinedHere", False),
        ("Event[NotDefinedHere]", False),
        ("Event[NotDefinedHere] | None", False),
        (OrderPlaced, True),
        ("OrderPlaced", True),
        (Annotated[OrderPlaced, "described"], True),
        (OrderPlaced | UserCreated, True),
        (OrderPlaced | None, True),
        (dict[str, Any], True),
        (list[int], True),
        (Pair, True),
        (int, True),
    ],
)
@for_both_kinds
async def test_the_first_parameter_is_the_event_or_by_its_annotation_the_payload(
    annotation: Any, takes_payload: bool, is_async: bool
) -> None:
    received: list[object] = []

    def subscriber(first, second: Annotated[None, Depends(lambda: None)]) -> None:
        received.append(first)

    def alone(first) -> None:
        received.append(first)

    for function in (subscriber, alone):
        if annotation is not inspect.Parameter.empty:
            function.__annotations__["first"] = annotation
        await deliver(of_kind(function, is_async), {"order_id": 1})

    expected: object = {"order_id": 1} if takes_payload else Event("order.placed", {"order_id": 1})
    assert received == [expected, expected]


@pytest.mark.parametrize("annotation", [Event[Any], Event[int], int, Any], ids=str)
async def test_a_default_is_not_replaced_by_a_payload_that_happens_to_be_of_its_type(annotation: Any) -> None:
    received = []

    def limit(limit: int = 3, other=4) -> tuple[int, int]:
        return limit, other

    def subscriber(first, limits: Annotated[Any, Depends(limit)], limit: int = 3, other=4) -> None:
        received.append((limits, limit, other))

    subscriber.__annotations__["first"] = annotation
    await deliver(subscriber, 50)

    assert received == [((3, 4), 3, 4)]


async def test_a_payload_that_is_no_model_is_supplied_to_dependencies_that_want_the_same_type() -> None:
    received = []

    def total(scores: list[int]) -> int:
        return sum(scores)

    def subscriber(scores: list[int], total: Annotated[int, Depends(total)]) -> None:
        received.append((scores, total))

    await deliver(subscriber, [1, 2])

    assert received == [([1, 2], 3)]


def _needs_header(token: Annotated[str, Header()]) -> str:
    return token


def _needs_query(limit: int = Query(10)) -> int:
    return limit


def _needs_scopes(scopes: SecurityScopes = None) -> None: ...


def _needs_nothing_known(name: str) -> None: ...


def _needs_two_deep(name: Annotated[None, Depends(_needs_nothing_known)]) -> None: ...


def _needs_itself(other: "Annotated[None, Depends(_needs_it_too)]") -> None: ...


def _needs_it_too(other: "Annotated[None, Depends(_needs_itself)]") -> None: ...


REFUSED = []


def refused(reason: str) -> Callable[[Any], Any]:
    def collect(function: Any) -> Any:
        REFUSED.append(pytest.param(function, reason, id=function.__name__))
        return function

    return collect


@refused("generator cannot be a subscriber: .* return instead")
def generator(event: Event) -> Iterator[None]:
    yield


@refused("generator cannot be a subscriber: .* return instead")
async def async_generator(event: Event) -> AsyncIterator[None]:
    yield


@refused("no positional parameter to receive the event: add one")
def no_parameter() -> None: ...


@refused("no positional parameter to receive the event: add one")
def only_keywords(*, event: Event) -> None: ...


@refused("parameter 'user': the first parameter receives the event: put one before it")
def dependency_first(user: Annotated[None, Depends(lambda: None)]) -> None: ...


@refused("parameter 'event': .* annotate it with Event")
def event_or_payload(event: Event[OrderPlaced] | UserCreated) -> None: ...


@refused(r"parameter 'limit': nothing supplies it .*: give it Depends\(\) or a default")
def no_source(event: Event, limit: int) -> None: ...


@refused("→ _needs_two_deep → _needs_nothing_known, parameter 'name': nothing supplies it")
def no_source_in_the_graph(event: Event, value: Annotated[None, Depends(_needs_two_deep)]) -> None: ...


@refused(r"→ _needs_header, parameter 'token': Header\(\) reads a request, .* put the value into")
def header(event: Event, token: Annotated[str, Depends(_needs_header)]) -> None: ...


@refused(r"→ _needs_query, parameter 'limit': Query\(\) reads a request")
def query(event: Event, limit: Annotated[int, Depends(_needs_query)]) -> None: ...


@refused(r"parameter 'value': Path\(\) reads a request")
def path(event: Event, value: Annotated[str, Path()]) -> None: ...


@refused(r"parameter 'value': Cookie\(\) reads a request")
def cookie(event: Event, value: Annotated[str, Cookie()]) -> None: ...


@refused(r"parameter 'value': Body\(\) reads a request")
def body(event: Event, value: Annotated[str, Body()]) -> None: ...


@refused(r"parameter 'value': Form\(\) reads a request")
def form(event: Event, value: Annotated[str, Form()]) -> None: ...


@refused(r"parameter 'value': File\(\) reads a request")
def file(event: Event, value: Annotated[str, File()]) -> None: ...


@refused(r"parameter 'value': Field\(\) reads a request")
def field(event: Event, value: int = Field(3)) -> None: ...


@refused(r"→ _needs_scopes, parameter 'scopes': Security\(\) with scopes .* check the permission in the endpoint")
def scopes(event: Event, value: Annotated[None, Security(_needs_scopes, scopes=["admin"])]) -> None: ...


@refused("→ _needs_itself → _needs_it_too, parameter 'other': _needs_itself needs itself: take one")
def circle(event: Event, value: Annotated[None, Depends(_needs_itself)]) -> None: ...


@refused("parameter 'session': its annotation 'Session' cannot be resolved: define or import the name")
def unresolvable(event: Event, session: "Session") -> None: ...  # noqa: F821


@refused("parameter 'session': its annotation 'Session' cannot be resolved: define or import the name")
def unresolvable_type_of_depends(event: Event, session: "Session" = Depends()) -> None: ...  # noqa: F821


@refused(r"parameter 'value': max_concurrency= counts calls of routes only: take a Depends\(\) without it")
def limited(
    event: Event, value: Annotated[None, SimpleNamespace(dependency=print, use_cache=True, max_concurrency=3)]
) -> None: ...


@refused(r"parameter 'value': Depends\(\) cannot call 3: give it a function or a class")
def depends_on_no_function(event: Event, value: Annotated[int, Depends(3)]) -> None: ...


@refused("parameter 'response': the response is sent already")
def response(event: Event, response: Response) -> None: ...


@refused("parameter 'tasks': the response is sent already")
def background_tasks(event: Event, tasks: BackgroundTasks) -> None: ...


@pytest.mark.parametrize("function,reason", REFUSED)
def test_what_cannot_work_is_refused_at_registration_with_the_reason_and_what_to_do(function: Any, reason: str) -> None:
    with pytest.raises(SubscriberError, match=reason) as caught:
        LocalHandler().register(function)

    assert function.__name__ in str(caught.value)
    assert caught.value.subscriber.endswith(function.__name__)
    assert (caught.value.parameter is not None) is ("parameter '" in reason)


@for_both_kinds
async def test_annotations_that_nobody_needs_may_be_unresolvable(is_async: bool) -> None:
    received = []

    def settings(
        name: "NotImported | None" = None,  # noqa: F821
        other: "Annotated[int, NotImported(3)]" = 3,  # noqa: F821
        limit: Annotated[int, Field(gt=0)] = 3,
        rate: "int | NotImported" = 4,  # noqa: F821
    ) -> "NotImported":  # noqa: F821
        return f"settings{limit}"

    def session(
        settings: "Annotated[NotImported[int], Depends(_settings)]",  # noqa: F821
        engine: "imported.nowhere.Engine | None" = Depends(settings),  # noqa: F821
    ) -> str:
        return f"session({settings}, {engine})"

    def subscriber(event: "Event[NotImported]", session: "Annotated[NotImported, Depends(_session)]") -> "NotImported":  # noqa: F821
        received.append(session)

    session.__globals__.update(_settings=settings, _session=session)
    await deliver(of_kind(subscriber, is_async))

    assert received == ["session(settings3, settings3)"]


def test_what_is_not_callable_is_refused() -> None:
    with pytest.raises(SubscriberError, match="'send' is not callable: register a function"):
        compile_subscriber(3, name="send")  # type: ignore[arg-type]


class Engine:
    def __init__(self, limit: "int" = 4) -> None:
        self.limit = limit


Service = TypeAliasType("Service", Annotated["Engine", Depends()])


@for_both_kinds
async def test_annotations_may_be_aliases_and_name_what_comes_later(is_async: bool) -> None:
    received = []

    def later(engine: Annotated["Engine", "described"] = Depends()) -> int:
        return engine.limit

    def subscriber(event: Event, a: Service, b: "Service", c: Annotated[int, Depends(later)], d: "1 +" = 5) -> None:  # noqa: F722
        received.append((a.limit, a is b, c, d))

    await deliver(of_kind(subscriber, is_async))

    assert received == [(4, True, 4, 5)]


class OrderShipped(EventModel, name="order.shipped.of.an.alias"):
    order_id: int


class OrderReturned(EventModel, name="order.returned.of.an.alias"):
    order_id: int


EitherOrder = TypeAliasType("EitherOrder", Event[OrderShipped] | Event[OrderReturned])


async def test_an_annotation_that_is_the_subscription_may_be_an_alias_as_well() -> None:
    received = []
    handler = LocalHandler()

    @handler.on
    def of_an_alias(event: EitherOrder) -> None:
        received.append(("alias", event.payload))

    @handler.on
    def of_what_comes_later(event: "EitherOrder") -> None:
        received.append(("later", event.payload))

    @handler.on
    def described(order: Annotated["OrderReturned", "described"]) -> None:
        received.append(("described", order))

    shipped, returned = OrderShipped(order_id=1), OrderReturned(order_id=2)
    async with EventBus([handler]) as bus:
        bus.dispatch(shipped)
        bus.dispatch(returned)
        bus.dispatch("order.placed")

    assert sorted(received, key=str) == sorted(
        [("alias", shipped), ("alias", returned), ("later", shipped), ("later", returned), ("described", returned)],
        key=str,
    )


async def test_names_that_only_the_caller_knows_can_be_told() -> None:
    received = []

    class Local(BaseModel): ...

    def subscriber(payload: "Local") -> None:
        received.append(payload)

    compiled = compile_subscriber(subscriber, name="subscriber", known={"Local": Local})
    compiled.call(Event("order.placed", Local()), Scope(None))

    assert received == [Local()]


async def test_what_a_module_itself_names_comes_before_what_the_caller_knows() -> None:
    received = []

    def subscriber(payload: "Pair") -> None:
        received.append(payload)

    compiled = compile_subscriber(subscriber, name="subscriber", known={"Pair": Event})
    compiled.call(Event("order.placed", (1, 2)), Scope(None))

    assert received == [(1, 2)]


def test_signatures_are_not_read_for_an_event() -> None:
    class Dependency:
        reads = 0

        @property
        def __signature__(self) -> inspect.Signature:
            Dependency.reads += 1
            return inspect.Signature()

        def __call__(self) -> int:
            return 1

    received = []

    def subscriber(event: Event, value: Annotated[int, Depends(Dependency())]) -> None:
        received.append(value)

    handler = LocalHandler()
    handler.register(subscriber)
    assert (reads := Dependency.reads) > 0
    for _ in range(3):
        asyncio.run(handler.handle(Event("order.placed")))

    assert received == [1, 1, 1]
    assert Dependency.reads == reads


async def test_a_sync_subscriber_must_not_return_something_to_await_that_needs_closed_dependencies() -> None:
    session = Log().async_generator("session")

    async def handle() -> None: ...

    def subscriber(event: Event, session: Annotated[str, Depends(session)]) -> Awaitable[None]:
        return handle()

    with pytest.raises(SubscriberError, match=r"returned something to await, .* make it an async function"):
        await deliver(subscriber)


def serve(handler: LocalHandler, *, bus: EventBus | None = None) -> FastAPI:
    """Return an application whose `POST /orders` places an order, of which the handler hears."""
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, **({"bus": bus} if bus else {"handlers": [handler]}))

    @app.post("/orders/{number}")
    async def place(number: int) -> None:
        dispatch("order.placed", OrderPlaced(order_id=number))

    return app


@for_both_kinds
def test_a_dependency_reads_the_request_that_the_event_came_with(is_async: bool) -> None:
    received = []

    def tenant(request: Request) -> str:
        return request.headers["x-tenant"]

    async def number(connection: HTTPConnection) -> str:
        return connection.path_params["number"]

    class MyRequest(Request):
        @property
        def greeting(self) -> str:
            return f"{self.method} {self.url.path}"

    def subscriber(
        event: Event,
        tenant: Annotated[str, Depends(tenant)],
        number: Annotated[str, Depends(number)],
        request: MyRequest,
        socket: WebSocket | None,
        either: Request | WebSocket,
    ) -> None:
        received.append((tenant, number, request.greeting, socket, type(either)))

    handler = LocalHandler()
    handler.register(of_kind(subscriber, is_async))
    with TestClient(serve(handler)) as client:
        client.post("/orders/5", headers={"x-tenant": "acme"})

    assert received == [("acme", "5", "POST /orders/5", None, Request)]


@for_both_kinds
def test_what_fastapi_has_for_security_reads_the_request_that_the_event_came_with(is_async: bool) -> None:
    received = []

    def subscriber(
        event: Event,
        token: Annotated[str, Depends(OAuth2PasswordBearer("token"))],
        key: Annotated[str, Security(APIKeyHeader(name="x-key"))],
    ) -> None:
        received.append((token, key))

    handler = LocalHandler()
    handler.register(of_kind(subscriber, is_async))
    with TestClient(serve(handler)) as client:
        client.post("/orders/5", headers={"authorization": "Bearer secret", "x-key": "of the door"})

    assert received == [("secret", "of the door")]


def test_a_dependency_reads_the_websocket_that_the_event_came_with() -> None:
    received = []
    app = FastAPI()

    async def subscriber(event: Event, socket: WebSocket, connection: HTTPConnection, request: Request | None) -> None:
        received.append((socket.url.path, type(connection), request))
        try:
            await socket.accept()
        except RuntimeError as error:
            received.append(str(error))

    handler = LocalHandler()
    handler.register(subscriber)
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler])

    @app.websocket("/updates")
    async def updates(socket: WebSocket) -> None:
        await socket.accept()
        dispatch("order.placed")
        await socket.close()

    with TestClient(app) as client, client.websocket_connect("/updates"):
        pass

    assert received == [
        ("/updates", WebSocket, None),
        "a subscriber cannot read from or write to the connection: its request may have ended",
    ]


WITHOUT_FASTAPI = """
import sys

sys.modules["fastapi"] = None  # nothing can import it

from typing import Annotated

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_events import Depends, Event, EventBus, EventHandlerASGIMiddleware, LocalHandler, dispatch


async def tenant(request: Request) -> str:
    return request.headers["x-tenant"]


def log(tenant: Annotated[str, Depends(tenant)], bus: EventBus):
    yield []
    print("closed", tenant)


async def subscriber(event: Event, tenant: str = Depends(tenant), log: list = Depends(log)) -> None:
    print(event.name, tenant, log)


async def place(request: Request) -> Response:
    dispatch("order.placed")
    return Response()


handler = LocalHandler()
handler.register(subscriber)
bus = EventBus([handler])
app = Starlette(routes=[Route("/orders", place, methods=["POST"])])
app.add_middleware(EventHandlerASGIMiddleware, bus=bus)
with TestClient(app) as client:
    client.post("/orders", headers={"x-tenant": "acme"})
    bus.dependency_overrides[tenant] = lambda: "of a test"
    client.post("/orders")
"""


def test_applications_of_starlette_alone_use_our_own_depends() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_FASTAPI], capture_output=True, text=True, check=False)

    assert ran.stdout.splitlines() == [
        "order.placed acme []", "closed acme", "order.placed of a test []", "closed of a test",
    ], ran.stderr  # fmt: skip


@for_both_kinds
async def test_an_event_without_a_request_is_an_error_for_who_needs_one(is_async: bool) -> None:
    received = []

    def tenant(request: Request) -> str:
        return request.headers["x-tenant"]

    def needs(event: Event, tenant: Annotated[str, Depends(tenant)]) -> None:
        received.append(tenant)

    def is_prepared(event: Event, request: Request | None, other: Request = "default") -> None:
        received.append((request, other))

    with pytest.raises(SubscriberError, match=r"→ tenant, parameter 'request', event 'order\.placed': .* `| None`"):
        await deliver(of_kind(needs, is_async))
    await deliver(of_kind(is_prepared, is_async))

    assert received == [(None, "default")]


@pytest.mark.parametrize("wanted", [Request, WebSocket])
def test_an_event_with_another_kind_of_connection_is_an_error_for_who_needs_one(wanted: type[HTTPConnection]) -> None:
    failures = []

    async def subscriber(event: Event, connection: wanted) -> None: ...

    handler = LocalHandler()
    handler.register(subscriber)
    app = FastAPI()
    app.add_middleware(EventHandlerASGIMiddleware, handlers=[handler], on_error=failures.append)

    @app.get("/orders")
    async def place() -> None:
        dispatch("Request")

    @app.websocket("/updates")
    async def updates(socket: WebSocket) -> None:
        await socket.accept()
        dispatch("WebSocket")
        await socket.close()

    with TestClient(app) as client:
        client.get("/orders")
        with client.websocket_connect("/updates"):
            pass

    [failure] = failures
    assert failure.event.name != wanted.__name__
    assert f"it came without a {wanted.__name__}: annotate it with `| None`" in str(failure.exception)


def real() -> str:
    return "real"


async def real_coroutine() -> str:
    return "real"


def real_generator() -> Iterator[str]:
    yield "real"


async def real_async_generator() -> AsyncIterator[str]:
    yield "real"


def fake_part() -> str:
    return "fake"


def fake(part: Annotated[str, Depends(fake_part)]) -> str:
    return part


async def fake_coroutine(part: Annotated[str, Depends(fake_part)]) -> str:
    asyncio.get_running_loop()  # raises elsewhere
    return part


def fake_generator(part: Annotated[str, Depends(fake_part)]) -> Iterator[str]:
    try:
        yield part
    except LookupError as error:
        error.add_note("seen by a fake")
        raise


async def fake_async_generator(part: Annotated[str, Depends(fake_part)]) -> AsyncIterator[str]:
    await asyncio.sleep(0)
    try:
        yield part
    except LookupError as error:
        await asyncio.sleep(0)
        error.add_note("seen by a fake")
        raise


class FakeClass:
    def __eq__(self, other: object) -> bool:
        return other == "fake"

    __hash__ = None


@pytest.mark.parametrize("override", [fake, fake_coroutine, fake_generator, fake_async_generator, FakeClass])
@pytest.mark.parametrize("original", [real, real_coroutine, real_generator, real_async_generator])
@for_both_kinds
async def test_anything_may_override_anything(override: Any, original: Any, is_async: bool) -> None:
    received = []

    def between(value: Annotated[str, Depends(original)]) -> str:
        return value

    def subscriber(
        event: Event, value: Annotated[str, Depends(between)], again: Annotated[str, Depends(original)]
    ) -> None:
        received.append((value, again))
        if event.payload:
            raise LookupError("no such order")

    failures = []
    handler = LocalHandler()
    handler.register(of_kind(subscriber, is_async))
    async with asyncio.timeout(10), EventBus([handler], max_threads=1, on_error=failures.append) as bus:
        bus.dispatch("order.placed", 0)
        await bus.drain()
        bus.dependency_overrides[original] = override
        bus.dispatch("order.placed", 0)
        bus.dispatch("order.placed", 1)
        await bus.drain()
        bus.dependency_overrides.clear()
        bus.dispatch("order.placed", 0)
        await bus.drain()

    assert received == [("real", "real"), ("fake", "fake"), ("fake", "fake"), ("real", "real")]
    [failure] = failures
    opens = override in (fake_generator, fake_async_generator)
    assert repr(failure.exception) == "LookupError('no such order')"
    assert hasattr(failure.exception, "__notes__") is opens


@for_both_kinds
def test_overrides_of_the_application_apply_to_the_events_of_its_requests(is_async: bool) -> None:
    received = []

    def subscriber(
        event: Event, value: Annotated[str, Depends(real)], other: Annotated[str, Depends(real_coroutine)]
    ) -> None:
        received.append((event.payload.order_id, value, other))

    handler = LocalHandler()
    handler.register(of_kind(subscriber, is_async))
    bus = EventBus([handler])
    app = serve(handler, bus=bus)
    with TestClient(app) as client:
        client.post("/orders/1")
        app.dependency_overrides[real] = fake
        client.post("/orders/2")
        app.dependency_overrides[real] = lambda: "another"
        bus.dependency_overrides = {
            real: lambda: "the application's is preferred",
            real_coroutine: lambda: "of the bus",
        }
        client.post("/orders/3")
        app.dependency_overrides.clear()
        client.post("/orders/4")
        bus.dependency_overrides.clear()
        client.post("/orders/5")

    assert received == [
        (1, "real", "real"),
        (2, "fake", "real"),
        (3, "another", "of the bus"),
        (4, "the application's is preferred", "of the bus"),
        (5, "real", "real"),
    ]


def test_overrides_apply_where_the_middleware_is_around_the_application() -> None:
    received = []

    async def subscriber(event: Event, value: Annotated[str, Depends(real)]) -> None:
        received.append((event.name, value))
        if len(received) == 1:
            raise OSError("tried again")
        if event.name == "order.placed":
            dispatch("order.confirmed")

    handler = LocalHandler()
    handler.register(subscriber, retry=Retry(initial=0.0))
    app = FastAPI()
    app.dependency_overrides[real] = fake
    bus = EventBus([handler])
    is_over = asyncio.Event()
    later = []

    async def dispatch_when_all_is_over() -> None:
        await is_over.wait()
        dispatch("order.forgotten")

    @app.get("/first")
    async def first() -> None:
        dispatch("order.placed")
        later.append(asyncio.create_task(dispatch_when_all_is_over()))

    @app.get("/second")
    async def second() -> None:
        await bus.drain()
        is_over.set()
        await asyncio.wait(later)

    with TestClient(EventHandlerASGIMiddleware(app, bus=bus)) as client:
        client.get("/first")
        client.get("/second")

    assert received == [
        ("order.placed", "fake"),
        ("order.placed", "fake"),
        ("order.confirmed", "fake"),
        ("order.forgotten", "fake"),
    ]


async def test_the_signature_of_an_override_is_not_read_for_an_event() -> None:
    class Override:
        reads = 0

        @property
        def __signature__(self) -> inspect.Signature:
            Override.reads += 1
            return inspect.Signature()

        def __call__(self) -> str:
            return "fake"

    received = []

    def subscriber(event: Event, value: Annotated[str, Depends(real)]) -> None:
        received.append((value, Override.reads))

    handler = LocalHandler()
    handler.register(subscriber)
    async with EventBus([handler]) as bus:
        bus.dependency_overrides[real] = Override()
        for _ in range(3):
            bus.dispatch("order.placed")

    assert len(received) == 3
    assert len(set(received)) == 1


async def test_an_exception_that_an_override_swallows_is_a_failure_all_the_same() -> None:
    async def swallowing() -> AsyncIterator[str]:
        with suppress(LookupError):
            yield "fake"

    def subscriber(event: Event, value: Annotated[str, Depends(real)]) -> None:
        raise LookupError(value)

    failures = []
    handler = LocalHandler()
    handler.register(subscriber)
    async with EventBus([handler], on_error=failures.append) as bus:
        bus.dependency_overrides[real] = swallowing
        bus.dispatch("order.placed")

    [failure] = failures
    assert "caught an exception at its yield and did not raise it again" in str(failure.exception)
    assert repr(failure.exception.__cause__) == "LookupError('fake')"


async def test_an_override_that_cannot_work_fails_the_event_and_says_why() -> None:
    def impossible(name: str) -> str:
        return name

    def subscriber(event: Event, value: Annotated[str, Depends(real)]) -> None: ...

    failures = []
    handler = LocalHandler()
    handler.register(subscriber)
    async with EventBus([handler], on_error=failures.append) as bus:
        bus.dependency_overrides[real] = impossible
        bus.dispatch("order.placed")
        await bus.drain()

    assert "→ impossible, parameter 'name': nothing supplies it" in str(failures[0].exception)


async def test_a_model_that_only_the_function_around_knows_is_recognised_in_annotations() -> None:
    class Shipped(EventModel, name="order.shipped.locally"):
        order_id: int

    class Returned(BaseModel):
        order_id: int

    returned = EventType("order.returned.locally", Returned, registry=EventPayloadSchemaRegistry())
    received: list[Any] = []
    handler = LocalHandler()

    def order_id(order: "Shipped") -> int:
        return order.order_id

    def bare(order: "Shipped", order_id: int = Depends(order_id)) -> None:
        received.append((order, order_id))

    def envelope(event: "Event[Shipped]", order: "Shipped") -> None:
        received.append((event.payload, order))

    def of_type(order: "Returned") -> None:
        received.append(order)

    def of_union(order: "Shipped | Returned") -> None:
        received.append(order)

    handler.register(Shipped)(bare)
    handler.register(Shipped)(envelope)
    handler.register(returned)(of_type)
    handler.register(Shipped, returned)(of_union)
    shipped = Shipped(order_id=3)
    await handler.handle(Event("order.shipped.locally", shipped))
    await handler.handle(Event("order.returned.locally", Returned(order_id=4)))

    assert received == [(shipped, 3), (shipped, shipped), shipped, Returned(order_id=4), Returned(order_id=4)]
