"""Does this code still go the way that is recorded? Answered without running a step.

    rows and histories ─▶ each body, with the record for an answer ─▶ at rest ─▶ a report

The body runs as in a recovery. A step that is recorded returns what is recorded; one that is not
waits for ever, as if it were still under way; sleeps end at once. When nothing moves any more, the
body has returned or raised, or it waits where it would go on.

Nothing can be written and nothing executed: what a run writes through is made here and never
opened, so there is no connection that it could reach. What stands in a body outside of steps does
run, as it does in every replay.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import anyio
from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._config import Settings
from dbos_async._engine.callers import admitted, stored_caller
from dbos_async._engine.context import Branch, TaskTree
from dbos_async._engine.execution import Execution, Limit, Stop
from dbos_async._engine.executor import Executor
from dbos_async._engine.limits import Turnstiles
from dbos_async._engine.pulse import Pulse
from dbos_async._engine.registry import Address, Registry, Runnable, WorkflowDefinition
from dbos_async._engine.replay import TIMEOUT
from dbos_async._engine.session import Session
from dbos_async._engine.steps import Steps
from dbos_async._engine.transactions import Transactions
from dbos_async._store import codec, listing, stored, workflows
from dbos_async._store.arguments import digest
from dbos_async._store.clock import Clock
from dbos_async._store.database import Database
from dbos_async._store.listing import Filter
from dbos_async._store.payloads import Payloads, is_reference
from dbos_async._store.portable_errors import encode_error, message_of
from dbos_async._store.records import CompletionWrite, Recorded, Replayable, Status

SAMPLE: Final = 100
"""How many workflows are replayed unless somebody says."""
AT_A_TIME: Final = 50
"""How many workflows are in memory and under way."""
ROUNDS: Final = 100
"""Turns of the loop in which a body that can go on does."""
GRACE: Final = 0.05
"""Seconds for what it may have going on beside steps, such as a short asyncio.sleep."""
FAREWELL: Final = 5.0
"""Seconds for its `finally` clauses."""
SHOWN: Final = 300
"""Characters of a result."""

Verdict = Literal[
    "ok",
    "diverged",
    "other_result",
    "stuck",
    "unknown_workflow",
    "arguments_do_not_fit",
    "not_authorized",
]
"""What became of a replay.

