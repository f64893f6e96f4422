"""Postgres restarts, kills connections, freezes: workflows wait, none fails, no step runs twice."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from load import PATIENCE, Load, backends, terminate
from proxy import Proxy

from dbos_async import DatabaseLostError
from dbos_async._store import database as database_module
from dbos_async.testing import EmbeddedServer


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_postgres_restarts_under_load_and_nothing_fails(
    server: EmbeddedServer, server_url: str, mode: Any
) -> None:
    load = Load(server_url)
    async with load.dbos:
        await load.start(120)
        for restart in range(3):
            await progress(load, 300 * (restart + 1))
            await asyncio.to_thread(server.stop, mode)
            await asyncio.to_thread(server.start)
        await load.start(5)
        await load.check()


async def test_postgres_is_away_while_work_is_started_and_awaited(
    server: EmbeddedServer, server_url: str
) -> None:
    load = Load(server_url)
    async with load.dbos:
        await load.start(3)
        await asyncio.to_thread(server.stop, "immediate")
        try:
            starting = asyncio.create_task(load.start(3))
            await asyncio.sleep(1)  # long enough for everything to have failed once
            assert not starting.done()
        finally:
            await asyncio.to_thread(server.start)
        await starting
        await load.check()


async def test_every_connection_is_killed_in_turn_and_all_resumes(server_url: str) -> None:
    load = Load(server_url, pause=0.05)
    killed: set[str] = set()
    async with load.dbos:
        await load.start(60, length=20)
        for purpose in ("checkpointer", "notifier", "executor lock", "pool"):
            before = await backends(server_url)
            await terminate(server_url, before[purpose])
            killed.add(purpose)
            if purpose != "pool":
                await until_replaced(server_url, purpose, before[purpose])
        await load.check()
        assert killed == {"checkpointer", "notifier", "executor lock", "pool"}


async def test_the_listener_hears_again_after_its_connection_was_killed(server_url: str) -> None:
    waiting, working = Load(server_url), Load(server_url)
    waiting.dbos.configure(recheck_interval=600)
    waiting.dbos.queue("q")
    async with waiting.dbos:
        old = (await backends(server_url))["notifier"]
        await terminate(server_url, old)
        await until_replaced(server_url, "notifier", old)
        async with working.dbos:
            await working.start(1)
            handle = await waiting.dbos.retrieve_workflow("w0")
            assert await handle.get_result(timeout=PATIENCE) == 0


async def test_a_reply_that_is_cut_off_doubles_nothing(
    server: EmbeddedServer, server_url: str
) -> None:
    async with Proxy(server_url).open() as proxy:
        load = Load(proxy.url)
        requests = 0

        def every_fifth_write(data: bytes) -> bool:
            nonlocal requests
            is_execution = data[:1] == b"B" or b"commit" in data[:16]  # Bind, or where it counts
            requests += is_execution
            return is_execution and requests % 5 == 0 and proxy.cuts < 40

        async with load.dbos:
            proxy.on_request = every_fifth_write
            while proxy.cuts < 10:  # a slow machine writes more at a time
                await load.start(20)
                await load.check()


async def test_links_that_are_cut_again_and_again(server_url: str) -> None:
    async with Proxy(server_url).open() as proxy:
        load = Load(proxy.url)
        async with load.dbos:
            await load.start(60)
            for cut in range(5):
                await progress(load, 200 * (cut + 1))
                proxy.cut()
            await load.check()


async def test_a_frozen_link_is_given_up_and_work_goes_on_after_it(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("database", "checkpointer"):
        monkeypatch.setattr(f"dbos_async._store.{module}.DEADLINE", 2.0)
    assert database_module.DEADLINE == 2.0
    async with Proxy(server_url).open() as proxy:
        load = Load(proxy.url)
        load.dbos.configure(connect_timeout=1.0)
        async with load.dbos:
            await load.start(30)
            await progress(load, 100)
            proxy.stall()
            stuck = asyncio.create_task(load.dbos.list_workflows())
            async with asyncio.timeout(15):
                with pytest.raises(Exception, match=r"."):
                    await stuck
            proxy.restore()
            await load.check()


async def test_a_shutdown_ends_while_postgres_is_away(
    server: EmbeddedServer, server_url: str
) -> None:
    load = Load(server_url)
    await load.dbos.launch()
    await load.start(20)
    await asyncio.to_thread(server.stop, "immediate")
    try:
        async with asyncio.timeout(PATIENCE):
            await load.dbos.shutdown(timeout=0.5)
    finally:
        await asyncio.to_thread(server.start)
    again = Load(server_url)
    await launch(again)
    for handle in load.handles:
        found = await again.dbos.retrieve_workflow(handle.workflow_id)
        async with asyncio.timeout(PATIENCE):
            await found.get_result()
    await again.dbos.shutdown()


async def launch(load: Load) -> None:
    """Launch once the server is reached: a pooler says no for a moment longer than it does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(DatabaseLostError):
                return await load.dbos.launch()
            await asyncio.sleep(0.05)


async def progress(load: Load, steps: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(load.began) < steps:
            await asyncio.sleep(0.01)


async def until_replaced(url: str, purpose: str, old: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await backends(url)).get(purpose, old) == old:
            await asyncio.sleep(0.05)
