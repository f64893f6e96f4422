"""Workflows that talk, for processes that die: `talkers.py URL CHECKPOINT MOMENT`.

One sends, the other answers; both publish what they have so far. Whatever dies, each message is
received once, in order, and every event is set once.
"""

import asyncio
import sys
from typing import Any

from dbos_async import DBOS, Message, WorkflowNotFoundError
from dbos_async.testing import crash_at

ROUNDS = 2
RESULT: list[Any] = [
    [0, 10, "nobody", "a", "b", None],
    [0, 1, "done"],
]


class Talkers:
    """The app."""

    def __init__(self, url: str) -> None:
        self.dbos = dbos = DBOS("talkers", url, app_version="1")
        dbos.configure(recheck_interval=0.3)

        @dbos.step(name="tell")
        async def tell(number: int) -> None:
            await dbos.set_event("inside", number)

        @dbos.workflow(name="ping")
        async def ping() -> list[Any]:
            answers: list[Any] = []
            for number in range(ROUNDS):
                await dbos.send("pong", number, "ball")
                answers.append(await dbos.recv("ball", timeout=60))
                await dbos.set_event("so far", list(answers))
                await tell(number)
            try:
                await dbos.send("nobody", 1)
            except WorkflowNotFoundError as exc:
                answers.append(exc.workflow_id)
            await dbos.send_many([Message("ping", "a"), Message("ping", "b")])
            answers += [await dbos.recv() for _ in range(2)]
            answers.append(await dbos.recv(timeout=0.01))
            await dbos.set_event("end", "done")
            return answers

        @dbos.workflow(name="pong")
        async def pong() -> list[Any]:
            balls: list[Any] = []
            for _ in range(ROUNDS):
                ball = await dbos.recv("ball", timeout=60, as_=int)
                balls.append(ball)
                await dbos.send("ping", (ball or 0) * 10, "ball")
            return [*balls, await dbos.get_event("ping", "end", timeout=60)]

        self.ping = ping.with_options(workflow_id="ping")
        self.pong = pong.with_options(workflow_id="pong")

    async def talk(self) -> list[Any]:
        """What both have received."""
        pong = await self.dbos.start_workflow(self.pong)
        ping = await self.dbos.start_workflow(self.ping)
        return [await ping.get_result(), await pong.get_result()]


async def main(url: str) -> None:
    talkers = Talkers(url)
    async with talkers.dbos:
        assert await talkers.talk() == RESULT


if __name__ == "__main__":
    with crash_at(int(sys.argv[2]), before=sys.argv[3] == "before", kill=True):
        asyncio.run(main(sys.argv[1]))
