"""Which workflows a filter means, page by page, and how many there are."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from managed import Managed

from dbos_async import Client, WorkflowStatus
from dbos_async._store import listing

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BEGIN_MS = int(BEGIN.timestamp() * 1000)
STATES = ["SUCCESS", "ERROR", "PENDING", "ENQUEUED", "DELAYED", "CANCELLED"]
COUNT = 120

# Three were created in each second.
FILL = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, created_at, application_version, executor_id, queue_name,
        authenticated_user, forked_from, was_forked_from, parent_workflow_id, attributes,
        schedule_name, application_name, completed_at, started_at_epoch_ms, inputs, output,
        serialization)
select 'w-' || lpad(i::text, 3, '0'), ($3::text[])[1 + i % 6], 'name-' || i % 7,
       $1::bigint + i / 3 * 1000, 'v-' || i % 2, 'e-' || i % 4,
       case when i % 3 = 0 then 'q-' || i % 2 end, 'u-' || i % 3,
       case when i % 10 = 5 then 'w-000' end, i = 0,
       case when i % 8 = 1 then 'w-00' || i % 2 end,
       case when i % 5 = 0 then jsonb_build_object('a', i % 2, 'b', 'x') end,
       case when i % 20 = 1 then 's-1' end, 'app-' || i % 2,
       $1 + i * 1000, $1 + i * 2000, '{"positionalArgs":[1]}', '2', 'portable_json'
  from generate_series(0, $2::int - 1) i
"""


@pytest.fixture
async def client(dbos_database_url: str, database: asyncpg.Connection) -> Any:
    await database.execute(FILL, BEGIN_MS, COUNT, STATES)
    async with Client(dbos_database_url) as client:
        yield client