ok: it came to the recorded end, or to where an unfinished one goes on. diverged: it calls another
step than the recorded one, or leaves one out, or goes on where the record has ended. other_result:
it ends, but not as recorded. stuck: neither a step nor an end came in time. The last three: this
code has no such workflow, or one with other parameters, or one that requires another role.
"""


class ReplayReport(Struct, frozen=True, kw_only=True):
    """What became of the replay of one workflow."""

    workflow_id: str
    name: str
    status: Status
    verdict: Verdict
    detail: str
    """What is recorded and what happens now; if it is ok, where it goes on, or nothing."""

    @property
    def is_ok(self) -> bool:
        """Whether this code may take the workflow over."""
        return self.verdict == "ok"


class Finding(Struct, frozen=True):
    """A verdict and its reason."""

    verdict: Verdict
    detail: str = ""


class Hurried(Clock):
    """A clock for which every sleep is over."""

    async def sleep_until(self, deadline_ms: float) -> None:
        """Return at once."""


class Rehearsal(Execution):
    """A run that has only its record."""

    def __init__(self, *args: Any, has_ended: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.replaying = True
        self.has_ended = has_ended
        self.begun: set[str] = set()
        self.under_way: dict[str, str] = {}
        """Steps that are not recorded: their keys and names."""
        self.divergence: errors.DivergenceError | None = None
        self._names: dict[str, str] = {}

    @property
    def moves(self) -> tuple[int, int]:
        """Something that changes while the body goes on."""
        return len(self.begun), len(self.tasks)

    @property
    def is_over(self) -> bool:
        """Whether the body and all its branches are done."""
        return all(task.done() for task in self.all_tasks())

    def all_tasks(self) -> list[asyncio.Task[Any]]:
        """The body's and its branches'."""
        return [task for task in (self.task, *self.tasks) if task is not None]

    def begin(self, key: str) -> None:
        """Note which step is called."""
        name, _ = (self._called or {}).get(key, ("a step", None))
        super().begin(key)
        self.begun.add(key)
        self._names[key] = name

    async def live(self, key: str, *, is_registration: bool = False) -> None:
        """The step that has just begun is not recorded: let it be under way."""
        await self.stop_if_frozen(key)
        self.under_way[key] = self._names.get(key, "a step")
        await asyncio.get_running_loop().create_future()

    def pass_by(self, keys: Iterable[str]) -> None:
        """Take them for called."""
        self.begun.update(keys)
        super().pass_by(keys)

    def arm(self, limit: Limit) -> None:
        """Where a block stands whose limit is not recorded to have expired, it may go on."""
        self.under_way[limit.key] = TIMEOUT

    def furthest(self, path: str) -> tuple[int, int]:
        """One that has ended has passed every patch that left no marker."""
        return (sys.maxsize, 0) if self.has_ended else super().furthest(path)

    def diverged(self, why: str) -> errors.DivergenceError:
        """Note it, in case the body catches it."""
        self.divergence = self.divergence or super().diverged(why)
        return self.divergence

    async def end(self) -> None:
        """Cancel what is left of it."""
        self.stop(Stop.ABANDONED)
        tasks = self.all_tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL)
        for _, call in (self._called or {}).values():
            call.close()


class Stage:
    """What bodies run on: an executor that is connected to nothing."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        tree: TaskTree,
        payloads: Payloads,
        *,
        timeout: float,
    ) -> None:
        if payloads.is_on:  # what went there had no limit
            settings = structs.replace(settings, max_payload_bytes=sys.maxsize)
        session = Session(settings, registry.address_of, application=settings.name)
        session.clock = Hurried()
        session.payloads.open_to_read(payloads)
        threads = anyio.CapacityLimiter(settings.max_threads)
        steps = Steps(
            session.checkpointer,
            session.clock,
            threads,
            Turnstiles(session.database, session.clock, session.notifier, ""),
            session.payloads,
            Transactions(session),
            max_payload_bytes=settings.max_payload_bytes,
            allow_pickle=settings.allow_pickle,
        )
        self._addresses = registry.addresses()
        self._executor = Executor(
            settings,
            session,
            steps,
            threads,
            tree,
            self._addresses,
            Pulse(),
            registry=registry,
        )
        self._tree = tree
        self._timeout = timeout
        self._allow_pickle = settings.allow_pickle
        self._payloads = session.payloads

    async def report(self, row: Replayable, history: Mapping[str, Recorded]) -> ReplayReport:
        """What becomes of this workflow."""
        found = await self._replay(row, dict(history))
        return ReplayReport(
            workflow_id=row.workflow_id,
            name=row.name,
            status=row.status,
            verdict=found.verdict,
            detail=found.detail,
        )

    async def _replay(self, row: Replayable, history: dict[str, Recorded]) -> Finding:
        runnable = self._addresses.get(
            Address(row.name, row.class_name or "", row.config_name or "")
        )
        if runnable is None:
            instance = f" on an instance named {row.config_name!r}" if row.config_name else ""
            return Finding(
                "unknown_workflow", f"this app has no workflow named {row.name!r}{instance}"
            )
        try:
            row = await self._inlined(row)
        except errors.PayloadStoreError as exc:
            return Finding("stuck", str(exc))
        try:
            args, kwargs = self._arguments_of(row, runnable)
        except (errors.SerializationError, TypeError) as exc:
            return self._refused(row, "arguments_do_not_fit", exc)
        try:
            caller = admitted(runnable.definition, stored_caller(row.user, row.roles, row.role))
        except (errors.NotAuthorizedError, errors.SerializationError) as exc:
            return self._refused(row, "not_authorized", exc)
        execution = Rehearsal(
            row.workflow_id,
            "",
            runnable,
            args,
            kwargs,
            deadline_ms=row.deadline_ms,
            root_id=row.root_id,
            caller=caller,
            history=history,
            executor=self._executor,
            has_ended=row.status in ("SUCCESS", "ERROR"),
        )
        try:
            completion = await self._completion_of(execution)
        finally:
            await execution.end()
        return self._judged(row, execution, completion)

    def _refused(self, row: Replayable, verdict: Verdict, why: Exception) -> Finding:
        """It cannot run: as it could not then, or only now."""
        if row.status == "ERROR" and said(encode_error(why)) == self._error_of(row):
            return Finding("ok")
        return Finding(verdict, str(why))

    async def _inlined(self, row: Replayable) -> Replayable:
        """The row with what is in the payload store. Raises PayloadStoreError."""
        texts = {
            name: await self._payloads.text(text or "", row.workflow_id)
            for name, text in (("inputs", row.inputs), ("output", row.output))
            if is_reference(text, row.serialization)
        }
        return structs.replace(row, **texts) if texts else row

    def _arguments_of(
        self, row: Replayable, runnable: Runnable
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = runnable.definition.arguments
        assert arguments is not None
        args, kwargs = stored.read_arguments(
            row.inputs, row.serialization, arguments, allow_pickle=self._allow_pickle
        )
        if row.is_scheduled:
            args, kwargs = arguments.as_tick(args, kwargs)
        arguments.bind(args, kwargs)
        return args, kwargs

    async def _completion_of(self, execution: Rehearsal) -> CompletionWrite | None:
        """How the body ends; None if it does not."""
        task = self._tree.start(
            self._executor.call(execution), Branch(execution), f"replay {execution.name}"
        )
        execution.task = task
        try:
            async with asyncio.timeout(self._timeout):
                await at_rest(execution)
        except TimeoutError:
            execution.under_way.clear()  # where it would go on is not known
        completion: Any = task.result() if task.done() and not task.cancelled() else None
        return completion if isinstance(completion, CompletionWrite) else None

    def _judged(
        self, row: Replayable, execution: Rehearsal, completion: CompletionWrite | None
    ) -> Finding:
        """Compare what happened with what is recorded."""
        if execution.divergence is not None:
            return Finding("diverged", str(execution.divergence))
        if execution.broken is not None:
            return Finding("stuck", str(execution.broken))
        left_out = [step for key, step in execution.history.items() if key not in execution.begun]
        if completion is None and not execution.under_way:
            return Finding("stuck", f"within {self._timeout} s no step came, and no end")
        now = "it ends" if completion is not None else f"it calls {shown(execution.under_way)}"
        if left_out:
            missed = shown({step.key: step.name for step in left_out})
            return Finding("diverged", f"{missed} is recorded, and not called any more: {now}")
        if completion is None:
            if execution.has_ended:
                return Finding("diverged", f"{row.status} is recorded here, and now {now}")
            return Finding("ok", f"goes on with {shown(execution.under_way)}")
        if not execution.has_ended:
            return goes_on(execution, completion)
        return self._compared(row, execution.runnable.definition, completion)

    def _compared(
        self, row: Replayable, definition: WorkflowDefinition, now: CompletionWrite
    ) -> Finding:
        """Whether a workflow that has ended ends the same way."""
        if now.status == row.status:
            if now.status == "ERROR" and said(now.error) == self._error_of(row):
                return Finding("ok")
            if now.status == "SUCCESS" and self._is_same(row, definition, now.output or "null"):
                return Finding("ok")
        recorded = row.output if row.status == "SUCCESS" else ": ".join(self._error_of(row))
        present = now.output if now.status == "SUCCESS" else ": ".join(said(now.error))
        return Finding(
            "other_result",
            f"{row.status} is recorded, {cut(recorded)}; now it is {now.status}, {cut(present)}",
        )

    def _is_same(self, row: Replayable, definition: WorkflowDefinition, text: str) -> bool:
        """Whether two results say the same, in whatever order their sets are."""
        if row.output == text:
            return True
        try:
            recorded = stored.read(
                row.output, row.serialization, definition.decode, allow_pickle=self._allow_pickle
            )
        except errors.SerializationError:
            return False
        first, second = (digest((value,), {}) for value in (recorded, definition.decode(text)))
        return first is not None and first == second

    def _error_of(self, row: Replayable) -> tuple[str, str]:
        error = stored.read_error(row.error, row.serialization, allow_pickle=self._allow_pickle)
        return said(encode_error(error))


async def check(
    database: Database, stage: Stage, workflow_ids: Sequence[str]
) -> list[ReplayReport]:
    """Replay these workflows on the stage; unknown ids are left out."""
    reports: list[ReplayReport] = []
    for first in range(0, len(workflow_ids), AT_A_TIME):
        ids = workflow_ids[first : first + AT_A_TIME]
        rows = await database.patiently(partial(workflows.fetch_for_replay, database, ids))
        histories = await database.patiently(partial(workflows.fetch_histories, database, ids))
        by_id = {row.workflow_id: row for row in rows}
        found = [by_id[workflow_id] for workflow_id in ids if workflow_id in by_id]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(stage.report(row, histories[row.workflow_id])) for row in found
            ]
        reports += [task.result() for task in tasks]
    return reports


