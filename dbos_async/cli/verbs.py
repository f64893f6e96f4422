"""Changing the course of workflows: by their ids, or all that fit a filter.

What a filter means is counted first, and done only with --yes.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final

import typer

from dbos_async._client import Client
from dbos_async._handle import WorkflowHandle, WorkflowStatus
from dbos_async._store.records import ALIVE, RESUMABLE
from dbos_async.cli.filters import Chosen, filtered, shown_status
from dbos_async.cli.moments import seconds_in
from dbos_async.cli.options import AsJson, DatabaseUrl, DryRun, Yes, asked
from dbos_async.cli.output import MISUSED, agree, counted, printable, show, stop
from dbos_async.cli.workflows import WorkflowId
from dbos_async.errors import WorkflowNotFoundError

WorkflowIds = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="These; else give a filter.")
]
Children = Annotated[
    bool, typer.Option("--children", help="With everything that they started, directly or not.")
]
Step = Annotated[
    str | None,
    typer.Option(
        "--step",
        metavar="STEP",
        help="The position or the name of the first step to run again; 1, all, unless given.",
    ),
]
FromLastFailure = Annotated[
    bool, typer.Option("--from-last-failure", help="From the last step that failed.")
]
NewId = Annotated[str | None, typer.Option("--id", "-f", metavar="ID", help="The new one's id.")]
ToQueue = Annotated[
    str | None,
    typer.Option("--to-queue", metavar="QUEUE", help="Where it goes on, with that queue's limits."),
]
ToVersion = Annotated[
    str | None,
    typer.Option("--to-version", metavar="VERSION", help="Which version of the code goes on."),
]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="How long it may take, as in 90s or 2h."),
]

OFF_QUEUES: Final = (
    "What was on a queue leaves it, and runs at once, whatever the queue's limits and whether it "
    "is paused; --to-queue QUEUE, with ids, keeps to them."
)
"""What few expect of `resume`."""
CHILDREN_SHOWN: Final = 1_000


@filtered
def cancel(
    ids: WorkflowIds = None,
    *,
    children: Children = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
    chosen: Chosen,
) -> None:
    """Cancel workflows, wherever they are; those that have ended are left as they are."""
    check_choice(ids, chosen)
    if ids:

        async def these(client: Client) -> list[str]:
            found = await found_of(client, ids)
            alive = [one.workflow_id for one in found if one.status in ALIVE]
            tell_ended([one for one in found if one.status not in ALIVE])
            for workflow_id in () if dry_run else alive:
                await client.cancel_workflow(workflow_id, cancel_children=children)
            return alive

        done = asked(database_url, these)
    else:
        if children:
            stop("--children goes with ids; of a filter, give one that fits them, too", MISUSED)
        done = asked(
            database_url,
            lambda client: confirmed(
                client.cancel_workflows, "cancel", chosen, yes=yes, dry_run=dry_run
            ),
        )
    tell(done, "cancelled", as_json=as_json, dry_run=dry_run)


@filtered
def resume(
    ids: WorkflowIds = None,
    *,
    to_queue: ToQueue = None,
    to_version: ToVersion = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
    chosen: Chosen,
) -> None:
    """Let workflows go on from their last step: cancelled ones, and dead letters.

    By id, also one that waits on a queue or for its time, and one that runs: it is taken from its
    process. They leave their queue, and go on at once, whatever its limits and whether it is
    paused; --to-queue puts them on one.
    """
    check_choice(ids, chosen)
    if ids:

        async def these(client: Client) -> list[str]:
            check_resumable(await found_of(client, ids))
            for workflow_id in () if dry_run else ids:
                await client.resume_workflow(workflow_id, queue=to_queue, app_version=to_version)
            return ids

        done = asked(database_url, these)
    else:
        if to_queue or to_version:
            stop("--to-queue and --to-version go with ids, not with a filter", MISUSED)
        done = asked(
            database_url,
            lambda client: confirmed(
                client.resume_workflows,
                "resume",
                chosen,
                yes=yes,
                dry_run=dry_run,
                note="; they run past the limits of their queues",
            ),
        )
    if done and not to_queue:
        typer.echo(OFF_QUEUES, err=True)
    tell(done, "resumed", as_json=as_json, dry_run=dry_run)


@filtered
def delete(
    ids: WorkflowIds = None,
    *,
    children: Children = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
    chosen: Chosen,
) -> None:
    """Delete workflows with their steps, events, streams and messages. There is no way back.

    One that has ended goes at once; several, or one that has not ended, once that was confirmed.
    """
    check_choice(ids, chosen)
    if ids:

        async def these(client: Client) -> list[str]:
            found = await found_of(client, ids)
            alive = sum(one.status in ALIVE for one in found)
            is_plain = len(found) == 1 and not alive and not children
            work = partial(client.delete_workflows, delete_children=children)
            return await confirmed(
                work,
                "delete",
                {"workflow_ids": ids},
                yes=yes or is_plain,
                dry_run=dry_run,
                more=f", {alive:,} of them not ended" if alive else "",
            )

        done = asked(database_url, these)
    else:
        done = asked(
            database_url,
            lambda client: confirmed(
                partial(client.delete_workflows, delete_children=children),
                "delete",
                chosen,
                yes=yes,
                dry_run=dry_run,
            ),
        )
    tell(done, "deleted", as_json=as_json, dry_run=dry_run)
    if done and not (children or dry_run):
        tell_left(asked(database_url, lambda client: children_of(client, done)))


def fork(
    workflow_id: WorkflowId,
    *,
    step: Step = None,
    from_last_failure: FromLastFailure = False,
    new_id: NewId = None,
    to_queue: ToQueue = None,
    to_version: ToVersion = None,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow anew under another id, from one of its steps on; it is left alone itself."""
    check_cut(step, is_last_failure=from_last_failure)

    async def run_anew(client: Client) -> WorkflowHandle[Any]:
        return await client.fork_workflow(
            workflow_id,
            step_in(step),
            from_last_failure=from_last_failure,
            new_workflow_id=new_id,
            app_version=to_version,
            queue=to_queue,
            timeout=None if timeout is None else seconds_in(timeout),
        )

    handle = asked(database_url, run_anew)
    tell_one(handle, f"{handle.workflow_id} is enqueued, a fork of {workflow_id}.", as_json=as_json)


