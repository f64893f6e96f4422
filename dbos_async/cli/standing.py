"""Where a workflow stands, and what it waits for, in a sentence, with what a person can do."""

from collections.abc import Sequence
from datetime import UTC, datetime
from shlex import quote

from msgspec import Struct

from dbos_async._client import Client
from dbos_async._handle import StepInfo, WorkflowStatus
from dbos_async._queue import Queue
from dbos_async._store.queues import INTERNAL_QUEUE
from dbos_async._versions import ExecutorInfo, VersionWork
from dbos_async.cli.moments import shown_age, shown_moment, shown_seconds
from dbos_async.cli.versions import shown_newest


class Surroundings(Struct, frozen=True):
    """What a workflow's progress depends on."""

    steps: list[StepInfo]
    queues: list[Queue]
    executors: list[ExecutorInfo]
    versions: list[VersionWork]
    now: datetime


async def surroundings_of(client: Client, workflow_id: str) -> Surroundings:
    """What the progress of this workflow depends on."""
    return Surroundings(
        await client.list_steps(workflow_id),
        await client.list_queues(),
        await client.list_executors(),
        await client.list_version_work(),
        datetime.now(UTC),
    )


def standing_of(workflow: WorkflowStatus, around: Surroundings) -> str:
    """Where it stands."""
    match workflow.status:
        case "ENQUEUED":
            return in_line(workflow, around)
        case "DELAYED":
            nobody = nobody_for(workflow, around)
            return delayed(workflow, around) + (f"; and {nobody}" if nobody else "")
        case "PENDING":
            return begun(workflow, around)
        case "SUCCESS":
            return f"it has succeeded{took(workflow)}"
        case "ERROR":
            return (
                f"it has failed{took(workflow)}{failed_at(around.steps)}; once the cause is "
                f"mended: {command('rewind', workflow)} --from-last-failure"
            )
        case "CANCELLED":
            late = workflow.deadline is not None and workflow.deadline <= around.now
            why = ", perhaps by its deadline" if late else ""
            go_on = command("resume", workflow)
            return f"it was cancelled{why}{last_step(around)}; to let it go on: {go_on}"
        case "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            return (
                f"it is a dead letter: its processes died too often, in "
                f"{workflow.recovery_attempts} attempts{last_step(around)}; once the cause is "
                f"mended: {command('resume', workflow)}"
            )


def in_line(workflow: WorkflowStatus, around: Surroundings) -> str:
    """What keeps one that is enqueued from being taken."""
    obstacle = (
        obstacle_on(workflow, around) or nobody_for(workflow, around) or all_idle(workflow, around)
    )
    if obstacle:
        return f"it is enqueued, and {obstacle}"
    queue = workflow.queue_name
    works = "" if queue == INTERNAL_QUEUE else f"works on the queue {queue} and "
    return (
        f"it is enqueued, and waits for room in a process that {works}has the workflow "
        f"{workflow.name}"
    )


def obstacle_on(workflow: WorkflowStatus, around: Surroundings) -> str | None:
    """What is wrong with its queue."""
    if workflow.queue_name in (None, INTERNAL_QUEUE):
        return None
    found = [queue for queue in around.queues if queue.name == workflow.queue_name]
    if not found:
        return f"its queue {workflow.queue_name} was deleted: launch an app that declares it"
    if found[0].is_paused:
        return f"its queue is paused: dbos-async queue resume {quote(found[0].name)}"
    return None


def nobody_for(workflow: WorkflowStatus, around: Surroundings) -> str | None:
    """That no process runs its version, if so."""
    for work in around.versions:
        mine = (work.app_name, work.app_version) == (workflow.app_name, workflow.app_version)
        if mine and work.is_stranded:
            version = workflow.app_version
            if version is None:
                newest = shown_newest(workflow.app_name, around.versions)
                return f"no process runs the newest version of the code: launch {newest}"
            has_begun = workflow.status == "PENDING" or workflow.waiting_for is not None
            more = " --include-pending" if has_begun else ""
            ways = f"launch that, or dbos-async versions move {quote(version)} NEW{more}"
            return f"no process runs its version {version}: {ways}"
    return None


def all_idle(workflow: WorkflowStatus, around: Surroundings) -> str | None:
    """That those who could take it take nothing new, if so."""
    alive = [
        each for each in around.executors if each.is_alive and each.app_name == workflow.app_name
    ]
    if alive and all(each.is_deactivated for each in alive):
        return "the processes of its app are deactivated, and take nothing new: launch it again"
    return None


def delayed(workflow: WorkflowStatus, around: Surroundings) -> str:
    """What one that is delayed or parked waits for."""
    until = workflow.delay_until
    due = "" if until is None else f" until {shown_moment(until, around.now)}"
    word, _, what = (workflow.waiting_for or "").partition(" ")
    match word:
        case "":
            return f"it has not begun: it is delayed{due}"
        case "sleep":
            return f"it sleeps{due}{last_step(around)}"
        case "message":
            return f"it waits for a message{' on ' + what if what else ''}{due}{last_step(around)}"
        case "event":
            whose, _, key = what.partition(" ")
            event = f"the event {key} of workflow {whose}"
            return f"it waits for {event}{due}{last_step(around)}"
        case _:
            return f"it waits for {workflow.waiting_for}{due}{last_step(around)}"


def begun(workflow: WorkflowStatus, around: Surroundings) -> str:
    """What one that has begun is doing, and where."""
    found = [one for one in around.executors if one.executor_id == workflow.executor_id]
    if not found or not found[0].is_alive:
        why = nobody_for(workflow, around) or "another takes it over within seconds"
        return f"its process {workflow.executor_id} is dead, and {why}{last_step(around)}"
    where = f"process {found[0].process_id} on {found[0].hostname}"
    match workflow.waiting_for:
        case "workflow":
            return f"it waits for workflows that it enqueued, in {where}{last_step(around)}"
        case "slot":
            return f"it waits for a slot on its queue to go on, in {where}{last_step(around)}"
        case _:
            return f"it runs in {where}{last_step(around)}"


def last_step(around: Surroundings) -> str:
    """The last step that is recorded."""
    ended_steps = [step for step in around.steps if step.name != "DBOS.sleep"]
    if not ended_steps:
        return "; no step has ended yet"
    last = ended_steps[-1]
    ended = last.completed_at or last.started_at
    ago = "" if ended is None else f", {shown_age(ended, around.now)} ago"
    return f"; the last step that ended is {last.position} {last.name}{ago}"


def failed_at(steps: Sequence[StepInfo]) -> str:
    """The last step that failed."""
    failed = [step for step in steps if step.error is not None]
    return f" at step {failed[-1].position} {failed[-1].name}" if failed else ""


def command(verb: str, workflow: WorkflowStatus) -> str:
    """What to type."""
    return f"dbos-async workflow {verb} {quote(workflow.workflow_id)}"


def took(workflow: WorkflowStatus) -> str:
    """How long it took."""
    if workflow.completed_at is None:
        return ""
    since = workflow.started_at or workflow.created_at
    return f" after {shown_seconds((workflow.completed_at - since).total_seconds())}"
