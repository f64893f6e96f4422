"""What undoes a cancelled workflow, where something else has its id or has done its work."""

import asyncio
from collections import deque
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, AsyncpgDatasource, Client
from dbos_async._store.batches import MAX_ROWS, Waiting, step_of, taken
from dbos_async._store.checkpointer import Checkpointer

PATIENCE = 30


class Hold:
    """Keeps the record of a workflow's step back until it is opened."""

    def __init__(self, workflow_id: str, name: str) -> None:
        self.workflow_id, self.name = workflow_id, name
        self.holds = asyncio.Event()
        self.opened = asyncio.Event()

    async def taken(self, waiting: deque[Waiting]) -> list[Waiting]:
        steps = [step_of(one.write) for one in waiting]
        if any(s and (s.workflow_id, s.name) == (self.workflow_id, self.name) for s in steps):
            self.holds.set()
            await self.opened.wait()
        return taken(waiting, MAX_ROWS)

    async def answered(self, batch: list[Waiting]) -> None:
        """All is told."""

    async def committing(self, waiting: Waiting) -> None:
        """All commits."""


async def undos(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("select what from public.undone order by what")
    await connection.close()
    return [row[0] for row in rows]


async def test_a_compensation_that_was_committed_elsewhere_is_not_repeated(
    dbos_database_url: str, dbos_other_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dbos = DBOS("shop", dbos_database_url, app_version="1")
    connection = await asyncpg.connect(dbos_other_database_url)
    await connection.execute("create table public.undone (what text)")
    await connection.close()

    @dbos.transaction(AsyncpgDatasource(dbos_other_database_url), name="undo")
    async def undo(connection: Any, what: str) -> None:
        await connection.execute("insert into public.undone values ($1)", what)

    @dbos.workflow(name="buy")
    async def buy() -> None:
        async with dbos.saga() as saga:
            saga.compensate(undo, "pay")
            raise ValueError("out of stock")

    hold = Hold("w", "undo")
    monkeypatch.setattr(Checkpointer, "crash_point", hold)
    async with asyncio.timeout(PATIENCE), dbos, Client(dbos_database_url) as client:
        await dbos.start_workflow(buy.with_options(workflow_id="w"))
        await hold.holds.wait()
        assert await undos(dbos_other_database_url) == ["pay"]
        await client.cancel_workflow("w")
        hold.opened.set()
        await (await client.retrieve_workflow("w-compensate")).get_result()
    assert await undos(dbos_other_database_url) == ["pay"]


def shop(url: str) -> tuple[DBOS, Any, list[str]]:
    dbos, undone = DBOS("shop", url, app_version="1"), list[str]()

    @dbos.step(name="undo")
    async def undo(what: str) -> None:
        undone.append(what)

    @dbos.workflow(name="buy")
    async def buy(what: str) -> None:
        async with dbos.saga() as saga:
            await saga.compensate(undo, what)
            await dbos.set_event("paid", value=True)
            await dbos.sleep(3600)

    return dbos, buy, undone


async def cancelled(dbos: DBOS, buy: Any, workflow_id: str, what: str) -> None:
    await dbos.start_workflow(buy.with_options(workflow_id=workflow_id), what)
    await dbos.get_event(workflow_id, "paid", timeout=PATIENCE)
    await dbos.cancel_workflow(workflow_id)


async def test_an_id_that_is_used_again_is_compensated_again(dbos_database_url: str) -> None:
    dbos, buy, undone = shop(dbos_database_url)
    async with asyncio.timeout(PATIENCE), dbos:
        await cancelled(dbos, buy, "w", "first")
        await (await dbos.retrieve_workflow("w-compensate")).get_result()
        await dbos.delete_workflow("w")
        await cancelled(dbos, buy, "w", "second")
        await (await dbos.retrieve_workflow("w-compensate-2")).get_result()
    assert undone == ["first", "second"]


async def test_another_workflow_of_that_id_is_in_nobodys_way(dbos_database_url: str) -> None:
    dbos, buy, undone = shop(dbos_database_url)

    @dbos.workflow(name="other")
    async def other() -> None: ...

    async with asyncio.timeout(PATIENCE), dbos:
        await other.with_options(workflow_id="w-compensate")()
        await cancelled(dbos, buy, "w", "pay")
        await (await dbos.retrieve_workflow("w-compensate-2")).get_result()
        with pytest.raises(ValueError, match="fork it"):
            await dbos.resume_workflow("w")
    assert undone == ["pay"]


async def test_who_sends_to_a_workflow_holds_up_no_cancellation_of_it(
    dbos_database_url: str,
) -> None:
    dbos, buy, _ = shop(dbos_database_url)
    connection = await asyncpg.connect(dbos_database_url)
    async with asyncio.timeout(PATIENCE), dbos:
        await dbos.start_workflow(buy.with_options(workflow_id="w"), "pay")
        await dbos.get_event("w", "paid", timeout=PATIENCE)
        async with connection.transaction():
            await dbos.send("w", "hello", connection=connection)
            await dbos.cancel_workflow("w")
    await connection.close()
