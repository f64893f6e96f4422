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
        show_json([msgspec.structs.asdict(each) for each in found])
        return
    now = datetime.now(UTC)
    nothing = "No process runs workflows here: nothing is being worked on."
    soft = ("app", "version", "host", "executor_id")
    show([row_of(each, now) for each in found], as_json=False, nothing=nothing, soft=soft)


def row_of(executor: ExecutorInfo, now: datetime) -> Row:
    """A process in a line."""
    return {
        "executor_id": executor.executor_id,
        "state": "alive" if executor.is_alive else "dead",
        "workflows": executor.workflows,
        "app": executor.app_name,
        "version": executor.app_version,
        "host": executor.hostname,
        "process": str(executor.process_id),
        "up": shown_age(executor.started_at, now),
        "seen": shown_age(executor.last_seen_at, now),
    }
