"""`dbos-async queue` and `executors`: what waits, who works, and how that is changed."""

import re
from typing import Any

import asyncpg
import pytest
from commands import Commands, plain
from managed import managed

from dbos_async import DBOS, Client, RateLimit

NO_LIMITS = {
    "concurrency": None,
    "worker_concurrency": None,
    "rate_limit": None,
    "worker_rate_limit": None,
    "partition_concurrency": None,
    "partition_worker_concurrency": None,
    "partition_rate_limit": None,
}


async def declare(url: str) -> None:
    dbos = DBOS("shop", url, app_version="1")
    dbos.queue("mail", concurrency=5, rate_limit=RateLimit(100, per=60))
    dbos.queue("bills")
    async with dbos:
        pass


async def enqueue(url: str, *queues: str, **options: Any) -> None:
    async with Client(url) as client:
        for queue in queues:
            await client.enqueue(queue, client.stub("work").with_options(**options))


async def test_queues_are_listed_with_what_waits_and_what_runs(cli: Commands) -> None:
    await declare(cli.url)
    await enqueue(cli.url, "mail", "mail")
    await enqueue(cli.url, "mail", delay=3600)
    bills, mail = await cli.json("queue", "list")
    assert bills == {
        "name": "bills",
        "app_name": "shop",
        "is_declared": True,
        "is_paused": False,
        "enqueued": 0,
        "oldest_enqueued_at": None,
        "delayed": 0,
        "pending": 0,
        **NO_LIMITS,
    }
    assert (mail["enqueued"], mail["delayed"], mail["pending"]) == (2, 1, 0)
    async with Client(cli.url) as client:
        for shown in (bills, mail):
            queue = await client.retrieve_queue(shown["name"])
            assert await queue.depth() == shown["enqueued"]
            assert plain(queue.limits) == {name: shown[name] for name in NO_LIMITS}
    header, _, line = (await cli("queue", "list")).stdout.splitlines()
    columns = "queue app state waiting since delayed running limits"
    assert header.split() == columns.split()
    assert re.match(r"mail +shop +2 +\d+s +1 +0 +concurrency 5, rate limit 100/1m", line)


