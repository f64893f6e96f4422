"""Open compensations of workflows that were cancelled."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from dbos_async._store import sql
from dbos_async._store.database import Database

COMPENSATE: Final = "DBOS.compensate"
"""The workflow that compensates another; the trigger in schema.sql knows it, too."""
AT_A_LOOK: Final = 10_000
"""Open compensations that a leader looks at in one statement."""


class OpenCompensation(Struct, frozen=True):
    """A step that is to undo what a workflow did."""

    key: str
    """Under which the workflow itself would have recorded it."""
    name: str
    class_name: str | None
    config_name: str | None
    inputs: str


async def fetch_open(database: Database, workflow_id: str) -> list[OpenCompensation]:
    """What is left to be compensated of a workflow, the latest first."""
    return await database.fetch(sql.FETCH_OPEN_COMPENSATIONS, workflow_id, into=OpenCompensation)


async def drop(database: Database, workflow_id: str, keys: Sequence[str]) -> None:
    """Forget what has been compensated."""
    await database.execute(sql.DROP_COMPENSATIONS, workflow_id, list(keys))


async def start_missing(database: Database, after: str, application: str) -> str:
    """Let cancelled workflows be compensated for whom nobody saw to it; where to look next."""
    async with database.lease() as connection:
        next_: str | None = await connection.fetchval(
            sql.START_COMPENSATIONS, after, AT_A_LOOK, application
        )
    return next_ or ""
