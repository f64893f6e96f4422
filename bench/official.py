"""The peer's process: the workload on the official `dbos` package. Imports nothing of the bench.

    python official.py DATABASE_URL WORKFLOWS STEPS

For each line on stdin it runs the workflows, all at once, and answers with a line. It is as fast as
its manual says how to make it: async workflows awaited directly (a handle's result is polled for,
once a second), LISTEN/NOTIFY rather than polling (its default), a connection for each workflow that
may want one, and no telemetry and no logs. uvloop, where it is installed, too.
"""

import asyncio
import sys
from collections.abc import Callable

from dbos import DBOS, DBOSConfig

URL, WORKFLOWS, STEPS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


@DBOS.step()
async def increment(number: int) -> int:
    return number + 1


@DBOS.workflow()
async def count(number: int, steps: int) -> int:
    for _ in range(steps):
        number = await increment(number)
    return number


def configuration() -> DBOSConfig:
    return {
        "name": "bench",
        "system_database_url": URL,
        "sys_db_pool_size": 50,
        "enable_otlp": False,
        "log_level": "ERROR",
    }


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # its environment need not have it
    except ImportError:
        return None
    return uvloop.new_event_loop


async def main() -> None:
    DBOS(config=configuration())
    DBOS.launch()
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        await asyncio.gather(*[count(number, STEPS) for number in range(WORKFLOWS)])
        print("done", flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
