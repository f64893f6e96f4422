"""Queues: `queue list`, `pause`, `resume`, `set`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer

from dbos_async._client import Client
from dbos_async._config import seconds_of
from dbos_async._limits import Limits, RateLimit
from dbos_async._queue import Queue
from dbos_async._store import health
from dbos_async._store.clock import moment_of
from dbos_async._store.health import QueueLoad
from dbos_async.cli.moments import seconds_in, shown_age, shown_seconds
from dbos_async.cli.options import AsJson, DatabaseUrl, asked
from dbos_async.cli.output import MISUSED, Row, show, show_json, stop

COUNTS: Final = (
    "concurrency",
    "worker_concurrency",
    "partition_concurrency",
    "partition_worker_concurrency",
)
UNTIL_LAUNCH: Final = (
    "The next process of the app's newest version that starts makes the limits those of its code "
    'again, unless the queue is declared there with on_conflict="never_update".'
)
"""What few expect of `set`."""
Name = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
Count = Annotated[str | None, typer.Option(metavar="N", help="So many at a time; none: no limit.")]
Rate = Annotated[
    str | None, typer.Option(metavar="N/TIME", help="Starts within any such time, as in 100/1m.")
]


def list_queues(*, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the queues: what waits, what runs, and their limits."""

    async def look(client: Client) -> tuple[list[Queue], list[QueueLoad]]:
        loads = await health.fetch_queue_loads(client._own_session().database)
        return await client.list_queues(), loads

    queues, loads = asked(database_url, look)
    limits = {queue.name: queue.limits for queue in queues}
    if as_json:
        show_json([fields_of(load, limits.get(load.name)) for load in loads])
        return
    now = datetime.now(UTC)
    rows = [row_of(load, limits.get(load.name), now) for load in loads]
    show(rows, as_json=False, nothing="There are no queues.", folded=("queue", "app", "limits"))


def pause_queue(name: Name, *, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Let no process take anything more off a queue; what runs goes on."""

    async def pause(client: Client) -> None:
        await (await client.retrieve_queue(name)).pause()

    asked(database_url, pause)
    if as_json:
        show_json({"name": name, "is_paused": True})
    else:
        typer.echo(f"{name} is paused, until: dbos-async queue resume {name}")


def resume_queue(name: Name, *, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Let the processes take work off a queue again."""

    async def resume(client: Client) -> None:
        await (await client.retrieve_queue(name)).resume()

    asked(database_url, resume)
    if as_json:
        show_json({"name": name, "is_paused": False})
    else:
        typer.echo(f"{name} goes on.")


def set_queue(
    name: Name,
    *,
    concurrency: Count = None,
    worker_concurrency: Count = None,
    rate_limit: Rate = None,
    worker_rate_limit: Rate = None,
    partition_concurrency: Count = None,
    partition_worker_concurrency: Count = None,
    partition_rate_limit: Rate = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Change limits of a queue; all processes follow within a second. `none` takes one away.

    A launch of the app's newest version makes them those of its code again, unless the queue is
    declared with on_conflict="never_update".
    """
    given = {
        "concurrency": concurrency,
        "worker_concurrency": worker_concurrency,
        "rate_limit": rate_limit,
        "worker_rate_limit": worker_rate_limit,
        "partition_concurrency": partition_concurrency,
        "partition_worker_concurrency": partition_worker_concurrency,
        "partition_rate_limit": partition_rate_limit,
    }
    changes: Any = changes_in({key: text for key, text in given.items() if text is not None})

    async def change(client: Client) -> Limits:
        queue = await client.retrieve_queue(name)
        await queue.update(**changes)
        return queue.limits

    limits = asked(database_url, change)
    if as_json:
        show_json({"name": name, **limits_of(limits)})
    else:
        typer.echo(f"{name}: {shown_limits(limits) or 'no limits'}")
    typer.echo(UNTIL_LAUNCH, err=True)


def changes_in(given: dict[str, str]) -> dict[str, int | RateLimit | None]:
    """The limits that options mean; what they cannot mean ends the command."""
    if not given:
        stop("which limit? As in --concurrency 10, or --rate-limit 100/1m", MISUSED)
    try:
        return {
            name: None if text == "none" else count_in(text) if name in COUNTS else rate_in(text)
            for name, text in given.items()
        }
    except ValueError as exc:
        stop(str(exc), MISUSED)


def count_in(text: str) -> int:
    """A number.

    Raises:
        ValueError: it is none.
    """
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no number of workflows: write 10, or none for no limit")
    return int(text)


def rate_in(text: str) -> RateLimit:
    """A rate such as 100/1m.

    Raises:
        ValueError: it is none.
    """
    count, slash, period = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no rate: write 100/1m or 5/s, or none for no limit")
    if period and not period[0].isdecimal():
        period = f"1{period}"
    return RateLimit(count_in(count), seconds_in(period))


def row_of(load: QueueLoad, limits: Limits | None, now: datetime) -> Row:
    """A queue in a line."""
    oldest = None if load.oldest_ms is None else moment_of(load.oldest_ms)
    return {
        "queue": "(internal)" if is_internal(load) else load.name,
        "app": load.application,
        "state": state_of(load),
        "waiting": load.enqueued,
        "since": None if oldest is None else shown_age(oldest, now),
        "delayed": load.delayed,
        "running": load.pending,
        "limits": "" if limits is None else shown_limits(limits),
    }


def is_internal(load: QueueLoad) -> bool:
    """Whether every process works on it: what was resumed, forked or parked waits there."""
    return load.name.startswith("_dbos_")


def state_of(load: QueueLoad) -> str:
    """What a person should know of it."""
    if is_internal(load):
        return ""
    if not load.is_declared:
        return "deleted"
    return "paused" if load.is_paused else ""


def shown_limits(limits: Limits) -> str:
    """The limits that there are, in a line."""
    found = {name: getattr(limits, name) for name in limits.__struct_fields__}
    return ", ".join(
        f"{name.replace('_', ' ')} {shown_limit(limit)}"
        for name, limit in found.items()
        if limit is not None
    )


def shown_limit(limit: int | RateLimit) -> str:
    """A limit, as the options take it."""
    if isinstance(limit, RateLimit):
        return f"{limit.limit}/{shown_seconds(seconds_of(limit.per))}"
    return str(limit)


def fields_of(load: QueueLoad, limits: Limits | None) -> dict[str, object]:
    """A queue as JSON has it."""
    since = None if load.oldest_ms is None else moment_of(load.oldest_ms)
    return {
        "name": load.name,
        "app_name": load.application,
        "is_declared": load.is_declared,
        "is_paused": load.is_paused,
        "enqueued": load.enqueued,
        "oldest_enqueued_at": since,
        "delayed": load.delayed,
        "pending": load.pending,
        **limits_of(limits or Limits()),
    }


def limits_of(limits: Limits) -> dict[str, object]:
    """Limits as JSON has them."""
    return {
        name: None
        if value is None
        else value
        if isinstance(value, int)
        else {"limit": value.limit, "per": seconds_of(value.per)}
        for name, value in msgspec.structs.asdict(limits).items()
    }
