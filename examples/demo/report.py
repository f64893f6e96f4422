"""What the database says about a run, and whether that is as it must be."""

from typing import Any

import asyncpg
from msgspec import Struct
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table

# Whether a step ran again after its checkpoint is decided by Postgres's own transaction numbers: a
# step notes that it runs in a transaction that commits before its checkpoint's begins, so whatever
# ran after the checkpoint is younger than it (has a smaller age). No clock is involved.
FACTS = """
with workflows as materialized (
    select w.workflow_uuid, w.recovery_attempts,
           case w.status when 'SUCCESS' then w.output::jsonb ->> 'status' end as result
      from dbos.workflow_status w
     where starts_with(w.workflow_uuid, 'order-' || $1 || '-')
), steps as materialized (
    select o.workflow_uuid, coalesce(o.step_key, o.function_id::text) as step_id, age(o.xmin) as age
      from dbos.operation_outputs o join workflows w using (workflow_uuid)
), executions as materialized (
    select e.workflow_id, e.step_id, e.executor_id, e.attempt, e.began_at, age(e.xmin) as age
      from shop.executions e
     where e.run = $1
), tried as materialized (
    select s.workflow_uuid, s.step_id, count(e.workflow_id) as times,
           count(distinct e.executor_id) as executors,
           count(distinct (e.executor_id, e.attempt)) filter (where e.attempt > 0) as attempts,
           count(*) filter (where e.age <= s.age) as after_checkpoint
      from steps s left join executions e
        on (e.workflow_id, e.step_id) = (s.workflow_uuid, s.step_id)
     group by 1, 2
), processes as materialized (
    select min(began_at) as first, max(began_at) as last
      from executions
     group by executor_id
), kept as (
    select first, last, first - lag(last) over (order by first) as pause from processes
), reserved as (
    select u.sku, sum(u.quantity) as pieces
      from shop.reservations r, unnest(r.skus, r.quantities) as u(sku, quantity)
     where r.run = $1 and r.granted
     group by 1
)
select r.orders,
       r.kills,
       (select count(*) from workflows where result = 'accepted') as accepted,
       (select count(*) from workflows where result = 'rejected') as rejected,
       (select count(*) from workflows where recovery_attempts > 1) as recovered,
       (select count(*) from steps) as checkpoints,
       (select count(*) from executions) as executions,
       (select coalesce(sum(after_checkpoint), 0) from tried)::int as after_checkpoint,
       (select coalesce(max(executors), 0) from tried) as most_executors,
       (select count(*) from tried where times <> attempts or times = 0)
         + (select count(*) from executions) - (select coalesce(sum(times), 0) from tried)::int
         as odd,
       (select count(*) from tried where executors > 1) as cut_off,
       (select count(*) from shop.charges where run = $1) as charges,
       (select count(distinct order_id) from shop.charges where run = $1) as charged,
       (select count(*) from shop.shipments where run = $1) as shipments,
       (select count(*) from shop.notifications where run = $1) as notifications,
       (select count(*) from shop.stock s left join reserved d using (sku)
         where s.run = $1 and s.available <> s.pieces - coalesce(d.pieces, 0)) as wrong_stock,
       (select count(*) from processes) as processes,
       (select extract(epoch from coalesce(sum(last - first), '0'))::float from kept) as working,
       (select extract(epoch from coalesce(max(pause), '0'))::float from kept) as longest_pause
  from shop.runs r
 where r.run = $1
"""


class Facts(Struct, frozen=True):
    """The columns of FACTS."""

    orders: int
    kills: int
    accepted: int
    rejected: int
    recovered: int
    checkpoints: int
    executions: int
    after_checkpoint: int
    most_executors: int
    odd: int
    cut_off: int
    charges: int
    charged: int
    shipments: int
    notifications: int
    wrong_stock: int
    processes: int
    working: float
    longest_pause: float


class Proof(Struct, frozen=True):
    """A claim, whether it holds, and what shows it."""

    claim: str
    holds: bool
    shown: str


async def fetch_facts(connection: "asyncpg.Connection[Any]", run: str) -> Facts | None:
    """What is known of a run; None if there was no such run."""
    record = await connection.fetchrow(FACTS, run)
    return None if record is None else Facts(*record)


def proofs_of(facts: Facts) -> list[Proof]:
    f = facts
    return [
        Proof(
            "Every order was processed",
            f.accepted + f.rejected == f.orders > 0,
            f"{f.accepted:,} accepted + {f.rejected:,} rejected of {f.orders:,}",
        ),
        Proof(
            "The job was killed and resumed",
            f.kills > 0 and f.processes == f.kills + 1 and f.recovered > 0,
            f"SIGKILL × {f.kills}, {f.recovered:,} workflows recovered",
        ),
        Proof(
            "No checkpointed step ran again",
            f.after_checkpoint == 0 < f.checkpoints,
            f"{f.after_checkpoint:,} of {f.checkpoints:,} steps",
        ),
        Proof(
            "Only what a kill cut off did",
            f.odd == 0 and f.most_executors <= 1 + f.kills,
            f"{f.cut_off:,} steps in flight, run {f.most_executors} times at most",
        ),
        Proof(
            "Every effect happened once",
            f.charges == f.charged == f.shipments == f.accepted
            and f.notifications == f.orders
            and f.wrong_stock == 0,
            f"{f.charges:,} charges, {f.shipments:,} parcels, "
            + ("stock right" if f.wrong_stock == 0 else f"{f.wrong_stock} SKUs wrong"),
        ),
    ]


def show(console: Console, facts: Facts, *, title: str, place: str, again: str) -> bool:
    """Print the report; whether everything holds."""
    proofs = proofs_of(facts)
    claims = Table.grid(padding=(0, 2))
    for proof in proofs:
        mark = "[green]✔[/]" if proof.holds else "[bold red]✘[/]"
        claims.add_row(mark, proof.claim, proof.shown)
    seconds = max(facts.working, 0.001)
    figures = Table.grid(padding=(0, 2))
    figures.add_row("Speed", f"{facts.orders / seconds:,.0f} workflows/s")
    figures.add_row(
        "", f"{facts.checkpoints / seconds:,.0f} steps/s, two statements of its own in each"
    )
    figures.add_row("Time", f"{facts.working:.1f} s of work, {facts.longest_pause:.1f} s to resume")
    figures.add_row("Data", f"{place}, schemas dbos and shop")
    figures.add_row("Again", again)
    console.print(Panel(Group(claims, "", figures), title=title))
    return all(proof.holds for proof in proofs)
