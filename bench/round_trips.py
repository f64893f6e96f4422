"""Steps on a Postgres that is a round trip of 0, 1 and 5 ms away, through a proxy that delays."""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

from bench.app import App, launched, rate_of
from bench.bench import Bench
from bench.figures import Figure, Target, Turn, ratios
from bench.server import connected
from dbos_async._store.database import Connection

ROOT = Path(__file__).parents[1]
ROUND_TRIPS_MS = (0, 1, 5)
MILLISECONDS = 1e3
PATIENCE = 60.0
STEPS_AT_1_MS = Target(at_least=15_000)


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second of many workflows, and the time of one of steps in a row, at each."""
    size = bench.sizes
    async with AsyncExitStack() as stack:
        turns: dict[str, Turn] = {}

        async def steps(app: App) -> float:
            return await rate_of(
                lambda: app.at_once(size.workflows, size.steps),
                size.workflows * size.steps,
                size.seconds,
            )

        async def step(app: App) -> float:
            return median(await app.watched(size.far_steps)) * MILLISECONDS

        for ms in ROUND_TRIPS_MS:
            url = await stack.enter_async_context(bench.server.database())
            far = await stack.enter_async_context(delayed(url, ms / MILLISECONDS))
            app = await stack.enter_async_context(launched(far))
            connection = await stack.enter_async_context(connected(far))
            turns[f"steps, {ms} ms"] = partial(steps, app)
            turns[f"step, {ms} ms"] = partial(step, app)
            turns[f"bare query, {ms} ms"] = partial(query, connection, size.far_steps)
        values = await bench.interleaved(turns)
    return [figure for ms in ROUND_TRIPS_MS for figure in figures_of(ms, values)]


def figures_of(ms: int, values: dict[str, tuple[float, ...]]) -> list[Figure]:
    """What one distance comes to."""
    point = partial(Figure, x=ms, x_unit="ms a round trip")
    steps, step, query = [f"{name}, {ms} ms" for name in ("steps", "step", "bare query")]
    target = STEPS_AT_1_MS if ms == 1 else None
    return [
        point(steps, "/s", values[steps], target, series="steps at once"),
        point(step, "ms", values[step], series="a step in a row"),
        point(query, "ms", values[query], series="bare query"),
        Figure(f"step : bare query, {ms} ms", "x", ratios(values[step], values[query])),
    ]


async def query(connection: Connection, times: int) -> float:
    """Median milliseconds of a query that does nothing: what the round trip really takes."""
    statement = await connection.prepare("select")
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        await statement.fetch()
        seconds.append(time.perf_counter() - started)
    return median(seconds) * MILLISECONDS


@asynccontextmanager
async def delayed(url: str, seconds: float) -> AsyncIterator[str]:
    """The URL of a proxy, a process of its own, through which a round trip takes so much more."""
    command = (sys.executable, "-m", "bench.delay", str(seconds / 2), *address_of(url))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            port = (await process.stdout.readline()).decode().strip()
        if not port:
            raise RuntimeError("the proxy did not start; it said why on stderr")
        yield by_way_of(int(port), url)
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def address_of(url: str) -> tuple[str, ...]:
    """Where its server listens: the path of a Unix socket, or a host and a port."""
    parts = urlsplit(url)
    asked = parse_qs(parts.query)
    host = parts.hostname or asked.get("host", ["localhost"])[0]
    port = str(parts.port or asked.get("port", ["5432"])[0])
    return (f"{host}/.s.PGSQL.{port}",) if host.startswith("/") else (host, port)


def by_way_of(port: int, url: str) -> str:
    """The same database and account, through a port of this machine."""
    parts = urlsplit(url)
    asked = [
        (name, value)
        for name, values in parse_qs(parts.query).items()
        for value in values
        if name not in ("host", "port")
    ]
    account, at, _ = parts.netloc.rpartition("@")
    netloc = f"{account}{at}127.0.0.1:{port}"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(asked, quote_via=quote)))
