"""Sagas of workflows that fail: what was done is undone, in reverse, once, over crashes."""

import asyncio
from typing import Any

import pytest
from sagas import PATIENCE, Broken, Payment, Shop

from dbos_async import DBOS, CompensationError, DBOSError, DivergenceError, NotLaunchedError
from dbos_async.testing import crash_at


async def open_rows(database: Any) -> int:
    return await database.fetchval("select count(*) from dbos.dbos_async_compensations")


async def test_a_saga_that_ends_well_undoes_nothing_and_leaves_nothing(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        assert await shop.trip.with_options(workflow_id="w")(-1) == "done"
        assert shop.ledger == ["+1", "+2", "+3"]
        assert await open_rows(database) == 0
        assert (await shop.steps("w"))[-1] == "DBOS.saga.end"
        await shop.check_replays()


@pytest.mark.parametrize("fails_after", range(4))
async def test_what_was_done_before_a_failure_is_undone_in_reverse(
    dbos_database_url: str, database: Any, fails_after: int
) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        with pytest.raises(Broken, match="it broke"):
            await shop.trip(fails_after)
        done = [f"+{number}" for number in range(1, fails_after + 1)]
        undone = [f"-{number}" for number in range(fails_after, 0, -1)]
        assert shop.ledger == done + undone
        assert await open_rows(database) == 0
        await shop.check_replays()


async def test_a_saga_in_which_nothing_is_registered_records_nothing(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow
    async def idle() -> None:
        async with shop.dbos.saga():
            pass

    async with shop.dbos:
        await idle.with_options(workflow_id="w")()
        assert await shop.steps("w") == []


async def test_a_failing_compensation_keeps_no_other_from_running(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    shop.broken = {1, 2}
    async with shop.dbos:
        handle = await shop.dbos.start_workflow(shop.trip.with_options(workflow_id="w"), 3)
        with pytest.raises(CompensationError, match="2 of 3 compensations: 'refund'") as caught:
            await handle.get_result()
        assert shop.ledger == ["+1", "+2", "+3", "-3"]
        first, second = [error.errors[-1] for error in caught.value.errors]  # type: ignore[attr-defined]
        assert (str(first), str(second)) == ("cannot refund 2", "cannot refund 1")
        assert await open_rows(database) == 0
        await shop.check_replays()


async def test_the_error_of_compensations_comes_from_the_one_of_the_block(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    shop.broken = {1}
    seen: list[BaseException | None] = []

    @shop.dbos.workflow
    async def careful() -> None:
        try:
            async with shop.dbos.saga() as saga:
                saga.compensate(shop.refund, await shop.charge(1))
                raise Broken("the block's")
        except CompensationError as exc:
            seen.append(exc.__cause__)

    async with shop.dbos:
        await careful()
    [cause] = seen
    assert isinstance(cause, Broken)
    assert str(cause) == "the block's"


async def test_a_compensation_has_the_retries_of_its_step(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    shop.flaws = 2
    async with shop.dbos:
        with pytest.raises(Broken, match="it broke"):
            await shop.trip(1)
    assert shop.ledger == ["+1", "-1"]
    assert len(shop.keys) == 3


async def test_what_a_compensation_failed_at_can_be_repeated_by_a_rewind(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    shop.broken = {1}
    async with shop.dbos:
        with pytest.raises(CompensationError):
            await shop.trip.with_options(workflow_id="w")(2)
        shop.broken = set()
        handle = await shop.dbos.rewind_workflow("w", from_last_failure=True)
        with pytest.raises(Broken, match="it broke"):
            await handle.get_result(timeout=PATIENCE)
        assert shop.ledger == ["+1", "+2", "-2", "-1"]
        assert await open_rows(database) == 0


async def test_an_inner_saga_that_ended_well_is_not_undone_with_the_outer_one(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow
    async def nested(*, inner_fails: bool) -> None:
        async with shop.dbos.saga() as outer:
            outer.compensate(shop.refund, await shop.charge(1))
            async with shop.dbos.saga() as inner:
                inner.compensate(shop.refund, await shop.charge(2))
                outer.compensate(shop.refund, await shop.charge(3))
                if inner_fails:
                    await shop.break_()
            await shop.break_()

    async with shop.dbos:
        with pytest.raises(Broken):
            await nested(inner_fails=False)
        assert shop.ledger == ["+1", "+2", "+3", "-3", "-1"]
        shop.ledger.clear()
        with pytest.raises(Broken):
            await nested(inner_fails=True)
        assert shop.ledger == ["+1", "+2", "+3", "-2", "-3", "-1"]
        assert await open_rows(database) == 0
        await shop.check_replays()


async def test_a_saga_of_a_branch_is_undone_when_a_sibling_fails(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)

    async def branch(number: int) -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(number))
            await shop.hold()

    @shop.dbos.workflow
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(branch(1))
            tasks.create_task(branch(2))
            await shop.charge(3)
            await shop.break_()

    async with shop.dbos:
        with pytest.raises(ExceptionGroup):
            await group.with_options(workflow_id="w")()
        assert sorted(shop.ledger) == ["+1", "+2", "+3", "-1", "-2"]
        await shop.check_replays()


async def test_branches_register_with_the_saga_around_them(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow
    async def group() -> None:
        async with shop.dbos.saga() as saga:

            async def buy(number: int) -> None:
                saga.compensate(shop.refund, await shop.charge(number))

            async with asyncio.TaskGroup() as tasks:
                for number in (1, 2, 3):
                    tasks.create_task(buy(number))
            await shop.break_()

    async with shop.dbos:
        with pytest.raises(Broken):
            await group.with_options(workflow_id="w")()
        assert sorted(shop.ledger) == ["+1", "+2", "+3", "-1", "-2", "-3"]
        await shop.check_replays()


async def test_a_saga_is_undone_when_a_limit_around_it_expires(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow
    async def limited() -> str:
        try:
            async with shop.dbos.timeout(0.05), shop.dbos.saga() as saga:
                saga.compensate(shop.refund, await shop.charge(1))
                await shop.hold()
        except TimeoutError:
            await shop.charge(2)
            return "late"
        return "in time"

    async with shop.dbos:
        assert await limited.with_options(workflow_id="w")() == "late"
        assert shop.ledger == ["+1", "-1", "+2"]
        await shop.check_replays()


async def test_a_saga_is_undone_when_a_limit_expires_between_its_steps(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    plain = asyncio.Event()

    @shop.dbos.workflow
    async def limited() -> str:
        try:
            async with shop.dbos.timeout(0.3), shop.dbos.saga() as saga:
                saga.compensate(shop.refund, await shop.charge(1))
                await plain.wait()
        except TimeoutError:
            return "late"
        return "in time"

    async with shop.dbos:
        assert await limited.with_options(workflow_id="w")() == "late"
        assert shop.ledger == ["+1", "-1"]
        await shop.check_replays()
        plain.set()  # a replay comes to the end of the block before it is cancelled
        await shop.check_replays()


async def test_a_limit_that_expires_while_a_saga_is_undone_does_not_stop_that(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    shop.holds_undo = True

    @shop.dbos.workflow
    async def limited() -> str:
        try:
            async with shop.dbos.timeout(0.05) as limit:
                try:
                    async with shop.dbos.saga() as saga:
                        saga.compensate(shop.refund, await shop.charge(1))
                        saga.compensate(shop.refund, await shop.charge(2))
                        await shop.break_()
                except Broken:
                    await shop.charge(3)
        except TimeoutError:
            assert limit.expired()
            return "late"
        return "in time"

    async with shop.dbos:
        handle = await shop.dbos.start_workflow(limited.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await shop.undoing.wait()
            [execution] = shop.dbos.launched().running.values()
            while not execution.task.cancelling():
                await asyncio.sleep(0.01)
            shop.gate.set()
            assert await handle.get_result() == "late"
        assert shop.ledger == ["+1", "+2", "-2", "-1"]
        await shop.check_replays()


async def test_a_task_that_is_left_behind_in_a_saga_is_undone_before_the_workflow_ends(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)

    async def branch() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
            await shop.hold()

    @shop.dbos.workflow
    async def careless() -> str:
        task = asyncio.create_task(branch())
        while not shop.reached.is_set():
            await asyncio.sleep(0)
        del task
        return "done"

    async with shop.dbos:
        assert await careless.with_options(workflow_id="w")() == "done"
        assert shop.ledger == ["+1", "-1"]
        assert await open_rows(database) == 0


async def test_nothing_begins_before_a_registration_is_durable(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    began: list[int] = []

    @shop.dbos.step
    async def look() -> None:
        began.append(await database.fetchval("select count(*) from dbos.dbos_async_compensations"))

    @shop.dbos.workflow
    async def looking() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, Payment(1))
            saga.compensate(shop.refund, Payment(2))
            await look()
            await saga.compensate(shop.refund, Payment(3))
            await look()

    async with shop.dbos:
        await looking()
    assert began == [2, 3]


@pytest.mark.parametrize("before", [False, True])
async def test_a_failing_saga_survives_a_crash_at_every_checkpoint(
    dbos_database_url: str, database: Any, before: bool
) -> None:
    for checkpoint in range(1, 100):
        workflow_id = f"w{checkpoint}"
        ledger: list[str] = []
        with crash_at(checkpoint, before=before) as crash:
            first = Shop(dbos_database_url, ledger)
            async with first.dbos:
                with pytest.raises(Broken):
                    await first.trip.with_options(workflow_id=workflow_id)(3)
        again = Shop(dbos_database_url, ledger)
        async with again.dbos:
            undone = [
                step.output
                for step in await steps_if_any(again.dbos, workflow_id)
                if step.name == "refund"
            ]
            landed = len(undone)
            ran_before = sum(entry.startswith("-") for entry in ledger)
            with pytest.raises(Broken, match="it broke"):
                await again.trip.with_options(workflow_id=workflow_id)(3)
            await again.check_replays()
        undos = [entry for entry in ledger if entry.startswith("-")]
        assert list(dict.fromkeys(undos)) == ["-3", "-2", "-1"]
        assert len(undos) == 3 + ran_before - landed, "what had landed did not run again"
        assert await open_rows(database) == 0
        if not crash.happened:
            break
    assert checkpoint > 14


async def steps_if_any(dbos: DBOS, workflow_id: str) -> list[Any]:
    if not await dbos.list_workflows(workflow_ids=[workflow_id]):
        return []
    return await dbos.list_steps(workflow_id)


async def test_a_shutdown_in_the_block_undoes_nothing_and_the_next_launch_goes_on(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    await shop.dbos.launch()
    handle = await shop.start("w")
    await shop.dbos.shutdown(timeout=0)
    with pytest.raises(NotLaunchedError):
        await handle.get_result()
    assert shop.ledger == ["+1", "+2"]
    assert await open_rows(database) == 2
    again = Shop(dbos_database_url, shop.ledger)
    again.gate.set()
    async with again.dbos:
        assert await again.result("w") == "done"
    assert shop.ledger == ["+1", "+2", "+99"]
    assert await open_rows(database) == 0


async def test_a_loop_that_is_torn_down_undoes_nothing(dbos_database_url: str) -> None:
    ledger: list[str] = []

    async def careless() -> None:
        shop = Shop(dbos_database_url, ledger)
        await shop.dbos.launch()
        await shop.start("w")

    await asyncio.to_thread(asyncio.run, careless())
    assert ledger == ["+1", "+2"]
    again = Shop(dbos_database_url, ledger)
    again.gate.set()
    async with again.dbos:
        assert await again.result("w") == "done"
    assert ledger == ["+1", "+2", "+99"]


async def test_a_workflow_in_a_saga_can_be_parked(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url, park_after=0.05)

    @shop.dbos.workflow(name="sleeper")
    async def sleeper() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
            await shop.dbos.sleep(3600)

    async with shop.dbos:
        await shop.dbos.start_workflow(sleeper.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            while await shop.status("w") != "DELAYED":
                await asyncio.sleep(0.01)
        assert shop.ledger == ["+1"]
        await shop.dbos.cancel_workflow("w")
        await shop.result("w-compensate")
        assert shop.ledger == ["+1", "-1"]


async def test_a_replay_that_leaves_the_block_in_another_way_has_diverged(
    dbos_database_url: str,
) -> None:
    fails = True
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow
    async def moody() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
            if fails:
                raise Broken("not recorded")

    async with shop.dbos:
        with pytest.raises(Broken):
            await moody.with_options(workflow_id="w")()
        fails = False
        [report] = await shop.dbos.check_replay(workflow_ids=["w"])
        assert report.verdict == "diverged"
        assert "'DBOS.saga.fail' is recorded, now 'DBOS.saga.end'" in report.detail


async def test_what_was_not_recorded_when_the_process_died_is_registered_by_the_replay(
    dbos_database_url: str,
) -> None:
    ledger: list[str] = []
    with crash_at(2) as crash:  # the start, and the first step
        first = Shop(dbos_database_url, ledger)
        async with first.dbos:
            await first.trip.with_options(workflow_id="w")(1)
    assert crash.happened
    again = Shop(dbos_database_url, ledger)
    async with again.dbos:
        with pytest.raises(Broken):
            await again.result("w")
    assert ledger == ["+1", "-1"]


async def test_randomness_after_a_saga_repeats(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    drawn: list[str] = []

    @shop.dbos.workflow
    async def drawing() -> None:
        for fails in (False, True):
            try:
                async with shop.dbos.saga() as saga:
                    saga.compensate(shop.refund, await shop.charge(1))
                    if fails:
                        await shop.break_()
            except Broken:
                pass
            drawn.append(str(shop.dbos.uuid4()))

    async with shop.dbos:
        await drawing.with_options(workflow_id="w")()
        await shop.check_replays()
    assert drawn[:2] == drawn[2:]


def test_errors_of_divergence_are_no_failures_of_compensations() -> None:
    assert issubclass(DivergenceError, DBOSError)
    assert not issubclass(CompensationError, DivergenceError)
