"""Whether recorded workflows would go their way on this code; nothing is executed or written."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from dbos_async import (
    DBOS,
    ConfigurationError,
    Queue,
    ReplayReport,
    Retry,
    Workflow,
    WorkflowNotFoundError,
)
from dbos_async.testing import crash_at

Body = Callable[["Shop", Any], Awaitable[Any]]


class Shop:
    """An app with one workflow of any body, whose steps leave a trace in a file."""

    def __init__(self, url: str, body: Body, trace: Path, **settings: Any) -> None:
        self.dbos = dbos = DBOS("shop", url, **{"app_version": "1", **settings})
        self.jobs: Queue = dbos.queue("jobs")
        self.attempts = 0

        @dbos.step(name="step")
        async def step(value: Any) -> Any:
            with trace.open("a") as file:
                file.write(f"{value}\n")
            return value

        @dbos.step(name="flaky", retry=Retry(max_attempts=3, interval=0))
        def flaky() -> int:
            self.attempts += 1
            with trace.open("a") as file:
                file.write("flaky\n")
            if self.attempts < 3:
                raise ValueError("not yet")
            return self.attempts

        @dbos.step(name="fail")
        async def fail(why: str) -> None:
            raise KeyError(why)

        @dbos.workflow(name="child")
        async def child(value: int) -> Any:
            return await step(value)

        @dbos.workflow(name="buy")
        async def buy(argument: Any = None) -> Any:
            return await body(self, argument)

        self.step, self.flaky, self.fail, self.child, self.buy = step, flaky, fail, child, buy


class Shops:
    """Records histories, and replays them."""

    def __init__(self, url: str, trace: Path) -> None:
        self.url = url
        self.trace = trace

    def of(self, body: Body, **settings: Any) -> Shop:
        return Shop(self.url, body, self.trace, **settings)

    async def record(self, body: Body, argument: Any = None, workflow_id: str = "w") -> None:
        """Run a workflow to its end, whatever that is."""
        shop = self.of(body)
        async with asyncio.timeout(20), shop.dbos:
            with contextlib.suppress(Exception):
                await shop.buy.with_options(workflow_id=workflow_id)(argument)

    async def begin(self, body: Body, checkpoint: int) -> None:
        """Run a workflow up to a checkpoint."""
        shop = self.of(body)
        with crash_at(checkpoint) as crash:
            async with asyncio.timeout(20), shop.dbos:
                await shop.buy.with_options(workflow_id="w")()
        assert crash.happened

    async def check(self, body: Body, **options: Any) -> ReplayReport:
        [report] = await self.of(body).dbos.check_replay(workflow_ids=["w"], **options)
        return report


@pytest.fixture
def shops(dbos_database_url: str, tmp_path: Path) -> Shops:
    (tmp_path / "trace").touch()
    return Shops(dbos_database_url, tmp_path / "trace")


TABLES = """
select table_name from information_schema.tables
where table_schema = 'dbos' and table_type = 'BASE TABLE'
"""


OURS = """
select exists (select from pg_stat_activity
                where datname = current_database() and application_name like 'dbos_async %')