def later(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"workflow_ids": ["w-003", "w-001", "nothing"]}, lambda i: i in (1, 3)),
    ({"status": "ERROR"}, lambda i: i % 6 == 1),
    ({"status": ["PENDING", "ENQUEUED", "DELAYED"]}, lambda i: i % 6 in (2, 3, 4)),
    ({"status": ["ERROR", "CANCELLED", "PENDING"]}, lambda i: i % 6 in (1, 2, 5)),
    ({"status": ["SUCCESS", "ERROR"]}, lambda i: i % 6 < 2),
    ({"status": []}, lambda i: False),
    ({"status": "ERROR", "name": "name-1"}, lambda i: i % 6 == 1 and i % 7 == 1),
    ({"name": "name-3"}, lambda i: i % 7 == 3),
    ({"name": ["name-3", "name-4"]}, lambda i: i % 7 in (3, 4)),
    ({"queue_name": "q-1"}, lambda i: i % 3 == 0 and i % 2),
    ({"queue_name": ("q-0", "q-1")}, lambda i: i % 3 == 0),
    ({"queues_only": True}, lambda i: i % 3 == 0),
    ({"queues_only": False, "name": "name-3"}, lambda i: i % 7 == 3),
    ({"workflow_id_prefix": "w-01"}, lambda i: 10 <= i < 20),
    ({"workflow_id_prefix": ["w-01", "w-005"]}, lambda i: 10 <= i < 20 or i == 5),
    ({"created_after": later(10)}, lambda i: i // 3 >= 10),
    ({"created_before": later(10)}, lambda i: i // 3 < 10),
    ({"created_after": later(5), "created_before": later(9)}, lambda i: 5 <= i // 3 < 9),
    ({"completed_after": later(50)}, lambda i: i >= 50),
    ({"completed_before": later(50)}, lambda i: i < 50),
    ({"dequeued_after": later(50)}, lambda i: 2 * i >= 50),
    ({"dequeued_before": later(50)}, lambda i: 2 * i < 50),
    ({"app_version": "v-1"}, lambda i: i % 2),
    ({"executor_id": ["e-1", "e-2"]}, lambda i: i % 4 in (1, 2)),
    ({"user": "u-2"}, lambda i: i % 3 == 2),
    ({"forked_from": "w-000"}, lambda i: i % 10 == 5),
    ({"is_fork": True}, lambda i: i % 10 == 5),
    ({"is_fork": False}, lambda i: i % 10 != 5),
    ({"was_forked_from": True}, lambda i: i == 0),
    ({"was_forked_from": False}, lambda i: i != 0),
    ({"parent_workflow_id": ["w-001", "w-000"]}, lambda i: i % 8 == 1),
    ({"has_parent": True}, lambda i: i % 8 == 1),
    ({"has_parent": False}, lambda i: i % 8 != 1),
    ({"attributes": {"a": 1}}, lambda i: i % 5 == 0 and i % 2),
    ({"attributes": {"a": 1, "b": "y"}}, lambda i: False),
    ({"schedule_name": "s-1"}, lambda i: i % 20 == 1),
    ({"application_name": "app-1"}, lambda i: i % 2),
]


@pytest.mark.parametrize(("filter", "fits"), FILTERS, ids=[str(each[0]) for each in FILTERS])
async def test_a_filter_lets_through_what_it_says(client: Any, filter: Any, fits: Any) -> None:
    expected = [f"w-{i:03}" for i in range(COUNT) if fits(i)]
    oldest = await client.list_workflows(newest_first=False, limit=1000, **filter)
    newest = await client.list_workflows(limit=1000, **filter)
    assert [row.workflow_id for row in oldest] == expected
    assert [row.workflow_id for row in newest] == expected[::-1]
    assert sum(count.count for count in await client.count_workflows(**filter)) == len(expected)


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize(
    "filter",
    [
        {},
        {"name": ["name-1", "name-2"]},
        {"workflow_ids": [f"w-{i:03}" for i in range(3, 40)]},
        {"forked_from": "w-000"},
        {"parent_workflow_id": "w-001"},
        {"status": ["ERROR", "PENDING", "CANCELLED"]},
        {"created_after": later(7), "created_before": later(31)},
    ],
    ids=str,
)
async def test_pages_follow_each_other_without_a_gap_or_a_repetition(
    client: Any, filter: Any, newest_first: bool
) -> None:
    whole = await client.list_workflows(limit=1000, newest_first=newest_first, **filter)
    found: list[WorkflowStatus] = []
    while page := await client.list_workflows(
        limit=4, newest_first=newest_first, after=found[-1] if found else None, **filter
    ):
        found += page
        assert len(found) <= len(whole)
    assert found == whole != []


async def test_a_page_holds_still_while_others_are_deleted_and_created(
    client: Any, database: Any
) -> None:
    first = await client.list_workflows(limit=10)
    await database.execute("delete from dbos.workflow_status where workflow_uuid >= 'w-115'")
    await database.execute("insert into dbos.workflow_status (workflow_uuid) values ('new')")
    second = await client.list_workflows(limit=10, after=first[-1])
    assert [row.workflow_id for row in second] == [f"w-{i:03}" for i in range(109, 99, -1)]


async def test_arguments_and_results_are_left_where_they_are_if_asked(client: Any) -> None:
    [both] = await client.list_workflows(workflow_ids=["w-000"])
    [neither] = await client.list_workflows(
        workflow_ids=["w-000"], load_input=False, load_output=False
    )
    assert (both.input.args, both.output) == ((1,), 2)
    assert (neither.input, neither.output) == (None, None)
    assert (both.authenticated_user, both.was_forked_from, both.schedule_name) == (
        "u-0",
        True,
        None,
    )


async def test_workflows_are_counted_by_one_or_several_columns(client: Any) -> None:
    by_status = await client.count_workflows()
    assert {each.status: each.count for each in by_status} == dict.fromkeys(STATES, COUNT // 6)
    by_queue = await client.count_workflows("queue_name")
    assert [(each.queue_name, each.count) for each in by_queue] == [
        (None, 80),
        ("q-0", 20),
        ("q-1", 20),
    ]
    both = await client.count_workflows(["name", "app_version"], status="ERROR")
    expected = Counter((f"name-{i % 7}", f"v-{i % 2}") for i in range(COUNT) if i % 6 == 1)
    assert {(each.name, each.app_version): each.count for each in both} == expected
    assert await client.count_workflows("executor_id", name="nothing") == []


async def test_workflows_are_counted_by_spans_of_time(client: Any) -> None:
    spans = await client.count_workflows([], bucket=timedelta(seconds=10))
    assert [(each.created_at, each.count) for each in spans] == [
        (later(seconds), 30) for seconds in (0, 10, 20, 30)
    ]
    assert {each.status for each in spans} == {None}
    failed = await client.count_workflows(bucket=20, status="ERROR")
    assert [(each.status, each.count) for each in failed] == [("ERROR", 10)] * 2


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"statu": "ERROR"}, TypeError),
        ({"status": "DONE"}, ValueError),
        ({"status": 3}, TypeError),
        ({"name": b"name"}, TypeError),
        ({"name": [None]}, TypeError),
        ({"queues_only": 1}, TypeError),
        ({"is_fork": "yes"}, TypeError),
        ({"attributes": "a"}, TypeError),
        ({"completed_after": "2026-01-01"}, TypeError),
        ({"dequeued_before": datetime(2026, 1, 1)}, ValueError),
        ({"after": "w-001"}, TypeError),
        ({"limit": "x"}, TypeError),
        ({"limit": None}, TypeError),
        ({"offset": -1}, ValueError),
    ],
    ids=str,
)
async def test_what_is_no_filter_is_refused(client: Any, wrong: Any, error: Any) -> None:
    with pytest.raises(error):
        await client.list_workflows(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"group_by": "attributes"}, {"group_by": ["status", "output"]}, {"bucket": 0.0001}]
)
async def test_what_nothing_can_be_counted_by_is_refused(client: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"group_by|bucket"):
        await client.count_workflows(**wrong)


async def test_nothing_is_no_way_to_count(client: Any) -> None:
    with pytest.raises(TypeError, match="group_by is one or several of status"):
        await client.count_workflows(group_by=None)


async def test_counts_within_a_workflow_are_recorded(dbos_database_url: str) -> None:
    shop = Managed(dbos_database_url)

    @shop.dbos.workflow(name="counting")
    async def counting() -> int:
        return sum(each.count for each in await shop.dbos.count_workflows("name"))

    async with shop.dbos:
        assert await counting.with_options(workflow_id="c")() == 1
        await shop.simple(1)
        fork = await shop.dbos.fork_workflow("c", 2)
        assert await asyncio.wait_for(fork.get_result(), 20) == 1


async def test_a_listing_goes_by_the_index_that_fits_best() -> None:
    def statement(**filter: Any) -> str:
        return listing.statement_for(listing.Filter(**filter), newest_first=True)

    walk = statement()
    assert statement(name="n") == statement(status=["SUCCESS", "ERROR"]) == walk
    assert statement(status="ERROR", name="n") == listing.sql.LIST_UNSUCCESSFUL
    assert statement(workflow_ids=["w"], status="ERROR") == listing.sql.LIST_THESE
