"""A plain worker: python -m examples.worker, as many as you like; SIGTERM ends one in good order.

It takes thumbnails to make off a queue. Whoever has work enqueues it, from any process that can
reach the database, with the workflow's name alone:

    async with Client(url) as client:
        await client.enqueue("thumbnails", client.stub("thumbnail"), "cat.jpg")
"""

import asyncio
import logging
import signal

from dbos_async import DBOS, Retry

dbos = DBOS("worker")
thumbnails = dbos.queue("thumbnails", worker_concurrency=4)


@dbos.step(retry=Retry(max_attempts=3))
def shrink(name: str) -> str:  # a plain def runs in a thread
    return f"small-{name}"


@dbos.workflow(name="thumbnail")
async def thumbnail(name: str) -> str:
    return await shrink(name)


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await dbos.launch()  # from here on it takes work
    try:
        await stop.wait()
    finally:
        await dbos.shutdown(timeout=30)  # takes no more; what does not end by then waits, PENDING


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
