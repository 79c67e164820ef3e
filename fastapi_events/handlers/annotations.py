"""What a function says of itself: its name, and the events that its annotation asks for."""

import functools
import inspect
from types import UnionType
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin

from fastapi_events.dependencies.signatures import signature_of
from fastapi_events.errors import SubscriberError
from fastapi_events.event import Event
from fastapi_events.patterns import patterns_of

__all__ = ["annotated_patterns", "name_of_function"]


def annotated_patterns(function: Any) -> list[str]:
    """Return the patterns of what a function's first parameter is annotated with.

    Raises:
        SubscriberError: the annotation is missing, cannot be resolved, or names no event.
    """
    name = name_of_function(function)
    parameter = next(iter(signature_of(function).parameters.values()), None)
    if parameter is None or parameter.annotation is parameter.empty:
        raise SubscriberError(
            f"{name} does not say which event it wants: annotate its first parameter, as in "
            "`event: Event[OrderPlaced]`, or use register(...)",
            subscriber=name,
            parameter=None if parameter is None else parameter.name,
        )
    try:
        return _patterns_in(parameter.annotation, getattr(_plain_function(function), "__globals__", {}))
    except Exception as error:
        remedy = "import it at the top of its module" if isinstance(error, NameError) else "annotate the event"
        raise SubscriberError(
            f"the annotation of {name}'s parameter {parameter.name} does not name an event ({error}): {remedy}, "
            "or use register(...)",
            subscriber=name,
            parameter=parameter.name,
        ) from error


def name_of_function(function: object) -> str:
    """Return the module and the qualified name of a function, a partial, a method or a callable object."""
    plain = _plain_function(function)
    named = type(function) if getattr(plain, "__name__", "") == "__call__" else plain
    return f"{named.__module__}.{named.__qualname__}"


def _patterns_in(annotation: Any, names: dict[str, Any]) -> list[str]:
    if type(annotation).__name__ == "TypeAliasType":  # typing's and typing_extensions' are two
        return _patterns_in(annotation.__value__, names)
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return _patterns_in(eval(annotation, names), names)  # as typing.get_type_hints does, for this one parameter
    if annotation is Event or annotation is Any:
        return ["*"]
    if get_origin(annotation) in (Annotated, Event):
        return _patterns_in(get_args(annotation)[0], names)
    if get_origin(annotation) in (Union, UnionType):
        return [pattern for part in get_args(annotation) for pattern in _patterns_in(part, names)]
    return patterns_of(annotation)


def _plain_function(function: Any) -> Any:
    """Return the function that holds the names in the annotations of a partial, a method or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__qualname__"):
        function = type(function).__call__
    plain = inspect.unwrap(getattr(function, "__func__", function))
    return _plain_function(plain) if isinstance(plain, functools.partial) else plain
