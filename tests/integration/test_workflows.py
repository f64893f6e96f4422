"""Workflows: awaited, started, nested, attached to, timed out, cancelled; on instances too."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    Workflow,
    WorkflowCancelledError,
    WorkflowConflictError,
    WorkflowTimeoutError,
)


@pytest.fixture
def dbos(dbos_database_url: str) -> DBOS:
    return DBOS("flows", dbos_database_url)


async def status_of(dbos: DBOS, workflow_id: str) -> str:
    return (await (await dbos.retrieve_workflow(workflow_id)).get_status()).status


async def test_a_workflow_is_awaited_like_the_function_it_was(dbos: DBOS) -> None:
    @dbos.workflow
    async def greet(name: str, *names: str, greeting: str = "hello", **more: int) -> str:
        return f"{greeting} {name} {names} {more}"

    async with dbos:
        assert await greet("ann") == "hello ann () {}"
        assert await greet("ann", "ben", greeting="hi", x=1) == "hi ann ('ben',) {'x': 1}"
        with pytest.raises(TypeError, match="greet"):
            await greet()  # type: ignore[call-arg]  # that is the point
        rows = await dbos.list_workflows()
    assert [row.status for row in rows] == ["SUCCESS"] * 2
    assert rows[0].name == greet.__qualname__  # type: ignore[attr-defined]  # like a function's
    assert rows[0].input is not None
    assert (rows[0].input.args, rows[0].input.kwargs) == (
        ("ann", "ben"),
        {"greeting": "hi", "x": 1},
    )


async def test_what_a_workflow_raises_reaches_whoever_awaits_it(dbos: DBOS) -> None:
    @dbos.workflow
    async def fail() -> None:
        raise LookupError("not here")

    async with dbos:
        with pytest.raises(LookupError, match="not here"):
            await fail()
        handle = await dbos.start_workflow(fail)
        with pytest.raises(LookupError, match="not here"):
            await handle.get_result()
        assert await status_of(dbos, handle.workflow_id) == "ERROR"


async def test_a_started_workflow_runs_in_the_background(dbos: DBOS) -> None:
    opened = asyncio.Event()

    @dbos.workflow
    async def wait() -> str:
        await opened.wait()
        return "done"

    async with dbos:
        handle = await dbos.start_workflow(wait)
        status = await handle.get_status()
        assert (status.status, status.output, status.completed_at) == ("PENDING", None, None)
        opened.set()
        assert await handle.get_result() == "done"
        status = await handle.get_status()
        assert (status.status, status.output) == ("SUCCESS", "done")
        assert status.completed_at is not None
        assert status.completed_at >= status.created_at


async def test_children_are_named_for_their_step_and_know_their_parent(dbos: DBOS) -> None:
    @dbos.workflow(name="child")
    async def child(number: int) -> tuple[str | None, int]:
        return dbos.workflow_id, number

    @dbos.step(name="step")
    async def step() -> None: ...

    async def branch() -> tuple[str | None, int]:
        await step()
        return await child(3)

    @dbos.workflow(name="parent")
    async def parent() -> list[Any]:
        first = await child(1)
        handle = await dbos.start_workflow(child, 2)
        third = await asyncio.create_task(branch())
        named = await child.with_options(workflow_id="own-name")(4)
        return [first, handle.workflow_id, await handle.get_result(), third, named]

    async with dbos:
        first, second_id, second, third, named = await parent.with_options(workflow_id="p")()
        assert first == ["p-1", 1]
        assert second == [second_id, 2]
        assert third == ["p-3.1.2", 3]
        assert named == ["own-name", 4]
        steps = await dbos.list_steps("p")
        ids = ["p-1", second_id, "p-3.1.2", "own-name"]
        for child_id in ids:
            status = await (await dbos.retrieve_workflow(child_id)).get_status()
            assert status.parent_workflow_id == "p"
        assert second_id == "p-3"
    started = {step.child_workflow_id: step for step in steps if step.child_workflow_id}
    assert set(started) == set(ids)
    assert {step.name for step in started.values()} == {"child"}
    results = [step for step in steps if step.name == "DBOS.getResult"]
    assert sorted(step.output[1] for step in results) == [1, 2, 3, 4]


async def test_a_parent_that_lives_again_attaches_to_its_children(lives: Any) -> None:
    ran: list[str] = []

    def declare(life: Any) -> Workflow[[], list[str]]:
        dbos: DBOS = life.dbos

        @dbos.step
        async def work(name: str) -> str:
            ran.append(name)
            return f"{name}{life.number}"

        @dbos.workflow(name="child")
        async def child(name: str) -> str:
            first = await work(f"{name}/1")
            if name == "unfinished":
                await life.halt()
            return first + await work(f"{name}/2")

        @dbos.workflow(name="parent")
        async def parent() -> list[str]:
            finished = await child("finished")
            return [finished, await child("unfinished")]

        return parent

    assert await lives.both(declare) == ["finished/11finished/21", "unfinished/11unfinished/22"]
    assert ran == ["finished/1", "finished/2", "unfinished/1", "unfinished/2"]


async def test_the_second_start_of_an_id_attaches_to_the_first(dbos: DBOS) -> None:
    runs: list[int] = []
    opened = asyncio.Event()
    dbos.queue("queue")

    @dbos.workflow
    async def once(number: int) -> int:
        runs.append(number)
        await opened.wait()
        return number

    same = once.with_options(workflow_id="o-1")
    async with dbos:
        first = await dbos.start_workflow(same, 1)
        second = await dbos.start_workflow(same, 2)
        third = asyncio.create_task(same(3))
        fourth = await dbos.enqueue("queue", same, 4)
        opened.set()
        assert [await first.get_result(), await second.get_result()] == [1, 1]
        assert [await third, await fourth.get_result(), await same(5)] == [1, 1, 1]
        assert len(await dbos.list_workflows()) == 1
    async with dbos:
        assert await same(6) == 1
    assert runs == [1]


async def test_many_starts_of_one_id_at_once_run_it_once(dbos: DBOS) -> None:
    runs: list[int] = []

    @dbos.workflow
    async def once(number: int) -> int:
        runs.append(number)
        return number

    async with dbos:
        same = once.with_options(workflow_id="one")
        results = await asyncio.gather(*[same(number) for number in range(50)])
    assert len(runs) == 1
    assert results == runs * 50


async def test_another_workflow_under_a_taken_id_is_a_conflict(dbos: DBOS) -> None:
    dbos.queue("queue")

    @dbos.workflow(name="one")
    async def one() -> str:
        return "one"

    @dbos.workflow(name="other")
    async def other() -> str:
        return "other"

    @dbos.workflow(name="parent")
    async def parent() -> str:
        try:
            return await other.with_options(workflow_id="taken")()
        except WorkflowConflictError as exc:
            return f"{exc.workflow_id} {exc}"

    async with dbos:
        await one.with_options(workflow_id="taken")()
        for start in (
            other.with_options(workflow_id="taken")(),
            dbos.start_workflow(other.with_options(workflow_id="taken")),
            dbos.enqueue("queue", other.with_options(workflow_id="taken")),
        ):
            with pytest.raises(WorkflowConflictError) as raised:
                await start
            assert raised.value.workflow_id == "taken"
            assert "'one'" in str(raised.value)
            assert "'other'" in str(raised.value)
        assert (await parent()).startswith("taken ")


async def test_a_timeout_cancels_the_workflow_and_its_children(dbos: DBOS, advance: Any) -> None:
    started, stopped = asyncio.Event(), list[str]()

    @dbos.workflow(name="child")
    async def child() -> None:
        started.set()
        try:
            await dbos.sleep(3600)
        except asyncio.CancelledError:
            stopped.append("child")
            raise

    @dbos.workflow(name="parent")
    async def parent() -> None:
        try:
            await child()
        finally:
            stopped.append("parent")

    async with dbos:
        handle = await dbos.start_workflow(
            parent.with_options(timeout=timedelta(seconds=60.3), workflow_id="p")
        )
        await started.wait()
        advance(61)
        with pytest.raises(WorkflowTimeoutError) as raised:
            await handle.get_result()
        assert isinstance(raised.value, TimeoutError)
        assert isinstance(raised.value, WorkflowCancelledError)
        assert raised.value.workflow_id == "p"
        status = await handle.get_status()
        assert status.status == "CANCELLED"
        assert status.timeout == 60.3
        assert status.deadline is not None
        with pytest.raises(WorkflowCancelledError):
            await (await dbos.retrieve_workflow("p-1")).get_result()
    assert sorted(stopped) == ["child", "parent"]


async def test_a_deadline_passes_while_nobody_runs(lives: Any, advance: Any) -> None:
    ran: list[str] = []

    def declare(life: Any) -> Workflow[[], None]:
        dbos: DBOS = life.dbos

        @dbos.workflow(name="child")
        async def child() -> None:
            await life.halt()
            await dbos.sleep(3600)
            ran.append("child")

        @dbos.workflow(name="parent")
        async def parent() -> None:
            await child()
            ran.append("parent")

        return parent.with_options(timeout=60)

    await lives.begin(declare)
    advance(61)
    with pytest.raises(WorkflowTimeoutError):
        await lives.resume(declare)
    assert ran == []
    life = lives.born()
    async with life.dbos:
        assert [row.status for row in await life.dbos.list_workflows()] == ["CANCELLED"] * 2


async def test_a_child_inherits_the_deadline_unless_it_has_its_own(dbos: DBOS) -> None:
    @dbos.workflow(name="child")
    async def child() -> None: ...

    @dbos.workflow(name="parent")
    async def parent() -> None:
        await child.with_options(workflow_id="inherits")()
        await child.with_options(workflow_id="none", timeout=None)()
        await child.with_options(workflow_id="own", timeout=1000)()

    async with dbos:
        await parent.with_options(workflow_id="p", timeout=100)()
        rows = {row.workflow_id: row for row in await dbos.list_workflows()}
    assert rows["inherits"].deadline == rows["p"].deadline is not None
    assert rows["none"].deadline is None
    own, parents = rows["own"].deadline, rows["p"].deadline
    assert own is not None
    assert parents is not None
    assert own > parents


async def test_a_cancelled_awaiter_leaves_the_workflow_running(dbos: DBOS) -> None:
    started, opened = asyncio.Event(), asyncio.Event()

    @dbos.workflow
    async def wait() -> str:
        started.set()
        await opened.wait()
        return "went on"

    async with dbos:
        awaiter = asyncio.create_task(wait.with_options(workflow_id="w")())
        await started.wait()
        awaiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiter
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait.with_options(workflow_id="w")(), 0.01)
        opened.set()
        handle = await dbos.retrieve_workflow("w")
        assert await handle.get_result() == "went on"


async def test_a_cancelled_parent_leaves_children_it_awaits_running(dbos: DBOS) -> None:
    started, opened = asyncio.Event(), asyncio.Event()
    after: list[str] = []

    @dbos.step
    async def step() -> None:
        after.append("a step of the cancelled parent")

    @dbos.workflow(name="child")
    async def child() -> str:
        started.set()
        await opened.wait()
        return "child ended"

    @dbos.workflow(name="parent")
    async def parent() -> None:
        try:
            await child()
        finally:
            await step()

    async with dbos:
        handle = await dbos.start_workflow(parent.with_options(workflow_id="p"))
        await started.wait()
        await dbos.cancel_workflow("p")
        with pytest.raises(WorkflowCancelledError) as raised:
            await handle.get_result()
        assert not isinstance(raised.value, TimeoutError)
        opened.set()
        assert await (await dbos.retrieve_workflow("p-1")).get_result() == "child ended"
        assert await status_of(dbos, "p") == "CANCELLED"
    assert after == []


async def test_cancel_children_cancels_the_family(dbos: DBOS) -> None:
    started = asyncio.Event()

    @dbos.workflow(name="grandchild")
    async def grandchild() -> None:
        started.set()
        await dbos.sleep(3600)

    @dbos.workflow(name="child")
    async def child() -> None:
        await grandchild()

    @dbos.workflow(name="parent")
    async def parent() -> None:
        await child()

    async with dbos:
        await dbos.start_workflow(parent.with_options(workflow_id="p"))
        await started.wait()
        await dbos.cancel_workflow("p", cancel_children=True)
        assert {row.status for row in await dbos.list_workflows()} == {"CANCELLED"}


async def test_a_cancel_from_another_process_stops_the_workflow_at_once(
    dbos: DBOS, dbos_database_url: str
) -> None:
    dbos.configure(recheck_interval=3600)
    started, stopped = asyncio.Event(), asyncio.Event()

    @dbos.workflow
    async def sleeper() -> None:
        started.set()
        try:
            await dbos.sleep(3600)
        finally:
            stopped.set()

    async with dbos, Client(dbos_database_url) as client:
        handle = await dbos.start_workflow(sleeper)
        await started.wait()
        await client.cancel_workflow(handle.workflow_id)
        await asyncio.wait_for(stopped.wait(), 20)  # the recheck comes in an hour
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result()


async def test_a_workflow_that_catches_its_cancellation_is_cancelled_all_the_same(
    dbos: DBOS,
) -> None:
    started = asyncio.Event()

    @dbos.workflow
    async def stubborn() -> str:
        try:
            started.set()
            await dbos.sleep(3600)
        except asyncio.CancelledError:
            pass
        return "I go on"

    async with dbos:
        handle = await dbos.start_workflow(stubborn)
        await started.wait()
        await dbos.cancel_workflow(handle.workflow_id)
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result()
        assert (await handle.get_status()).output is None


async def test_cancelling_what_has_ended_changes_nothing(dbos: DBOS) -> None:
    @dbos.workflow
    async def quick() -> int:
        return 1

    async with dbos:
        await quick.with_options(workflow_id="w")()
        await dbos.cancel_workflow("w")
        assert await status_of(dbos, "w") == "SUCCESS"
        assert await quick.with_options(workflow_id="w")() == 1


async def test_cancel_workflows_takes_a_filter_and_can_be_tried_first(dbos: DBOS) -> None:
    @dbos.workflow(name="sleeper")
    async def sleeper() -> None:
        await dbos.sleep(3600)

    async with dbos:
        for name in ("a-1", "a-2", "b-1"):
            await dbos.start_workflow(sleeper.with_options(workflow_id=name))
        found = await dbos.cancel_workflows(dry_run=True, workflow_id_prefix="a-")
        assert sorted(found) == ["a-1", "a-2"]
        assert await status_of(dbos, "a-1") == "PENDING"
        assert sorted(await dbos.cancel_workflows(workflow_id_prefix="a-")) == ["a-1", "a-2"]
        assert await status_of(dbos, "a-1") == "CANCELLED"
        assert await status_of(dbos, "b-1") == "PENDING"
        for empty in ({}, {"workflow_id_prefix": ""}):
            with pytest.raises(ValueError, match="filter"):
                await dbos.cancel_workflows(**empty)
        await dbos.cancel_workflow("b-1")


class Shops:
    """An app with workflow methods on two registered instances."""

    def __init__(self, life: Any) -> None:
        dbos: DBOS = life.dbos

        class Shop:
            def __init__(self, region: str) -> None:
                self.region = region

            @dbos.step(name="price")
            async def price(self, cents: int) -> str:
                return f"{cents} in {self.region}"

            @dbos.workflow(name="sell")
            async def sell(self, cents: int, *, note: str = "") -> list[str]:
                first = await self.price(cents)
                await life.halt()
                return [first, await self.price(cents + 1), self.region, note]

            @staticmethod
            @dbos.workflow(name="static")
            async def static(number: int) -> int:
                return number

            @dbos.workflow(name="inner static")
            @staticmethod
            async def inner_static(number: int) -> int:
                return number

        self.kind = Shop
        self.eu = dbos.register(Shop("eu"), name="eu")
        self.us = dbos.register(Shop("us"), name="us")


async def test_methods_of_registered_instances_are_recovered_on_the_right_one(lives: Any) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        bound: Workflow[..., Any] = Shops(life).us.sell
        return bound

    assert await lives.both(declare, 5) == ["5 in us", "6 in us", "us", ""]


async def test_methods_take_the_same_arguments_as_functions(lives: Any) -> None:
    lives.born()
    life = lives.born()  # not the first: nothing halts
    shops = Shops(life)
    dbos: DBOS = life.dbos
    stranger = shops.kind("nowhere")
    async with dbos:
        assert await shops.eu.sell(1, note="n") == ["1 in eu", "2 in eu", "eu", "n"]
        assert await shops.kind.sell(shops.us, 3) == ["3 in us", "4 in us", "us", ""]
        handle = await dbos.start_workflow(shops.us.sell.with_options(workflow_id="m"), 7)
        assert (await handle.get_result())[2] == "us"
        status = await handle.get_status()
        assert (status.name, status.class_name, status.config_name) == (
            "sell", shops.kind.__qualname__, "us",
        )  # fmt: skip
        assert status.input is not None
        assert status.input.args == (7,)
        assert [await shops.kind.static(1), await shops.us.static(2)] == [1, 2]
        assert [await shops.kind.inner_static(1), await shops.us.inner_static(2)] == [1, 2]
        with pytest.raises(ConfigurationError, match="not registered"):
            await stranger.sell(1)
        with pytest.raises(WorkflowConflictError, match="us"):
            await shops.eu.sell.with_options(workflow_id="m")(1)


def test_instances_keep_their_names_apart() -> None:
    dbos = DBOS("flows")

    class Shop:
        @dbos.workflow(name="flow")
        async def flow(self) -> None: ...

    shop = Shop()
    assert dbos.register(shop, name="eu") is shop
    dbos.register(shop, name="eu")
    with pytest.raises(ConfigurationError, match="'eu'"):
        dbos.register(Shop(), name="eu")
    with pytest.raises(ValueError, match="empty"):
        dbos.register(Shop(), name="")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"workflow_id": ""}, ValueError),
        ({"workflow_id": 3}, TypeError),
        ({"workflow_id": "x" * 256}, ValueError),
        ({"workflow_id": "a\x00b"}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "3"}, TypeError),
        ({"priority": 0}, ValueError),
        ({"priority": 1.5}, TypeError),
        ({"delay": -1}, ValueError),
        ({"delay": "soon"}, TypeError),
        ({"app_version": ""}, ValueError),
        ({"deduplication_id": 3}, TypeError),
        ({"attributes": 3}, TypeError),
        ({"time_out": 3}, TypeError),
    ],
)
def test_with_options_refuses_what_cannot_work(
    options: dict[str, Any], error: type[Exception]
) -> None:
    @DBOS("flows").workflow
    async def workflow() -> None: ...

    with pytest.raises(error):
        workflow.with_options(**options)


async def test_a_start_refuses_options_that_only_an_enqueue_can_honour(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow() -> None: ...

    only: dict[str, Any] = {
        "deduplication_id": "d",
        "priority": 1,
        "delay": 1,
        "partition_key": "p",
    }
    async with dbos:
        for name, value in only.items():
            optioned: Any = workflow.with_options(**{name: value})  # type: ignore[misc]  # its keys
            with pytest.raises(ValueError, match=name):
                await dbos.start_workflow(optioned)
            with pytest.raises(ValueError, match=name):
                await optioned()
        assert await dbos.list_workflows() == []


async def test_options_add_up_and_leave_the_workflow_as_it_was(dbos: DBOS) -> None:
    @dbos.workflow
    async def workflow() -> str | None:
        return dbos.workflow_id

    optioned = workflow.with_options(workflow_id="w").with_options(
        timeout=timedelta(minutes=1), attributes={"tenant": "t", "n": [1]}, app_version="other"
    )
    async with dbos:
        assert await optioned() == "w"
        status = await (await dbos.retrieve_workflow("w")).get_status()
        assert (status.timeout, status.attributes) == (60, {"tenant": "t", "n": [1]})
        assert status.app_version == "other"
        assert await workflow() not in (None, "w")


def test_workflows_keep_the_signature_and_the_name_of_their_function() -> None:
    @DBOS("flows").workflow()
    async def documented(order_id: str) -> str:
        """What it does."""
        return order_id

    wrapped: Any = documented
    assert wrapped.__name__ == "documented"
    assert wrapped.__doc__ == "What it does."
    assert wrapped.__wrapped__.__annotations__["order_id"] is str


async def test_types_come_back_as_they_are_annotated(dbos: DBOS) -> None:
    seen: list[Any] = []

    @dbos.workflow()
    async def workflow(at: datetime, pairs: dict[int, tuple[str, ...]]) -> set[datetime]:
        seen.extend((at, pairs))
        return {at}

    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    async with dbos:
        assert await workflow(now, {1: ("a", "b")}) == {now}
    assert seen == [now, {1: ("a", "b")}]


async def test_a_workflow_sees_its_arguments_as_a_replay_would(dbos: DBOS) -> None:
    given: list[list[int]] = [[1]]

    @dbos.workflow()
    async def workflow(numbers: Any) -> bool:
        return numbers is given[0]

    async with dbos:
        assert await workflow(given[0]) is False


async def test_a_thousand_workflows_at_once_all_end(dbos: DBOS) -> None:
    @dbos.step
    async def double(number: int) -> int:
        return 2 * number

    @dbos.workflow()
    async def workflow(number: int) -> int:
        return await double(await double(number))

    async with dbos:
        results = await asyncio.gather(*[workflow(number) for number in range(1000)])
    assert results == [4 * number for number in range(1000)]


async def test_a_workflow_awaited_by_itself_through_a_long_chain_of_children(dbos: DBOS) -> None:
    @dbos.workflow(name="count")
    async def count(depth: int) -> int:
        return 0 if depth == 0 else 1 + await count(depth - 1)

    async with dbos:
        assert await count(30) == 30


async def test_a_workflow_started_twice_in_two_apps_runs_in_one_of_them(
    dbos_database_url: str,
) -> None:
    ran: list[str] = []

    def app(name: str) -> tuple[DBOS, Workflow[[], str]]:
        dbos = DBOS("twins", dbos_database_url, app_version="1")

        @dbos.workflow(name="flow")
        async def flow() -> str:
            ran.append(name)
            await dbos.sleep(0.05)
            return name

        return dbos, flow.with_options(workflow_id="w")

    (one, one_flow), (two, two_flow) = app("one"), app("two")
    async with one, two:
        results = await asyncio.gather(one_flow(), two_flow())
    assert len(ran) == 1
    assert results == ran * 2
