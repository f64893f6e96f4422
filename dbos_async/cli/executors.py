"""Who runs: `executors`."""

from datetime import UTC, datetime

import msgspec

from dbos_async._versions import ExecutorInfo
from dbos_async.cli.moments import shown_age
from dbos_async.cli.options import AsJson, DatabaseUrl, asked
from dbos_async.cli.output import Row, show, show_json


def list_executors(*, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the processes that run workflows, and dead ones that left some."""
    found = asked(database_url, lambda client: client.list_executors())
    if as_json:
        show_json([{**msgspec.structs.asdict(each), "last_seen_at": seen(each)} for each in found])
        return
    now = datetime.now(UTC)
    nothing = "No process runs workflows here: nothing is being worked on."
    folded = ("app", "version", "host", "executor_id")
    show([row_of(each, now) for each in found], as_json=False, nothing=nothing, folded=folded)


def seen(executor: ExecutorInfo) -> datetime | None:
    """When it was seen last. Of a dead one that held a session, only its launch is known."""
    is_known = executor.is_alive or executor.last_seen_at > executor.started_at
    return executor.last_seen_at if is_known else None


def row_of(executor: ExecutorInfo, now: datetime) -> Row:
    """A process in a line."""
    last = seen(executor)
    return {
        "executor_id": executor.executor_id,
        "state": state_of(executor),
        "workflows": executor.workflows,
        "app": executor.app_name,
        "version": executor.app_version,
        "host": executor.hostname,
        "process": str(executor.process_id),
        "started": f"{shown_age(executor.started_at, now)} ago",
        "seen": None if last is None else f"{shown_age(last, now)} ago",
    }


def state_of(executor: ExecutorInfo) -> str:
    """Whether it lives, and takes something new."""
    if not executor.is_alive:
        return "dead"
    return "deactivated" if executor.is_deactivated else "alive"
