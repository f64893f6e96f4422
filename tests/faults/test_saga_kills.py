"""kill -9 of a saga at every checkpoint: what was booked is returned, and nothing is left over."""

import asyncio
import itertools
import signal
import sys
import uuid
from collections import Counter
from pathlib import Path

import asyncpg
import pytest
from traveller import Traveller

from dbos_async._store import databases
from dbos_async.testing import PostgresServer

AT_A_TIME = 4
FEWEST = 15
"""Checkpoints that there are at least, lest the test passes for having killed nothing."""
PATIENCE = 60.0
BOOKED = {"train", "seat", "flight", "hotel"}


@pytest.mark.parametrize("ending", ["fails", "cancelled"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_saga_survives_kill_9_at_every_checkpoint(
    dbos_postgres: PostgresServer,
    dbos_database_template: str,
    tmp_path: Path,
    moment: str,
    ending: str,
) -> None:
    async def life(checkpoint: int) -> bool:
        name = f"dbos_test_{uuid.uuid4().hex[:16]}"
        await databases.clone_database(dbos_postgres.url, name, dbos_database_template)
        try:
            async with asyncio.timeout(PATIENCE):
                ledger = tmp_path / str(checkpoint)
                return await lives_on(
                    dbos_postgres.url_of(name), ledger, checkpoint, moment, ending
                )
        finally:
            await databases.drop_database(dbos_postgres.url, name)

    for first in itertools.count(1, AT_A_TIME):
        died = await asyncio.gather(*[life(first + i) for i in range(AT_A_TIME)])
        if not all(died):
            break
    assert sum(died) + first - 1 >= FEWEST


async def lives_on(url: str, ledger: Path, checkpoint: int, moment: str, ending: str) -> bool:
    """Whether the process died; if so, what it began is finished here."""
    program = Path(__file__).with_name("traveller.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(ledger), str(checkpoint), moment, ending
    )
    status = await process.wait()
    assert status in (0, -signal.SIGKILL)
    traveller = Traveller(url, ledger)
    before = Counter(traveller.lines())
    landed = await recorded_in(url)
    async with traveller.dbos:
        await traveller.travel(ending)
        reports = await traveller.dbos.check_replay()
        assert not [f"{report}" for report in reports if not report.is_ok]
    await check(url, Counter(traveller.lines()), before, landed)
    return status != 0


async def recorded_in(url: str) -> int:
    """How many compensations have succeeded."""
    connection = await asyncpg.connect(url)
    count: int = await connection.fetchval(
        "select count(*) from dbos.operation_outputs where function_name = 'return'"
    )
    await connection.close()
    return count


async def check(url: str, lines: Counter[str], before: Counter[str], landed: int) -> None:
    """All that was booked was returned: once, unless the process died in it."""
    assert {line[1:] for line in lines if line.startswith("-")} == BOOKED
    returned = sum(count for line, count in lines.items() if line.startswith("-"))
    returned_before = sum(count for line, count in before.items() if line.startswith("-"))
    assert returned <= len(BOOKED) + returned_before - landed
    assert await recorded_in(url) == len(BOOKED)
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select count(*) from dbos.dbos_async_compensations") == 0
    await connection.close()
