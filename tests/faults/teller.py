"""A process that credits an account in a transaction step: `teller.py URL ACCOUNTS KIND POINT`.

It kills itself at the point: at the `first` or the `last` statement of the function, when COMMIT is
about to be sent (`written`), when it has been answered (`committed`), or when the step is recorded.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from dbos_async import DBOS, AsyncpgDatasource, Datasource, SQLAlchemyDatasource
from dbos_async._store.datasources import AsyncpgOpened, SqlalchemyOpened
from dbos_async.testing import crash_at

POINTS = ("first", "last", "written", "committed", "recorded")
KINDS = ("asyncpg", "sqlalchemy+asyncpg", "sqlalchemy+psycopg")
RECORDED = 3
"""The start, the step before, this one."""
TABLES = "create table entries (workflow_id text, cents int)"
INSERT = "insert into entries values (:workflow_id, :cents)"


def datasource_of(url: str, kind: str) -> Datasource[Any]:
    if kind == "asyncpg":
        return AsyncpgDatasource(url, max_size=3)
    driver = kind.partition("+")[2]
    url = url.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(url, poolclass=sqlalchemy.NullPool)  # nothing to dispose of
    return SQLAlchemyDatasource(engine)


class Teller:
    def __init__(self, url: str, accounts: str, kind: str, **settings: Any) -> None:
        self.calls = 0
        self.on: Callable[[str], Awaitable[None]] | None = None
        """Called within the function, at its first and its last statement."""
        self.dbos = dbos = DBOS("teller", url, app_version="1", **settings)
        self.datasource = datasource_of(accounts, kind)

        @dbos.step(name="before")
        async def before() -> int:
            return 1

        async def credit(handle: Any, cents: int) -> int:
            self.calls += 1
            if self.on is not None:
                await self.on("first")
            values = {"workflow_id": dbos.workflow_id, "cents": cents}
            if isinstance(handle, asyncpg.Connection):
                await handle.fetch("select count(*) from entries")
                statement = INSERT.replace(":workflow_id", "$1").replace(":cents", "$2")
                await handle.execute(statement, *values.values())
            else:
                await handle.execute(sqlalchemy.text(INSERT), values)
            if self.on is not None:
                await self.on("last")
            return 10 * cents

        self.credit = {
            level: dbos.transaction(self.datasource, isolation_level=level, name="credit")(credit)
            for level in ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED")
        }

        @dbos.workflow(name="flow")
        async def flow(level: Any) -> int:
            return await before() + await self.credit[level](5) + await before()

        @dbos.workflow(name="twice")
        async def twice() -> int:
            credit = self.credit["READ COMMITTED"]
            return await credit(1) + await credit(2)

        self.flow = flow.with_options(workflow_id="w")
        self.twice = twice.with_options(workflow_id="w")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, accounts: str, kind: str, point: str) -> None:
    teller = Teller(url, accounts, kind)
    is_armed = False

    async def on(moment: str) -> None:
        nonlocal is_armed
        is_armed = moment == "last"
        if moment == point:
            die()

    teller.on = on
    for opened in (AsyncpgOpened, SqlalchemyOpened):
        commit: Any = opened.commit

        async def deadly(self: Any, commit: Any = commit) -> None:
            if is_armed and point == "written":
                die()
            await commit(self)
            if is_armed and point == "committed":
                die()

        opened.commit = deadly  # type: ignore[method-assign]
    async with teller.dbos:
        if point == "recorded":
            with crash_at(RECORDED, kill=True):
                await teller.flow("SERIALIZABLE")
        await teller.flow("SERIALIZABLE")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
