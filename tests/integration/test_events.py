"""Events of workflows: published under keys, read and waited for by anybody."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from conftest import Life, Lives
from talk import PATIENCE, Talk, names_of, talking

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DivergenceError,
    SerializationError,
    Workflow,
    WorkflowCancelledError,
    WorkflowNotFoundError,
)
from dbos_async.testing import advance


class Progress(msgspec.Struct):
    done: int
    at: datetime


@pytest.fixture
async def talk(dbos_database_url: str) -> AsyncIterator[Talk]:
    async with talking(dbos_database_url) as talk:
        yield talk


async def history_of(database: Any) -> list[tuple[Any, ...]]:
    rows = await database.fetch(
        "select workflow_uuid, function_id, key, value from dbos.workflow_events_history order by 2"
    )
    return [tuple(row) for row in rows]


async def test_the_latest_value_counts_and_all_are_kept(talk: Talk, database: Any) -> None:
    dbos = DBOS("twice", talk.dbos._settings.database_url, app_version="1")

    @dbos.workflow
    async def twice() -> None:
        await dbos.set_event("k", 1)
        await dbos.set_event("k", 2)
        await dbos.set_event("other", [3])

    async with dbos:
        await twice.with_options(workflow_id="p")()
        assert await dbos.get_event("p", "k") == 2
        assert await dbos.get_all_events("p") == {"k": 2, "other": [3]}
    assert await history_of(database) == [
        ("p", 1, "k", "1"),
        ("p", 2, "k", "2"),
        ("p", 3, "other", "[3]"),
    ]


async def test_everybody_who_waits_for_an_event_is_woken(
    talk: Talk, dbos_database_url: str
) -> None:
    """The workflow need not exist when they begin."""
    async with Client(dbos_database_url) as client:
        plainly = [asyncio.create_task(client.get_event("p", "k")) for _ in range(20)]
        watching = await talk.dbos.start_workflow(
            talk.watch.with_options(workflow_id="w"), "p", "k"
        )
        here = asyncio.create_task(talk.dbos.get_event("p", "k", timeout=1_000))
        await talk.waits("w")
        await talk.publish.with_options(workflow_id="p")({"other": 0, "k": [1]})
        assert await watching.get_result() == [1]
        assert await here == [1]
        assert await asyncio.gather(*plainly) == [[1]] * 20


async def test_sql_that_sets_an_event_wakes(talk: Talk, database: Any) -> None:
    await talk.publish.with_options(workflow_id="p")({})
    watching = await talk.dbos.start_workflow(talk.watch.with_options(workflow_id="w"), "p", "k")
    await talk.waits("w")
    await database.execute(
        "insert into dbos.workflow_events (workflow_uuid, key, value) values ('p', 'k', '7')"
    )
    assert await watching.get_result() == 7


async def test_values_come_back_as_their_types(talk: Talk) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    await talk.publish.with_options(workflow_id="p")({"k": Progress(3, moment), "none": None})
    assert await talk.dbos.get_event("p", "k", as_=Progress) == Progress(3, moment)
    assert await talk.dbos.get_event("p", "k") == {"done": 3, "at": "2026-01-02T00:00:00Z"}
    assert await talk.dbos.get_event("p", "none", as_=Progress) is None
    with pytest.raises(SerializationError, match="the event 'k' of workflow 'p' does not fit int"):
        await talk.dbos.get_event("p", "k", as_=int)


async def test_nobody_waits_longer_than_the_timeout(talk: Talk) -> None:
    assert await talk.dbos.get_event("nobody", "k", timeout=0.05) is None
    assert await talk.dbos.get_event("nobody", "k", timeout=0) is None
    assert await talk.watch.with_options(workflow_id="w")("nobody", "k", 0.05) is None
    assert await talk.watch.with_options(workflow_id="w0")("nobody", "k", 0) is None
    assert await names_of(talk, "w") == ["DBOS.getEvent", "DBOS.sleep"]
    assert await names_of(talk, "w0") == ["DBOS.getEvent"]


async def test_a_replayed_watcher_waits_on_until_the_moment_of_the_first_run(
    dbos_database_url: str,
) -> None:
    async with talking(dbos_database_url) as first:
        watch = first.watch.with_options(workflow_id="w")
        await first.dbos.start_workflow(watch, "nobody", "k", 1_000.0)
        await first.waits("w")
        advance(900)
    async with talking(dbos_database_url) as second:
        handle = await second.dbos.retrieve_workflow("w")
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.1)
        await advance(101)
        assert await handle.get_result(timeout=PATIENCE) is None


async def test_what_a_workflow_has_read_it_reads_again(lives: Lives) -> None:
    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="flow")
        async def flow() -> list[Any]:
            await dbos.set_event("k", 1)
            seen = [await dbos.get_event("w", "k"), await dbos.get_all_events("w")]
            seen.append(await dbos.get_event("w", "late", timeout=0))
            await dbos.set_event("k", 2)
            await dbos.set_event("late", 3)
            await life.halt()
            return [*seen, await dbos.get_event("w", "k", as_=int)]

        return flow

    assert await lives.both(declare) == [1, {"k": 1}, None, 2]


async def test_another_value_than_the_recorded_one_is_a_divergence(lives: Lives) -> None:
    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="flow")
        async def flow() -> str:
            said = ""
            try:
                await dbos.set_event("k", life.number)
            except DivergenceError as exc:
                said = str(exc)
            await life.halt()
            return said

        return flow

    assert "'DBOS.setEvent' with its arguments is recorded" in await lives.both(declare)


async def test_within_a_step_an_event_is_set_at_once_and_again_when_the_step_runs_again(
    lives: Lives, database: Any
) -> None:
    published: list[Any] = []

    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.step(name="step")
        async def step() -> None:
            await dbos.set_event("k", life.number)
            published.append(await dbos.get_event("w", "k"))
            await life.halt()

        @dbos.step(name="first")
        async def first() -> None: ...

        @dbos.workflow(name="flow")
        async def flow() -> None:
            await first()
            await step()

        return flow

    await lives.both(declare)
    assert published == [1, 2]
    assert await history_of(database) == [("w", 2, "k", "2")]
    names = await database.fetch("select function_name from dbos.operation_outputs order by 1")
    assert [row[0] for row in names] == ["first", "step"]


@pytest.mark.parametrize("between", [0, 1])
async def test_a_step_after_a_wait_that_was_none_publishes_in_the_same_place_again(
    lives: Lives, database: Any, between: int
) -> None:
    """The wait has a number for its deadline, and did not need it."""

    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.step(name="step")
        async def step() -> None:
            await dbos.set_event("k", life.number)
            await life.halt()

        @dbos.workflow(name="flow")
        async def flow() -> None:
            await dbos.send("w", 1)
            await dbos.recv()
            await dbos.recv(timeout=0)
            for _ in range(between):
                await dbos.send("w", 2)
            await step()

        return flow

    await lives.both(declare)
    position = 6 + between
    assert await history_of(database) == [("w", position, "k", "2")]
    last = "select max(function_id) from dbos.operation_outputs"
    assert await database.fetchval(last) == position


async def test_a_step_that_is_no_longer_ours_publishes_nothing(talk: Talk) -> None:
    dbos = DBOS("stale", talk.dbos._settings.database_url, app_version="1")
    dbos.configure(recheck_interval=3_600)
    inside, gate = asyncio.Event(), asyncio.Event()
    raised: list[BaseException] = []

    @dbos.step
    async def step() -> None:
        inside.set()
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:  # a step that takes its time
                continue
        try:
            await dbos.set_event("k", 1)
        except BaseException as exc:
            raised.append(exc)
            raise

    @dbos.workflow
    async def flow() -> None:
        await step()

    async with dbos:
        handle = await dbos.start_workflow(flow.with_options(workflow_id="w"))
        await inside.wait()
        await talk.dbos.cancel_workflow("w")
        gate.set()
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result(timeout=PATIENCE)
        async with asyncio.timeout(PATIENCE):
            while not raised:
                await asyncio.sleep(0.01)
    assert isinstance(raised[0], asyncio.CancelledError)
    assert await talk.dbos.get_all_events("w") == {}


async def test_bad_input_is_refused_in_words(talk: Talk, database: Any) -> None:
    with pytest.raises(ConfigurationError, match="call it in a workflow"):
        await talk.dbos.set_event("k", 1)
    with pytest.raises(WorkflowNotFoundError):
        await talk.dbos.get_all_events("nobody")
    bad: Any = talk.dbos
    for call, what in (
        (lambda: bad.set_event(1, 1), "the event's key is a str"),
        (lambda: bad.get_event(1, "k"), "the workflow id is a str"),
        (lambda: bad.get_event("w", None), "the event's key is a str"),
        (lambda: bad.get_all_events(1), "the workflow id is a str"),
    ):
        with pytest.raises(TypeError, match=what):
            await call()
    with pytest.raises(ValueError, match="NUL"):
        await talk.dbos.get_event("w", "\0")
    assert await database.fetchval("select count(*) from dbos.workflow_events") == 0


async def test_a_value_that_cannot_be_stored_is_named_and_nothing_is_written(
    talk: Talk, database: Any
) -> None:
    dbos = DBOS("odd", talk.dbos._settings.database_url, app_version="1")
    dbos.configure(max_payload_bytes=1_000)

    @dbos.workflow
    async def odd() -> list[str]:
        said: list[str] = []
        for value in ({"a": [object()]}, "x" * 1_000):
            try:
                await dbos.set_event("k", value)
            except SerializationError as exc:
                said.append(str(exc))
        return said

    async with dbos:
        named, large = await odd()
    assert named.startswith("the event's value['a'][0]")
    assert large.startswith("the value of the event 'k' has 1,002 bytes")
    assert await database.fetchval("select count(*) from dbos.operation_outputs") == 0


async def test_forks_and_rewinds_have_the_events_of_their_steps(talk: Talk) -> None:
    await talk.publish.with_options(workflow_id="p")({"a": 1, "b": 2, "c": 3})
    fork = await talk.dbos.fork_workflow("p", 3, new_workflow_id="f")
    await fork.get_result(timeout=PATIENCE)
    assert await talk.dbos.get_all_events("f") == {"a": 1, "b": 2, "c": 3}
    again = await talk.dbos.rewind_workflow("p", 2)
    await again.get_result(timeout=PATIENCE)
    assert await talk.dbos.get_all_events("p") == {"a": 1, "b": 2, "c": 3}
    text = await talk.dbos.export_workflow("p")
    await talk.dbos.delete_workflow("p")
    assert await talk.dbos.get_event("p", "a", timeout=0) is None
    await talk.dbos.import_workflow(text)
    assert await talk.dbos.get_event("p", "a", timeout=0) == 1


async def test_a_cancelled_watcher_ends_at_once(talk: Talk) -> None:
    handle = await talk.dbos.start_workflow(talk.watch.with_options(workflow_id="w"), "p", "k")
    await talk.waits("w")
    await talk.dbos.cancel_workflow("w")
    with pytest.raises(WorkflowCancelledError):
        await handle.get_result()
    outside = asyncio.create_task(talk.dbos.get_event("p", "k", timeout=1_000))
    await asyncio.sleep(0)
    outside.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outside


async def test_who_waits_when_the_app_is_shut_down_is_told(dbos_database_url: str) -> None:
    async with talking(dbos_database_url) as talk:
        waiting = asyncio.create_task(talk.dbos.get_event("p", "k", timeout=1_000))
        async with asyncio.timeout(PATIENCE):
            while not talk.dbos._session.events._asked:  # type: ignore[union-attr]  # launched
                await asyncio.sleep(0.01)
    with pytest.raises(ConfigurationError, match="shut down"):
        await waiting
