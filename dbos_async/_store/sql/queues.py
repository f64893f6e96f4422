"""Queues: declared, changed, claimed from, released to."""

from typing import Final

from dbos_async._store.sql.workflows import _CLAIMED_COLUMNS

_QUEUE_COLUMNS: Final = """
       q.name, q.concurrency, q.worker_concurrency, q.rate_limit_max, q.rate_limit_period_sec,
       q.worker_rate_limit_max, q.worker_rate_limit_period_sec,
       q.partition_concurrency, q.partition_worker_concurrency,
       q.partition_rate_limit_max, q.partition_rate_limit_period_sec,
       coalesce(q.is_paused, false), q.application_name
"""

# --- configuration ------------------------------------------------------------------------------

# Whose queue it is now. Another app's is left alone. partition_queue is for other clients.
DECLARE_QUEUE: Final = """
with declared as (
    insert into dbos.queues as q
           (name, concurrency, worker_concurrency, rate_limit_max, rate_limit_period_sec,
            worker_rate_limit_max, worker_rate_limit_period_sec,
            partition_concurrency, partition_worker_concurrency,
            partition_rate_limit_max, partition_rate_limit_period_sec, application_name,
            priority_enabled, partition_queue)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text, true,
            num_nonnulls($8::int, $9::int, $10::int) > 0)
    on conflict (name) do update
       set concurrency = excluded.concurrency, worker_concurrency = excluded.worker_concurrency,
           rate_limit_max = excluded.rate_limit_max,
           rate_limit_period_sec = excluded.rate_limit_period_sec,
           worker_rate_limit_max = excluded.worker_rate_limit_max,
           worker_rate_limit_period_sec = excluded.worker_rate_limit_period_sec,
           partition_concurrency = excluded.partition_concurrency,
           partition_worker_concurrency = excluded.partition_worker_concurrency,
           partition_rate_limit_max = excluded.partition_rate_limit_max,
           partition_rate_limit_period_sec = excluded.partition_rate_limit_period_sec,
           partition_queue = excluded.partition_queue,
           updated_at = excluded.updated_at, application_name = excluded.application_name
     where (q.application_name = excluded.application_name or q.application_name is null)
       and case $13::text
           when 'always_update' then true
           when 'update_if_latest_version' then
               coalesce((select v.version_name from dbos.application_versions v
                          where v.application_name = $12 or v.application_name is null
                          order by v.version_timestamp desc limit 1), $14::text)
               is not distinct from $14::text
           else false end
    returning q.application_name
)
select coalesce((select d.application_name from declared d),
                (select q.application_name from dbos.queues q where q.name = $1))
"""

FETCH_QUEUES: Final = """
select """ + _QUEUE_COLUMNS + """
  from dbos.queues q
 where ($1::text is null or q.name = $1)
   and ($2::text is null or q.application_name = $2 or q.application_name is null)
 order by q.name
"""

UPDATE_QUEUE: Final = """
update dbos.queues q
   set concurrency = $2, worker_concurrency = $3,
       rate_limit_max = $4, rate_limit_period_sec = $5,
       worker_rate_limit_max = $6, worker_rate_limit_period_sec = $7,
       partition_concurrency = $8, partition_worker_concurrency = $9,
       partition_rate_limit_max = $10, partition_rate_limit_period_sec = $11,
       partition_queue = num_nonnulls($8::int, $9::int, $10::int) > 0,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where q.name = $1
"""

PAUSE_QUEUE: Final = """
update dbos.queues q
   set is_paused = $3, updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where q.name = $1 and ($2::text is null or q.application_name = $2 or q.application_name is null)
"""

DELETE_QUEUE: Final = """
delete from dbos.queues q
 where q.name = $1 and ($2::text is null or q.application_name = $2 or q.application_name is null)
"""

COUNT_WAITING: Final = """
select count(*) from dbos.workflow_status w where w.queue_name = $1 and w.status = 'ENQUEUED'
"""
# What waits and what runs; no row if there is no such queue.
COUNT_UNDONE: Final = """
select (select count(*) from dbos.workflow_status w
         where w.queue_name = $1 and w.status = 'ENQUEUED')
       + (select count(*) from dbos.workflow_status w
           where w.queue_name = $1 and w.status = 'PENDING')
  from dbos.queues q
 where q.name = $1 and ($2::text is null or q.application_name = $2 or q.application_name is null)
"""

# --- claiming -----------------------------------------------------------------------------------

# The order of a line. A row of another client has no number, and comes after its millisecond.
# What was parked stands in line since it was due, or its news came.
_LINE: Final = """
w.priority, coalesce(w.in_line_at, w.created_at), coalesce(w.enqueue_order, 9223372036854775807)
"""

