"""Waiting for workflows, wherever they run.

    wait ─▶ waiting[id] ─▶ one look-up for all new ids ─▶ ended? the future is set
                 ▲                                            not yet? until news, or the recheck
                 └── news(ids), recheck() ───────────────────┘

One task looks; waiters hold a future and no connection. Each id has one future, shared. A waiter
that goes away leaves its future to the others; the last one removes it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

from msgspec import Struct

from dbos_async import errors
from dbos_async._service import running
from dbos_async._store import codec, foreign, stored
from dbos_async._store.database import Database
from dbos_async._store.records import ENDED, Outcome
from dbos_async._store.workflows import fetch_outcomes


class Awaited(Struct):
    """A workflow that somebody waits for."""

    ended: asyncio.Future[Outcome]
    waiters: int = 0


class Outcomes:
    """Hands out how workflows ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._awaited: dict[str, Awaited] = {}
        self._to_look_up: set[str] = set()
        self._something = asyncio.Event()
        self._obituary: BaseException | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Outcomes"]:
        """Look things up for the length of the block; who still waits then is told so."""
        try:
            async with running(outcomes=self._run()):
                yield self
        finally:
            self.drop(errors.NotLaunchedError("the app was shut down while this was awaited"))

    def drop(self, why: BaseException) -> None:
        """Tell whoever waits, now or later, that nobody looks any more."""
        self._obituary = why
        for awaited in self._awaited.values():
            if not awaited.ended.done():
                awaited.ended.set_exception(why)

    async def wait(self, workflow_id: str) -> Outcome:
        """How the workflow ended, once it has.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        if self._obituary is not None:
            raise self._obituary
        awaited = self._awaited.get(workflow_id)
        if awaited is None or awaited.ended.done():
            awaited = Awaited(asyncio.get_running_loop().create_future())
            self._awaited[workflow_id] = awaited
        awaited.waiters += 1
        self._look_up([workflow_id])
        try:
            return await asyncio.shield(awaited.ended)
        finally:
            awaited.waiters -= 1
            if awaited.waiters == 0:
                awaited.ended.cancel()
                if self._awaited.get(workflow_id) is awaited:
                    del self._awaited[workflow_id]

    def news(self, workflow_ids: Iterable[str]) -> None:
        """These have ended, it is said."""
        if self._awaited:
            self._look_up([i for i in workflow_ids if i in self._awaited])

    def recheck(self) -> None:
        """News may have been lost: look at everything."""
        self._look_up(self._awaited)

    def _look_up(self, workflow_ids: Iterable[str]) -> None:
        self._to_look_up.update(workflow_ids)
        if self._to_look_up:
            self._something.set()

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            ids, self._to_look_up = sorted(self._to_look_up & self._awaited.keys()), set()
            if ids:
                rows = await self._database.persistently(
                    partial(fetch_outcomes, self._database, ids)
                )
                self._settle(ids, {row.workflow_id: row for row in rows})

    def _settle(self, ids: list[str], found: dict[str, Outcome]) -> None:
        for workflow_id in ids:
            awaited = self._awaited.get(workflow_id)
            if awaited is None or awaited.ended.done():
                continue
            outcome = found.get(workflow_id)
            if outcome is None:
                awaited.ended.set_exception(errors.WorkflowNotFoundError(workflow_id))
            elif outcome.status in ENDED:
                awaited.ended.set_result(outcome)


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
