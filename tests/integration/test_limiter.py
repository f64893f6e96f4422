"""Limits on the calls of steps: rates and concurrency, in one process and two."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from bench.fleet import most_in_a_window
from dbos_async import DBOS, ConfigurationError, Limiter, RateLimit, Retry, Router
from dbos_async._engine import limits
from dbos_async._store.notifier import Notifier

PATIENCE = 60.0


class Api:
    """An outside service that notes when it was called, and how many calls it had at once."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.began: list[float] = []
        self.inside = 0
        self.most = 0

    async def call(self, number: int = 0) -> int:
        self.began.append(time.monotonic() * 1000)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(self.pause)
        finally:
            self.inside -= 1
        return number


class Process:
    """An app with a step that calls the service."""

    def __init__(self, url: str, api: Api, limiter: Limiter) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1")
        self.step = step = dbos.step(name="call", limiter=limiter)(api.call)

        @dbos.workflow(name="calls")
        async def calls(count: int) -> list[int]:
            return await asyncio.gather(*[step(i) for i in range(count)])

        self.calls = calls

    @asynccontextmanager
    async def endlessly(self, callers: int) -> AsyncIterator[None]:
        """So many always wait for their turn; the block begins when one has had it."""
        begun = asyncio.Event()
        is_over = False

        async def caller() -> None:
            while not is_over:
                await self.step()
                begun.set()

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
            await begun.wait()
            yield
            is_over = True


