"""The limits of steps: tokens and permits that processes have leased.

Everything here happens under the lock of the limiter, which is taken in a statement of its own, so
that the next one sees what the holder before it did.
"""

from typing import Final

LOCK_LIMITER: Final = """
select pg_advisory_xact_lock(hashtextextended('dbos_async limiter ' || $1, 0))
"""

# What a process did with leases that are over: $3[i] tokens of lease $2[i] were used, the last of
# them at $4[i]. They are added up by moments $5 ms apart, so that a long period has few rows. A
# lease that was settled before is gone, so a repetition changes nothing.
SETTLE_LEASES: Final = """
with settled as (
    delete from dbos.dbos_async_leases l
     using unnest($2::text[], $3::int[], $4::bigint[]) as s(lease_id, used, ended_at)
     where l.limiter = $1 and l.lease_id = s.lease_id
    returning s.used, (s.ended_at + $5::bigint - 1) / $5 * $5 as moment
)
insert into dbos.dbos_async_leases as known (limiter, lease_id, tokens, ends_at_epoch_ms)
select $1, 'used ' || s.moment, sum(s.used), s.moment
  from settled s
 where s.used > 0
 group by s.moment
    on conflict (limiter, lease_id) do update set tokens = known.tokens + excluded.tokens
"""

# Up to $3 tokens for $6 ms, of the $4 less those that are out: those whose lease ended, or will
# end, less than $5 ms ago. How many there were, when it was, and when the first of the others is
# back. One millisecond more, because the moment is rounded.
LEASE_TOKENS: Final = """
with moment as materialized (
    select (extract(epoch from clock_timestamp()) * 1000)::bigint + $7::bigint as ms
), use as materialized (
    select coalesce(sum(l.tokens), 0)::bigint as tokens, min(l.ends_at_epoch_ms) as first_ends_at
      from dbos.dbos_async_leases l
     where l.limiter = $1 and l.ends_at_epoch_ms > (select ms from moment) - $5::bigint
), back as (
    delete from dbos.dbos_async_leases l
     where l.limiter = $1 and l.ends_at_epoch_ms <= (select ms from moment) - $5
), granted as materialized (
    select least($3::bigint, greatest(0, $4::bigint - u.tokens))::int as tokens from use u
), leased as (
    insert into dbos.dbos_async_leases (limiter, lease_id, tokens, ends_at_epoch_ms)
    select $1, $2, g.tokens, m.ms + 1 + $6::bigint
      from granted g, moment m
     where g.tokens > 0
)
select g.tokens, m.ms, u.first_ends_at + $5 - m.ms
  from granted g, moment m, use u
"""

# What the other live executors hold of a limiter, and would use. The dead ones' permits are free.
FETCH_PERMITS: Final = """
with others as materialized (
    select p.executor_id, p.held, p.wanted,
           exists (select from dbos.dbos_async_alive a
                    where a.key = hashtextextended('dbos_async executor ' || p.executor_id, 0))
           as is_live
      from dbos.dbos_async_permits p
     where p.limiter = $1 and p.executor_id <> $2
), gone as (
    delete from dbos.dbos_async_permits p
     using others o
     where p.limiter = $1 and p.executor_id = o.executor_id and not o.is_live
)
select o.executor_id, o.held, o.wanted, (extract(epoch from clock_timestamp()) * 1000)::bigint
  from others o
 where o.is_live
"""

HOLD_PERMITS: Final = """
insert into dbos.dbos_async_permits (limiter, executor_id, held, wanted)
values ($1, $2, $3, $4)
    on conflict (limiter, executor_id)
    do update set held = excluded.held, wanted = excluded.wanted
"""

# At the launch and the shutdown of an executor: a new process with an old one's id holds nothing.
FREE_PERMITS: Final = """
delete from dbos.dbos_async_permits p where p.executor_id = $1
"""
