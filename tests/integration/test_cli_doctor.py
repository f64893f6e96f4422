"""`dbos-async doctor`: what it finds in a database, and what it makes of what it finds."""

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from commands import Commands
from managed import managed

from dbos_async import Client
from dbos_async._store.health import QueueLoad, ServerRow, TableRow, TransactionRow
from dbos_async._versions import ExecutorInfo, VersionWork
from dbos_async.cli import doctor
from dbos_async.cli.doctor import CHECKS, Check, Facts

NOW = datetime(2026, 7, 1, tzinfo=UTC)
HEALTHY = Facts(
    now=NOW,
    cap=6,
    server=ServerRow("18.1", 100, 3, 20, 12, 0.0, 0),
    pooling="none",
    drift=[],
    foreign_indexes=[],
    executors=[
        ExecutorInfo(
            executor_id="e-1",
            app_name="shop",
            app_version="1",
            hostname="host",
            process_id=1,
            started_at=NOW,
            last_seen_at=NOW,
            is_alive=True,
            workflows=2,
        )
    ],
    work=[],
    dead_letters=0,
    queues=[],
    transaction=None,
    tables=[TableRow("workflow_status", 2**20, 2**20, 100, 10, 60.0)],
    oldest_workflow_ms=None,
)
MINUTE_AGO = int((NOW - timedelta(minutes=1)).timestamp() * 1000)


def changed(**facts: Any) -> Facts:
    return msgspec.structs.replace(HEALTHY, **facts)


def findings(facts: Facts) -> list[Check]:
    return [check for look in CHECKS for check in look(facts) if check.state != "ok"]


def test_a_healthy_database_needs_nobody() -> None:
    assert findings(HEALTHY) == []


def server(**changes: Any) -> ServerRow:
    return msgspec.structs.replace(HEALTHY.server, **changes)


def work(**changes: Any) -> VersionWork:
    fields = {"app_name": "shop", "app_version": "1", "is_latest": False, "processes": 0}
    counts = {"enqueued": 0, "delayed": 0, "pending": 0}
    return VersionWork(**{**fields, **counts, **changes})


DEAD = msgspec.structs.replace(HEALTHY.executors[0], is_alive=False)
IDLE = msgspec.structs.replace(HEALTHY.executors[0], is_deactivated=True)
HELD = QueueLoad("mail", "shop", True, False, 5, 0, 0, MINUTE_AGO)
LATE = int((NOW - timedelta(hours=3)).timestamp() * 1000)
TRANSACTION = TransactionRow("session 7 (psql)", "idle in transaction", 600.0)


