"""What cannot be a compensation, and sagas outside of workflows."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sagas import Broken, Payment, Shop

from dbos_async import DBOS, CompensationError, ConfigurationError, SerializationError


async def refused(
    shop: Shop, kind: type[Exception], match: str, what: Callable[[], tuple[Any, ...]]
) -> None:
    """A workflow and plain code are told the same, and nothing is registered."""

    async def block() -> None:
        async with shop.dbos.saga() as saga:
            with pytest.raises(kind, match=match):
                saga.compensate(*what())

    workflow = shop.dbos.workflow(name="refused")(block)
    async with shop.dbos:
        await workflow.with_options(workflow_id="w")()
        assert await shop.steps("w") == []
        if kind is not ConfigurationError:
            await block()


async def plain(payment: Payment) -> None:
    raise AssertionError


@pytest.mark.parametrize("what", [plain, "refund", None])
async def test_a_compensation_that_is_no_step_is_refused(
    dbos_database_url: str, what: object
) -> None:
    shop = Shop(dbos_database_url)
    await refused(shop, TypeError, "decorate the function with @dbos.step", lambda: (what, 1))


async def test_a_call_is_no_compensation(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await refused(shop, TypeError, r"write compensate\(refund, 42\)", lambda: (plain(Payment(1)),))


async def test_a_workflow_is_no_compensation(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await refused(shop, TypeError, "is a workflow: let a step", lambda: (shop.trip, 1))


async def test_arguments_that_do_not_fit_the_step_are_refused(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await refused(shop, TypeError, r"refund\(\) too many", lambda: (shop.refund, Payment(1), 2))


async def test_arguments_that_cannot_be_stored_are_refused(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await refused(
        shop, SerializationError, "'refund' cannot be a comp", lambda: (shop.refund, object())
    )


async def test_arguments_that_are_too_large_are_refused(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url, max_payload_bytes=1000)

    @shop.dbos.step(name="write")
    async def write(text: str) -> None:
        pass

    @shop.dbos.workflow
    async def large() -> None:
        async with shop.dbos.saga() as saga:
            with pytest.raises(SerializationError, match="what step 'write' is to be called with"):
                saga.compensate(write, "x" * 2000)

    async with shop.dbos:
        await large()


async def test_a_step_that_is_made_ad_hoc_is_refused(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    await refused(
        shop,
        ConfigurationError,
        "declare it with @dbos.step at import time",
        lambda: (shop.dbos.step(plain), Payment(1)),
    )


async def test_a_method_of_an_instance_that_nobody_registered_is_refused(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)

    class Bank:
        @shop.dbos.step(name="Bank.refund")
        async def refund(self, payment: Payment) -> None:
            pass

    await refused(
        shop, ConfigurationError, r"dbos.register\(instance", lambda: (Bank().refund, Payment(1))
    )


async def test_two_steps_of_a_name_are_refused_only_as_compensations(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)
    again = shop.dbos.step(name="refund")(plain)
    await refused(
        shop, ConfigurationError, "several steps named 'refund'", lambda: (again, Payment(1))
    )


async def test_a_step_of_a_router_may_compensate(dbos_database_url: str) -> None:
    from dbos_async import Router

    router = Router()
    undone: list[int] = []

    @router.step
    async def undo(number: int) -> None:
        undone.append(number)

    @router.workflow
    async def failing() -> None:
        async with router.saga() as saga:
            saga.compensate(undo, 1)
            raise Broken

    dbos = DBOS("routed", dbos_database_url)
    dbos.include(router)
    async with dbos:
        with pytest.raises(Broken):
            await failing()
    assert undone == [1]


async def test_compensate_is_refused_outside_of_the_block_and_in_steps(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.workflow(name="misuse")
    async def misuse() -> None:
        async with shop.dbos.saga() as saga:

            async def within() -> None:
                saga.compensate(shop.refund, Payment(1))

            with pytest.raises(ConfigurationError, match="a step calls it"):
                await shop.dbos.step(within, name="within")()
        with pytest.raises(ConfigurationError, match="outside of the saga's block"):
            saga.compensate(shop.refund, Payment(1))
        with pytest.raises(ConfigurationError, match="outside of the saga's block"):
            shop.dbos.saga().compensate(shop.refund, Payment(1))

    async with shop.dbos:
        await misuse()


async def test_a_saga_of_another_workflow_is_refused(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)
    found: list[Any] = []

    @shop.dbos.workflow(name="thief")
    async def thief() -> None:
        with pytest.raises(ConfigurationError, match="registers something with a saga of workflow"):
            found[0].compensate(shop.refund, Payment(1))

    @shop.dbos.workflow(name="owner")
    async def owner() -> None:
        async with shop.dbos.saga() as saga:
            found.append(saga)
            await thief()

    async with shop.dbos:
        await owner()


async def test_outside_of_workflows_compensations_are_plain_calls_in_reverse() -> None:
    shop = Shop("postgresql://nobody@localhost/nowhere")
    async with shop.dbos.saga() as saga:
        await saga.compensate(shop.refund, await shop.charge(1))
    assert shop.ledger == ["+1"]
    with pytest.raises(Broken, match="mine"):
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(2))
            saga.compensate(shop.refund, payment=await shop.charge(3))
            raise Broken("mine")
    assert shop.ledger == ["+1", "+2", "+3", "-3", "-2"]


async def test_outside_of_workflows_failing_compensations_are_told_together() -> None:
    shop = Shop("postgresql://nobody@localhost/nowhere")
    shop.broken = {1}
    with pytest.raises(
        CompensationError, match=r"the block failed with .*, and could not be undone"
    ) as caught:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
            saga.compensate(shop.refund, await shop.charge(2))
            raise Broken("mine")
    assert str(caught.value.__cause__) == "mine"
    assert [str(error) for error in caught.value.errors] == ["cannot refund 1"]
    assert shop.ledger == ["+1", "+2", "-2"]


async def test_outside_of_workflows_a_cancelled_block_is_undone() -> None:
    shop = Shop("postgresql://nobody@localhost/nowhere")

    async def block() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
            await shop.hold()

    task = asyncio.create_task(block())
    await shop.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shop.ledger == ["+1", "-1"]


async def test_in_a_step_a_saga_is_a_plain_one(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url)

    @shop.dbos.step(name="whole")
    async def whole() -> None:
        async with shop.dbos.saga() as saga:
            saga.compensate(shop.refund, await shop.charge(1))
            raise Broken("in the step")

    @shop.dbos.workflow(name="outer")
    async def outer() -> None:
        await whole()

    async with shop.dbos:
        with pytest.raises(Broken, match="in the step"):
            await outer.with_options(workflow_id="w")()
        assert await shop.steps("w") == ["whole"]
    assert shop.ledger == ["+1", "-1"]


async def test_a_saga_is_entered_once() -> None:
    shop = Shop("postgresql://nobody@localhost/nowhere")
    saga = shop.dbos.saga()
    async with saga:
        with pytest.raises(RuntimeError, match="a saga is one block"):
            async with saga:
                pass