"""


async def dumped(database: Any) -> dict[str, list[str]]:
    """Everything there is in the schema's tables, the place of the sequence too.

    Postgres takes its time to end the sessions of a process that has gone: it ends what they were
    at first, which may be a claim. Views would show the locks of those that ask now.
    """
    async with asyncio.timeout(20):
        while await database.fetchval(OURS):
            await asyncio.sleep(0.01)
    tables = [record["table_name"] for record in await database.fetch(TABLES)]
    dump = {
        table: [
            row["text"]
            for row in await database.fetch(f'select t::text as text from dbos."{table}" t')
        ]
        for table in tables
    }
    place = await database.fetchval("select last_value::text from dbos.workflow_order")
    return {table: sorted(rows) for table, rows in dump.items()} | {"workflow_order": [place]}


# Everything that a workflow can do.


async def everything(shop: Shop, argument: Any) -> Any:
    dbos = shop.dbos

    async def branch(number: int) -> Any:
        return [await shop.step(number), str(dbos.uuid4()), await shop.child(number)]

    results: list[Any] = [await shop.step("first"), await shop.flaky()]
    results += [str(dbos.uuid4()), dbos.random().random(), (await dbos.now()).isoformat()]
    results += await asyncio.gather(branch(1), branch(2), shop.step("beside"))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(n)) for n in (3, 4)]
    results += [task.result() for task in tasks]
    try:
        await shop.fail("as always")
    except KeyError as exc:
        results.append(str(exc))
    await dbos.sleep(0.2)
    results.append(await dbos.patch("new"))
    await dbos.deprecate_patch("old")
    started = await dbos.start_workflow(shop.child, 5)
    queued = await shop.jobs.enqueue(shop.child, 6)
    unique = await shop.jobs.enqueue(shop.child.with_options(deduplication_id="d"), 7)
    many = await shop.jobs.enqueue_many([shop.child.bind(n) for n in (8, 9)])
    results += [await handle.get_result() for handle in (started, queued, unique, *many)]
    bounced = await dbos.debouncer(shop.child, period=0.01).debounce("key", 10)
    results.append(await bounced.get_result())
    results.append((await started.get_status()).status)
    results.append(len(await dbos.list_steps(started.workflow_id)))
    results.append(len(await dbos.list_workflows(workflow_ids=[started.workflow_id])))
    results.append([queue.name for queue in await dbos.list_queues()])
    results.append(await shop.jobs.depth())
    await shop.jobs.pause()
    await shop.jobs.resume()
    await dbos.cancel_workflow(started.workflow_id)
    results.append([version.name for version in await dbos.list_application_versions()])
    results.append(await asyncio.wait_for(shop.step("waited for"), 10))
    results.append(dbos.workflow_id)
    return results


async def test_everything_replays_from_the_record_and_nothing_is_done(
    shops: Shops, database: Any
) -> None:
    await shops.record(everything)
    before, trace = await dumped(database), shops.trace.read_text()
    report = await shops.check(everything)
    assert report == ReplayReport(
        workflow_id="w", name="buy", status="SUCCESS", verdict="ok", detail=""
    )
    reports = await shops.of(everything).dbos.check_replay()
    assert [report.detail for report in reports if not report.is_ok] == []
    assert len(reports) == len(before["workflow_status"]) > 10
    assert await dumped(database) == before
    assert shops.trace.read_text() == trace


@pytest.mark.parametrize("checkpoint", [1, 2, 3, 5, 8, 11, 14, 17, 20, 23, 26])
async def test_an_unfinished_one_replays_to_where_it_goes_on(
    shops: Shops, database: Any, checkpoint: int
) -> None:
    await shops.begin(everything, checkpoint)
    before, trace = await dumped(database), shops.trace.read_text()
    report = await shops.check(everything)
    assert (report.verdict, report.status) == ("ok", "PENDING"), report.detail
    assert report.detail.startswith("goes on with ")
    assert await dumped(database) == before
    assert shops.trace.read_text() == trace


@pytest.fixture
async def reader(dbos_database_url: str) -> AsyncIterator[str]:
    """The URL of a role that may only read."""
    owner = await asyncpg.connect(dbos_database_url)
    name = f"reader_{uuid4().hex[:12]}"
    try:
        if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            pytest.skip("making roles takes a superuser")
        await owner.execute(f"""
            create role {name} login password '{name}';
            grant usage on schema dbos to {name};
            grant select on all tables in schema dbos to {name}
        """)
        parts = urlsplit(dbos_database_url)
        host = parts.netloc.rpartition("@")[2]
        yield f"{parts.scheme}://{name}:{name}@{host}{parts.path}?{parts.query}".rstrip("?")
        await owner.execute(f"drop owned by {name} cascade; drop role {name}")
    finally:
        await owner.close()


async def test_a_role_that_may_only_read_is_enough(shops: Shops, reader: str) -> None:
    await shops.record(everything)
    reports = await Shop(reader, everything, shops.trace).dbos.check_replay()
    assert {report.verdict for report in reports} == {"ok"}


async def test_a_launched_app_checks_beside_its_own_work(shops: Shops) -> None:
    await shops.record(everything)
    shop = shops.of(everything)
    async with shop.dbos:
        async with asyncio.TaskGroup() as group:
            checks = [group.create_task(shop.dbos.check_replay()) for _ in range(2)]
            work = group.create_task(shop.child(1))
        assert work.result() == 1
        assert {report.verdict for check in checks for report in check.result()} == {"ok"}
        assert await shop.child(2) == 2


# What has changed.


async def old(shop: Shop, argument: Any) -> Any:
    return [await shop.step("a"), await shop.step("b")]


def steps(*labels: str) -> Body:
    async def body(shop: Shop, argument: Any) -> Any:
        return [await shop.step(label) for label in labels]

    return body


@pytest.mark.parametrize("checkpoint", [None, 3])
async def test_another_step_is_a_divergence_with_the_expected_and_the_found_one(
    shops: Shops, checkpoint: int | None
) -> None:
    await (shops.begin(old, checkpoint) if checkpoint else shops.record(old))

    async def other(shop: Shop, argument: Any) -> Any:
        return [await shop.step("a"), await shop.flaky()]

    report = await shops.check(other)
    assert report.verdict == "diverged"
    assert "diverged at step 2: 'step' is recorded, now 'flaky' is called" in report.detail


async def test_other_arguments_are_a_divergence(shops: Shops) -> None:
    await shops.record(old)
    report = await shops.check(steps("a", "c"))
    assert report.verdict == "diverged"
    assert "'step' with its arguments is recorded" in report.detail


async def test_a_divergence_that_the_body_catches_is_one(shops: Shops) -> None:
    await shops.record(old)

    async def careless(shop: Shop, argument: Any) -> Any:
        with contextlib.suppress(Exception):
            await shop.step("c")
        return ["a", "b"]

    report = await shops.check(careless)
    assert report.verdict == "diverged"
    assert "diverged at step 1" in report.detail


async def test_a_step_too_many_is_one_for_a_finished_workflow_only(shops: Shops) -> None:
    await shops.record(old)
    report = await shops.check(steps("a", "b", "c"))
    assert report.verdict == "diverged"
    assert report.detail == "SUCCESS is recorded here, and now it calls 'step' (step 3)"


@pytest.mark.parametrize("checkpoint", [None, 3])
async def test_a_step_too_few_is_one_for_all(shops: Shops, checkpoint: int | None) -> None:
    await (shops.begin(old, checkpoint) if checkpoint else shops.record(old))
    report = await shops.check(steps("a"))
    assert report.verdict == "diverged"
    assert report.detail == "'step' (step 2) is recorded, and not called any more: it ends"


async def test_another_result_is_told_with_both(shops: Shops) -> None:
    await shops.record(old)

    async def other(shop: Shop, argument: Any) -> Any:
        return [*await old(shop, argument), "c"]

    report = await shops.check(other)
    assert report.verdict == "other_result"
    assert report.detail == ('SUCCESS is recorded, ["a","b"]; now it is SUCCESS, ["a","b","c"]')


async def test_an_error_instead_of_a_result_is_told(shops: Shops) -> None:
    await shops.record(old)

    async def failing(shop: Shop, argument: Any) -> Any:
        raise ValueError(f"no {await old(shop, argument)}")

    report = await shops.check(failing)
    assert report.verdict == "other_result"
    assert report.detail.endswith("now it is ERROR, ValueError: no ['a', 'b']")


async def test_the_recorded_error_is_fine_and_another_one_is_told(shops: Shops) -> None:
    def raising(why: str) -> Body:
        async def body(shop: Shop, argument: Any) -> Any:
            await shop.step("a")
            raise LookupError(why)

        return body

    await shops.record(raising("gone"))
    assert (await shops.check(raising("gone"))).is_ok
    report = await shops.check(raising("lost"))
    assert report.verdict == "other_result"
    assert report.detail == (
        "ERROR is recorded, LookupError: gone; now it is ERROR, LookupError: lost"
    )


async def test_an_unfinished_one_that_would_fail_now_is_told(shops: Shops) -> None:
    await shops.begin(old, 2)

    async def failing(shop: Shop, argument: Any) -> Any:
        await shop.step("a")
        raise TypeError("step() takes no arguments")

    report = await shops.check(failing)
    assert report.verdict == "other_result"
    assert (
        report.detail == "it has not ended, and now it fails: TypeError: step() takes no arguments"
    )


async def test_an_unfinished_one_that_was_about_to_end_is_fine(shops: Shops) -> None:
    async def failing(shop: Shop, argument: Any) -> Any:
        await shop.fail("no")

    await shops.begin(failing, 2)
    report = await shops.check(failing)
    assert (report.verdict, report.detail) == ("ok", "ends with KeyError: 'no'")


async def test_a_workflow_that_this_code_does_not_have_is_told(shops: Shops) -> None:
    await shops.record(old)
    [report] = await DBOS("shop", shops.url, app_version="1").check_replay(workflow_ids=["w"])
    assert report.verdict == "unknown_workflow"
    assert report.detail == "this app has no workflow named 'buy'"


async def test_arguments_that_do_not_fit_are_told(shops: Shops) -> None:
    await shops.record(old, "an argument")
    dbos = DBOS("shop", shops.url, app_version="1")

    @dbos.workflow(name="buy")
    async def buy(argument: int) -> Any:
        return None

    [report] = await dbos.check_replay(workflow_ids=["w"])
    assert report.verdict == "arguments_do_not_fit"
    assert "argument" in report.detail

    dbos = DBOS("shop", shops.url, app_version="1")

    @dbos.workflow(name="buy")
    async def buy_more() -> Any:
        return None

    [report] = await dbos.check_replay(workflow_ids=["w"])
    assert report.verdict == "arguments_do_not_fit"
    assert "too many positional arguments" in report.detail


async def test_a_body_that_neither_steps_nor_ends_is_told(shops: Shops) -> None:
    await shops.record(old)

    async def waiting(shop: Shop, argument: Any) -> Any:
        await old(shop, argument)
        await asyncio.Event().wait()

    report = await shops.check(waiting, timeout=0.2)
    assert (report.verdict, report.detail) == ("stuck", "within 0.2 s no step came, and no end")


async def test_a_patch_lets_old_histories_pass(shops: Shops) -> None:
    async def patched(shop: Shop, argument: Any) -> Any:
        results = [await shop.step("a")]
        if await shop.dbos.patch("x"):
            results.append(await shop.step("x"))
        results.append(await shop.step("b"))
        if await shop.dbos.patch("at the end"):
            results.append(await shop.step("y"))
        return results

    await shops.record(old)
    assert (await shops.check(patched)).is_ok
    assert not (await shops.check(steps("a", "x", "b"))).is_ok


async def test_a_set_may_come_in_another_order(shops: Shops) -> None:
    class Ordered(set[str]):
        """A set that is walked in the order in which it was made."""

        def __init__(self, *elements: str) -> None:
            super().__init__(elements)
            self._order = elements

        def __iter__(self) -> Iterator[str]:
            return iter(self._order)

    def returning(*elements: str) -> tuple[DBOS, Workflow[[], set[str]]]:
        dbos = DBOS("shop", shops.url, app_version="1")

        @dbos.workflow(name="buy")
        async def buy() -> set[str]:
            return Ordered(*elements)

        return dbos, buy

    dbos, buy = returning("a", "b")
    async with dbos:
        await buy.with_options(workflow_id="w")()
    for elements, is_ok in ((("b", "a"), True), (("a", "c"), False)):
        [report] = await returning(*elements)[0].check_replay(workflow_ids=["w"])
        assert report.is_ok is is_ok


async def test_a_step_that_was_in_flight_when_a_workflow_failed_is_no_divergence(
    shops: Shops,
) -> None:
    def racing(*, is_first: bool) -> Body:
        async def body(shop: Shop, argument: Any) -> Any:
            async def slow() -> None:
                if is_first:
                    await asyncio.Event().wait()
                await shop.step("slow")

            await asyncio.gather(slow(), shop.fail("fast"))

        return body

    await shops.record(racing(is_first=True))
    assert (await shops.check(racing(is_first=False))).is_ok


async def test_the_ends_of_a_body_run_no_steps(shops: Shops) -> None:
    async def careful(shop: Shop, argument: Any) -> Any:
        try:
            return await old(shop, argument)
        finally:
            await shop.step("clean up")

    await shops.begin(careful, 2)
    trace = shops.trace.read_text()
    assert (await shops.check(careful)).detail == "goes on with 'step' (step 2)"
    assert shops.trace.read_text() == trace


# Which ones.


async def test_a_sample_is_of_the_newest_that_fit(shops: Shops) -> None:
    for number in range(4):
        await shops.record(old if number != 2 else everything, workflow_id=f"w{number}")
    dbos = shops.of(old).dbos
    reports = await dbos.check_replay(sample=2, name="buy")
    assert [(report.workflow_id, report.verdict) for report in reports] == [
        ("w3", "ok"),
        ("w2", "diverged"),
    ]
    reports = await dbos.check_replay(name="child", status=["SUCCESS"], sample=3)
    assert [report.verdict for report in reports] == ["ok"] * 3
    assert await dbos.check_replay(status="CANCELLED") == []


async def test_a_sample_leaves_other_apps_out(shops: Shops, dbos_database_url: str) -> None:
    await shops.record(old)
    bar = DBOS("bar", dbos_database_url, app_version="2")

    @bar.workflow
    async def mix() -> None:
        pass

    async with bar:
        for _ in range(3):
            await mix()
    [report] = await shops.of(old).dbos.check_replay(sample=1)
    assert report.workflow_id == "w"


async def test_bad_questions_are_refused(shops: Shops) -> None:
    await shops.record(old)
    dbos = shops.of(old).dbos
    with pytest.raises(WorkflowNotFoundError, match="nobody"):
        await dbos.check_replay(workflow_ids=["w", "nobody"])
    with pytest.raises(ValueError, match="sample must be at least 1"):
        await dbos.check_replay(sample=0)
    with pytest.raises(TypeError, match="nmae"):
        await dbos.check_replay(nmae="buy")  # type: ignore[call-arg]


async def test_a_workflow_cannot_check(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url)

    @dbos.workflow
    async def check() -> int:
        return len(await dbos.check_replay())

    async with dbos:
        with pytest.raises(ConfigurationError, match="call it from a test or a script"):
            await check()


async def test_a_check_leaves_the_loop_as_it_was(shops: Shops) -> None:
    await shops.record(old)
    tasks = asyncio.all_tasks()
    await shops.check(old)
    assert asyncio.get_running_loop().get_task_factory() is None
    assert asyncio.all_tasks() == tasks