@pytest.mark.parametrize(
    ("facts", "state", "found", "what_to_do"),
    [
        (changed(dead_letters=2), "act", "2 workflows were given up", "resume --status DEAD"),
        (changed(dead_letters=1), "act", "1 workflow was given up", "resume --status DEAD"),
        (
            changed(
                work=[
                    work(app_version="v2", is_latest=True),
                    work(app_name="bank", app_version="b1", is_latest=True),
                    work(app_version=None, delayed=1),
                ]
            ),
            "act",
            "1 workflow of shop, version newest",
            "launch the newest version, v2 of shop; or `dbos-async versions set-latest`",
        ),
        (changed(work=[work(enqueued=2)]), "act", "2 workflows of shop, version 1", "move 1 NEW`"),
        (changed(work=[work(pending=2)]), "act", "2 workflows", "move 1 NEW --include-pending`"),
        (changed(work=[work(app_version=None, delayed=1)]), "act", "version newest", "set-latest"),
        (changed(executors=[DEAD]), "act", "all are dead, and left 2", "dbos-async run"),
        (changed(executors=[IDLE]), "act", "1 of them deactivated", "launch the app again"),
        (changed(server=server(max_connections=10)), "act", "20 of 7 are open", "max_connections"),
        (changed(cap=90), "act", "1 process may open 90 each, 90", "= 101 or more"),
        (changed(server=server(connections=80, ours=70)), "note", "80 of 97", "pg_stat_activity"),
        (
            changed(pooling="transaction"),
            "note",
            "transaction or statement mode",
            "DBOS_LISTEN_URL",
        ),
        (changed(drift=["table x", "index y"]), "act", "it lacks table x, index y", "migrate"),
        (changed(foreign_indexes=["idx"]), "note", "1 of DBOS", "--drop-foreign-indexes"),
        (changed(transaction=TRANSACTION), "note", "session 7 (psql), idle", "terminate"),
        (
            changed(transaction=msgspec.structs.replace(TRANSACTION, seconds=7200.0)),
            "act",
            "open for 2h",
            "terminate",
        ),
        (
            changed(transaction=TransactionRow("prepared transaction x", "prepared", 7200.0)),
            "act",
            "prepared transaction x",
            "rollback prepared",
        ),
        (changed(server=server(notification_queue_usage=0.2)), "note", "20% full", "listens"),
        (changed(server=server(notification_queue_usage=0.6)), "act", "60% full", "listens"),
        (
            changed(queues=[msgspec.structs.replace(HELD, is_paused=True)]),
            "act",
            "mail is paused, and 5",
            "queue resume mail",
        ),
        (
            changed(queues=[msgspec.structs.replace(HELD, is_declared=False)]),
            "act",
            "mail was deleted",
            "cancel --queue mail",
        ),
        (
            changed(queues=[msgspec.structs.replace(HELD, oldest_ms=LATE)]),
            "note",
            "the first of 5 on mail has waited for 3h",
            "more processes",
        ),
        (
            changed(
                tables=[TableRow("workflow_status", 1, 1, 2_000_000, 0, None)],
                oldest_workflow_ms=LATE,
            ),
            "note",
            "about 2,000,000 ended workflows are kept, the oldest is 3h old",
            "workflow delete",
        ),
        (
            changed(tables=[TableRow("streams", 1, 1, 100, 60_000, None)]),
            "note",
            "streams has 60,000 for 100 live ones; it was vacuumed never",
            "vacuum dbos.streams",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_wrong_is_said_with_what_to_do(
    facts: Facts, state: str, found: str, what_to_do: str
) -> None:
    [finding] = findings(facts)
    assert finding.state == state
    assert found in finding.found
    assert what_to_do in finding.what_to_do


@pytest.mark.parametrize(
    "facts",
    [
        changed(queues=[HELD, msgspec.structs.replace(HELD, name="_dbos_x", is_declared=False)]),
        changed(queues=[msgspec.structs.replace(HELD, is_paused=True, enqueued=0, oldest_ms=None)]),
        changed(transaction=msgspec.structs.replace(TRANSACTION, seconds=60.0)),
        changed(executors=[DEAD, *HEALTHY.executors]),
        changed(pooling="session"),
        changed(tables=[TableRow("streams", 1, 1, 100, 40_000, None)]),
    ],
)
def test_what_is_as_it_should_be_is_no_finding(facts: Facts) -> None:
    assert findings(facts) == []


# On a database


async def checks(cli: Commands, code: int = 0) -> dict[str, dict[str, Any]]:
    found = await cli.json("doctor", code=code)
    return {each["check"]: each for each in found}


async def test_every_check_has_a_line(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        await shop.simple(1)
        shown = await checks(cli)
        table = (await cli("doctor", "--all")).stdout
    assert shown.keys() >= {
        "dead letters",
        "stranded work",
        "processes",
        "queues",
        "connections",
        "oldest transaction",
        "schema",
        "notification queue",
        "pooler",
        "retention",
        "size",
        "versions",
        "database",
    }
    assert {each["state"] for each in shown.values()} == {"ok"}
    assert shown["processes"]["found"] == "1 process to run workflows"
    assert "1 process may open 6 each, 6" in shown["connections"]["found"]
    assert " GB of memory" in shown["connections"]["found"]
    assert all(name in table for name in shown)


async def test_connections_are_what_the_server_counts(
    cli: Commands, database: asyncpg.Connection
) -> None:
    most = await database.fetchval("select current_setting('max_connections')::int")
    found = (await checks(cli))["connections"]["found"]
    assert f"; {most} want {-(-most // 100)} GB" in found
    too_many = await cli("doctor", "--max-connections", str(most), code=0)
    assert too_many.stdout == "Nothing needs you.\n"  # nobody runs
    async with managed(cli.url):
        crowded = (await cli("doctor", "--max-connections", str(most), code=1)).stdout
    assert "→ fewer processes, a lower cap, a pooler, or max_connections" in crowded


async def test_what_somebody_dropped_is_missed(cli: Commands, database: Any) -> None:
    await database.execute("drop index dbos.dbos_async_pending; drop table dbos.streams")
    found = (await checks(cli, code=1))["schema"]
    assert "table streams, index dbos_async_pending" in found["found"]
    await cli("migrate")
    assert (await checks(cli))["schema"]["state"] == "ok"


async def test_an_open_transaction_is_found(
    cli: Commands, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "OLD_TRANSACTION", 0.0)
    async with database.transaction():
        pid = await database.fetchval("select pg_backend_pid()")
        found = (await checks(cli))["oldest transaction"]
    assert f"session {pid} (unnamed), idle in transaction" in found["found"]


async def test_work_on_a_paused_queue_is_found(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        await shop.mail.pause()
        await shop.mail.enqueue(shop.simple, 1)
        result = await cli("doctor", code=1)
    assert "mail is paused, and 1 workflow waits on it" in result.stdout
    assert "`dbos-async queue resume mail`" in result.stdout
    assert "checks are all right: --all shows them." in result.stderr


async def test_the_ended_are_counted(cli: Commands, database: asyncpg.Connection) -> None:
    async with Client(cli.url) as client:
        assert await client.list_workflows() == []
    await database.execute(
        "insert into dbos.workflow_status (workflow_uuid, status, name, created_at)"
        " select i::text, 'SUCCESS', 'n',"
        " (extract(epoch from now() - interval '3 days') * 1000)::bigint"
        " from generate_series(1, 50) i"
    )
    await database.execute("vacuum analyze dbos.workflow_status")
    found = (await checks(cli))["retention"]["found"]
    assert found == "about 50 ended workflows are kept, the oldest is 3d old"
