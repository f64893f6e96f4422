"""Deletes the large values that nobody has any more: see `_store/payloads.py` for when that is.

At the launch, and then every ten minutes by one of all the processes that have the store. A sweep
that fails, or dies, is made up for by the next.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dbos_async import errors
from dbos_async._log import log
from dbos_async._service import running
from dbos_async._store.database import Database
from dbos_async._store.payloads import Payloads

INTERVAL: Final = 600.0
"""Seconds between two sweeps, whoever makes them."""


class Sweeper:
    """Sweeps one payload store."""

    def __init__(self, payloads: Payloads, database: Database) -> None:
        self._payloads = payloads
        self._database = database

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Sweeper"]:
        """Sweep for the length of the block, if there is a store."""
        if not self._payloads.is_on:
            yield self
            return
        async with running(sweeper=self._run()):
            yield self

    async def _run(self) -> None:
        await self._database.persistently(self._sweep, what="the sweep of large values")
        while True:
            await asyncio.sleep(INTERVAL * random.uniform(1, 1.5))  # noqa: S311  # jitter
            await self._database.persistently(self._sweep_in_turn, what="the sweep of large values")

    async def _sweep_in_turn(self) -> None:
        if await self._payloads.claim_sweep(round(INTERVAL * 1000)):
            await self._sweep()

    async def _sweep(self) -> None:
        try:
            count = await self._payloads.sweep()
        except errors.PayloadStoreError as exc:
            log.warning("objects that nobody has are left for later", error=str(exc))
            return
        if count:
            log.info("deleted objects that nobody had any more", objects=count)
