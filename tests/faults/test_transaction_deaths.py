"""Whatever dies, is cut off or taken over in a transaction step: its effect is there once."""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from proxy import Proxy
from teller import KINDS, POINTS, TABLES, Teller

from dbos_async._engine.tidying import Tidier
from dbos_async._store import databases
from dbos_async.testing import EmbeddedServer, PostgresServer, crash_at

PATIENCE = 60.0
LEVELS = ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED")
PLACES = ("same", "other")


class Scene:
    """Where the system database is, and the accounts."""

    def __init__(self, url: str, accounts: str, database: Any) -> None:
        self.url = url
        self.accounts = accounts
        self.database = database
        """To the accounts."""

    async def entries(self) -> list[str]:
        return [row[0] for row in await self.database.fetch("select workflow_id from entries")]

    async def is_tidy(self) -> bool:
        """Whether no row of a step is left there."""
        if self.accounts == self.url:
            return True
        return not await self.database.fetchval("select count(*) from dbos.datasource_outputs")


@asynccontextmanager
async def scene_on(url: str, server: PostgresServer, place: str) -> AsyncIterator[Scene]:
    name = f"accounts_{uuid.uuid4().hex[:16]}"
    if place == "other":
        await databases.ensure_database(server.url, name)
    accounts = server.url_of(name) if place == "other" else url
    database = await asyncpg.connect(accounts)
    try:
        await database.execute(TABLES)
        yield Scene(url, accounts, database)
    finally:
        await database.close()
        if place == "other":
            await databases.drop_database(server.url, name)


@pytest.fixture(params=PLACES)
async def scene(
    request: pytest.FixtureRequest, dbos_database_url: str, dbos_postgres: PostgresServer
) -> AsyncIterator[Scene]:
    async with scene_on(dbos_database_url, dbos_postgres, request.param) as scene:
        yield scene


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("point", POINTS)
async def test_kill_9_at_any_point_leaves_one_effect(
    scene: Scene, point: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tidier, "interval", 0.1)
    program = Path(__file__).with_name("teller.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), scene.url, scene.accounts, kind, point
    )
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == -signal.SIGKILL
        is_done = point in ("committed", "recorded")
        await until(lambda: settled(scene))
        assert await scene.entries() == (["w"] if is_done else [])
        teller = Teller(scene.url, scene.accounts, kind)
        async with teller.dbos:
            handle = await teller.dbos.retrieve_workflow("w")
            assert await handle.get_result() == 52
            assert [step.name for step in await teller.dbos.list_steps("w")] == [
                "before",
                "credit",
                "before",
            ]
            await until(scene.is_tidy)
    assert await scene.entries() == ["w"]
    assert teller.calls == (not is_done)


async def settled(scene: Scene) -> bool:
    """Whether nobody is in the middle of anything in the accounts' database."""
    return not await scene.database.fetchval("""
        select count(*) from pg_stat_activity
         where datname = current_database() and xact_start is not null
           and pid <> pg_backend_pid()
    """)


@pytest.mark.parametrize("before", [True, False])
async def test_a_commit_at_home_is_a_checkpoint_to_crash_at(
    dbos_database_url: str, dbos_postgres: PostgresServer, *, before: bool
) -> None:
    async with scene_on(dbos_database_url, dbos_postgres, "same") as scene:
        teller = Teller(scene.url, scene.accounts, "asyncpg")
        with crash_at(3, before=before) as crash:
            async with teller.dbos:
                await teller.flow("SERIALIZABLE")
        assert crash.happened
        recorded = await scene.database.fetchval("select count(*) from dbos.operation_outputs")
        assert recorded == (1 if before else 2)
        assert await scene.entries() == ([] if before else ["w"])
        again = Teller(scene.url, scene.accounts, "asyncpg")
        async with again.dbos:
            handle = await again.dbos.retrieve_workflow("w")
            assert await handle.get_result(timeout=PATIENCE) == 52
        assert await scene.entries() == ["w"]


async def blind() -> None:
    """See nothing."""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("moment", ["first", "last"])
async def test_a_zombie_commits_nothing(scene: Scene, level: str, moment: str) -> None:
    """It is in its function while another process takes its workflow over, and ends it."""
    zombie = Teller(scene.url, scene.accounts, "asyncpg")
    taker = Teller(scene.url, scene.accounts, "asyncpg")
    reached, go = asyncio.Event(), asyncio.Event()

    async def halt(there: str) -> None:
        if there == moment:
            reached.set()
            await go.wait()

    zombie.on = halt
    async with asyncio.timeout(PATIENCE):
        await zombie.dbos.launch()
        zombie.dbos.launched()._look = blind  # type: ignore[method-assign]  # it does not notice
        await zombie.dbos.start_workflow(zombie.flow, level)
        await reached.wait()
        await zombie.dbos.deactivate()
        async with taker.dbos:
            handle = await taker.dbos.resume_workflow("w")
            assert await handle.get_result() == 52
            assert await scene.entries() == ["w"]
            await until(scene.is_tidy)  # there is no row left that it could run into
            go.set()
            while zombie.dbos.launched().running:
                await asyncio.sleep(0.02)
            assert await handle.get_result() == 52
        await zombie.dbos.shutdown(timeout=0)
    assert await scene.entries() == ["w"]
    assert taker.calls == 1


