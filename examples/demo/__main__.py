"""Fulfils 5,000 orders durably while the process that does it is killed twice, and proves it."""

import argparse
import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dbos_async import DBOS, DBOSError
from dbos_async._app import EMBEDDED_DATABASE
from dbos_async._config import EMBEDDED_DIRECTORY
from dbos_async._store.embedded import start_embedded
from examples.demo import report
from examples.demo.run import Connection, DemoError, Run
from examples.demo.shop import SETUP

OWNED = """
select coalesce(obj_description(to_regnamespace('shop')), '') = 'the demo of dbos_async'
    or to_regnamespace('shop') is null
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--database-url", help="your own server; else an embedded one in ./.dbos")
    parser.add_argument("--orders", type=int, help="only the first so many of orders.csv")
    parser.add_argument("--report", metavar="RUN", help="only report on an earlier run")
    arguments = parser.parse_args()
    logging.getLogger("dbos_async").setLevel(logging.ERROR)
    try:
        uvloop.run(demo(Console(highlight=False), arguments))
    except DemoError as error:
        return complain(str(error), error.code)
    except (DBOSError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return complain(str(error), 2)
    return 0


def complain(reason: str, code: int) -> int:
    Console(stderr=True).print(reason, style="red", markup=False, highlight=False, soft_wrap=True)
    return code


async def demo(console: Console, arguments: argparse.Namespace) -> None:
    """The whole of it.

    Raises:
        DemoError: it was stopped, it failed, or the proof did.
    """
    stopped = stop_signal()
    url, place = await database_of(arguments.database_url)
    async with connected(url) as connection:
        name = arguments.report
        if name is None:
            run = await Run.begin(connection, arguments.orders)
            console.print(f"{run.total:,} orders, a durable workflow each, in {place}")
            await work(console, run, url, stopped)
            name = run.name
        facts = await report.fetch_facts(connection, name)
    if facts is None:
        raise DemoError(f"There is no run {name!r} in {place}.", 2)
    again = f"make demo ARGS='--report {name}'{' DATABASE_URL=…' if arguments.database_url else ''}"
    title = f"Run {name}, as Postgres has it"
    if not report.show(console, facts, title=title, place=place, again=again):
        raise DemoError("The proof failed: see what is marked ✘ above.")


def stop_signal() -> "asyncio.Future[int]":
    """The number of the signal that asks the demo to stop, once it has come."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, int(number))
    return stopped


async def database_of(url: str | None) -> tuple[str, str]:
    """The database's URL, and how to tell people of it."""
    if url is None:
        url = await start_embedded(EMBEDDED_DIRECTORY, database=EMBEDDED_DATABASE)
        return url, f"{EMBEDDED_DIRECTORY / 'postgres'} (database {EMBEDDED_DATABASE})"
    parts = urlsplit(url)
    return url, f"database {parts.path.strip('/')} on {parts.hostname or 'this machine'}"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection to a database that has the system tables and the shop's."""
    async with DBOS("demo-report", url):
        pass  # the system tables are there now, or an error says in one sentence why not
    connection = await asyncpg.connect(url)
    try:
        if not await connection.fetchval(OWNED):
            raise DemoError("This database has a schema `shop` of its own: name another one.", 2)
        await connection.execute(SETUP)
        yield connection
    finally:
        await connection.close()


async def work(console: Console, run: Run, url: str, stopped: "asyncio.Future[int]") -> None:
    """Do the run, with a progress bar."""
    columns = (TextColumn("  orders"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("orders", total=run.total)

        def on_look(news: str | None) -> None:
            progress.update(bar, completed=run.done)
            if news is not None:
                progress.console.print(f"  {news}")

        await run.work(url, stopped, on_look)


if __name__ == "__main__":
    raise SystemExit(main())
