"""Workflows that run again from one of their steps: under another id, or under their own."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from managed import managed, result_of

from dbos_async import (
    DBOS,
    QueueNotFoundError,
    WorkflowCancelledError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)

RICH_STEPS = 11


def ran_from(steps: list[Any], cut: int, calls: list[str]) -> Counter[str]:
    """What runs again when the steps before the cut are kept."""
    early = [s for s in steps if s.position < cut]
    kept = Counter(f"double {s.output // 2}" for s in early if s.name == "double")
    kept += Counter("risk" for s in early if s.name == "risk")
    if any(s.child_workflow_id for s in early):
        kept += Counter(["double 7"])  # the child is kept with the step that started it
    return Counter(calls) - kept


@pytest.mark.parametrize("cut", range(1, RICH_STEPS + 2))
async def test_a_fork_runs_the_steps_from_its_cut_and_no_others(
    dbos_database_url: str, cut: int
) -> None:
    async with managed(dbos_database_url) as shop:
        result = await shop.rich.with_options(workflow_id="r")()
        steps, calls = await shop.dbos.list_steps("r"), shop.calls.copy()
        assert [s.position for s in steps] == list(range(1, RICH_STEPS + 1))
        shop.calls.clear()
        fork = await shop.dbos.fork_workflow("r", cut)
        forked = await result_of(fork)
        assert forked[:-1] == result[:-1]
        assert Counter(shop.calls) == ran_from(steps, cut, calls)
        again = await shop.dbos.list_steps(fork.workflow_id)
        assert {(s.step_id, s.name) for s in again} == {(s.step_id, s.name) for s in steps}
        status, source = await shop.status(fork.workflow_id), await shop.status("r")
    assert (status.forked_from, status.was_forked_from) == ("r", False)
    assert (source.forked_from, source.was_forked_from) == (None, True)
    if cut > RICH_STEPS:
        assert forked == result  # what was drawn, too


@pytest.mark.parametrize("cut", range(1, RICH_STEPS + 2, 3))
async def test_a_fork_of_a_fork_that_is_gone_replays(dbos_database_url: str, cut: int) -> None:
    async with managed(dbos_database_url) as shop:
        result = await shop.rich.with_options(workflow_id="r")()
        first = await shop.dbos.fork_workflow("r", cut)
        second = await shop.dbos.fork_workflow((await first.get_status()).workflow_id, cut)
        await result_of(first)
        await result_of(second)
        await shop.dbos.delete_workflows(workflow_ids=["r", first.workflow_id])
        shop.calls.clear()
        third = await shop.dbos.fork_workflow(second.workflow_id, RICH_STEPS + 1)
        assert (await result_of(third))[:-1] == result[:-1]
        assert shop.calls == []


async def test_a_cut_through_branches_that_raced_leaves_what_replays(
    dbos_database_url: str,
) -> None:
    """Branches that come to their steps in any order, cut anywhere, end as they would have."""
    dbos = DBOS("shop", dbos_database_url, app_version="1")
    chance, calls = random.Random(7), list[str]()

    @dbos.step(name="add")
    async def add(name: str, number: int) -> int:
        calls.append(f"{name} {number}")
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        return number + 1

    async def branch(name: str, depth: int) -> int:
        number = 0
        for _ in range(3):
            number = await add(name, number)
        if depth:
            number += sum(await asyncio.gather(branch(f"{name}a", depth - 1), add(name, 9)))
        return number

    @dbos.workflow(name="tree")
    async def tree() -> list[int]:
        return list(await asyncio.gather(*[branch(str(i), 2) for i in range(3)]))

    async with dbos, asyncio.timeout(60):
        expected = await tree.with_options(workflow_id="t")()
        steps = await dbos.list_steps("t")
        everything = Counter(calls)
        for cut in range(1, len(steps) + 2, 4):
            calls.clear()
            fork = await dbos.fork_workflow("t", cut)
            assert await fork.get_result() == expected
            assert sum(calls.count(call) for call in set(calls)) == len(steps) + 1 - cut
            assert not Counter(calls) - everything


async def test_a_cut_is_named_by_the_last_step_of_a_name(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        shop.gate.set()
        await shop.waiting.with_options(workflow_id="w")(1)
        for name, expected in (("double", ["double 2"]), ("hold", ["hold", "double 2"])):
            shop.calls.clear()
            fork = await shop.dbos.fork_workflow("w", name)
            assert await result_of(fork) == [2, "1", 4]
            assert shop.calls == expected


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"from_step": "trible"}, ValueError, "'trible'.*'double', 'hold'"),
        ({"from_step": 5}, ValueError, "no step 5.*last one is 3"),
        ({"from_step": 0}, ValueError, "counts from 1"),
        ({"from_step": 1.5}, TypeError, "position"),
        ({"from_step": True}, TypeError, "position"),
        ({"from_step": 2, "from_last_failure": True}, ValueError, "not both"),
        ({"queue": "nowhere"}, QueueNotFoundError, "nowhere"),
        ({"app_version": ""}, ValueError, "app_version"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["fork_workflow", "rewind_workflow"])
async def test_a_cut_that_is_none_changes_nothing(
    dbos_database_url: str, verb: str, wrong: Any, error: Any, says: str
) -> None:
    async with managed(dbos_database_url) as shop:
        shop.gate.set()
        await shop.waiting.with_options(workflow_id="w")(1)
        before = await shop.dbos.list_workflows(), await shop.dbos.list_steps("w")
        with pytest.raises(error, match=says):
            await getattr(shop.dbos, verb)("w", **wrong)
        with pytest.raises(WorkflowNotFoundError):
            await getattr(shop.dbos, verb)("nobody", 3)
        assert (await shop.dbos.list_workflows(), await shop.dbos.list_steps("w")) == before


@pytest.mark.parametrize("verb", ["fork_workflow", "rewind_workflow"])
async def test_from_the_last_failure_everything_before_it_is_kept(
    dbos_database_url: str, verb: str
) -> None:
    async with managed(dbos_database_url) as shop:
        with pytest.raises(ValueError, match="too risky"):
            await shop.risky.with_options(workflow_id="w")()
        shop.fails = False
        handle = await getattr(shop.dbos, verb)("w", from_last_failure=True)
        assert await result_of(handle) == [2, "well", 4]
        assert shop.calls == ["double 1", "risk", "risk", "double 2"]


async def test_from_the_failure_of_a_child_another_child_is_started(
    dbos_database_url: str,
) -> None:
    async with managed(dbos_database_url) as shop:
        with pytest.raises(ValueError, match="too risky"):
            await shop.family.with_options(workflow_id="w")()
        shop.fails = False
        fork = await shop.dbos.fork_workflow("w", from_last_failure=True)
        assert await result_of(fork) == [2, [2, "well", 4], 6]
        steps = await shop.dbos.list_steps(fork.workflow_id)
        assert steps[1].child_workflow_id == f"{fork.workflow_id}-2"


async def test_without_a_failure_it_is_from_the_last_step_and_without_steps_from_the_first(
    dbos_database_url: str,
) -> None:
    async with managed(dbos_database_url) as shop:
        shop.gate.set()
        await shop.waiting.with_options(workflow_id="w")(1)
        shop.calls.clear()
        await result_of(await shop.dbos.fork_workflow("w", from_last_failure=True))
        assert shop.calls == ["double 2"]
        await shop.mail.pause()
        await shop.dbos.enqueue("mail", shop.simple.with_options(workflow_id="q"), 4)
        fork = await shop.dbos.fork_workflow("q", from_last_failure=True)
        assert await result_of(fork) == 8


async def test_a_running_workflow_is_forked_and_runs_on(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        handle = await shop.hold()
        fork = await shop.dbos.fork_workflow("w", 2)
        await shop.until(lambda: shop.calls.count("hold") == 2)
        shop.gate.set()
        assert await result_of(fork) == await result_of(handle) == [2, "1", 4]
        assert Counter(shop.calls) == {"double 1": 1, "hold": 2, "double 2": 2}


async def test_a_fork_is_of_the_newest_version_unless_one_is_named(
    dbos_database_url: str,
) -> None:
    async with managed(dbos_database_url) as old, managed(dbos_database_url, version="2") as new:
        old.gate.set()
        new.gate.set()
        await old.waiting.with_options(workflow_id="w")(1)
        assert await result_of(await old.dbos.fork_workflow("w", 2)) == [2, "2", 4]
        pinned = await new.dbos.fork_workflow("w", 2, app_version="1")
        assert await result_of(pinned) == [2, "1", 4]


async def test_a_fork_goes_where_and_is_called_what_it_is_told(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.hold("source")
        fork = await shop.dbos.fork_workflow(
            "source", 2, new_workflow_id="fork", queue=shop.mail, timeout=600
        )
        same = await shop.dbos.fork_workflow("source", new_workflow_id="fork")
        await shop.until(lambda: shop.calls.count("hold") == 2)
        status = await same.get_status()
        assert (fork.workflow_id, status.queue_name, status.timeout) == ("fork", "mail", 600)
        assert status.deadline is not None
        with pytest.raises(WorkflowConflictError, match="no fork of 'fork'"):
            await shop.dbos.fork_workflow("fork", new_workflow_id="source")
        shop.gate.set()
        assert await result_of(same) == [2, "1", 4]


EVENTS = """
insert into dbos.workflow_events (workflow_uuid, key, value, serialization)
values ('w', 'early', '"1"', 'portable_json'), ('w', 'both', '"3"', 'portable_json'),
       ('w', 'late', '"3"', 'portable_json');
