"""The schema in a database: installed, adopted, verified.

schema.sql is the only source: its three parts are applied in order, and what `verify` expects is
read from its text. An install looks first and, if nothing is missing, runs no DDL at all: even a
statement that changes nothing queues for a lock, and everybody's writes queue behind it.

    empty database      all of schema.sql in one transaction
    tables are there    part 1 in a transaction; part 2 `concurrently`, an index at a time; part 3,
                        the version, last: if a process dies in between, the next one does it all

Processes that launch at once take turns by an advisory lock. They ask for it again and again
rather than wait in it: a session that waits holds a snapshot, and `create index concurrently`
waits for every snapshot older than its own, so the two would wait for each other.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib import resources
from typing import Final, NamedTuple

import asyncpg

from dbos_async import errors
from dbos_async._config import LISTEN_URL_VARIABLE
from dbos_async._log import log
from dbos_async._store.connections import is_shared
from dbos_async._store.database import DEADLINE, Connection, translated

SCHEMA_VERSION: Final = 3
"""What part 3 of schema.sql writes."""
OFFICIAL_VERSION: Final = 125
"""The version of the shared layout that schema.sql is written for."""
OLDEST_SERVER: Final = 14

LOCK_TIMEOUT: Final = 2.0
"""Seconds that a statement may queue for a lock, because others' statements queue behind it."""
PATIENCE: Final = 60.0
"""Seconds that others' transactions may keep the schema from being changed."""
BUILD_TIMEOUT: Final = 3_600.0
"""Seconds that one index may take."""
TURN_PATIENCE: Final = 900.0
"""Seconds that another process's install may take: it may be building indexes on a large table."""

FETCH_VERSION: Final = "select version from dbos.dbos_async_schema"
TAKE_TURN: Final = "select pg_try_advisory_lock(hashtextextended('dbos_async schema', 0))"
AWAIT_TURN: Final = "select pg_advisory_xact_lock(hashtextextended('dbos_async schema', 0))"
END_TURN: Final = "select pg_advisory_unlock(hashtextextended('dbos_async schema', 0))"
LIMIT_TRANSACTION: Final = """
select set_config('lock_timeout', $1, true), set_config('statement_timeout', '0', true)
"""
LIMIT_SESSION: Final = """
select set_config('lock_timeout', $1, false), set_config('statement_timeout', '0', false)
"""
UNLIMIT_SESSION: Final = "reset lock_timeout; reset statement_timeout"

# Two looks, because a statement that names a table needs it to be there.
FIND_TABLES: Final = """
select to_regclass('dbos.workflow_status') is not null,
       to_regclass('dbos.dbos_migrations') is not null
"""
FETCH_OFFICIAL_VERSION: Final = "select max(version) from dbos.dbos_migrations"

# Whether the index may be used, and how to drop it: a build that was interrupted leaves its index
# behind, invalid, but written to.
FIND_INDEX: Final = """
select i.indisvalid, format('drop index concurrently if exists dbos.%I', c.relname)
  from pg_index i join pg_class c on c.oid = i.indexrelid
 where c.relnamespace = to_regnamespace('dbos') and c.relname = $1
"""

# Indexes of the official library, which only make writes dearer here. Unique ones stay: its clients
# name them in their statements.
FIND_FOREIGN_INDEXES: Final = """
select c.relname::text, format('drop index concurrently if exists dbos.%I', c.relname)
  from pg_index i join pg_class c on c.oid = i.indexrelid
 where c.relnamespace = to_regnamespace('dbos') and not i.indisunique
   and (starts_with(c.relname, 'idx_') or c.relname = 'workflow_status_created_at_index')
 order by 1
"""

WHO: Final = "select current_user::text, current_database()::text"

