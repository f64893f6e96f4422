"""An app whose workflows undo what they did, and what it has done and undone."""

import asyncio
from dataclasses import dataclass
from typing import Any

from dbos_async import DBOS, Retry, WorkflowHandle

PATIENCE = 20.0
"""Seconds after which what a test waits for will not come."""


class Broken(Exception):
    """What steps of these tests raise."""


@dataclass
class Payment:
    number: int


class Shop:
    """One process. Its ledger has what was done, `+n`, and undone, `-n`, in order."""

    def __init__(self, url: str, ledger: list[str] | None = None, **settings: Any) -> None:  # noqa: PLR0915
        self.dbos = dbos = DBOS("shop", url, app_version="1", **settings)
        dbos.configure(recheck_interval=0.3)
        self.ledger = [] if ledger is None else ledger
        self.keys: list[str] = []
        """The idempotency keys of what was undone."""
        self.broken: set[int] = set()
        """What cannot be undone just now."""
        self.flaws = 0
        """How often the next compensations fail before they succeed."""
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.undoing = asyncio.Event()
        self.holds_undo = False

        @dbos.step(name="charge")
        async def charge(number: int) -> Payment:
            self.ledger.append(f"+{number}")
            return Payment(number)

        @dbos.step(name="refund", retry=Retry(max_attempts=3, interval=0.001))
        async def refund(payment: Payment) -> None:
            self.keys.append(dbos.idempotency_key)
            if self.holds_undo:
                self.undoing.set()
                await self.gate.wait()
            if self.flaws:
                self.flaws -= 1
                raise Broken("not yet")
            if payment.number in self.broken:
                raise Broken(f"cannot refund {payment.number}")
            self.ledger.append(f"-{payment.number}")

        @dbos.step(name="break")
        async def break_() -> None:
            raise Broken("it broke")

        @dbos.step(name="hold")
        async def hold() -> None:
            self.reached.set()
            await self.gate.wait()

        @dbos.workflow(name="trip")
        async def trip(fails_after: int, length: int = 3) -> str:
            async with dbos.saga() as saga:
                for number in range(1, length + 1):
                    if fails_after == number - 1:
                        await break_()
                    payment = await charge(number)
                    saga.compensate(refund, payment)
                if fails_after == length:
                    await break_()
            return "done"

        @dbos.workflow(name="waiting")
        async def waiting(length: int = 2) -> str:
            async with dbos.saga() as saga:
                for number in range(1, length + 1):
                    saga.compensate(refund, await charge(number))
                await hold()
            await charge(99)
            return "done"

        self.charge, self.refund, self.break_, self.hold = charge, refund, break_, hold
        self.trip, self.waiting = trip, waiting

    async def start(self, workflow_id: str, *args: Any) -> WorkflowHandle[str]:
        """Let `waiting` come to where it waits."""
        workflow = self.waiting.with_options(workflow_id=workflow_id)
        handle = await self.dbos.start_workflow(workflow, *args)
        async with asyncio.timeout(PATIENCE):
            await self.reached.wait()
        return handle

    async def result(self, workflow_id: str) -> Any:
        """What a workflow comes to, also if it does not exist yet."""
        handle = await appeared(self.dbos, workflow_id)
        return await handle.get_result(timeout=PATIENCE)

    async def status(self, workflow_id: str) -> str:
        [found] = await self.dbos.list_workflows(workflow_ids=[workflow_id])
        return found.status

    async def steps(self, workflow_id: str) -> list[str]:
        return [step.name for step in await self.dbos.list_steps(workflow_id)]

    async def check_replays(self) -> None:
        reports = await self.dbos.check_replay()
        bad = [report for report in reports if not report.is_ok]
        assert not bad, bad


async def appeared(dbos: DBOS, workflow_id: str) -> WorkflowHandle[Any]:
    """A workflow, once it exists."""
    async with asyncio.timeout(PATIENCE):
        while not await dbos.list_workflows(workflow_ids=[workflow_id]):
            await asyncio.sleep(0.01)
    return await dbos.retrieve_workflow(workflow_id)
