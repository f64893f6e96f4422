"""Parked workflows that wait for news: it wakes them, whoever sends it, and they go on in time."""

import asyncio
from typing import Any

import pytest

from dbos_async import DBOS, Client, WorkflowStatus
from dbos_async._store import workflows
from dbos_async.testing import advance

HOUR = 3600
SOON = 0.05
PATIENCE = 30.0


class App:
    """Workflows that wait for more than a moment, and are parked then."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("news", url, app_version="1", park_after=SOON)
        self.steps: list[str] = []

        @dbos.step(name="note")
        async def note(word: str) -> str:
            self.steps.append(word)
            return word

        @dbos.workflow(name="receive")
        async def receive(topic: str | None, count: int = 1) -> list[Any]:
            await note("begin")
            return [await dbos.recv(topic, timeout=HOUR) for _ in range(count)]

        @dbos.workflow(name="watch")
        async def watch(other: str, key: str) -> Any:
            return await dbos.get_event(other, key, timeout=HOUR)

        @dbos.workflow(name="tell")
        async def tell(key: str) -> None:
            await dbos.set_event(key, await dbos.recv("value", timeout=HOUR))

        @dbos.workflow(name="limited")
        async def limited(seconds: float) -> str:
            try:
                async with dbos.timeout(seconds):
                    return str(await dbos.recv("never", timeout=10 * HOUR))
            except TimeoutError:
                return await note("too late")

        @dbos.workflow(name="race")
        async def race() -> list[Any]:
            message = asyncio.create_task(dbos.recv("answer", timeout=2 * HOUR))
            alarm = asyncio.create_task(dbos.sleep(HOUR))
            done, pending = await dbos.wait([message, alarm], return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            return [await note("answer" if message in done else "alarm")]

        self.receive, self.watch, self.tell = receive, watch, tell
        self.limited, self.race = limited, race

    async def start(self, workflow: Any, *args: Any, workflow_id: str = "w") -> Any:
        return await self.dbos.start_workflow(workflow.with_options(workflow_id=workflow_id), *args)

    async def parked(self, workflow_id: str = "w", *, says: str | None = None) -> WorkflowStatus:
        """Its status, once it is parked."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.dbos.list_workflows(workflow_ids=[workflow_id], status="DELAYED")
                if found and workflow_id not in self.dbos.launched().running:
                    assert says is None or found[0].waiting_for == says
                    return found[0]
                await asyncio.sleep(0.01)


@pytest.fixture
def app(dbos_database_url: str) -> App:
    return App(dbos_database_url)


@pytest.mark.parametrize(("topic", "says"), [("t", "message t"), (None, "message")])
async def test_a_message_wakes_the_one_that_waits_for_it(
    app: App, topic: str | None, says: str
) -> None:
    async with app.dbos:
        handle = await app.start(app.receive, topic)
        await app.parked(says=says)
        await app.dbos.send("w", "of another topic", "other")
        await app.parked(says=says)
        await app.dbos.send("w", "hello", topic)
        assert await handle.get_result(timeout=PATIENCE) == ["hello"]
    assert app.steps == ["begin"]


@pytest.mark.parametrize("sender", ["client", "sql", "insert", "workflow"])
async def test_whoever_sends_wakes_it(
    app: App, dbos_database_url: str, database: Any, sender: str
) -> None:
    @app.dbos.workflow(name="sender")
    async def send() -> None:
        await app.dbos.send("w", "hello", "t")

    async with app.dbos, Client(dbos_database_url) as client:
        handle = await app.start(app.receive, "t")
        await app.parked()
        if sender == "client":
            await client.send("w", "hello", "t")
        elif sender == "sql":
            await database.execute("""select dbos.send_message('w', '"hello"', 't')""")
        elif sender == "insert":
            await database.execute(
                "insert into dbos.notifications (destination_uuid, topic, message, serialization)"
                """ values ('w', 't', '"hello"', 'portable_json')"""
            )
        else:
            await send()
        assert await handle.get_result(timeout=PATIENCE) == ["hello"]


async def test_many_messages_are_received_in_order_over_many_parks(app: App) -> None:
    async with app.dbos:
        handle = await app.start(app.receive, "t", 5)
        for number in range(5):
            await app.parked()
            await app.dbos.send("w", number, "t")
            async with asyncio.timeout(PATIENCE):
                while (await handle.get_status()).status == "ENQUEUED":
                    await asyncio.sleep(0.01)
        assert await handle.get_result(timeout=PATIENCE) == [0, 1, 2, 3, 4]
    assert app.steps == ["begin"]


async def test_without_a_message_it_goes_on_at_its_deadline(app: App) -> None:
    async with app.dbos:
        handle = await app.start(app.receive, "t")
        await app.parked()
        await advance(HOUR + 1)
        assert await handle.get_result(timeout=PATIENCE) == [None]


async def test_an_event_wakes_the_one_that_waits_for_it(app: App) -> None:
    async with app.dbos:
        await app.start(app.tell, "key", workflow_id="other")
        handle = await app.start(app.watch, "other", "key")
        await app.parked(says="event other key")
        await app.dbos.send("other", "value", "value")
        assert await handle.get_result(timeout=PATIENCE) == "value"


async def test_a_timeout_around_it_still_expires_in_time(app: App) -> None:
    async with app.dbos:
        handle = await app.start(app.limited, HOUR)
        status = await app.parked(says="message never")
        assert status.delay_until is not None
        assert (status.delay_until - status.created_at).total_seconds() < 2 * HOUR
        await advance(HOUR + 1)
        assert await handle.get_result(timeout=PATIENCE) == "too late"
    assert app.steps == ["too late"]


@pytest.mark.parametrize("winner", ["answer", "alarm"])
async def test_a_race_is_parked_and_won_by_who_comes_first(app: App, winner: str) -> None:
    async with app.dbos:
        handle = await app.start(app.race)
        await app.parked(says="message answer")
        if winner == "answer":
            await app.dbos.send("w", "yes", "answer")
        else:
            await advance(HOUR + 1)
        assert await handle.get_result(timeout=PATIENCE) == [winner]
    assert app.steps == [winner]


async def test_it_is_woken_by_another_process_after_its_own_has_gone(
    app: App, dbos_database_url: str
) -> None:
    async with app.dbos:
        await app.start(app.receive, "t")
        await app.parked()
    other = App(dbos_database_url)
    async with other.dbos, Client(dbos_database_url) as client:
        await client.send("w", "hello", "t")
        handle = await client.retrieve_workflow("w")
        assert await handle.get_result(timeout=PATIENCE) == ["hello"]
    assert (app.steps, other.steps) == (["begin"], [])


async def test_it_is_not_run_again_when_it_is_deleted_between_its_claim_and_its_replay(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = workflows.fetch_histories

    async def deleted_first(database: Any, workflow_ids: Any) -> Any:
        await app.dbos.cancel_workflow("w")
        await app.dbos.delete_workflow("w")
        return await fetch(database, workflow_ids)

    async with app.dbos:
        await app.start(app.receive, "t")
        await app.parked()
        monkeypatch.setattr(workflows, "fetch_histories", deleted_first)
        await app.dbos.send("w", "hello", "t")
        async with asyncio.timeout(PATIENCE):
            while await app.dbos.list_workflows(workflow_ids=["w"]):
                await asyncio.sleep(0.01)
        monkeypatch.undo()
        while app.dbos.launched().arriving or app.dbos.launched().running:
            await asyncio.sleep(0.01)
    assert app.steps == ["begin"]
