"""Every statement is valid, fills its record, and finds its rows by an index."""

import asyncio
import re
import types
import typing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal, get_args, get_origin
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from dbos_async._store import (
    checkpointer,
    claiming,
    compensations,
    connections,
    database,
    databases,
    datasources,
    debounces,
    embedded,
    events,
    health,
    limiters,
    messages,
    outputs,
    parking,
    payloads,
    pruning,
    queues,
    records,
    schedules,
    schema,
    setup,
    sql,
    versions,
)
from dbos_async.testing import PostgresServer

MODULES = (sql, schema, setup, checkpointer, database, databases, datasources, embedded)
BEGINNINGS = ("select", "with", "insert", "update", "delete")


def statements_of(module: types.ModuleType) -> dict[str, str]:
    """The statements among a module's constants; parts of statements begin with an underscore."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
        if value.split(maxsplit=1)[:1] and value.split(maxsplit=1)[0].lower() in BEGINNINGS
    }


STATEMENTS = {name: text for module in MODULES for name, text in statements_of(module).items()}

RECORDS: dict[str, type[msgspec.Struct]] = {
    "sql.FIND_STEPS": records.Recorded,
    "sql.FIND_OWNERS": records.Owner,
    "sql.FIND_ENQUEUED": records.Owner,
    "sql.FETCH_HISTORY": records.Recorded,
    "sql.FETCH_OUTCOMES": records.Outcome,
    "sql.LIST_NEWEST": records.WorkflowRow,
    "sql.LIST_OLDEST": records.WorkflowRow,
    "sql.LIST_THESE": records.WorkflowRow,
    "sql.LIST_CHILDREN": records.WorkflowRow,
    "sql.LIST_FORKS": records.WorkflowRow,
    "sql.LIST_TAGGED": records.WorkflowRow,
    "sql.LIST_UNSUCCESSFUL": records.WorkflowRow,
    "sql.COUNT_WORKFLOWS": records.CountRow,
    "sql.RESUME": records.Standing,
    "sql.LOCK_WORKFLOWS": records.Standing,
    "sql.FETCH_OUTLINE": records.Landmark,
    "sql.FIND_FORK": records.ForkRow,
    "sql.FIND_FAMILY": records.WorkflowId,
    "sql.LIST_STEPS": records.Recorded,
    "sql.LOOK_AROUND": records.Look,
    "sql.FETCH_EXECUTORS": records.ExecutorRow,
    "sql.FIND_LATE": records.WorkflowId,
    "sql.FETCH_LEFT": records.LeftBy,
    "sql.TAKE_OVER": records.Claimed,
    "sql.FIND_ORPHANS": records.Claimed,
    "sql.UNKNOWN_PENDING": records.WorkflowCount,
    "sql.COUNT_OTHER_VERSIONS": records.VersionCount,
    "sql.FIND_LOST": records.WorkflowId,
    "sql.CANCEL": records.WorkflowId,
    "sql.CLAIM": records.Claimed,
    "sql.CLAIM_EXACTLY": records.Claimed,
    "sql.CLAIM_IN_TURNS": records.Claimed,
    "sql.FIND_UNKNOWN": records.WorkflowId,
    "sql.COUNT_UNREAD": messages.Unread,
    "sql.FIND_EVENTS": events.Event,
    "sql.FETCH_EVENTS": events.Event,
    "sql.FETCH_QUEUES": records.QueueRow,
    "sql.FETCH_USE": records.Use,
    "sql.FETCH_PARTITIONS": records.PartitionUse,
    "sql.UNKNOWN_WAITING": records.Unclaimable,
    "sql.HAND_BACK": records.QueueName,
    "sql.RELEASE_DELAYED": records.QueueName,
    "sql.SET_DELAY": queues.Due,
    "sql.PARK": parking.Nobodys,
    "sql.LOCK_PARKED": parking.Locked,
    "sql.LEASE_TOKENS": limiters.Leased,
    "sql.FETCH_PERMITS": limiters.OtherPermits,
    "sql.DEBOUNCE": debounces.Debounced,
    "sql.FIND_KEY_HOLDER": debounces.Holder,
    "sql.FETCH_FOR_REPLAY": records.Replayable,
    "sql.FETCH_VERSIONS": versions.VersionRow,
    "sql.COUNT_WORK": versions.WorkCount,
    "sql.COUNT_PROCESSES": versions.Count,
    "sql.MOVE_WORK": records.QueueName,
    "sql.COUNT_DEAD_LETTERS": versions.Count,
    "sql.FETCH_OPEN_COMPENSATIONS": compensations.OpenCompensation,
    "sql.FETCH_PLACE": health.Place,
    "sql.FETCH_SERVER": health.ServerRow,
    "sql.FETCH_OLDEST_TRANSACTION": health.TransactionRow,
    "sql.FETCH_TABLE_SIZES": health.TableRow,
    "sql.FETCH_QUEUE_LOADS": health.QueueLoad,
    "sql.FETCH_STREAM_END": records.StreamEnd,
    "sql.FETCH_STREAM_VALUES": records.StreamValue,
    "sql.FETCH_SCHEDULES": schedules.ScheduleRow,
    "sql.FIND_SCHEDULE_OWNERS": schedules.ScheduleOwner,
    "sql.FIND_UNDECLARED": schedules.ScheduleName,
    "sql.FETCH_PLANS": schedules.PlanRow,
    "sql.LOCK_SCHEDULES": schedules.Locked,
    "sql.LOCK_ACTIVE_SCHEDULES": schedules.Locked,
    "sql.FIND_ACTIVE_RUNS": schedules.ActiveRun,
    "sql.FIRE": queues.Due,
    "sql.PAGE_PAYLOADS": payloads.Registered,
    "sql.FIND_PAYLOADS": payloads.Registered,
    "sql.FIND_LIMITS": pruning.Limits,
    "sql.PRUNE": pruning.Batch,
    "sql.FIND_PRUNABLE": pruning.Found,
    "sql.FIND_UNNEEDED": records.WorkflowId,
    "sql.MEASURE": pruning.Size,
}
"""What the rows of a statement become. One that is not here returns one column at most."""

TAKEN_APART = {
    "schema.FIND_TABLES",
    "schema.FIND_INDEX",
    "schema.FIND_FOREIGN_INDEXES",
    "setup.FIND_CONTENT",
    "setup.COUNT_CONTENT",
    "schema.WHO",
    "schema.FETCH_BLOCKERS",
    "schema.FETCH_NAMES",
    "schema.LIMIT_TRANSACTION",
    "schema.LIMIT_SESSION",
    "sql.FIND_HOLDERS",
    "sql.RECORD_RECEIPTS",
    "sql.LOCK_PAYLOADS",
    "sql.DOOM_PAYLOADS",
    "sql.FIND_OUTPUTS_TABLE",
    "sql.FETCH_OUTPUTS",
}
"""Statements of several columns that their callers take apart by name."""

WRITES: dict[str, tuple[type[msgspec.Struct], int, str]] = {
    "sql.RECORD_STEP": (records.StepWrite, 1, ""),
    "sql.RECORD_IN_TRANSACTION": (records.StepWrite, 1, ""),
    "sql.RECORD_STEPS": (records.StepWrite, 1, "[]"),
    "sql.CREATE_WORKFLOWS": (records.WorkflowWrite, 1, "[]"),
    "sql.COMPLETE_WORKFLOWS": (records.CompletionWrite, 0, "[]"),
    "sql.CLAIM": (claiming.Claim, 4, ""),
    "sql.CLAIM_EXACTLY": (claiming.Claim, 6, ""),
    "sql.CLAIM_IN_TURNS": (claiming.Claim, 6, ""),
    "sql.DEBOUNCE": (debounces.DebounceWrite, 0, ""),
}
"""What a statement's parameters are made of, how many more there are, and whether in arrays."""

