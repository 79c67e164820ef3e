"""The keywords that type checkers see are those that are taken."""

import inspect
from typing import get_type_hints

import pytest

from fastapi_events import EventBus, LocalHandler
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
