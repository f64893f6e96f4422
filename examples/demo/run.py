"""A run: the job in a process of its own, watched from outside, and killed on the way."""

import asyncio
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from csv import DictReader
from pathlib import Path
from typing import IO, Any, TypeAlias

import asyncpg

from examples.demo.job import DRAIN, read_orders, workflow_id_of

Connection: TypeAlias = "asyncpg.Connection[Any]"
Process = asyncio.subprocess.Process

KILLS = 2
LOOK_EVERY = 0.05
"""Seconds between looks at how far the job is."""
LAST_WORDS = 2_000
"""Bytes of the job's log that are shown if it fails."""

START = "insert into shop.runs (run, orders) values ($1, $2)"
COUNT_KILL = "update shop.runs set kills = kills + 1 where run = $1"
STOCK = """
insert into shop.stock (run, sku, cents, pieces, available) values ($1, $2, $3, $4, $4)
"""
ENDED = """
select workflow_uuid from dbos.workflow_status
 where workflow_uuid = any($1) and status not in ('PENDING', 'ENQUEUED', 'DELAYED')
"""


class DemoError(Exception):
    """The demo cannot go on; the message is for people, the code for the shell."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Run:
    """One run: its name, and which of its workflows have not ended yet."""

    def __init__(self, connection: Connection, name: str, workflow_ids: set[str]) -> None:
        self.name = name
        self.total = len(workflow_ids)
        self._connection = connection
        self._waiting = workflow_ids

    @classmethod
    async def begin(cls, connection: Connection, limit: int | None) -> "Run":
        """A run under a new name, with its stock in the warehouse."""
        name = secrets.token_hex(3)
        orders = read_orders(limit)
        with Path(__file__).with_name("stock.csv").open(newline="", encoding="utf-8") as file:
            rows = [(name, r["sku"], int(r["cents"]), int(r["pieces"])) for r in DictReader(file)]
        await connection.execute(START, name, len(orders))
        await connection.executemany(STOCK, rows)
        return cls(connection, name, {workflow_id_of(name, order) for order in orders})

    @property
    def done(self) -> int:
        """How many had ended when it was looked at last."""
        return self.total - len(self._waiting)

    async def look(self) -> None:
        """Ask the database which have ended."""
        rows = await self._connection.fetch(ENDED, list(self._waiting))
        self._waiting.difference_update(row["workflow_uuid"] for row in rows)

    async def work(
        self, url: str, stopped: "asyncio.Future[int]", on_look: Callable[[str | None], None]
    ) -> None:
        """Have all orders done by a job that is killed at a third and at two thirds of them.

        Raises:
            DemoError: the job failed, or a signal stopped the demo.
        """
        for kill in range(1, KILLS + 1):
            async with self._job(url) as (process, log):
                await self._watch(process, log, self.total * kill // (KILLS + 1), stopped, on_look)
                if process.returncode is None:
                    process.kill()
                    await self._connection.execute(COUNT_KILL, self.name)
                    on_look(f"SIGKILL at {self.done:,} orders; starting again")
        async with self._job(url) as (process, log):
            await self._watch(process, log, self.total, stopped, on_look)
            if await process.wait() != 0:
                raise DemoError(f"The job failed:\n{last_words(log)}")

    async def _watch(
        self,
        process: Process,
        log: IO[bytes],
        goal: int,
        stopped: "asyncio.Future[int]",
        on_look: Callable[[str | None], None],
    ) -> None:
        """Return once `goal` workflows have ended."""
        while True:
            is_over = process.returncode is not None
            await self.look()
            on_look(None)
            if self.done >= goal:
                return
            if is_over:
                raise DemoError(f"The job ended too early:\n{last_words(log)}")
            await asyncio.wait([stopped], timeout=LOOK_EVERY)
            if stopped.done():
                await self._drain(process, log)
                raise DemoError(
                    f"Stopped at {self.done:,} of {self.total:,} orders. What was begun is PENDING "
                    "in the database: the next run finishes it beside its own.",
                    128 + stopped.result(),
                )

    async def _drain(self, process: Process, log: IO[bytes]) -> None:
        """End the job in good order.

        Raises:
            DemoError: it did not.
        """
        if process.returncode is None:
            process.terminate()
        await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=DRAIN + 5)
        if process.returncode not in (0, -signal.SIGTERM):  # the latter if it was still starting
            raise DemoError(f"The job did not end in good order:\n{last_words(log)}")
        await self.look()

    @asynccontextmanager
    async def _job(self, url: str) -> AsyncIterator[tuple[Process, IO[bytes]]]:
        """The job, running; it does not outlive the block."""
        command = (sys.executable, "-m", "examples.demo.job", self.name, str(self.total))
        with tempfile.TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, "DBOS_SYSTEM_DATABASE_URL": url},
                stdin=asyncio.subprocess.PIPE,  # tells it of our death
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which passes it on
            )
            try:
                yield process, log
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()


def last_words(log: IO[bytes]) -> str:
    """The end of what the job has said."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS))
    return log.read().decode(errors="replace")
