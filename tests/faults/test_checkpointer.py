"""The checkpointer's promises: isolated, idempotent, fenced, bounded."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from dbos_async import DatabaseRefusedError, errors
from dbos_async._config import Settings
from dbos_async._store.batches import MAX_BYTES, Waiting, taken
from dbos_async._store.checkpointer import Checkpointer
from dbos_async._store.database import Database
from dbos_async._store.landings import Landing
from dbos_async._store.records import CompletionWrite, Fence, Recorded, StepWrite, WorkflowWrite

OWNER = "owner-1"


class Bench:
    """A checkpointer, and a connection beside it that looks at what it did."""

    def __init__(self, database: Database, checkpointer: Checkpointer, url: str) -> None:
        self.database = database
        self.checkpointer = checkpointer
        self.url = url

    async def started(self, *ids: str) -> None:
        await self.together(workflow(i) for i in ids)

    async def together(self, writes: Iterable[object]) -> list[Landing | BaseException]:
        """What becomes of writes that arrive at the same moment."""
        commits = [self.checkpointer.commit(write) for write in writes]  # type: ignore[arg-type]  # of a union
        async with asyncio.timeout(20):
            return await asyncio.gather(*commits, return_exceptions=True)

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        async with connected(self.url) as connection:
            return await connection.fetch(query, *values)

    async def steps(self) -> list[tuple[str, int, str]]:
        rows = await self.fetch(
            "select workflow_uuid, function_id, coalesce(step_key, function_id::text) "
            "from dbos.operation_outputs order by 1, 2"
        )
        return [tuple(row) for row in rows]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def bench(dbos_database_url: str) -> AsyncIterator[Bench]:
    database = Database(Settings(name="bench", database_url=dbos_database_url), pool_size=2)
    checkpointer = Checkpointer(database, application="bench")
    async with database.open(), checkpointer.open():
        yield Bench(database, checkpointer, dbos_database_url)


def workflow(workflow_id: str, creator: str = "creator") -> WorkflowWrite:
    return WorkflowWrite(
        workflow_id=workflow_id,
        status="PENDING",
        name="w",
        inputs="{}",
        executor_id="e",
        app_version="1",
        owner=OWNER,
        creator=creator,
    )


def step(
    workflow_id: str,
    position: int,
    *,
    key: str | None = None,
    output: str = "1",
    owner: str = OWNER,
) -> StepWrite:
    return StepWrite(workflow_id, position, "s", output, None, None, 1, 2, key, None, owner)


def completion(workflow_id: str, owner: str = OWNER) -> CompletionWrite:
    return CompletionWrite(workflow_id, owner, "SUCCESS", "1", None)


@pytest.mark.parametrize("place", [0, 1, 30, 60])
async def test_a_refused_write_fails_alone_and_its_batch_lands(bench: Bench, place: int) -> None:
    ids = [f"w{i:02}" for i in range(61)]
    await bench.started(*ids)
    writes = [step(i, 1) for i in ids]
    writes[place].output = "a NUL: \x00"
    landings = await bench.together(writes)
    assert isinstance(landings[place], DatabaseRefusedError)
    assert [landing for i, landing in enumerate(landings) if i != place] == [None] * 60
    assert [row[0] for row in await bench.steps()] == [i for i in ids if i != ids[place]]


async def test_a_locked_row_holds_up_only_its_own_workflow(bench: Bench) -> None:
    ids = [f"w{i:02}" for i in range(40)]
    await bench.started(*ids)
    async with connected(bench.url) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(
            "select from dbos.workflow_status where workflow_uuid = 'w07' for update"
        )
        held = asyncio.ensure_future(bench.checkpointer.commit(step("w07", 1)))
        free = [step(i, 1) for i in ids if i != "w07"]
        assert await bench.together(free) == [None] * 39
        assert not held.done()
        assert await bench.together(completion(one.workflow_id) for one in free) == [None] * 39
        assert not held.done()
        await transaction.rollback()
        async with asyncio.timeout(20):
            assert await held is None
    assert len(await bench.steps()) == 40


async def test_two_locked_rows_do_not_wait_for_each_other(bench: Bench) -> None:
    await bench.started("a", "b")
    async with connected(bench.url) as long, connected(bench.url) as short:
        for holder, row in ((long, "a"), (short, "b")):
            await holder.execute("begin")
            await holder.execute(
                "select from dbos.workflow_status where workflow_uuid = $1 for update", row
            )
        first = asyncio.ensure_future(bench.checkpointer.commit(step("a", 1)))
        second = asyncio.ensure_future(bench.checkpointer.commit(step("b", 1)))
        async with asyncio.timeout(20):
            while len(bench.checkpointer._aside) < 2:
                await asyncio.sleep(0.01)
            await short.execute("rollback")
            assert await second is None
            assert not first.done()
            await long.execute("rollback")
            assert await first is None


async def test_nothing_lands_under_another_owner(bench: Bench) -> None:
    await bench.started("w", "x")
    await bench.fetch(
        "update dbos.workflow_status set owner_xid = 'other' where workflow_uuid = 'w'"
    )
    lost, landed = await bench.together([step("w", 1), step("x", 1)])
    assert lost is Fence.LOST
    assert landed is not Fence.LOST
    assert await bench.together([completion("w"), completion("x")]) == [Fence.LOST, None]
    assert await bench.together([step("x", 2)]) == [Fence.LOST], "it has ended"
    assert await bench.steps() == [("x", 1, "1")]
    rows = await bench.fetch("select status from dbos.workflow_status order by workflow_uuid")
    assert [row[0] for row in rows] == ["PENDING", "SUCCESS"]


@pytest.mark.parametrize("write", [step("w", 1), completion("w")])
async def test_a_zombie_that_waits_for_the_takeovers_lock_lands_nothing(
    bench: Bench, write: StepWrite | CompletionWrite
) -> None:
    await bench.started("w")
    async with connected(bench.url) as taker:
        await taker.execute("begin")
        await taker.execute("update dbos.workflow_status set owner_xid = 'other'")
        zombie = asyncio.ensure_future(bench.checkpointer.commit(write))
        async with asyncio.timeout(20):
            while not await bench.fetch(
                "select from pg_stat_activity where wait_event_type = 'Lock' "
                "and datname = current_database()"
            ):
                await asyncio.sleep(0.005)
            await taker.execute("commit")
            assert await zombie is Fence.LOST
    assert await bench.steps() == []


async def test_the_record_wins_over_what_is_in_hand(bench: Bench) -> None:
    await bench.started("w")
    assert await bench.together([step("w", 1, output='"first"')]) == [None]
    (landing,) = await bench.together([step("w", 1, output='"second"')])
    assert isinstance(landing, Recorded)
    assert landing.output == '"first"'


async def test_a_conflict_on_the_number_alone_is_renumbered(bench: Bench) -> None:
    await bench.started("w")
    assert await bench.together([step("w", 1), step("w", 2, key="1.1.1")]) == [None, None]
    landings = await bench.together([step("w", 2, key="1.2.1"), step("w", 2)])
    assert not any(isinstance(one, Fence | BaseException) for one in landings)
    steps = await bench.steps()
    assert sorted(key for _, _, key in steps) == ["1", "1.1.1", "1.2.1", "2"]
    assert [position for _, position, _ in steps] == [1, 2, 3, 4]


async def test_a_batch_sent_twice_lands_once(bench: Bench) -> None:
    await bench.started("a", "b")
    writes = [workflow("c"), step("a", 1), step("a", 2), completion("b")]
    assert await bench.together(writes) == [None] * 4
    again = await bench.together(writes)
    assert again[0] is None
    assert again[3] is None
    assert all(isinstance(landing, Recorded) for landing in again[1:3])
    assert len(await bench.steps()) == 2


async def test_a_cancelled_callers_write_still_happens(bench: Bench) -> None:
    await bench.started("w")
    caller = asyncio.ensure_future(bench.checkpointer.commit(step("w", 1)))
    await asyncio.sleep(0)
    caller.cancel()
    assert await bench.together([step("w", 2)]) == [None]
    assert len(await bench.steps()) == 2


async def test_a_write_over_16_mib_goes_alone(bench: Bench) -> None:
    big = "1" * (MAX_BYTES + 1)
    writes = [step("w", 1), step("w", 2, output=big), step("w", 3), step("w", 4)]
    loop = asyncio.get_running_loop()
    waiting = deque(Waiting(write, loop.create_future()) for write in writes)
    batches = []
    while waiting:
        batches.append([one.write.position for one in taken(waiting, 1000)])
    assert batches == [[1], [2], [3, 4]]
    await bench.started("w")
    assert await bench.together(writes) == [None] * 4
    rows = await bench.fetch("select length(output) from dbos.operation_outputs order by 1 desc")
    assert rows[0][0] == len(big)


async def test_callers_do_not_wait_for_ever_when_the_checkpointer_ends(
    dbos_database_url: str,
) -> None:
    database = Database(Settings(name="bench", database_url=dbos_database_url), pool_size=1)
    checkpointer = Checkpointer(database, application="bench")
    async with connected(dbos_database_url) as other, database.open():
        async with checkpointer.open():
            await checkpointer.commit(workflow("w"))
            await other.execute("begin")
            await other.execute("select from dbos.workflow_status for update")
            held = asyncio.ensure_future(checkpointer.commit(step("w", 1)))
            await asyncio.sleep(0)
        with pytest.raises(errors.DatabaseLostError):
            async with asyncio.timeout(20):
                await held
