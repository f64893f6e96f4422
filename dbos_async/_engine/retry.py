"""When a failed step is tried again."""

import random
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from dbos_async._config import Seconds, seconds_of


class Retry(Struct, frozen=True):
    """A step's retries.

    The pause after attempt n is `interval * backoff_rate ** (n - 1)`, at most `max_interval`, give
    or take the fraction `jitter` of it.

    Raises:
        ValueError: a number is out of its range.
        TypeError: `retry_on` is neither types of exceptions nor a function.
    """

    max_attempts: int = 3
    """How often the step is called at most, the first time included."""
    interval: Seconds = 1
    """Seconds before the second attempt."""
    backoff_rate: float = 2
    """By how much each pause is longer than the one before; 1 keeps it."""
    max_interval: Seconds = 3600
    """Seconds that no pause exceeds."""
    jitter: float = 0.1
    """Fraction, 0 to 1, by which a pause varies, so that failures do not march in step."""
    retry_on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] = (
        Exception
    )
    """Which errors are worth another attempt: types, or a function of the error."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(
                f"max_attempts counts the first, so at least 1, not {self.max_attempts}"
            )
        if self.backoff_rate < 1:
            raise ValueError(f"backoff_rate must be at least 1, not {self.backoff_rate}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is a fraction from 0 to 1, not {self.jitter}")
        seconds_of(self.interval)
        seconds_of(self.max_interval)
        check_what(self.retry_on)

    def wants(self, error: Exception) -> bool:
        """Whether this error is worth another attempt."""
        match self.retry_on:
            case type() | tuple() as kinds:
                return isinstance(error, kinds)
            case is_worth_it:
                return is_worth_it(error)

    def pause_after(self, attempt: int) -> float:
        """Seconds to wait after this attempt, the first being 1."""
        longest = seconds_of(self.max_interval)
        try:
            pause = seconds_of(self.interval) * self.backoff_rate ** (attempt - 1)
        except OverflowError:
            pause = longest
        return min(pause, longest) * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311


def check_what(retry_on: Any) -> None:
    """Refuse what tells no errors apart. Raises TypeError."""
    if callable(retry_on) and not isinstance(retry_on, type):
        return
    if not all(map(is_exception_type, kinds_of(retry_on))) or retry_on == ():
        raise TypeError(
            "retry_on is an exception type, a tuple of them, or a function of the error, not "
            f"{retry_on!r}"
        )


def kinds_of(retry_on: Any) -> Any:
    """What should be types of exceptions, as a tuple."""
    return retry_on if issubclass(type(retry_on), tuple) else (retry_on,)


def is_exception_type(kind: object) -> bool:
    """Whether it is a class of exceptions."""
    return isinstance(kind, type) and issubclass(kind, Exception)
