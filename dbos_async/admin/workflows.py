"""The endpoints that look at workflows and change their course."""

from typing import Any, Final

from starlette.exceptions import HTTPException

from dbos_async import errors
from dbos_async._store.records import ALIVE
from dbos_async.admin.call import Call
from dbos_async.admin.shapes import (
    Forked,
    ForkRequest,
    WorkflowQuery,
    WorkflowsOutput,
    WorkflowSteps,
    just_after,
    step_of,
    workflow_of,
)

PAGE: Final = 100
"""Workflows in an answer, unless more are asked for."""

NAMED: Final = {
    "workflow_uuids": "workflow_ids",
    "workflow_name": "name",
    "application_version": "app_version",
    "authenticated_user": "user",
    "start_time": "created_after",
    **dict.fromkeys(["workflow_id_prefix", "status", "application_name", "executor_id"]),
    **dict.fromkeys(["forked_from", "parent_workflow_id", "queue_name", "schedule_name"]),
    **dict.fromkeys(["completed_after", "dequeued_after", "attributes", "has_parent"]),
    **dict.fromkeys(["was_forked_from", "queues_only"]),
}
"""What our filters are called; None: the same."""
LASTS: Final = {
    "end_time": "created_before",
    "completed_before": "completed_before",
    "dequeued_before": "dequeued_before",
}
"""Ends of times: there included, here not."""


async def list_workflows(call: Call[WorkflowQuery]) -> list[WorkflowsOutput]:
    """Workflows that fit the filter, by time of creation."""
    return await listed(call, filter_of(call.body))


async def list_queued(call: Call[WorkflowQuery]) -> list[WorkflowsOutput]:
    """Workflows on queues, or taken off one and running, by time of creation."""
    chosen = filter_of(call.body)
    chosen["queues_only"] = True
    chosen.setdefault("status", ALIVE)
    return await listed(call, chosen)


async def get_workflow(call: Call[None]) -> WorkflowsOutput:
    """One workflow, with its arguments and its result."""
    found = await call.dbos.list_workflows(workflow_ids=[call.name])
    if not found:
        raise errors.WorkflowNotFoundError(call.name)
    return workflow_of(found[0])


async def list_steps(call: Call[None]) -> list[WorkflowSteps]:
    """A workflow's recorded steps, in the order of their start."""
    return [step_of(step) for step in await call.dbos.list_steps(call.name)]


async def cancel(call: Call[None]) -> None:
    """Cancel a workflow, wherever it is; one that has ended is left as it is."""
    await call.dbos.cancel_workflow(call.name)


async def resume(call: Call[None]) -> None:
    """Let a workflow go on from its last step; 409 if it has ended by itself."""
    try:
        await call.dbos.resume_workflow(call.name)
    except ValueError as exc:
        raise HTTPException(409, str(exc)) from exc


async def restart(call: Call[None]) -> Forked:
    """Run a workflow anew from its first step, under another id."""
    return Forked((await call.dbos.fork_workflow(call.name)).workflow_id)


async def fork(call: Call[ForkRequest]) -> Forked:
    """Run a workflow anew from one of its steps, under another id."""
    asked = call.body
    handle = await call.dbos.fork_workflow(
        call.name,
        asked.start_step,
        new_workflow_id=asked.new_workflow_id,
        app_version=asked.application_version,
        queue=asked.queue_name,
    )
    return Forked(handle.workflow_id)


async def delete(call: Call[None]) -> None:
    """Delete a workflow in whatever state, with its steps, events, streams and messages."""
    await call.dbos.delete_workflow(call.name)


async def listed(call: Call[WorkflowQuery], chosen: dict[str, Any]) -> list[WorkflowsOutput]:
    """A page of the chosen workflows, in the documented words."""
    asked = call.body
    found = await call.dbos.list_workflows(
        limit=PAGE if asked.limit is None else asked.limit,
        offset=asked.offset or 0,
        newest_first=bool(asked.sort_desc),
        load_input=bool(asked.load_input),
        load_output=bool(asked.load_output),
        **chosen,
    )
    return [workflow_of(status) for status in found]


def filter_of(asked: WorkflowQuery) -> dict[str, Any]:
    """A filter in our words."""
    given = {
        **{ours or name: getattr(asked, name) for name, ours in NAMED.items()},
        **{
            ours: None if getattr(asked, name) is None else just_after(getattr(asked, name))
            for name, ours in LASTS.items()
        },
    }
    return {name: value for name, value in given.items() if value is not None}
