"""How workflows ended, wherever they ran."""

from collections.abc import Mapping, Sequence

from dbos_async import errors
from dbos_async._store import codec, foreign, stored
from dbos_async._store.database import Database
from dbos_async._store.records import ENDED, Outcome
from dbos_async._store.workflows import fetch_outcomes


async def find_ended(
    database: Database, workflow_ids: Sequence[str]
) -> Mapping[str, Outcome | Exception]:
    """How those of these workflows ended that have, and which ids there are not."""
    found = {row.workflow_id: row for row in await fetch_outcomes(database, workflow_ids)}
    missing = {i: errors.WorkflowNotFoundError(i) for i in workflow_ids if i not in found}
    return {i: outcome for i, outcome in found.items() if outcome.status in ENDED} | missing


def text_of(outcome: Outcome, *, allow_pickle: bool = False) -> str:
    """The result of a workflow that has ended, as portable JSON.

    Raises:
        WorkflowCancelledError: it was cancelled; `WorkflowTimeoutError` if by its deadline.
        RecoveryExhaustedError: it is a dead letter.
        Exception: what the workflow raised.
    """
    match outcome.status:
        case "SUCCESS":
            if outcome.output is None or outcome.serialization == codec.PORTABLE_JSON:
                return outcome.output or "null"
            return codec.encode(
                foreign.load(outcome.output, outcome.serialization, allow_pickle=allow_pickle)
            )
        case "ERROR":
            raise stored.read_error(outcome.error, outcome.serialization, allow_pickle=allow_pickle)
        case "CANCELLED":
            raise cancelled(outcome)
        case _:
            raise errors.RecoveryExhaustedError(
                f"workflow {outcome.workflow_id!r} was given up after its process died too often "
                "without recording a new step: fix the cause, then resume it",
                workflow_id=outcome.workflow_id,
            )


def cancelled(outcome: Outcome) -> errors.WorkflowCancelledError:
    """What awaiters of a cancelled workflow get."""
    late = outcome.deadline_ms is not None and (outcome.completed_at_ms or 0) >= outcome.deadline_ms
    kind = errors.WorkflowTimeoutError if late else errors.WorkflowCancelledError
    how = "ran past its deadline and was cancelled" if late else "was cancelled"
    return kind(f"workflow {outcome.workflow_id!r} {how}", workflow_id=outcome.workflow_id)
