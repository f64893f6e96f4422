"""The same rows without the library: what Postgres does when nothing else has to be done.

The rows are copies of what dbos_async wrote, under new ids; the tables are those of a database of
their own, with the same schema.
"""

import time
import uuid
from collections.abc import Sequence
from typing import LiteralString

from msgspec import Struct

from bench.server import connected
from dbos_async._store.database import Connection

Values = tuple[object, ...]

# The columns that dbos_async writes; the others keep their defaults.
STEPS = """
select workflow_uuid, function_id, function_name, output, error, child_workflow_id,
       started_at_epoch_ms, completed_at_epoch_ms, step_key, arguments_digest, serialization,
       application_name
  from dbos.operation_outputs where workflow_uuid = $1 order by function_id
"""
INSERT_STEP = """
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, error, child_workflow_id,
        started_at_epoch_ms, completed_at_epoch_ms, step_key, arguments_digest, serialization,
        application_name)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
INSERT_STEPS = """
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, error, child_workflow_id,
        started_at_epoch_ms, completed_at_epoch_ms, step_key, arguments_digest, serialization,
        application_name)
select * from unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::bigint[], $8::bigint[], $9::text[], $10::bigint[], $11::text[],
                     $12::text[])
"""
WORKFLOW = """
select workflow_uuid, 'PENDING', name, class_name, config_name, inputs, executor_id,
       application_version, owner_xid, creator_xid, workflow_timeout_ms,
       workflow_deadline_epoch_ms, queue_name, deduplication_id, priority, queue_partition_key,
       delay_until_epoch_ms, parent_workflow_id, attributes, recovery_attempts, enqueue_order,
       serialization, application_name
  from dbos.workflow_status where workflow_uuid = $1
"""
INSERT_WORKFLOWS = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, inputs, executor_id,
        application_version, owner_xid, creator_xid, workflow_timeout_ms,
        workflow_deadline_epoch_ms, queue_name, deduplication_id, priority, queue_partition_key,
        delay_until_epoch_ms, parent_workflow_id, attributes, recovery_attempts, enqueue_order,
        serialization, application_name)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::text[], $10::text[], $11::bigint[],
                     $12::bigint[], $13::text[], $14::text[], $15::int[], $16::text[],
                     $17::bigint[], $18::text[], $19::jsonb[], $20::bigint[], $21::bigint[],
                     $22::text[], $23::text[])
"""
COMPLETION = """
select workflow_uuid, status, output, error, deduplication_id, completed_at, updated_at
  from dbos.workflow_status where workflow_uuid = $1
"""
COMPLETE_WORKFLOWS = """
update dbos.workflow_status w
   set status = t.status, output = t.output, error = t.error,
       deduplication_id = t.deduplication_id, completed_at = t.completed_at,
       updated_at = t.updated_at
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
              $7::bigint[])
       as t(workflow_uuid, status, output, error, deduplication_id, completed_at, updated_at)
 where w.workflow_uuid = t.workflow_uuid
"""
ANY_ENDED = """
select workflow_uuid from dbos.workflow_status
 where status = 'SUCCESS' and name = $1
 order by completed_at desc limit 1
"""


class Specimen(Struct, frozen=True):
    """The rows of one workflow, as dbos_async wrote them."""

    workflow: Values
    steps: list[Values]
    completion: Values


async def fetch_specimen(url: str, name: str) -> Specimen:
    """A workflow called `name` from the database of `url` that has ended."""
    async with connected(url) as connection:
        workflow_id = await connection.fetchval(ANY_ENDED, name)
        workflow = await connection.fetchrow(WORKFLOW, workflow_id)
        completion = await connection.fetchrow(COMPLETION, workflow_id)
        steps = await connection.fetch(STEPS, workflow_id)
    assert workflow is not None
    assert completion is not None
    return Specimen(tuple(workflow), [tuple(step) for step in steps], tuple(completion))


async def insert_singly(connection: Connection, step: Values, times: int) -> list[float]:
    """How many seconds each of `times` inserts of a step's row took."""
    statement = await connection.prepare(INSERT_STEP)
    seconds = []
    for _ in range(times):
        row = under(str(uuid.uuid4()), step)
        started = time.perf_counter()
        await statement.fetch(*row)
        seconds.append(time.perf_counter() - started)
    return seconds


async def insert_batches(connection: Connection, specimen: Specimen, workflows: int) -> float:
    """How many seconds `workflows` copies took, one statement for each thing they all do.

    The rows are at hand, as rows; turning them into arrays is part of inserting them in batches.
    """
    batches = batches_of(specimen, workflows)
    started = time.perf_counter()
    for statement, rows in batches:
        await connection.execute(statement, *map(list, zip(*rows, strict=True)))
    return time.perf_counter() - started


def batches_of(specimen: Specimen, workflows: int) -> list[tuple[LiteralString, list[Values]]]:
    """Statements and their rows; ids in order, as Postgres likes them best."""
    ids = sorted(str(uuid.uuid4()) for _ in range(workflows))
    return [
        (INSERT_WORKFLOWS, copies_of(ids, specimen.workflow)),
        *((INSERT_STEPS, copies_of(ids, step)) for step in specimen.steps),
        (COMPLETE_WORKFLOWS, copies_of(ids, specimen.completion)),
    ]


def copies_of(ids: Sequence[str], row: Values) -> list[Values]:
    """Copies of `row` under these ids."""
    return [under(workflow_id, row) for workflow_id in ids]


def under(workflow_id: str, row: Values) -> Values:
    """The row under another id."""
    return (workflow_id, *row[1:])
