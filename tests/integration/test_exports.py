"""Workflows as text: out of one database, into another."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from managed import managed, result_of

from dbos_async import (
    DatabaseRefusedError,
    WorkflowCancelledError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from dbos_async._store import databases
from dbos_async.testing import PostgresServer


@pytest.fixture
async def another_url(
    dbos_postgres: PostgresServer, dbos_database_template: str
) -> AsyncIterator[str]:
    """A second database."""
    name = f"another_{uuid4().hex[:16]}"
    await databases.clone_database(dbos_postgres.url, name, dbos_database_template)
    yield dbos_postgres.url_of(name)
    await databases.drop_database(dbos_postgres.url, name)


async def everything(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows that belong to workflows."""
    connection = await asyncpg.connect(url)
    try:
        return {
            table: [
                json.loads(row[0])
                for row in await connection.fetch(
                    f"select to_jsonb(t)::text from dbos.{table} t order by 1"
                )
            ]
            for table in (
                "workflow_status",
                "operation_outputs",
                "workflow_events",
                "workflow_events_history",
                "streams",
                "notifications",
            )
        }
    finally:
        await connection.close()


BELONGINGS = """
insert into dbos.workflow_events (workflow_uuid, key, value) values ('r', 'k', '"ü\\u0041"');
insert into dbos.workflow_events_history (workflow_uuid, function_id, key, value)
values ('r', 1, 'k', '1');
insert into dbos.streams (workflow_uuid, key, value, "offset") values ('r', 'k', '1', 0);
insert into dbos.notifications (message_uuid, destination_uuid, message)
values ('m', 'r', '{"a": 1}');
update dbos.workflow_status set attributes = '{"a": [1, 2.5, null]}', priority = 3;
"""


