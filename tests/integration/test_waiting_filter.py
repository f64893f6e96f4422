"""Finding workflows by what they wait for."""

from typing import Any

import asyncpg
import pytest

from dbos_async import Client

FILL = """
insert into dbos.workflow_status (workflow_uuid, status, name, waiting_for, queue_name, inputs)
values ('approval', 'DELAYED', 'buy', 'message approved', 'mail', '{}'),
       ('any', 'DELAYED', 'buy', 'message', 'mail', '{}'),
       ('watcher', 'DELAYED', 'buy', 'event approval paid in full', 'mail', '{}'),
       ('sleeper', 'DELAYED', 'buy', 'sleep', 'mail', '{}'),
       ('parent', 'PENDING', 'buy', 'workflow', 'mail', '{}'),
       ('runner', 'PENDING', 'buy', null, 'mail', '{}'),
       ('late', 'DELAYED', 'buy', null, 'mail', '{}'),
       ('over', 'SUCCESS', 'buy', 'sleep', 'mail', '{}')
"""


@pytest.fixture
async def client(dbos_database_url: str, database: asyncpg.Connection) -> Any:
    await database.execute(FILL)
    async with Client(dbos_database_url) as client:
        yield client


@pytest.mark.parametrize(
    ("waiting_for", "found"),
    [
        ("message", ["any", "approval"]),
        ("message approved", ["approval"]),
        ("message app", []),
        ("event", ["watcher"]),
        ("event approval paid in full", ["watcher"]),
        ("sleep", ["sleeper"]),
        (["workflow", "sleep"], ["parent", "sleeper"]),
        ("", []),
        ([], []),
    ],
    ids=str,
)
async def test_workflows_are_found_by_what_they_wait_for(
    client: Client, waiting_for: Any, found: list[str]
) -> None:
    for newest_first in (True, False):
        listed = await client.list_workflows(waiting_for=waiting_for, newest_first=newest_first)
        assert sorted(workflow.workflow_id for workflow in listed) == found
    counts = await client.count_workflows(waiting_for=waiting_for)
    assert sum(count.count for count in counts) == len(found)


async def test_it_is_one_filter_among_others(client: Client) -> None:
    both = await client.list_workflows(waiting_for=["workflow", "sleep"], status="PENDING")
    assert [workflow.workflow_id for workflow in both] == ["parent"]
    assert await client.list_workflows(waiting_for="sleep", status="SUCCESS") == []


async def test_what_waits_is_cancelled_and_deleted_by_it(client: Client) -> None:
    assert await client.cancel_workflows(waiting_for="message approved") == ["approval"]
    assert await client.delete_workflows(waiting_for="sleep") == ["sleeper"]
    left = {workflow.workflow_id for workflow in await client.list_workflows()}
    assert {"over", "approval"} <= left


async def test_what_is_no_text_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="waiting_for is a str"):
        await client.list_workflows(waiting_for=1)  # type: ignore[arg-type]
