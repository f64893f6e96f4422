"""`dbos.wait`: which of several tasks and workflows were done first, recorded.

    the call ─▶ a deadline is recorded, if there is one ─▶ wait ─▶ who is done is recorded

Who is done is noted by the place in the list, so a replay finds the same winners, whoever is done
by then: tasks are done again by their own recorded steps, and for a workflow there is nothing to
wait for. It returns when the winners are done and the losers have come as far as they had (see
`replay`).

The waiting is done by a task apart, whose helpers are no branches of the workflow; it holds no
connection. If the process dies meanwhile, the replay waits again, until the same deadline.
"""

import asyncio
import inspect
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeGuard

from dbos_async._engine.context import Branch, branch_of
from dbos_async._engine.execution import Execution, Started, Wait
from dbos_async._engine.replay import DECIDED, SLEEP, WAIT
from dbos_async._engine.steps import StepDefinition
from dbos_async._store import codec
from dbos_async._store.database import Database
from dbos_async._store.records import ENDED, Outcome
from dbos_async._store.workflows import fetch_outcomes

Entrant = Started | asyncio.Future[Any]
"""What can be waited for."""

MODES: Final = (asyncio.ALL_COMPLETED, asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION)


class Judge(Protocol):
    """Who knows how workflows end."""

    database: Database

    async def outcome_of(self, started: Started) -> Outcome:
        """How it ended, once it has."""
        ...


class FailedError(Exception):
    """A workflow has ended without a result; for `asyncio.wait`, nobody else sees it."""


def wait(
    branch: Branch, entrants: Sequence[Entrant], return_when: str, seconds: float | None
) -> Coroutine[Any, Any, list[int]]:
    """The places of those that are done, as a step of the workflow that waits, numbered now."""
    execution: Execution = branch.execution
    key = branch.next_key()
    deadline_key = None if seconds is None else branch.next_key()
    race = Race(entrants, return_when, execution.executor.session)
    recorded = RecordedRace(execution, key, deadline_key, seconds, race)
    run = recorded.run()
    execution.called(key, WAIT, run)
    return run


async def wait_plainly(race: "Race", seconds: float | None) -> list[int]:
    """The same outside of workflows, and in steps: nothing is recorded."""
    if race.is_decided:
        return race.done
    return await race.decide(None if seconds is None else lambda: asyncio.sleep(seconds))


class RecordedRace:
    """A race within a workflow."""

    def __init__(
        self,
        execution: Execution,
        key: str,
        deadline_key: str | None,
        seconds: float | None,
        race: "Race",
    ) -> None:
        self._execution = execution
        self._executor = execution.executor
        self._key = key
        self._position = execution.position_of(key)
        self._deadline_key = deadline_key
        self._seconds = seconds or 0.0
        self._race = race

    async def run(self) -> list[int]:
        """The places of those that are done."""
        execution, race = self._execution, self._race
        execution.begin(self._key)
        deadline_ms = await self._deadline()
        step = StepDefinition(
            WAIT,
            lambda: self._decided(deadline_ms),
            decode=codec.decoder(list[int]),
            is_internal=True,
        )
        done: list[int] = await self._executor.steps.run(
            execution, self._key, self._position, step, (), {}
        )
        await race.over(done)
        if execution.replay is not None and race.has_losers(done):
            await execution.replay.quiet(DECIDED)
        return done

    async def _deadline(self) -> float | None:
        """When the waiting ends, in milliseconds of the database's clock; recorded if needed."""
        execution, key = self._execution, self._deadline_key
        if key is None:
            return None
        if key not in execution.history and (
            self._key in execution.history or self._race.is_decided
        ):
            return None

        async def ends_at() -> float:
            now_ms: int = self._executor.clock.now_ms()
            return now_ms / 1000 + self._seconds

        step = StepDefinition(SLEEP, ends_at, decode=codec.decoder(float), is_internal=True)
        position = execution.position_of(key)
        ends: float = await self._executor.steps.run(execution, key, position, step, (), {})
        return ends * 1000

    async def _decided(self, deadline_ms: float | None) -> list[int]:
        race = self._race
        if race.is_decided:
            return race.done
        is_for_tasks = race.is_for(self._execution.tasks)
        wait = Wait(
            key=self._key,
            until_ms=deadline_ms if is_for_tasks else None,  # a workflow may end any moment
            is_queued=race.is_for_queued,
            is_for_tasks=is_for_tasks,
        )
        clock = self._executor.clock
        async with self._execution.waiting(wait):
            done: list[int] = await self._executor.apart(
                race.decide(None if deadline_ms is None else lambda: clock.sleep_until(deadline_ms))
            )
        return done


