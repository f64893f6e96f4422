"""Whatever races a workflow runs, and wherever it dies: what was decided stays decided."""

import asyncio
import random
from typing import Any, Final
from uuid import uuid4

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dbos_async import DBOS, Workflow
from dbos_async.testing import crash_at

PATIENCE = 30.0
"""Seconds after which what a test waits for will not come."""

Program = list[Any]

PAUSES = st.sampled_from([0.0, 0.0, 0.004, 0.01])
MODES = st.sampled_from(["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"])
ACTIONS = st.deferred(
    lambda: st.one_of(
        st.tuples(st.just("step"), PAUSES).map(list),
        st.tuples(st.just("sleep"), PAUSES).map(list),
        st.tuples(
            st.just("wait"),
            st.lists(PROGRAMS, min_size=1, max_size=3),
            MODES,
            st.sampled_from([None, 0.0, 0.008, 1000.0]),
        ).map(list),
        st.tuples(st.just("timeout"), PROGRAMS, st.sampled_from([0.0, 0.006, 0.015, 1000.0])).map(
            list
        ),
        st.tuples(
            st.sampled_from(["gather", "group"]), st.lists(PROGRAMS, min_size=1, max_size=2)
        ).map(list),
    )
)
PROGRAMS: st.SearchStrategy[Program] = st.lists(ACTIONS, max_size=3)


INNER: Final = [
    "wait",
    [
        [["timeout", [["step", 0.0], ["gather", [[["sleep", 1000]]]]], 0.006], ["sleep", 0.0]],
        [["gather", [[]]], ["timeout", [], 0.0]],
    ],
    "FIRST_COMPLETED",
    0.0,
]
"""A race whose loser, too, is recorded to have come to a limit of its own."""


class Life:
    """One launch of an app that runs programs."""

    def __init__(self, url: str, seed: int) -> None:  # noqa: PLR0915  # one app
        self.dbos = dbos = DBOS("races", url, app_version="1")
        self.ran: list[str] = []
        self.decided: dict[str, Any] = {}
        """What became of each race, once it was told; and which branches lost it."""
        self.lost: set[str] = set()
        self.has_run = False
        """Whether the workflow had not ended before."""
        self._random = random.Random(seed)

        @dbos.step(name="step")
        async def step(label: str, pause: float) -> str:
            self.ran.append(label)
            await asyncio.sleep(pause * self._random.random() * 2)
            return label

        async def walk(program: Program, label: str) -> list[Any]:
            results: list[Any] = []
            for index, (kind, *rest) in enumerate(program):
                here = f"{label}/{index}"
                match kind:
                    case "step":
                        results.append(await step(here, rest[0]))
                    case "sleep":
                        await dbos.sleep(rest[0])
                    case "wait":
                        results.append(await race(here, *rest))
                    case "timeout":
                        results.append(await limited(here, *rest))
                    case "gather":
                        walks = [walk(each, f"{here}.{i}") for i, each in enumerate(rest[0])]
                        results += await asyncio.gather(*walks)
                    case _:
                        async with asyncio.TaskGroup() as group:
                            tasks = [
                                group.create_task(walk(each, f"{here}.{i}"))
                                for i, each in enumerate(rest[0])
                            ]
                        results += [task.result() for task in tasks]
            return results

        async def race(here: str, programs: list[Program], mode: str, timeout: Any) -> Any:
            tasks = [
                asyncio.create_task(walk(each, f"{here}.{i}")) for i, each in enumerate(programs)
            ]
            try:
                done, pending = await dbos.wait(tasks, return_when=mode, timeout=timeout)
            finally:
                for task in tasks:
                    task.cancel()
            winners = [i for i, task in enumerate(tasks) if task in done]
            self.decided[here] = winners
            self.lost |= {f"{here}.{i}" for i, task in enumerate(tasks) if task in pending}
            return [winners, *[tasks[i].result() for i in winners]]

        async def limited(here: str, program: Program, seconds: float) -> Any:
            result: Any = "late"
            try:
                async with dbos.timeout(seconds):
                    result = await walk(program, f"{here}.")
            except TimeoutError:
                self.lost.add(f"{here}.")
                result = "late"
            self.decided[here] = result
            return result

        @dbos.workflow(name="root")
        async def root(program: Program) -> list[Any]:
            self.has_run = True
            return [await walk(program, ""), await step("last", 0.0)]

        self.root: Workflow[[Program], list[Any]] = root

    async def run(self, workflow_id: str, program: Program) -> Any:
        async with asyncio.timeout(PATIENCE), self.dbos:
            return await self.root.with_options(workflow_id=workflow_id)(program)


def shared(life: Life, other: Life) -> dict[str, Any]:
    """What was decided in both, as it was in the first."""
    return {label: what for label, what in life.decided.items() if label in other.decided}


@example(  # the loser's sleep is over, and its next step recorded, when it is cancelled
    program=[["wait", [[], [["sleep", 0.0], ["step", 0.0]]], "FIRST_COMPLETED", None]],
    seeds=(0, 0, 0),
    checkpoints=(1, 1),
    before=False,
)
@example(  # an outer limit expires in its wait, and what an inner wait is for had come further
    program=[
        [
            "wait",
            [
                [
                    ["timeout", [["wait", [[INNER]], "FIRST_EXCEPTION", None]], 0.006],
                    ["sleep", 0.01],
                ]
            ],
            "FIRST_EXCEPTION",
            None,
        ],
        ["step", 0.0],
    ],
    seeds=(0, 0, 0),
    checkpoints=(6, 10),
    before=False,
)
@given(
    program=PROGRAMS,
    seeds=st.tuples(st.integers(), st.integers(), st.integers()),
    checkpoints=st.tuples(st.integers(1, 25), st.integers(1, 10)),
    before=st.booleans(),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_what_was_decided_stays_decided(
    dbos_database_url: str,
    program: Program,
    seeds: tuple[int, int, int],
    checkpoints: tuple[int, int],
    before: bool,
) -> None:
    workflow_id = uuid4().hex
    lives: list[Life] = []
    result: Any = None
    for seed, checkpoint in zip(seeds, (*checkpoints, 10**6), strict=True):
        life = Life(dbos_database_url, seed)
        with crash_at(checkpoint, before=before) as crash:
            result = await life.run(workflow_id, program)
        lives.append(life)
        if not crash.happened:
            break
    last = lives[-1]
    for number, life in enumerate(lives):
        for earlier in lives[:number]:
            assert earlier.decided == {**earlier.decided, **shared(life, earlier)}
            again_ran = [
                label for label in life.ran for loser in earlier.lost if label.startswith(loser)
            ]
            assert not again_ran, "steps ran again that had lost"
            if life is last and last.has_run:
                assert earlier.decided.keys() <= last.decided.keys()
    again = Life(dbos_database_url, seeds[0])
    [report] = await again.dbos.check_replay(workflow_ids=[workflow_id])
    assert report.is_ok, report
    assert again.decided == {**again.decided, **shared(last, again)}
    assert result[1] == "last"