PYTHON_TYPES = {
    "text": str,
    "varchar": str,
    "int4": int,
    "int8": int,
    "float8": float,
    "bool": bool,
    "timestamptz": datetime,
    "text[]": list,
}


@pytest.fixture
async def connection(dbos_database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dbos_database_url)
    await connection.execute(outputs.OUTPUTS_TABLE)  # as in a database of the user's
    yield connection
    await connection.close()


@pytest.mark.parametrize("name", STATEMENTS)
async def test_a_statement_fits_the_schema_and_its_record(name: str, connection: Any) -> None:
    prepared = await connection.prepare(STATEMENTS[name])
    columns = [attribute.type.name for attribute in prepared.get_attributes()]
    record = RECORDS.get(name)
    if record is None:
        assert len(columns) <= 1 or name in TAKEN_APART
        return
    fields = [python_type(field.type) for field in msgspec.structs.fields(record)]
    assert [PYTHON_TYPES[column] for column in columns] == fields


@pytest.mark.parametrize("name", WRITES)
async def test_the_parameters_of_a_statement_fit_what_is_written(
    name: str, connection: Any
) -> None:
    record, others, suffix = WRITES[name]
    prepared = await connection.prepare(STATEMENTS[name])
    parameters = [parameter.name for parameter in prepared.get_parameters()]
    fields = msgspec.structs.fields(record)
    assert len(parameters) == len(fields) + others
    for field, parameter in zip(fields, parameters, strict=False):
        if get_origin(field.type) is list:
            assert parameter.endswith("[]")
            continue
        assert parameter.endswith(suffix)
        assert PYTHON_TYPES[parameter.removesuffix("[]")] is python_type(field.type), field.name


