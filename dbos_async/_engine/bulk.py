"""Many calls at once: their rows, made one by one while Postgres writes the earlier ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

from msgspec import structs

from dbos_async import errors
from dbos_async._engine.execution import Execution
from dbos_async._engine.intake import Call, Intake
from dbos_async._store.records import WorkflowWrite


class Bulk:
    """The rows of calls for one queue, in order.

    Iterating again goes on where it stopped, so that a call that was refused is refused again.
    """

    def __init__(
        self,
        intake: Intake,
        calls: Sequence[Call],
        queue_name: str,
        *,
        parent: Execution | None = None,
        id_of: Callable[[int], str] | None = None,
        large: Mapping[int, tuple[str, str]] | None = None,
    ) -> None:
        """Take the calls.

        Args:
            intake: who makes the rows.
            calls: what to enqueue.
            queue_name: where to.
            parent: the workflow that enqueues them.
            id_of: the id of the call at a place, unless it names one; else a new one.
            large: the ids and stored inputs of calls that were kept before, by place.
        """
        self.ids: list[str] = []
        """Of the calls so far; one that attaches to an earlier call has that one's."""
        self.attaching: set[str] = set()
        """Ids of those whose callers want the holder of their deduplication id, if there is one."""
        self._intake = intake
        self._calls = calls
        self._queue_name = queue_name
        self._parent = parent
        self._id_of = id_of
        self._large = large or {}
        self._forms: dict[tuple[int, int, int], WorkflowWrite] = {}
        self._by_id: dict[str, WorkflowWrite] = {}
        self._by_deduplication_id: dict[str, WorkflowWrite] = {}

    @property
    def due_ms(self) -> int | None:
        """When the first delayed one of those so far comes due."""
        return min((due for f in self._forms.values() if (due := f.delay_until_ms)), default=None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WorkflowWrite:
        """The next row.

        Raises:
            DeduplicatedError: an earlier one has its deduplication id.
            WorkflowConflictError: an earlier one has its id, and is of another function.
            Exception: as `Intake.order_of` does.
        """
        while (place := len(self.ids)) < len(self._calls):
            call = self._calls[place]
            write = self._row_of(call, place)
            earlier = self._earlier(call, write)
            self.ids.append((earlier or write).workflow_id)
            if earlier is None:
                return write
        raise StopIteration

    def _row_of(self, call: Call, place: int) -> WorkflowWrite:
        options = call.options
        like = id(call.definition), id(call.instance), id(options)  # the calls keep them alive
        form = self._forms.get(like)
        if form is None:
            form = self._intake.row_of(call, self._queue_name, self._parent)
            self._forms[like] = form
        if place in self._large:
            workflow_id, inputs = self._large[place]
            return structs.replace(form, workflow_id=workflow_id, inputs=inputs)
        workflow_id = options.get("workflow_id") or (
            self._intake.new_id() if self._id_of is None else self._id_of(place)
        )
        inputs, _, _ = self._intake.inputs_of(call)
        return structs.replace(form, workflow_id=workflow_id, inputs=inputs)

    def _earlier(self, call: Call, write: WorkflowWrite) -> WorkflowWrite | None:
        """The row of an earlier call that stands for this one too."""
        if "workflow_id" in call.options:
            earlier = self._by_id.setdefault(write.workflow_id, write)
            if address_of(earlier) != address_of(write):
                raise errors.WorkflowConflictError(
                    f"two of the calls have the workflow id {write.workflow_id!r}, one of "
                    f"{earlier.name!r} and one of {write.name!r}: choose another",
                    workflow_id=write.workflow_id,
                )
            if earlier is not write:
                return earlier
        if write.deduplication_id is None:
            return None
        returns_existing = call.options.get("duplication_policy") == "return_existing"
        earlier = self._by_deduplication_id.setdefault(write.deduplication_id, write)
        if earlier is write:
            if returns_existing:
                self.attaching.add(write.workflow_id)
            return None
        if not returns_existing:
            raise errors.DeduplicatedError(
                f"two of the calls have the deduplication id {write.deduplication_id!r}; none was "
                "enqueued",
                workflow_id=earlier.workflow_id,
            )
        return earlier


def address_of(write: WorkflowWrite) -> tuple[str, str | None, str | None]:
    """Which function a row is of, and on which instance."""
    return write.name, write.class_name, write.config_name
