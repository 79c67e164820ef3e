"""What can go wrong, as exceptions.

    FastAPIEventsError(Exception)
    ├── ConfigurationError(ValueError)    set up in a way that cannot work; raised where it is set up
    │   ├── EventNameMissingError         nothing names the event
    │   ├── DuplicateEventError           one name, two schemas
    │   └── SubscriberError               a function that cannot be a subscriber
    ├── PayloadError(ValueError)          two payloads, the wrong kind, or not serialisable
    ├── NoBusError(LookupError)           no bus can take the event
    ├── BusFullError                      more events wait than `max_pending` allows
    ├── ChainTooLongError                 events that cause one another, deeper than `max_depth`
    └── ForwardError                      a remote system refused events

`Unrecoverable` stands beside the tree: a subscriber raises it to say that trying again is pointless.
`pydantic.ValidationError` passes through as pydantic raised it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastapi_events.event import Event

__all__ = [
    "BusFullError",
    "ChainTooLongError",
    "ConfigurationError",
    "DuplicateEventError",
    "EventNameMissingError",
    "FastAPIEventsError",
    "FastapiEventError",
    "ForwardError",
    "MissingEventNameDuringDispatch",
    "MissingEventNameDuringRegistration",
    "MissingEventNameError",
    "MultiplePayloadsDetectedDuringDispatch",
    "NoBusError",
    "PayloadError",
    "Rejection",
    "SubscriberError",
    "Unrecoverable",
]


class FastAPIEventsError(Exception):
    """Base of every error that this library raises itself."""


class ConfigurationError(FastAPIEventsError, ValueError):
    """Something is set up in a way that cannot work."""


class EventNameMissingError(ConfigurationError):
    """Nothing names the event."""


class DuplicateEventError(ConfigurationError):
    """One event name, two schemas.

    Attributes:
        name: the event name.
        first: the schema that has it.
        second: the schema that was to take it.
    """

    def __init__(self, name: str, first: type, second: type) -> None:
        super().__init__(
            f"event name {name!r} is taken by {_path(first)}, so {_path(second)} cannot have it: "
            "give one of them another name, or keep it in a registry of its own"
        )
        self.name = name
        self.first = first
        self.second = second


class SubscriberError(ConfigurationError):
    """A function cannot be a subscriber.

    Attributes:
        subscriber: what was to be registered.
        parameter: the parameter at fault, None where it is the whole function.
    """

    def __init__(self, message: str, *, subscriber: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.subscriber = subscriber
        self.parameter = parameter


class PayloadError(FastAPIEventsError, ValueError):
    """A payload of the wrong kind, one too many, or one that JSON cannot express.

    Attributes:
        path: where in the payload, such as `payload['lines'][0]`.
    """

    def __init__(self, message: str, *, path: str = "payload") -> None:
        super().__init__(message)
        self.path = path


class NoBusError(FastAPIEventsError, LookupError):
    """No bus can take the event."""


class BusFullError(FastAPIEventsError):
    """More events are waiting than `max_pending` allows."""


class ChainTooLongError(FastAPIEventsError):
    """Events cause one another, deeper than `max_depth` allows.

    Attributes:
        chain: the names, the oldest first.
    """

    def __init__(self, chain: Sequence[str]) -> None:
        super().__init__(
            f"events cause one another {len(chain)} deep: {' → '.join(chain)}: "
            "break the circle, or raise max_depth= on the bus"
        )
        self.chain: tuple[str, ...] = tuple(chain)


class Rejection(NamedTuple):
    """One event that a remote system did not take, and why."""

    event: "Event[Any]"
    reason: str


class ForwardError(FastAPIEventsError):
    """A remote system refused events; those that are not listed in `rejected` arrived.

    Attributes:
        rejected: the events that did not arrive, each with the reason.
    """

    def __init__(self, message: str, rejected: Sequence[Rejection]) -> None:
        super().__init__(message)
        self.rejected: tuple[Rejection, ...] = tuple(rejected)


class Unrecoverable(Exception):  # noqa: N818 - it states a fact about the cause, which `raise ... from` carries
    """Raised by a subscriber: no further attempt, whatever its `retry=` says."""


FastapiEventError = FastAPIEventsError
MissingEventNameError = EventNameMissingError
MissingEventNameDuringDispatch = EventNameMissingError
MissingEventNameDuringRegistration = EventNameMissingError
MultiplePayloadsDetectedDuringDispatch = PayloadError


def _path(schema: object) -> str:
    return f"{schema.__module__}.{schema.__qualname__}" if isinstance(schema, type) else repr(schema)