async def test_every_record_of_a_statement_is_that_of_a_statement() -> None:
    assert RECORDS.keys() | WRITES.keys() | TAKEN_APART <= STATEMENTS.keys()


def python_type(annotation: Any) -> type:
    """The one type of a field, whether or not it may be None."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        [annotation] = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is list:
        return list
    assert isinstance(annotation, type)
    return annotation


# Plans

ROWS = 60_000
FILL = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, executor_id, application_version,
        application_name, queue_name, deduplication_id, delay_until_epoch_ms, parent_workflow_id,
        owner_xid, created_at, enqueue_order, priority, forked_from, serialization,
        rate_limited, started_at_epoch_ms, queue_partition_key, attributes, schedule_name)
select 'w-' || i, status, 'name-' || i % 20, null, null, 'executor-' || i % 50, '1', 'shop',
       case when status in ('ENQUEUED', 'DELAYED') or i % 3 = 0 then 'queue-' || i % 5 end,
       case when status = 'ENQUEUED' and i % 10 = 1 then 'd-' || i end,
       case when status = 'DELAYED' then 1700000000000 + i::bigint * 100000 end,
       case when i % 4 = 0 then 'w-' || i / 4 end,
       'owner-' || i, 1700000000000 + i, i, i % 3,
       case when i % 1000 = 0 then 'w-' || i / 2 end, 'portable_json', i % 3 = 0, 1700000000000 + i,
       case when i % 24 = 1 then 'k-' || i % 7 end,
       case when i % 10 = 0 then jsonb_build_object('order', i) end,
       case when i % 5 = 2 then 'schedule-' || i % 400 end
  from generate_series($1::int, $2::int) i,
       lateral (select case when i % 12 = 1 then 'ENQUEUED' when i % 30 = 2 then 'PENDING'
                            when i % 60 = 3 then 'DELAYED' when i % 20 = 4 then 'ERROR'
                            else 'SUCCESS' end as status) s
"""
FILL_STEPS = """
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, step_key, completed_at_epoch_ms)
select 'w-' || i, n, 'step', '1', case when n > 3 then '1.1.' || n end, 1700000000000 + i
  from generate_series($1::int, $2::int) i, generate_series(1, 4) n
"""
OTHER_TABLES = """
insert into dbos.workflow_input (workflow_uuid, inputs) select 'w-' || i, '{}'
  from generate_series(1, 20000) i;
insert into dbos.workflow_output (workflow_uuid, output) select 'w-' || i, '1'
  from generate_series(1, 20000) i;
insert into dbos.workflow_events (workflow_uuid, key, value) select 'w-' || i, 'key', '1'
  from generate_series(1, 20000) i
"""
NO_AUTOVACUUM = """
alter table dbos.workflow_status set (autovacuum_enabled = off);
alter table dbos.operation_outputs set (autovacuum_enabled = off);
alter table dbos.workflow_input set (autovacuum_enabled = off);
alter table dbos.notifications set (autovacuum_enabled = off);
alter table dbos.workflow_events set (autovacuum_enabled = off);
alter table dbos.workflow_output set (autovacuum_enabled = off);
alter table dbos.streams set (autovacuum_enabled = off);
alter table dbos.dbos_async_payloads set (autovacuum_enabled = off);
alter table dbos.dbos_async_compensations set (autovacuum_enabled = off)
"""
FILL_STREAMS = """
insert into dbos.streams (workflow_uuid, key, value, "offset", serialization)
select 'w-' || i, 'key-' || i % 3, '1', n, 'portable_json'
  from generate_series(1, $1::int) i, generate_series(0, 3) n
"""
FILL_COMPENSATIONS = """
insert into dbos.dbos_async_compensations
       (workflow_uuid, step_key, function_id, saga, name, inputs)
select 'w-' || i, n::text, n, '2', 'step', '{}'
  from generate_series(1, $1::int) i, generate_series(3, 4) n
"""
FILL_MESSAGES = """
insert into dbos.notifications (destination_uuid, topic, message, consumed)
select 'w-' || 1 + i % 20000, 'topic-' || i % 3, '1', i % 5 > 0 from generate_series(1, $1::int) i
"""
FILL_PAYLOADS = """
insert into dbos.dbos_async_payloads (store, object_key, workflow_id)
select 's3://bucket', 'w-' || i || '/result-1', 'w-' || i from generate_series(1, $1::int) i
"""
SIZES = {
    "workflow_status": ROWS,
    "operation_outputs": 4 * ROWS,
    "workflow_input": 20_000,
    "notifications": ROWS,
    "streams": 4 * 20_000,
    "workflow_events": 20_000,
    "dbos_async_payloads": 20_000,
    "dbos_async_compensations": 2 * 20_000,
}

