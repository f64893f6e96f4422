"""What transactions on another database than ours came to: `dbos.datasource_outputs`, there.

A row commits with the effects that it stands for, and outlives the process that did not come to
record the step here. It is inserted first and then asked whether the workflow is still ours: who
takes over later waits for the row, and who took over before is seen. So of any number of owners one
has the effect, though there is no fence there.

    step_id    2.1@8c1f0e5a9b3d.4e2a…-17
               └─┘ └──────────┘ └──────┘
               the step's key   which incarnation of the workflow it is: another one after a rewind,
                    │           or if the id was deleted and used again
               which system database: several may share this one
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from dbos_async import errors
from dbos_async._store import sql
from dbos_async._store.borrowed import kinds_of
from dbos_async._store.database import LOST, Database
from dbos_async._store.datasources import (
    Datasource,
    Opened,
    is_conflict,
    is_lacking_rights,
    is_locked,
    is_outage,
    said_by,
)

PLAIN: Final = "READ COMMITTED"
OUTPUTS_SCHEMA: Final = "create schema if not exists dbos"
OUTPUTS_TABLE: Final = """
create table if not exists dbos.datasource_outputs (
    workflow_id text not null,
    step_id text not null,
    output text,
    error text,
    serialization text,
    created_at bigint not null default (extract(epoch from now()) * 1000)::bigint,
    primary key (workflow_id, step_id)
)"""
COLUMNS: Final = {
    "workflow_id": "text",
    "step_id": "text",
    "output": "text",
    "error": "text",
    "serialization": "text",
    "created_at": "bigint",
}
PAGE: Final = 1_000


class OutputId(NamedTuple):
    """Whose row it is."""

    workflow_id: str
    step_id: str


class Key(NamedTuple):
    """What a step id is made of."""

    step_key: str
    system: str
    incarnation: str

    def __str__(self) -> str:
        return f"{self.step_key}@{self.system}.{self.incarnation}"


def key_of(step_id: str) -> Key:
    """A step id, taken apart."""
    step_key, _, rest = step_id.partition("@")
    system, _, incarnation = rest.partition(".")
    return Key(step_key, system, incarnation)


async def fetch_system(database: Database) -> str:
    """What rows call this system database."""
    async with database.lease() as connection:
        system_id: str = await connection.fetchval(sql.FETCH_SYSTEM)
    return system_id.replace("-", "")[:12]


async def find_incarnation(database: Database, workflow_id: str, owner: str) -> str | None:
    """Which incarnation of a workflow runs, if this owner still has it."""
    async with database.lease() as connection:
        found: str | None = await connection.fetchval(sql.FIND_INCARNATION, workflow_id, owner)
    return found


async def find_cancelled_incarnation(database: Database, workflow_id: str) -> str:
    """Which incarnation of a workflow was cancelled; nobody's, if it is gone."""
    async with database.lease() as connection:
        found = await connection.fetchval(sql.FIND_CANCELLED_INCARNATION, workflow_id)
    return str(found or "")


@asynccontextmanager
async def begun(
    datasource: Datasource[Any], *, commits: bool = False
) -> AsyncIterator[Opened[Any]]:
    """A transaction of ours there, for the block; rolled back unless it `commits`.

    Raises:
        DatabaseLostError: the server is away, or somebody else was in the way for too long.
        DatabaseRefusedError: Postgres rejected it.
    """
    opened = await datasource.begin(PLAIN)
    try:
        yield opened
        await (opened.commit() if commits else opened.abort())
    except (asyncpg.PostgresError, *LOST, *kinds_of("sqlalchemy.exc", "SQLAlchemyError")) as exc:
        passes = opened.is_broken or is_outage(exc) or is_conflict(exc) or is_locked(exc)
        await opened.abort()
        if passes:
            raise errors.DatabaseLostError(said_by(exc)) from exc
        raise errors.DatabaseRefusedError(said_by(exc)) from exc
    except BaseException:
        await opened.abort()
        raise


async def install(datasource: Datasource[Any]) -> None:
    """Make sure that the table is there and can be used.

    Raises:
        ConfigurationError: it is not; the message has the SQL to run.
        DatabaseLostError: the server cannot be reached now.
    """
    async with begun(datasource) as opened:
        columns = {row[0]: row[1] for row in await opened.fetch(sql.FIND_OUTPUTS_TABLE)}
        if columns:
            return await check(datasource, opened, columns)
    return await create(datasource)