insert into dbos.workflow_events_history (workflow_uuid, function_id, key, value, serialization)
values ('w', 1, 'early', '"1"', 'portable_json'), ('w', 1, 'both', '"1"', 'portable_json'),
       ('w', 2, 'both', '"2"', 'portable_json'), ('w', 3, 'both', '"3"', 'portable_json'),
       ('w', 3, 'late', '"3"', 'portable_json');
insert into dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization)
values ('w', 's', '"a"', 0, 1, 'portable_json'), ('w', 's', '"b"', 1, 3, 'portable_json'),
       ('w', 's', '"__DBOS_STREAM_CLOSED__"', 2, 3, 'portable_json'),
       ('w', 't', '"__DBOS_STREAM_CLOSED__"', 0, 2, 'portable_json');
insert into dbos.notifications (message_uuid, destination_uuid, message, consumed,
                                consumed_by_function_id)
values ('read early', 'w', '1', true, 1), ('read late', 'w', '1', true, 3),
       ('unread', 'w', '1', false, null);
"""


async def written(database: Any, workflow_id: str) -> tuple[Any, Any, Any]:
    """A workflow's events, how many of their earlier values there are, and its streams."""
    events = await database.fetch(
        "select key, value from dbos.workflow_events where workflow_uuid = $1", workflow_id
    )
    history = await database.fetchval(
        "select count(*) from dbos.workflow_events_history where workflow_uuid = $1", workflow_id
    )
    streams = await database.fetch(
        """select key, "offset" from dbos.streams where workflow_uuid = $1 order by 1, 2""",
        workflow_id,
    )
    return dict(map(tuple, events)), history, [tuple(row) for row in streams]


