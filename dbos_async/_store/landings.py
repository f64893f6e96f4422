"""What became of the writes of a batch: of those that did not land, what stands instead."""

from typing import NamedTuple

from dbos_async import errors
from dbos_async._store.records import (
    ChildWrite,
    CompletionWrite,
    EffectWrite,
    Fence,
    Owner,
    ReceiptWrite,
    Recorded,
    SagaWrite,
    StepWrite,
    WorkflowWrite,
    Write,
)

Landing = Recorded | Owner | Fence | None
"""What became of a write: None, it landed; else what stands in its place."""


class Renumber(NamedTuple):
    """Decision: the step's number is taken by another step."""

    step: StepWrite


class Deduplicated(NamedTuple):
    """Decision: the workflow was not created, though its id is free."""

    workflow: WorkflowWrite


class Found(NamedTuple):
    """What Postgres has of the things that a batch wrote."""

    steps: dict[tuple[str, str], Recorded]
    owners: dict[str, Owner]

    def landing_of(self, write: Write) -> Landing | Renumber | Deduplicated:
        """What became of `write`.

        Raises:
            WorkflowConflictError: a child's id belongs to another workflow function.
        """
        match write:
            case StepWrite():
                return self.landing_of_step(write)
            case WorkflowWrite():
                return self._landing_of_workflow(write)
            case ChildWrite(step, workflow):
                child = self.owners.get(workflow.workflow_id)
                if child is not None and child.creator == workflow.creator:
                    return None  # it landed, whatever has become of its parent since
                landing = self.landing_of_step(step)
                if (
                    isinstance(landing, Recorded)
                    and landing.child_workflow_id == workflow.workflow_id
                ):
                    return self._landing_of_workflow(workflow)
                return landing
            case CompletionWrite():
                owner = self.owners.get(write.workflow_id)
                ours = (
                    owner is not None
                    and owner.owner == write.owner
                    and owner.status == write.status
                )
                return None if ours else Fence.LOST
            case EffectWrite() | SagaWrite():
                if write.step is not None:
                    return self.landing_of_step(write.step)
                owner = self.owners.get(write.workflow_id)
                return None if is_held(owner, write.owner) else Fence.LOST
            case ReceiptWrite():
                return self._landing_of_receipt(write)

    def landing_of_step(self, step: StepWrite) -> Recorded | Fence | Renumber:
        """What stands in the place of a step that did not land."""
        if not is_held(self.owners.get(step.workflow_id), step.owner):
            return Fence.LOST
        return self.steps.get((step.workflow_id, step.key)) or Renumber(step)

    def _landing_of_receipt(self, write: ReceiptWrite) -> Landing | Renumber:
        landing = self.landing_of_step(write.step)
        nothing = isinstance(landing, Renumber) and not write.is_found
        return Fence.NO_MESSAGE if nothing else landing

    def _landing_of_workflow(self, write: WorkflowWrite) -> Owner | Deduplicated | None:
        owner = self.owners.get(write.workflow_id)
        if owner is None:
            return Deduplicated(write)
        if owner.creator == write.creator:
            return None
        asked = (write.name, write.class_name or "", write.config_name or "")
        if asked != (owner.name, owner.class_name or "", owner.config_name or ""):
            raise errors.WorkflowConflictError(
                f"workflow id {write.workflow_id!r} belongs to a workflow of {owner.name!r}"
                f"{f' on {owner.config_name!r}' if owner.config_name else ''}, not of "
                f"{write.name!r}: choose another id",
                workflow_id=write.workflow_id,
            )
        return owner


def is_held(found: Owner | None, owner: str) -> bool:
    """Whether a workflow is PENDING under this owner's token."""
    return found is not None and found.status == "PENDING" and found.owner == owner


def deduplicated(write: WorkflowWrite, holder: str) -> errors.DeduplicatedError:
    """What the caller of an enqueue is told whose deduplication id another workflow has."""
    return errors.DeduplicatedError(
        f"the deduplication id {write.deduplication_id!r} of queue {write.queue_name!r} is held by "
        f"workflow {holder!r}",
        workflow_id=holder,
    )
