"""However many workflows are processed, the tables stay as large as what is kept of them."""

from typing import Any

import pytest
from ended import count_of, many

from dbos_async import Client, Retention
from dbos_async._store import schema

KEPT = 2_000
TABLES = ("workflow_status", "operation_outputs")
OPTIONS = "select c.reloptions from pg_class c where c.oid = $1::text::regclass"


async def sizes(database: Any) -> dict[str, int]:
    """What vacuum leaves of each table, with its indexes."""
    await database.execute("vacuum dbos.workflow_status, dbos.operation_outputs")
    return {
        table: await database.fetchval(
            "select pg_total_relation_size($1::text::regclass)", f"dbos.{table}"
        )
        for table in TABLES
    }


async def test_ten_times_the_limit_takes_no_more_room_than_twice(
    dbos_database_url: str, database: Any
) -> None:
    seen: list[dict[str, int]] = []
    async with Client(dbos_database_url) as client:
        for period in range(10):
            await many(database, f"w-{period}-", KEPT, first_ms=1 + period * KEPT)
            await client.prune(Retention(max_rows=KEPT))
            assert await count_of(database, "workflow_status") == KEPT
            seen.append(await sizes(database))
    for table in TABLES:
        largest = max(each[table] for each in seen[2:])
        assert largest <= 1.25 * seen[1][table], [each[table] for each in seen]


@pytest.mark.parametrize("table", TABLES)
async def test_tables_that_change_most_are_vacuumed_in_time(database: Any, table: str) -> None:
    options = await database.fetchval(OPTIONS, f"dbos.{table}")
    assert "autovacuum_vacuum_scale_factor=0.05" in options


async def test_what_somebody_set_for_a_table_stays(database: Any) -> None:
    await database.execute(
        "alter table dbos.streams set (autovacuum_vacuum_scale_factor = 0.5); "
        "drop index dbos.dbos_async_created_at"
    )
    await schema.install(database)
    options = await database.fetchval(OPTIONS, "dbos.streams")
    assert "autovacuum_vacuum_scale_factor=0.5" in options