async def test_a_zombie_elsewhere_looks_again_once_its_row_is_in_the_way_of_others(
    dbos_database_url: str, dbos_postgres: PostgresServer
) -> None:
    """It has asked whether the workflow is its own before, for an earlier transaction."""
    async with scene_on(dbos_database_url, dbos_postgres, "other") as scene:
        zombie, taker = [Teller(scene.url, scene.accounts, "asyncpg") for _ in range(2)]
        reached, go = asyncio.Event(), asyncio.Event()

        async def halt(there: str) -> None:
            if there == "last" and zombie.calls == 2:
                reached.set()
                await go.wait()

        zombie.on = halt
        async with asyncio.timeout(PATIENCE):
            await zombie.dbos.launch()
            zombie.dbos.launched()._look = blind  # type: ignore[method-assign]
            await zombie.dbos.start_workflow(zombie.twice)
            await reached.wait()
            await zombie.dbos.deactivate()
            async with taker.dbos:
                handle = await taker.dbos.resume_workflow("w")
                assert await handle.get_result() == 30
                await until(scene.is_tidy)
                go.set()
                while zombie.dbos.launched().running:
                    await asyncio.sleep(0.02)
            await zombie.dbos.shutdown(timeout=0)
        assert await scene.entries() == ["w", "w"]
        assert (zombie.calls, taker.calls) == (2, 1)


@pytest.mark.parametrize("level", LEVELS)
async def test_a_run_that_was_taken_over_stops_at_its_fence(
    dbos_database_url: str, dbos_postgres: PostgresServer, level: str
) -> None:
    async with scene_on(dbos_database_url, dbos_postgres, "same") as scene:
        zombie = Teller(scene.url, scene.accounts, "asyncpg")

        async def take_over(there: str) -> None:
            if there == "last" and zombie.calls == 1:
                await scene.database.execute(
                    "update dbos.workflow_status set owner_xid = 'another', executor_id = 'other'"
                )

        zombie.on = take_over
        async with asyncio.timeout(PATIENCE), zombie.dbos:
            await zombie.dbos.start_workflow(zombie.flow, level)
            while zombie.dbos.launched().running:
                await asyncio.sleep(0.02)
        assert await scene.entries() == []
        assert await scene.database.fetchval("select status from dbos.workflow_status") == "PENDING"
        assert zombie.calls == (1 if level == "READ COMMITTED" else 2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arrives", [True, False])
async def test_a_connection_that_is_cut_at_commit_is_found_out(
    server: EmbeddedServer, server_url: str, place: str, kind: str, *, arrives: bool
) -> None:
    async with scene_on(server_url, server, place) as scene, Proxy(scene.accounts).open() as proxy:
        teller = Teller(scene.url, proxy.url, kind)
        is_armed = False

        async def arm(there: str) -> None:
            nonlocal is_armed
            is_armed = there == "last"

        def cut(data: bytes) -> bool:
            nonlocal is_armed
            if not is_armed or b"COMMIT" not in data.upper():
                return False
            is_armed = False
            if not arrives:
                proxy.cut()
            return arrives

        teller.on, proxy.on_request = arm, cut
        if not arrives:  # the second time it passes
            teller.on = once(arm)
        async with asyncio.timeout(PATIENCE), teller.dbos:
            assert await teller.flow("SERIALIZABLE") == 52
            assert await scene.entries() == ["w"]
            await until(scene.is_tidy)
        assert teller.calls == (1 if arrives else 2)


def once(arm: Any) -> Any:
    """Arm the first time only."""
    armed = False

    async def on(there: str) -> None:
        nonlocal armed
        if not armed:
            await arm(there)
            armed = there == "last"

    return on


async def test_the_server_may_restart_in_the_middle(
    server: EmbeddedServer, server_url: str
) -> None:
    async with scene_on(server_url, server, "same") as scene:
        teller = Teller(scene.url, scene.accounts, "asyncpg")

        async def restart(there: str) -> None:
            if there == "last" and teller.calls == 1:
                await asyncio.to_thread(server.stop, "immediate")
                await asyncio.to_thread(server.start)

        teller.on = restart
        async with asyncio.timeout(PATIENCE), teller.dbos:
            assert await teller.flow("SERIALIZABLE") == 52
        database = await asyncpg.connect(scene.url)
        assert await database.fetchval("select count(*) from entries") == 1
        await database.close()
        assert teller.calls == 2
