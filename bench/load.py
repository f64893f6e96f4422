"""A process that keeps workflows of steps in flight, from one command to another.

    python -m bench.load DATABASE_URL WORKFLOWS STEPS

It says `ready`. Each line on stdin is a command: `go` begins so many workflows of so many steps,
and replaces each as it ends; `look` does nothing; `stop` lets them end. It answers each with a
line: the moment, the steps that were durable by then, and the seconds of CPU that it took so far.
It ends when stdin does.
"""

import asyncio
import sys
import time

import uvloop

from dbos_async import DBOS


class Load:
    """The app, and the workflows in flight."""

    def __init__(self, url: str, workflows: int, steps: int) -> None:
        self.dbos = DBOS("load", url, app_version="1")
        self._durable = 0
        self._workflows = workflows
        self._steps = steps
        self._is_going = False
        self._clients: asyncio.Future[list[None]] | None = None

        @self.dbos.step(name="increment")
        async def increment(number: int) -> int:
            return number + 1

        @self.dbos.workflow(name="count")
        async def count(number: int, steps: int) -> int:
            for _ in range(steps):
                number = await increment(number)
                self._durable += 1
            return number

        self._count = count

    async def obey(self, command: str) -> str:
        """Do it, and say how far the load is."""
        match command:
            case "go":
                self._is_going = True
                clients = [self._client(number) for number in range(self._workflows)]
                self._clients = asyncio.gather(*clients)
            case "stop" if self._clients is not None:
                self._is_going = False
                await self._clients
            case "look":
                pass
            case _:
                raise ValueError(f"no such command: {command!r}")
        return f"{time.monotonic()} {self._durable} {time.process_time()}"

    async def _client(self, number: int) -> None:
        while self._is_going:
            await self._count(number, self._steps)


async def main(url: str, workflows: int, steps: int) -> None:
    load = Load(url, workflows, steps)
    async with load.dbos:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await load.obey(line.strip()), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
