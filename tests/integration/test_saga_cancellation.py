"""Workflows that are cancelled in a saga: another one undoes what they did, whoever cancels."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sagas import PATIENCE, Payment, Shop, appeared

from dbos_async import DBOS, Client, CompensationError, ConfigurationError, WorkflowCancelledError
from dbos_async._engine import leader
from dbos_async.testing import crash_at

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
CANCEL = "update dbos.workflow_status set status = 'CANCELLED' where workflow_uuid = 'w'"


async def open_rows(database: Any) -> int:
    return await database.fetchval("select count(*) from dbos.dbos_async_compensations")


async def by_the_app(shop: Shop, url: str) -> None:
    await shop.dbos.cancel_workflow("w")


async def by_a_filter(shop: Shop, url: str) -> None:
    await shop.dbos.cancel_workflows(name="waiting")


async def by_a_client(shop: Shop, url: str) -> None:
    async with Client(url) as client:
        await client.cancel_workflow("w")


async def by_sql(shop: Shop, url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(CANCEL)
    await connection.close()


CANCELLERS = [by_the_app, by_a_filter, by_a_client, by_sql]


@pytest.mark.parametrize("cancel", CANCELLERS)
async def test_what_a_cancelled_workflow_did_is_undone_by_another(
    dbos_database_url: str, database: Any, cancel: Callable[[Shop, str], Awaitable[None]]
) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        handle = await shop.start("w")
        await cancel(shop, dbos_database_url)
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result(timeout=PATIENCE)
        assert await shop.result("w-compensate") is None
        assert shop.ledger == ["+1", "+2", "-2", "-1"]
        assert shop.keys == ["w-6", "w-3"], "known outside as in the workflow itself"
        assert await open_rows(database) == 0
        [found] = await shop.dbos.list_workflows(workflow_ids=["w-compensate"])
        assert (found.parent_workflow_id, found.name) == ("w", "DBOS.compensate")
        await shop.check_replays()


@pytest.mark.parametrize("cancel", [by_a_client, by_sql])
async def test_it_is_undone_though_nobody_was_alive_when_it_was_cancelled(
    dbos_database_url: str, cancel: Callable[[Shop, str], Awaitable[None]]
) -> None:
    shop = Shop(dbos_database_url)
    await shop.dbos.launch()
    await shop.start("w")
    await shop.dbos.shutdown(timeout=0)
    await cancel(shop, dbos_database_url)
    again = Shop(dbos_database_url, shop.ledger)
    async with again.dbos:
        await again.result("w-compensate")
    assert again.ledger == ["+1", "+2", "-2", "-1"]


async def test_a_deadline_is_a_cancellation(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        late = shop.waiting.with_options(workflow_id="w", timeout=0.2)
        with pytest.raises(WorkflowCancelledError):
            await late()
        await shop.result("w-compensate")
        assert shop.ledger == ["+1", "+2", "-2", "-1"]


async def test_a_parents_cancellation_is_one_and_another_leaves_the_compensation_alone(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    shop.holds_undo = True

    @shop.dbos.workflow(name="parent")
    async def parent() -> None:
        await shop.waiting.with_options(workflow_id="w")()

    async with shop.dbos:
        await shop.dbos.start_workflow(parent.with_options(workflow_id="p"))
        async with asyncio.timeout(PATIENCE):
            await shop.reached.wait()
            await shop.dbos.cancel_workflow("p", cancel_children=True)
            await shop.undoing.wait()
            await shop.dbos.cancel_workflow("p", cancel_children=True)
            await shop.dbos.cancel_workflow("w", cancel_children=True)
            assert await shop.status("w-compensate") == "PENDING"
            await shop.dbos.cancel_workflow("w-compensate")
            assert await shop.status("w-compensate") == "CANCELLED"
            shop.gate.set()
            await shop.dbos.resume_workflow("w-compensate")
        await shop.result("w-compensate")
        assert shop.ledger == ["+1", "+2", "-2", "-1"]


async def test_what_is_not_open_is_not_undone(dbos_database_url: str, database: Any) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow(name="after")
    async def after() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
        await shop.hold()

    async with shop.dbos:
        handle = await shop.dbos.start_workflow(after.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await shop.reached.wait()
        await shop.dbos.cancel_workflow("w")
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result(timeout=PATIENCE)
        assert await shop.dbos.list_workflows(workflow_ids=["w-compensate"]) == []
    assert shop.ledger == ["+1"]


async def test_what_was_undone_before_the_cancellation_is_not_undone_again(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    undone: list[int] = []

    @shop.dbos.step(name="undo")
    async def undo(number: int) -> None:
        undone.append(number)
        if number == 1 and len(undone) == 2:
            await shop.hold.definition.function()

    @shop.dbos.workflow(name="failing")
    async def failing() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(undo, 1)
            saga.compensate(undo, 2)
            await shop.break_()

    async with shop.dbos:
        await shop.dbos.start_workflow(failing.with_options(workflow_id="w"))
        async with asyncio.timeout(PATIENCE):
            await shop.reached.wait()
        await shop.dbos.cancel_workflow("w")
        await shop.result("w-compensate")
        assert undone == [2, 1, 1]
        await shop.check_replays()


@pytest.mark.parametrize("before", [False, True])
async def test_compensating_survives_a_crash_at_every_checkpoint(
    dbos_database_url: str, database: Any, before: bool
) -> None:
    shop = Shop(dbos_database_url)
    for checkpoint in range(1, 100):
        ledger: list[str] = []
        workflow_id = f"w{checkpoint}"
        shop = Shop(dbos_database_url, ledger)
        await shop.dbos.launch()
        await shop.start(workflow_id)
        await shop.dbos.shutdown(timeout=0)
        with crash_at(checkpoint, before=before) as crash:
            first = Shop(dbos_database_url, ledger)
            await database.execute(CANCEL.replace("'w'", f"'{workflow_id}'"))
            async with first.dbos:
                await first.result(f"{workflow_id}-compensate")
        ran_before = sum(entry.startswith("-") for entry in ledger)
        again = Shop(dbos_database_url, ledger)
        async with again.dbos:
            names = await again.steps(f"{workflow_id}-compensate")
            landed = names.count("refund") if crash.happened else 2
            await again.result(f"{workflow_id}-compensate")
            await again.check_replays()
        undos = [entry for entry in ledger if entry.startswith("-")]
        assert list(dict.fromkeys(undos)) == ["-2", "-1"]
        assert len(undos) <= 2 + ran_before - min(landed, ran_before)
        assert await open_rows(database) == 0
        if not crash.happened:
            break
    assert checkpoint > 4


async def test_compensations_that_fail_are_named_and_can_be_tried_again(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    shop.broken = {2}
    async with shop.dbos:
        await shop.start("w")
        await shop.dbos.cancel_workflow("w")
        with pytest.raises(CompensationError, match=r"workflow 'w' could not be undone.*'refund'"):
            await shop.result("w-compensate")
        assert shop.ledger == ["+1", "+2", "-1"]
        assert await open_rows(database) == 1
        await shop.check_replays()
        shop.broken = set()
        handle = await shop.dbos.rewind_workflow("w-compensate")
        await handle.get_result(timeout=PATIENCE)
        assert shop.ledger == ["+1", "+2", "-1", "-2"]
        assert await open_rows(database) == 0


async def test_a_step_that_this_code_has_not_is_named(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await shop.dbos.launch()
    await shop.start("w", 1)
    await shop.dbos.shutdown(timeout=0)
    await by_sql(shop, dbos_database_url)
    async with DBOS("shop", dbos_database_url, app_version="1") as other:
        handle = await appeared(other, "w-compensate")
        with pytest.raises(CompensationError, match="no step named 'refund'") as caught:
            await handle.get_result(timeout=PATIENCE)
        assert isinstance(caught.value.errors[0], ConfigurationError)
    again = Shop(dbos_database_url, shop.ledger)
    async with again.dbos:
        handle = await again.dbos.rewind_workflow("w-compensate")
        await handle.get_result(timeout=PATIENCE)
    assert again.ledger == ["+1", "-1"]


async def test_methods_of_registered_instances_are_found(dbos_database_url: str) -> None:
    def declare() -> tuple[DBOS, Any, Any, asyncio.Event]:
        dbos = DBOS("banks", dbos_database_url, app_version="1")
        reached = asyncio.Event()

        class Bank:
            def __init__(self, name: str) -> None:
                self.name = name
                self.refunded: list[Payment] = []

            @dbos.step(name="Bank.refund")
            async def refund(self, payment: Payment) -> None:
                self.refunded.append(payment)

        banks = [dbos.register(Bank(name), name=name) for name in ("first", "second")]

        @dbos.workflow(name="pay")
        async def pay() -> None:
            async with dbos.saga() as saga:
                saga.compensate(banks[1].refund, Payment(1))
                saga.compensate(Bank.refund, banks[0], Payment(2))
                await dbos.sleep(0)
                reached.set()
                await dbos.sleep(1000)

        return dbos, banks, pay, reached

    dbos, _, pay, reached = declare()
    await dbos.launch()
    await dbos.start_workflow(pay.with_options(workflow_id="w"))
    async with asyncio.timeout(PATIENCE):
        await reached.wait()
    await dbos.shutdown(timeout=0)
    connection = await asyncpg.connect(dbos_database_url)
    await connection.execute(CANCEL)
    await connection.close()
    dbos, banks, _, _ = declare()
    async with dbos:
        handle = await appeared(dbos, "w-compensate")
        await handle.get_result(timeout=PATIENCE)
    assert [bank.refunded for bank in banks] == [[Payment(2)], [Payment(1)]]


async def test_who_cancels_with_an_older_snapshot_is_followed_by_the_leader(
    dbos_database_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "TIDY", 1)
    shop = Shop(dbos_database_url)
    registered = asyncio.Event()

    @shop.dbos.workflow(name="late")
    async def late() -> None:
        async with shop.dbos.saga() as saga:
            await shop.hold()
            await saga.compensate(shop.refund, Payment(1))
            registered.set()
            await shop.dbos.sleep(1000)

    async with shop.dbos, asyncio.timeout(PATIENCE):
        await shop.dbos.start_workflow(late.with_options(workflow_id="w"))
        await shop.reached.wait()
        async with database.transaction(isolation="repeatable_read"):
            await database.fetchval("select count(*) from dbos.workflow_status")
            shop.gate.set()
            await registered.wait()
            await database.execute(CANCEL)
        await shop.result("w-compensate")
        assert shop.ledger == ["-1"]


async def test_who_may_not_see_our_table_may_cancel_all_the_same(
    dbos_database_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not await database.fetchval("select rolsuper from pg_roles where rolname = current_user"):
        pytest.skip("making roles takes a superuser")
    monkeypatch.setattr(leader, "TIDY", 1)
    role = f"clerk_{uuid4().hex[:12]}"
    await database.execute(
        f"create role {role}; grant usage on schema dbos to {role}; "
        f"grant select, update on dbos.workflow_status to {role}"
    )
    shop = Shop(dbos_database_url)
    try:
        async with shop.dbos:
            await shop.start("w")
            await database.execute(f"set role {role}")
            await database.execute(CANCEL)
            await database.execute("reset role")
            await shop.result("w-compensate")
            assert shop.ledger == ["+1", "+2", "-2", "-1"]
    finally:
        await database.execute(f"reset role; drop owned by {role}; drop role {role}")


async def test_what_was_compensated_is_not_run_again_but_forked(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        await shop.start("w")
        await shop.dbos.cancel_workflow("w")
        await shop.result("w-compensate")
        with pytest.raises(
            ValueError, match=r"'w-compensate' undoes what its sagas had done.*fork"
        ):
            await shop.dbos.resume_workflow("w")
        with pytest.raises(ValueError, match="fork it from the step before the saga"):
            await shop.dbos.rewind_workflow("w")
        assert await shop.dbos.resume_workflows(name="waiting") == []
        assert await shop.status("w") == "CANCELLED"
        shop.ledger.clear()
        shop.gate.set()
        fork = await shop.dbos.fork_workflow("w", app_version="1")
        assert await fork.get_result(timeout=PATIENCE) == "done"
        assert shop.ledger == ["+1", "+2", "+99"]


async def test_a_fork_has_its_sources_compensations_open_once_it_runs(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        await shop.start("w")
        shop.reached.clear()
        await shop.dbos.fork_workflow("w", 6, new_workflow_id="f")
        async with asyncio.timeout(PATIENCE):
            await shop.reached.wait()
        shop.ledger.clear()
        await shop.dbos.cancel_workflow("f")
        await shop.result("f-compensate")
        assert shop.ledger == ["-2", "-1"]
        assert await open_rows(database) == 2, "the source's own"


async def test_a_workflow_that_is_deleted_takes_its_rows_along(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        await shop.start("w")
        assert await open_rows(database) == 2
        await shop.dbos.delete_workflow("w")
        assert await open_rows(database) == 0
    assert shop.ledger == ["+1", "+2"]


async def test_a_dead_letter_is_not_compensated(dbos_database_url: str, database: Any) -> None:
    shop = Shop(dbos_database_url)
    async with shop.dbos:
        await shop.start("w")
        await database.execute(
            "update dbos.workflow_status set status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED' "
            "where workflow_uuid = 'w'"
        )
        assert await shop.dbos.list_workflows(workflow_ids=["w-compensate"]) == []
        assert await open_rows(database) == 2


async def test_the_name_of_the_librarys_workflow_is_taken(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url)

    @dbos.workflow(name="DBOS.compensate")
    async def mine() -> None:
        pass

    with pytest.raises(ConfigurationError, match="give yours another name"):
        await dbos.launch()
