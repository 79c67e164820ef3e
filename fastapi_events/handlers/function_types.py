"""Which functions may receive which events, in the words of type checkers."""

from collections.abc import Awaitable
from typing import Final, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from typing_extensions import TypedDict

from fastapi_events.retry import Retry

__all__ = ["SubscriberOf", "SubscriberOptions"]

MYPY: Final = False  # mypy takes this very name as true

Wanted = TypeVar("Wanted", contravariant=True)
Param = TypeVar("Param", contravariant=True)
P = ParamSpec("P")
AwaitableOrNone: TypeAlias = Awaitable[object] | None  # refuses generators, and results that nobody would get
R_co = TypeVar("R_co", bound=AwaitableOrNone, covariant=True)


class SubscriberOptions(TypedDict, total=False, closed=True):
    """The options of a subscriber; see `LocalHandler.register`."""

    retry: Retry | None
    timeout: float | None
    concurrency: int


# A function fits that takes the event that is wanted (second overload) and whatever it says itself (first overload).
# So its own parameters are kept for those who call it, which lets decorators be stacked. For mypy the second must
# include the first, or stacked decorators end in Never; with that pyright refuses everything.
if MYPY:

    class SubscriberOf(Protocol[Wanted, Param, P, R_co]):  # pyright: ignore[reportRedeclaration]  # the other is pyright's
        """A function that receives `Wanted`."""

        @overload
        def __call__(self, event: Param, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        @overload
        def __call__(self, event: Wanted | Param, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

else:

    class SubscriberOf(Protocol[Wanted, Param, P, R_co]):
        """A function that receives `Wanted`."""

        @overload
        def __call__(self, event: Param, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
        @overload
        def __call__(self, event: Wanted, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
