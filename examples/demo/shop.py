"""A shop: one durable workflow for each order, and the tables that its steps write to.

Every step does two things, in transactions of their own: it notes in shop.executions that it runs,
and then has its effect, keyed by `dbos.idempotency_key`. A step that was cut off between its effect
and its checkpoint runs again; its second effect finds the first and changes nothing.
"""

from typing import Any, Literal

import asyncpg
from msgspec import Struct

from dbos_async import DBOS, Retry

MAX_QUANTITY = 99
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
OUTAGE = Retry(max_attempts=60, interval=0.1, max_interval=2, retry_on=LOST)
"""The library waits for its database by itself; a step that uses one says what it waits for."""

SETUP = """
create schema if not exists shop;
comment on schema shop is 'the demo of dbos_async';
create table if not exists shop.runs (
    run text primary key, orders int, kills int default 0, started_at timestamptz default now());
create table if not exists shop.executions (
    run text, workflow_id text, step_id text, step text, executor_id text, attempt int,
    began_at timestamptz default clock_timestamp());
create index if not exists executions_of_run on shop.executions (run);
create table if not exists shop.stock (
    run text, sku text, cents int, pieces int, available int check (available >= 0),
    primary key (run, sku));
create table if not exists shop.reservations (
    idempotency_key text primary key, run text, order_id text, skus text[], quantities int[],
    granted boolean, attempts int default 1);
create table if not exists shop.charges (
    idempotency_key text primary key, run text, order_id text, cents int, currency text);
create table if not exists shop.shipments (
    idempotency_key text primary key, run text, order_id text, country text,
    parcel bigint generated always as identity);
create table if not exists shop.notifications (
    idempotency_key text primary key, run text, order_id text, message text);
"""

BEGIN = """
insert into shop.executions (run, workflow_id, step_id, step, executor_id, attempt)
values ($1, $2, $3, $4, $5, $6)
"""

KNOWN_SKUS = "select sku from shop.stock where run = $1 and sku = any($2)"

# All or nothing. Locked in the order of SKUs, so that two orders never wait for each other; pieces
# are taken by the first attempt only, and every attempt gets the first one's answer.
RESERVE = """
with locked as materialized (
    select s.sku, s.available - w.quantity as rest
      from shop.stock s join unnest($4::text[], $5::int[]) as w(sku, quantity) using (sku)
     where s.run = $2
     order by s.sku
       for update of s
), decided as (
    insert into shop.reservations as r (idempotency_key, run, order_id, skus, quantities, granted)
    select $1, $2, $3, $4, $5, min(l.rest) >= 0 from locked l
    on conflict (idempotency_key) do update set attempts = r.attempts + 1
    returning granted, attempts
), taken as (
    update shop.stock s set available = l.rest
      from locked l, decided d
     where s.run = $2 and s.sku = l.sku and d.granted and d.attempts = 1
)
select granted from decided
"""

CHARGE = """
insert into shop.charges (idempotency_key, run, order_id, cents, currency)
values ($1, $2, $3, $4, $5)
on conflict do nothing
"""

SHIP = """
insert into shop.shipments as s (idempotency_key, run, order_id, country) values ($1, $2, $3, $4)
on conflict (idempotency_key) do update set country = s.country
returning parcel
"""

NOTIFY = """
insert into shop.notifications (idempotency_key, run, order_id, message) values ($1, $2, $3, $4)
on conflict do nothing
"""

dbos = DBOS("demo")


class Order(Struct, frozen=True):
    """A line of orders.csv, as it was typed in."""

    order_id: str
    customer: str
    country: str
    currency: str
    items: str
    cents: int


class Items(Struct, frozen=True):
    """What a valid order asks for."""

    skus: list[str]
    quantities: list[int]


class Result(Struct, frozen=True):
    """What became of an order."""

    status: Literal["accepted", "rejected"]
    reason: str | None = None
    parcel: int | None = None


class Shop:
    """The workflow and its steps, on a pool of connections to the shop's tables."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    @dbos.workflow()
    async def fulfil(self, run: str, order: Order) -> Result:
        items = await self.validate(run, order)
        if isinstance(items, str):
            return await self._reject(run, order, items)
        if not await self.reserve(run, order, items):
            return await self._reject(run, order, "out of stock")
        payment = await self.charge(run, order)
        parcel = await self.ship(run, order)
        await self.notify(run, order, f"parcel {parcel} is on its way, paid by {payment}")
        return Result("accepted", parcel=parcel)

    async def _reject(self, run: str, order: Order, reason: str) -> Result:
        await self.notify(run, order, f"we cannot send your order: {reason}")
        return Result("rejected", reason=reason)

    @dbos.step(retry=OUTAGE)
    async def validate(self, run: str, order: Order) -> Items | str:
        """What is ordered, or what is wrong with it."""
        await self._begin(run, "validate")
        items = read_items(order.items)
        if isinstance(items, Items):
            known = {row["sku"] for row in await self._pool.fetch(KNOWN_SKUS, run, items.skus)}
            if unknown := set(items.skus) - known:
                return f"there is no {min(unknown)}"
        return items

    @dbos.step(retry=OUTAGE)
    async def reserve(self, run: str, order: Order, items: Items) -> bool:
        await self._begin(run, "reserve")
        return bool(await self._effect(RESERVE, run, order, items.skus, items.quantities))

    @dbos.step(retry=OUTAGE)
    async def charge(self, run: str, order: Order) -> str:
        await self._begin(run, "charge")
        await self._effect(CHARGE, run, order, order.cents, order.currency)
        return dbos.idempotency_key

    @dbos.step(retry=OUTAGE)
    async def ship(self, run: str, order: Order) -> int:
        await self._begin(run, "ship")
        return int(await self._effect(SHIP, run, order, order.country))

    @dbos.step(retry=OUTAGE)
    async def notify(self, run: str, order: Order, message: str) -> None:
        await self._begin(run, "notify")
        await self._effect(NOTIFY, run, order, f"Dear {order.customer}, {message}.")

    async def _begin(self, run: str, step: str) -> None:
        """Note, outside of all checkpoints, that a step runs now."""
        ids = (dbos.workflow_id, dbos.step_id, step, dbos.executor_id, dbos.attempt)
        await self._pool.execute(BEGIN, run, *ids)

    async def _effect(self, statement: str, run: str, order: Order, *values: object) -> Any:
        return await self._pool.fetchval(
            statement, dbos.idempotency_key, run, order.order_id, *values
        )


def read_items(text: str) -> Items | str:
    """Items written as `MUG-BLUE:1 TEE-SAND:2`, or what is wrong with them."""
    wanted: dict[str, int] = {}
    for item in text.split():
        sku, _, quantity = item.partition(":")
        if not quantity.isdecimal() or not 1 <= int(quantity) <= MAX_QUANTITY:
            return f"{quantity!r} is no quantity for {sku}"
        wanted[sku] = wanted.get(sku, 0) + int(quantity)
    return Items([*wanted], [*wanted.values()]) if wanted else "it has no items"
