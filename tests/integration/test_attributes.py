"""What workflows are found by: given at the start, changed later, searched for."""

import asyncio
from typing import Any

import pytest

from dbos_async import DBOS, Client, SerializationError, WorkflowNotFoundError

PATIENCE = 20


def shop(url: str) -> tuple[DBOS, Any]:
    dbos = DBOS("shop", url, app_version="1")

    @dbos.workflow(name="buy")
    async def buy(workflow_id: str | None = None) -> None:
        if workflow_id is not None:
            await dbos.update_workflow_attributes(workflow_id, {"seen": True}, merge=True)

    return dbos, buy


async def attributes_of(dbos: Client, workflow_id: str) -> Any:
    return (await (await dbos.retrieve_workflow(workflow_id)).get_status()).attributes


async def found(dbos: Client, **attributes: Any) -> set[str]:
    return {each.workflow_id for each in await dbos.list_workflows(attributes=attributes)}


async def test_workflows_are_found_by_what_their_attributes_contain(dbos_database_url: str) -> None:
    dbos, buy = shop(dbos_database_url)
    async with asyncio.timeout(PATIENCE), dbos:
        await buy.with_options(workflow_id="a", attributes={"order": 1, "to": {"city": "Rome"}})()
        await buy.with_options(workflow_id="b", attributes={"order": 2, "to": {"city": "Rome"}})()
        await buy.with_options(workflow_id="c")()
        assert await found(dbos, order=1) == {"a"}
        assert await found(dbos, to={"city": "Rome"}) == {"a", "b"}
        assert await found(dbos, order="1") == set()
        newest = await dbos.list_workflows(attributes={"to": {}}, limit=1)
        assert [each.workflow_id for each in newest] == ["b"]
        rest = await dbos.list_workflows(attributes={"to": {}}, after=newest[0])
        assert [each.workflow_id for each in rest] == ["a"]
        failed = await dbos.list_workflows(attributes={"order": 1}, status="ERROR")
        assert failed == []


async def test_attributes_are_replaced_merged_and_taken_away(dbos_database_url: str) -> None:
    dbos, buy = shop(dbos_database_url)
    async with asyncio.timeout(PATIENCE), dbos, Client(dbos_database_url) as client:
        await buy.with_options(workflow_id="a")()
        await dbos.update_workflow_attributes("a", {"x": 1, "y": {"z": 2}}, merge=True)
        await client.update_workflow_attributes("a", {"x": 2, "w": None}, merge=True)
        assert await attributes_of(dbos, "a") == {"x": 2, "y": {"z": 2}, "w": None}
        await dbos.update_workflow_attributes("a", {"v": 1})
        assert await attributes_of(dbos, "a") == {"v": 1}
        assert await found(dbos, v=1) == {"a"}
        await dbos.update_workflow_attributes("a", None)
        assert await attributes_of(dbos, "a") is None
        assert await found(dbos, v=1) == set()


async def test_a_workflow_changes_attributes_once(dbos_database_url: str) -> None:
    dbos, buy = shop(dbos_database_url)
    async with asyncio.timeout(PATIENCE), dbos:
        await buy.with_options(workflow_id="a")()
        await buy.with_options(workflow_id="b")("a")
        assert await attributes_of(dbos, "a") == {"seen": True}
        [step] = await dbos.list_steps("b")
        assert step.name == "DBOS.updateWorkflowAttributes"
        await dbos.update_workflow_attributes("a", None)
        await (await dbos.fork_workflow("b", from_step=2)).get_result()
        assert await attributes_of(dbos, "a") is None


async def test_attributes_that_cannot_be_are_refused(dbos_database_url: str) -> None:
    dbos, buy = shop(dbos_database_url)
    given: Any
    async with asyncio.timeout(PATIENCE), dbos:
        await buy.with_options(workflow_id="a", attributes={"x": 1})()
        with pytest.raises(WorkflowNotFoundError):
            await dbos.update_workflow_attributes("b", {"x": 2})
        for given, error in (
            ([1], TypeError),
            ("x", TypeError),
            ({"x": object()}, SerializationError),
            ({"x": "\0"}, ValueError),
        ):
            with pytest.raises(error):
                await dbos.update_workflow_attributes("a", given)
        with pytest.raises(ValueError, match="merge"):
            await dbos.update_workflow_attributes("a", None, merge=True)
        assert await attributes_of(dbos, "a") == {"x": 1}
