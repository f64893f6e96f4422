"""kill -9 around parking and waking: everything goes on, and nothing recorded runs again."""

import asyncio
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import asyncpg
import pytest
from parker import SLEEPS, app_of

from dbos_async import Client

WORKFLOWS = 40
KILLS = 8
PATIENCE = 60.0


async def launched(url: str, ledger: Path) -> Process:
    program = Path(__file__).with_name("parker.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(ledger), stdout=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def counted(database: "asyncpg.Connection[asyncpg.Record]", condition: str) -> int:
    count: int = await database.fetchval(
        f"select count(*) from dbos.workflow_status where {condition}"  # a test's
    )
    return count


@pytest.mark.parametrize("seed", range(2))
async def test_random_kills_lose_no_parked_workflow_and_repeat_no_recorded_step(
    dbos_database_url: str, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)  # no secret
    ledger = tmp_path / "ledger"
    database = await asyncpg.connect(dbos_database_url)
    async with asyncio.timeout(PATIENCE), Client(dbos_database_url) as client:
        process = await launched(dbos_database_url, ledger)
        flow = client.stub("flow")
        handles = [await client.enqueue("queue", flow) for _ in range(WORKFLOWS)]
        for _ in range(KILLS):
            # Wherever it is: some are just parked, some lie, some have just been woken.
            parked = await counted(database, "status = 'DELAYED'")
            while await counted(database, "status = 'DELAYED'") == parked:
                if not await counted(database, "status <> 'SUCCESS'"):
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(chance.random() / 20)  # no condition says: in the middle
            process.kill()
            await process.wait()
            process = await launched(dbos_database_url, ledger)
        results = [await handle.get_result() for handle in handles]
        process.kill()
        await process.wait()
    assert results == [list(range(SLEEPS))] * WORKFLOWS
    ran = Counter(tuple(line.split()[:2]) for line in ledger.read_text().splitlines())
    assert len(ran) == WORKFLOWS * SLEEPS
    assert sum(ran.values()) - len(ran) <= KILLS * 3, "only a step that a kill cut off runs again"
    attempts = await database.fetchval("select max(recovery_attempts) from dbos.workflow_status")
    assert attempts <= 1 + KILLS
    await database.close()


async def test_what_was_parked_right_before_the_kill_wakes_elsewhere(
    dbos_database_url: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    database = await asyncpg.connect(dbos_database_url)
    async with asyncio.timeout(PATIENCE):
        process = await launched(dbos_database_url, ledger)
        async with Client(dbos_database_url) as client:
            handle = await client.enqueue("queue", client.stub("flow"))
            while not await counted(database, "status = 'DELAYED'"):
                await asyncio.sleep(0.001)
            process.kill()
            await process.wait()
            async with app_of(dbos_database_url, str(ledger)):
                assert await handle.get_result() == list(range(SLEEPS))
            assert (await handle.get_status()).recovery_attempts == 1
    assert len(ledger.read_text().splitlines()) == SLEEPS
    await database.close()
