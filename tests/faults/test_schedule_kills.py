"""kill -9 of processes that fire a schedule: every tick fires once."""

import asyncio
import random
import sys
from asyncio.subprocess import PIPE, Process
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from ticking import app_of

PROCESSES = 3
KILLS = 4
TICKS = 15
PATIENCE = 90.0


async def launched(url: str) -> Process:
    program = Path(__file__).with_name("ticking.py")
    process = await asyncio.create_subprocess_exec(sys.executable, program, url, stdout=PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def runs(database: Any) -> list[Any]:
    found: list[Any] = await database.fetch(
        "select workflow_uuid, status, output from dbos.workflow_status order by workflow_uuid"
    )
    return found


async def test_every_tick_fires_once_though_processes_are_killed_at_random(
    dbos_database_url: str,
) -> None:
    chance = random.Random(1)  # no secret
    database = await asyncpg.connect(dbos_database_url)
    async with app_of(dbos_database_url):  # installs the schema
        pass
    await database.execute("delete from dbos.workflow_status")
    async with asyncio.timeout(PATIENCE):
        processes = [await launched(dbos_database_url) for _ in range(PROCESSES)]
        killed = 0
        while len(await runs(database)) < TICKS or killed < KILLS:
            ticks = len(await runs(database))
            while len(await runs(database)) < ticks + TICKS // KILLS:
                await asyncio.sleep(0.02)
            await asyncio.sleep(chance.random())  # no condition says: anywhere between two ticks
            victim = chance.randrange(PROCESSES)
            processes[victim].kill()
            await processes[victim].wait()
            processes[victim] = await launched(dbos_database_url)
            killed += 1
        for process in processes:
            process.kill()
            await process.wait()
        async with app_of(dbos_database_url) as dbos:  # ends what they left
            while any(row["status"] != "SUCCESS" for row in (await runs(database))[:-3]):
                await asyncio.sleep(0.02)
            await dbos.pause_schedule("tick")
    ids = [row["workflow_uuid"] for row in await runs(database)]
    dues = [datetime.fromisoformat(each.removeprefix("sched-tick-")) for each in ids]
    assert dues == [dues[0] + number * timedelta(seconds=1) for number in range(len(dues))]
    assert len(dues) >= TICKS
    await database.close()


@pytest.mark.parametrize("seconds", [20])
async def test_a_leader_that_stood_still_fires_at_most_the_last_tick_that_it_missed(
    dbos_database_url: str, seconds: int
) -> None:
    import signal

    database = await asyncpg.connect(dbos_database_url)
    async with asyncio.timeout(PATIENCE):
        process = await launched(dbos_database_url)
        while not await runs(database):
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0)
        stopped_at = await database.fetchval("select now()")
        await database.execute("select pg_sleep($1)", seconds)
        woken_at = await database.fetchval("select now()")
        before = len(await runs(database))
        process.send_signal(signal.SIGCONT)
        while len(await runs(database)) < before + 3:
            await asyncio.sleep(0.02)
        process.kill()
        await process.wait()
    dues = [
        datetime.fromisoformat(row[0].removeprefix("sched-tick-")) for row in await runs(database)
    ]
    missed = [due for due in dues if stopped_at + timedelta(seconds=1) < due < woken_at]
    assert len(missed) <= 1
    await database.close()