# What this process may run. Work that names no version is for the newest. A pause and a delete hold
# for every claim that begins after them, also where the news has not come yet.
_CLAIMABLE: Final = """
           w.status = 'ENQUEUED' and w.queue_name = $1
       and coalesce((select q.is_paused is not true from dbos.queues q where q.name = $1),
                    $1 = '_dbos_internal_queue')
       and (w.application_version = $4
            or (w.application_version is null
                and coalesce((select v.version_name from dbos.application_versions v
                               where v.application_name = $5 or v.application_name is null
                               order by v.version_timestamp desc limit 1), $4) = $4))
       and (w.application_name = $5 or w.application_name is null)
       and ((w.name, coalesce(w.class_name, ''), coalesce(w.config_name, ''))
            in (select * from unnest($6::text[], $7::text[], $8::text[]))) is true  -- no join
"""

# Fresh is what nobody has touched since it was enqueued: it has no history to be read. The columns
# are those of the locked row, so a row that was run in between does not look fresh.
_CHOSEN_COLUMNS: Final = """
           w.workflow_uuid, w.rate_limited as is_paid, w.queue_partition_key as partition_key,
           w.priority, coalesce(w.in_line_at, w.created_at) as since,
           coalesce(w.enqueue_order, 9223372036854775807) as place,
           coalesce(w.recovery_attempts, 0) = 0 and w.forked_from is null
           and w.recovered_position is null and w.updated_at = w.created_at as is_fresh
"""

# A test may be $9 ahead of the clock.
_MOMENT: Final = """
moment as materialized (
    select (extract(epoch from clock_timestamp()) * 1000)::bigint + $9::bigint as ms
)
"""
# One row of a foreign writer must not stop a line: its numbers must not overflow, so a timeout is a
# hundred years at most. Without one there is no deadline; least() would skip the NULL.
_TAKE: Final = """
update dbos.workflow_status w
   set status = 'PENDING', executor_id = $2, owner_xid = $3, application_version = $4,
       application_name = $5,
       recovery_attempts = least(coalesce(w.recovery_attempts, 0), 1000000000) + 1,
       waiting_for = null,
       started_at_epoch_ms = coalesce(w.started_at_epoch_ms, (select ms from moment)),
       workflow_deadline_epoch_ms = coalesce(
           w.workflow_deadline_epoch_ms,
           case when w.workflow_timeout_ms is not null
                then (select ms from moment) + least(w.workflow_timeout_ms, 3155760000000) end),
       updated_at = (select ms from moment)
"""
_TAKEN_COLUMNS: Final = _CLAIMED_COLUMNS.replace("false as is_fresh", "c.is_fresh")

# Nobody else's claims matter: take from the head of the line, from the place $11, $12, $13 on. As
# everywhere where locked rows are skipped, the lock is one that leaves the key alone: a message to
# a workflow share-locks its key, and one that was skipped for that, nobody would wake for.
CLAIM: Final = "with " + _MOMENT + """, chosen as materialized (
    select """ + _CHOSEN_COLUMNS + """
      from dbos.workflow_status w
     where """ + _CLAIMABLE + """
       and (""" + _LINE + """) >= ($11::int, $12::bigint, $13::bigint)
     order by """ + _LINE + """
     limit $10
       for no key update skip locked
)""" + _TAKE + """
  from chosen c
 where w.workflow_uuid = c.workflow_uuid
returning """ + _TAKEN_COLUMNS

# Exact limits: the lock is a statement of its own, so that what follows sees the last claim.
LOCK_QUEUE: Final = """
select pg_advisory_xact_lock(hashtextextended('dbos_async queue ' || $1, 0))
"""

# How much of a queue's shared limits is in use: what runs (one that only waits for others does
# not, one that wants to run again does), tokens out for $3 ms, until the first is back, and how
# many in the line have paid already.
FETCH_USE: Final = """
with moment as materialized (
    select (extract(epoch from clock_timestamp()) * 1000)::bigint + $4::bigint as ms
)
select (select count(*) from dbos.workflow_status w
         where $2 and w.queue_name = $1 and w.status = 'PENDING'
           and coalesce(w.waiting_for, '') <> 'workflow'),
       (select coalesce(sum(t.tokens), 0)::bigint from dbos.dbos_async_tokens t
         where t.bucket = $1 and t.partition_key = ''
           and t.taken_at_epoch_ms > (select ms from moment) - $3::bigint),
       (select min(t.taken_at_epoch_ms) from dbos.dbos_async_tokens t
         where t.bucket = $1 and t.partition_key = ''
           and t.taken_at_epoch_ms > (select ms from moment) - $3)
       + $3 - (select ms from moment),
       (select count(*) from (select from dbos.workflow_status w
                               where w.queue_name = $1 and w.status = 'ENQUEUED' and w.rate_limited
                                 and $3 is not null
                               limit 1000) paid)
"""

