"""Durable steps per second and core, what bounds them, and how they grow with cores.

Postgres and the processes that load it are pinned to one core, then to two. The rest of the
machine, and the process that looks on, are not.
"""

import asyncio
import os
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from bench.bench import Bench
from bench.crew import Member, Work, at_work, crew, rate_of, watched
from bench.evidence import DOINGS, Evidence, gathered
from bench.figures import Figure, Turn
from bench.processors import NotHereError, find_postmaster, pinned
from bench.server import connected
from dbos_async._store.database import Connection

MICROSECONDS = 1e6
A_TICK = 1e-3
"""Cores; less than the kernel can tell in a spell."""
EXTRAPOLATED = (4, 8)
LABEL = "extrapolated, not measured"
UNPINNED = "not measured, for Postgres could not be pinned: "


class Setting(Struct, frozen=True):
    """How many cores there are, and how many processes share them with Postgres."""

    cores: int
    processes: int

    def __str__(self) -> str:
        return f"{count_of(self.cores, 'core')}, {count_of(self.processes, 'process', 'es')}"


ONE, ONE_OF_TWO, TWO = Setting(1, 1), Setting(2, 1), Setting(2, 2)


class Seen(Struct, frozen=True):
    """What one turn showed."""

    work: list[Work]
    evidence: Evidence

    @property
    def rate(self) -> float:
        """Steps per second."""
        return rate_of(self.work)

    @property
    def python(self) -> float:
        """Cores that Python kept busy."""
        return sum(each.cpu_seconds / each.seconds for each in self.work)

    @property
    def backends(self) -> float:
        """Cores that the backends of the load's database kept busy."""
        return self.evidence.backend_seconds / self.evidence.seconds

    @property
    def others(self) -> float:
        """Cores that the rest of Postgres kept busy."""
        return self.evidence.other_seconds / self.evidence.seconds

    @property
    def idle(self) -> float:
        """Cores of its own that nobody kept busy."""
        return self.evidence.idle_seconds / self.evidence.seconds

    @property
    def known(self) -> float:
        """Cores of its own of which we know what they did."""
        return self.python + self.backends + self.others + self.idle

    @property
    def flushes(self) -> float:
        """How many a second."""
        return self.evidence.wal_flushes / self.evidence.seconds

    @property
    def wal_bytes(self) -> float:
        """How many a step."""
        return self.evidence.wal_bytes / self.evidence.seconds / self.rate


async def measure(bench: Bench) -> list[Figure]:
    """Rates on one and two cores in turns, with their evidence, and a guess at more."""
    size = bench.sizes
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    settings = [each for each in (ONE, ONE_OF_TWO, TWO) if each.cores <= max(1, len(allowed))]
    seen: dict[Setting, list[Seen]] = {setting: [] for setting in settings}
    try:
        async with (
            bench.server.database(with_schema=True) as url,
            connected(url) as onlooker,
            crew(url, 2, workflows=size.workflows, steps=size.steps) as members,
        ):
            postmaster = await find_postmaster(onlooker)
            backend = await onlooker.fetchval("select pg_backend_pid()")

            async def turn(setting: Setting) -> float:
                at = members[: setting.processes]
                pids = [member.pid for member in members]
                processors = set(allowed[: setting.cores])
                with pinned(postmaster, pids, processors, spared=backend):
                    seen[setting].append(await look(at, onlooker, size.spell, processors))
                return seen[setting][-1].rate

            turns: dict[str, Turn] = {str(each): partial(turn, each) for each in settings}
            await bench.interleaved(turns)
    except NotHereError as exc:
        return [Figure(f"durable steps, {ONE}", "/s", failure=f"{UNPINNED}{exc}")]
    counted = {setting: turns[1:] for setting, turns in seen.items()}
    return [
        *(rate_figure(setting, turns) for setting, turns in counted.items()),
        *growth(counted),
        *ceilings(counted[ONE], counted.get(ONE_OF_TWO, counted[ONE])),
        *(figure for setting, turns in counted.items() for figure in evidence_for(setting, turns)),
    ]


