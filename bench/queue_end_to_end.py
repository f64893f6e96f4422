"""From the enqueue here, through another process, to the result here; by many clients at once."""

import asyncio
import tempfile
import time
from pathlib import Path

from bench.bench import Bench
from bench.figures import Figure
from bench.fleet import Fleet, launched
from bench.latency import Latency
from dbos_async import Client


async def measure(bench: Bench) -> list[Figure]:
    """Results per second, and how long each took, by the number of clients."""
    with tempfile.TemporaryDirectory() as directory:
        async with (
            bench.server.database(with_schema=True) as url,
            launched(Fleet(url, Path(directory) / "ledger"), 1),
            Client(url) as client,
        ):
            crowds = [
                Crowd(client, clients, bench.sizes.seconds) for clients in bench.sizes.clients
            ]
            values = await bench.interleaved({crowd.name: crowd.ask for crowd in crowds})
    return [figure for crowd in crowds for figure in crowd.figures(values[crowd.name])]


class Crowd:
    """Clients that each enqueue a workflow that does nothing, await its result, and go on so."""

    def __init__(self, client: Client, clients: int, seconds: float) -> None:
        self.name = f"{clients:,} client{'s' if clients > 1 else ''}"
        self._client = client
        self._job = client.stub("job")
        self._clients = clients
        self._seconds = seconds
        self._latency = Latency()

    async def ask(self) -> float:
        """Go on for so long, and until every client has a result; results per second."""
        started = time.perf_counter()
        waits = await asyncio.gather(
            *[self._ask_until(started + self._seconds) for _ in range(self._clients)]
        )
        results = [wait for some in waits for wait in some]
        self._latency.note(results)
        return len(results) / (time.perf_counter() - started)

    async def _ask_until(self, end: float) -> list[float]:
        waits: list[float] = []
        while not waits or time.perf_counter() < end:
            began = time.perf_counter()
            handle = await self._client.enqueue("fleet", self._job, 0)
            await handle.get_result()
            waits.append(time.perf_counter() - began)
        return waits

    def figures(self, rates: tuple[float, ...]) -> list[Figure]:
        """What was measured, as points of lines."""
        x, x_unit = self._clients, "clients at once"
        rate = Figure(f"results, {self.name}", "/s", rates, series="dbos_async", x=x, x_unit=x_unit)
        return [rate, *self._latency.figures(f"to the result, {self.name}", x=x, x_unit=x_unit)]
