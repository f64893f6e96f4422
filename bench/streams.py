"""Workflows that stream in one process, to a reader each in another."""

import asyncio
import time
from statistics import median, quantiles

from bench.bench import Bench
from bench.companion import companion
from bench.figures import Figure, Target
from bench.streamer import KEY
from dbos_async import Client, WorkflowHandle

MILLISECONDS = 1e3
FORMS = ("from step", "from workflow")
STREAMS = 100
RATE = 200
"""Values a second of each stream."""


async def measure(bench: Bench) -> list[Figure]:
    """Milliseconds from a write's call to its reader, and how many a second there can be."""
    size = bench.sizes
    paced: dict[str, list[Paced]] = {form: [] for form in FORMS}
    async with (
        bench.server.database(with_schema=True) as url,
        companion("streamer", url),
        Client(url) as client,
    ):
        app = Streams(client)

        async def latency(form: str) -> float:
            paced[form].append(await app.paced(form, round(RATE * size.stream_seconds)))
            return 0.0

        values = await bench.interleaved(
            {
                **{form: (lambda form=form: latency(form)) for form in FORMS},
                **{
                    f"{form}, at once": (lambda form=form: app.at_once(form, size.streamed))
                    for form in FORMS
                },
            }
        )
    return [
        *(figure for form in FORMS for figure in figures_of(form, paced[form][1:])),
        *(
            Figure(f"{form}, saturated", "/s", values[f"{form}, at once"], Target(at_least=10_000))
            for form in FORMS
        ),
    ]


class Paced:
    """What readers of paced streams saw."""

    def __init__(self, waits: list[float], seconds: float) -> None:
        self.p50 = median(waits) * MILLISECONDS
        self.p99 = quantiles(waits, n=100, method="inclusive")[-1] * MILLISECONDS
        self.rate = len(waits) / seconds


def figures_of(form: str, rounds: list[Paced]) -> list[Figure]:
    return [
        Figure(f"{form}, p50", "ms", tuple(one.p50 for one in rounds)),
        Figure(f"{form}, p99", "ms", tuple(one.p99 for one in rounds), Target(at_most=50)),
        Figure(f"{form}, read", "/s", tuple(one.rate for one in rounds)),
    ]


class Streams:
    """The client of the process that streams."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def paced(self, form: str, count: int) -> Paced:
        """Let all streams write at their rate, with a reader each."""
        handles = await self._start(form, count, 1 / RATE)
        started = time.perf_counter()
        waits = await asyncio.gather(*[self._read(handle.workflow_id) for handle in handles])
        seconds = time.perf_counter() - started
        assert all(len(some) == count for some in waits)
        return Paced([wait for some in waits for wait in some], seconds)

    async def at_once(self, form: str, count: int) -> float:
        """Let all streams write as fast as they can, unread; how many values a second."""
        handles = await self._start(form, count, 0)
        spans = await asyncio.gather(*[handle.get_result() for handle in handles])
        seconds = max(ended for _, ended in spans) - min(began for began, _ in spans)
        return STREAMS * count / seconds

    async def _start(
        self, form: str, count: int, pause: float
    ) -> "list[WorkflowHandle[tuple[float, float]]]":
        stub = self._client.stub(form)
        calls = [stub.bind(count, pause) for _ in range(STREAMS)]
        return await self._client.enqueue_many("streams", calls)

    async def _read(self, workflow_id: str) -> list[float]:
        return [
            time.time() - sent
            async for sent in self._client.read_stream(workflow_id, KEY, as_=float)
        ]
