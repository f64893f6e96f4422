"""kill -9 in the middle of pruning: what is not in the database is in the archive."""

import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from dbos_async import Client

WORKFLOWS = 400
KILLS = 8
PATIENCE = 120.0
FILL = """
with made as (
    insert into dbos.workflow_status
           (workflow_uuid, status, name, application_name, serialization, output, created_at,
            completed_at, parent_workflow_id)
    select 'w-' || i, 'SUCCESS', 'flow', 'shop', 'portable_json', '"some result or other"', i, i,
           case when i % 3 = 0 then 'w-' || i - 1 end
      from generate_series(1, $1::int) i
    returning workflow_uuid
)
insert into dbos.operation_outputs (workflow_uuid, function_id, function_name, output)
select workflow_uuid, n, 'step', '1' from made, generate_series(1, 2) n
"""
LEFT = "select workflow_uuid from dbos.workflow_status"
TORN = """
select count(*) from dbos.operation_outputs o
 where not exists (select from dbos.workflow_status w where w.workflow_uuid = o.workflow_uuid)
"""


async def launched(url: str, archive: Path) -> Process:
    program = Path(__file__).with_name("pruner.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(archive), stdout=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


def archived(archive: Path) -> list[str]:
    """The ids in the archive; a line that was being written does not count."""
    if not archive.exists():
        return []
    *lines, _ = archive.read_text().split("\n")
    return [json.loads(line)["workflows"][0]["workflow_status"]["workflow_uuid"] for line in lines]


async def left(database: "asyncpg.Connection[asyncpg.Record]") -> set[str]:
    return {row[0] for row in await database.fetch(LEFT)}


@pytest.mark.parametrize("seed", range(2))
async def test_random_kills_lose_no_workflow_on_its_way_to_the_archive(
    dbos_database_url: str, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)  # no secret
    archive = tmp_path / "archive.jsonl"
    everything = {f"w-{i}" for i in range(1, WORKFLOWS + 1)}
    database = await asyncpg.connect(dbos_database_url)
    await database.execute(FILL, WORKFLOWS)
    async with asyncio.timeout(PATIENCE):
        for _ in range(KILLS):
            before = archive.stat().st_size if archive.exists() else 0
            process = await launched(dbos_database_url, archive)
            while (archive.stat().st_size if archive.exists() else 0) == before:
                if not await left(database):
                    break
                await asyncio.sleep(0.005)
            await asyncio.sleep(chance.random() / 20)  # no condition says: in the middle
            process.kill()
            await process.wait()
            in_database = await left(database)  # first: it may only become less
            assert in_database | set(archived(archive)) == everything
            assert await database.fetchval(TORN) == 0
        process = await launched(dbos_database_url, archive)
        while await left(database):
            await asyncio.sleep(0.02)
        process.kill()
        await process.wait()
    counts = Counter(archived(archive))
    assert counts.keys() == everything
    assert archive.read_text().endswith("}\n")
    async with Client(dbos_database_url) as client:
        for line in dict.fromkeys(archive.read_text().splitlines()):
            await client.import_workflow(line)
    assert await left(database) == everything
    await database.close()
