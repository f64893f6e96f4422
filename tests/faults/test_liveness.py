"""Who lives, who leads, and what becomes of what the dead leave."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from member import Member

from dbos_async import Client, WorkflowTimeoutError
from dbos_async._engine import leader
from dbos_async._store.database import Database
from dbos_async._store.lease import Lease
from dbos_async.testing import Crashed

PATIENCE = 40.0
PROGRAM = Path(__file__).parent / "member.py"
OWNER = "select executor_id from dbos.workflow_status where workflow_uuid = $1"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    return path


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


class Other:
    """Another process of the fleet."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.executor_id = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    async def says(self, what: str) -> list[str]:
        """Its next line that begins with this word."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while True:
                line = (await self.process.stdout.readline()).decode().split()
                assert line, f"it ended before it said {what!r}"
                if line[0] == what:
                    return line[1:]

    async def start(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        await self.says("started")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@asynccontextmanager
async def other(url: str, ledger: Path, **settings: object) -> AsyncIterator[Other]:
    options = [f"{key}={value}" for key, value in settings.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), url, str(ledger), *options, stdin=PIPE, stdout=PIPE
    )
    one = Other(process)
    try:
        [one.executor_id] = await one.says("ready")
        yield one
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


def lines_of(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines()


def open_(gate: Path) -> None:
    gate.touch()


def begun(ledger: Path, workflow_id: str) -> list[tuple[str, int]]:
    """Which steps of it began, and in which process."""
    lines = [line.split() for line in lines_of(ledger)]
    return [(line[2], int(line[3])) for line in lines if line[:2] == ["begin", workflow_id]]


Until = Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]


@pytest.fixture
async def database(dbos_database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dbos_database_url)
    yield connection
    await connection.close()


@pytest.fixture
def until() -> Until:
    async def wait(condition: Callable[[], Awaitable[Any]]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not await condition():
                await asyncio.sleep(0.02)

    return wait


# Deaths


async def test_what_a_killed_process_left_goes_on_in_another_each_step_once(
    dbos_database_url: str, ledger: Path, gate: Path
) -> None:
    here = Member(dbos_database_url, str(ledger))
    async with here.dbos, other(dbos_database_url, ledger) as there:
        await there.start("holder", "w", gate)
        while not begun(ledger, "w"):
            await asyncio.sleep(0.01)
        there.send(signal.SIGKILL)
        open_(gate)
        handle = await here.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=PATIENCE) == [os.getpid()] * 2
    assert begun(ledger, "w") == [("1", there.pid), ("1", os.getpid()), ("2", os.getpid())]


async def test_the_death_of_the_leader_is_seen_by_its_successor(
    dbos_database_url: str, ledger: Path
) -> None:
    async with other(dbos_database_url, ledger) as first:
        here = Member(dbos_database_url, str(ledger))
        async with here.dbos:
            await first.start("sleeper", "s")
            handle = await here.dbos.enqueue("jobs", here.flows["job"].with_options(delay=0.2))
            first.send(signal.SIGKILL)
            assert await handle.get_result(timeout=PATIENCE) == [os.getpid()] * 3
            async with asyncio.timeout(PATIENCE):
                while (await here.dbos.list_workflows(name="sleeper"))[0].executor_id != (
                    here.dbos.executor_id
                ):
                    await asyncio.sleep(0.05)


async def test_a_zombie_writes_nothing_and_its_awaiter_gets_what_is_recorded(
    dbos_database_url: str, ledger: Path, gate: Path, database: Any, until: Until
) -> None:
    here = Member(dbos_database_url, str(ledger))
    async with here.dbos, other(dbos_database_url, ledger, lease=1) as zombie:
        await zombie.start("holder", "w", gate)
        while not begun(ledger, "w"):
            await asyncio.sleep(0.01)
        zombie.send(signal.SIGSTOP)

        async def is_ours() -> bool:
            return await database.fetchval(OWNER, "w") == here.dbos.executor_id

        await until(is_ours)
        open_(gate)
        handle = await here.dbos.retrieve_workflow("w")
        ours = [os.getpid()] * 2
        assert await handle.get_result(timeout=PATIENCE) == ours
        zombie.send(signal.SIGCONT)
        assert await zombie.says("result") == ["w", *map(str, ours)]
        recorded = await database.fetch("select output from dbos.operation_outputs")
    assert [int(row[0]) for row in recorded] == ours
    assert ("2", zombie.pid) not in begun(ledger, "w"), "it went on after another took over"


async def test_a_step_that_blocks_the_loop_for_longer_than_the_lease_is_no_death(
    dbos_database_url: str, ledger: Path
) -> None:
    here = Member(dbos_database_url, str(ledger))
    async with here.dbos, other(dbos_database_url, ledger, lease=1) as there:
        await there.start("blocker", "w", 5)
        assert await there.says("result") == ["w", str(there.pid), str(there.pid)]
        [row] = await here.dbos.list_workflows()
    assert begun(ledger, "w") == [("1", there.pid), ("2", there.pid)]
    assert (row.executor_id, row.recovery_attempts) == (there.executor_id, 1)


async def test_a_loop_that_stands_still_for_too_long_is_given_up(
    dbos_database_url: str, ledger: Path
) -> None:
    here = Member(dbos_database_url, str(ledger))
    async with (
        here.dbos,
        other(dbos_database_url, ledger, lease=1, stall_limit=1) as there,
    ):
        await there.start("job", "before")
        await there.says("result")
        await there.start("sleeper", "s")
        await there.start("blocker", "b", 8)
        async with asyncio.timeout(PATIENCE):
            while [
                row.workflow_id
                for row in await here.dbos.list_workflows(status="PENDING")
                if row.executor_id != here.dbos.executor_id
            ]:
                await asyncio.sleep(0.05)
        assert (await here.dbos.list_workflows(name="sleeper"))[0].status == "PENDING"


async def test_work_of_a_clean_exit_goes_on_elsewhere_at_once(
    dbos_database_url: str, ledger: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "LOOK_INTERVAL", 3600)  # nobody looks: it is told
    here = Member(dbos_database_url, str(ledger), recheck_interval=3600)
    async with here.dbos, other(dbos_database_url, ledger) as there:
        await there.start("holder", "w", gate)
        while not begun(ledger, "w"):
            await asyncio.sleep(0.01)
        there.send(signal.SIGTERM)
        await there.process.wait()
        open_(gate)
        handle = await here.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=PATIENCE) == [os.getpid()] * 2
        assert (await handle.get_status()).recovery_attempts == 1, "a clean exit is no crash"


async def test_ten_thousand_that_are_left_are_spread_over_those_who_live(
    dbos_database_url: str, ledger: Path, database: Any, until: Until
) -> None:
    async with other(dbos_database_url, ledger) as there:
        await there.start("sleeper", "s-1")
        there.send(signal.SIGSTOP)  # nobody has it meanwhile
        await database.execute(
            """
            insert into dbos.workflow_status
                   (workflow_uuid, status, name, inputs, executor_id, application_version,
                    owner_xid, creator_xid, recovery_attempts, serialization, application_name)
            select 's-' || n, w.status, w.name, w.inputs, w.executor_id, w.application_version,
                   w.owner_xid, w.creator_xid, w.recovery_attempts, w.serialization,
                   w.application_name
              from dbos.workflow_status w, generate_series(2, 10000) n
             where w.workflow_uuid = 's-1'
            """
        )
        members = [Member(dbos_database_url, str(ledger)) for _ in range(3)]
        async with members[0].dbos, members[1].dbos, members[2].dbos:
            there.send(signal.SIGKILL)

            async def is_done() -> bool:
                return not await database.fetchval(
                    "select exists (select from dbos.workflow_status where executor_id = $1)",
                    there.executor_id,
                )

            await until(is_done)
            owners = Counter(
                row[0]
                for row in await database.fetch("select executor_id from dbos.workflow_status")
            )
            assert sorted(owners) == sorted(str(each.dbos.executor_id) for each in members)
            assert min(owners.values()) > 500


async def test_a_process_whose_id_another_has_taken_starts_nothing_more(
    dbos_database_url: str, ledger: Path, database: Any
) -> None:
    async with other(dbos_database_url, ledger, lease=1, executor_id="one") as zombie:
        await zombie.start("job", "before")
        await zombie.says("result")
        zombie.send(signal.SIGSTOP)
        async with other(dbos_database_url, ledger, lease=1, executor_id="one") as heir:
            zombie.send(signal.SIGCONT)
            async with asyncio.timeout(PATIENCE):
                await zombie.says("usurped")
                async with Client(dbos_database_url) as client:
                    jobs = [client.stub("job").bind() for _ in range(30)]
                    for handle in await client.enqueue_many("jobs", jobs):
                        assert await handle.get_result() == [heir.pid] * 3


async def test_executors_that_are_unknown_or_alive_are_not_recovered(
    dbos_database_url: str, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "LOOK_INTERVAL", 3600)  # nobody looks: it is told
    here = Member(dbos_database_url, str(ledger), recheck_interval=3600)
    async with here.dbos, other(dbos_database_url, ledger) as there:
        await there.start("sleeper", "s")
        with pytest.raises(ValueError, match="no executor 'nobody'"):
            await here.dbos.recover_executors(["nobody", there.executor_id])
        with pytest.raises(ValueError, match="is alive"):
            await here.dbos.recover_executors([there.executor_id])
        there.send(signal.SIGKILL)
        await there.process.wait()
        async with asyncio.timeout(PATIENCE):
            while [each.is_alive for each in await here.dbos.list_executors()].count(True) > 1:
                await asyncio.sleep(0.02)
            assert await here.dbos.recover_executors([there.executor_id]) == ["s"]
            while (await here.dbos.list_workflows())[0].executor_id != here.dbos.executor_id:
                await asyncio.sleep(0.02)


# Leaders


async def test_two_leaders_at_once_do_no_harm(
    dbos_database_url: str, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lead(lease: Any) -> None:
        lease.leads = True
        lease._tell(lease.on_leading)

    monkeypatch.setattr(Lease, "_try_to_lead", lead)
    members = [Member(dbos_database_url, str(ledger)) for _ in range(2)]
    async with (
        members[0].dbos as one,
        members[1].dbos,
        other(dbos_database_url, ledger) as there,
        asyncio.timeout(PATIENCE),
    ):
        for number in range(20):
            await there.start("sleeper", f"s-{number}")
        there.send(signal.SIGKILL)
        job = members[0].flows["job"]
        delayed = [
            await one.enqueue("jobs", job.with_options(delay=0.01 * number)) for number in range(50)
        ]
        for handle in delayed:
            assert len(await handle.get_result()) == 3
        while await one.list_workflows(workflow_id_prefix="s-", status="PENDING") and any(
            row.executor_id == there.executor_id
            for row in await one.list_workflows(workflow_id_prefix="s-")
        ):
            await asyncio.sleep(0.05)
    steps = Counter(line.rsplit(" ", 1)[0] for line in lines_of(ledger) if "begin" in line)
    assert len(steps) == 150
    assert set(steps.values()) == {1}


async def test_a_deadline_is_kept_though_nobody_runs_the_workflow(
    dbos_database_url: str, ledger: Path, database: Any
) -> None:
    here = Member(dbos_database_url, str(ledger))
    async with here.dbos:
        handle = await here.dbos.enqueue(
            "jobs", here.flows["job"].with_options(app_version="nobody's")
        )
        await database.execute(
            "update dbos.workflow_status set workflow_deadline_epoch_ms = "
            "(extract(epoch from clock_timestamp()) * 1000)::bigint - 1500"
        )
        with pytest.raises(WorkflowTimeoutError):
            await handle.get_result(timeout=PATIENCE)


# Who there is


async def test_the_executors_are_seen_with_what_they_run_until_they_are_gone(
    dbos_database_url: str, ledger: Path, database: Any, until: Until
) -> None:
    look = (
        "select executor_id, application_version, process_id, is_alive, workflows, "
        "last_seen_at > started_at - interval '1 second' from dbos.executors order by started_at"
    )
    async with (
        other(dbos_database_url, ledger) as first,
        other(dbos_database_url, ledger, version="2") as second,
    ):
        await first.start("sleeper", "s")
        assert [tuple(row) for row in await database.fetch(look)] == [
            (first.executor_id, "1", first.pid, True, 1, True),
            (second.executor_id, "2", second.pid, True, 0, True),
        ]
        async with Client(dbos_database_url) as client:
            listed = await client.list_executors()
        assert [(each.process_id, each.workflows) for each in listed] == [
            (first.pid, 1),
            (second.pid, 0),
        ]
        first.send(signal.SIGKILL)

        async def is_dead() -> bool:
            rows = await database.fetch(look)
            return [row["is_alive"] for row in rows] == [False, True]

        await until(is_dead)
        second.send(signal.SIGTERM)
        await second.process.wait()
        assert [row["executor_id"] for row in await database.fetch(look)] == [first.executor_id]


async def test_where_sessions_are_shared_a_row_is_the_lease(
    dbos_database_url: str,
    ledger: Path,
    database: Any,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def is_shared(*_: object) -> bool:
        return True

    monkeypatch.setattr(Database, "_shares_sessions", is_shared)
    one, two = (Member(dbos_database_url, str(ledger), lease=1) for _ in range(2))
    alive = "select count(*) from dbos.executors where is_alive"
    async with two.dbos:
        await one.dbos.launch()
        assert await database.fetchval(alive) == 2
        locks = "select count(*) from dbos.dbos_async_alive where backend is not null"
        assert await database.fetchval(locks) == 0
        await one.dbos.start_workflow(one.flows["sleeper"].with_options(workflow_id="s"))
        one.dbos.drop(Crashed("killed by the test"))
        await one.dbos.shutdown()

        async def is_taken_over() -> bool:
            return await database.fetchval(OWNER, "s") == two.dbos.executor_id

        await until(is_taken_over)
        assert await database.fetchval(alive) == 1
    assert caplog.text.count("gives every transaction another session") == 2
    assert await database.fetchval(alive) == 0


FORGETFUL = """
import asyncio, sys, time
from dbos_async import DBOS

async def launch():
    await DBOS("app", sys.argv[1], lease=1).launch()
    print("launched", flush=True)

asyncio.run(launch())
sys.stdin.read()
"""


async def test_an_app_that_is_never_shut_down_is_gone_with_its_loop(
    dbos_database_url: str, database: Any, until: Until
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORGETFUL, dbos_database_url, stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"launched\n"

    async def is_gone() -> bool:
        return not await database.fetchval("select exists (select from dbos.dbos_async_alive)")

    await until(is_gone)
    assert process.returncode is None
    process.kill()
    await process.wait()
