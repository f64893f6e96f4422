from __future__ import annotations
from typing import assert_type
from dbos_async import DBOS, CompensationError, Saga

dbos = DBOS("sagas")

@dbos.step
async def charge(order_id: str, cents: int) -> int: return cents
@dbos.step
async def refund(payment: int, *, reason: str = "") -> None: ...
class Bank:
    @dbos.step
    async def refund(self, payment: int) -> None: ...

@dbos.workflow
async def checkout(order_id: str) -> int:
    bank = Bank()
    try:
        async with dbos.saga() as saga:
            assert_type(saga, Saga)
            payment = await charge(order_id, 42)
            saga.compensate(refund, payment, reason="sold out")
            await saga.compensate(bank.refund, payment)
            saga.compensate(Bank.refund, bank, payment)
    except CompensationError as exc:
        assert_type(exc.errors, list[Exception])
        return 0
    return payment
