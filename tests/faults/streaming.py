"""A workflow that streams in every way, once in a process that is told when to die.

python streaming.py DATABASE_URL CHECKPOINT before|after
"""

import asyncio
import sys
from typing import Any

from dbos_async import DBOS
from dbos_async.testing import crash_at

WORKFLOW_ID = "w"
BRANCHES = 3
VALUES = 2


class Streaming:
    """The app."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("streaming", url, app_version="1")
        dbos.configure(recheck_interval=0.2)

        @dbos.step(name="say")
        async def say() -> None:
            for value in range(VALUES):
                await dbos.write_stream("step", value)

        async def branch(number: int) -> None:
            for value in range(VALUES):
                await dbos.write_stream("branches", [number, value])

        @dbos.workflow(name="stream")
        async def stream() -> list[Any]:
            await dbos.write_stream("workflow", "first")
            await asyncio.gather(*[branch(number) for number in range(BRANCHES)])
            await say()
            for value in range(VALUES):
                await dbos.write_stream("workflow", value)
            await dbos.close_stream("workflow")
            return [value async for value in dbos.read_stream(WORKFLOW_ID, "workflow")]

        self.stream = stream.with_options(workflow_id=WORKFLOW_ID)


async def main(url: str, checkpoint: int, moment: str) -> None:
    streaming = Streaming(url)
    with crash_at(checkpoint, before=moment == "before", kill=True):
        async with streaming.dbos:
            await streaming.stream()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