@pytest.fixture
async def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("shop", dbos_database_url, app_version="1")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shutdown gives back is counted: let it take the time that it takes."""
    monkeypatch.setattr(limits, "FAREWELL", PATIENCE)


async def test_no_window_holds_more_calls_than_the_rate_limit(dbos_database_url: str) -> None:
    api = Api()
    process = Process(dbos_database_url, api, Limiter("api", rate_limit=RateLimit(20, per=0.5)))
    async with process.dbos, asyncio.timeout(PATIENCE):
        assert await process.calls(70) == list(range(70))
    assert most_in_a_window(api.began, 500) <= 20


async def test_the_whole_allowance_may_be_used_at_once_and_no_more(dbos_database_url: str) -> None:
    api = Api()
    process = Process(dbos_database_url, api, Limiter("api", rate_limit=RateLimit(20, per=1000)))
    async with process.dbos, asyncio.timeout(PATIENCE):
        assert await process.calls(20) == list(range(20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.step(20), 0.1)
    assert len(api.began) == 20


async def test_two_processes_share_a_rate_limit_by_name(dbos_database_url: str) -> None:
    api = Api()
    limiter = Limiter("api", rate_limit=RateLimit(20, per=0.5))
    one, other = (Process(dbos_database_url, api, limiter) for _ in range(2))
    async with one.dbos, other.dbos, asyncio.timeout(PATIENCE):
        await asyncio.gather(one.calls(40), other.calls(30))
    assert len(api.began) == 70
    assert most_in_a_window(api.began, 500) <= 20


async def test_a_restart_gives_no_tokens_back(dbos_database_url: str) -> None:
    api = Api()
    for _ in range(3):
        process = Process(dbos_database_url, api, Limiter("api", rate_limit=RateLimit(10, per=1)))
        async with process.dbos, asyncio.timeout(PATIENCE):
            await process.calls(9)
    assert len(api.began) == 27
    assert most_in_a_window(api.began, 1000) <= 10


async def test_a_shutdown_gives_unused_tokens_and_permits_back(
    dbos_database_url: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    limiter = Limiter("api", rate_limit=RateLimit(1000, per=100), concurrency=50)
    process = Process(dbos_database_url, Api(), limiter)
    tokens_out = "select coalesce(sum(tokens), 0) from dbos.dbos_async_leases"
    async with process.dbos, asyncio.timeout(PATIENCE):
        await process.calls(30)
        while await database.fetchval(tokens_out) == 30:  # more are leased ahead
            await asyncio.sleep(0.01)
    assert await database.fetchval(tokens_out) == 30
    assert await database.fetchval("select count(*) from dbos.dbos_async_permits") == 0


async def test_most_calls_cost_no_round_trip(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanges: list[Any] = []
    exchange = limits.limiters.exchange

    async def counted(database: Any, asked: Any) -> Any:
        exchanges.append(asked)
        return await exchange(database, asked)

    monkeypatch.setattr(limits.limiters, "exchange", counted)
    limiter = Limiter("api", rate_limit=RateLimit(100_000, per=60), concurrency=100)
    process = Process(dbos_database_url, Api(), limiter)
    async with process.dbos, asyncio.timeout(PATIENCE):
        for _ in range(200):
            await process.step(1)
    assert len(exchanges) < 60


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "no news"])
async def test_two_processes_share_a_concurrency_limit_and_neither_starves(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    if not is_told:
        monkeypatch.setattr(Notifier, "post", lambda *_: None)
    api = Api(0.01)
    limiter = Limiter("api", concurrency=4)
    busy, other = (Process(dbos_database_url, api, limiter) for _ in range(2))
    async with busy.dbos, other.dbos, busy.endlessly(20), asyncio.timeout(PATIENCE):
        assert await other.calls(5) == list(range(5))
    assert api.most == 4


async def test_one_permit_goes_round_between_two_processes(dbos_database_url: str) -> None:
    api = Api(0.01)
    limiter = Limiter("api", concurrency=1)
    one, other = (Process(dbos_database_url, api, limiter) for _ in range(2))
    async with one.dbos, other.dbos, one.endlessly(5), asyncio.timeout(PATIENCE):
        await other.calls(3)
    assert api.most == 1


async def test_steps_with_one_limiter_share_it(dbos: DBOS) -> None:
    api = Api(0.01)
    limiter = Limiter("api", concurrency=2)
    one = dbos.step(api.call, name="one", limiter=limiter)
    other = dbos.step(api.call, name="other").with_options(limiter=Limiter("api", concurrency=2))

    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(*[step(i) for i in range(10) for step in (one, other)])

    async with dbos, asyncio.timeout(PATIENCE):
        await workflow()
    assert (api.most, len(api.began)) == (2, 20)


async def test_sync_steps_take_turns_too(dbos: DBOS) -> None:
    lock = threading.Lock()
    inside: list[int] = [0]
    most: list[int] = [0]

    @dbos.step(limiter=Limiter("api", rate_limit=RateLimit(100, per=1), concurrency=2))
    def call() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        with lock:
            inside[0] -= 1

    @dbos.workflow()
    async def workflow() -> None:
        await asyncio.gather(*[call() for _ in range(12)])

    async with dbos, asyncio.timeout(PATIENCE):
        await workflow()
    assert most[0] == 2


async def test_a_thread_whose_step_timed_out_keeps_its_permit_until_it_ends(dbos: DBOS) -> None:
    release, inside = threading.Event(), threading.Event()
    limiter = Limiter("api", concurrency=1)

    @dbos.step(limiter=limiter, timeout=0.05)
    def stuck() -> None:
        inside.set()
        release.wait(PATIENCE)

    @dbos.step(limiter=limiter)
    async def call() -> bool:
        return release.is_set()

    @dbos.workflow()
    async def workflow() -> bool:
        with pytest.raises(TimeoutError):
            await stuck()
        asyncio.get_running_loop().call_later(0.3, release.set)
        return await call()

    async with dbos, asyncio.timeout(PATIENCE):
        assert await workflow()


async def test_each_attempt_has_a_turn_of_its_own_and_a_replay_none(
    lives: Any, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    failures = iter([OSError("1"), OSError("2")])

    def declare(life: Any) -> Any:
        @life.dbos.step(
            limiter=Limiter("api", rate_limit=RateLimit(100, per=1000)),
            retry=Retry(max_attempts=5, interval=0.01),
        )
        async def call() -> int:
            for failure in failures:
                raise failure
            return life.number

        @life.dbos.workflow(name="workflow")
        async def workflow() -> int:
            result: int = await call()
            await life.halt()
            return result

        return workflow

    assert await lives.both(declare) == 1
    assert await database.fetchval("select sum(tokens) from dbos.dbos_async_leases") == 3


async def test_a_cancelled_workflow_leaves_the_line_and_gives_its_turn_on(dbos: DBOS) -> None:
    release, inside = asyncio.Event(), asyncio.Event()

    @dbos.step(limiter=Limiter("api", concurrency=1))
    async def call() -> None:
        inside.set()
        await release.wait()

    @dbos.workflow()
    async def workflow() -> None:
        await call()

    async with dbos, asyncio.timeout(PATIENCE):
        first = await dbos.start_workflow(workflow)
        await inside.wait()
        waiting = await dbos.start_workflow(workflow)
        last = await dbos.start_workflow(workflow)
        assert await dbos.cancel_workflows(workflow_ids=[waiting.workflow_id])
        release.set()
        await first.get_result()
        await last.get_result()


async def test_the_wait_is_seen_in_the_timing_and_is_no_part_of_the_timeout(dbos: DBOS) -> None:
    limiter = Limiter("api", rate_limit=RateLimit(1, per=2))  # the first takes a while to record

    @dbos.step(limiter=limiter, timeout=0.2)
    async def call() -> None: ...

    @dbos.workflow()
    async def workflow() -> None:
        await call()
        await call()

    async with dbos, asyncio.timeout(PATIENCE):
        handle = await dbos.start_workflow(workflow)
        await handle.get_result()
        steps = await dbos.list_steps(handle.workflow_id)
    assert steps[1].started_at is not None
    assert steps[1].completed_at is not None
    assert (steps[1].completed_at - steps[1].started_at).total_seconds() >= 0.4


async def test_calls_of_one_process_are_served_in_order(dbos_database_url: str) -> None:
    api = Api()
    order: list[int] = []
    process = Process(dbos_database_url, api, Limiter("api", rate_limit=RateLimit(10, per=0.2)))

    async def call(number: int) -> None:
        order.append(number)

    step = process.dbos.step(call, limiter=Limiter("api", rate_limit=RateLimit(10, per=0.2)))
    async with process.dbos, asyncio.timeout(PATIENCE):
        await asyncio.gather(*[step(i) for i in range(40)])
    assert order == list(range(40))


async def test_a_step_outside_a_workflow_waits_its_turn_while_the_app_is_launched(
    dbos: DBOS,
) -> None:
    api = Api(0.01)
    step = dbos.step(api.call, limiter=Limiter("api", concurrency=2))
    async with dbos, asyncio.timeout(PATIENCE):
        await asyncio.gather(*[step(i) for i in range(6)])
    assert api.most == 2
    await asyncio.gather(*[step(i) for i in range(6)])
    assert api.most == 6


async def test_the_limits_hold_after_all_connections_were_lost(
    dbos_database_url: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    api = Api()
    process = Process(dbos_database_url, api, Limiter("api", rate_limit=RateLimit(20, per=0.5)))
    async with process.dbos, asyncio.timeout(PATIENCE):
        calls = asyncio.ensure_future(process.calls(80))
        while len(api.began) < 30:
            await asyncio.sleep(0.01)
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        await calls
    assert most_in_a_window(api.began, 500) <= 20


async def test_one_name_has_one_set_of_limits_in_an_app(dbos: DBOS) -> None:
    dbos.step(Api().call, limiter=Limiter("api", concurrency=2))
    with pytest.raises(ConfigurationError, match=r"'api'.*concurrency=3.*concurrency=2"):
        dbos.step(Api().call, limiter=Limiter("api", concurrency=3))
    router = Router()
    router.step(Api().call, limiter=Limiter("api", concurrency=4))
    dbos.include(router)
    with pytest.raises(ConfigurationError, match="'api'"):
        await dbos.launch()


@pytest.mark.parametrize(
    ("error", "name", "values"),
    [
        (ValueError, "", {"concurrency": 1}),
        (TypeError, 1, {"concurrency": 1}),
        (ValueError, "api", {}),
        (ValueError, "api", {"concurrency": 0}),
        (TypeError, "api", {"concurrency": True}),
        (TypeError, "api", {"rate_limit": 10}),
        (ValueError, "a\0i", {"concurrency": 1}),
    ],
)
def test_a_limiter_that_cannot_work_is_refused(
    error: type[Exception], name: Any, values: dict[str, Any]
) -> None:
    with pytest.raises(error):
        Limiter(name, **values)


async def test_a_step_takes_no_other_limiter(dbos: DBOS) -> None:
    wrong: Any = RateLimit(1, per=1)
    with pytest.raises(TypeError, match="limiter is a Limiter"):
        dbos.step(limiter=wrong)
