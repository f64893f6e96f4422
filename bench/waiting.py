"""Ten thousand workflows that sleep, or wait for a message: in memory, and parked."""

import itertools

import msgspec

from bench.bench import Bench
from bench.companion import companion
from bench.figures import Figure
from bench.waiter import Waited

KINDS = ("sleep", "recv")
FORMS = ("memory", "parked")


async def measure(bench: Bench) -> list[Figure]:
    """Each in a process of its own, in turns; no warm-up, for the process is a new one anyway."""
    waits = list(itertools.product(KINDS, FORMS))
    bench.progress.begin(bench.sizes.long_rounds * len(waits))
    measured: dict[tuple[str, str], list[Waited]] = {wait: [] for wait in waits}
    for _ in range(bench.sizes.long_rounds):
        for kind, form in waits:
            bench.progress.turn(f"{kind}, {form}")
            measured[kind, form].append(await waited(bench, kind, form))
    return [
        figure
        for (kind, form), rounds in measured.items()
        for figure in figures_of(f"{kind}, {form}", rounds)
    ]


async def waited(bench: Bench, kind: str, form: str) -> Waited:
    """What a process measured whose workflows had all begun to wait before they were due."""
    nap = bench.sizes.nap_seconds
    while True:
        async with (
            bench.server.database(with_schema=True) as url,
            companion("waiter", url, kind, form, bench.sizes.waiting, nap) as waiter,
        ):
            answer = msgspec.json.decode(await waiter.hear(), type=Waited | None)
        if answer is not None:
            return answer
        nap *= 2


def figures_of(what: str, rounds: list[Waited]) -> list[Figure]:
    """How soon all wait, what each weighs, and how fast they go on."""
    return [
        Figure(f"{what}: all wait after", "s", tuple(one.seconds for one in rounds)),
        Figure(f"{what}: memory of each", "kB", tuple(one.bytes_each / 1e3 for one in rounds)),
        Figure(f"{what}: woken", "/s", tuple(one.woken for one in rounds)),
    ]
