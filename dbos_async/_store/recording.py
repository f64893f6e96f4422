"""The step row in a transaction of the user's, on the system database.

    the user's statements ─▶ the fence, locked, and the row: one statement ─▶ COMMIT
                                     └ no row: what stands in its place? ─▶ roll back, or renumber

The fence's lock is what makes an unknown COMMIT decidable: who locks the workflow's row after it
waits for the end of that transaction, and sees then whether the row is there.
"""

from collections.abc import Sequence
from typing import LiteralString, Protocol

from dbos_async._store import sql
from dbos_async._store.borrowed import Row
from dbos_async._store.database import Connection, Database
from dbos_async._store.landings import Found, Renumber
from dbos_async._store.records import Fence, Owner, Recorded, StepWrite


class Fetching(Protocol):
    """A transaction of the user's."""

    async def fetch(self, statement: LiteralString, *values: object) -> Sequence[Row]:
        """Run a statement in it."""
        ...


async def record(
    transaction: Fetching, database: Database, step: StepWrite, application: str | None
) -> Recorded | Fence | None:
    """Write the step's row; else what stands in its place, and the transaction must not commit.

    Raises:
        DatabaseLostError: what stands there cannot be read now.
        Exception: the driver's.
    """
    while True:
        values = [getattr(step, field) for field in StepWrite.__struct_fields__]
        if await transaction.fetch(sql.RECORD_IN_TRANSACTION, *values, application):
            return None
        async with database.lease() as connection:
            landing = await landing_of(connection, step)
            if not isinstance(landing, Renumber):
                return landing
            step.step_key = step.key
            last: int = await connection.fetchval(sql.FIND_LAST_POSITION, step.workflow_id)
            step.position = last + 1


async def settle(database: Database, step: StepWrite) -> Recorded | Fence | None:
    """What became of a step whose COMMIT got no answer; None: it was not committed, and never is.

    Raises:
        ContendedError: the transaction is under way still; ask again.
        DatabaseLostError: ask again.
    """
    async with database.lease() as connection, connection.transaction():
        await connection.execute(sql.LIMIT_LOCKS)
        await connection.fetch(sql.LOCK_WORKFLOWS, [step.workflow_id], None)
        landing = await landing_of(connection, step)
    return None if isinstance(landing, Renumber) else landing


async def landing_of(connection: Connection, step: StepWrite) -> Recorded | Fence | Renumber:
    """What stands in the place of a step."""
    rows = await connection.fetch(sql.FIND_STEPS, [step.workflow_id], [step.key])
    recorded = {(row[0], row[2]): Recorded(*row) for row in rows}
    rows = await connection.fetch(sql.FIND_OWNERS, [step.workflow_id])
    owners = {row[0]: Owner(*row) for row in rows}
    return Found(recorded, owners).landing_of_step(step)