async def sample_of(database: Database, application: str, chosen: Filter, size: int) -> list[str]:
    """The ids of the newest workflows of an app that fit a filter."""
    ids: list[str] = []
    offset = 0
    while len(ids) < size:
        rows = await listing.fetch_workflows(database, chosen, limit=size, offset=offset)
        ids += [row.workflow_id for row in rows if row.application_name in (application, None)]
        offset += size
        if len(rows) < size:
            break
    return ids[:size]


async def at_rest(execution: Rehearsal) -> None:
    """Return when the body is done, or when only new steps could move it."""
    while True:
        moves = execution.moves
        for _ in range(ROUNDS):
            if execution.is_over:
                return
            await asyncio.sleep(0)
        await asyncio.sleep(GRACE)
        if execution.fetching:
            continue
        is_done = execution.task is not None and execution.task.done()
        if moves == execution.moves and (is_done or execution.under_way):
            return


def goes_on(execution: Rehearsal, now: CompletionWrite) -> Finding:
    """What it means that a workflow which has not ended ends after its last recorded step."""
    if now.status == "SUCCESS":
        return Finding("ok", f"ends with {cut(now.output)}")
    raised = said(now.error)
    known = [said(step.error) for step in execution.history.values() if step.error is not None]
    if raised in known:
        return Finding("ok", f"ends with {cut(': '.join(raised))}")
    return Finding("other_result", f"it has not ended, and now it fails: {cut(': '.join(raised))}")


def said(error: str | None) -> tuple[str, str]:
    """The class and the message of a stored error."""
    raised = stored.read_error(error, codec.PORTABLE_JSON)
    if isinstance(raised, errors.PortableWorkflowError):
        return raised.name, raised.message
    return type(raised).__name__, message_of(raised)


def shown(steps: Mapping[str, str]) -> str:
    """Steps for people."""
    return ", ".join(f"{name!r} (step {key})" for key, name in steps.items())


def cut(text: str | None) -> str:
    """The beginning of a long text."""
    text = text or "null"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
