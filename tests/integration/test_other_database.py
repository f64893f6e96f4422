"""Apps and clients of another database, called by workflows: they act there, from steps only."""

import asyncio
from typing import Any

import pytest

from dbos_async import DBOS, Client, ConfigurationError, Workflow

PATIENCE = 20


def greeter(url: str) -> tuple[DBOS, Workflow[..., str]]:
    dbos = DBOS("greeter", url, app_version="1")
    dbos.queue("greetings")

    @dbos.workflow(name="greet")
    async def greet() -> str:
        await dbos.set_event("at", "the door")
        return f"hello {await dbos.recv(as_=str)}"

    return dbos, greet


@pytest.mark.parametrize("kind", ["app", "client"])
async def test_a_step_acts_on_the_other_database(
    dbos_database_url: str, dbos_other_database_url: str, kind: str
) -> None:
    there, greet = greeter(dbos_other_database_url)
    here = DBOS("caller", dbos_database_url, app_version="1")
    client = Client(dbos_other_database_url)
    other: Client = there if kind == "app" else client

    @here.step
    async def ask() -> Any:
        handle = await other.enqueue("greetings", greet.with_options(workflow_id="g-1"))
        place = await other.get_event("g-1", "at", timeout=PATIENCE)
        await other.send("g-1", "Ann")
        [listed] = await other.list_workflows()
        return [place, await handle.get_result(), listed.name]

    @here.workflow(name="call")
    async def call() -> Any:
        return await ask()

    async with asyncio.timeout(PATIENCE), there, client, here:
        assert await call() == ["the door", "hello Ann", "greet"]
        assert [each.name for each in await here.list_workflows()] == ["call"]


async def test_a_workflow_itself_is_told_to_do_that_in_a_step(
    dbos_database_url: str, dbos_other_database_url: str
) -> None:
    there, greet = greeter(dbos_other_database_url)
    here = DBOS("caller", dbos_database_url, app_version="1")
    client = Client(dbos_other_database_url)
    verbs: list[Any] = [
        lambda: client.enqueue("greetings", greet),
        lambda: client.enqueue_many("greetings", [greet.bind()]),
        lambda: there.start_workflow(greet),
        lambda: client.send("g-1", "Ann"),
        lambda: client.get_event("g-1", "at"),
        lambda: client.retrieve_workflow("g-1"),
        client.list_workflows,
        lambda: client.cancel_workflow("g-1"),
    ]

    @here.workflow(name="call")
    async def call(number: int) -> None:
        await verbs[number]()

    async with asyncio.timeout(PATIENCE), there, client, here:
        for number in range(len(verbs)):
            with pytest.raises(ConfigurationError, match=r"another database.*in a step"):
                await call(number)
        handle = await there.start_workflow(greet.with_options(workflow_id="g-1"))
        assert await there.list_workflows(name="call") == []
        await there.send("g-1", "Ann")
        assert await handle.get_result() == "hello Ann"


async def test_a_handle_of_the_other_database_is_awaited_in_a_step(
    dbos_database_url: str, dbos_other_database_url: str
) -> None:
    there, greet = greeter(dbos_other_database_url)
    here = DBOS("caller", dbos_database_url, app_version="1")
    handles: list[Any] = []

    @here.workflow(name="call")
    async def call() -> None:
        await handles[0].get_result()

    async with asyncio.timeout(PATIENCE), there, here:
        handles.append(await there.start_workflow(greet))
        with pytest.raises(ConfigurationError, match="another database"):
            await call()
        await there.send(handles[0].workflow_id, "Ann")
        await handles[0].get_result()


async def test_a_client_of_the_same_database_is_recorded_as_before(dbos_database_url: str) -> None:
    here = DBOS("caller", dbos_database_url, app_version="1")
    client = Client(dbos_database_url)

    @here.workflow(name="call")
    async def call() -> int:
        return len(await client.list_workflows())

    async with asyncio.timeout(PATIENCE), client, here:
        handle = await here.start_workflow(call)
        assert await handle.get_result() == 1
        [step] = await here.list_steps(handle.workflow_id)
        assert step.name == "DBOS.listWorkflows"
