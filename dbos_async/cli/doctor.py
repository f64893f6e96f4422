"""`doctor`: what needs a person, and what to do about it.

    ask the database, once ─▶ Facts ─▶ one pure function a check ─▶ Check: ok, note or act

`act` is for a person, today; `note` is for a person who has time. Only the former is exit code 1.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Final, Literal

import msgspec
import typer
from msgspec import Struct
from rich.table import Table

from dbos_async._client import Client
from dbos_async._config import LISTEN_URL_VARIABLE, Settings
from dbos_async._store import health, versions
from dbos_async._store.clock import moment_of
from dbos_async._store.health import Pooling, QueueLoad, ServerRow, TableRow, TransactionRow
from dbos_async._store.schema import SCHEMA_VERSION
from dbos_async._versions import ExecutorInfo, VersionWork
from dbos_async.cli.moments import shown_age, shown_seconds
from dbos_async.cli.options import AsJson, DatabaseUrl, asked
from dbos_async.cli.output import FOUND, cell_of, console, counted, show
from dbos_async.cli.versions import shown_newest

PER_GIGABYTE: Final = 100
"""Connections that a gigabyte of memory is good for, as a rule of thumb."""
CROWDED: Final = 0.8
"""Of the server's connections."""
OLD_TRANSACTION: Final = 300.0
STUCK_TRANSACTION: Final = 3_600.0
"""Seconds."""
MANY_KEPT: Final = 1_000_000
"""Ended workflows that nothing is wrong with; listings by other filters begin to take seconds."""
BLOATED: Final = 0.5
"""Dead rows for each live one."""
FEW_ROWS: Final = 50_000
"""Dead rows that are not worth a word."""
FULL_NOTIFICATIONS: Final = 0.1
FAILING_NOTIFICATIONS: Final = 0.5
"""Of the queue of notifications; from here on triggers send none, so as not to fill it."""
OLD_WAIT: Final = 3_600.0
"""Seconds that the first of a queue has waited."""

State = Literal["ok", "note", "act"]


class Check(Struct, frozen=True):
    """One line of the list."""

    check: str
    state: State
    found: str
    what_to_do: str = ""


class Facts(Struct, frozen=True, kw_only=True):
    """All that was asked of the database."""

    now: datetime
    cap: int
    """Connections that a process may open."""
    server: ServerRow
    pooling: Pooling
    drift: list[str]
    foreign_indexes: list[str]
    executors: list[ExecutorInfo]
    work: list[VersionWork]
    dead_letters: int
    queues: list[QueueLoad]
    transaction: TransactionRow | None
    tables: list[TableRow]
    oldest_workflow_ms: int | None


