"""The schema from the outside: installed, granted, emptied, dropped, by a person or a deploy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from msgspec import Struct

from dbos_async import errors
from dbos_async._store import schema
from dbos_async._store.database import DEADLINE, Connection, explained, translated

MAX_NAME_BYTES: Final = 63
"""Of a role's name; Postgres would cut the rest off."""
GRANTS: Final = (
    "grant usage on schema dbos to ROLE",
    "grant select, insert, update, delete on all tables in schema dbos to ROLE",
    "grant usage on all sequences in schema dbos to ROLE",
    "grant execute on all functions in schema dbos to ROLE",
)
"""All that an app needs that does not install the schema."""

# Two looks, because a statement that names a table needs it to be there.
FIND_CONTENT: Final = """
select to_regnamespace('dbos') is not null, to_regclass('dbos.workflow_status') is not null,
       to_regclass('dbos.executors') is not null
"""
COUNT_CONTENT: Final = """
select count(*), count(*) filter (where w.status in ('ENQUEUED', 'DELAYED', 'PENDING'))
  from dbos.workflow_status w
"""
FETCH_ALIVE: Final = """
select format('%s (process %s on %s)', e.executor_id, e.process_id, e.hostname)
  from dbos.executors e
 where e.is_alive
 order by e.started_at
"""

# Everything but which version of the schema it is.
TRUNCATE: Final = """
select format('truncate %s restart identity',
              string_agg(format('dbos.%I', c.relname), ', ' order by c.relname))
  from pg_class c
 where c.relnamespace = to_regnamespace('dbos') and c.relkind in ('r', 'p')
   and c.relname not in ('dbos_migrations', 'dbos_async_schema')
"""
DROP: Final = "drop schema if exists dbos cascade"
LIMIT_LOCKS: Final = "select set_config('lock_timeout', '10s', false)"


class Content(Struct, frozen=True):
    """What a reset would do away with."""

    workflows: int
    unfinished: int
    executors: list[str]
    """Those that live, in words."""


async def install(url: str) -> int:
    """Bring the schema up to date; its version then. Raises as `schema.install` does."""
    async with _connected(url) as connection:
        await schema.check_server(connection)
        await schema.install(connection)
        return await schema.fetch_version(connection)


async def find_foreign_indexes(url: str) -> list[schema.ForeignIndex]:
    """The official library's indexes that nothing of ours uses."""
    async with _connected(url) as connection:
        return await schema.find_foreign_indexes(connection)


async def drop_foreign_indexes(url: str) -> list[str]:
    """Drop the official library's indexes; their names."""
    async with _connected(url) as connection:
        return await schema.drop_foreign_indexes(connection)


async def grant(url: str, role: str) -> bool:
    """Give a role what an app needs; whether there is such a role.

    Raises:
        ConfigurationError: we may not.
    """
    async with _connected(url) as connection:
        try:
            async with connection.transaction():
                for statement in grants_of(role):
                    await connection.execute(statement, timeout=DEADLINE)
        except asyncpg.UndefinedObjectError:
            return False
        except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as exc:
            raise errors.ConfigurationError(f"the rights cannot be granted: {exc}") from None
    return True


def grants_of(role: str) -> list[str]:
    """What gives a role the rights that an app needs.

    Raises:
        ValueError: it cannot be a role's name.
    """
    return [statement.replace("ROLE", quoted(role)) for statement in GRANTS]


def quoted(name: str) -> str:
    """A name as SQL reads it, whatever is in it.

    Raises:
        ValueError: Postgres cannot have such a name.
    """
    if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{name!r} is no name: it has 1 to {MAX_NAME_BYTES} bytes, and no NUL")
    return '"' + name.replace('"', '""') + '"'


async def look(url: str) -> Content | None:
    """What a reset would do away with; None where there is no schema."""
    async with _connected(url) as connection:
        [(schema_is_there, has_workflows, has_executors)] = await connection.fetch(FIND_CONTENT)
        if not schema_is_there:
            return None
        workflows = unfinished = 0
        if has_workflows:
            [(workflows, unfinished)] = await connection.fetch(COUNT_CONTENT, timeout=600)
        alive = await connection.fetch(FETCH_ALIVE, timeout=DEADLINE) if has_executors else []
        return Content(workflows, unfinished, [row[0] for row in alive])


async def empty(url: str) -> None:
    """Delete everything, and keep the schema."""
    async with _connected(url) as connection:
        await connection.execute(LIMIT_LOCKS)
        statement = await connection.fetchval(TRUNCATE, timeout=DEADLINE)
        if statement is not None:
            await connection.execute(statement, timeout=600)


async def drop(url: str) -> None:
    """Drop the schema with everything in it."""
    async with _connected(url) as connection:
        await connection.execute(LIMIT_LOCKS)
        await connection.execute(DROP, timeout=600)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    with explained(url), translated():
        connection = await asyncpg.connect(url, timeout=DEADLINE)
    try:
        with translated():
            yield connection
    finally:
        await connection.close(timeout=DEADLINE)
