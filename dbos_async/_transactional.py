"""The decorator for steps that run in a transaction of the user's database."""

from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from msgspec import structs

from dbos_async._engine.functions import Step, name_of, step_of
from dbos_async._engine.registry import Registry
from dbos_async._engine.transacting import check_place, transaction_of
from dbos_async._limits import Limiter
from dbos_async._store.datasources import Datasource

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

IsolationLevel = Literal["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"]


class Transactional:
    """What declares transactions."""

    _registry: Registry

    def transaction(
        self,
        datasource: Datasource[S],
        /,
        *,
        isolation_level: IsolationLevel = "SERIALIZABLE",
        name: str | None = None,
    ) -> Callable[[Callable[Concatenate[S, P], Awaitable[T]]], Step[P, T]]:
        """Make an `async def` a step whose effects on a database happen exactly once.

            accounts = AsyncpgDatasource(pool)

            @dbos.transaction(accounts)
            async def withdraw(connection, account: int, cents: int) -> int:
                return await connection.fetchval(WITHDRAW, account, cents)

        The function gets a connection, or a session, in a transaction that also records the step;
        the caller leaves it out. It commits when the function returns, and rolls back when it
        raises. It may begin several times and commits once: after a crash, a lost connection, a
        serialization failure or a deadlock it is repeated, however often that takes, so what it
        does besides its statements should bear that. `dbos.enqueue` and `dbos.send` within it
        commit with it, where the database is the app's own; all other steps and verbs are refused.

        On the app's own database a lost connection only delays it. On another it fails the attempt
        with DatabaseLostError, for `with_options(retry=…)`. `timeout=` there limits an attempt,
        repetitions included. Outside of workflows, and within steps, it is a plain transaction.

        Args:
            datasource: where it runs.
            isolation_level: of the transaction; below "SERIALIZABLE" others may interfere in the
                ways that the Postgres manual describes.
            name: what rows call it; its `__qualname__` unless given.

        Raises:
            ValueError: there is no such isolation level, or the name cannot be stored.
            TypeError: the function is no `async def`, or the datasource is none.
        """
        check_place(datasource, isolation_level)

        def declare(function: Callable[Concatenate[S, P], Awaitable[T]]) -> Step[P, T]:
            chosen = name or name_of(function)
            transaction = transaction_of(function, datasource, isolation_level, chosen)
            self._registry.datasources[datasource] = None
            definition = structs.replace(
                step_of(chosen, function), function=transaction, transaction=transaction
            )
            step = Step[P, T](self, definition)
            self.add_step(step)
            return step

        return declare

    def add_limiter(self, limiter: Limiter) -> None:
        """See `StepSource`."""
        raise NotImplementedError

    def add_step(self, step: Step[..., Any]) -> None:
        """See `StepSource`."""
        raise NotImplementedError

    def launched(self) -> Any:
        """See `Source`."""
        raise NotImplementedError

    def find_launched(self) -> Any:
        """See `Source`."""
        raise NotImplementedError