# The partitions that wait, up to $3 of them in the order of their keys after $2, and the same of
# each. A loose index scan: one look-up a partition, however long its line.
FETCH_PARTITIONS: Final = """
with recursive waiting(partition_key) as (
    (select w.queue_partition_key from dbos.workflow_status w
      where w.queue_name = $1 and w.status = 'ENQUEUED' and w.queue_partition_key > $2
      order by w.queue_partition_key limit 1)
    union all
    select (select w.queue_partition_key from dbos.workflow_status w
             where w.queue_name = $1 and w.status = 'ENQUEUED'
               and w.queue_partition_key > k.partition_key
             order by w.queue_partition_key limit 1)
      from waiting k
     where k.partition_key is not null
), moment as materialized (
    select (extract(epoch from clock_timestamp()) * 1000)::bigint + $6::bigint as ms
)
select k.partition_key,
       (select count(*) from dbos.workflow_status w
         where $4 and w.queue_name = $1 and w.queue_partition_key = k.partition_key
           and w.status = 'PENDING' and coalesce(w.waiting_for, '') <> 'workflow'),
       (select coalesce(sum(t.tokens), 0)::bigint from dbos.dbos_async_tokens t
         where t.bucket = $1 and t.partition_key = k.partition_key
           and t.taken_at_epoch_ms > (select ms from moment) - $5::bigint),
       (select min(t.taken_at_epoch_ms) from dbos.dbos_async_tokens t
         where t.bucket = $1 and t.partition_key = k.partition_key
           and t.taken_at_epoch_ms > (select ms from moment) - $5)
       + $5 - (select ms from moment),
       (select count(*) from (select from dbos.workflow_status w
                               where w.queue_name = $1 and w.queue_partition_key = k.partition_key
                                 and w.status = 'ENQUEUED' and w.rate_limited
                                 and $5 is not null
                               limit 1000) paid)
  from waiting k
 where k.partition_key is not null
 limit $3
"""

# Up to $11[i] from the head of partition $10[i], of which $12[i] may cost a token of the
# partition, and $13 in all one of the queue: the first of each partition, the second of each, ….
# A line without partitions is one whose key is ''. What is back after $14 and $15 ms is deleted.
_ADMIT: Final = """, partly as (
    select c.*,
           row_number() over in_line as turn,
           count(*) filter (where not c.is_paid) over in_line as cost
      from chosen c
    window in_line as (partition by c.key order by c.priority, c.since, c.place
                       rows unbounded preceding)
), admitted as materialized (
    select *
      from (select p.*, count(*) filter (where not p.is_paid)
                        over (order by p.turn, p.key_place rows unbounded preceding) as total_cost
              from partly p
             where p.key_tokens is null or p.cost <= p.key_tokens) affordable
     where $13::bigint is null or total_cost <= $13
), paid as (
    insert into dbos.dbos_async_tokens (bucket, partition_key, taken_at_epoch_ms, tokens)
    select $1, '', (select ms from moment), count(*)
      from admitted a where not a.is_paid and $13 is not null having count(*) > 0
    union all
    select $1, a.key, (select ms from moment), count(*)
      from admitted a where not a.is_paid and a.key_tokens is not null and a.key <> ''
     group by a.key
), back as (
    delete from dbos.dbos_async_tokens t
     where t.bucket = $1
       and (t.partition_key = ''
            and t.taken_at_epoch_ms <= (select ms from moment) - $14::bigint
            or t.partition_key = any($10::text[]) and t.partition_key <> ''
            and t.taken_at_epoch_ms <= (select ms from moment) - $15::bigint)
)"""
_TAKE_ADMITTED: Final = _TAKE + """
       , rate_limited = w.rate_limited or $13 is not null or c.key_tokens is not null
  from admitted c
 where w.workflow_uuid = c.workflow_uuid
returning """ + _TAKEN_COLUMNS

CLAIM_EXACTLY: Final = "with " + _MOMENT + """, chosen as materialized (
    select """ + _CHOSEN_COLUMNS + """,
           '' as key, 1::bigint as key_place, ($12::bigint[])[1] as key_tokens
      from dbos.workflow_status w
     where """ + _CLAIMABLE + """
     order by """ + _LINE + """
     limit ($11::int[])[1]
       for no key update skip locked
)""" + _ADMIT + _TAKE_ADMITTED

CLAIM_IN_TURNS: Final = "with " + _MOMENT + """, chosen as materialized (
    select h.*, p.key, p.key_place, p.key_tokens
      from unnest($10::text[], $11::int[], $12::bigint[])
           with ordinality as p(key, share, key_tokens, key_place),
           lateral (
    select """ + _CHOSEN_COLUMNS + """
      from dbos.workflow_status w
     where """ + _CLAIMABLE + """
       and w.queue_partition_key = p.key
     order by """ + _LINE + """
     limit p.share
       for no key update skip locked) h
)""" + _ADMIT + _TAKE_ADMITTED