IDS = [f"w-{i}" for i in range(100, 140)]
OBJECTS = [f"{workflow_id}/result-1" for workflow_id in IDS]
NAMES, NOTHINGS = [f"name-{i}" for i in range(20)], [""] * 20


def written(record: type[msgspec.Struct], **values: Any) -> list[Any]:
    """Forty records turned on their side; a field that is not given is None."""
    columns = (values.get(field) for field in record.__struct_fields__)
    return [column if isinstance(column, list) else [column] * 40 for column in columns]


STEPS = written(
    records.StepWrite,
    workflow_id=IDS,
    position=9,
    name="step",
    output="1",
    started_at_ms=1,
    completed_at_ms=1,
    step_key="9",
    owner="owner",
)
STEP = [column[0] for column in STEPS]
WORKFLOWS = written(
    records.WorkflowWrite,
    workflow_id=[f"new-{i}" for i in range(40)],
    status="PENDING",
    name="name-1",
    inputs="{}",
    creator="owner",
    priority=0,
)
COMPLETIONS = written(
    records.CompletionWrite, workflow_id=IDS, owner="owner", status="SUCCESS", output="1"
)
MESSAGE_IDS = [f"m-{i}" for i in range(40)]
MESSAGES = [IDS, [9] * 40, MESSAGE_IDS, IDS, ["topic-1"] * 40, ["1"] * 40]
TOLD = [IDS, [9] * 40, ["owner", None] * 20, ["key"] * 40, ["1"] * 40, [None, None, 1, 2] * 10]
OPENED = ["9", None] * 20
SAGAS = [
    *[IDS, [9] * 40, [None, "owner"] * 20, ["2"] * 40, OPENED, ["step"] * 40],
    *[[None] * 40, [None] * 40, ["{}"] * 40],
]
CLAIM = ["queue-1", "me", "o", "1", "shop", NAMES, NOTHINGS, NOTHINGS, 0]
DEBOUNCE = ["new-1", "name-1", "queue-1", "d-1", "{}", "1", "me", None, None, 1000, None]
ALL_TIME = [0, 2**62]
FILTER: list[Any] = [None, None, None, None, *ALL_TIME, None, True, *[None] * 18]
PAGE: list[Any] = [100, 0, True, True]


def filtered(**columns: Any) -> list[Any]:
    """The arguments of a listing by one filter."""
    [(number, value)] = [(int(name[1:]), value) for name, value in columns.items()]
    return [*FILTER[: number - 1], value, *FILTER[number:], *PAGE]


