"""What a workflow costs: rows, statements and connections. Postgres itself counts them."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS
from dbos_async._store import databases, sql
from dbos_async.testing import EmbeddedServer

WRITTEN = """
select sum(n_tup_ins + n_tup_upd + n_tup_del)::int
  from pg_stat_user_tables where schemaname = 'dbos'
"""
CONNECTED = "select count(*) from pg_stat_activity where application_name like 'dbos_async shop %'"
AT_REST = {sql.LOOK_AROUND.strip(), sql.TRY_TO_LEAD.strip(), sql.CLOCK, sql.FETCH_BACKEND}
"""What an app does beside the checkpointer while nothing runs."""
AT_LAUNCH = (
    "for no key update skip locked",  # the first claim
    "order by q.name",  # the queues
    "workflow_deadline_epoch_ms < (select ms from moment)",  # the first look around
)
"""Parts of the statements with which a launch ends, in whatever order."""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server that logs every statement, with the name of who sent it."""
    directory = tmp_path_factory.mktemp("logged")
    with EmbeddedServer.running(directory, log_statement="all", log_line_prefix="|%a|") as server:
        yield server


@pytest.fixture
async def url(logged: EmbeddedServer) -> AsyncIterator[str]:
    """A fresh database on it."""
    await databases.ensure_database(logged.url, "writes")
    await databases.install_schema(logged.url_of("writes"))
    yield logged.url_of("writes")
    await databases.drop_database(logged.url, "writes")


@pytest.fixture
async def watcher(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


class Shop:
    """An app whose workflows do nothing but checkpoint."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1", **settings)
        dbos.configure(recheck_interval=3_600)  # what is sent is sent for the workflow

        @dbos.step
        async def step(number: int) -> int:
            return number

        @dbos.workflow(name="line")
        async def line(steps: int) -> int:
            return sum([await step(number) for number in range(steps)])

        async def branch(steps: int) -> None:
            for number in range(steps):
                await step(number)

        @dbos.workflow(name="branches")
        async def branches(steps: int) -> None:
            await step(0)
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(branch((steps - 2) // 4))
            await step(1)

        self.line, self.branches = line, branches


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


async def written_by(url: str, watcher: Any, *, run: str | None = None, steps: int = 0) -> int:
    """How many rows one launch writes; sessions report their counts when they end."""

    async def is_gone() -> bool:
        return bool(await watcher.fetchval(CONNECTED) == 0)

    before: int = await watcher.fetchval(WRITTEN)
    shop = Shop(url)
    async with shop.dbos:
        if run is not None:
            await getattr(shop, run)(steps)
    await until(is_gone)
    after: int = await watcher.fetchval(WRITTEN)
    return after - before


@pytest.mark.parametrize(
    ("run", "steps"), [("line", 0), ("line", 1), ("line", 10), ("branches", 2), ("branches", 22)]
)
async def test_a_workflow_of_n_steps_writes_n_rows_and_two(
    url: str, watcher: Any, run: str, steps: int
) -> None:
    await written_by(url, watcher)  # the first launch registers its version
    at_rest = await written_by(url, watcher)
    assert await written_by(url, watcher, run=run, steps=steps) - at_rest == steps + 2


@asynccontextmanager
async def statements_sent(server: EmbeddedServer, watcher: Any) -> AsyncIterator[dict[str, Any]]:
    """What each session sent in the block, by its name."""
    sent: dict[str, list[str]] = {}
    log = server.data / "log"

    async def mark(word: str) -> int:
        await watcher.execute(f"select 'mark {word}'")
        return position_of(log, f"'mark {word}'")

    begin = await mark("begin")
    yield sent
    end = await mark("end")
    for entry in re.split(r"^\|", log.read_text()[begin:end], flags=re.MULTILINE):
        name, _, text = entry.partition("|")
        if found := re.match(r"LOG:  (?:execute [^:]*|statement): (.*)", text, re.DOTALL):
            sent.setdefault(name, []).append(re.sub(r"\n\t", "\n", found[1]).strip())


def position_of(log: Path, word: str) -> int:
    return log.read_text().rindex(word)


@pytest.mark.parametrize(("run", "steps"), [("line", 10), ("branches", 22)])
async def test_a_fresh_workflow_reads_nothing(
    logged: EmbeddedServer, url: str, watcher: Any, run: str, steps: int
) -> None:
    shop = Shop(url)

    async def has_looked_around() -> bool:
        text = (logged.data / "log").read_text()
        since = text[text.rindex("'mark launch'") :]
        return all(part in since for part in AT_LAUNCH)

    await watcher.execute("select 'mark launch'")
    async with shop.dbos:
        await getattr(shop, run)(steps)  # prepares the statements
        await until(has_looked_around)
        async with statements_sent(logged, watcher) as sent:
            await getattr(shop, run)(steps)
    written = sent.pop("dbos_async shop checkpointer")
    assert {statement.split()[0] for statement in written} <= {"insert", "update"}
    assert len(written) <= steps + 2
    others = {text for name, texts in sent.items() if "dbos_async" in name for text in texts}
    assert {text for text in others if "pg_notify" not in text} <= AT_REST


@pytest.mark.parametrize("max_connections", [4, 6])
async def test_a_thousand_workflows_never_take_more_connections_than_allowed(
    url: str, watcher: Any, max_connections: int
) -> None:
    shop = Shop(url, max_connections=max_connections)
    seen: list[int] = []

    async def load() -> None:
        async with shop.dbos:
            handles = [await shop.dbos.start_workflow(shop.line, 3) for _ in range(1_000)]
            reads = [handle.get_status() for handle in handles[:200]]
            await asyncio.gather(*[handle.get_result() for handle in handles], *reads)

    task = asyncio.create_task(load())

    async def is_done() -> bool:
        seen.append(await watcher.fetchval(CONNECTED))
        return task.done()

    await until(is_done)
    await task
    assert max(seen) == max_connections  # all are used: the cap is what holds them
    assert await watcher.fetchval("select count(*) from dbos.workflow_status") == 1_000