async def test_what_runs_and_what_was_deleted_is_listed_too(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        await shop.mail.enqueue(shop.waiting.with_options(workflow_id="w"), 1)
        await shop.until(lambda: "hold" in shop.calls)
        [mail] = await cli.json("queue", "list")
        assert (mail["enqueued"], mail["pending"]) == (0, 1)
        await shop.mail.delete()
        [mail] = await cli.json("queue", "list")
        assert (mail["is_declared"], mail["pending"]) == (False, 1)
        assert " deleted " in (await cli("queue", "list")).stdout
        shop.gate.set()


async def test_no_queues_are_no_error(cli: Commands) -> None:
    assert (await cli("queue", "list")).stdout == "There are no queues.\n"
    assert await cli.json("queue", "list") == []


async def test_a_queue_is_paused_and_goes_on(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        said = (await cli("queue", "pause", "mail")).stdout
        assert said == "mail is paused, until: dbos-async queue resume mail\n"
        paused = await cli.json("queue", "pause", "mail")
        assert paused == {"name": "mail", "is_paused": True}
        assert " paused " in (await cli("queue", "list")).stdout
        await shop.mail.enqueue(shop.simple.with_options(workflow_id="w"), 1)
        assert (await cli.json("queue", "list"))[0]["is_paused"]
        assert (await shop.status()).status == "ENQUEUED"
        assert (await cli("queue", "resume", "mail")).stdout == "mail goes on.\n"
        await shop.until_status("SUCCESS")
        resumed = await cli.json("queue", "resume", "mail")
        assert resumed == {"name": "mail", "is_paused": False}


async def test_limits_are_changed_and_taken_away(cli: Commands) -> None:
    await declare(cli.url)
    done = await cli("queue", "set", "mail", "--concurrency", "7", "--worker-rate-limit", "5/s")
    assert done.stdout == "mail: concurrency 7, rate limit 100/1m, worker rate limit 5/1s\n"
    assert "newest version that starts makes the limits those of its code again" in done.stderr
    async with Client(cli.url) as client:
        queue = await client.retrieve_queue("mail")
    assert (queue.concurrency, queue.worker_rate_limit) == (7, RateLimit(5, per=1.0))
    changed = await cli.json("queue", "set", "mail", "--rate-limit", "none")
    assert changed == {
        **NO_LIMITS,
        "name": "mail",
        "concurrency": 7,
        "worker_rate_limit": {"limit": 5, "per": 1.0},
    }


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["pause", "nowhere"], 1, "no queue named 'nowhere'"),
        (["resume", "x'; drop table dbos.queues; --"], 1, "no queue named"),
        (["set", "nowhere", "--concurrency", "1"], 1, "no queue named 'nowhere'"),
        (["set", "mail"], 2, "which limit?"),
        (["set", "mail", "--concurrency", "many"], 2, "'many' is no number"),
        (["set", "mail", "--concurrency", "0"], 2, "at least 1"),
        (["set", "mail", "--rate-limit", "100"], 2, "'100' is no rate"),
        (["set", "mail", "--rate-limit", "100/"], 2, "no duration"),
        (["set", "mail", "--worker-concurrency", "6"], 2, "more than concurrency=5"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused(
    cli: Commands, arguments: list[str], code: int, why: str
) -> None:
    await declare(cli.url)
    before = await cli.json("queue", "list")
    assert why in await cli.refused("queue", *arguments, code=code)
    assert await cli.json("queue", "list") == before


async def test_the_processes_that_run_are_listed(cli: Commands) -> None:
    nothing = "No process runs workflows here: nothing is being worked on.\n"
    assert (await cli("executors")).stdout == nothing
    async with managed(cli.url) as shop:
        held = await shop.hold()
        [listed] = await cli.json("executors")
        [expected] = plain(await shop.dbos.list_executors())
        assert listed.pop("last_seen_at") <= expected.pop("last_seen_at")
        assert listed == expected
        header, line = (await cli("executors")).stdout.splitlines()
        assert header.split()[:5] == ["executor", "id", "state", "workflows", "app"]
        assert re.match(rf"{shop.dbos.executor_id} +alive +1 +shop +1 ", line)
        assert line.count(" ago") == 2
        shop.gate.set()
        await held.get_result()


async def test_a_process_that_takes_nothing_new_is_told(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        await shop.dbos.deactivate()
        waiting = await shop.mail.enqueue(shop.simple, 1)
        assert "deactivated" in (await cli("executors")).stdout
        stands = (await cli("workflow", "get", waiting.workflow_id)).stdout
        assert "deactivated" in stands
        assert "launch it again" in " ".join(stands.split())


async def test_of_a_dead_process_only_what_is_known_is_said(
    cli: Commands, database: asyncpg.Connection
) -> None:
    for name, lease, seen in (("silent", None, 0), ("leased", 10_000, 60_000)):
        await database.execute(
            "insert into dbos.dbos_async_executors (executor_id, application_name,"
            " application_version, hostname, process_id, boot, started_at_epoch_ms, lease_ms,"
            " last_seen_epoch_ms) values ($1, 'shop', '1', 'host', 1, $1, 0, $2, $3)",
            name,
            lease,
            seen,
        )
        await database.execute(
            "insert into dbos.workflow_status"
            " (workflow_uuid, status, name, executor_id, application_name, application_version)"
            " values ($1, 'PENDING', 'n', $1, 'shop', '1')",
            name,
        )
    leased, silent = await cli.json("executors")
    assert silent["last_seen_at"] is None
    assert leased["last_seen_at"] == "1970-01-01T00:01:00Z"
    header, of_leased, of_silent = (await cli("executors")).stdout.splitlines()
    assert header.split()[-2:] == ["started", "seen"]
    assert re.search(r"dead .* \d+d ago +-$", of_silent.rstrip())
    assert re.search(r"dead .* \d+d ago +\d+d ago$", of_leased.rstrip())