HOT: dict[str, list[Any]] = {
    "sql.RECORD_STEP": [*STEP, "shop"],
    "sql.RECORD_STEPS": [*STEPS, "shop"],
    "sql.CREATE_WORKFLOWS": [*WORKFLOWS, "shop"],
    "sql.COMPLETE_WORKFLOWS": COMPLETIONS,
    "sql.RECORD_MIXED": [*STEPS, "shop", *WORKFLOWS, [None] * 40, *COMPLETIONS],
    "sql.RECORD_EFFECTS": [*STEPS, "shop", *MESSAGES, *TOLD],
    "sql.RECORD_STREAM_VALUES": [IDS, [9] * 40, ["owner"] * 40, *TOLD[3:5], [7] * 40],
    "sql.RECORD_SAGAS": [*STEPS, "shop", *SAGAS],
    "sql.FETCH_OPEN_COMPENSATIONS": ["w-100"],
    "sql.DROP_COMPENSATIONS": ["w-100", ["2", "4"]],
    "sql.FIND_COMPENSATION": ["w-100"],
    "sql.START_COMPENSATIONS": ["w-100", 50, "shop"],
    "sql.RECORD_RECEIPTS": [*STEPS, [f"topic-{i % 3}" for i in range(40)], "shop"],
    "sql.REFUSE_CHILD": ["w-1", 1, "{}", "owner-1"],
    "sql.FIND_STEPS": [IDS, ["1"] * 40],
    "sql.FIND_LAST_POSITION": ["w-1"],
    "sql.FIND_OWNERS": [IDS],
    "sql.FIND_DEDUPLICATED": ["queue-1", "d-1"],
    "sql.ENQUEUE": ['[{"workflow_id": "new-1", "status": "ENQUEUED", "name": "name-1"}]', "shop"],
    "sql.FIND_ENQUEUED": ['["w-100", "w-101"]'],
    "sql.FIND_HOLDERS": ["queue-1", '["d-1", "d-11"]'],
    "sql.MAKE_PORTABLE": ["w-2", "owner-2", "{}"],
    "sql.FETCH_HISTORY": [IDS],
    "sql.FETCH_OUTCOMES": [IDS],
    "sql.LIST_NEWEST": [*FILTER, *PAGE],
    "sql.LIST_OLDEST": [*FILTER, *PAGE],
    "sql.LIST_THESE": filtered(_9=IDS),
    "sql.LIST_CHILDREN": filtered(_10=["w-8"]),
    "sql.LIST_FORKS": filtered(_11=["w-500"]),
    "sql.LIST_TAGGED": filtered(_25='{"order": 500}'),
    "sql.LIST_UNSUCCESSFUL": filtered(_1=["ERROR", "PENDING", "ENQUEUED", "DELAYED"]),
    "sql.COUNT_WORKFLOWS": [*FILTER, ["status", "name"], 3_600_000],
    "sql.RESUME": [IDS, ["CANCELLED", "PENDING"], "queue-1", None],
    "sql.UPDATE_ATTRIBUTES": ["w-1000", '{"order": 1}', True],
    "sql.FETCH_OUTLINE": ["w-100"],
    "sql.FORK": [["w-1000"], "new-1", 4, None, "queue-1", None],
    "sql.FIND_FORK": ["w-1000"],
    "sql.LOCK_WORKFLOWS": [IDS, ["ERROR"]],
    "sql.REWIND": ["w-1000", 3, "queue-1", None],
    "sql.FIND_FAMILY": [["w-8"]],
    "sql.DELETE_STEPS": [IDS],
    "sql.DELETE_WORKFLOWS": [IDS],
    "sql.EXPORT": [["w-1000"]],
    "sql.IMPORT_WORKFLOWS": ["[]"],
    "sql.IMPORT_STEPS": ["[]"],
    "sql.IMPORT_MESSAGES": ["[]"],
    "sql.IMPORT_STREAMS": ["[]"],
    "sql.IMPORT_EVENTS": ["[]"],
    "sql.IMPORT_EVENTS_HISTORY": ["[]"],
    "sql.SEND_MESSAGES": [MESSAGE_IDS, IDS, ["topic-1"] * 40, ["1"] * 40],
    "sql.SEND_MESSAGES_AS_JSON": ['[{"message_id": "m-1", "destination_id": "w-1"}]'],
    "sql.FIND_UNKNOWN": [IDS],
    "sql.COUNT_UNREAD": [IDS, ["topic-1"] * 40, [1, 2] * 20],
    "sql.FIND_EVENTS": [IDS, ["key"] * 40],
    "sql.FETCH_EVENTS": ["w-100"],
    "sql.LIST_STEPS": [["w-1000"]],
    "sql.LOOK_AROUND": [0, 2000, "shop"],
    "sql.FIND_LATE": [0, 2000, "shop"],
    "sql.FETCH_LEFT": [["executor-1", "executor-2"], "shop"],
    "sql.FORGET_EXECUTORS": [],
    "sql.FIND_ORPHANS": ["executor-2", "owner-2", ["workflow-1"]],
    "sql.TAKE_OVER": ["executor-2", "me", "o", "1", "shop", NAMES, NOTHINGS, NOTHINGS, "boot", 200],
    "sql.UNKNOWN_PENDING": ["executor-2", "1", "shop", NAMES, NOTHINGS, NOTHINGS],
    "sql.COUNT_OTHER_VERSIONS": ["executor-2", "2", "shop"],
    "sql.BURY": ["w-2", "owner-2"],
    "sql.HAND_BACK": ["executor-2", "owner-2"],
    "sql.FIND_LOST": [IDS, ["owner"] * 40],
    "sql.CANCEL": [["w-8", "w-9"], True, 0],
    "sql.CLAIM": [*CLAIM, 100, 0, 1, 1],
    "sql.CLAIM_EXACTLY": [*CLAIM, [""], [100], [None], 50, 1000, None],
    "sql.CLAIM_IN_TURNS": [*CLAIM, ["k-1", "k-2"], [5, 5], [3, 3], 50, 1000, 1000],
    "sql.COUNT_WAITING": ["queue-1"],
    "sql.COUNT_UNDONE": ["queue-1", "shop"],
    "sql.FIND_WAITING": [["queue-1", "queue-2"]],
    "sql.FETCH_USE": ["queue-1", True, 1000, 0],
    "sql.FETCH_PARTITIONS": ["queue-1", "", 32, True, 1000, 0],
    "sql.KEY_STRAYS": ["queue-1", "(none)"],
    "sql.LEAVE_SLOTS": [IDS, ["owner"] * 40],
    "sql.ENTER_SLOT": ["queue-1", "k-1", "w-2", "owner-2", 10, 2],
    "sql.UNKNOWN_WAITING": ["queue-1", "1", "shop", NAMES, NOTHINGS, NOTHINGS],
    "sql.RELEASE_DELAYED": [0],
    "sql.SET_DELAY": ["w-3", None, 1000, 0],
    "sql.LOCK_PARKED": [IDS],
    "sql.TOUCH": [IDS],
    "sql.PARK": [IDS, ["owner"] * 40, [1] * 40, ["sleep"] * 40, ["t"] * 40, IDS, ["k"] * 40],
    "sql.DEBOUNCE": [*DEBOUNCE, "shop", 0, None],
    "sql.FIND_KEY_HOLDER": ["queue-1", "name-1", "d-1", "shop"],
    "sql.FETCH_FOR_REPLAY": [IDS],
    "sql.COUNT_WORK": ["shop", 10_000],
    "sql.MOVE_WORK": ["1", "2", "shop", True],
    "sql.COUNT_DEAD_LETTERS": ["shop"],
    "sql.RECORD_IN_TRANSACTION": [*STEP, "shop"],
    "sql.FIND_INCARNATION": ["w-2", "owner-2"],
    "sql.FIND_CANCELLED_INCARNATION": ["w-2"],
    "sql.FIND_SPENT": [IDS, ["1"] * 40, ["owner"] * 40],
    "sql.FETCH_OLDEST_WORKFLOW": [],
    "sql.FETCH_QUEUE_LOADS": [],
    "sql.FETCH_STREAM_END": ["w-9", "key-0"],
    "sql.FETCH_STREAM_VALUES": [IDS, ["key-1"] * 40, [2] * 40, 100, 262_144],
    "sql.FIND_ACTIVE_RUNS": [[f"schedule-{i}" for i in range(40)]],
    "sql.FIRE": [
        *[[f"new-{i}" for i in range(40)], [f"schedule-{i}" for i in range(40)]],
        *[["2026-01-01T00:00:00+00:00"] * 40, [None] * 40],
        *[[f"schedule-{i}" for i in range(40)], [1] * 40, [None] * 40, [None] * 40, True, 0],
    ],
    "sql.REGISTER_PAYLOAD": ["s3://bucket", "w-1/result-2", "w-1"],
    "sql.CLAIM_SWEEP": ["s3://bucket", 1000],
    "sql.PAGE_PAYLOADS": ["s3://bucket", "w-1/result-1", "w-1", 500, 1000],
    "sql.FIND_PAYLOADS": ["s3://bucket", IDS],
    "sql.LOCK_PAYLOADS": ["s3://bucket", OBJECTS, IDS],
    "sql.DOOM_PAYLOADS": ["s3://bucket", OBJECTS, IDS],
    "sql.FIND_SHARED": ["s3://bucket", OBJECTS],
    "sql.FORGET_PAYLOADS": ["s3://bucket", OBJECTS, IDS],
    "sql.MEASURE": [IDS],
}
"""The statements that must not get slower as the tables grow, with arguments as they come."""

