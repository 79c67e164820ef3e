"""How often, and when, a subscriber that failed is tried again."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi_events.errors import ConfigurationError, Unrecoverable
from fastapi_events.options import check_count, check_seconds

__all__ = ["Retry"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential backoff with full jitter.

    Before attempt n + 1 the bus waits between 0 and `min(maximum, initial * 2 ** (n - 1))` seconds: the "full jitter"
    that the AWS Architecture Blog found to need the fewest calls under contention.

    Attributes:
        attempts: how often the subscriber is started at most, the first time included.
        initial: upper bound of the first wait, in seconds.
        maximum: upper bound of every wait, in seconds.
        on: exceptions that are worth another attempt; others end at once, as `Unrecoverable` and `ConfigurationError`
            always do.
        sleep: waits for the given seconds; for tests.
        uniform: gives a number between its two arguments; for tests.
    """

    attempts: int = 3
    initial: float = 0.1
    maximum: float = 30.0
    on: tuple[type[BaseException], ...] | type[BaseException] = Exception
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts)
        check_seconds("initial", self.initial)
        check_seconds("maximum", self.maximum)
        kinds: tuple[Any, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise ConfigurationError(f"on={self.on!r} is no exception class, nor a tuple of such")

    def covers(self, error: BaseException, attempt: int) -> bool:
        """Tell whether another attempt follows when attempt number `attempt`, from 1, failed with this."""
        is_final = isinstance(error, (Unrecoverable, ConfigurationError))  # what is set up wrong fails every time
        return attempt < self.attempts and isinstance(error, self.on) and not is_final

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt`, from 1."""
        # the exponent is bounded: a float overflows at 2 ** 1024
        return self.uniform(0.0, min(self.maximum, self.initial * 2.0 ** min(attempt - 1, 64)))
