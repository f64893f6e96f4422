"""SIGKILL at every point of an upload: the result is right, and nothing is left for good."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from keeper import SIZE, Keeper

KEEPER = Path(__file__).parent / "keeper.py"


async def killed(*arguments: str) -> None:
    """Run a keeper until it has killed itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(KEEPER), *arguments, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()


def files_in(path: Path) -> set[str]:
    """What is there, as the kinds of objects; files that are not whole by themselves."""
    files = [each for each in path.rglob("*") if each.is_file()]
    return {each.name.partition("-")[0] + ("#" if "#" in each.name else "") for each in files}


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("registered", {"input"}),
        ("uploading", {"input", "step#"}),
        ("uploaded", {"input", "step"}),
        ("landed", {"input", "step"}),
    ],
)
async def test_a_kill_around_an_upload_leaves_a_workflow_that_goes_on(
    dbos_database_url: str, tmp_path: Path, moment: str, left: set[str]
) -> None:
    store = tmp_path / "objects"
    await killed(dbos_database_url, f"file://{store}", moment)
    found = files_in(store)
    assert found == left or (moment, found) == ("uploading", {"input", "step"})  # it was quick
    keeper = Keeper(dbos_database_url, f"file://{store}")
    async with keeper.dbos:
        handle = await keeper.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=30) == f"1000000 {SIZE}"
        [made] = await keeper.dbos.list_steps("w")
        assert len(made.output) == SIZE
        await delete_by_sql(dbos_database_url)
        await keeper.dbos.launched().session.payloads.sweep()
    assert files_in(store) == set()
    assert not list(store.iterdir())
    assert await registered(dbos_database_url) == 0


async def test_a_workflow_that_never_came_to_be_leaves_nothing_for_good(
    dbos_database_url: str, tmp_path: Path
) -> None:
    store = tmp_path / "objects"
    await killed(dbos_database_url, f"file://{store}", "registered")
    await delete_by_sql(dbos_database_url)  # as if its row had not landed
    keeper = Keeper(dbos_database_url, f"file://{store}")
    async with keeper.dbos, asyncio.timeout(30):
        while files_in(store) or await registered(dbos_database_url):  # the launch sweeps
            await asyncio.sleep(0.05)


async def delete_by_sql(url: str) -> None:
    await executed(url, "delete from dbos.operation_outputs")
    await executed(url, "delete from dbos.workflow_status")
    await executed(
        url, "update dbos.dbos_async_payloads set created_at_epoch_ms = 0 where object_key <> ''"
    )


async def executed(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def registered(url: str) -> int:
    count: int = await executed(
        url, "select count(*) from dbos.dbos_async_payloads where object_key <> ''"
    )
    return count
