"""What a policy lets go is deleted, with all that belongs to it, and nothing else is."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from ended import count_of, ended, left, many
from managed import Managed, managed, result_of
from test_deletion import BELONGINGS, TABLES, left_of

from dbos_async import DBOS, Client, ConfigurationError, NotLaunchedError, Retention
from dbos_async.testing import advance

DAY = 86_400.0
WEEK = Retention(max_age=timedelta(days=7))
FAILED = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
ALIVE = ("PENDING", "ENQUEUED", "DELAYED")
COMPENSATION = """
insert into dbos.dbos_async_compensations
       (workflow_uuid, step_key, function_id, saga, name, inputs)
values ($1, '1', 1, '0', 'refund', '{}')
"""


@pytest.fixture
async def client(dbos_database_url: str) -> AsyncIterator[Client]:
    async with Client(dbos_database_url) as client:
        yield client


# By age


async def test_an_age_is_counted_from_the_end(client: Client, database: Any) -> None:
    await ended(database, "old", 8 * DAY)
    await ended(database, "long", 6 * DAY, created=30 * DAY)
    await ended(database, "new")
    assert await client.prune(WEEK) == 1
    assert await left(database) == ["long", "new"]


async def test_one_whose_end_nobody_noted_is_as_old_as_its_last_change(
    client: Client, database: Any
) -> None:
    await ended(database, "old", 8 * DAY)
    await ended(database, "changed", 6 * DAY, created=30 * DAY)
    await database.execute("update dbos.workflow_status set completed_at = null")
    assert await client.prune(WEEK) == 1
    assert await left(database) == ["changed"]


@pytest.mark.parametrize("status", ALIVE)
async def test_what_has_not_ended_stays_however_old(
    client: Client, database: Any, status: str
) -> None:
    await ended(database, "alive", 1000 * DAY, status=status)
    await ended(database, "old", 1000 * DAY)
    assert await client.prune(Retention(max_age=0, max_rows=0)) == 1
    assert await left(database) == ["alive"]


async def test_nothing_is_left_of_it_and_everything_of_the_others(
    client: Client, database: Any
) -> None:
    await ended(database, "goes", 8 * DAY)
    await ended(database, "stays")
    await database.execute(BELONGINGS)
    assert (await left_of(database, "goes")).keys() == TABLES.keys()
    assert await client.prune(WEEK) == 1
    assert await left_of(database, "goes") == {}
    assert (await left_of(database, "stays")).keys() == TABLES.keys()


# By number


@pytest.mark.parametrize("apart_ms", [0, 1])
async def test_the_newest_are_kept_exactly_so_many(
    client: Client, database: Any, apart_ms: int
) -> None:
    await many(database, "w-", 250, apart_ms=apart_ms)
    await many(database, "alive-", 20, status="DELAYED", first_ms=2, apart_ms=0)
    assert await client.prune(Retention(max_rows=30)) == 220
    assert await count_of(database, "workflow_status") == 50
    assert await count_of(database, "operation_outputs") == 100
    if apart_ms:
        assert {f"w-{n}" for n in range(221, 251)} < set(await left(database))
    assert await client.prune(Retention(max_rows=30)) == 0


async def test_fewer_than_so_many_all_stay(client: Client, database: Any) -> None:
    await many(database, "w-", 5)
    assert await client.prune(Retention(max_rows=5)) == 0
    assert await client.prune(Retention(max_rows=2**40)) == 0


async def test_either_limit_lets_go(client: Client, database: Any) -> None:
    for number in range(6):
        await ended(database, f"w-{number}", number * DAY)
    assert await client.prune(Retention(max_age=4.5 * DAY, max_rows=3)) == 3
    assert await left(database) == ["w-0", "w-1", "w-2"]
    assert await client.prune(Retention(max_age=1.5 * DAY, max_rows=3)) == 1


# Those that failed


@pytest.mark.parametrize("status", FAILED)
async def test_those_that_failed_go_as_all_others_unless_said_otherwise(
    client: Client, database: Any, status: str
) -> None:
    await ended(database, "failed", 8 * DAY, status=status)
    await ended(database, "fine", 8 * DAY)
    assert await client.prune(Retention(max_age=WEEK.max_age, keep_failed=True)) == 1
    month = Retention(max_age=WEEK.max_age, keep_failed=timedelta(days=30))
    assert await client.prune(month) == 0
    await database.execute("update dbos.workflow_status set completed_at = 1")
    assert await client.prune(Retention(max_age=WEEK.max_age, keep_failed=True)) == 0
    assert await client.prune(month) == 1


async def test_those_that_failed_may_go_sooner(client: Client, database: Any) -> None:
    await ended(database, "failed", 3600, status="CANCELLED")
    await ended(database, "fine", 3600)
    assert await client.prune(Retention(max_age=7 * DAY, keep_failed=60)) == 1
    assert await left(database) == ["fine"]


async def test_what_is_kept_because_it_failed_is_not_counted(client: Client, database: Any) -> None:
    for number in range(4):
        await ended(database, f"failed-{number}", number + 0.5, status="ERROR")
        await ended(database, f"fine-{number}", number)
    assert await client.prune(Retention(max_rows=2, keep_failed=True)) == 2
    assert [each for each in await left(database) if "fine" in each] == ["fine-0", "fine-1"]
    assert await client.prune(Retention(max_rows=2)) == 4
    assert await left(database) == ["failed-0", "fine-0"]


# Families


async def test_a_child_stays_while_its_parent_runs(client: Client, database: Any) -> None:
    await ended(database, "parent", 9 * DAY, status="PENDING")
    await ended(database, "child", 8 * DAY, parent="parent")
    await ended(database, "grandchild", 8 * DAY, parent="child")
    assert await client.prune(WEEK) == 0
    await database.execute("update dbos.workflow_status set status = 'SUCCESS', completed_at = 1")
    assert await client.prune(WEEK) == 3


async def test_a_child_is_kept_as_long_as_its_parent(client: Client, database: Any) -> None:
    await ended(database, "failed", 9 * DAY, status="CANCELLED")
    await ended(database, "child", 8 * DAY, parent="failed")
    await ended(database, "young", 6 * DAY, created=9 * DAY)
    await ended(database, "other", 8 * DAY, parent="young")
    assert await client.prune(Retention(max_age=7 * DAY, keep_failed=True)) == 0
    assert await client.prune(WEEK) == 2
    assert await left(database) == ["other", "young"]


async def test_a_parent_stays_until_its_children_have_ended(client: Client, database: Any) -> None:
    await ended(database, "parent", 9 * DAY, status="CANCELLED")
    await ended(database, "child", 8 * DAY, status="ENQUEUED", parent="parent")
    await ended(database, "sister", 8 * DAY, parent="parent")
    assert await client.prune(WEEK) == 0
    await database.execute("update dbos.workflow_status set status = 'SUCCESS', completed_at = 1")
    assert await client.prune(WEEK) == 3


@pytest.mark.parametrize("status", ["SUCCESS", *FAILED])
async def test_who_has_open_compensations_stays_with_all_below(
    client: Client, database: Any, status: str
) -> None:
    await ended(database, "order", 9 * DAY, status=status)
    await ended(database, "order-compensate", 8 * DAY, status="ERROR", parent="order")
    await ended(database, "charge", 8 * DAY, parent="order")
    await ended(database, "charge-detail", 8 * DAY, parent="charge")
    await database.execute(COMPENSATION, "order")
    assert await client.prune(WEEK) == 0
    await database.execute("delete from dbos.dbos_async_compensations")
    assert await client.prune(WEEK) == 4


async def test_a_tree_stays_though_its_top_was_looked_at_long_before(
    client: Client, database: Any
) -> None:
    await ended(database, "top", 30 * DAY, status="PENDING")
    await ended(database, "middle", 29 * DAY, parent="top")
    await many(database, "w-", 1000)  # created before all of them, and
    await database.execute(
        "update dbos.workflow_status set created_at = created_at + $1 "
        "where starts_with(workflow_uuid, 'w-')",
        await database.fetchval("select max(created_at) from dbos.workflow_status"),
    )
    await ended(database, "leaf", 8 * DAY, parent="middle")
    assert await client.prune(WEEK) == 1000
    assert await left(database) == ["leaf", "middle", "top"]


async def test_a_child_goes_with_its_parent_though_it_looks_older(
    client: Client, database: Any
) -> None:
    await ended(database, "parent", 8 * DAY)
    await ended(database, "child", 9 * DAY, parent="parent")
    await ended(database, "its-own", 8 * DAY, parent="its-own")
    await ended(database, "ring-1", 8 * DAY, parent="ring-2")
    await ended(database, "ring-2", 8 * DAY, parent="ring-1")
    assert await client.prune(WEEK) == 5


async def test_a_whole_family_goes_in_one_round_and_an_orphan_goes_too(
    client: Client, database: Any
) -> None:
    await ended(database, "g-0", 100 * DAY)
    for number in range(1, 150):  # more than the first batch looks at
        await ended(database, f"g-{number}", (100 - number / 10) * DAY, parent=f"g-{number - 1}")
    await ended(database, "orphan", 8 * DAY, parent="nobody")
    assert await client.prune(Retention(max_age=7 * DAY)) == 151


async def test_the_source_of_a_fork_stays_until_the_fork_has_ended(
    client: Client, database: Any
) -> None:
    await ended(database, "source", 8 * DAY)
    await ended(database, "fork", 1, status="PENDING", forked_from="source")
    assert await client.prune(WEEK) == 0
    await database.execute(
        "update dbos.workflow_status set status = 'SUCCESS' where workflow_uuid = 'fork'"
    )
    assert await client.prune(WEEK) == 1
    assert await left(database) == ["fork"]


# Whose


async def test_an_app_prunes_its_own_and_nobodys_and_a_client_all(
    dbos_database_url: str, database: Any
) -> None:
    async def three() -> None:
        for name, application in (("ours", "shop"), ("theirs", "bank"), ("nobodys", None)):
            await ended(database, name, 8 * DAY, application=application)

    await three()
    async with managed(dbos_database_url) as shop, Client(dbos_database_url) as client:
        assert await shop.dbos.prune(WEEK) == 2
        assert await left(database) == ["theirs"]
        assert await client.prune(WEEK, application_name="shop") == 0
        assert await shop.dbos.prune(WEEK, application_name="bank") == 1
        await three()
        assert await client.prune(WEEK) == 3


async def test_a_number_is_of_ones_own_and_nobodys(dbos_database_url: str, database: Any) -> None:
    for number in range(4):
        await ended(database, f"ours-{number}", 10 + number)
        await ended(database, f"theirs-{number}", number, application="bank")
    async with managed(dbos_database_url) as shop:
        assert await shop.dbos.prune(Retention(max_rows=3)) == 1
    assert "ours-3" not in await left(database)


# Who prunes, and when


async def pruned_by_itself(shop: Managed, *ids: str) -> None:
    async def gone() -> bool:
        rows = await shop.dbos.list_workflows(workflow_ids=list(ids))
        return not rows

    async with asyncio.timeout(20):
        while not await gone():
            await asyncio.sleep(0.02)


async def test_the_leader_prunes_what_comes_of_age(dbos_database_url: str, database: Any) -> None:
    shop = Managed(dbos_database_url, retention=WEEK)
    shop.dbos.configure(prune_interval=0.05)
    async with shop.dbos:
        await ended(database, "young")
        for number in range(3):
            await shop.simple.with_options(workflow_id=f"w-{number}")(1)
        await ended(database, "old", 8 * DAY)
        await pruned_by_itself(shop, "old")
        assert await left(database) == ["w-0", "w-1", "w-2", "young"]
        advance(timedelta(days=7, seconds=1))
        await pruned_by_itself(shop, "w-0", "w-1", "w-2", "young")


async def test_a_successor_of_the_leader_prunes_and_nobody_else_does(
    dbos_database_url: str, database: Any
) -> None:
    first = Managed(dbos_database_url)
    second = Managed(dbos_database_url, retention=WEEK)
    second.dbos.configure(prune_interval=0.01)
    async with first.dbos, second.dbos:
        await ended(database, "old", 8 * DAY)
        for _ in range(50):  # the second is awake all the while, and leaves it alone
            await second.dbos.list_workflows()
        assert await left(database) == ["old"]
        await first.dbos.shutdown()
        await pruned_by_itself(second, "old")


async def test_an_app_without_a_policy_prunes_nothing_by_itself(
    dbos_database_url: str, database: Any
) -> None:
    await ended(database, "old", 1000 * DAY)
    async with managed(dbos_database_url) as shop:
        with pytest.raises(ValueError, match="what may go"):
            await shop.dbos.prune()
        assert "old" in await left(database)


async def test_the_verb_uses_the_policy_of_the_app(dbos_database_url: str, database: Any) -> None:
    leader = managed(dbos_database_url)
    async with leader, managed(dbos_database_url, retention=Retention(max_rows=1)) as shop:
        for number in range(3):
            await ended(database, f"w-{number}", number)
        assert await shop.dbos.prune(dry_run=True) == 2
        assert await shop.dbos.prune() == 2
        assert await left(database) == ["w-0"]


async def test_a_dry_run_counts_and_deletes_nothing(client: Client, database: Any) -> None:
    await many(database, "w-", 300)
    await ended(database, "young")
    assert await client.prune(WEEK, dry_run=True) == 300
    assert await count_of(database, "workflow_status") == 301


async def test_within_a_workflow_it_is_a_step(dbos_database_url: str, database: Any) -> None:
    shop = Managed(dbos_database_url)

    @shop.dbos.workflow(name="nightly")
    async def nightly() -> int:
        return await shop.dbos.prune(WEEK)

    async with shop.dbos:
        await many(database, "w-", 5)
        assert await nightly.with_options(workflow_id="n")() == 5
        [step] = await shop.dbos.list_steps("n")
        assert (step.name, step.output) == ("DBOS.prune", 5)
        await many(database, "w-", 5)
        fork = await shop.dbos.fork_workflow("n", 2)
        assert await result_of(fork) == 5
        assert await count_of(database, "workflow_status") == 7


# Beside others


async def test_what_somebody_holds_is_skipped_and_goes_the_next_time(
    client: Client, database: Any, dbos_database_url: str
) -> None:
    await ended(database, "held", 9 * DAY)
    await ended(database, "child", 8 * DAY, parent="held")
    await ended(database, "free", 8 * DAY)
    other = await asyncpg.connect(dbos_database_url)
    async with other.transaction():
        await other.execute("select from dbos.workflow_status where workflow_uuid='held' for share")
        assert await client.prune(WEEK) == 1
        assert await left(database) == ["child", "held"]
    assert await client.prune(WEEK) == 2
    await other.close()


async def test_several_that_prune_at_once_delete_everything_once(
    client: Client, database: Any, dbos_database_url: str
) -> None:
    await many(database, "w-", 3000)
    async with Client(dbos_database_url) as second, Client(dbos_database_url) as third:
        counts = await asyncio.gather(*[each.prune(WEEK) for each in (client, second, third)])
    assert sum(counts) == 3000
    assert await count_of(database, "operation_outputs") == 0


# Bad input


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({}, ValueError, "give max_age= or max_rows="),
        ({"keep_failed": True}, ValueError, "give max_age= or max_rows="),
        ({"max_age": -1}, ValueError, "not negative"),
        ({"max_age": float("nan")}, ValueError, "finite"),
        ({"max_age": "7 days"}, TypeError, "seconds or a timedelta"),
        ({"max_age": True}, TypeError, "max_age is seconds"),
        ({"max_rows": -1}, ValueError, "from 0 to"),
        ({"max_rows": 2**63}, ValueError, "not 9223372036854775808"),
        ({"max_age": 1, "keep_failed": None}, TypeError, "seconds or a timedelta"),
        ({"max_rows": 1.5}, TypeError, "number of workflows"),
        ({"max_rows": True}, TypeError, "number of workflows"),
        ({"max_age": 1, "keep_failed": -1}, ValueError, "not negative"),
        ({"max_age": 1, "keep_failed": "yes"}, TypeError, "seconds or a timedelta"),
        ({"max_age": 1, "archive": 3}, TypeError, "a path or"),
        ({"max_age": 1, "max_row": 3}, TypeError, "max_row"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Retention(**wrong)


async def test_what_is_no_policy_is_refused_and_nothing_deleted(
    client: Client, database: Any, dbos_database_url: str
) -> None:
    await ended(database, "old", 1000 * DAY)
    wrong: Any = {"max_age": 7}
    with pytest.raises(TypeError, match="takes a Retention"):
        await client.prune(wrong)
    with pytest.raises(ValueError, match="what may go"):
        await client.prune()
    with pytest.raises(TypeError, match="a path or"):
        await client.prune(WEEK, archive=wrong)
    with pytest.raises(ValueError, match="application_name"):
        await client.prune(WEEK, application_name="")
    with pytest.raises(ConfigurationError, match="retention is a Retention"):
        await DBOS("shop", dbos_database_url, retention=wrong).launch()
    with pytest.raises(NotLaunchedError):
        await DBOS("shop", dbos_database_url, retention=WEEK).prune()
    assert await left(database) == ["old"]
