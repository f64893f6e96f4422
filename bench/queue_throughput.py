"""Workflows that do nothing, enqueued beforehand, beside PgQueuer's jobs that do nothing."""

import time

from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.peer_process import PGQUEUER, Peer, PeerError, find_or_make_python, peer
from bench.queued import paused

RATE = Target(at_least=10_000)
RATIO = Target(at_least=1)


async def measure(bench: Bench) -> list[Figure]:
    """Workflows and jobs per second, in turns."""
    try:
        values = await measured(bench)
    except PeerError as exc:
        return [
            Figure("workflows", "/s", failure="its peer failed", target=RATE),
            Figure("PgQueuer, jobs", "/s", failure=str(exc)),
            Figure("workflows : jobs", "x", failure="no peer", target=RATIO),
        ]
    workflows, jobs = values["workflows"], values["PgQueuer"]
    return [
        Figure("workflows", "/s", workflows, RATE),
        Figure("PgQueuer, jobs", "/s", jobs),
        Figure("workflows : jobs", "x", ratios(workflows, jobs), RATIO),
    ]


async def measured(bench: Bench) -> dict[str, tuple[float, ...]]:
    """The values of both.

    Raises:
        PeerError: PgQueuer could not be installed, started or run to the end.
    """
    size = bench.sizes.queued
    python = await find_or_make_python(PGQUEUER)
    async with (
        bench.server.database() as url,
        bench.server.database() as peer_url,
        paused(url) as queued,
        peer(PGQUEUER, python, peer_url, size) as pgqueuer,
    ):

        async def workflows() -> float:
            await queued.refill(size)
            return await queued.drain(size)

        return await bench.interleaved(
            {"workflows": workflows, "PgQueuer": lambda: drained(pgqueuer, size)}
        )


async def drained(pgqueuer: Peer, jobs: int) -> float:
    """How many jobs a second it ran."""
    await pgqueuer.do("fill")
    started = time.perf_counter()
    await pgqueuer.do("drain")
    return jobs / (time.perf_counter() - started)
