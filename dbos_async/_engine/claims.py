"""From a claim to a run: what this process takes over or off a queue, it replays.

    a claiming statement, under a fresh token ─▶ histories ─▶ adopt each ─▶ the executor runs it

A claim whose answer was lost may have been made, and so may a start: then a row is PENDING under a
token of this launch, and nobody else would run it. So now and then, and at every recheck after such
a doubt, `again` looks for rows of ours that do not run, and adopts what it saw twice. If the
process dies between claim and run, the rows are PENDING under its executor id, and recovery finds
them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from dbos_async import errors
from dbos_async._config import Settings
from dbos_async._engine import callers
from dbos_async._engine.execution import Execution
from dbos_async._engine.registry import Address, Runnable
from dbos_async._log import log
from dbos_async._store import codec, sql, stored, workflows
from dbos_async._store.database import Database
from dbos_async._store.payloads import is_reference
from dbos_async._store.records import Claimed, Recorded, WorkflowId

if TYPE_CHECKING:
    from dbos_async._engine.executor import Executor

DOUBT_MS: Final = 600_000
"""How long after a lost answer every recheck looks for what it may have brought."""
CALM_MS: Final = 60_000
"""How long between two looks otherwise."""


class Claims:
    """Adopts claimed workflows for one executor."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        executor: "Executor",
        addresses: Mapping[Address, Runnable],
    ) -> None:
        self._settings = settings
        self._database = database
        self._executor = executor
        self._addresses = addresses
        self.on_adopted: Callable[[Execution, Claimed], None] = lambda _execution, _claimed: None
        """Called before a claimed workflow runs."""
        self._travelling: set[asyncio.Future[None]] = set()
        self._doubt_until_ms = 0
        self._looked_at_ms = 0
        self._seen: set[tuple[str, str | None]] = set()  # ids and tokens that did not run last time

    def doubt(self, how_long_ms: int = DOUBT_MS) -> None:
        """Something may be ours without being run here: look closely for a while."""
        until_ms = self._executor.clock.now_ms() + how_long_ms
        self._doubt_until_ms = max(self._doubt_until_ms, until_ms)

    async def claim(
        self, statement: Callable[[str], Awaitable[list[Claimed]]]
    ) -> tuple[list[Claimed], list[Execution]]:
        """Claim workflows under a fresh owner token and run them; those handed back do not run.

        Raises:
            DatabaseLostError: whether anything was claimed is unknown; what was, is run soon.
        """
        owner = self._executor.intake.next_owner()
        travelling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._travelling.add(travelling)
        try:
            claimed = await statement(owner)
        except errors.DatabaseLostError:
            self.doubt()
            raise
        finally:
            self._travelling.discard(travelling)
            travelling.set_result(None)
        mine = [workflow for workflow in claimed if workflow.status == "PENDING"]
        return claimed, await self._adopt_all(mine)

    async def back(self) -> None:
        """Return once the claims that travel now have come back."""
        if self._travelling:
            await asyncio.wait(self._travelling)

    async def again(self) -> None:
        """Run what is ours and does not run, if it was so at the last look too."""
        now_ms = self._executor.clock.now_ms()
        if now_ms > self._doubt_until_ms and now_ms < self._looked_at_ms + CALM_MS:
            return
        self._looked_at_ms = now_ms
        executor = self._executor
        found = await self._database.fetch(
            sql.FIND_ORPHANS,
            self._settings.executor_id,
            executor.intake.boot,
            [*executor.running, *executor.arriving],
            into=Claimed,
        )
        here = executor.running.keys() | executor.arriving.keys()
        found = [row for row in found if row.workflow_id not in here]
        seen, self._seen = self._seen, {(row.workflow_id, row.owner) for row in found}
        if self._seen:
            self.doubt(CALM_MS)
        await self._adopt_all([row for row in found if (row.workflow_id, row.owner) in seen])

    async def _adopt_all(self, claimed: list[Claimed]) -> list[Execution]:
        """Run workflows that this process has claimed, each from its history.

        The histories are read after the claim has committed: from then on nobody else adds to them.
        """
        if not claimed or self._executor.is_draining:  # what is not run, the shutdown hands back
            return []
        ids = [workflow.workflow_id for workflow in claimed]
        old = [workflow.workflow_id for workflow in claimed if not workflow.is_fresh]
        self._executor.arriving.update(ids)
        try:
            histories: dict[str, dict[str, Recorded]] = {}
            if old:
                histories = await self._database.patiently(
                    lambda: workflows.fetch_histories(self._database, old)
                )
            gone = await self._gone(
                [row for row in claimed if histories.get(row.workflow_id) == {}]
            )
            adopted = [
                await self._adopt(
                    workflow, workflow.owner or "", histories.get(workflow.workflow_id)
                )
                for workflow in claimed
                if workflow.workflow_id not in gone
            ]
        finally:
            for workflow_id in ids:
                self._executor.arrived(workflow_id)
        return [execution for execution in adopted if execution is not None]

    async def _gone(self, without_history: list[Claimed]) -> set[str]:
        """Which of these are no longer ours: who deletes a workflow takes its history first."""
        if not without_history:
            return set()
        ids = [workflow.workflow_id for workflow in without_history]
        owners = [workflow.owner for workflow in without_history]
        rows = await self._database.patiently(
            lambda: self._database.fetch(sql.FIND_LOST, ids, owners, into=WorkflowId)
        )
        return {row.workflow_id for row in rows}

    async def _adopt(
        self, claimed: Claimed, owner: str, history: dict[str, Recorded] | None
    ) -> Execution | None:
        runnable = self._addresses[
            Address(claimed.name, claimed.class_name or "", claimed.config_name or "")
        ]
        limit = runnable.definition.max_recovery_attempts
        if limit is not None and claimed.attempts > limit + 1:
            await self._bury(claimed, owner)
            return None
        execution = Execution(
            claimed.workflow_id,
            owner,
            runnable,
            (),
            {},
            deadline_ms=claimed.deadline_ms,
            root_id=claimed.root_id,
            history=history,
            executor=self._executor,
        )
        if claimed.deadline_ms is not None and claimed.deadline_ms <= self._executor.clock.now_ms():
            await self._executor.cancel([claimed.workflow_id], children=True)
            return None
        is_as_stored, refused = self._read_arguments(execution, claimed)
        refused = refused or caller_refused(execution, claimed)
        if refused is None and not is_as_stored:
            refused = await self._make_portable(execution)
        self.on_adopted(execution, claimed)
        self._executor.run(execution, refused)
        return execution

    def _read_arguments(
        self, execution: Execution, claimed: Claimed
    ) -> tuple[bool, Exception | None]:
        """Read the stored arguments into the execution.

        Those in the payload store are left to the run itself: they may take long.

        Returns:
            Whether they are stored in our format and as the function takes them (who fires a
            schedule may not know that the function takes no context); why not, if that fails.
        """
        if is_reference(claimed.inputs, claimed.serialization):
            execution.unread = claimed.inputs
            return True, None
        arguments = execution.runnable.definition.arguments
        assert arguments is not None
        try:
            args, kwargs = stored.read_arguments(
                claimed.inputs,
                claimed.serialization,
                arguments,
                allow_pickle=self._settings.allow_pickle,
            )
            count = len(args)
            if claimed.is_scheduled:
                args, kwargs = arguments.as_tick(args, kwargs)
            arguments.bind(args, kwargs)
        except (errors.SerializationError, TypeError) as exc:
            return False, exc
        execution.args, execution.kwargs = args, kwargs
        return claimed.serialization == codec.PORTABLE_JSON and len(args) == count, None

    async def _make_portable(self, execution: Execution) -> Exception | None:
        """Store arguments that came in another format as we do; why not, if that fails."""
        arguments = execution.runnable.definition.arguments
        assert arguments is not None
        try:
            text = arguments.encode(execution.args, execution.kwargs)
            execution.args, execution.kwargs = arguments.decode(text)
        except errors.SerializationError as exc:
            return exc
        await self._database.patiently(
            lambda: self._database.execute(
                sql.MAKE_PORTABLE, execution.workflow_id, execution.owner, text
            )
        )
        return None

    async def _bury(self, claimed: Claimed, owner: str) -> None:
        await self._database.patiently(
            lambda: self._database.execute(sql.BURY, claimed.workflow_id, owner)
        )
        self._executor.announce(claimed.workflow_id)
        log.error(
            "workflow given up: its process died too often without recording a new step",
            workflow_id=claimed.workflow_id,
            attempts=claimed.attempts,
        )


def caller_refused(execution: Execution, claimed: Claimed) -> Exception | None:
    """Let the execution run on behalf of whom its row names; why not, if that fails."""
    try:
        caller = callers.stored_caller(claimed.user, claimed.roles, claimed.role)
        execution.caller = callers.admitted(execution.runnable.definition, caller)
    except (errors.NotAuthorizedError, errors.SerializationError) as exc:
        return exc
    return None
