"""A function of the user's that runs in a transaction: once, and again while others are in its way.

Nothing is recorded here. That is how a transaction is called outside of workflows and within steps;
`transactions` records it with a workflow.
"""

import asyncio
import functools
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, NoReturn, TypeVar

from dbos_async import errors
from dbos_async._engine.context import OpenTransaction, calling_branch
from dbos_async._store.datasources import (
    ISOLATION_LEVELS,
    Datasource,
    Opened,
    is_aborted,
    is_conflict,
    is_outage,
    refused_as_aborted,
    said_by,
)

S = TypeVar("S")
T = TypeVar("T")

FIRST_PAUSE: Final = 0.004
LONGEST_PAUSE: Final = 1.0

Finish = Callable[[Opened[Any], Any], Awaitable[T]]
"""Ends a transaction with what its function has returned: commits, or raises."""


class Pauses:
    """Between tries: longer each time, and by chance, so that rivals do not meet again."""

    def __init__(self, longest: float = LONGEST_PAUSE) -> None:
        self._longest = longest
        self._next = FIRST_PAUSE

    async def next(self) -> None:
        """Wait for the next try."""
        seconds, self._next = self._next, min(2 * self._next, self._longest)
        await asyncio.sleep(random.uniform(0, seconds))  # noqa: S311  # jitter


class Transaction(Generic[S]):
    """A function, where it runs, and how isolated; calling it commits what it did."""

    def __init__(
        self,
        function: Callable[..., Any],
        datasource: Datasource[S],
        isolation_level: str,
        name: str,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.datasource = datasource
        self.isolation_level = isolation_level
        self.name = name

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it and commit, with nothing recorded."""
        calling_branch(f"the transaction {self.name!r}")
        return await self.repeated(lambda: self.once(args, kwargs, committed))

    async def repeated(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns once no other transaction is in its way.

        Without a limit: of rivals one always wins, and each pause makes a meeting less likely.
        """
        pauses = Pauses()
        while True:
            try:
                return await attempt()
            except Exception as exc:
                if not is_conflict(exc):
                    raise
            await pauses.next()

    async def once(self, args: tuple[Any, ...], kwargs: dict[str, Any], finish: Finish[T]) -> T:
        """One transaction: the function, and how `finish` ends it.

        Raises:
            DatabaseLostError: the connection broke; `InDoubtError`: at COMMIT.
            Exception: what the function, the driver or `finish` raises; it is rolled back.
        """
        opened = await self.datasource.begin(self.isolation_level)
        try:
            with OpenTransaction(self.name, self.datasource, opened.handle):
                value = await self.function(opened.handle, *args, **kwargs)
            return await self._ended(opened, finish, value)
        except Exception as exc:
            is_lost = opened.is_broken or is_outage(exc)
            await opened.abort()
            if is_lost and not isinstance(exc, errors.DBOSError):
                raise errors.DatabaseLostError(said_by(exc)) from exc
            raise
        except BaseException:
            await opened.abort()
            raise

    async def _ended(self, opened: Opened[Any], finish: Finish[T], value: object) -> T:
        try:
            await opened.check()
            return await finish(opened, value)
        except Exception as exc:
            if is_aborted(exc):
                raise refused_as_aborted(exc) from exc
            raise


async def committed(opened: Opened[Any], value: T) -> T:
    """End a transaction that nobody records."""
    await opened.commit()
    return value


def check_place(datasource: object, isolation_level: str) -> None:
    """Refuse where no transaction can run. Raises as `transaction_of` does."""
    if isolation_level not in ISOLATION_LEVELS:
        raise ValueError(
            f"isolation_level is one of {', '.join(ISOLATION_LEVELS)}, not {isolation_level!r}"
        )
    if not isinstance(datasource, Datasource):
        raise TypeError(
            "transaction takes the datasource that it runs on, as in "
            f"@dbos.transaction(AsyncpgDatasource(pool)), not {datasource!r}"
        )


def transaction_of(
    function: Any, datasource: Any, isolation_level: str, name: str
) -> Transaction[Any]:
    """What `@dbos.transaction` makes of a function.

    Raises:
        TypeError: it is no coroutine function, or the datasource is none.
        ValueError: there is no such isolation level.
    """
    check_place(datasource, isolation_level)
    if not inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{name} must be `async def` to be a transaction: its statements are awaited"
        )
    if not inspect.signature(function).parameters:
        raise TypeError(
            f"{name} takes nothing, but a transaction gets its connection as its first argument: "
            f"async def {name}(connection, …)"
        )
    return Transaction(function, datasource, isolation_level, name)


def no_method(name: str) -> NoReturn:
    """Refuse a transaction that would get an instance where the connection belongs."""
    raise TypeError(
        f"{name} is a transaction, which gets its connection first, so it cannot be a method: make "
        "it a function, or a @staticmethod"
    )
