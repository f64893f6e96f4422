"""The job: a workflow for every order, 300 at a time. SIGTERM and Ctrl-C end it in good order.

It does not ask what an earlier process has done. Each order's workflow has an id of its own, so
that starting it again attaches to what there is: its result, or the run that the launch resumed.
"""

import asyncio
import csv
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import asyncpg.pool
import msgspec
import uvloop

from examples.demo.shop import Order, Shop, dbos

AT_A_TIME = 300
CONNECTIONS = 8
DRAIN = 5.0
"""Seconds that a SIGTERM leaves to what runs."""

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"

log = logging.getLogger("demo")


def read_orders(limit: int | None = None) -> list[Order]:
    with Path(__file__).with_name("orders.csv").open(newline="", encoding="utf-8") as file:
        return msgspec.convert(list(csv.DictReader(file))[:limit], list[Order], strict=False)


def workflow_id_of(run: str, order: Order) -> str:
    return f"order-{run}-{order.order_id}"


async def main(run: str, limit: int) -> None:
    url = os.environ["DBOS_SYSTEM_DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=1, max_size=CONNECTIONS, reset=keep) as pool:
        shop = dbos.register(Shop(pool), name="demo")
        await dbos.launch()
        work = asyncio.create_task(fulfil_all(shop, run, read_orders(limit)))
        on_stop(work.cancel)
        await asyncio.wait([work])
        await dbos.shutdown(timeout=DRAIN)


async def keep(connection: Connection) -> None:
    """Give a connection back as it is; the default resets it, which costs a round trip."""


async def fulfil_all(shop: Shop, run: str, orders: list[Order]) -> None:
    places = asyncio.Semaphore(AT_A_TIME)

    async def fulfil(order: Order) -> None:
        async with places:
            workflow = shop.fulfil.with_options(workflow_id=workflow_id_of(run, order))
            handle = await dbos.start_workflow(workflow, run, order)
            await handle.get_result()

    for order, error in zip(
        orders,
        await asyncio.gather(*map(fulfil, orders), return_exceptions=True),
        strict=True,
    ):
        if error is not None:
            log.error("order %s failed: %r", order.order_id, error)


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` on SIGTERM and Ctrl-C, and when the parent, who holds our stdin, has died."""
    loop = asyncio.get_running_loop()

    def parent_died() -> None:
        loop.remove_reader(sys.stdin)
        stop()

    loop.add_reader(sys.stdin, parent_died)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
