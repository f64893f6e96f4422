"""A task that is cancelled while a record of its travels: the first run goes as a replay will."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from dbos_async import DBOS
from dbos_async._store.batches import MAX_ROWS, Waiting, step_of, taken
from dbos_async._store.checkpointer import Checkpointer

PATIENCE = 20.0


class Gate:
    """Holds the answers for the records of one step back until it is opened."""

    def __init__(self, name: str = "slow") -> None:
        self.name = name
        self.holds = asyncio.Event()
        self.opened = asyncio.Event()

    async def taken(self, waiting: deque[Waiting]) -> list[Waiting]:
        return taken(waiting, MAX_ROWS)

    async def answered(self, batch: list[Waiting]) -> None:
        steps = [step_of(one.write) for one in batch]
        if any(step is not None and step.name == self.name for step in steps):
            self.holds.set()
            await self.opened.wait()


@pytest.fixture
async def gate(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(Checkpointer, "crash_point", gate)
    yield gate
    gate.opened.set()


class App:
    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("race", url, app_version="1")
        self.ran: list[str] = []

        @dbos.step(name="slow")
        async def slow() -> str:
            self.ran.append("slow")
            return "slow"

        @dbos.step(name="next")
        async def next_() -> None:
            self.ran.append("next")
            await asyncio.Event().wait()

        @dbos.step(name="cleanup")
        async def cleanup(what: str) -> None:
            self.ran.append(f"cleanup {what}")

        self.slow, self.next, self.cleanup = slow, next_, cleanup

    async def check(self) -> None:
        [report] = await self.dbos.check_replay(workflow_ids=["w"])
        assert report.is_ok, report

    async def steps(self) -> list[str]:
        return [step.name for step in await self.dbos.list_steps("w")]


async def cancelled(dbos: DBOS) -> None:
    """Return when a branch of the one workflow was asked to end, and had a moment for it."""
    async with asyncio.timeout(PATIENCE):
        [execution] = dbos.launched().running.values()
        while not any(task.cancelling() for task in execution.tasks):
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)


class Ways:
    """A branch whose slow step's record travels, and who cancels it then."""

    def __init__(self, app: App, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def branch(self) -> None:
        what = "nothing"
        try:
            what = await self.app.slow()
            await self.app.next()
        finally:
            await self.app.cleanup(what)

    async def sibling(self) -> None:
        async def impatient() -> None:
            await self.gate.holds.wait()
            raise ConnectionError("not of a step")

        async with asyncio.TaskGroup() as group:
            group.create_task(self.branch())
            group.create_task(impatient())

    async def cancel(self) -> None:
        task = asyncio.create_task(self.branch())
        await asyncio.sleep(0)
        await self.gate.holds.wait()
        task.cancel()
        await task

    async def timeout(self) -> None:
        async def limited() -> None:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await self.branch()

        limits: list[asyncio.Timeout] = []
        task = asyncio.create_task(limited())
        await self.gate.holds.wait()
        limits[0].reschedule(asyncio.get_running_loop().time())
        await task


@pytest.mark.parametrize("way", ["sibling", "cancel", "timeout"])
async def test_a_cancellation_comes_behind_the_record(
    dbos_database_url: str, gate: Gate, way: str
) -> None:
    app = App(dbos_database_url)
    ways = Ways(app, gate)

    @app.dbos.workflow(name="root")
    async def root() -> None:
        await getattr(ways, way)()

    async with app.dbos:
        handle = await app.dbos.start_workflow(root.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await gate.holds.wait()
        await cancelled(app.dbos)
        gate.opened.set()
        with suppress(Exception, asyncio.CancelledError):
            await handle.get_result(timeout=PATIENCE)
        assert app.ran == ["slow", "next", "cleanup slow"]
        assert await app.steps() == ["slow", "cleanup"]
        if way != "timeout":  # that takes its time again in a replay
            await app.check()


async def test_a_cancellation_that_is_taken_back_meanwhile_is_not_delivered_elsewhere(
    dbos_database_url: str, gate: Gate
) -> None:
    app = App(dbos_database_url)

    limits: list[asyncio.Timeout] = []

    async def branch() -> str:
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            await app.slow()
        await app.cleanup("after")
        await asyncio.sleep(0.01)
        return "went on"

    @app.dbos.workflow(name="root")
    async def root() -> str:
        return await asyncio.create_task(branch())

    async with app.dbos:
        handle = await app.dbos.start_workflow(root.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await gate.holds.wait()
        limits[0].reschedule(asyncio.get_running_loop().time())
        await cancelled(app.dbos)
        gate.opened.set()
        assert await handle.get_result(timeout=PATIENCE) == "went on"
        await app.check()


@pytest.mark.parametrize("verb", ["set_event", "child", "stream"])
async def test_it_comes_behind_what_verbs_record_too(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    names = {"set_event": "DBOS.setEvent", "child": "child", "stream": "DBOS.writeStream"}
    gate = Gate(names[verb])
    app = App(dbos_database_url)
    monkeypatch.setattr(Checkpointer, "crash_point", gate)

    @app.dbos.workflow(name="child")
    async def child() -> None:
        pass

    async def branch() -> None:
        try:
            if verb == "set_event":
                await app.dbos.set_event("key", 1)
            elif verb == "child":
                await app.dbos.start_workflow(child)
            else:
                await app.dbos.write_stream("key", 1)
            await app.next()
        finally:
            await app.cleanup(verb)

    @app.dbos.workflow(name="root")
    async def root() -> None:
        task = asyncio.create_task(branch())
        await asyncio.sleep(0)
        await gate.holds.wait()
        task.cancel()
        await asyncio.wait([task])

    async with app.dbos:
        handle: Any = await app.dbos.start_workflow(root.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await gate.holds.wait()
        await cancelled(app.dbos)
        gate.opened.set()
        await handle.get_result(timeout=PATIENCE)
        assert app.ran == ["next", f"cleanup {verb}"]
        await app.check()


async def test_a_cancelled_workflow_waits_for_no_record(dbos_database_url: str, gate: Gate) -> None:
    app = App(dbos_database_url)

    @app.dbos.workflow(name="root")
    async def root() -> None:
        try:
            await app.slow()
        finally:
            app.ran.append("unwound")

    async with app.dbos:
        await app.dbos.start_workflow(root.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await gate.holds.wait()
            [execution] = app.dbos.launched().running.values()
            await app.dbos.cancel_workflow("w")
            await execution.done
        assert app.ran == ["slow", "unwound"]
        assert not gate.opened.is_set()
        gate.opened.set()
