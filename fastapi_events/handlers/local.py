"""Functions in this process that receive events."""

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar, get_args, get_origin, overload

from pydantic import BaseModel
from typing_extensions import TypeForm, Unpack

from fastapi_events.dependencies import compile_subscriber
from fastapi_events.dependencies.signatures import signature_of
from fastapi_events.errors import ConfigurationError, SubscriberError
from fastapi_events.event import Event
from fastapi_events.event_type import EventType
from fastapi_events.handlers.annotations import annotated_patterns, name_of_function
from fastapi_events.handlers.base import BaseEventHandler, as_event, raise_all
from fastapi_events.handlers.function_types import AwaitableOrNone, SubscriberOf, SubscriberOptions
from fastapi_events.names import EventName
from fastapi_events.options import check_count, check_seconds
from fastapi_events.patterns import matcher, patterns_of
from fastapi_events.retry import Retry
from fastapi_events.scope import Scope, current_scope, run_in_thread
from fastapi_events.subscriber import Subscriber, as_subscriber

__all__ = ["LocalHandler", "Registrar", "local_handler"]

CACHED_NAMES = 4096  # names may hold ids: the table of routes is emptied when it has so many

A = TypeVar("A")
ModelT = TypeVar("ModelT", bound=BaseModel)
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
Source: TypeAlias = type[A] | EventType[A]
Param = TypeVar("Param")
P = ParamSpec("P")
NoResult = TypeVar("NoResult", bound=AwaitableOrNone)
FunctionT = TypeVar("FunctionT", bound=Callable[Concatenate[Any, ...], AwaitableOrNone])
Wanted_co = TypeVar("Wanted_co", covariant=True)


class Registrar(Protocol[Wanted_co]):
    """Subscribes a function to what `register` was given, and gives it back as it is."""

    def __call__(
        self, function: SubscriberOf[Wanted_co, Param, P, NoResult], /
    ) -> Callable[Concatenate[Param, P], NoResult]: ...