async def look(
    members: list[Member], onlooker: Connection, seconds: float, processors: set[int]
) -> Seen:
    """Let them work, and look at both sides for the same time."""
    async with at_work(members, seconds):
        work, evidence = await asyncio.gather(
            watched(members, seconds),
            gathered(onlooker, seconds, writers=len(members), processors=processors),
        )
    return Seen(work, evidence)


def rate_figure(setting: Setting, turns: list[Seen]) -> Figure:
    """A measured rate; a point of the line if there is a process for each core."""
    name, values = f"durable steps, {setting}", tuple(seen.rate for seen in turns)
    if setting.cores != setting.processes:
        return Figure(name, "/s", values)
    return Figure(name, "/s", values, series="measured", x=setting.cores, x_unit="cores")


def growth(seen: dict[Setting, list[Seen]]) -> list[Figure]:
    """What more cores would bring, with a process each, if what did not speed up never does."""
    if TWO not in seen:
        return []
    pairs = [(one.rate, two.rate) for one, two in zip(seen[ONE], seen[TWO], strict=True)]
    return [
        Figure("durable steps a core, 1 core", "/s", tuple(one for one, _ in pairs)),
        Figure("durable steps a core, 2 cores", "/s", tuple(two / 2 for _, two in pairs)),
        Figure("2 cores : 1 core", "x", tuple(two / one for one, two in pairs)),
        *(
            Figure(
                f"durable steps, {cores} cores: {LABEL}",
                "/s",
                tuple(extrapolated(one, two, cores) for one, two in pairs),
                series=LABEL,
                x=cores,
                x_unit="cores",
            )
            for cores in EXTRAPOLATED
        ),
    ]


def ceilings(on_one: list[Seen], apart: list[Seen]) -> list[Figure]:
    """What a core could do that does nothing else, and a process whose other side took no time."""
    return [
        Figure(
            "a core at most, by all their CPU",
            "/s",
            tuple(seen.rate / (seen.python + seen.backends + seen.others) for seen in on_one),
        ),
        Figure(
            "a process at most, by Python's CPU",
            "/s",
            tuple(seen.rate / seen.python for seen in apart),
        ),
        Figure(
            "a process at most, by the backends' CPU",
            "/s",
            tuple(seen.rate / max(seen.backends, A_TICK) for seen in apart),
        ),
    ]


def extrapolated(one: float, two: float, cores: int) -> float:
    """Amdahl's law, with the parallel share that the rates on one and two cores show.

    On n cores it takes (1 - p) + p / n of the time; p is 2 * (1 - one / two), from 0 to 1.
    """
    parallel = min(1.0, max(0.0, 2 * (1 - one / two)))
    return one / (1 - parallel + parallel / cores)


def evidence_for(setting: Setting, turns: list[Seen]) -> list[Figure]:
    """What bounds its rate."""

    def figure(name: str, unit: str, value: Callable[[Seen], float]) -> Figure:
        return Figure(f"{setting}: {name}", unit, tuple(value(seen) for seen in turns))

    return [
        figure("Python is busy on", "cores", lambda seen: seen.python),
        figure("Postgres's backends on", "cores", lambda seen: seen.backends),
        figure("the rest of Postgres on", "cores", lambda seen: seen.others),
        figure("all else on", "cores", lambda seen: setting.cores - seen.known),
        figure("nobody on", "cores", lambda seen: seen.idle),
        figure("Python's CPU a step", "µs", lambda seen: MICROSECONDS * seen.python / seen.rate),
        figure("the backends' a step", "µs", lambda seen: MICROSECONDS * seen.backends / seen.rate),
        figure("WAL a step", "B", lambda seen: seen.wal_bytes),
        figure("WAL flushes", "/s", lambda seen: seen.flushes),
        *(figure(f"a writing backend {what}", "%", partial(share_of, what)) for what in DOINGS),
    ]


def share_of(what: str, seen: Seen) -> float:
    return seen.evidence.doing[what]


def count_of(number: int, one: str, ending: str = "s") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}{ending}"
