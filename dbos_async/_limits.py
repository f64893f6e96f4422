"""How much of what at a time: the limits of queues and steps."""

from typing import Any

from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._config import Seconds, seconds_of

MAX_COUNT = 2**31 - 1
MAX_ID_BYTES = 255
MAX_WORD_BYTES = 1_000
"""Of a topic or key: two of them fit into an index of Postgres, which takes 2,700 bytes."""


class RateLimit(Struct, frozen=True):
    """At most `limit` starts within any `per` seconds, however the window is laid."""

    limit: int
    per: Seconds

    def __post_init__(self) -> None:
        checked_count(self.limit, "limit")
        if seconds_of(self.per) <= 0:
            raise ValueError(f"per must be more than 0 seconds, not {self.per!r}")

    @property
    def period_ms(self) -> int:
        """How long after a start its token comes back."""
        return max(1, round(seconds_of(self.per) * 1000))


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of one queue; None is no limit.

    `concurrency` and `rate_limit` are shared by all processes; those called `worker_…` hold for
    each process; those called `partition_…` for each partition key, and any of them makes the queue
    a partitioned one, whose enqueues all name a key.
    """

    concurrency: int | None = None
    worker_concurrency: int | None = None
    rate_limit: RateLimit | None = None
    worker_rate_limit: RateLimit | None = None
    partition_concurrency: int | None = None
    partition_worker_concurrency: int | None = None
    partition_rate_limit: RateLimit | None = None

    @property
    def is_partitioned(self) -> bool:
        """Whether its workflows have partition keys, which take turns."""
        return (
            self.partition_concurrency is not None
            or self.partition_worker_concurrency is not None
            or self.partition_rate_limit is not None
        )

    @property
    def counts_running(self) -> bool:
        """Whether what runs on other processes matters."""
        return self.concurrency is not None or self.partition_concurrency is not None

    @property
    def is_free(self) -> bool:
        """Whether nothing limits what runs; starts may be."""
        return (
            self.worker_concurrency is None
            and self.partition_worker_concurrency is None
            and not self.counts_running
        )

    @property
    def is_shared(self) -> bool:
        """Whether other processes' claims matter to one's own."""
        return (
            self.counts_running
            or self.rate_limit is not None
            or self.partition_rate_limit is not None
        )

    def changed(self, changes: dict[str, Any]) -> "Limits":
        """These limits with some of them changed.

        Raises:
            TypeError: there is no such limit, or a value is of the wrong type.
            ValueError: together they cannot work.
        """
        unknown = set(changes) - set(Limits.__struct_fields__)
        if unknown:
            known = ", ".join(Limits.__struct_fields__)
            raise TypeError(f"a queue has no limit {min(unknown)!r}; there are {known}")
        limits = structs.replace(self, **changes)
        limits.check()
        return limits

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            TypeError: a value is of the wrong type.
            ValueError: a limit is below 1, or larger than one that contains it.
        """
        for name in Limits.__struct_fields__:
            value = getattr(self, name)
            if value is None:
                continue
            if not name.endswith("rate_limit"):
                checked_count(value, name)
            elif not isinstance(value, RateLimit):
                raise TypeError(f"{name} is a RateLimit, as in RateLimit(100, per=60): {value!r}")
        for inner, outer in CONTAINED:
            smaller, larger = getattr(self, inner), getattr(self, outer)
            if smaller is not None and larger is not None and smaller > larger:
                raise ValueError(f"{inner}={smaller} is more than {outer}={larger} allows")
        whole = self.rate_limit
        for name in ("worker_rate_limit", "partition_rate_limit"):
            part = getattr(self, name)
            if part is None or whole is None or part.period_ms != whole.period_ms:
                continue  # those of other periods may hold at other times
            if part.limit > whole.limit:
                raise ValueError(
                    f"{name}={part.limit} is more than rate_limit={whole.limit} in the same period"
                )


class Named(Struct, frozen=True):
    """What is known by its name."""

    name: str