class LocalHandler(BaseEventHandler):
    """Routes events to functions: async ones on the event loop, others in worker threads.

    A subscriber receives the events of a request one after another, in dispatch order, each at most once, whichever
    of its patterns match. Its failure is its own.
    """

    def __init__(self) -> None:
        self._subscribers: dict[Any, Subscriber] = {}
        self._matchers: dict[Subscriber, list[Callable[[str], bool]]] = {}  # one for each time it was registered
        self._routes: dict[str, tuple[Subscriber, ...]] = {}
        self._whole: Subscriber | None = None
        self._lock = threading.RLock()  # of who registers; who looks up needs none
        if type(self).handle is not LocalHandler.handle or type(self).handle_many is not BaseEventHandler.handle_many:
            self._whole = as_subscriber(self)  # a derived class wants to see the events itself

    @overload
    def register(
        self, *names: EventName, event_name: EventName | None = None, **options: Unpack[SubscriberOptions]
    ) -> Registrar[Event[Any]]: ...
    @overload
    def register(self, a: type[ModelT], /, **options: Unpack[SubscriberOptions]) -> Registrar[Event[ModelT]]: ...
    @overload
    def register(self, a: EventType[A], /, **options: Unpack[SubscriberOptions]) -> Registrar[Event[A]]: ...
    @overload
    def register(
        self, a: Source[A], b: Source[B], /, **options: Unpack[SubscriberOptions]
    ) -> Registrar[Event[A | B]]: ...
    @overload
    def register(
        self, a: Source[A], b: Source[B], c: Source[C], /, **options: Unpack[SubscriberOptions]
    ) -> Registrar[Event[A | B | C]]: ...
    @overload
    def register(
        self, a: Source[A], b: Source[B], c: Source[C], d: Source[D], /, **options: Unpack[SubscriberOptions]
    ) -> Registrar[Event[A | B | C | D]]: ...
    @overload
    def register(
        self,
        a: Source[A],
        b: Source[B],
        c: Source[C],
        d: Source[D],
        e: Source[E],
        /,
        **options: Unpack[SubscriberOptions],
    ) -> Registrar[Event[A | B | C | D | E]]: ...
    @overload
    def register(
        self, function: SubscriberOf[Event[Any], Param, P, NoResult], /
    ) -> Callable[Concatenate[Param, P], NoResult]: ...
    @overload
    def register(
        self, union: TypeForm[ModelT], /, **options: Unpack[SubscriberOptions]
    ) -> Registrar[Event[ModelT]]: ...
    @overload
    def register(
        self, *what: EventName | EventType[Any] | type[BaseModel], **options: Unpack[SubscriberOptions]
    ) -> Registrar[Event[Any]]: ...
    def register(
        self,
        *what: Any,
        event_name: EventName | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        concurrency: int = 1,
    ) -> Any:
        """Subscribe a function; a decorator that returns it unchanged.

        Args:
            what: models, event types, names or patterns (`"order.*"`); none for all events.
            event_name: a name or pattern, as in 0.12, where a function received the event whatever its annotations.
            retry: what to do after a failure; by default one attempt.
            timeout: seconds for one attempt. A thread that overruns cannot be stopped: it keeps its place, and the
                subscriber starts nothing further in that request until it ends.
            concurrency: how many events of one request the function may handle at once; more than 1 gives up the order.

        Raises:
            SubscriberError: the function cannot be a subscriber, or has other options already.
            ConfigurationError: an option or something in `what` makes no sense.
        """
        function, sources = (what[0], what[1:]) if what and _is_function(what[0]) else (None, what)
        patterns, types = _patterns(sources, event_name), _types(sources)

        def decorate(function: Any) -> Any:
            self._add(function, patterns, types, retry, timeout, concurrency, event_name is not None)
            return function

        return decorate if function is None else decorate(function)

    @overload
    def on(self, function: FunctionT, /) -> FunctionT: ...
    @overload
    def on(self, /, **options: Unpack[SubscriberOptions]) -> Callable[[FunctionT], FunctionT]: ...
    def on(
        self, function: Any = None, /, *, retry: Retry | None = None, timeout: float | None = None, concurrency: int = 1
    ) -> Any:
        """Subscribe a function to what its first parameter is annotated with; a decorator that returns it unchanged.

        `Event[OrderPlaced]`, `OrderPlaced` (which is given the bare payload), unions of them, or `Event` for all.

        Raises:
            SubscriberError: the annotation is missing, cannot be resolved, or names no event.
            ConfigurationError: it is no function.
        """
        if function is not None and not _is_function(function):
            shown = function.__qualname__ if isinstance(function, type) else repr(function)
            raise ConfigurationError(
                f"on() takes a function, and its annotation says which events, not {shown}: use register({shown})"
            )

        def decorate(function: Any) -> Any:
            self._add(function, annotated_patterns(function), {}, retry, timeout, concurrency)
            return function

        return decorate if function is None else decorate(function)

    def unregister(self, function: Callable[..., Any]) -> None:
        """Take a function off, with all its patterns; it may still get events that are being handed out.

        Raises:
            SubscriberError: it is not registered.
        """
        with self._lock:
            subscriber = self._subscribers.pop(_key(function), None)
            if subscriber is None:
                name = name_of_function(function)
                raise SubscriberError(f"{name} is not registered here", subscriber=name)
            del self._matchers[subscriber]
            self._routes = {}

    def matching_subscribers(self, name: str) -> tuple[Subscriber, ...]:
        """Return who receives events of this name, each once, in the order of registration."""
        if self._whole is not None:
            return (self._whole,)
        found = self._routes.get(name)
        return self._functions(name) if found is None else found

    def _functions(self, name: str) -> tuple[Subscriber, ...]:
        routes = self._routes
        subscribers = routes.get(name)
        if subscribers is None:
            known = list(self._matchers.items())
            subscribers = tuple(subscriber for subscriber, ways in known if any(matches(name) for matches in ways))
            if len(routes) >= CACHED_NAMES:
                routes.clear()
            routes[name] = subscribers
        return subscribers

    async def handle(self, event: Event[object] | Any) -> None:  # Any: 0.12 passed pairs
        """Call every matching subscriber once, without a bus: for tests, and for handlers that wrap this one.

        Raises:
            Exception: what a subscriber raised, after all were called; of several failures an ExceptionGroup.
        """
        whole = as_event(event)
        scope = current_scope.get() or Scope(None)
        errors: list[Exception] = []
        for subscriber in self._functions(whole.name):
            try:
                if subscriber.is_async:
                    result = subscriber.call(whole.for_subscriber(), scope)
                else:
                    result = await run_in_thread(scope, subscriber.call, whole.for_subscriber(), scope)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                errors.append(error)
        raise_all(errors)

    def _add(
        self,
        function: Any,
        patterns: list[str],
        types: dict[str, Any],
        retry: Retry | None,
        timeout: float | None,
        concurrency: int,
        takes_event: bool = False,
    ) -> None:
        name = name_of_function(function)
        _check_options(name, retry, timeout, concurrency)
        first = next(iter(signature_of(function).parameters), "") if inspect.isfunction(function) else ""
        if first in ("self", "cls"):
            raise SubscriberError(
                f"{name} is a method without its object: register the method of an instance, or after the class "
                "that of the class",
                subscriber=name,
                parameter=first,
            )
        with self._lock:
            known = self._subscribers.get(_key(function))
            compiled = compile_subscriber(function, name=name, known=types, takes_event=takes_event)
            if known is None:
                known = Subscriber(
                    name=name, call=compiled.call, is_async=compiled.is_async, takes_event=compiled.takes_event,
                    retry=retry, timeout=timeout, concurrency=concurrency,
                )  # fmt: skip
                self._subscribers[_key(function)] = known
                self._matchers[known] = []
            elif (known.retry, known.timeout, known.concurrency) != (retry, timeout, concurrency):
                raise SubscriberError(
                    f"{name} is registered already, with other options: use one retry=, timeout= and concurrency= "
                    "for all its events, or register another function",
                    subscriber=name,
                )
            elif known.takes_event is not compiled.takes_event and (takes_event or not compiled.takes_event):
                # else its annotation names what only another registration knows
                raise SubscriberError(
                    f"{name} would receive the event by event_name=, and else its payload: use event_name= for all its "
                    "events or for none, or annotate its first parameter with Event[...]",
                    subscriber=name,
                )
            self._matchers[known].append(matcher(patterns))
            self._routes = {}  # not emptied: another thread may be about to add what it found before


