"""The Postgres that all contenders share, and their databases on it."""

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from bench.figures import Turn
from dbos_async._service import running
from dbos_async._store import databases
from dbos_async._store.database import Connection
from dbos_async._store.embedded import server_in

SETTINGS = """
select name, current_setting(name) from pg_settings
 where name in ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes',
                'wal_sync_method', 'shared_buffers', 'max_wal_size')
 order by name
"""
CONNECTIONS = """
select count(*) from pg_stat_activity where datname = $1 and backend_type = 'client backend'
"""
LOOK_INTERVAL = 0.1
"""Seconds between looks at pg_stat_activity: often enough for rounds of a second."""


@asynccontextmanager
async def server(url: str | None) -> AsyncIterator["Server"]:
    """The server of `url`, or an embedded one that is gone after the block."""
    if url is not None:
        yield Server(url)
        return
    with tempfile.TemporaryDirectory(prefix="dbos-bench-", ignore_cleanup_errors=True) as directory:
        postgres = server_in(Path(directory))
        try:
            await asyncio.to_thread(postgres.start)
            yield Server(postgres.url())
        finally:
            postgres.stop("immediate")


class Server:
    """A Postgres server where databases may be made."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def settings(self) -> dict[str, str]:
        """What durability costs on it."""
        async with connected(self.url) as connection:
            return {row["name"]: row["current_setting"] for row in await connection.fetch(SETTINGS)}

    @asynccontextmanager
    async def database(self, *, with_schema: bool = False) -> AsyncIterator[str]:
        """The URL of a fresh database, which is dropped after the block."""
        name = f"dbos_bench_{uuid.uuid4().hex[:16]}"
        await databases.ensure_database(self.url, name)
        url = databases.url_of(self.url, name)
        try:
            if with_schema:
                await databases.install_schema(url)
            yield url
        finally:
            await databases.drop_database(self.url, name)


class ConnectionCount:
    """How many connections the database of `url` has while a contender has its turn."""

    def __init__(self, url: str, onlooker: Connection) -> None:
        self.most: list[int] = []
        """The most there were, one number a turn."""
        self._database = urlsplit(url).path.removeprefix("/")
        self._onlooker = onlooker

    async def during(self, turn: Turn) -> float:
        """Take the turn, and look at pg_stat_activity meanwhile."""
        done = asyncio.Event()
        async with running(done.set, onlooker=self._look_on(done)):
            return await turn()

    async def _look_on(self, done: asyncio.Event) -> None:
        counts = [await self._count()]
        while not done.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await done.wait()
            counts.append(await self._count())
        self.most.append(max(counts))

    async def _count(self) -> int:
        count: int = await self._onlooker.fetchval(CONNECTIONS, self._database)
        return count


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection for the length of the block."""
    connection = await asyncpg.connect(url, timeout=30)
    try:
        yield connection
    finally:
        await connection.close()