CHECKPOINTERS = {
    "sql.RECORD_STEP",
    "sql.RECORD_STEPS",
    "sql.CREATE_WORKFLOWS",
    "sql.COMPLETE_WORKFLOWS",
    "sql.RECORD_MIXED",
    "sql.RECORD_EFFECTS",
    "sql.RECORD_STREAM_VALUES",
    "sql.RECORD_RECEIPTS",
    "sql.RECORD_SAGAS",
    "sql.FIND_STEPS",
    "sql.FIND_LAST_POSITION",
    "sql.FIND_OWNERS",
    "sql.FIND_DEDUPLICATED",
}
"""They run in its session, which allows no sequential scans and plans once."""

LARGE_INDEXES = {
    "workflow_status_pkey",
    "operation_outputs_pkey",
    "workflow_input_pkey",
    "workflow_output_pkey",
    "dbos_async_line",
    "dbos_async_partition_line",
    "dbos_async_created_at",
    "dbos_async_delayed",
    "dbos_async_failed",
    "dbos_async_forked_from",
    "dbos_async_paid",
    "dbos_async_parent",
    "dbos_async_step_key",
    "streams_pkey",
    "dbos_async_messages",
    "workflow_events_pkey",
    "dbos_async_payloads_pkey",
    "dbos_async_payloads_of",
    "dbos_async_compensations_pkey",
}
"""All but that of what runs now."""

