"""A process of a fleet: `member.py URL LEDGER [setting=value…]`.

It says `ready <executor id>` when it is launched and `result …` when what it was told to run has
ended, and shuts down at SIGTERM or when its stdin is closed. Its steps write down that they began
and ended, each line by one write.
"""

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from dbos_async import DBOS, NotLaunchedError


class Member:
    def __init__(self, url: str, ledger: str, **settings: float | str) -> None:
        self.dbos = dbos = DBOS("fleet", url, app_version=str(settings.pop("version", "1")))
        dbos.configure(**settings)
        self._out = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        @dbos.step(name="work")
        async def work() -> int:
            self.note("begin")
            await asyncio.sleep(0.05)
            self.note("end")
            return os.getpid()

        @dbos.step(name="block")
        async def block(seconds: float) -> int:
            self.note("begin")
            time.sleep(seconds)  # noqa: ASYNC251  # that is the point
            self.note("end")
            return os.getpid()

        @dbos.step(name="hold")
        async def hold(gate: str) -> int:
            self.note("begin")
            while not Path(gate).exists():  # noqa: ASYNC240  # a test's
                await asyncio.sleep(0.02)
            self.note("end")
            return os.getpid()

        @dbos.workflow(name="job")
        async def job() -> list[int]:
            return [await work() for _ in range(3)]

        @dbos.workflow(name="blocker")
        async def blocker(seconds: float) -> list[int]:
            return [await block(seconds), await work()]

        @dbos.workflow(name="holder")
        async def holder(gate: str) -> list[int]:
            return [await hold(gate), await work()]

        @dbos.workflow(name="sleeper")
        async def sleeper() -> None:
            await dbos.sleep(3600)

        dbos.queue("jobs")
        self.flows = {"job": job, "blocker": blocker, "holder": holder, "sleeper": sleeper}

    def note(self, what: str) -> None:
        line = f"{what} {self.dbos.workflow_id} {self.dbos.step_id} {os.getpid()}\n"
        os.write(self._out, line.encode())


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(url: str, ledger: str, *settings: str) -> None:
    """Run what stdin says, a line each: NAME ID [ARGUMENT]."""
    values = dict(setting.split("=") for setting in settings)
    version = values.pop("version", "1")
    typed = {key: text if key == "executor_id" else float(text) for key, text in values.items()}
    member = Member(url, ledger, version=version, **typed)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def run(name: str, workflow_id: str, *arguments: str) -> None:
        typed = [float(each) if name == "blocker" else each for each in arguments]
        flow = member.flows[name].with_options(workflow_id=workflow_id)
        handle = await member.dbos.start_workflow(flow, *typed)
        say("started", workflow_id)
        with suppress(NotLaunchedError):  # shut down before it ended
            say("result", workflow_id, *await handle.get_result())

    async def obey() -> None:
        while line := await reader.readline():
            group.create_task(run(*line.decode().split()))
        over.set()

    async def watch() -> None:
        while not member.dbos.launched().is_draining:
            await asyncio.sleep(0.02)
        say("usurped")

    await member.dbos.launch()
    say("ready", member.dbos.executor_id)
    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(obey()), group.create_task(watch())]
        await over.wait()
        for task in serving:
            task.cancel()
        await member.dbos.shutdown(timeout=0.1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
