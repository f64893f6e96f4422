"""Workflows that ended long ago, or of which there are newer ones enough: found and deleted.

What may go, and how, is decided by functions of schema.sql, which SQL calls, too. A walk goes along
the time of creation, batch by batch, each a transaction of its own:

    limits ─▶ batch ─▶ batch ─▶ … ─▶ the last          without an archive: found and deleted at once
              find ─▶ lines ─▶ written ─▶ delete       with one: deleted if it is still unchanged,
                                                       and nobody has come who needs it

Every await may be the last: what is deleted was written before, and what is written and not
deleted is found and written again. Two walks at a time skip what the other has locked.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct, structs

from dbos_async._config import Retention
from dbos_async._store import sql
from dbos_async._store.database import Database
from dbos_async._store.records import WorkflowId

MOST: Final = 10_000
"""Workflows that go in a batch, if it does not take too long."""
LOOKS: Final = 1_000
"""Workflows that are looked at at a time to be archived,"""
ROWS: Final = 10_000
"""and about how many rows go with them, unless one alone has more: it is deleted whole."""
LIMITS_DEADLINE: Final = 600.0
"""Seconds; the limit of a number is found by walking past so many workflows."""
PART_BYTES: Final = 8 * 1024 * 1024
"""Of workflows that are archived together: what is in memory for it at a time."""


class Limits(Struct, frozen=True):
    """Where a policy draws its lines at a moment; -1 where it draws none."""

    cutoff_ms: int
    boundary_ms: int
    boundary_id: str
    failed_cutoff_ms: int | None


def created_before(moment_ms: int) -> Limits:
    """The lines of a policy that lets everything go that ended and is older than a moment."""
    return Limits(cutoff_ms=-1, boundary_ms=moment_ms, boundary_id="", failed_cutoff_ms=None)


class Walk(Struct, frozen=True):
    """Where a walk stands, and what it is looking for."""

    limits: Limits
    application: str | None
    """Of which application, and of none; None: of all."""
    reached_ms: int = 0
    reached_id: str = ""
    is_over: bool = False

    def after(self, reached: "Batch | Found") -> "Walk":
        """The walk from where it came to."""
        return structs.replace(
            self,
            reached_ms=reached.reached_ms,
            reached_id=reached.reached_id,
            is_over=reached.is_last,
        )

    def values(self) -> tuple[object, ...]:
        """The arguments of the functions that go on with it."""
        lines = self.limits
        return (
            lines.cutoff_ms,
            lines.boundary_ms,
            lines.boundary_id,
            lines.failed_cutoff_ms,
            self.application,
            self.reached_ms,
            self.reached_id,
        )


class Batch(Struct, frozen=True):
    """A step of a walk, done."""

    deleted: int
    reached_ms: int
    reached_id: str
    is_last: bool


class Found(Struct, frozen=True):
    """A step of a walk that has deleted nothing yet: workflows, and the versions of their rows."""

    workflow_ids: list[str]
    versions: list[str]
    reached_ms: int
    reached_id: str
    is_last: bool


class Size(Struct, frozen=True):
    """How large a workflow is as text, about."""

    workflow_id: str
    size_bytes: int


async def begin(
    database: Database, retention: Retention, application: str | None, skew_ms: int
) -> Walk:
    """A walk from the oldest workflow on."""
    max_age_ms, keep_failed_ms = retention.max_age_ms, retention.keep_failed_ms
    async with database.lease(deadline=LIMITS_DEADLINE) as connection:
        row = await connection.fetchrow(
            sql.FIND_LIMITS,
            None if max_age_ms is None else max_age_ms - skew_ms,
            retention.max_rows,
            None if keep_failed_ms is None else keep_failed_ms - skew_ms,
            application,
        )
    assert row is not None
    return Walk(Limits(*row), application)


async def prune(database: Database, walk: Walk) -> Batch:
    """Find and delete the next workflows."""
    [batch] = await database.fetch(sql.PRUNE, *walk.values(), MOST, into=Batch)
    return batch


async def find(
    database: Database, walk: Walk, looks: int = LOOKS, rows: int | None = ROWS
) -> Found:
    """The next workflows that may go, with so many rows; None: however many."""
    [found] = await database.fetch(sql.FIND_PRUNABLE, *walk.values(), looks, rows, into=Found)
    return found


async def unneeded(database: Database, workflow_ids: Sequence[str]) -> list[str]:
    """Those of these that nobody needs who stays."""
    found = await database.fetch(sql.FIND_UNNEEDED, workflow_ids, into=WorkflowId)
    return [each.workflow_id for each in found]


async def parts_of(database: Database, found: Found) -> list[Sequence[str]]:
    """What was found in parts that are not too large to be in memory, but for a large workflow."""
    sizes = await database.fetch(sql.MEASURE, found.workflow_ids, into=Size)
    return list(parts({size.workflow_id: size.size_bytes for size in sizes}, found.workflow_ids))


def parts(sizes: dict[str, int], workflow_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of workflows that are `PART_BYTES` together, or one that is larger."""
    start = total = 0
    for place, workflow_id in enumerate(workflow_ids):
        size = sizes.get(workflow_id, 0)
        if place > start and total + size > PART_BYTES:
            yield workflow_ids[start:place]
            start, total = place, 0
        total += size
    if workflow_ids:
        yield workflow_ids[start:]


async def delete(database: Database, workflow_ids: Sequence[str], versions: Sequence[str]) -> int:
    """Delete those that are unchanged, and that nobody holds or needs; how many they were."""
    async with database.lease() as connection:
        deleted: int = await connection.fetchval(sql.DELETE_PRUNABLE, workflow_ids, versions)
    return deleted
