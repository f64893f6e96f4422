"""kill -9 at every checkpoint of a workflow with branches, children, retries, sleeps and draws."""

import asyncio
import itertools
import signal
import sys
import uuid
from collections import Counter
from pathlib import Path

import asyncpg
import pytest
from reference import RESULT, WORKFLOW_ID, Record, Reference

from dbos_async._store import databases
from dbos_async.testing import PostgresServer

AT_A_TIME = 4
FEWEST = 20
"""Checkpoints that the workflow has at least, lest the test passes for having killed nothing."""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_workflow_survives_kill_9_at_every_checkpoint(
    dbos_postgres: PostgresServer, dbos_database_template: str, tmp_path: Path, moment: str
) -> None:
    async def life(checkpoint: int) -> bool:
        name = f"dbos_test_{uuid.uuid4().hex[:16]}"
        await databases.clone_database(dbos_postgres.url, name, dbos_database_template)
        try:
            async with asyncio.timeout(60):
                url, record = dbos_postgres.url_of(name), Record(tmp_path / str(checkpoint))
                return await lives_on(url, record, tmp_path / str(checkpoint), checkpoint, moment)
        finally:
            await databases.drop_database(dbos_postgres.url, name)

    for first in itertools.count(1, AT_A_TIME):
        died = await asyncio.gather(*[life(first + i) for i in range(AT_A_TIME)])
        if not all(died):
            break
    assert sum(died) + first - 1 >= FEWEST


async def lives_on(url: str, record: Record, path: Path, checkpoint: int, moment: str) -> bool:
    """Whether the process died; if so, what it began is finished here."""
    program = Path(__file__).with_name("reference.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(path), str(checkpoint), moment
    )
    if (status := await process.wait()) == 0:
        return False
    assert status == -signal.SIGKILL
    recorded = await recorded_in(url)
    assert sum(recorded.values()) == checkpoint - (moment == "before")
    record.write("killed")
    reference = Reference(url, record)
    async with reference.dbos:
        assert await reference.workflow() == RESULT
    check(record.lines(), set(recorded))
    return True


async def recorded_in(url: str) -> Counter[str]:
    """The writes that landed: `workflow key` of a step, and how many of each workflow's own."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "select workflow_uuid || ' ' || coalesce(step_key, function_id::text), 1 "
        "  from dbos.operation_outputs where child_workflow_id is null "
        "union all "
        "select workflow_uuid, case status when 'SUCCESS' then 2 else 1 end "
        "  from dbos.workflow_status"
    )
    await connection.close()
    return Counter({row[0]: row[1] for row in rows})


def check(lines: list[str], recorded: set[str]) -> None:
    """No step ran twice unless the process died in it; none whose record landed began again."""
    killed = lines.index("killed")
    again = {line.rpartition(" ")[0] for line in lines[killed + 1 :]}
    assert not again & recorded, "steps began again though their records had landed"
    for lifetime in (lines[:killed], lines[killed + 1 :]):
        assert max(Counter(lifetime).values(), default=1) == 1
    steps = {line.rpartition(" ")[0] for line in lines if line != "killed"}
    assert any(step.startswith(f"{WORKFLOW_ID} ") for step in steps)
    assert len(steps) == 13