FOR_UNIQUENESS = {"dbos_async_step_key"}
"""Indexes that no statement reads."""
FOR_TRIGGERS = {"dbos_async_watching"}
"""Indexes that only statements within triggers read."""


@pytest.fixture(scope="module", params=["fresh", "stale"])
def filled(
    request: pytest.FixtureRequest, dbos_postgres: PostgresServer, dbos_database_template: str
) -> Iterator[str]:
    """The URL of a database with many rows, and with statistics of them or of the first few."""
    name = f"statements_{uuid4().hex[:16]}"
    with ThreadPoolExecutor(1) as thread:  # beside whatever loop the tests have

        def do(work: Any) -> None:
            thread.submit(asyncio.run, work).result()

        do(databases.clone_database(dbos_postgres.url, name, dbos_database_template))
        do(fill(dbos_postgres.url_of(name), is_fresh=request.param == "fresh"))
        yield dbos_postgres.url_of(name)
        do(databases.drop_database(dbos_postgres.url, name))


async def fill(url: str, *, is_fresh: bool) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(NO_AUTOVACUUM)
        await connection.execute("analyze")
        await connection.execute(FILL, 1, ROWS)
        await connection.execute(FILL_STEPS, 1, ROWS)
        await connection.execute(OTHER_TABLES)
        await connection.execute(FILL_MESSAGES, ROWS)
        await connection.execute(FILL_STREAMS, 20_000)
        await connection.execute(FILL_PAYLOADS, 20_000)
        await connection.execute(FILL_COMPENSATIONS, 20_000)
        if is_fresh:
            await connection.execute("analyze")
    finally:
        await connection.close()


