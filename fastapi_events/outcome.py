"""How a request or a block ended, and which of its events wait for which end."""

import logging
from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from fastapi_events.errors import ConfigurationError

__all__ = ["DeliverOn", "Outcome", "check_deliver_on", "check_is_success", "is_success_by_default", "split"]

T = TypeVar("T")
DeliverOn: TypeAlias = Literal["completion", "success", "failure", "now"]

DELIVER_ON: Final[tuple[str, ...]] = get_args(DeliverOn)

logger: logging.Logger = logging.getLogger("fastapi_events")


class Outcome(NamedTuple):
    """How a request or a block ended.

    Attributes:
        status: of the response; None where none was begun, and outside HTTP.
        exception: what came out of the application, None if nothing did.
    """

    status: int | None
    exception: BaseException | None


def check_deliver_on(value: object) -> None:
    """Raise a ConfigurationError if no event can wait for this."""
    if value not in DELIVER_ON:
        raise ConfigurationError(f"deliver_on={value!r} is none of {', '.join(sorted(DELIVER_ON))}")


def check_is_success(function: object) -> None:
    """Raise a ConfigurationError if nothing can be told by calling this; a coroutine, which is true, tells nothing."""
    if not callable(function) or any(map(iscoroutinefunction, (function, type(function).__call__))):
        raise ConfigurationError(
            f"is_success={function!r} cannot tell: pass a function that takes an Outcome, not async"
        )


def is_success_by_default(outcome: Outcome) -> bool:
    """Tell whether a request or a block succeeded, where the bus was not told how to tell."""
    return outcome.exception is None and (outcome.status is None or outcome.status < 400)


def split(
    events: Sequence[T], conditions: Mapping[int, DeliverOn], outcome: Outcome, is_success: Callable[[Outcome], Any]
) -> tuple[list[T], list[T], DeliverOn]:
    """Part the events that may go from those whose outcome did not come.

    Args:
        events: of a request or block that has ended.
        conditions: what single ones wait for, by their `id()`.
        outcome: how it ended.
        is_success: tells whether that is a success; if it fails, it is none.

    Returns:
        The events that may go; those that are withheld; what these waited for.
    """
    try:
        succeeded = bool(is_success(outcome))
    except Exception:
        logger.exception("is_success= failed; this counts as a failure of the request or block")
        succeeded = False
    awaited: DeliverOn = "failure" if succeeded else "success"
    withheld = [event for event in events if conditions.get(id(event)) == awaited]
    return [event for event in events if conditions.get(id(event)) != awaited], withheld, awaited