async def check(datasource: Datasource[Any], opened: Opened[Any], columns: dict[str, str]) -> None:
    """Refuse a table that will not do. Raises ConfigurationError."""
    wrong = [
        f"{name} {columns.get(name)}" for name, kind in COLUMNS.items() if columns.get(name) != kind
    ]
    if wrong:
        raise errors.ConfigurationError(
            f"the table dbos.datasource_outputs of {datasource.name} is not what transactions need "
            f"({', '.join(wrong)}), such as one that the official library has made: let that use "
            "another schema, and drop or rename this one once no workflow needs it. It should be:"
            f"\n{OUTPUTS_TABLE};"
        )
    missing = await opened.fetch(sql.MISSING_OUTPUTS_GRANTS)
    if missing:
        raise lacking(datasource.name, await asker(opened), [row[0] for row in missing])


async def create(datasource: Datasource[Any]) -> None:
    """Create the table. Raises as `install` does."""
    try:
        async with begun(datasource, commits=True) as opened:
            await opened.fetch(sql.LOCK_OUTPUTS_TABLE)
            await opened.fetch(OUTPUTS_SCHEMA)
            await opened.fetch(OUTPUTS_TABLE)
    except errors.DatabaseRefusedError as exc:
        if exc.__cause__ is None or not is_lacking_rights(exc.__cause__):
            raise
        raise errors.ConfigurationError(
            f"transactions on {datasource.name}, which is not the system database, need a table "
            f"there that its role may not create ({exc}). Run this as one that may:\n"
            f"{OUTPUTS_SCHEMA};{OUTPUTS_TABLE};\n"
            "grant usage on schema dbos to the_role;\n"
            "grant select, insert, delete on dbos.datasource_outputs to the_role;"
        ) from exc


async def asker(opened: Opened[Any]) -> str:
    """The role of a connection."""
    [[role]] = await opened.fetch(sql.WHO_ASKS)
    return str(role)


def lacking(name: str, role: str, rights: Sequence[str]) -> errors.ConfigurationError:
    """What an app is told whose datasource's role may do too little."""
    grants = "\n".join(f'grant {right} to "{role}";' for right in rights)
    return errors.ConfigurationError(
        f"transactions on {name} record their steps there, and the role {role!r} may not. Run this "
        f"as one that may grant it:\n{grants}"
    )


async def insert(opened: Opened[Any], output_id: OutputId, output: str) -> bool:
    """Write down what a transaction came to; whether there was nothing there yet."""
    return bool(await opened.fetch(sql.INSERT_OUTPUT, *output_id, output))


async def find(opened: Opened[Any], output_id: OutputId) -> str | None:
    """What a transaction came to, if it did."""
    rows = await opened.fetch(sql.FIND_OUTPUT, *output_id)
    return None if not rows else str(rows[0][0])


async def settle(datasource: Datasource[Any], output_id: OutputId) -> str | None:
    """What a transaction came to; None: it was not committed, and never is.

    It is found out by trying to take its place, which waits for one under way.

    Raises:
        DatabaseLostError: it is under way still, or the server is away: ask again.
    """
    async with begun(datasource) as opened:
        await opened.fetch(sql.LIMIT_LOCKS)
        if await insert(opened, output_id, ""):
            return None
        return await find(opened, output_id)


async def delete(datasource: Datasource[Any], ids: Sequence[OutputId]) -> None:
    """Delete these rows, if they are there."""
    rows = [{"workflow_id": one.workflow_id, "step_id": one.step_id} for one in ids]
    async with begun(datasource, commits=True) as opened:
        await opened.fetch(sql.DELETE_OUTPUTS, msgspec.json.encode(rows).decode())


async def sweep(datasource: Datasource[Any], database: Database, system: str) -> None:
    """Delete all rows that nobody needs any more, whoever left them."""
    after = OutputId("", "")
    while page := await fetch_page(datasource, system, after):
        spent = await find_spent(database, page)
        if spent:
            await delete(datasource, spent)
        if len(page) < PAGE:
            return
        after = page[-1]


async def fetch_page(datasource: Datasource[Any], system: str, after: OutputId) -> list[OutputId]:
    """The next rows of ours."""
    async with begun(datasource) as opened:
        rows = await opened.fetch(sql.FETCH_OUTPUTS, f"%@{system}.%", *after)
    return [OutputId(*row) for row in rows]


async def find_spent(database: Database, ids: Sequence[OutputId]) -> list[OutputId]:
    """Those that nobody needs any more."""
    keys = [key_of(one.step_id) for one in ids]
    async with database.lease() as connection:
        rows = await connection.fetch(
            sql.FIND_SPENT,
            [one.workflow_id for one in ids],
            [key.step_key for key in keys],
            [key.incarnation for key in keys],
        )
    return [ids[row[0] - 1] for row in rows]