@asynccontextmanager
async def session(url: str, name: str) -> AsyncIterator[Any]:
    """A connection as the one that runs the statement."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(connections.SETTINGS)
        if name in CHECKPOINTERS:
            await connection.execute(checkpointer.SETTINGS)
        yield connection
    finally:
        await connection.close()


async def custom_plan(connection: Any, name: str) -> Any:
    """The plan for these very arguments."""
    return await connection.fetchval("explain (format json) " + STATEMENTS[name], *HOT[name])


async def generic_plan(connection: Any, name: str) -> Any:
    """The plan for any arguments: what a prepared statement may come to."""
    await connection.execute("set plan_cache_mode = force_generic_plan")
    await connection.execute("prepare statement as " + STATEMENTS[name])
    count = len(HOT[name])
    arguments = f"({', '.join(['null'] * count)})" if count else ""
    return await connection.fetchval(f"explain (format json) execute statement{arguments}")


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes_of(inner)


async def nodes(url: str, name: str, planned: Any) -> list[dict[str, Any]]:
    async with session(url, name) as connection:
        [explained] = msgspec.json.decode(await planned(connection, name))
    return list(nodes_of(explained["Plan"]))


def test_the_hot_statements_are_all_that_touch_a_table_that_grows() -> None:
    touching = {
        name
        for name, text in STATEMENTS.items()
        if name.startswith("sql.") and any(f"dbos.{table}" in text for table in SIZES)
    }
    assert touching == HOT.keys()


@pytest.mark.parametrize("planned", [custom_plan, generic_plan])
@pytest.mark.parametrize("name", HOT)
async def test_a_hot_statement_scans_no_table(filled: str, name: str, planned: Any) -> None:
    found = await nodes(filled, name, planned)
    scanned = [node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"]
    assert not SIZES.keys() & set(scanned), shown(found)
    if name != "sql.LIST_UNSUCCESSFUL":  # it reads all that has not ended
        read_whole = {node["Index Name"] for node in found if is_read_whole(node)}
        assert not read_whole & LARGE_INDEXES, shown(found)


@pytest.mark.parametrize("planned", [custom_plan, generic_plan])
@pytest.mark.parametrize(
    "name", ["sql.CLAIM", "sql.CLAIM_EXACTLY", "sql.LIST_NEWEST", "sql.LIST_OLDEST"]
)
async def test_the_head_of_a_long_line_is_found_without_sorting_it(
    filled: str, name: str, planned: Any
) -> None:
    found = await nodes(filled, name, planned)
    keys = [key for node in found if node["Node Type"] == "Sort" for key in node["Sort Key"]]
    age = r"(w\w*\.)?created_at( DESC)?"
    line = [key for key in keys if re.fullmatch(rf"{age}|.*in_line_at.*", key)]
    assert not line, shown(found)  # what a claim has chosen, `c`, may be sorted


async def test_every_index_of_ours_serves_a_statement(filled: str) -> None:
    used: set[str] = set()
    for name in HOT:
        for planned in (custom_plan, generic_plan):
            used |= {
                node["Index Name"]
                for node in await nodes(filled, name, planned)
                if "Index Name" in node
            }
    ours = {name for kind, name in schema.names_of(schema.schema_text()) if kind == "index"}
    assert ours - used == FOR_UNIQUENESS | FOR_TRIGGERS


async def test_a_trigger_finds_who_waits_for_an_event_by_an_index(filled: str) -> None:
    looks = re.compile(r"^    select array_agg\(w.workflow_uuid\).*?;", re.MULTILINE | re.DOTALL)
    [look] = looks.findall(schema.schema_text())
    look = look.replace("into watchers, awaited", "").replace("(news)", "($1::text[])")
    connection = await asyncpg.connect(filled)  # somebody's, with settings of his own
    try:
        explained = await connection.fetchval(f"explain (format json) {look}", ["event w key"])
    finally:
        await connection.close()
    [plan] = msgspec.json.decode(explained)
    found = list(nodes_of(plan["Plan"]))
    assert {node["Index Name"] for node in found if "Index Name" in node} == FOR_TRIGGERS
    assert not [node for node in found if node["Node Type"] == "Seq Scan"], shown(found)


# What functions of schema.sql read, which EXPLAIN does not show

READ = """
select relname, seq_scan, coalesce(idx_tup_fetch, 0) as rows from pg_stat_xact_user_tables
 where schemaname = 'dbos' and (seq_scan > 0 or idx_tup_fetch > 0)
"""
PRUNING: dict[str, tuple[list[Any], int]] = {
    "sql.FIND_LIMITS": ([None, 1000, None, "shop"], 1200),
    "sql.FIND_PRUNABLE": ([-1, 1700000050000, "", None, "shop", 0, "", 100, 1000], 600),
    "sql.PRUNE": ([-1, 1700000050000, "", None, "shop", 1700000020000, "w", 100], 2000),
}
"""The statements with arguments, and how many rows of a table they may read."""


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", PRUNING)
async def test_a_step_of_pruning_reads_no_more_than_it_looks_at(
    filled: str, name: str, ours: bool
) -> None:
    arguments, most = PRUNING[name]
    connection = await asyncpg.connect(filled)
    try:
        if ours:
            await connection.execute(connections.SETTINGS)
        transaction = connection.transaction()
        await transaction.start()
        for _ in range(7):  # from the sixth on, a function may plan for any arguments
            before = {row["relname"]: row for row in await connection.fetch(READ)}
            assert await connection.fetch(STATEMENTS[name], *arguments)
            for row in await connection.fetch(READ):
                table, earlier = row["relname"], before.get(row["relname"])
                assert row["seq_scan"] == 0, table
                assert row["rows"] - (earlier["rows"] if earlier else 0) <= most, table
        await transaction.rollback()
    finally:
        await connection.close()


def is_read_whole(node: dict[str, Any]) -> bool:
    """Whether it is an index scan without a condition."""
    return "Index Name" in node and "Index Cond" not in node


def shown(found: list[dict[str, Any]]) -> str:
    """A plan for people."""
    interesting = (
        "Node Type",
        "Relation Name",
        "Index Name",
        "Index Cond",
        "Filter",
        "Sort Key",
        "Plan Rows",
    )
    return "\n".join(
        " | ".join(str(node[key]) for key in interesting if key in node) for node in found
    )
