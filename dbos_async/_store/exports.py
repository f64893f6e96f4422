"""Workflows as text: taken out of one database, put into this or another.

The text is a JSON object:

    {"format": "dbos_async workflows", "version": 1, "workflows": [
        {"workflow_status": {…}, "operation_outputs": [{…}, …], "workflow_events": […],
         "workflow_events_history": […], "streams": […], "notifications": […]}, …]}

Each `{…}` is a row, column by column as schema.sql describes it; values stay in the format that
their row names. Arguments and results are in workflow_status, whichever table or store they were
in; step keys and the root of a line of forks are explicit, so a fork can be read without its
source; owner tokens are left out. Version 1 may gain columns and tables; a reader ignores what it
does not know.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, LiteralString

import msgspec
from msgspec import Struct

from dbos_async import errors
from dbos_async._limits import checked_id
from dbos_async._store import sql
from dbos_async._store.database import Database
from dbos_async._store.payloads import PREFIX, Payloads, is_reference
from dbos_async._store.records import ALIVE, STATUSES
from dbos_async._store.workflows import fetch_outcomes

FORMAT: Final = "dbos_async workflows"
VERSION: Final = 1
NOT_IMPORTED: Final = (
    "owner_xid",
    "creator_xid",
    "deduplication_id",
    "waiting_for",
    "queue_name",
    "started_at_epoch_ms",
    "workflow_deadline_epoch_ms",
)
"""What says who has a workflow that has not ended, and where it stands in which line."""

Row = dict[str, Any]


class ExportedWorkflow(Struct, frozen=True, kw_only=True):
    """A workflow with all that belongs to it."""

    workflow_status: Row
    operation_outputs: list[Row] = []
    workflow_events: list[Row] = []
    workflow_events_history: list[Row] = []
    streams: list[Row] = []
    notifications: list[Row] = []

    @property
    def workflow_id(self) -> str:
        """Its id, which its other rows must name, too.

        Raises:
            TypeError, ValueError: it has none that may be one, or a row is of another workflow.
        """
        workflow_id = checked_id(self.workflow_status.get("workflow_uuid"), "workflow_uuid")
        for table, _ in TABLES[1:]:
            column = "destination_uuid" if table == "notifications" else "workflow_uuid"
            for row in getattr(self, table):
                if row.get(column) != workflow_id:
                    raise ValueError(f"a row of {table} is not of workflow {workflow_id!r}")
        return workflow_id


class Export(Struct, frozen=True):
    """What the text holds."""

    format: str
    version: int
    workflows: list[ExportedWorkflow]


TABLES: Final[tuple[tuple[str, LiteralString], ...]] = (
    ("workflow_status", sql.IMPORT_WORKFLOWS),
    ("operation_outputs", sql.IMPORT_STEPS),
    ("workflow_events", sql.IMPORT_EVENTS),
    ("workflow_events_history", sql.IMPORT_EVENTS_HISTORY),
    ("streams", sql.IMPORT_STREAMS),
    ("notifications", sql.IMPORT_MESSAGES),
)
"""In the order of their locks."""


async def export(database: Database, payloads: Payloads, workflow_ids: Sequence[str]) -> str:
    """These workflows as text; unknown ids are left out.

    Raises:
        PayloadStoreError: a large value of one is not to be had.
    """
    return enclosed(await fetch(database, payloads, workflow_ids))


async def export_lines(
    database: Database, payloads: Payloads, workflow_ids: Sequence[str]
) -> list[str]:
    """The same of each workflow by itself, without a line break. Raises as `export` does."""
    workflows = await fetch(database, payloads, workflow_ids)
    return [enclosed([workflow]).replace("\n", " ") for workflow in workflows]


async def fetch(
    database: Database, payloads: Payloads, workflow_ids: Sequence[str]
) -> list[msgspec.Raw | ExportedWorkflow]:
    """Workflows to be exported, with what is in the payload store. Raises as `export` does."""
    async with database.lease() as connection:
        rows = await connection.fetch(sql.EXPORT, list(workflow_ids))
    return [
        await inlined(row[0], payloads) if PREFIX in row[0] else msgspec.Raw(row[0].encode())
        for row in rows
    ]


def enclosed(workflows: list[msgspec.Raw | ExportedWorkflow]) -> str:
    """Workflows as an export."""
    export = {"format": FORMAT, "version": VERSION, "workflows": workflows}
    return msgspec.json.encode(export).decode()


async def inlined(text: str, payloads: Payloads) -> ExportedWorkflow:
    """An exported workflow with the values that references stand for."""
    workflow = msgspec.json.decode(text, type=ExportedWorkflow)
    for row in (workflow.workflow_status, *workflow.operation_outputs):
        for column in ("inputs", "output"):
            if is_reference(row.get(column), row["serialization"]):
                row[column] = await payloads.text(row[column], row["workflow_uuid"])
    return workflow


def parse(text: str) -> list[ExportedWorkflow]:
    """The workflows in an exported text.

    Raises:
        TypeError: it is no text.
        ValueError: it is no export, or one of a version that is not read here.
    """
    if not isinstance(text, str | bytes):
        raise TypeError(f"an export is the text that export_workflow made, not {text!r}")
    try:
        found = msgspec.json.decode(text, type=Export)
    except (msgspec.DecodeError, UnicodeEncodeError) as exc:
        raise ValueError(f"this is no text that export_workflow made: {exc}") from None
    if found.format != FORMAT or found.version != VERSION:
        raise ValueError(
            f"this is an export in the format {found.format!r}, version {found.version}; version "
            f"{VERSION} of {FORMAT!r} is read here: import it with the release that made it"
        )
    ids = [workflow.workflow_id for workflow in found.workflows]
    if len(set(ids)) != len(ids):
        raise ValueError("the export has two workflows with the same id")
    for workflow in found.workflows:
        is_alive(workflow)
    return found.workflows


async def import_workflows(
    database: Database,
    workflows: Sequence[ExportedWorkflow],
    now_ms: int,
    *,
    resume_on: str | None,
) -> list[str]:
    """Insert workflows, all or none; those that have not ended, as cancelled or on a queue.

    Raises:
        WorkflowConflictError: an id exists.
        DatabaseRefusedError: a row is not one that this database can hold.
        DatabaseLostError: whether they were imported is unknown.
    """
    ids = [workflow.workflow_id for workflow in workflows]
    existing = await fetch_outcomes(database, ids)
    if existing:
        taken = min(outcome.workflow_id for outcome in existing)
        raise errors.WorkflowConflictError(
            f"there is a workflow {taken!r} already; nothing was imported: delete it first, or "
            "import into another database",
            workflow_id=taken,
        )
    async with database.lease() as connection, connection.transaction():
        for table, statement in TABLES:
            rows = list(rows_of(workflows, table, now_ms))
            if rows:
                await connection.execute(statement, msgspec.json.encode(rows).decode())
        if resume_on is not None:
            alive = [each.workflow_id for each in workflows if is_alive(each)]
            await connection.fetch(sql.RESUME, alive, ["CANCELLED"], resume_on, None)
    return ids


def rows_of(workflows: Sequence[ExportedWorkflow], table: str, now_ms: int) -> Iterator[Row]:
    """The rows for a table."""
    for workflow in workflows:
        if table != "workflow_status":
            yield from getattr(workflow, table)
        elif is_alive(workflow):
            halted = dict.fromkeys(NOT_IMPORTED)
            yield (
                workflow.workflow_status
                | halted
                | {
                    "status": "CANCELLED",
                    "completed_at": now_ms,
                }
            )
        else:
            yield workflow.workflow_status


def is_alive(workflow: ExportedWorkflow) -> bool:
    """Whether it had not ended when it was exported.

    Raises:
        ValueError: it is in no state that there is.
    """
    status = workflow.workflow_status.get("status")
    if status not in STATUSES:
        raise ValueError(f"workflow {workflow.workflow_id!r} has the status {status!r}")
    return status in ALIVE
