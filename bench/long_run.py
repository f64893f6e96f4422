"""Steps per second in a database that has seen millions of them, beside a fresh one."""

from bench.app import App, launched, rate_of
from bench.bench import Bench
from bench.figures import Figure, Target, ratios
from bench.server import connected

CLEAR = "truncate dbos.workflow_status, dbos.operation_outputs cascade"
COUNT = "select count(*) from dbos.operation_outputs"
STAYS = Target(at_least=0.9)


async def measure(bench: Bench) -> list[Figure]:
    """The rate after each of so many steps, with that of an empty database in turns."""
    size = bench.sizes
    marks = size.long_run
    old: dict[int, tuple[float, ...]] = {}
    fresh: dict[int, tuple[float, ...]] = {}
    async with (
        bench.server.database() as url,
        bench.server.database() as fresh_url,
        launched(url) as app,
        launched(fresh_url) as other,
        connected(url) as connection,
        connected(fresh_url) as fresh_connection,
    ):

        async def steps(app: App) -> float:
            return await rate_of(
                lambda: app.at_once(size.workflows, size.steps),
                size.workflows * size.steps,
                size.seconds,
            )

        async def afresh() -> float:
            await fresh_connection.execute(CLEAR)
            return await steps(other)

        for mark in marks:
            bench.progress.turn(f"to {name_of(mark)}")
            left = mark - await connection.fetchval(COUNT)
            while left > 0:
                await app.at_once(size.workflows, size.steps)
                left -= size.workflows * size.steps
            values = await bench.interleaved({"old": lambda: steps(app), "fresh": afresh})
            old[mark], fresh[mark] = values["old"], values["fresh"]
    first, last = marks[0], marks[-1]
    return [
        *(
            Figure(
                f"steps, {kind} {name_of(mark)}",
                "/s",
                values[mark],
                series=series,
                x=mark / 1e6,
                x_unit="million steps",
            )
            for mark in marks
            for kind, series, values in (
                ("after", "a database that grows", old),
                ("fresh database beside", "a fresh one, at the same time", fresh),
            )
        ),
        *(
            Figure(
                f"grown : fresh, after {name_of(mark)}",
                "x",
                ratios(old[mark], fresh[mark]),
                STAYS if mark == last else None,
            )
            for mark in marks
        ),
        # Minutes lie between the two, so the machine has its part in it: no target.
        Figure(
            f"after {name_of(last)} : after {name_of(first)}", "x", ratios(old[last], old[first])
        ),
    ]


def name_of(steps: int) -> str:
    return f"{steps:,} steps"