# Who may be in the way: holders of locks on our tables first, then the oldest transactions. What
# other roles' sessions do is hidden from us, their locks are not.
FETCH_BLOCKERS: Final = """
select a.pid, a.application_name, a.state, a.xact_start,
       string_agg(distinct format('%s on %s', l.mode, l.relation::regclass), ', ') as locks
  from pg_stat_activity a
  left join pg_locks l
    on l.pid = a.pid and l.granted
   and l.relation in (select oid from pg_class
                       where relnamespace = to_regnamespace('dbos') and relkind = 'r')
 where a.datname = current_database() and a.pid <> pg_backend_pid()
   and (a.xact_start is not null or l.pid is not null)
 group by a.pid, a.application_name, a.state, a.xact_start
 order by count(l.pid) = 0, a.xact_start
 limit 3
"""

FETCH_NAMES: Final = """
select case c.relkind when 'S' then 'sequence' else 'table' end, c.relname::text
  from pg_class c
 where c.relnamespace = to_regnamespace('dbos') and c.relkind in ('r', 'p', 'S')
union all
select 'column', format('%s.%s', c.relname, a.attname)
  from pg_class c join pg_attribute a on a.attrelid = c.oid
 where c.relnamespace = to_regnamespace('dbos') and c.relkind in ('r', 'p')
   and a.attnum > 0 and not a.attisdropped
union all
select 'index', c.relname::text
  from pg_class c join pg_index i on i.indexrelid = c.oid
 where c.relnamespace = to_regnamespace('dbos') and i.indisvalid
union all
select 'function', p.proname::text
  from pg_proc p
 where p.pronamespace = to_regnamespace('dbos')
"""

# schema.sql is our own text, uniformly laid out: expressions are parser enough.
TABLE: Final = r"^create table if not exists dbos\.(\w+)"
COLUMNS: Final = (
    r"^(?:create table if not exists|alter table) dbos\.(?P<table>\w+)(?P<columns>.*?);$"
)
COLUMN: Final = (
    r"^    (?:add column if not exists )?"
    r'(?!primary key \(|foreign key \(|unique \(|check \()"?(\w+)"? '
)
INDEX: Final = r"^create (?:unique )?index if not exists (\w+)"
FUNCTION: Final = r"^create or replace (?:function|procedure) dbos\.(\w+)"
SEQUENCE: Final = r"^create sequence if not exists dbos\.(\w+)"

WAYS_OUT: Final = (
    "launch once with migrate=True, or run `dbos-async migrate`, as a role that owns the schema or "
    "may create it, or apply the package's schema.sql with psql"
)


class Name(NamedTuple):
    """Something that the schema has; a column's name is `table.column`."""

    kind: str
    name: str


class ForeignIndex(NamedTuple):
    """An index that is not ours, and the statement that drops it."""

    name: str
    drop: str


class Parts(NamedTuple):
    """schema.sql at its headings."""

    tables: str
    indexes: str
    version: str


async def check_server(connection: Connection) -> None:
    """Refuse a server that the schema cannot live on.

    Raises:
        ConfigurationError: Postgres is too old, or the database is not UTF-8.
    """
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise errors.ConfigurationError(
            f"this server is Postgres {version.major}, "
            f"but dbos_async needs {OLDEST_SERVER} or newer"
        )
    with translated():
        encoding = await connection.fetchval("show server_encoding", timeout=DEADLINE)
    if encoding != "UTF8":
        raise errors.ConfigurationError(
            f"this database's encoding is {encoding}, but dbos_async needs UTF8: "
            "create one with `create database … encoding 'UTF8' template template0`"
        )


async def install(connection: Connection, *, patience: float = PATIENCE) -> None:
    """Bring the schema up to `SCHEMA_VERSION`, once, however many processes do so at a time.

    What somebody dropped from a schema of that version is made again; a newer one is left alone.
    `connection` must not be in a transaction.

    Raises:
        ConfigurationError: the role may not, or the tables are older than what can be adopted.
        DatabaseError: others' transactions were in the way for `patience` seconds; it names them.
        DatabaseLostError: the connection broke; installing again is safe.
    """
    with translated():
        if await _is_installed(connection):
            return
        if is_shared(connection):
            await _install_at_once(connection)
            return
        async with _permitted(connection), _turn(connection):
            if not await _is_installed(connection):
                await _apply(connection, patience)