# Tokens of partitions that are back, also of those that no claim looks at any more.
FORGET_TOKENS: Final = """
delete from dbos.dbos_async_tokens t
 where t.bucket = $1 and t.partition_key <> ''
   and t.taken_at_epoch_ms
       <= (select (extract(epoch from clock_timestamp()) * 1000)::bigint) - $2::bigint - 1000
"""

# Rows without a key in the line of a partitioned queue: somebody else enqueued them, or the queue
# had no partitions then. They get a partition of their own.
KEY_STRAYS: Final = """
with strays as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where w.status = 'ENQUEUED' and w.queue_name = $1
       and coalesce(w.queue_partition_key, '') = ''
     order by """ + _LINE + """
     limit 1000
       for no key update skip locked
)
update dbos.workflow_status w
   set queue_partition_key = $2
  from strays s
 where w.workflow_uuid = s.workflow_uuid
"""

# Workflows that run, and now only wait for others that they enqueued.
LEAVE_SLOTS: Final = """
update dbos.workflow_status w
   set waiting_for = 'workflow'
  from unnest($1::text[], $2::text[]) as t(workflow_uuid, owner)
 where w.workflow_uuid = t.workflow_uuid
   and case w.status when 'PENDING' then w.owner_xid end = t.owner
"""

# Workflow $3 wants to go on: does it have to wait for a slot? Under the queue's lock.
ENTER_SLOT: Final = """
with use as materialized (
    select count(*) as running,
           count(*) filter (where w.queue_partition_key = $2) as in_partition
      from dbos.workflow_status w
     where w.queue_name = $1 and w.status = 'PENDING' and w.waiting_for is null
)
update dbos.workflow_status w
   set waiting_for = case when u.running >= $5::int or u.in_partition >= $6::int then 'slot' end
  from use u
 where w.workflow_uuid = $3 and case w.status when 'PENDING' then w.owner_xid end = $4
returning w.waiting_for is not null
"""

# What waits at the head of a line that nobody here can run, for the log: of another version, or of
# no function that is registered here.
UNKNOWN_WAITING: Final = """
select coalesce(h.name, ''), coalesce(h.config_name, ''), h.application_version, count(*)
  from (select w.name, w.class_name, w.config_name, w.application_version
          from dbos.workflow_status w
         where w.status = 'ENQUEUED' and w.queue_name = $1
           and (w.application_name = $3 or w.application_name is null)
         order by """ + _LINE + """
         limit 100) h
 where h.application_version <> $2
    or (coalesce(h.name, ''), coalesce(h.class_name, ''), coalesce(h.config_name, ''))
       not in (select * from unnest($4::text[], $5::text[], $6::text[]))
 group by 1, 2, 3
"""

# Which of these queues have anything that waits. A look-up each, however long their lines.
FIND_WAITING: Final = """
select n.name
  from unnest($1::text[]) as n(name),
       lateral (select from dbos.workflow_status w
                 where w.status = 'ENQUEUED' and w.queue_name = n.name
                 limit 1) head
"""

# --- delays -------------------------------------------------------------------------------------

# A debounced workflow lets go of its key: the next call is a new one. What was parked has begun
# already, and its delay was a wait of its own.
RELEASE_DELAYED: Final = """
with due as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where w.status = 'DELAYED'
       and w.delay_until_epoch_ms
           <= (select (extract(epoch from clock_timestamp()) * 1000)::bigint + $1::bigint)
     order by w.delay_until_epoch_ms
     limit 1000
       for no key update skip locked
)
update dbos.workflow_status w
   set status = 'ENQUEUED',
       deduplication_id = case when not w.is_debounced then w.deduplication_id end,
       in_line_at = case when w.waiting_for is null then w.in_line_at
                         else w.delay_until_epoch_ms end,
       delay_until_epoch_ms = case when w.waiting_for is null then w.delay_until_epoch_ms end,
       waiting_for = null,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from due d
 where w.workflow_uuid = d.workflow_uuid
returning w.queue_name
"""

# At $2, or in $3 ms. What was parked is not delayed: it waits by its own will.
SET_DELAY: Final = """
update dbos.workflow_status w
   set delay_until_epoch_ms = coalesce(
           $2::bigint,
           (extract(epoch from clock_timestamp()) * 1000)::bigint + $3::bigint + $4::bigint),
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where w.workflow_uuid = $1 and case w.status when 'DELAYED' then w.waiting_for is null end
returning w.queue_name, w.delay_until_epoch_ms
"""
