"""Workflows changed from outside: resumed, forked, rewound, deleted.

Each change is one transaction under the row locks of the workflows it changes, so it waits for a
checkpoint in flight, and one that comes later finds another owner or none and does not land.
Outages are waited out: a change that is made twice is made once.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.database import Connection, Database
from dbos_async._store.records import (
    ENDED,
    ForkRow,
    Landmark,
    Standing,
    Status,
    WorkflowId,
)
from dbos_async._store.workflows import fetch_outcomes

GET_RESULT: Final = "DBOS.getResult"
"""The step that awaits another workflow."""


class Fork(Struct, frozen=True):
    """A workflow to be made of another's first steps."""

    source_id: str
    workflow_id: str
    cut: int
    """The position of the first step that is not copied."""
    app_version: str | None
    queue_name: str
    timeout_ms: int | None


class Cut(Struct, frozen=True):
    """Where a history is to end, as a person says it: a position, a step's name, the failure."""

    at: int | str = 1
    is_last_failure: bool = False

    def __post_init__(self) -> None:
        """Refuse what names no step.

        Raises:
            TypeError: it is neither a position nor a name.
            ValueError: positions begin with 1; or two ways are used at once.
        """
        if isinstance(self.at, bool) or not isinstance(self.at, int | str):
            raise TypeError(f"from_step is a position from 1 on, or a step's name, not {self.at!r}")
        if isinstance(self.at, int) and self.at < 1:
            raise ValueError(f"from_step counts from 1, the first step; it cannot be {self.at}")
        if self.is_last_failure and self.at != 1:
            raise ValueError("give from_step or from_last_failure=True, not both")

    def position_in(self, workflow_id: str, steps: Sequence[Landmark]) -> int:
        """The position of the first step to be dropped.

        Raises:
            ValueError: there is no such step; the message names those that there are.
        """
        if self.is_last_failure:
            return last_failure_of(steps)
        if isinstance(self.at, str):
            found = [step.position for step in steps if step.name == self.at]
            if not found:
                names = ", ".join(map(repr, dict.fromkeys(step.name for step in steps))) or "none"
                raise ValueError(
                    f"workflow {workflow_id!r} has recorded no step named {self.at!r}; there are: "
                    f"{names}"
                )
            return found[-1]
        last = steps[-1].position if steps else 0
        if self.at > last + 1:
            raise ValueError(
                f"workflow {workflow_id!r} has no step {self.at}: its last one is {last}, and "
                f"{last + 1} keeps all of them"
            )
        return self.at


def last_failure_of(steps: Sequence[Landmark]) -> int:
    """The last step that failed, else the last one, else the first.

    The failure of a child that was awaited is that of the step before, which started the child:
    from there on, another child is started.
    """
    failed = [place for place, step in enumerate(steps) if step.has_failed]
    place = failed[-1] if failed else len(steps) - 1
    if place < 0:
        return 1
    earlier = steps[place - 1] if place else None
    if earlier is not None and earlier.is_child and steps[place].name == GET_RESULT:
        return earlier.position
    return steps[place].position


async def find_cut(database: Database, workflow_id: str, cut: Cut) -> int:
    """Where a workflow's history is to end. Raises as `Cut.position_in` does."""
    if cut == Cut():
        return 1
    steps = await database.fetch(sql.FETCH_OUTLINE, workflow_id, into=Landmark)
    return cut.position_in(workflow_id, steps)


async def resume(
    database: Database,
    workflow_ids: Sequence[str],
    statuses: Sequence[Status],
    *,
    queue_name: str,
    app_version: str | None,
) -> list[Standing]:
    """Enqueue these again, if they are in one of these states; which were, and in which."""
    allowed = set(statuses)

    async def attempt() -> list[Standing]:
        try:
            return await database.fetch(
                sql.RESUME,
                list(workflow_ids),
                sorted(allowed),
                queue_name,
                app_version,
                into=Standing,
            )
        except errors.DatabaseLostError:
            allowed.discard("PENDING")  # it may run by now because of this attempt
            raise

    return await database.patiently(attempt)


async def update_attributes(
    database: Database, workflow_id: str, attributes: str | None, *, merge: bool
) -> bool:
    """Change what a workflow is found by; whether there is such a workflow."""
    return await database.execute(sql.UPDATE_ATTRIBUTES, workflow_id, attributes, merge) > 0