async def check_installed(connection: Connection) -> None:
    """Check that there is a schema of ours that this release can work with.

    Raises:
        ConfigurationError: there is none, or an older one.
        DatabaseLostError: the connection broke.
    """
    with translated():
        version = await _fetch_version(connection)
    if version < SCHEMA_VERSION:
        found = f"is at version {version}, older than" if version else "is missing, or not"
        raise errors.ConfigurationError(
            f"the schema dbos in this database {found} this release's: is the URL that of the app? "
            "Launch the app once, or run `dbos-async migrate`: either installs it"
        )


async def fetch_version(connection: Connection) -> int:
    """The version of ours that the database has; 0 where it has none.

    Raises:
        ConfigurationError: the role may not look.
        DatabaseLostError: the connection broke.
    """
    with translated():
        return await _fetch_version(connection)


async def verify(connection: Connection) -> None:
    """Check that everything that schema.sql makes is there, and change nothing.

    Raises:
        ConfigurationError: something is missing; the message names all of it.
        DatabaseLostError: the connection broke.
    """
    with translated():
        await _check_names(connection)
        version = await _fetch_version(connection)
    if version < SCHEMA_VERSION:
        raise errors.ConfigurationError(
            f"the schema dbos is at version {version}, but this release needs {SCHEMA_VERSION}: "
            f"{WAYS_OUT}"
        )


async def find_missing(connection: Connection) -> list[str]:
    """What the schema lacks of what schema.sql makes."""
    return missing_of(names_of(schema_text()), await _fetch_names(connection))


async def find_foreign_indexes(connection: Connection) -> list[ForeignIndex]:
    """The indexes that the official library made, and that no statement of ours uses."""
    ours = {name for kind, name in names_of(schema_text()) if kind == "index"}
    rows = await connection.fetch(FIND_FOREIGN_INDEXES, timeout=DEADLINE)
    return [ForeignIndex(*row) for row in rows if row[0] not in ours]


async def drop_foreign_indexes(connection: Connection, *, patience: float = PATIENCE) -> list[str]:
    """Drop those, one at a time, while everybody works; their names.

    Raises:
        ConfigurationError: the role does not own the tables.
        DatabaseError: others' transactions were in the way for `patience` seconds; it names them.
        DatabaseLostError: the connection broke; dropping again is safe.
    """
    with translated():
        async with _permitted(connection), _turn(connection), _limited(connection, patience):
            found = await find_foreign_indexes(connection)
            for index in found:
                drop = partial(connection.execute, index.drop, timeout=BUILD_TIMEOUT)
                await _patiently(connection, patience, drop)
    return [index.name for index in found]


@cache
def schema_text() -> str:
    """schema.sql, as it came with the package."""
    return resources.files("dbos_async").joinpath("schema.sql").read_text("utf-8")


def parts_of(text: str) -> Parts:
    """The three parts of schema.sql."""
    _, *parts = re.split(r"^-- Part \d\. .*$", text, flags=re.MULTILINE)
    return Parts(*parts)


def names_of(text: str) -> list[Name]:
    """What schema.sql makes, kind by kind."""
    names = [Name("table", table) for table in re.findall(TABLE, text, re.MULTILINE)]
    for body in re.finditer(COLUMNS, text, re.MULTILINE | re.DOTALL):
        columns = re.findall(COLUMN, body["columns"], re.MULTILINE)
        names += [Name("column", f"{body['table']}.{column}") for column in columns]
    names += [Name("index", index) for index in re.findall(INDEX, text, re.MULTILINE)]
    names += [Name("function", function) for function in re.findall(FUNCTION, text, re.MULTILINE)]
    names += [Name("sequence", sequence) for sequence in re.findall(SEQUENCE, text, re.MULTILINE)]
    return names