local_handler: LocalHandler = LocalHandler()


def _check_options(name: str, retry: object, timeout: object, concurrency: object) -> None:
    """Raise a ConfigurationError for an option that cannot work; not every caller has a type checker."""
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigurationError(f"retry={retry!r} of {name} is no Retry: use retry=Retry(attempts=3)")
    check_count("concurrency", concurrency)
    if timeout is not None:
        check_seconds("timeout", timeout)
        if not timeout:
            raise ConfigurationError(f"timeout={timeout!r} is no time for {name}: use seconds above 0, or None")


def _is_function(what: object) -> bool:
    return callable(what) and not isinstance(what, (type, EventType)) and get_origin(what) is None


def _patterns(what: Iterable[Any], event_name: EventName | None) -> list[str]:
    patterns = [pattern for one in what for pattern in patterns_of(one)]
    if event_name is not None:
        patterns.extend(patterns_of(event_name))
    return patterns or ["*"]


def _types(what: Iterable[Any]) -> dict[str, Any]:
    """Return payload types by their names: what annotations may use though the module does not know it."""
    sources = [part for one in what for part in get_args(one) or (one,)]
    types = [source.schema.type if isinstance(source, EventType) else source for source in sources]
    return {type_.__name__: type_ for type_ in types if isinstance(type_, type)}


def _key(function: Any) -> Any:
    try:
        hash(function)
    except TypeError:  # a callable object that is not hashable
        return id(function)
    return function
