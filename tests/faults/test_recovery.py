"""What dead processes left is taken over: all of it, once, a bounded number at a time."""

import asyncio
import logging
from collections import Counter

import asyncpg
import pytest
from load import PATIENCE

from dbos_async import DBOS, RecoveryExhaustedError
from dbos_async._engine import leader
from dbos_async._engine.recovery import Recovery
from dbos_async.testing import crash_at


class Shop:
    """An app that counts what its steps do."""

    def __init__(self, url: str, *, max_recovering: int = 500, known: bool = True) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1", max_recovering=max_recovering)
        dbos.configure(recheck_interval=0.3)
        self.began: Counter[str] = Counter()
        self.running = self.most = 0

        @dbos.step
        async def work() -> None:
            self.began[dbos.workflow_id or ""] += 1
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.01)
            self.running -= 1

        async def job() -> str:
            await work()
            return "done"

        async def nap() -> str:
            await dbos.sleep(3600)
            return "awake"

        async def fragile() -> str:
            await work()
            return "done"

        if known:
            self.job = dbos.workflow(name="job")(job)
            self.nap = dbos.workflow(name="nap")(nap)
            self.fragile = dbos.workflow(name="fragile", max_recovery_attempts=2)(fragile)


async def leave(url: str, name: str, count: int) -> None:
    """Leave so many PENDING workflows of a dead process behind."""
    shop = Shop(url)
    with crash_at(1):
        async with shop.dbos:
            await getattr(shop, name).with_options(workflow_id=f"{name}-1")()
    connection = await asyncpg.connect(url)
    await connection.execute(
        """
        insert into dbos.workflow_status
               (workflow_uuid, status, name, inputs, executor_id, application_version,
                owner_xid, creator_xid, recovery_attempts, serialization, application_name)
        select $1 || '-' || n, w.status, w.name, w.inputs, w.executor_id, w.application_version,
               w.owner_xid, w.creator_xid, w.recovery_attempts, w.serialization,
               w.application_name
          from dbos.workflow_status w, generate_series(2, $2::int) n
         where w.workflow_uuid = $1 || '-1'
        """,
        name,
        count,
    )
    await connection.close()


async def until_counted(url: str, status: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(PATIENCE):
        while count != await connection.fetchval(
            "select count(*) from dbos.workflow_status where status = $1", status
        ):
            await asyncio.sleep(0.05)
    await connection.close()


async def test_ten_thousand_are_picked_up_a_bounded_number_at_a_time(
    dbos_database_url: str,
) -> None:
    await leave(dbos_database_url, "job", 10_000)
    shop = Shop(dbos_database_url, max_recovering=200)
    async with shop.dbos:
        assert await shop.job.with_options(workflow_id="new")() == "done"
        assert len(shop.began) < 10_000, "new work waits for none of it"
        await until_counted(dbos_database_url, "SUCCESS", 10_001)
    assert set(shop.began.values()) == {1}
    assert 1 < shop.most <= 201


async def test_two_that_launch_at_once_run_each_workflow_once(dbos_database_url: str) -> None:
    await leave(dbos_database_url, "job", 600)
    one, two = Shop(dbos_database_url), Shop(dbos_database_url)
    await asyncio.gather(one.dbos.launch(), two.dbos.launch())
    await until_counted(dbos_database_url, "SUCCESS", 600)
    await asyncio.gather(one.dbos.shutdown(), two.dbos.shutdown())
    both = one.began + two.began
    assert len(both) == 600
    assert set(both.values()) == {1}


async def test_who_leaves_more_while_its_work_is_taken_over_is_heard(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "LOOK_INTERVAL", 3600)  # nobody looks: it is told
    recovered: list[str] = []
    again = asyncio.Event()

    async def recover(recovery: Recovery, executor_id: str) -> None:
        recovered.append(executor_id)
        if len(recovered) == 1:
            recovery.dead([executor_id])
        else:
            again.set()

    monkeypatch.setattr(Recovery, "_recover", recover)
    shop = Shop(dbos_database_url)
    async with shop.dbos, asyncio.timeout(PATIENCE):
        await again.wait()
        assert recovered == [shop.dbos.executor_id] * 2


async def test_sleepers_do_not_block_the_recovery_of_others(dbos_database_url: str) -> None:
    await leave(dbos_database_url, "nap", 20)
    await leave(dbos_database_url, "job", 1)
    shop = Shop(dbos_database_url, max_recovering=2)
    async with shop.dbos:
        handle = await shop.dbos.retrieve_workflow("job-1")
        assert await handle.get_result(timeout=PATIENCE) == "done"


async def test_a_workflow_that_nobody_here_knows_is_left_to_others(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await leave(dbos_database_url, "job", 3)
    caplog.set_level(logging.WARNING, "dbos_async")
    stranger = Shop(dbos_database_url, known=False)
    async with stranger.dbos:
        async with asyncio.timeout(PATIENCE):
            while "not registered" not in caplog.text:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)  # several rechecks
        rows = await stranger.dbos.list_workflows(status="PENDING")
    assert [row.name for row in rows] == ["job"] * 3
    assert caplog.text.count("not registered") == 1
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        await until_counted(dbos_database_url, "SUCCESS", 3)


async def test_what_kills_its_process_again_and_again_is_given_up(dbos_database_url: str) -> None:
    await leave(dbos_database_url, "fragile", 1)
    attempts = 1  # the start was the first
    while attempts < 10:
        shop = Shop(dbos_database_url)
        with crash_at(1, before=True) as crash:  # before any new step is recorded
            async with shop.dbos:
                handle = await shop.dbos.retrieve_workflow("fragile-1")
                with pytest.raises(RecoveryExhaustedError):
                    await handle.get_result(timeout=PATIENCE)
                status = await handle.get_status()
        if not crash.happened:
            break
        attempts += 1
    assert attempts == 3, "the first run and max_recovery_attempts=2"
    assert status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED"