def doctor(
    *,
    max_connections: Annotated[
        int, typer.Option(min=1, help="The cap of each process, DBOS(…, max_connections=…).")
    ] = Settings(name="").max_connections,
    every: Annotated[bool, typer.Option("--all", "-a", help="Also what is all right.")] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Tell what needs a person, and what to do about it.

    Exits with 1 if something does. What is marked `note` can wait. JSON has all checks.
    """
    facts = asked(database_url, lambda client: gathered(client, max_connections))
    checks = [check for look in CHECKS for check in look(facts)]
    wanted = checks if every else [each for each in checks if each.state != "ok"]
    if as_json:
        show([msgspec.structs.asdict(each) for each in checks], as_json=True, nothing="")
    else:
        show_checks(wanted)
    if not (as_json or every) and wanted:
        typer.echo(f"{len(checks) - len(wanted)} checks are all right: --all shows them.", err=True)
    if any(each.state == "act" for each in checks):
        raise typer.Exit(FOUND)


async def gathered(client: Client, cap: int) -> Facts:
    """All that is asked of the database."""
    database = client._own_session().database
    server, pooling = await asyncio.gather(health.fetch_server(database), health.pooling(database))
    return Facts(
        now=datetime.now(UTC),
        cap=cap,
        server=server,
        pooling=pooling,
        drift=await health.find_drift(database),
        foreign_indexes=await health.find_foreign_indexes(database),
        executors=await client.list_executors(),
        work=await client.list_version_work(),
        dead_letters=await versions.count_dead_letters(database, None),
        queues=await health.fetch_queue_loads(database),
        transaction=await health.find_oldest_transaction(database),
        tables=await health.fetch_table_sizes(database),
        oldest_workflow_ms=await health.find_oldest_workflow(database),
    )


def dead_letters(facts: Facts) -> Iterator[Check]:
    """Workflows that were given up."""
    if not facts.dead_letters:
        yield Check("dead letters", "ok", "none")
        return
    were = "was" if facts.dead_letters == 1 else "were"
    yield Check(
        "dead letters",
        "act",
        f"{counted(facts.dead_letters)} {were} given up, because processes died too often",
        "see `dbos-async workflow list --status DEAD`, mend the cause, then "
        "`dbos-async workflow resume --status DEAD --yes`",
    )


def stranded(facts: Facts) -> Iterator[Check]:
    """Work that no live process will do."""
    left = [each for each in facts.work if each.is_stranded]
    if not left:
        yield Check("stranded work", "ok", "all that waits has a process of its version")
    for each in left:
        whose = f"{each.app_name or 'no app'}, version {each.app_version or 'newest'}"
        yield Check(
            "stranded work",
            "act",
            f"{counted(each.total)} of {whose}: no process runs that",
            remedy_of(each, facts.work),
        )


def remedy_of(work: VersionWork, others: Sequence[VersionWork]) -> str:
    """How stranded work gets done."""
    if work.app_version is None:
        newest = shown_newest(work.app_name, others)
        return f"launch {newest}; or `dbos-async versions set-latest` one that runs"
    more = " --include-pending" if work.pending else ""
    return (
        "launch that version until it is done, or "
        f"`dbos-async versions move {work.app_version} NEW{more}`"
    )


def queues(facts: Facts) -> Iterator[Check]:
    """Queues on which work waits for a person, or for very long."""
    problems = [check for load in facts.queues if (check := queue_check(load, facts.now))]
    yield from problems
    if not problems:
        waiting = sum(load.enqueued for load in facts.queues)
        yield Check(
            "queues", "ok", f"{waiting_ones(waiting)} on {counted(len(facts.queues), 'queue')}"
        )


def queue_check(load: QueueLoad, now: datetime) -> Check | None:
    """What is wrong with one of them."""
    held = load.enqueued + load.delayed
    oldest = None if load.oldest_ms is None else moment_of(load.oldest_ms)
    is_old = oldest is not None and (now - oldest).total_seconds() > OLD_WAIT
    if held and not load.is_declared and not load.name.startswith("_dbos_"):
        return Check(
            "queues",
            "act",
            f"{load.name} was deleted, or never declared, and {waiting_ones(held)} on it",
            "launch an app that declares it, or cancel them: "
            f"`dbos-async workflow cancel --queue {load.name} --status ENQUEUED`",
        )
    if held and load.is_paused:
        return Check(
            "queues",
            "act",
            f"{load.name} is paused, and {waiting_ones(held)} on it",
            f"`dbos-async queue resume {load.name}`",
        )
    if is_old and oldest is not None:
        return Check(
            "queues",
            "note",
            f"the first of {load.enqueued:,} on {load.name} has waited for "
            f"{shown_age(oldest, now)}",
            "more processes, or higher limits: `dbos-async queue list`, `dbos-async queue set`",
        )
    return None


def waiting_ones(count: int) -> str:
    """So many workflows wait."""
    return f"{counted(count)} {'waits' if count == 1 else 'wait'}"


def processes(facts: Facts) -> Iterator[Check]:
    """Who runs."""
    alive = [each for each in facts.executors if each.is_alive]
    dead = [each for each in facts.executors if not each.is_alive and each.workflows]
    if dead and not alive:
        left = sum(each.workflows for each in dead)
        found = f"all are dead, and left {counted(left)}"
        yield Check("processes", "act", found, "launch the app: `dbos-async run MODULE:APP`")
        return
    idle = sum(each.is_deactivated for each in alive)
    found = f"{counted(len(alive), 'process')} to run workflows"
    found += f", {idle} of them deactivated" if idle else ""
    if alive and idle == len(alive):
        yield Check("processes", "act", found, "nothing new is taken: launch the app again")
    else:
        yield Check("processes", "ok", found)


def connections(facts: Facts) -> Iterator[Check]:
    """What processes may open, against what the server has."""
    server, alive = facts.server, sum(each.is_alive for each in facts.executors)
    usable = server.max_connections - server.reserved
    others = max(0, server.connections - server.ours)
    demand = alive * facts.cap
    memory = -(-server.max_connections // PER_GIGABYTE)
    found = (
        f"{server.connections} of {usable} are open, {server.ours} of them ours; "
        f"{counted(alive, 'process')} may open {facts.cap} each, {demand}; "
        f"{server.max_connections} want {memory} GB of memory"
    )
    if demand + others > usable:
        yield Check(
            "connections",
            "act",
            found,
            "fewer processes, a lower cap, a pooler, or max_connections = "
            f"{demand + others + server.reserved} or more",
        )
    elif server.connections > CROWDED * usable:
        yield Check("connections", "note", found, "see who has them: pg_stat_activity")
    else:
        yield Check("connections", "ok", found)


def pooler(facts: Facts) -> Iterator[Check]:
    """Who answers."""
    match facts.pooling:
        case "none":
            yield Check("pooler", "ok", "none: this is Postgres itself")
        case "session":
            yield Check("pooler", "ok", "one in session mode: all works")
        case "transaction":
            yield Check(
                "pooler",
                "note",
                "one in transaction or statement mode: nobody hears notifications, and all polls",
                f"give the apps listen_url= ({LISTEN_URL_VARIABLE}), a way to Postgres past it; or "
                "let them connect to Postgres itself, or to a pool in session mode",
            )


def schema(facts: Facts) -> Iterator[Check]:
    """What somebody changed."""
    if facts.drift:
        missing = ", ".join(facts.drift[:5]) + (" …" if len(facts.drift) > 5 else "")
        yield Check("schema", "act", f"it lacks {missing}", "`dbos-async migrate`")
    else:
        yield Check("schema", "ok", "all that schema.sql makes is there")
    if facts.foreign_indexes:
        yield Check(
            "foreign indexes",
            "note",
            f"{len(facts.foreign_indexes)} of DBOS Transact make every write dearer",
            "if no app of its runs here any more: `dbos-async migrate --drop-foreign-indexes`",
        )


def transactions(facts: Facts) -> Iterator[Check]:
    """What keeps vacuum from its work."""
    oldest = facts.transaction
    if oldest is None or oldest.seconds < OLD_TRANSACTION:
        yield Check("oldest transaction", "ok", "none is open for long")
        return
    end = (
        "`rollback prepared` or `commit prepared` it"
        if oldest.state == "prepared"
        else "if nobody knows why: `select pg_terminate_backend(…)` with its number"
    )
    yield Check(
        "oldest transaction",
        "act" if oldest.seconds > STUCK_TRANSACTION else "note",
        f"{oldest.who}, {oldest.state}, open for {shown_seconds(oldest.seconds)}: nothing that "
        "ended since can be vacuumed",
        end,
    )


def retention(facts: Facts) -> Iterator[Check]:
    """How many ended workflows are kept, and since when."""
    kept = sum(table.live for table in facts.tables if table.name == "workflow_status")
    ended = max(0, kept - sum(each.total for each in facts.work))
    if facts.oldest_workflow_ms is None:
        yield Check("retention", "ok", "no workflows are kept")
        return
    age = shown_age(moment_of(facts.oldest_workflow_ms), facts.now)
    found = f"about {ended:,} ended workflows are kept, the oldest is {age} old"
    if ended > MANY_KEPT:
        yield Check(
            "retention",
            "note",
            found,
            "delete what nobody asks for, as in "
            "`dbos-async workflow delete --status SUCCESS --ended-until 30d --dry-run`",
        )
    else:
        yield Check("retention", "ok", found)


def sizes(facts: Facts) -> Iterator[Check]:
    """How large the tables are, and how much of them is dead."""
    total = sum(table.table_bytes + table.index_bytes for table in facts.tables)
    largest = ", ".join(
        f"{table.name} {megabytes(table.table_bytes)} + {megabytes(table.index_bytes)} of indexes"
        for table in facts.tables[:3]
    )
    yield Check("size", "ok", f"{megabytes(total)}: {largest}")
    for table in facts.tables:
        if table.dead > max(FEW_ROWS, BLOATED * table.live):
            when = "never" if table.vacuumed is None else f"{shown_seconds(table.vacuumed)} ago"
            yield Check(
                "dead rows",
                "note",
                f"{table.name} has {table.dead:,} for {table.live:,} live ones; it was vacuumed "
                f"{when}",
                f"end old transactions, then `vacuum dbos.{table.name}`; is autovacuum on?",
            )


def notifications(facts: Facts) -> Iterator[Check]:
    """How full the server's queue of notifications is."""
    usage = facts.server.notification_queue_usage
    state: State = (
        "act" if usage >= FAILING_NOTIFICATIONS else "note" if usage >= FULL_NOTIFICATIONS else "ok"
    )
    what_to_do = "end the session that listens within an old transaction" if state != "ok" else ""
    yield Check("notification queue", state, f"{usage:.0%} full", what_to_do)


def releases(facts: Facts) -> Iterator[Check]:
    """What runs here, and beside what."""
    yield Check(
        "versions",
        "ok",
        f"Postgres {facts.server.version}, dbos_async {version('dbos_async')}, "
        f"schema {SCHEMA_VERSION}",
    )
    others = facts.server.other_tables
    where = "alone in its database" if not others else f"beside {others} other tables"
    yield Check("database", "ok", f"the schema dbos is {where}")


CHECKS: Final[tuple[Callable[[Facts], Iterator[Check]], ...]] = (
    dead_letters,
    stranded,
    processes,
    queues,
    connections,
    transactions,
    schema,
    notifications,
    pooler,
    retention,
    sizes,
    releases,
)
"""In the order in which a person wants to know."""


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**20:,.1f} MB" if size < 2**30 else f"{size / 2**30:,.1f} GB"


def show_checks(checks: Sequence[Check]) -> None:
    """Print checks for people: what was found, and below it what to do."""
    if not checks:
        typer.echo("Nothing needs you.")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        words = check.found + (f"\n→ {check.what_to_do}" if check.what_to_do else "")
        table.add_row(cell_of(check.state), cell_of(check.check), cell_of(words, is_long=True))
    console().print(table)
