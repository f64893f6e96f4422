"""Workflows that ended when a test says they did."""

from typing import Any

INSERT = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, application_name, parent_workflow_id, forked_from,
        serialization, inputs, output, created_at, updated_at, completed_at)
select $1::text, $2::text, 'flow', $3::text, $4::text, $5::text, 'portable_json',
       '{"positionalArgs":[1]}', '1', t.now_ms - ($6::float8 * 1000)::bigint,
       t.now_ms - ($7::float8 * 1000)::bigint,
       case when $2 in ('PENDING', 'ENQUEUED', 'DELAYED') then null
            else t.now_ms - ($7 * 1000)::bigint end
  from (select (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms) t
"""
STEPS = """
insert into dbos.operation_outputs (workflow_uuid, function_id, function_name, output)
select $1, n, 'step', '1' from generate_series(1, $2::int) n
"""
MANY = """
with made as (
    insert into dbos.workflow_status
           (workflow_uuid, status, name, application_name, serialization, output, created_at,
            completed_at)
    select $1 || i, $2, 'flow', 'shop', 'portable_json', '1', $4::bigint + i * $5::int,
           case when $2 = 'SUCCESS' then $4 + i * $5 end
      from generate_series(1, $3::int) i
    returning workflow_uuid
)
insert into dbos.operation_outputs (workflow_uuid, function_id, function_name, output)
select workflow_uuid, n, 'step', '1' from made, generate_series(1, 2) n
"""


async def ended(
    database: Any,
    workflow_id: str,
    age: float = 0.0,
    *,
    created: float | None = None,
    status: str = "SUCCESS",
    application: str | None = "shop",
    parent: str | None = None,
    forked_from: str | None = None,
    steps: int = 1,
) -> None:
    """Insert one that ended, or was last changed, so many seconds ago."""
    started = age if created is None else created
    await database.execute(
        INSERT, workflow_id, status, application, parent, forked_from, started, age
    )
    await database.execute(STEPS, workflow_id, steps)
    if forked_from is not None:
        await database.execute(
            "update dbos.workflow_status set was_forked_from = true where workflow_uuid = $1",
            forked_from,
        )


async def many(
    database: Any,
    prefix: str,
    count: int,
    *,
    status: str = "SUCCESS",
    first_ms: int = 1,
    apart_ms: int = 1,
) -> None:
    """Insert so many, of two steps each, that were created one after the other, long ago."""
    await database.execute(MANY, prefix, status, count, first_ms, apart_ms)


async def left(database: Any) -> list[str]:
    """Which workflows there are, by id."""
    rows = await database.fetch("select workflow_uuid from dbos.workflow_status order by 1")
    return [row[0] for row in rows]


async def count_of(database: Any, table: str) -> int:
    count: int = await database.fetchval(f"select count(*) from dbos.{table}")
    return count