def missing_of(expected: list[Name], found: set[Name]) -> list[str]:
    """What to tell a person is missing. A table that is missing speaks for its columns."""
    missing = [name for name in expected if name not in found]
    tables = {name for kind, name in missing if kind == "table"}
    return [
        f"{kind} {name}"
        for kind, name in missing
        if kind != "column" or name.partition(".")[0] not in tables
    ]


async def _fetch_names(connection: Connection) -> set[Name]:
    return {Name(*row) for row in await connection.fetch(FETCH_NAMES, timeout=DEADLINE)}


async def _check_names(connection: Connection) -> None:
    found = await _fetch_names(connection)
    if not found:
        raise errors.ConfigurationError(
            f"there is no schema dbos with tables in this database: {WAYS_OUT}"
        )
    if missing := missing_of(names_of(schema_text()), found):
        raise errors.ConfigurationError(f"the schema dbos lacks {', '.join(missing)}: {WAYS_OUT}")


async def _is_installed(connection: Connection) -> bool:
    version = await _fetch_version(connection)
    if version != SCHEMA_VERSION:
        return version > SCHEMA_VERSION
    return not await find_missing(connection)


async def _fetch_version(connection: Connection) -> int:
    """The version of ours that the database has; 0 where it has none."""
    try:
        return await connection.fetchval(FETCH_VERSION, timeout=DEADLINE) or 0
    except asyncpg.UndefinedTableError:
        return 0
    except asyncpg.InsufficientPrivilegeError as exc:
        [(role, _)] = await connection.fetch(WHO, timeout=DEADLINE)
        raise errors.ConfigurationError(
            f"the role {role} cannot use the schema dbos ({exc}): grant it usage on the schema, "
            "and select, insert, update and delete on its tables, usage on its sequences"
        ) from None


@asynccontextmanager
async def _permitted(connection: Connection) -> AsyncIterator[None]:
    """Say who may not do what, if Postgres says that we may not."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as exc:
        [(role, database)] = await connection.fetch(WHO, timeout=DEADLINE)
        raise errors.ConfigurationError(
            f"the role {role} may not install the schema dbos ({exc}): {WAYS_OUT}; "
            f"`grant create on database {database} to {role}` lets it create its own"
        ) from None


@asynccontextmanager
async def _turn(connection: Connection) -> AsyncIterator[None]:
    """Be the only one who installs, for the length of the block."""
    deadline = _now() + TURN_PATIENCE
    while not await connection.fetchval(TAKE_TURN, timeout=DEADLINE):
        if _now() > deadline:
            raise errors.DatabaseError(
                f"another process has been installing the schema for {TURN_PATIENCE:.0f} s: "
                "it holds the advisory lock that pg_locks shows; end its session or wait for it"
            )
        await asyncio.sleep(_jittered(0.1))
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.fetchval(END_TURN, timeout=DEADLINE)


async def _apply(connection: Connection, patience: float) -> None:
    """Apply schema.sql in the way that suits what is there."""
    parts = parts_of(schema_text())
    if not await _is_inhabited(connection):
        await _in_transaction(connection, "".join(parts))
        log.info("schema installed", version=SCHEMA_VERSION)
        return
    try:
        await _patiently(connection, patience, lambda: _in_transaction(connection, parts.tables))
    except asyncpg.UndefinedColumnError:  # an adopted table lacks what a trigger looks at
        await _check_names(connection)
        raise
    async with _limited(connection, patience):
        for index in re.finditer(INDEX + "[^;]*;", parts.indexes, re.MULTILINE):
            build = partial(_build, connection, name=index[1], statement=index[0])
            await _patiently(connection, patience, build)
    await _check_names(connection)  # an adopted table may lack what `if not exists` does not add
    await _patiently(connection, patience, lambda: _in_transaction(connection, parts.version))
    log.info("schema brought up to date", version=SCHEMA_VERSION)


async def _install_at_once(connection: Connection) -> None:
    """Install into an empty database where no session is ours: one transaction, and its lock.

    Raises:
        ConfigurationError: there is something to be brought up to date.
    """
    async with _permitted(connection), connection.transaction():
        await connection.execute(AWAIT_TURN)
        if not await _is_inhabited(connection):
            await _in_transaction(connection, schema_text())
            log.info("schema installed", version=SCHEMA_VERSION)
            return
    if not await _is_installed(connection):
        raise errors.ConfigurationError(
            "the schema dbos has to be brought up to date, and a pooler in transaction mode is in "
            f"the way: launch once with listen_url= ({LISTEN_URL_VARIABLE}) or database_url= that "
            "leads past it"
        )


async def _is_inhabited(connection: Connection) -> bool:
    """Whether there are tables already, ours or those of the official library.

    Raises:
        ConfigurationError: they are older than what can be adopted.
    """
    [(has_workflows, has_version)] = await connection.fetch(FIND_TABLES, timeout=DEADLINE)
    version = 0
    if has_version:
        version = await connection.fetchval(FETCH_OFFICIAL_VERSION, timeout=DEADLINE) or 0
    if (has_workflows or version) and version < OFFICIAL_VERSION:
        raise errors.ConfigurationError(
            f"the schema dbos was made by an older DBOS Transact (its version is {version}), but "
            f"dbos_async adopts {OFFICIAL_VERSION} and newer: migrate it with dbos 3.4.0 or newer "
            "(`dbos migrate`), then launch again"
        )
    return bool(has_workflows)


async def _in_transaction(connection: Connection, statements: str) -> None:
    async with connection.transaction():
        await connection.execute(LIMIT_TRANSACTION, _milliseconds(LOCK_TIMEOUT), timeout=DEADLINE)
        await connection.execute(statements, timeout=10 * DEADLINE)


async def _build(connection: Connection, name: str, statement: str) -> None:
    """Build an index unless it is there. Nobody's writes wait meanwhile."""
    if found := await connection.fetchrow(FIND_INDEX, name, timeout=DEADLINE):
        is_valid, drop = found
        if is_valid:
            return
        await connection.execute(drop, timeout=BUILD_TIMEOUT)
    log.info("building index", index=name)
    statement = statement.replace(" index ", " index concurrently ", 1)
    await connection.execute(statement, timeout=BUILD_TIMEOUT)