def restart(
    workflow_id: WorkflowId,
    *,
    new_id: NewId = None,
    to_queue: ToQueue = None,
    to_version: ToVersion = None,
    timeout: Timeout = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow anew from its beginning, with the same arguments, under another id."""
    fork(
        workflow_id,
        new_id=new_id,
        to_queue=to_queue,
        to_version=to_version,
        timeout=timeout,
        database_url=database_url,
        as_json=as_json,
    )


def rewind(
    workflow_id: WorkflowId,
    *,
    step: Step = None,
    from_last_failure: FromLastFailure = False,
    to_queue: ToQueue = None,
    to_version: ToVersion = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow that has ended again, under its own id, from one of its steps on."""
    check_cut(step, is_last_failure=from_last_failure)

    async def run_again(client: Client) -> WorkflowHandle[Any]:
        return await client.rewind_workflow(
            workflow_id,
            step_in(step),
            from_last_failure=from_last_failure,
            app_version=to_version,
            queue=to_queue,
        )

    handle = asked(database_url, run_again)
    tell_one(handle, f"{workflow_id} is enqueued again.", as_json=as_json)


async def confirmed(
    act: Callable[..., Awaitable[list[str]]],
    verb: str,
    chosen: Chosen,
    *,
    yes: bool,
    dry_run: bool,
    more: str = "",
    note: str = "",
) -> list[str]:
    """Do it with all that fit, once somebody agreed to how many that are, by --yes or when asked.

    Who was asked agreed to these, and not to what fits since.
    """
    if yes and not dry_run:
        return await act(**chosen)
    ids = await act(dry_run=True, **chosen)
    if not ids or dry_run:
        return ids
    hint = f"add --yes to do it, or --dry-run to see which{note}"
    agree(f"{verb} {counted(len(ids))}{more}", yes=False, hint=hint)
    return await act(**{**chosen, "workflow_ids": chosen.get("workflow_ids", ids)})


async def children_of(client: Client, ids: Sequence[str]) -> list[str]:
    """Of the children of these, so many as are worth counting."""
    found = await client.list_workflows(
        parent_workflow_id=ids, limit=CHILDREN_SHOWN, load_input=False, load_output=False
    )
    return [one.workflow_id for one in found]


async def found_of(client: Client, ids: Sequence[str]) -> list[WorkflowStatus]:
    """These workflows, in this order.

    Raises:
        WorkflowNotFoundError: one of them is not there.
    """
    found = await client.list_workflows(
        workflow_ids=ids, limit=len(ids), load_input=False, load_output=False
    )
    by_id = {one.workflow_id: one for one in found}
    for workflow_id in ids:
        if workflow_id not in by_id:
            raise WorkflowNotFoundError(workflow_id)
    return [by_id[workflow_id] for workflow_id in dict.fromkeys(ids)]


def check_choice(ids: Sequence[str] | None, chosen: Chosen) -> None:
    """Refuse neither ids nor a filter, and both."""
    if ids and chosen:
        stop("give ids or a filter, not both", MISUSED)
    if not ids and not chosen:
        stop("which ones? Give ids, or a filter such as --status ERROR --since 2h", MISUSED)


def check_resumable(found: Sequence[WorkflowStatus]) -> None:
    """Refuse what has ended by itself, before any other is resumed."""
    for one in found:
        if one.status not in RESUMABLE:
            stop(
                f"{one.workflow_id} has ended with {one.status}, so there is nothing to resume: "
                "rewind runs it again, fork makes another of it",
                MISUSED,
            )


def check_cut(step: str | None, *, is_last_failure: bool) -> None:
    """Refuse two places to begin at."""
    if step is not None and is_last_failure:
        stop("give --step or --from-last-failure, not both", MISUSED)


def step_in(text: str | None) -> int | str:
    """A step's position, or its name."""
    if text is None:
        return 1
    return int(text) if text.isdecimal() else text


def tell_ended(ended: Sequence[WorkflowStatus]) -> None:
    """Say what is left alone."""
    for one in ended:
        status = shown_status(one.status)
        typer.echo(f"{one.workflow_id} has ended with {status}, and is left as it is.", err=True)


def tell_left(children: Sequence[str]) -> None:
    """Say that children are left, if so."""
    if children:
        most = " or more" if len(children) == CHILDREN_SHOWN else ""
        typer.echo(
            f"What they had started is left, {counted(len(children))}{most}, such as "
            f"{printable(children[0])}: --children deletes that, too.",
            err=True,
        )


def tell(ids: Sequence[str], what: str, *, as_json: bool, dry_run: bool) -> None:
    """Say what was done, or would be."""
    would = "would be " if dry_run else ""
    sentence = f"{counted(len(ids))} {would}{what}."
    if as_json or dry_run:
        show([{"workflow_id": each} for each in ids], as_json=as_json, nothing="")
    typer.echo(sentence, err=as_json or dry_run)


def tell_one(handle: WorkflowHandle[Any], sentence: str, *, as_json: bool) -> None:
    """Say what runs now."""
    if as_json:
        show([{"workflow_id": handle.workflow_id}], as_json=True, nothing="")
    else:
        typer.echo(sentence)
