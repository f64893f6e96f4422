"""Reading workflows: their outcomes, their rows, their steps."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, get_args

from msgspec import Struct

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.clock import milliseconds_of
from dbos_async._store.database import Database
from dbos_async._store.records import Outcome, Recorded, Status, WorkflowId, WorkflowRow

KINDS: Final[dict[str, type]] = {
    "name": str,
    "queue_name": str,
    "workflow_id_prefix": str,
    "created_after": datetime,
    "created_before": datetime,
}
STATUSES: Final = dict.fromkeys(get_args(Status)).keys()


class Filter(Struct, frozen=True, kw_only=True):
    """Which workflows; a field left out does not matter."""

    workflow_ids: Sequence[str] | None = None
    status: Status | Sequence[Status] | None = None
    name: str | None = None
    queue_name: str | None = None
    workflow_id_prefix: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse what would silently match nothing, or everything.

        Raises:
            TypeError: a value is of the wrong type.
            ValueError: there is no such status.
        """
        if isinstance(self.workflow_ids, str):
            raise TypeError(f"workflow_ids is a list of ids, not {self.workflow_ids!r}")
        for field, kind in KINDS.items():
            value = getattr(self, field)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{field} is a {kind.__name__}, not {value!r}")
        unknown = set(self.statuses or ()) - STATUSES
        if unknown:
            raise ValueError(f"{min(unknown)!r} is no status; there are {', '.join(STATUSES)}")

    @property
    def statuses(self) -> list[Status] | None:
        """The states that fit; None if all do."""
        if self.status is None:
            return None
        return [self.status] if isinstance(self.status, str) else list(self.status)

    @property
    def is_empty(self) -> bool:
        """Whether it lets everything through."""
        return all(getattr(self, field) in (None, "") for field in self.__struct_fields__)

    def values(self) -> tuple[object, ...]:
        """The filter, but for the ids, as the first six arguments of the listing."""
        return (
            self.statuses,
            self.name,
            self.queue_name,
            self.workflow_id_prefix,
            None if self.created_after is None else milliseconds_of(self.created_after),
            None if self.created_before is None else milliseconds_of(self.created_before),
        )


async def fetch_outcomes(database: Database, workflow_ids: Sequence[str]) -> list[Outcome]:
    """Where these workflows stand; unknown ids are left out."""
    return await database.fetch(sql.FETCH_OUTCOMES, list(workflow_ids), into=Outcome)


async def fetch_workflows(
    database: Database, chosen: Filter, *, limit: int, offset: int, newest_first: bool
) -> list[WorkflowRow]:
    """The chosen workflows, by time of creation."""
    values = (*chosen.values(), limit, offset)
    if chosen.workflow_ids is not None:
        ids = list(chosen.workflow_ids)
        return await database.fetch(sql.LIST_THESE, *values, ids, newest_first, into=WorkflowRow)
    statement = sql.LIST_NEWEST if newest_first else sql.LIST_OLDEST
    return await database.fetch(statement, *values, into=WorkflowRow)


async def fetch_steps(database: Database, workflow_id: str) -> list[Recorded]:
    """A workflow's recorded steps in the order of their start.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
    """
    async with database.lease() as connection:
        rows = await connection.fetch(sql.LIST_STEPS, [workflow_id])
    if not rows:
        raise errors.WorkflowNotFoundError(workflow_id)
    return [Recorded(*row) for row in rows if row[0] is not None]


async def fetch_histories(
    database: Database, workflow_ids: Sequence[str]
) -> dict[str, dict[str, Recorded]]:
    """The recorded steps of each workflow, by step key."""
    histories: dict[str, dict[str, Recorded]] = {workflow_id: {} for workflow_id in workflow_ids}
    rows = await database.fetch(sql.FETCH_HISTORY, list(workflow_ids), into=Recorded)
    for step in rows:
        histories[step.workflow_id][step.key] = step
    return histories


async def cancel(
    database: Database, workflow_ids: Sequence[str], *, children: bool, skew_ms: int = 0
) -> list[str]:
    """Cancel these workflows, and what they started if asked; the ids that were still alive."""
    rows = await database.fetch(sql.CANCEL, list(workflow_ids), children, skew_ms, into=WorkflowId)
    return [row.workflow_id for row in rows]
