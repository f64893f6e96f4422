"""`dbos.prune` and `dbos.prune_all`: for psql and pg_cron."""

from typing import Any

import asyncpg
import pytest
from ended import count_of, ended, left, many

DAY = 86_400.0
ROWS_OF = {
    "operation_outputs": """
        insert into dbos.operation_outputs (workflow_uuid, function_id, function_name)
        select w.workflow_uuid, n, 'step' from dbos.workflow_status w, generate_series(1, $1::int) n
    """,
    "streams": """
        insert into dbos.streams (workflow_uuid, key, value, "offset", function_id)
        select w.workflow_uuid, 'k', '1', n, 1
          from dbos.workflow_status w, generate_series(1, $1::int) n
    """,
}
"""So many rows of each workflow."""


async def test_prune_deletes_a_batch_and_says_where_it_came_to(database: Any) -> None:
    await many(database, "w-", 25)
    call = "select * from dbos.prune(max_age => interval '1 day', batch_size => 10)"
    first = await database.fetchrow(call)
    assert (first["deleted"], first["is_last"]) == (10, False)
    assert (first["reached_ms"], first["reached_id"]) == (11, "w-10")
    assert (await database.fetchrow(call))["deleted"] == 10
    assert tuple(await database.fetchrow(call))[:2] == (5, True)
    assert tuple(await database.fetchrow(call))[:2] == (0, True)


@pytest.mark.parametrize("table", ["operation_outputs", "streams"])
async def test_a_look_ends_where_it_has_found_rows_enough(database: Any, table: str) -> None:
    await many(database, "w-", 10)
    await database.execute("delete from dbos.operation_outputs")
    await database.execute(ROWS_OF[table], 300)
    call = """
        select cardinality(workflow_ids), reached_id, is_last
          from dbos.dbos_async_find_prunable(-1, 1000, '', null, null, $1, $2, 100, $3)
    """
    assert tuple(await database.fetchrow(call, 0, "", 1000)) == (3, "w-3", False)
    assert tuple(await database.fetchrow(call, 4, "w-3", 10)) == (1, "w-4", False)
    assert tuple(await database.fetchrow(call, 9, "w-8", 1000)) == (2, "w-10", True)
    assert tuple(await database.fetchrow(call, 0, "", None)) == (10, "w-10", True)
    assert await database.fetchval("call dbos.prune_all(max_rows => 0)") == 10


async def test_a_batch_ends_once_its_locks_are_held_for_long(database: Any) -> None:
    await many(database, "w-", 3000)
    await database.execute("""
        create function pg_temp.dawdle() returns trigger language plpgsql
        as 'begin perform pg_sleep(0.03); return null; end';
        create trigger dawdle after delete on dbos.workflow_status
        for each statement execute function pg_temp.dawdle()
    """)
    call = "select deleted, is_last from dbos.prune(max_rows => 0, batch_size => 10000)"
    assert tuple(await database.fetchrow(call)) == (200, False)


async def test_a_call_goes_on_from_where_another_came_to(database: Any) -> None:
    await many(database, "w-", 25)
    call = (
        "select * from dbos.prune(max_age => interval '1 day', batch_size => 10, "
        "after_ms => 16, after_id => 'w-15')"
    )
    assert (await database.fetchrow(call))["deleted"] == 10
    assert await count_of(database, "workflow_status") == 15


async def test_a_front_that_stays_keeps_nobody_from_going(database: Any) -> None:
    await many(database, "alive-", 500, status="DELAYED", apart_ms=0)
    await many(database, "w-", 5, first_ms=1000)
    call = "select deleted from dbos.prune(max_age => interval '1 day', batch_size => 3)"
    deleted = [await database.fetchval(call) for _ in range(6)]  # fewer than 3 if it takes long
    assert sum(deleted) == 5
    assert max(deleted) <= 3


async def test_prune_all_deletes_all_that_may_go_and_commits_each_batch(database: Any) -> None:
    await many(database, "w-", 700)
    await ended(database, "young")
    transactions = "select count(distinct xmax::text) from dbos.workflow_status"
    assert await database.fetchval(transactions) == 1
    assert await database.fetchval("call dbos.prune_all(max_age => interval '1 day')") == 700
    assert await left(database) == ["young"]
    assert await count_of(database, "operation_outputs") == 1
    with pytest.raises(asyncpg.InvalidTransactionTerminationError):
        async with database.transaction():
            await database.execute("call dbos.prune_all(max_age => interval '1 day')")


async def test_the_rules_are_those_of_the_leader(database: Any) -> None:
    for number in range(3):
        await ended(database, f"fine-{number}", number * DAY)
        await ended(
            database, f"failed-{number}", (number + 0.5) * DAY, status="ERROR", application="bank"
        )
    await ended(database, "alive", 9 * DAY, status="PENDING")
    await ended(database, "child", 9 * DAY, parent="alive")
    kept = "max_rows => 1, keep_failed => interval '1000 years', application_name => 'shop'"
    assert await database.fetchval(f"call dbos.prune_all({kept})") == 2
    assert await left(database) == ["alive", "child", *(f"failed-{n}" for n in range(3)), "fine-0"]
    kept = "max_age => interval '1000 years', keep_failed => interval '48 hours'"
    assert await database.fetchval(f"select deleted from dbos.prune({kept})") == 1
    assert await database.fetchval("select deleted from dbos.prune(max_rows => 1)") == 2
    assert await left(database) == ["alive", "child", "fine-0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "max_age or max_rows must be given"),
        ("keep_failed => interval '1 day'", "max_age or max_rows must be given"),
        ("max_age => interval '-1 day'", "must not be negative"),
        ("max_rows => -1", "must not be negative"),
        ("max_rows => 1, keep_failed => interval '-1 day'", "must not be negative"),
    ],
)
@pytest.mark.parametrize("statement", ["select dbos.prune({})", "call dbos.prune_all({})"])
async def test_nonsense_is_refused_and_nothing_deleted(
    database: Any, statement: str, arguments: str, message: str
) -> None:
    await many(database, "w-", 5)
    with pytest.raises(asyncpg.RaiseError, match=message):
        await database.execute(statement.format(arguments))
    assert await count_of(database, "workflow_status") == 5


@pytest.mark.parametrize("size", ["0", "-1", "10001", "null"])
async def test_a_batch_is_of_a_reasonable_size(database: Any, size: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match="from 1 to 10000"):
        await database.execute(f"select dbos.prune(max_rows => 1, batch_size => {size})")


async def test_it_is_harmless_whatever_the_search_path(database: Any) -> None:
    await many(database, "w-", 5)
    await database.execute("""
        create schema trap;
        create function trap.clock_timestamp() returns timestamptz language sql
        as 'select ''epoch''::timestamptz';
        create function trap.array_remove(text[], text) returns text[] language sql
        as 'select null::text[]';
        set search_path = trap, pg_catalog
    """)
    assert await database.fetchval("call dbos.prune_all(max_age => interval '1 day')") == 5