async def fork(database: Database, fork: Fork) -> str:
    """Make a workflow of another's first steps; the registered name of its function.

    A fork of the same source that has the id already is left as it is.

    Raises:
        WorkflowNotFoundError: there is no such source.
        WorkflowConflictError: another workflow has the id.
    """

    async def attempt() -> str:
        async with database.lease() as connection:
            await connection.execute(
                sql.FORK,
                [fork.source_id],
                fork.workflow_id,
                fork.cut,
                fork.app_version,
                fork.queue_name,
                fork.timeout_ms,
            )
            found = await connection.fetchrow(sql.FIND_FORK, fork.workflow_id)
        if found is None:
            raise errors.WorkflowNotFoundError(fork.source_id)
        row = ForkRow(*found)
        if row.forked_from != fork.source_id:
            raise errors.WorkflowConflictError(
                f"the workflow id {fork.workflow_id!r} is taken by one that is no fork of "
                f"{fork.source_id!r}: choose another",
                workflow_id=fork.workflow_id,
            )
        return row.name

    return await database.patiently(attempt)


async def rewind(
    database: Database, workflow_id: str, cut: Cut, *, queue_name: str, app_version: str | None
) -> None:
    """Drop a workflow's steps from a cut on, and enqueue it again.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        ValueError: it has not ended, was compensated, or there is no such step.
    """
    may_be_done = False

    async def attempt() -> None:
        nonlocal may_be_done
        try:
            async with database.lease() as connection, connection.transaction():
                found = await connection.fetch(sql.LOCK_WORKFLOWS, [workflow_id], None)
                if not found:
                    raise errors.WorkflowNotFoundError(workflow_id)
                status = Standing(*found[0]).status
                if status not in ENDED:
                    if may_be_done:
                        return
                    raise ValueError(
                        f"workflow {workflow_id!r} is {status}: only one that has ended can be "
                        "rewound; cancel it first, or fork it"
                    )
                if await connection.fetchval(sql.FIND_COMPENSATION, workflow_id) is not None:
                    raise ValueError(compensated(workflow_id))
                steps = await connection.fetch(sql.FETCH_OUTLINE, workflow_id)
                position = cut.position_in(workflow_id, [Landmark(*step) for step in steps])
                await connection.execute(sql.REWIND, workflow_id, position, queue_name, app_version)
        except errors.DatabaseLostError:
            may_be_done = True
            raise

    await database.patiently(attempt)


def compensated(workflow_id: str) -> str:
    """Why a workflow is not run again."""
    return (
        f"workflow {workflow_id!r} was cancelled, and {workflow_id + '-compensate'!r} undoes what "
        "its sagas had done, though its steps are recorded: fork it from the step before the saga"
    )


async def delete(
    database: Database,
    workflow_ids: Sequence[str],
    statuses: Sequence[str] | None = None,
    *,
    children: bool,
) -> list[Standing]:
    """Delete these with all that belongs to them, if they are in one of these states.

    With `children`, also everything that they started, in whatever state: their parents are locked
    by then, and start nothing more. What was deleted, and in which state it was.
    """
    doubtful: dict[str, Standing] = {}

    async def attempt() -> dict[str, Standing]:
        async with database.lease() as connection, connection.transaction():
            locked = await lock(connection, workflow_ids, statuses)
            while children:
                family = await connection.fetch(sql.FIND_FAMILY, list(locked))
                others = [row[0] for row in family if row[0] not in locked]
                more = await lock(connection, others, None) if others else {}
                if not more:
                    break
                locked |= more
            doubtful.update(locked)
            await connection.execute(sql.DELETE_STEPS, list(locked))
            await connection.execute(sql.DELETE_WORKFLOWS, list(locked))
        return locked

    deleted = await database.patiently(attempt)
    if deleted.keys() != doubtful.keys():  # an attempt whose answer was lost may have deleted some
        left = await database.patiently(lambda: fetch_outcomes(database, list(doubtful)))
        deleted = {**doubtful, **deleted}
        for outcome in left:
            deleted.pop(outcome.workflow_id, None)
    return list(deleted.values())


async def lock(
    connection: Connection, workflow_ids: Sequence[str], statuses: Sequence[str] | None
) -> dict[str, Standing]:
    """Lock those of these workflows that are in one of these states, until the transaction ends."""
    rows = await connection.fetch(sql.LOCK_WORKFLOWS, list(workflow_ids), statuses)
    return {row[0]: Standing(*row) for row in rows}


async def find_family(database: Database, workflow_ids: Sequence[str]) -> list[str]:
    """These workflows and everything they started."""
    rows = await database.fetch(sql.FIND_FAMILY, list(workflow_ids), into=WorkflowId)
    return [row.workflow_id for row in rows]