async def test_what_has_ended_is_elsewhere_what_it_was_here(
    dbos_database_url: str, another_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop, managed(another_url) as other:
        result = await shop.rich.with_options(workflow_id="r")()
        await database.execute(BELONGINGS)
        text = await shop.dbos.export_workflow("r")
        assert sorted(await other.dbos.import_workflow(text)) == ["r", "r-2"]
        handle = await other.dbos.retrieve_workflow("r")
        assert await handle.get_result() == result
        here, there = await everything(dbos_database_url), await everything(another_url)
        for row in here["workflow_status"]:
            row |= {"owner_xid": None, "creator_xid": None}
        assert there == here
        fork = await other.dbos.fork_workflow("r", 12)
        assert await result_of(fork) == result
        assert other.calls == []


async def test_it_comes_without_its_children_if_asked(
    dbos_database_url: str, another_url: str
) -> None:
    async with managed(dbos_database_url) as shop, managed(another_url) as other:
        await shop.rich.with_options(workflow_id="r")()
        text = await shop.dbos.export_workflow("r", children=False)
        assert await other.dbos.import_workflow(text) == ["r"]


async def test_what_had_not_ended_waits_to_be_resumed(
    dbos_database_url: str, another_url: str
) -> None:
    async with managed(dbos_database_url) as shop, managed(another_url) as other:
        await shop.hold("w", shop.parent)
        text = await shop.dbos.export_workflow("w")
        other.gate.set()
        assert await other.dbos.import_workflow(text) == ["w", "w-2"]
        for row in await other.dbos.list_workflows():
            assert (row.status, row.queue_name) == ("CANCELLED", None)
            assert row.completed_at is not None
        with pytest.raises(WorkflowCancelledError):
            await (await other.dbos.retrieve_workflow("w")).get_result()
        for workflow_id in ("w-2", "w"):
            await other.dbos.resume_workflow(workflow_id)
        assert await result_of(await other.dbos.retrieve_workflow("w")) == [2, [2, "1", 4]]
        assert sorted(other.calls) == ["double 2", "hold"]
        assert (await shop.status("w")).status == "PENDING"


async def test_what_had_not_ended_goes_on_at_once_if_asked(
    dbos_database_url: str, another_url: str
) -> None:
    async with managed(dbos_database_url) as shop, managed(another_url) as other:
        await shop.hold("w", shop.parent)
        await shop.simple.with_options(workflow_id="ended")(9)
        text = await shop.dbos.export_workflow("w")
        other.gate.set()
        await other.dbos.import_workflow(text, resume=True)
        assert await result_of(await other.dbos.retrieve_workflow("w")) == [2, [2, "1", 4]]
        assert sorted(other.calls) == ["double 2", "hold"]


async def test_a_fork_is_imported_without_its_source(
    dbos_database_url: str, another_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop, managed(another_url) as other:
        await shop.rich.with_options(workflow_id="r")()
        fork = await shop.dbos.fork_workflow("r", 6, new_workflow_id="fork")
        result = await result_of(fork)
        await database.execute("""
            update dbos.operation_outputs set step_key = null, arguments_digest = null
             where workflow_uuid = 'fork' and function_id < 6;
            update dbos.workflow_status set root_workflow_id = null
        """)  # as an official client forks
        await other.dbos.import_workflow(await shop.dbos.export_workflow("fork"))
        again = await other.dbos.fork_workflow("fork", 12)
        assert await result_of(again) == result
        assert other.calls == []


async def test_an_id_that_exists_refuses_the_whole_import(
    dbos_database_url: str, another_url: str
) -> None:
    async with managed(dbos_database_url) as shop, managed(another_url) as other:
        shop.gate.set()
        await shop.parent.with_options(workflow_id="w")(1)
        text = await shop.dbos.export_workflow("w")
        with pytest.raises(WorkflowConflictError, match="'w' already") as raised:
            await shop.dbos.import_workflow(text)
        assert raised.value.workflow_id == "w"
        await other.simple.with_options(workflow_id="w-2")(1)
        with pytest.raises(WorkflowConflictError, match="'w-2' already"):
            await other.dbos.import_workflow(text)
        assert len(await other.dbos.list_workflows()) == 1
        await shop.dbos.delete_workflow("w", delete_children=True)
        assert await shop.dbos.import_workflow(text) == ["w", "w-2"]
        with pytest.raises(WorkflowNotFoundError):
            await shop.dbos.export_workflow("nobody")


def changed(text: str, change: Any) -> str:
    exported = json.loads(text)
    change(exported)
    return json.dumps(exported)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e.update(version=2), "version 2.*version 1"),
        (lambda e: e.update(format="pickle"), "'pickle'"),
        (lambda e: e.pop("workflows"), "no text that export_workflow made"),
        (lambda e: e["workflows"].append(e["workflows"][0]), "two workflows with the same id"),
        (lambda e: e["workflows"][0]["workflow_status"].update(workflow_uuid=""), "not be empty"),
        (lambda e: e["workflows"][0]["workflow_status"].update(status="DONE"), "'DONE'"),
        (
            lambda e: e["workflows"][0]["operation_outputs"][0].update(workflow_uuid="other"),
            "operation_outputs is not of workflow 'w'",
        ),
    ],
)
async def test_what_is_no_export_is_refused_and_changes_nothing(
    dbos_database_url: str, change: Any, says: str
) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.simple.with_options(workflow_id="w")(1)
        text = await shop.dbos.export_workflow("w")
        await shop.dbos.delete_workflow("w")
        with pytest.raises(ValueError, match=says):
            await shop.dbos.import_workflow(changed(text, change))
        for wrong in ("", "[]", "{", "\ud800"):
            with pytest.raises(ValueError, match="no text that export_workflow made"):
                await shop.dbos.import_workflow(wrong)
        nothing: Any = None
        with pytest.raises(TypeError, match="the text that export_workflow made, not None"):
            await shop.dbos.import_workflow(nothing)
        assert await shop.dbos.list_workflows() == []


async def test_a_row_that_the_database_cannot_hold_undoes_the_import(
    dbos_database_url: str,
) -> None:
    def break_it(exported: Any) -> None:
        exported["workflows"][0]["operation_outputs"][0]["function_id"] = "first"

    async with managed(dbos_database_url) as shop:
        await shop.simple.with_options(workflow_id="w")(1)
        text = await shop.dbos.export_workflow("w")
        await shop.dbos.delete_workflow("w")
        with pytest.raises(DatabaseRefusedError):
            await shop.dbos.import_workflow(changed(text, break_it))
        assert await shop.dbos.list_workflows() == []


async def test_an_export_says_what_it_is_and_keeps_owners_to_itself(
    dbos_database_url: str,
) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.simple.with_options(workflow_id="w")(21)
        exported = json.loads(await shop.dbos.export_workflow("w"))
        assert (exported["format"], exported["version"]) == ("dbos_async workflows", 1)
        [workflow] = exported["workflows"]
        assert workflow["workflow_status"]["output"] == "42"
        assert not {"owner_xid", "creator_xid"} & workflow["workflow_status"].keys()
        assert [step["function_name"] for step in workflow["operation_outputs"]] == ["double"]
