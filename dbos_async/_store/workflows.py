"""Workflows one by one: their outcomes, their steps, their cancellation."""

from collections.abc import Sequence

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.database import Database
from dbos_async._store.records import Outcome, Recorded, Replayable, WorkflowId


async def fetch_outcomes(database: Database, workflow_ids: Sequence[str]) -> list[Outcome]:
    """Where these workflows stand; unknown ids are left out."""
    return await database.fetch(sql.FETCH_OUTCOMES, list(workflow_ids), into=Outcome)


async def fetch_for_replay(database: Database, workflow_ids: Sequence[str]) -> list[Replayable]:
    """These workflows, in no order; unknown ids are left out."""
    return await database.fetch(sql.FETCH_FOR_REPLAY, list(workflow_ids), into=Replayable)


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