class Limiter(Named, frozen=True, kw_only=True):
    """A limit on the calls of steps, `@dbos.step(limiter=…)`: for an API with limits of its own.

    It is shared by name: by all steps that are given one of this name, and by all processes that
    use the same database. A step waits its turn, first come first served within a process, and its
    `started_at` is before the wait. Each attempt of a retried step has a turn of its own; its
    `timeout` begins with the turn; a replayed step needs none. Called outside a workflow the step
    waits too while its app is launched, and is called plainly otherwise.

    While a deploy changes the limits, each process applies its own to what all have taken. A step
    that calls another one with the same limiter waits while it holds a turn: with a concurrency
    limit that may be for ever.

    Args:
        name: what processes share; names are one space in a database.
        rate_limit: how many calls begin within any period. A process leases tokens in small chunks,
            so that most calls cost no round trip; if it dies, the chunk is back a period later.
        concurrency: how many calls run at a time. What a killed process held is free at once; one
            that is cut off from the database for longer than its lock's session counts as killed,
            though its calls go on.

    Raises:
        TypeError: a value is of the wrong type.
        ValueError: the name cannot be stored, a number is below 1, or there is no limit at all.
    """

    rate_limit: RateLimit | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        checked_id(self.name, "the limiter's name")
        if self.rate_limit is None and self.concurrency is None:
            raise ValueError(f"the limiter {self.name!r} has neither rate_limit nor concurrency")
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):
            raise TypeError(
                f"rate_limit is a RateLimit, as in RateLimit(100, per=60): {self.rate_limit!r}"
            )
        if self.concurrency is not None:
            checked_count(self.concurrency, "concurrency")

    def check_agrees(self, other: "Limiter") -> None:
        """Refuse another of the same name with other limits.

        Raises:
            ConfigurationError: it has others; a name has one set of limits in an app.
        """
        if numbers_of(self) != numbers_of(other):
            raise errors.ConfigurationError(
                f"there are two limiters named {self.name!r} with different limits, {self} and "
                f"{other}: make one, and give it to all the steps that share it"
            )


def numbers_of(limiter: Limiter) -> tuple[int | None, ...]:
    """A limiter's limits, however its period was written."""
    rate = limiter.rate_limit
    return (limiter.concurrency, *((rate.limit, rate.period_ms) if rate is not None else ()))


CONTAINED = (
    ("worker_concurrency", "concurrency"),
    ("partition_concurrency", "concurrency"),
    ("partition_worker_concurrency", "partition_concurrency"),
    ("partition_worker_concurrency", "worker_concurrency"),
    ("partition_worker_concurrency", "concurrency"),
)
"""The first of each pair must not be more than the second. Source: DBOS Transact's queues."""


def checked_count(value: object, what: str) -> int:
    """A positive number that fits Postgres's integer.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1, or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is an int, not {type(value).__name__}")
    if not 1 <= value <= MAX_COUNT:
        raise ValueError(f"{what} must be at least 1 and at most {MAX_COUNT}, not {value}")
    return value


def checked_id(value: object, what: str) -> str:
    """An id or name that can be stored, found and read by people.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty, longer than 255 bytes, or has a character that cannot be printed.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{what} must not be empty")
    if not value.isprintable():
        raise ValueError(f"{what} has a character that cannot be printed: {value!r}")
    if len(value.encode()) > MAX_ID_BYTES:
        raise ValueError(f"{what} is longer than {MAX_ID_BYTES} bytes: {value[:40]!r}…")
    return value


def checked_kind(kind: Any) -> Any:
    """A type to decode to.

    Raises:
        TypeError: it is none.
    """
    if isinstance(kind, str | bytes | int | float | list | dict | tuple | set):
        raise TypeError(f"as_ is a type, such as int or list[str], not {kind!r}")
    return kind


def checked_word(value: object, what: str) -> str:
    """A topic, key or the like: any text that can be stored, others' ids too.

    Raises:
        TypeError: it is no str.
        ValueError: Postgres cannot store it, or it is longer than 1,000 bytes.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode: {value!r}") from None
    if "\0" in value:
        raise ValueError(f"{what} has a NUL character, which Postgres cannot store: {value!r}")
    if size > MAX_WORD_BYTES:
        raise ValueError(f"{what} is longer than {MAX_WORD_BYTES} bytes: {value[:40]!r}…")
    return value
