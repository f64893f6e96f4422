"""A process that dies while it keeps a large value: `keeper.py URL STORE MOMENT`.

Moments: before anything of the step's object, once it is registered; in the middle of its upload;
once it is there; once its row has landed. `none` lives on.
"""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from dbos_async import DBOS
from dbos_async._store.checkpointer import Checkpointer
from dbos_async._store.objects import ObjectStore
from dbos_async._store.records import StepWrite

SIZE = 40_000_000


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Keeper:
    """An app whose one step makes a large value."""

    def __init__(self, url: str, store: str) -> None:
        self.dbos = dbos = DBOS("keeper", url, app_version="1", payload_store=store)
        dbos.configure(recheck_interval=0.3)

        @dbos.step(name="make")
        async def make() -> str:
            return "x" * SIZE

        @dbos.workflow(name="keep")
        async def keep(text: str) -> str:
            return f"{len(text)} {len(await make())}"

        self.keep = keep


def die_at(moment: str, store: str) -> None:
    """Arrange for this process's end."""
    put = ObjectStore.put

    async def put_and_die(self: Any, key: str, *args: Any) -> None:
        if "step-" not in key:
            return await put(self, key, *args)
        if moment == "registered":
            die()
        if moment == "uploading":
            threading.Thread(target=die_once_there_is_some, args=(Path(store[7:]),)).start()
        await put(self, key, *args)
        if moment == "uploaded":
            die()
        return None

    ObjectStore.put = put_and_die  # type: ignore[method-assign]
    if moment == "landed":

        class Moment:
            async def taken(self, waiting: Any) -> list[Any]:
                return [waiting.popleft()]

            async def answered(self, batch: list[Any]) -> None:
                if any(isinstance(each.write, StepWrite) for each in batch):
                    die()

        Checkpointer.crash_point = Moment()


def die_once_there_is_some(path: Path) -> None:
    """Die as soon as a file is being written."""
    while not [each for each in path.rglob("step-*#*") if each.stat().st_size]:
        pass
    die()


async def main(url: str, store: str, moment: str) -> None:
    keeper = Keeper(url, store)
    die_at(moment, store)
    async with keeper.dbos:
        await keeper.keep.with_options(workflow_id="w")("y" * 1_000_000)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
