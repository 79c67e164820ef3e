"""The keywords that type checkers see are those that are taken."""

import inspect
from datetime import timedelta
from math import inf, nan
from typing import Any, get_type_hints

import pytest

from fastapi_events import ConfigurationError, EventBus, EventHandlerASGIMiddleware, LocalHandler, NullHandler, Retry
from fastapi_events.bus import BusOptions
from fastapi_events.dispatching import Dispatcher, DispatchOptions
from fastapi_events.handlers.function_types import SubscriberOptions


def keywords_of(function) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "options, function, spelt_out",
    [
        (BusOptions, EventBus, set()),
        (DispatchOptions, Dispatcher.dispatch, {"event_name"}),
        (SubscriberOptions, LocalHandler.register, {"event_name"}),
        (SubscriberOptions, LocalHandler.on, set()),
    ],
)
def test_keywords_and_options_are_equal(options, function, spelt_out):
    assert options.__optional_keys__ == keywords_of(function) - spelt_out


def test_the_options_of_the_middleware_have_the_types_of_the_bus():
    types = get_type_hints(EventBus.__init__)
    assert get_type_hints(BusOptions) == {name: types[name] for name in BusOptions.__optional_keys__}


def register(**options: Any) -> None:
    async def subscriber(event: object) -> None: ...

    LocalHandler().register("a", **options)(subscriber)


@pytest.mark.parametrize("value", ["20", -1, -0.5, nan, True, timedelta(seconds=5), [5]], ids=repr)
@pytest.mark.parametrize(
    "place, keyword",
    [(EventBus, "drain_timeout"), (Retry, "initial"), (Retry, "maximum"), (register, "timeout")],
)
def test_what_is_no_time_is_refused(place, keyword, value):
    with pytest.raises(ConfigurationError, match=f"^{keyword}=.*: use a number of seconds, from 0$"):
        place(**{keyword: value})


@pytest.mark.parametrize("value", ["10", 0, -1, 2.5, True, inf, [1]], ids=repr)
@pytest.mark.parametrize(
    "place, keyword",
    [
        (EventBus, "max_pending"),
        (EventBus, "max_threads"),
        (EventBus, "max_depth"),
        (Retry, "attempts"),
        (register, "concurrency"),
    ],
)
def test_what_is_no_count_is_refused(place, keyword, value):
    with pytest.raises(ConfigurationError, match=f"^{keyword}=.*: use an integer from 1$"):
        place(**{keyword: value})


def test_the_ends_of_what_is_allowed_are_allowed():
    bus = EventBus(drain_timeout=0, max_pending=1, max_threads=1, max_depth=1)
    assert bus.drain_timeout == 0
    assert Retry(attempts=1, initial=0, maximum=inf).maximum == inf
    register(timeout=1e-9, concurrency=1)


async def cannot_tell(outcome: object) -> bool:
    return False


class Cannot:
    async def tell(self, outcome: object) -> bool:
        return False

    __call__ = tell


@pytest.mark.parametrize("value", [cannot_tell, Cannot(), Cannot().tell, 3, False, "status"])
def test_what_cannot_tell_of_a_success_is_refused(value):
    with pytest.raises(
        ConfigurationError, match="is_success=.* cannot tell: pass a function that takes an Outcome, not async"
    ):
        EventBus(is_success=value)


@pytest.mark.parametrize("bus", [EventBus, [NullHandler()], "shop"])
def test_what_is_no_bus_is_refused(bus):
    with pytest.raises(ConfigurationError, match="bus=.* is no EventBus: pass an instance"):
        EventHandlerASGIMiddleware(print, bus=bus)


def test_an_id_that_cannot_be_looked_up_is_refused():
    with pytest.raises(ConfigurationError, match=r"middleware_id=\['shop'\] cannot be looked up"):
        EventHandlerASGIMiddleware(print, [NullHandler()], middleware_id=["shop"])