async def test_a_fork_has_what_its_steps_wrote(dbos_database_url: str, database: Any) -> None:
    async with managed(dbos_database_url) as shop:
        shop.gate.set()
        await shop.waiting.with_options(workflow_id="w")(1)
        await database.execute(EVENTS)
        before = await written(database, "w")
        await shop.mail.pause()
        fork = await shop.dbos.fork_workflow("w", 3, queue="mail")
        assert await written(database, fork.workflow_id) == (
            {"early": '"1"', "both": '"2"'},
            3,
            [("s", 0), ("t", 0)],
        )
        assert await written(database, "w") == before
        sent_to = "select count(*) from dbos.notifications where destination_uuid = $1"
        assert await database.fetchval(sent_to, fork.workflow_id) == 0


async def test_a_rewind_undoes_what_the_steps_from_its_cut_wrote(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        shop.gate.set()
        await shop.waiting.with_options(workflow_id="w")(1)
        await database.execute(EVENTS)
        await shop.mail.pause()
        await shop.dbos.rewind_workflow("w", 3, queue="mail")
        assert await written(database, "w") == (
            {"early": '"1"', "both": '"2"'},
            3,
            [("s", 0), ("s", 1), ("t", 0)],
        )
        left = await database.fetch("select message_uuid from dbos.notifications")
        assert [row[0] for row in left] == ["read early"]
        status = await shop.status()
        assert (status.status, status.output, status.completed_at) == ("ENQUEUED", None, None)
        assert [s.position for s in await shop.dbos.list_steps("w")] == [1, 2]


@pytest.mark.parametrize("cut", range(1, RICH_STEPS + 2, 2))
async def test_a_rewind_runs_the_steps_from_its_cut_and_no_others(
    dbos_database_url: str, cut: int
) -> None:
    async with managed(dbos_database_url) as shop:
        result = await shop.rich.with_options(workflow_id="r")()
        steps, calls = await shop.dbos.list_steps("r"), shop.calls.copy()
        shop.calls.clear()
        handle = await shop.dbos.rewind_workflow("r", cut)
        assert (await result_of(handle))[:-1] == result[:-1]
        expected = ran_from(steps, cut, calls)
        expected["double 7"] = 0  # its child is there still
        assert Counter(shop.calls) == +expected
        again = await shop.dbos.list_steps("r")
        assert {(s.step_id, s.name) for s in again} == {(s.step_id, s.name) for s in steps}


async def test_what_failed_or_was_cancelled_is_rewound_and_what_has_not_ended_is_not(
    dbos_database_url: str,
) -> None:
    async with managed(dbos_database_url) as shop:
        handle = await shop.hold()
        with pytest.raises(ValueError, match=r"PENDING.*cancel it first"):
            await shop.dbos.rewind_workflow("w")
        await shop.dbos.cancel_workflow("w")
        with pytest.raises(WorkflowCancelledError):
            await result_of(handle)
        await shop.mail.pause()
        await shop.dbos.rewind_workflow("w", 2, queue="mail")
        with pytest.raises(ValueError, match="ENQUEUED"):
            await shop.dbos.rewind_workflow("w")
        shop.gate.set()
        await shop.mail.resume()
        handle = await shop.dbos.retrieve_workflow("w")
        assert await result_of(handle) == [2, "1", 4]
        assert shop.calls == ["double 1", "hold", "hold", "double 2"]
        shop.fails = True
        with pytest.raises(ValueError, match="too risky"):
            await shop.risky.with_options(workflow_id="bad")()
        shop.fails = False
        handle = await shop.dbos.rewind_workflow("bad", "risk")
        assert await result_of(handle) == [2, "well", 4]
        assert (await shop.status("bad")).error is None


async def test_of_two_rewinds_at_once_one_is_refused(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.simple.with_options(workflow_id="w")(1)
        await shop.mail.pause()
        verbs = [shop.dbos.rewind_workflow("w", queue="mail") for _ in range(4)]
        outcomes = await asyncio.gather(*verbs, return_exceptions=True)
        assert sum(isinstance(outcome, ValueError) for outcome in outcomes) == 3


async def test_a_rewound_workflow_may_go_on_with_another_version(dbos_database_url: str) -> None:
    async with managed(dbos_database_url) as old, managed(dbos_database_url, version="2") as new:
        old.gate.set()
        new.gate.set()
        await old.waiting.with_options(workflow_id="w")(1)
        assert await result_of(await new.dbos.rewind_workflow("w", 2)) == [2, "1", 4]
        moved = await new.dbos.rewind_workflow("w", 2, app_version="2")
        assert await result_of(moved) == [2, "2", 4]