@asynccontextmanager
async def _limited(connection: Connection, patience: float) -> AsyncIterator[None]:
    """Let builds wait long for locks: what queues behind them is DDL and vacuum only."""
    await connection.execute(LIMIT_SESSION, _milliseconds(patience), timeout=DEADLINE)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute(UNLIMIT_SESSION, timeout=DEADLINE)


async def _patiently(
    connection: Connection, patience: float, change: Callable[[], Awaitable[object]]
) -> None:
    """Make the `change`, again and again while others' locks are in its way."""
    deadline = _now() + patience
    while True:
        try:
            await change()
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as exc:
            blockers = await _fetch_blockers(connection)
            if _now() > deadline:
                raise errors.DatabaseError(
                    f"the schema could not be changed within {patience:.0f} s ({exc}), "
                    f"because of {blockers}: end that transaction, then launch again"
                ) from exc
        log.warning("schema change waits for a lock", blockers=blockers)
        await asyncio.sleep(_jittered(1.0))


async def _fetch_blockers(connection: Connection) -> str:
    """The sessions that may be in the way, in words."""
    rows = await connection.fetch(FETCH_BLOCKERS, timeout=DEADLINE)
    sessions = [
        f"session {pid} ({application or 'unnamed'}, {state or 'active'}"
        + (f", in a transaction since {began:%H:%M:%S} UTC" if began else "")
        + (f", holds {locks})" if locks else ")")
        for pid, application, state, began, locks in rows
    ]
    return " and ".join(sessions) or "a session that has ended meanwhile"


def _milliseconds(seconds: float) -> str:
    """A duration as Postgres's settings take it; 0 would mean for ever."""
    return str(max(1, round(seconds * 1000)))


def _jittered(seconds: float) -> float:
    return random.uniform(0.5, 1.5) * seconds  # noqa: S311  # jitter


def _now() -> float:
    return asyncio.get_running_loop().time()
