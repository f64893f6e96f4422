"""Whole databases: made and dropped over a connection to another database of the same server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import asyncpg

from dbos_async._store import schema

# A name cannot be a parameter of these; Postgres itself writes the statement, quoted.
EXISTS = "select exists (select from pg_database where datname = $1)"
CREATE = "select format('create database %I', $1::text)"
CLONE = "select format('create database %I template %I', $1::text, $2::text)"
DROP = "select format('drop database if exists %I with (force)', $1::text)"

TIMEOUT = 30.0
"""Seconds for one of these; copying a database and the checkpoint of a drop take a while."""


async def ensure_database(url: str, name: str) -> None:
    """Make the database `name` on the server of `url` unless it is there; racing others is fine."""
    async with _connected(url) as connection:
        if await connection.fetchval(EXISTS, name):
            return
        try:
            await connection.execute(await connection.fetchval(CREATE, name))
        except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
            return  # somebody else made it at this moment


async def install_schema(url: str) -> None:
    """Bring the schema in the database of `url` up to date."""
    async with _connected(url) as connection:
        await schema.install(connection)


async def clone_database(url: str, name: str, template: str) -> None:
    """Make the database `name` a copy of `template`, to which nobody may be connected."""
    async with _connected(url) as connection:
        await connection.execute(await connection.fetchval(CLONE, name, template))


async def drop_database(url: str, name: str) -> None:
    """Remove the database `name` with all in it, and whoever is connected to it."""
    async with _connected(url) as connection:
        await connection.execute(await connection.fetchval(DROP, name))


def url_of(url: str, database: str) -> str:
    """`url`, pointing at another database of the same server."""
    parts = urlsplit(url)
    query = (
        f"?{parts.query}" if parts.query else ""
    )  # urlunsplit would drop an empty host's slashes
    return f"{parts.scheme}://{parts.netloc}/{quote(database, safe='')}{query}"


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator["asyncpg.Connection"]:
    connection = await asyncpg.connect(url, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        yield connection
    finally:
        await connection.close(timeout=TIMEOUT)
