"""A workflow that starts a thousand children and awaits them, beside as many without a parent.

They do nothing, so that what is measured is how they are started, end, and are told of.
"""

import asyncio

from bench.app import App, rate_of
from bench.bench import Bench
from bench.figures import Figure, ratios


async def measure(bench: Bench) -> list[Figure]:
    """Children per second and workflows per second, in turns."""
    children = bench.sizes.children
    async with bench.server.database() as url:
        app = App(url)
        dbos = app.dbos

        @dbos.workflow(name="caller")
        async def caller() -> None:
            await asyncio.gather(*[app.count(number, 0) for number in range(children)])

        @dbos.workflow(name="starter")
        async def starter() -> None:
            handles = await asyncio.gather(
                *[dbos.start_workflow(app.count, number, 0) for number in range(children)]
            )
            await asyncio.gather(*[handle.get_result() for handle in handles])

        async with dbos:
            values = await bench.interleaved(
                {
                    "workflows": lambda: rate_of(
                        lambda: app.at_once(children, 0), children, bench.sizes.seconds
                    ),
                    "children, called": lambda: rate_of(caller, children, bench.sizes.seconds),
                    "children, by handle": lambda: rate_of(starter, children, bench.sizes.seconds),
                }
            )
    workflows = values["workflows"]
    called, by_handle = values["children, called"], values["children, by handle"]
    return [
        Figure("workflows, no parent", "/s", workflows),
        Figure("children, called", "/s", called),
        Figure("children, by handle", "/s", by_handle),
        Figure("called : no parent", "x", ratios(called, workflows)),
        Figure("by handle : no parent", "x", ratios(by_handle, workflows)),
    ]
