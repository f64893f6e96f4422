"""A workflow with everything in it, for processes that die: `reference.py URL RECORD CHECKPOINT
MOMENT`.

Its steps write "begin" to a record of their own before they do anything, so that what ran is known
without asking the database.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from dbos_async import DBOS, Retry
from dbos_async.testing import crash_at

WORKFLOW_ID = "reference"
RESULT: dict[str, Any] = {
    "repeats": True,
    "group": [11, 13],
    "nested": [[1, 2], [101, 102]],
    "child": 40,
    "started": 80,
    "flaky": 3,
    "last": 9,
}


class Record:
    """Lines that outlive their process: appended whole, and on disk before the step goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: str) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{line}\n".encode())
        os.fsync(file)
        os.close(file)

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


class Reference:
    """The app and its workflow."""

    def __init__(self, url: str, record: Record) -> None:
        self.dbos = dbos = DBOS("reference", url, app_version="1")
        dbos.configure(recheck_interval=0.3)

        def begin() -> None:
            record.write(f"{dbos.workflow_id} {dbos.step_id} {dbos.attempt}")

        @dbos.step
        async def add(a: int, b: int) -> int:
            begin()
            return a + b

        @dbos.step
        async def keep(word: str, number: float) -> str:
            begin()
            return f"{word} {number}"

        @dbos.step(retry=Retry(max_attempts=3, interval=0.01))
        async def flaky() -> int:
            begin()
            if dbos.attempt < 3:
                raise ConnectionError("not yet")
            return dbos.attempt

        @dbos.workflow
        async def child(number: int) -> int:
            return await add(number, number)

        async def two_steps(number: int) -> int:
            return await add(await add(number, 4), 6)

        async def nested(number: int) -> list[int]:
            return list(await asyncio.gather(add(number, 1), add(number, 2)))

        @dbos.workflow
        async def reference() -> dict[str, Any]:
            begun_at = await dbos.now()
            drawn, number = str(dbos.uuid4()), dbos.random().random()
            kept = await keep(drawn, number)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(two_steps(n)) for n in (1, 3)]
            lists = await asyncio.gather(nested(0), nested(100))
            awaited = await child(20)
            handle = await dbos.start_workflow(child, 40)
            attempts = await flaky()
            await dbos.sleep(0.02)
            return {
                "repeats": kept == f"{drawn} {number}" and begun_at.tzinfo is not None,
                "group": [task.result() for task in tasks],
                "nested": lists,
                "child": awaited,
                "started": await handle.get_result(),
                "flaky": attempts,
                "last": await add(4, 5),
            }

        self.workflow = reference.with_options(workflow_id=WORKFLOW_ID)


async def main(url: str, record: str) -> None:
    reference = Reference(url, Record(Path(record)))
    async with reference.dbos:
        assert await reference.workflow() == RESULT


if __name__ == "__main__":
    with crash_at(int(sys.argv[3]), before=sys.argv[4] == "before", kill=True):
        asyncio.run(main(sys.argv[1], sys.argv[2]))
