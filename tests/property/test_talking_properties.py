"""Whenever the process dies, and however often, what workflows say to each other arrives once."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbos_async import DBOS
from dbos_async.testing import crash_at

PATIENCE = 40.0
"""Seconds after which what a test waits for will not come."""

DEATHS = st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=4)
"""Of one life after the other: at which checkpoint it ends, and whether before that one landed."""


class Rally:
    """One launch of two players who hit a ball to each other and publish the score."""

    def __init__(self, url: str, rally: str, strokes: int, timeouts: bool) -> None:
        self.dbos = dbos = DBOS("rally", url, app_version="1")
        dbos.configure(recheck_interval=0.2)

        @dbos.workflow(name="player")
        async def player(other: str, serves: bool) -> list[Any]:
            seen: list[Any] = []
            if serves:
                await dbos.send(other, 0, "ball")
            while len(seen) < strokes:
                ball = await dbos.recv("ball", timeout=60, as_=int)
                seen.append(ball)
                await dbos.set_event("score", seen)
                await dbos.send(other, (ball or 0) + 1, "ball")
                if timeouts:
                    seen.append(await dbos.recv("silence", timeout=0))
            return seen

        self.names = [f"{rally}-{side}" for side in ("left", "right")]
        self.player = player

    async def play(self) -> list[Any]:
        """What both have seen. Who serves starts last: there must be somebody to serve to."""
        left, right = self.names
        async with self.dbos:
            await self.dbos.start_workflow(self.player.with_options(workflow_id=right), left, False)
            await self.dbos.start_workflow(self.player.with_options(workflow_id=left), right, True)
            handles = [await self.dbos.retrieve_workflow(name) for name in self.names]
            return [await handle.get_result() for handle in handles]


@given(deaths=DEATHS, strokes=st.integers(1, 4), timeouts=st.booleans())
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_a_rally_is_the_same_whenever_the_process_dies(
    dbos_database_url: str, deaths: list[tuple[int, bool]], strokes: int, timeouts: bool
) -> None:
    name = uuid4().hex
    seen: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        for checkpoint, before in deaths:
            with crash_at(checkpoint, before=before) as crash:
                seen = await Rally(dbos_database_url, name, strokes, timeouts).play()
            if not crash.happened:
                break
        else:
            seen = await Rally(dbos_database_url, name, strokes, timeouts).play()
        check(seen, strokes, timeouts)
        await check_database(dbos_database_url, name, seen)


def check(seen: list[Any], strokes: int, timeouts: bool) -> None:
    """Each hit every other ball, once."""
    step = 2 if timeouts else 1
    balls = [[each for each in one if each is not None] for one in seen]
    count = -(-strokes // step)
    assert balls == [[1 + 2 * n for n in range(count)], [2 * n for n in range(count)]]


async def check_database(url: str, name: str, seen: list[Any]) -> None:
    """No message was sent twice, and the last score is the last one that was set."""
    connection = await asyncpg.connect(url)
    sent = await connection.fetch(
        "select destination_uuid, message::int from dbos.notifications "
        "where destination_uuid like $1 || '%'",
        name,
    )
    balls = sorted(row[1] for row in sent)
    await connection.close()
    count = sum(each is not None for each in [*seen[0], *seen[1]])
    assert balls == list(range(count + 1))
