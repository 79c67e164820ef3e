"""Functions that receive events: what they subscribe to, how they are called, what cannot be one."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from enum import Enum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from fastapi_events import (
    ConfigurationError,
    Event,
    EventBus,
    EventModel,
    EventNameMissingError,
    EventType,
    FastAPIEventsError,
    LocalHandler,
    Retry,
    SubscriberError,
    dispatch,
    registry,
)
from fastapi_events.handlers.annotations import name_of_function


class OrderPlaced(BaseModel):
    __event_name__ = "order.placed"
    id: int = 1


class OrderPaid(BaseModel):
    __event_name__ = "order.paid"


class Nameless(BaseModel):
    pass


class Kind(Enum):
    PLACED = "order.placed"
    NUMBER = 7


class TextKind(str, Enum):
    PLACED = "order.placed"


@pytest.fixture
def scores() -> Iterator[EventType[list[int]]]:
    with registry.isolated():
        yield EventType("scores", list[int])


def names_for(handler: LocalHandler, *names: str) -> list[str]:
    """Return which of these names have a subscriber, each as often as it has."""
    return [name for name in names for _ in handler.matching_subscribers(name)]


async def call(handler: LocalHandler, name: str, payload: object = None) -> None:
    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch(name, payload)
        stats = bus.stats()
    assert (stats.failed, stats.pending) == (0, 0)


NAMES = ("order.placed", "order.paid", "Order.placed", "invoice.sent", "order", "scores", "")


# What they subscribe to


@pytest.mark.parametrize(
    "what, names",
    [
        (["order.placed"], ["order.placed"]),
        (["order.*"], ["order.placed", "order.paid"]),
        (["order.*", "*.placed"], ["order.placed", "order.paid", "Order.placed"]),
        (["order.p[l]*"], ["order.placed"]),
        (["order.[!x]*"], ["order.placed", "order.paid"]),
        (["order.p???"], ["order.paid"]),
        (["ORDER.*"], []),
        (["*"], list(NAMES)),
        ([OrderPlaced], ["order.placed"]),
        ([OrderPlaced, OrderPaid, "invoice.*"], ["order.placed", "order.paid", "invoice.sent"]),
        ([OrderPlaced | OrderPaid], ["order.placed", "order.paid"]),
        ([Kind.PLACED], ["order.placed"]),
        ([TextKind.PLACED], ["order.placed"]),
        ([], list(NAMES)),
    ],
    ids=str,
)
def test_what_register_takes(what, names):
    handler = LocalHandler()

    @handler.register(*what)
    async def subscriber(event: Event[Any]) -> None: ...

    assert names_for(handler, *NAMES) == names


@pytest.mark.parametrize("event_name", ["order.*", "order.placed", Kind.PLACED, TextKind.PLACED])
def test_register_takes_event_name(event_name):
    handler = LocalHandler()
    handler.register(event_name=event_name)(lambda event: None)
    handler.register("scores", event_name=event_name)(lambda event: None)
    assert names_for(handler, "order.placed", "scores", "other") == ["order.placed", "order.placed", "scores"]


def test_register_takes_event_types(scores):
    handler = LocalHandler()

    @handler.register(scores, "other")
    async def subscriber(event: Event[Any]) -> None: ...

    assert names_for(handler, *NAMES, "other") == ["scores", "other"]


def test_register_takes_the_function_first():
    handler = LocalHandler()

    async def subscriber(event: Event[Any]) -> None: ...

    assert handler.register(subscriber, OrderPlaced, "scores") is subscriber
    assert names_for(handler, *NAMES) == ["order.placed", "scores"]


def test_a_bare_decorator_means_all_and_decorators_return_the_function():
    handler = LocalHandler()

    async def subscriber(event: Event[Any]) -> None: ...

    assert handler.register(subscriber) is subscriber
    assert handler.register()(subscriber) is subscriber
    assert handler.register("a", OrderPlaced)(subscriber) is subscriber
    assert handler.on(subscriber) is subscriber
    assert handler.on()(subscriber) is subscriber
    assert names_for(handler, *NAMES) == list(NAMES)


@pytest.mark.parametrize(
    "name", ["a[b]", "[", "a[b", "]", "*", "a*b?", "a[!b]", "a\\", "a\nb", "ä.[ö]", "(?i)x", "^x$", "a."]
)
def test_an_exact_name_matches_itself(name):
    handler = LocalHandler()
    handler.register(name)(lambda event: None)
    assert names_for(handler, name) == [name]
    if name != "*":
        assert names_for(handler, f"{name}x", f"x{name}") in ([], [f"{name}x"])
        assert names_for(handler, name.upper()) == ([name.upper()] if name.upper() == name else [])


def test_a_dot_is_a_dot_and_a_pattern_covers_the_whole_name():
    handler = LocalHandler()
    handler.register("order.placed", "a.*")(lambda event: None)
    assert names_for(handler, "orderXplaced", "order.placed.again", "my.order.placed", "aXb", "a.", "a.b\nc") == [
        "a.",
        "a.b\nc",
    ]


def test_a_registered_base_model_means_its_own_name():
    with registry.isolated():

        class OrderEvent(EventModel, name="order.event"):
            pass

        class OrderShipped(OrderEvent, name="order.shipped"):
            pass

        handler = LocalHandler()
        handler.register(OrderEvent)(lambda event: None)
        assert names_for(handler, "order.event", "order.shipped") == ["order.event"]


@pytest.mark.parametrize("what", [int, 7, 1.5, b"a", Kind, Kind.NUMBER, [OrderPlaced], {"a"}, dict[str, int]], ids=repr)
def test_what_stands_for_no_event_is_refused(what):
    with pytest.raises(ConfigurationError):
        LocalHandler().register(what)


@pytest.mark.parametrize("what", [Nameless, None, "", OrderPlaced | Nameless])
def test_what_has_no_event_name_is_refused(what):
    with pytest.raises(EventNameMissingError):
        LocalHandler().register(what)


# Several registrations


async def test_stacked_decorators_are_one_subscriber():
    handler = LocalHandler()
    heard: list[str] = []

    @handler.register("order.*")
    @handler.register("*.placed")
    @handler.register(OrderPlaced, event_name="scores")
    def subscriber(event: Event[Any]) -> None:
        heard.append(event.name)

    for name in ("order.placed", "scores", "invoice.placed", "invoice.sent"):
        await call(handler, name)
    assert heard == ["order.placed", "scores", "invoice.placed"]


def test_other_options_the_second_time_are_refused():
    handler = LocalHandler()

    async def subscriber(event: Event[Any]) -> None: ...

    handler.register("a", timeout=1.0)(subscriber)
    handler.register("b", timeout=1.0)(subscriber)
    for options in ({}, {"timeout": 2.0}, {"timeout": 1.0, "concurrency": 2}, {"timeout": 1.0, "retry": Retry()}):
        with pytest.raises(SubscriberError, match="other options") as raised:
            handler.register("c", **options)(subscriber)
        assert raised.value.subscriber.endswith("subscriber")
    assert names_for(handler, "a", "b", "c") == ["a", "b"]


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"concurrency": "2"}, {"timeout": 0}, {"timeout": -1.0}, {"timeout": "1"}, {"retry": 3}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options):
    handler = LocalHandler()
    with pytest.raises(ConfigurationError):
        handler.register("a", **options)(lambda event: None)
    with pytest.raises(ConfigurationError):
        handler.on(**options)(lambda event: None)
    assert names_for(handler, "a") == []


def test_a_subscriber_is_named_after_its_function_whatever_is_around_that():
    class Service:
        @staticmethod
        def static(event: Event[Any]) -> None: ...

        @classmethod
        def of_class(cls, event: Event[Any]) -> None: ...

        def method(self, event: Event[Any]) -> None: ...

        def __call__(self, event: Event[Any]) -> None: ...

    functions = {
        "static": Service.__dict__["static"],
        "of_class": Service.of_class,
        "method": functools.partial(Service().method),
    }
    for name, function in {**functions, "Service": Service(), "print": print}.items():
        assert name_of_function(function).rpartition(".")[2] == name


async def test_subscribers_are_called_in_the_order_of_registration_where_nothing_suspends():
    handler = LocalHandler()
    order: list[int] = []
    for number in range(5):

        async def subscriber(event: Event[Any], number: int = number) -> None:
            order.append(number)

        handler.register("a")(subscriber)
    await call(handler, "a")
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("hasty")
def test_a_function_that_several_threads_register_at_once_is_one_subscriber():
    async def subscriber(event: Event[Any]) -> None: ...

    for _ in range(50):
        handler, start = LocalHandler(), threading.Barrier(4)

        def register(pattern: str, handler: LocalHandler = handler, start: threading.Barrier = start) -> None:
            start.wait()
            handler.register(pattern)(subscriber)

        threads = [threading.Thread(target=register, args=[pattern]) for pattern in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (one,) = {found for pattern in "abcd" for found in handler.matching_subscribers(pattern)}
        assert [handler.matching_subscribers(pattern) for pattern in "abcd"] == [(one,)] * 4


async def test_a_subscriber_may_be_registered_and_taken_off_at_any_time():
    handler = LocalHandler()
    heard: list[str] = []

    async def late(event: Event[Any]) -> None:
        heard.append(event.name)

    await call(handler, "a")
    handler.register("a")(late)
    await call(handler, "a")
    handler.unregister(late)
    await call(handler, "a")
    assert heard == ["a"]


def test_unregister_takes_off_all_patterns_and_only_what_is_there():
    handler = LocalHandler()

    class Service:
        def method(self, event: Event[Any]) -> None: ...

    service = Service()
    handler.register("a", "b")(service.method)
    handler.register("c")(service.method)
    with pytest.raises(SubscriberError, match="not registered"):
        handler.unregister(Service().method)
    handler.unregister(service.method)
    assert names_for(handler, "a", "b", "c") == []
    with pytest.raises(SubscriberError, match="not registered"):
        handler.unregister(service.method)
    handler.register("d", concurrency=2)(service.method)
    assert names_for(handler, "a", "d") == ["d"]


def test_names_with_ids_do_not_fill_the_memory():
    handler = LocalHandler()
    handler.register("user.*")(lambda event: None)
    for number in range(5000):
        assert names_for(handler, f"user.{number}") == [f"user.{number}"]
    assert len(handler._routes) <= 4096  # noqa: SLF001 - nothing else shows it


def test_registering_from_threads_while_events_are_routed():
    handler = LocalHandler()
    handler.register("a")(lambda event: None)
    end = threading.Event()
    errors: list[BaseException] = []

    def route() -> None:
        number = 0
        try:
            while not end.is_set():
                number += 1
                handler.matching_subscribers(str(number))
                handler.matching_subscribers("a")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=route) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        handler.register("a")(lambda event: None)
    end.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(handler.matching_subscribers("a")) == 301


# The annotation is the subscription


async def test_on_reads_the_annotation(scores):
    handler = LocalHandler()
    heard: list[tuple[str, object]] = []

    @handler.on
    async def event_of(event: Event[OrderPlaced]) -> None:
        heard.append(("event of", event.payload))

    @handler.on
    async def union(event: Event[OrderPlaced | OrderPaid]) -> None:
        heard.append(("union", event.payload))

    @handler.on
    async def union_of_events(event: Event[OrderPlaced] | Event[OrderPaid]) -> None:
        heard.append(("union of events", event.payload))

    @handler.on
    async def bare_payload(order: OrderPlaced) -> None:
        heard.append(("bare payload", order))

    @handler.on
    async def bare_union(order: OrderPlaced | OrderPaid) -> None:
        heard.append(("bare union", order))

    @handler.on
    async def bare_event(event: Event) -> None:
        heard.append(("bare event", event.payload))

    @handler.on
    async def annotated(event: Annotated[Event[OrderPlaced], "a note"]) -> None:
        heard.append(("annotated", event.payload))

    @handler.on
    async def as_text(event: "Event[OrderPlaced]") -> None:
        heard.append(("as text", event.payload))

    everyone = [
        "event of",
        "union",
        "union of events",
        "bare payload",
        "bare union",
        "bare event",
        "annotated",
        "as text",
    ]
    order, paid = OrderPlaced(id=2), OrderPaid()
    async with EventBus([handler]) as bus:
        bus.dispatch(order)
        await bus.drain()
        assert sorted(heard, key=lambda pair: everyone.index(pair[0])) == [(name, order) for name in everyone]
        heard.clear()
        bus.dispatch(paid)
        await bus.drain()
        assert sorted(heard) == [(name, paid) for name in ("bare event", "bare union", "union", "union of events")]
        assert bus.stats().failed == 0


async def test_on_takes_options_sync_functions_and_methods():
    handler = LocalHandler()
    heard: list[tuple[str, int, int]] = []

    class Service:
        @handler.on(concurrency=2)
        @staticmethod
        def static(order: OrderPlaced) -> None:
            heard.append(("static", order.id, threading.get_ident()))

        def method(self, event: Event[OrderPlaced], bus: EventBus) -> None:
            heard.append(("method", event.payload.id, threading.get_ident()))

    handler.on(Service().method)
    async with EventBus([handler]) as bus:
        bus.dispatch(OrderPlaced(id=3))
    assert sorted(pair[:2] for pair in heard) == [("method", 3), ("static", 3)]
    assert threading.get_ident() not in {thread for _, _, thread in heard}


def test_on_refuses_what_names_no_event():
    handler = LocalHandler()

    def nothing() -> None: ...
    def bare(event) -> None: ...
    def number(event: int) -> None: ...
    def nameless(event: Event[Nameless]) -> None: ...
    def unknown(event: "Event[DoesNotExist]") -> None: ...  # noqa: F821 - that is the point
    def half(event: OrderPlaced | Nameless) -> None: ...

    for function in (nothing, bare, number, nameless, unknown, half):
        with pytest.raises(SubscriberError) as raised:
            handler.on(function)
        assert function.__qualname__ in raised.value.subscriber
        assert raised.value.parameter == (None if function is nothing else "event")
    assert names_for(handler, *NAMES) == []


# What can be a subscriber


class Callable_:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, event: Event[Any]) -> None:
        self.heard.append(event.name)


class AsyncCallable(Callable_):
    async def __call__(self, event: Event[Any]) -> None:
        await asyncio.sleep(0)
        self.heard.append(event.name)


class Unhashable(Callable_):
    __hash__ = None  # type: ignore[assignment]


class Methods(Callable_):
    def sync(self, event: Event[Any]) -> None:
        self.heard.append(event.name)

    async def coroutine(self, event: Event[Any], /) -> None:
        self.heard.append(event.name)


def into(heard: list[str], event: Event[Any], *, times: int = 1) -> None:
    heard.extend([event.name] * times)


async def async_into(heard: list[str], event: Event[Any]) -> None:
    heard.append(event.name)


def decorated(heard: list[str]) -> Callable[..., Any]:
    """Wrap a coroutine function in a plain one, as many decorators do."""

    async def inner(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        heard.append(event.name)

    return lambda event: inner(event)


def wrapped(heard: list[str]) -> Callable[..., Any]:
    @functools.wraps(async_into)
    def wrapper(event: Event[Any]) -> Awaitable[None]:
        return async_into(heard, event)

    wrapper.__wrapped__ = functools.partial(async_into, heard)
    return wrapper


@pytest.mark.parametrize(
    "make",
    [
        lambda heard: lambda event: heard.append(event.name),
        lambda heard: lambda *args: heard.append(args[0].name),
        lambda heard: lambda event, option=1, *args, **kwargs: heard.append(event.name),
        lambda heard: functools.partial(into, heard),
        lambda heard: functools.partial(into, heard, times=1),
        lambda heard: functools.partial(async_into, heard),
        lambda heard: functools.partial(functools.partial(into), heard),
        decorated,
        wrapped,
        lambda heard: Callable_,
        lambda heard: AsyncCallable,
        lambda heard: Unhashable,
        lambda heard: Methods,
    ],
    ids=["lambda", "star", "defaults", "partial", "keyword", "async partial", "nested", "decorated", "wrapped", "callable",
         "async callable", "unhashable", "methods"],
)  # fmt: skip
async def test_many_things_can_be_subscribers(make):
    heard: list[str] = []
    made = make(heard)
    handler = LocalHandler()
    functions = [made]
    if isinstance(made, type):
        thing = made()
        thing.heard = heard
        functions = [thing.sync, thing.coroutine] if made is Methods else [thing]
    for function in functions:
        assert handler.register("a")(function) is function
        handler.register("b")(function)
    await call(handler, "a")
    assert heard == ["a"] * len(functions)
    await handler.handle(("b", None))
    assert heard == ["a"] * len(functions) + ["b"] * len(functions)
    for function in functions:
        handler.unregister(function)
    assert names_for(handler, "a", "b") == []


def test_what_cannot_be_a_subscriber_is_refused():
    def generator(event: Event[Any]) -> Iterator[int]:
        yield 1

    async def async_generator(event: Event[Any]) -> AsyncIterator[int]:
        yield 1

    def nothing() -> None: ...
    def keyword_only(*, event: Event[Any]) -> None: ...
    def keywords(**event: Any) -> None: ...
    def two(event: Event[Any], other: int) -> None: ...
    def required_keyword(event: Event[Any], *, other: str) -> None: ...

    def of_class(cls: type, event: Event[Any]) -> None: ...

    class Service:
        def method(self, event: Event[Any]) -> None: ...

    parameters = {two: "other", required_keyword: "other", Service.method: "self", of_class: "cls"}
    for function in (
        generator,
        async_generator,
        nothing,
        keyword_only,
        keywords,
        two,
        required_keyword,
        Service.method,
        of_class,
    ):
        handler = LocalHandler()
        with pytest.raises(SubscriberError) as raised:
            handler.register("a")(function)
        assert raised.value.parameter == parameters.get(function)
        assert function.__name__ in raised.value.subscriber
        assert names_for(handler, "a") == []


@pytest.mark.parametrize("thing", [None, 1, "text", ()], ids=repr)
def test_what_is_not_callable_is_refused(thing):
    with pytest.raises(SubscriberError):
        LocalHandler().register("a")(thing)


# How they are called


async def test_async_ones_run_on_the_loop_and_sync_ones_in_threads():
    handler = LocalHandler()
    threads: dict[str, int] = {}

    @handler.register
    async def async_subscriber(event: Event[Any]) -> None:
        threads["async"] = threading.get_ident()

    @handler.register
    def sync_subscriber(event: Event[Any]) -> None:
        threads["sync"] = threading.get_ident()

    await call(handler, "a")
    await handler.handle(Event("a"))
    assert threads["async"] == threading.get_ident()
    assert threads["sync"] != threading.get_ident()


async def test_sync_subscribers_do_not_block_the_loop():
    handler = LocalHandler()
    go_on = threading.Event()
    heard: list[str] = []

    @handler.register
    def slow(event: Event[Any]) -> None:
        assert go_on.wait(5)
        heard.append("slow")

    @handler.register
    async def lets_it_go(event: Event[Any]) -> None:
        heard.append("loop")
        go_on.set()

    await call(handler, "a")
    assert heard == ["loop", "slow"]


async def test_one_failure_disturbs_no_other_subscriber_and_no_other_event():
    handler = LocalHandler()
    heard: list[str] = []
    failures: list[tuple[str, str]] = []

    @handler.register
    async def fails(event: Event[Any]) -> None:
        raise KeyError

    @handler.register
    def fails_in_a_thread(event: Event[Any]) -> None:
        raise SystemExit

    @handler.register
    async def hears(event: Event[Any]) -> None:
        heard.append(event.name)

    hook = lambda failure: failures.append((failure.event.name, failure.subscriber.rsplit(".", 1)[-1]))  # noqa: E731
    async with EventBus([handler], on_error=hook) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
    assert heard == ["a", "b"]
    assert sorted(failures) == [(name, function) for name in "ab" for function in ("fails", "fails_in_a_thread")]


async def test_called_directly_it_calls_everyone_and_raises_afterwards():
    handler = LocalHandler()
    heard: list[object] = []

    @handler.register
    async def first(event: Event[Any]) -> None:
        event.payload.append("changed by the first")
        raise KeyError("first")

    @handler.register
    def second(event: Event[Any]) -> None:
        heard.append(event.payload)
        raise ValueError("second")

    with pytest.raises(ExceptionGroup) as raised:
        await handler.handle(("a", ["b"]))
    assert [type(error) for error in raised.value.exceptions] == [KeyError, ValueError]
    assert heard == [["b"]]
    handler.unregister(second)
    with pytest.raises(KeyError):
        await handler.handle(Event("a", []))


async def test_a_derived_class_sees_every_event():
    class Counting(LocalHandler):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        async def handle(self, event: Any) -> None:
            self.names.append(event.name)
            await super().handle(event)

    handler = Counting()
    heard: list[str] = []

    @handler.register("a")
    async def subscriber(event: Event[Any]) -> None:
        heard.append(event.name)

    async with EventBus([handler]) as bus:
        async with bus.scope():
            dispatch("a")
            dispatch("b")
    assert (handler.names, heard) == (["a", "b"], ["a"])


async def test_a_subscriber_may_be_registered_on_several_handlers_of_a_bus():
    one, other = LocalHandler(), LocalHandler()
    heard: list[str] = []

    @one.register("a")
    @other.register("a")
    async def subscriber(event: Event[Any]) -> None:
        heard.append(event.name)

    async with EventBus([one, other, one]) as bus:
        bus.dispatch("a")
    # on two handlers it is two subscribers; a handler that is listed twice is one
    assert heard == ["a", "a"]


def test_errors_of_registration_are_ours():
    with pytest.raises(FastAPIEventsError):
        LocalHandler().register(int)
