"""What no type checker can see, or nobody asked one, is refused where it is set up: what is wrong, and what to do."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from fastapi_events import (
    BaseEventHandler,
    ConfigurationError,
    Depends,
    EchoHandler,
    Event,
    EventBus,
    EventHandlerASGIMiddleware,
    EventModel,
    EventType,
    FastAPIEventsError,
    LocalHandler,
    SubscriberError,
    dispatch,
    event_is,
    only,
    registry,
)


class OrderPlaced(BaseModel):
    __event_name__ = "order.placed"
    id: int = 1


class Nameless(BaseModel):
    pass


def mailer() -> str:
    return ""


def required(event: Event[OrderPlaced], mailer: str) -> None: ...
def required_keyword(event: Event[OrderPlaced], *, mailer: str) -> None: ...
def required_after_others(event: Event[OrderPlaced], one: Annotated[str, Depends(mailer)], mailer: str) -> None: ...
def unresolvable(event: Event[OrderPlaced], mailer: "Mailer") -> None: ...  # noqa: F821 - that is the point
def generator(event: Event[OrderPlaced]) -> Iterator[int]:
    yield 1


def no_parameter() -> None: ...
def no_positional_parameter(*, event: Event[OrderPlaced]) -> None: ...
def no_annotation(event) -> None: ...
def unresolvable_event(event: "Event[Missing]") -> None: ...  # noqa: F821 - that is the point
def of_an_int(event: Event[int]) -> None: ...


def of_a_nameless_model(event: Event[Nameless]) -> None: ...


@pytest.mark.parametrize(
    "function, parameter, remedy",
    [
        (required, "mailer", r"give it Depends\(\) or a default"),
        (required_keyword, "mailer", r"give it Depends\(\) or a default"),
        (required_after_others, "mailer", r"give it Depends\(\) or a default"),
        (unresolvable, "mailer", "'Mailer' cannot be resolved: define or import the name at the top of its module"),
        (generator, None, "return instead"),
        (no_parameter, None, "add one in the first place"),
        (no_positional_parameter, None, "add one in the first place"),
    ],
)
def test_a_function_that_cannot_be_called_with_an_event_is_refused_at_import(function, parameter, remedy):
    with pytest.raises(SubscriberError, match=remedy) as refusal:
        LocalHandler().register("order.placed")(function)
    assert refusal.value.parameter == parameter
    assert parameter is None or repr(parameter) in str(refusal.value)
    assert function.__name__ in str(refusal.value)


@pytest.mark.parametrize(
    "function, parameter, remedy",
    [
        (no_parameter, None, r"annotate its first parameter, .* or use register\(...\)"),
        (no_annotation, "event", r"annotate its first parameter, .* or use register\(...\)"),
        (
            unresolvable_event,
            "event",
            r"'Missing' is not defined\): import it at the top of its module, or use register",
        ),
        (of_an_int, "event", r"use a name, a pattern, a model or an EventType"),
        (of_a_nameless_model, "event", r"Nameless does not stand for one event name: derive it from EventModel"),
        (required, "mailer", r"give it Depends\(\) or a default"),
    ],
)
def test_an_annotation_that_names_no_event_is_refused_at_import(function, parameter, remedy):
    with pytest.raises(SubscriberError, match=remedy) as refusal:
        LocalHandler().on(function)
    assert refusal.value.parameter == parameter
    assert parameter is None or parameter in str(refusal.value)
    assert function.__name__ in str(refusal.value)


@pytest.mark.parametrize(
    "what, remedy", [("order.placed", r"register\('order\.placed'\)"), (OrderPlaced, r"register\(OrderPlaced\)")]
)
def test_on_with_what_register_takes_is_refused(what, remedy):
    with pytest.raises(ConfigurationError, match=remedy):
        LocalHandler().on(what)


@pytest.mark.parametrize(
    "what, remedy",
    [
        (OrderPlaced(), r"use the class, OrderPlaced$"),
        ([OrderPlaced], r"pass what is in it one by one, as in \(A, B\)$"),
        ((OrderPlaced, "a"), r"pass what is in it one by one, as in \(A, B\)$"),
        (Event[OrderPlaced], r"use what is in the brackets$"),
        (Nameless, r"Nameless does not stand for one event name: derive it from EventModel, or use the name"),
        (None, r"None is no event name: use a name or a pattern"),
        ("", r"'' is no event name: use a name or a pattern"),
    ],
)
def test_what_does_not_stand_for_events_is_refused(what, remedy):
    for subscribe in (LocalHandler().register, lambda what: only(EchoHandler(), what)):
        with pytest.raises(ConfigurationError, match=remedy):
            subscribe(what)


@pytest.mark.parametrize("hook", [None, 1, "told", ["told"], [print, None]], ids=repr)
@pytest.mark.parametrize("keyword", ["on_error", "on_withheld"])
def test_a_hook_that_cannot_be_called_is_refused(keyword, hook):
    with pytest.raises(ConfigurationError, match=f"{keyword}=.* cannot be called: pass a function, or a list"):
        EventBus([], **{keyword: hook})


def test_a_class_keyword_that_does_not_exist_is_refused_at_import():
    with pytest.raises(ConfigurationError, match=r"Typo has the unknown keyword versoin: .* name, version, abstract"):

        class Typo(EventModel, name="typo", versoin=2):
            pass

    assert "typo" not in registry


def test_a_class_keyword_that_makes_no_sense_is_refused_at_import():
    with pytest.raises(ConfigurationError, match="deliver_on='sucess' is none of completion, failure, now, success"):

        class Never(EventModel, name="never", deliver_on="sucess"):
            pass

    assert "never" not in registry


def test_the_keywords_of_pydantic_are_none_of_ours():
    with registry.isolated():

        class Strict(EventModel, name="strict", extra="forbid"):
            pass

        assert registry["strict"] is Strict


@pytest.mark.parametrize("register", [registry.register, registry.register("number")])
def test_what_is_no_model_has_no_schema(register):
    with pytest.raises(ConfigurationError, match=r"int is not a pydantic model: .* use EventType"):
        register(int)


class SyncHandle(BaseEventHandler):
    def handle(self, event: Event[object]) -> None: ...  # type: ignore[override]


class SyncBatches:
    def handle_many(self, events: Any) -> None: ...


class NoHandler:
    async def handel_many(self, events: Any) -> None: ...


@pytest.mark.parametrize(
    "place",
    [
        lambda handler: EventBus([handler]),
        lambda handler: EventBus(dead_letters=handler),
        lambda handler: EventBus([only(handler, "order.*")]),
        lambda handler: EventHandlerASGIMiddleware(print, handlers=[handler]),
    ],
    ids=["bus", "dead_letters", "only", "middleware"],
)
@pytest.mark.parametrize(
    "handler, remedy",
    [
        (EchoHandler, r"EchoHandler is a class: pass an instance, EchoHandler\(...\)"),
        (LocalHandler, r"LocalHandler is a class: pass an instance, LocalHandler\(...\)"),
        (SyncHandle(), "SyncHandle cannot be a handler: write `async def handle"),
        (SyncBatches(), "SyncBatches cannot be a handler: .* derive it from BaseEventHandler"),
        (NoHandler(), "NoHandler cannot be a handler: .* derive it from BaseEventHandler"),
        (no_annotation, "no_annotation is a function: register it, as with @local_handler.register"),
    ],
    ids=["class", "local class", "sync handle", "sync handle_many", "misspelt", "function"],
)
def test_what_is_no_handler_is_refused_where_it_is_passed(place: Callable[[Any], object], handler, remedy):
    with pytest.raises(ConfigurationError, match=remedy):
        place(handler)


def test_a_handler_instead_of_a_list_is_refused():
    with pytest.raises(ConfigurationError, match="handlers= takes a list"):
        EventBus(EchoHandler())


def test_a_dict_instead_of_a_registry_is_refused():
    with pytest.raises(
        ConfigurationError, match="registry= takes an EventPayloadSchemaRegistry, not dict: register models"
    ):
        EventBus(registry={})
    with pytest.raises(ConfigurationError, match="payload_schema_registry= takes an EventPayloadSchemaRegistry, not"):
        EventBus().dispatch("order.placed", payload_schema_registry={})


def test_keywords_that_do_not_exist_are_refused():
    for call in (
        lambda: EventBus(sorce="shop"),
        lambda: EventHandlerASGIMiddleware(print, handlers=[], sorce="shop"),
        lambda: LocalHandler().register("order.placed", sorce=2),
        lambda: LocalHandler().on(sorce=2),
        lambda: dispatch("order.placed", sorce="shop"),
    ):
        with pytest.raises(TypeError, match="'sorce'"):
            call()


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        ((OrderPlaced,), "the class OrderPlaced cannot be dispatched: pass a model instance"),
        ((Nameless(),), "Nameless has no event name: pass event_name="),
        ((OrderPlaced(), {"id": 2}), "pass one of them"),
        ((Event("order.placed"), {"id": 2}), "pass one of them"),
        ((1,), "int cannot be dispatched: .* a name and a payload"),
        ((b"order.placed",), "bytes cannot be dispatched: .* a name and a payload"),
        ((("order.placed", {}),), "tuple cannot be dispatched: .* a name and a payload"),
        ((None,), "the event has no name: pass one"),
        ((), "the event has no name: pass one"),
    ],
)
async def test_what_cannot_be_dispatched_is_an_error_at_the_callers_line(arguments, remedy):
    async with EventBus() as bus:
        for call in (bus.dispatch, dispatch):
            with pytest.raises(FastAPIEventsError, match=remedy):
                call(*arguments)


def test_event_is_takes_models_and_event_types_only():
    with registry.isolated():
        scores = EventType("scores", list[int])
        event = scores([1])
    for wrong in ("scores", 1, None, [OrderPlaced]):
        with pytest.raises(ConfigurationError, match=r"compare a name with event\.name"):
            event_is(event, wrong)