class Race:
    """Tasks and workflows that somebody waits for."""

    def __init__(self, entrants: Sequence[Entrant], return_when: str, judge: Judge | None) -> None:
        self._entrants = entrants
        self._return_when = return_when
        self._judge = judge
        self._watched = {
            place: each for place, each in enumerate(entrants) if isinstance(each, Started)
        }
        self._tasks = {
            place: each for place, each in enumerate(entrants) if not isinstance(each, Started)
        }

    def is_for(self, tasks: Collection["asyncio.Task[Any]"]) -> bool:
        """Whether nothing but these decides it."""
        return not self._watched and all(
            task.done() or task in tasks for task in self._tasks.values()
        )

    @property
    def is_for_queued(self) -> bool:
        """Whether all its workflows were put on a queue by who waits for them."""
        return bool(self._watched) and all(each.is_queued for each in self._watched.values())

    @property
    def done(self) -> list[int]:
        """The places of the tasks that are done."""
        return [place for place, task in self._tasks.items() if task.done()]

    @property
    def is_decided(self) -> bool:
        """Whether there is nothing to wait for, as far as the tasks tell."""
        done = self.done
        if self._return_when == asyncio.FIRST_COMPLETED and done:
            return True
        if self._return_when == asyncio.FIRST_EXCEPTION and any(
            has_failed(self._tasks[place]) for place in done
        ):
            return True
        return len(done) == len(self._entrants)

    def has_losers(self, done: list[int]) -> bool:
        """Whether there are tasks beside these."""
        return any(place not in done for place in self._tasks)

    async def over(self, done: list[int]) -> None:
        """Return once those of these that are tasks are done in this run, too."""
        tasks = [self._tasks[place] for place in done if place in self._tasks]
        if any(not task.done() for task in tasks):
            await asyncio.wait(tasks)

    async def decide(self, time: Callable[[], Coroutine[Any, Any, None]] | None) -> list[int]:
        """The places of those that are done when it is decided, or when the time is up."""
        watchers = {place: asyncio.create_task(self._watch(place)) for place in self._watched}
        helpers: list[asyncio.Task[Any]] = list(watchers.values())
        everybody = [*self._tasks.values(), *helpers]
        decided = asyncio.create_task(asyncio.wait(everybody, return_when=self._return_when))
        helpers.append(decided)
        try:
            if time is not None:
                helpers.append(asyncio.create_task(time()))
                await asyncio.wait([decided, helpers[-1]], return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.wait([decided])
            ended = [place for place, watcher in watchers.items() if watcher.done()]
            if not decided.done() and len(ended) < len(watchers):
                ended = await self._ended()
            return sorted([*self.done, *ended])
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _watch(self, place: int) -> None:
        assert self._judge is not None
        outcome = await self._judge.outcome_of(self._watched[place])
        if outcome.status != "SUCCESS":
            raise FailedError(outcome.status)

    async def _ended(self) -> list[int]:
        """The places of the workflows that have ended by now, known here or not."""
        assert self._judge is not None
        database = self._judge.database
        ids = {each.workflow_id for each in self._watched.values()}
        rows = await database.patiently(lambda: fetch_outcomes(database, list(ids)))
        alive = {row.workflow_id for row in rows if row.status not in ENDED}
        return [place for place, each in self._watched.items() if each.workflow_id not in alive]


def has_failed(task: "asyncio.Future[Any]") -> bool:
    """Whether it raised; one that was cancelled did not, as for asyncio."""
    return not task.cancelled() and task.exception() is not None


def checked_mode(return_when: str) -> str:
    """What a race waits for.

    Raises:
        ValueError: there is no such mode.
    """
    if return_when not in MODES:
        raise ValueError(f"return_when is one of {', '.join(MODES)}, not {return_when!r}")
    return return_when


def is_entrant(value: object) -> TypeGuard[Entrant]:
    """Whether it can be waited for."""
    return isinstance(value, asyncio.Future | Started)


def checked_entrant(entrant: object) -> Entrant:
    """Refuse what cannot be waited for.

    Raises:
        TypeError: it is neither a task, nor a future, nor a workflow's handle.
    """
    if is_entrant(entrant):
        return entrant
    if inspect.iscoroutine(entrant):
        entrant.close()  # or Python complains that it was never awaited
        raise TypeError("wait takes tasks, not coroutines: write asyncio.create_task(…) first")
    raise TypeError(
        f"wait takes a list of tasks, futures and workflow handles, with no {entrant!r} in it"
    )


def rank(entrant: Entrant, branch: Branch) -> tuple[tuple[int, ...], str]:
    """What orders the elements of a set, so that a replay finds the same order.

    Raises:
        TypeError: there is no such order for a future that is no task of the workflow.
    """
    if isinstance(entrant, Started):
        return (), entrant.workflow_id
    place = branch_of(entrant)
    if place is None or place.execution is not branch.execution or not place.path:
        raise TypeError(
            f"a set has no order that a replay could go by, with {entrant!r} in it: give wait a "
            "list"
        )
    return tuple(int(number) for number in place.path.split(".")[:-1]), ""
