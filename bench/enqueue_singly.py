"""Workflows enqueued one a call, from within a workflow and from outside; nobody takes any."""

from bench.app import rate_of
from bench.bench import Bench
from bench.figures import Figure, Turn, ratios
from bench.queued import Queued, paused

AT_ONCE = 100


async def measure(bench: Bench) -> list[Figure]:
    """Workflows per second by each way, in turns with `enqueue_many`."""
    async with bench.server.database() as url, paused(url) as queued:
        values = await bench.interleaved(
            {
                "enqueue_many": many(queued, bench),
                "one by one": singly(queued, bench, 1, within=False),
                "one by one, in a workflow": singly(queued, bench, 1, within=True),
                "100 at once": singly(queued, bench, AT_ONCE, within=False),
                "100 at once, in a workflow": singly(queued, bench, AT_ONCE, within=True),
            }
        )
    by_many = values.pop("enqueue_many")
    return [
        *(Figure(f"enqueued, {way}", "/s", rates) for way, rates in values.items()),
        Figure("enqueued, by enqueue_many", "/s", by_many),
        Figure("one by one : enqueue_many", "x", ratios(values["one by one"], by_many)),
        Figure("100 at once : enqueue_many", "x", ratios(values["100 at once"], by_many)),
        Figure(
            "100 at once, in a workflow : outside",
            "x",
            ratios(values["100 at once, in a workflow"], values["100 at once"]),
        ),
    ]


def singly(queued: Queued, bench: Bench, at_once: int, *, within: bool) -> Turn:
    """Enqueue one a call, so many calls at a time."""
    each = max(1, bench.sizes.singly_enqueued // at_once)
    way = queued.feeder if within else queued.feed

    async def turn() -> float:
        await queued.refill(0)
        return await rate_of(lambda: way(at_once, each), at_once * each, bench.sizes.seconds)

    return turn


def many(queued: Queued, bench: Bench) -> Turn:
    """Enqueue all in one call."""

    async def turn() -> float:
        await queued.refill(0)
        return await rate_of(
            lambda: queued.feed_many(bench.sizes.enqueued),
            bench.sizes.enqueued,
            bench.sizes.seconds,
        )

    return turn
