"""Delays: a DELAYED workflow starts when it is due, and when that is may be changed."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dbos_async import DBOS, Client, WorkflowHandle, WorkflowNotFoundError
from dbos_async._engine import session
from dbos_async.testing import advance

HOUR = 3600
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class App:
    """One process with a queue that runs one workflow at a time."""

    def __init__(self, url: str) -> None:
        self.dbos = DBOS("delays", url, app_version="1")
        self.queue = self.dbos.queue("queue", worker_concurrency=1)
        self.ran: list[str] = []

        @self.dbos.workflow(name="flow")
        async def flow(name: str) -> str:
            self.ran.append(name)
            return name

        self.flow = flow

    async def enqueue(self, name: str, **options: Any) -> WorkflowHandle[str]:
        return await self.queue.enqueue(self.flow.with_options(**options), name)


@pytest.fixture
def app(dbos_database_url: str) -> App:
    return App(dbos_database_url)


@pytest.mark.parametrize("delay", [HOUR, timedelta(hours=1)])
async def test_it_starts_when_it_is_due(app: App, delay: Any) -> None:
    async with app.dbos:
        handle = await app.enqueue("a", delay=delay)
        advance(HOUR - 60)
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.2)
        assert (await handle.get_status()).status == "DELAYED"
        await advance(60)
        assert await handle.get_result(timeout=20) == "a"
        status = await handle.get_status()
        assert status.delay_until is not None
        assert status.started_at is not None
        assert status.started_at >= status.delay_until


async def test_a_short_delay_is_not_stretched_to_the_next_look(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_async._engine.leader.LOOK_INTERVAL", HOUR)
    async with app.dbos:
        handle = await app.enqueue("a", delay=0.05)
        assert await handle.get_result(timeout=20) == "a"
        status = await handle.get_status()
        assert status.delay_until is not None
        assert status.started_at is not None
        assert status.started_at >= status.delay_until


@pytest.mark.parametrize("delay", [0, datetime.now(UTC) - timedelta(days=1)])
async def test_what_is_due_already_starts_at_once(app: App, delay: Any) -> None:
    async with app.dbos:
        assert await (await app.enqueue("a", delay=delay)).get_result(timeout=20) == "a"


async def test_what_comes_due_together_starts_by_priority_then_by_age(app: App) -> None:
    async with app.dbos:
        due = await app.dbos.now() + timedelta(hours=1)
        for name, options in [
            ("third", {"priority": 2, "delay": due}),
            ("fourth", {"priority": 2, "delay": due - timedelta(minutes=1)}),
            ("second", {"priority": 1, "delay": due}),
            ("first", {"delay": due}),
            ("fifth", {"priority": 3, "delay": due - timedelta(minutes=2)}),
        ]:
            last = await app.enqueue(name, **options)
        await advance(2 * HOUR)
        await last.get_result(timeout=20)
    assert app.ran == ["first", "second", "third", "fourth", "fifth"]


async def test_a_delay_outlives_its_process(dbos_database_url: str) -> None:
    app = App(dbos_database_url)
    async with app.dbos:
        handle = await app.enqueue("a", delay=HOUR)
    advance(HOUR)
    app = App(dbos_database_url)
    async with app.dbos:
        again = await app.dbos.retrieve_workflow(handle.workflow_id)
        assert await again.get_result(timeout=20) == "a"


# Changed


@pytest.mark.parametrize(
    "delay", [0, timedelta(0), datetime(2020, 1, 1, tzinfo=UTC)], ids=["number", "delta", "moment"]
)
async def test_made_shorter_it_starts_at_once(
    app: App, delay: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks by himself: it is told, or it would start at its first time.
    monkeypatch.setattr("dbos_async._engine.leader.LOOK_INTERVAL", 2 * HOUR)
    async with app.dbos:
        handle = await app.enqueue("a", delay=HOUR)
        await app.dbos.set_workflow_delay(handle.workflow_id, delay)
        assert await handle.get_result(timeout=20) == "a"


async def test_made_shorter_from_elsewhere_it_starts_at_once(
    app: App, dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_async._engine.leader.LOOK_INTERVAL", 2 * HOUR)
    async with app.dbos, Client(dbos_database_url) as client:
        handle = await app.enqueue("a", delay=HOUR)
        await client.set_workflow_delay(handle.workflow_id, 0)
        assert await handle.get_result(timeout=20) == "a"


async def test_made_shorter_with_all_notifications_lost_it_starts_even_so(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LOOK_INTERVAL", 0)  # nobody is told
    async with app.dbos:
        handle = await app.enqueue("a", delay=HOUR)
        await app.dbos.set_workflow_delay(handle.workflow_id, 0)
        assert await handle.get_result(timeout=20) == "a"


async def test_made_longer_it_waits_longer(app: App) -> None:
    async with app.dbos:
        handle = await app.enqueue("a", delay=HOUR)
        await app.dbos.set_workflow_delay(handle.workflow_id, timedelta(hours=2))
        advance(HOUR + 60)
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.2)
        await advance(HOUR)
        assert await handle.get_result(timeout=20) == "a"


async def test_an_unknown_workflow_has_no_delay_to_change(app: App) -> None:
    async with app.dbos:
        with pytest.raises(WorkflowNotFoundError):
            await app.dbos.set_workflow_delay("nobody", 1)


async def test_what_has_started_has_no_delay_to_change(app: App) -> None:
    async with app.dbos:
        handle = await app.enqueue("a", workflow_id="w")
        await handle.get_result()
        with pytest.raises(ValueError, match="'w' is SUCCESS"):
            await app.dbos.set_workflow_delay("w", 1)


@pytest.mark.parametrize(
    ("delay", "error"),
    [(-1, ValueError), (datetime(2030, 1, 1), ValueError), ("soon", TypeError), (None, TypeError)],
)
async def test_a_delay_that_cannot_be_is_refused(app: App, delay: Any, error: Any) -> None:
    async with app.dbos:
        handle = await app.enqueue("a", delay=HOUR)
        with pytest.raises(error):
            await app.dbos.set_workflow_delay(handle.workflow_id, delay)
        with pytest.raises(error):
            await app.enqueue("b", delay=delay)


async def test_within_a_workflow_it_is_done_once(lives: Any, database: Any) -> None:
    def declare(life: Any) -> Any:
        queue = life.dbos.queue("queue")

        @life.dbos.workflow(name="flow")
        async def flow() -> None: ...

        @life.dbos.workflow(name="parent")
        async def parent() -> str | None:
            handle = await queue.enqueue(flow.with_options(delay=HOUR))
            await life.dbos.set_workflow_delay(handle.workflow_id, 2 * HOUR)
            refused = None
            try:
                await life.dbos.set_workflow_delay("nobody", 1)
            except WorkflowNotFoundError as exc:
                refused = exc.workflow_id
            await life.halt()
            return refused

        return parent

    await lives.begin(declare)
    await database.execute(
        "update dbos.workflow_status set delay_until_epoch_ms = 7 + 9e12::bigint "
        "where status = 'DELAYED'"
    )
    assert await lives.resume(declare) == "nobody"
    delays = await database.fetch(
        "select delay_until_epoch_ms from dbos.workflow_status where status = 'DELAYED'"
    )
    assert [row[0] for row in delays] == [9_000_000_000_007]
    names = await database.fetch(
        "select function_name from dbos.operation_outputs where workflow_uuid = $1 "
        "order by function_id",
        lives.workflow_id,
    )
    assert [row[0] for row in names] == ["flow", "DBOS.setWorkflowDelay", "DBOS.setWorkflowDelay"]


async def test_a_hundred_changes_at_once_all_count(app: App) -> None:
    async with app.dbos:
        handles = [await app.enqueue(str(n), delay=HOUR) for n in range(100)]
        await asyncio.gather(
            *[app.dbos.set_workflow_delay(handle.workflow_id, 0) for handle in handles]
        )
        await asyncio.gather(*[handle.get_result(timeout=20) for handle in handles])
