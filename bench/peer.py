"""The official `dbos` package on the same workload, on the same server."""

from bench.app import launched, rate_of
from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.peer_process import DBOS, PeerError, find_or_make_python, peer

TARGET = Target(at_least=100)


async def measure(bench: Bench) -> list[Figure]:
    """Steps per second of both, in turns."""
    try:
        values = await measured(bench)
    except PeerError as exc:
        return [
            Figure("steps, dbos_async", "/s", failure="its peer failed"),
            Figure("steps, dbos", "/s", failure=str(exc)),
            Figure("dbos_async : dbos", "x", failure="no peer", target=TARGET),
        ]
    ours, theirs = values["dbos_async"], values["dbos"]
    return [
        Figure("steps, dbos_async", "/s", ours),
        Figure("steps, dbos", "/s", theirs),
        Figure("dbos_async : dbos", "x", ratios(ours, theirs), TARGET),
    ]


async def measured(bench: Bench) -> dict[str, tuple[float, ...]]:
    """The values of both.

    Raises:
        PeerError: the official package could not be installed, started or run to the end.
    """
    size = bench.sizes
    python = bench.peer_python or await find_or_make_python(DBOS)
    async with (
        bench.server.database() as url,
        bench.server.database() as peer_url,
        launched(url) as app,
        peer(DBOS, python, peer_url, size.peer_workflows, size.steps) as official,
    ):

        async def ours() -> float:
            return await rate_of(
                lambda: app.at_once(size.peer_workflows, size.steps),
                size.peer_workflows * size.steps,
                size.seconds,
            )

        async def theirs() -> float:
            return await rate_of(
                lambda: official.do("run"), size.peer_workflows * size.steps, size.seconds
            )

        return await bench.interleaved({"dbos_async": ours, "dbos": theirs})
