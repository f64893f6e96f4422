"""Workflows and their steps: written, read, recovered."""

from typing import Final

# --- parts of statements ------------------------------------------------------------------------

# Plans are made for any arguments and on stale statistics, so the statements leave no choice:
# `offset 0` keeps a look-up a look-up, `is true` keeps a list out of the join, and a time in a
# subquery is one moment, not a volatile function, which no index could serve. The pool's sessions
# discourage sorts, so that a long line is walked; where its index would be the wrong one, `+ 0`
# says so.

# Official clients copy named columns when they fork, and step_key is not among them. What a fork
# runs itself names its key, so a row of it without one is a copy: its key is that of the row with
# the same number in the nearest workflow up the line that has one, else the number. These three
# parts go together; $1 are the workflows.
_LINEAGE: Final = """
with recursive lineage(workflow_uuid, ancestor, distance) as (
    select w.workflow_uuid, w.forked_from, 1
      from dbos.workflow_status w
     where w.workflow_uuid = any($1::text[]) and w.forked_from is not null
    union all
    select l.workflow_uuid, w.forked_from, l.distance + 1
      from lineage l join dbos.workflow_status w on w.workflow_uuid = l.ancestor
     where w.forked_from is not null and l.distance < 1000
)
"""
_STEP_COLUMNS: Final = """
       o.workflow_uuid, o.function_id,
       coalesce(o.step_key, copied.step_key, o.function_id::text), o.function_name,
       o.output, o.error, o.child_workflow_id, o.started_at_epoch_ms, o.completed_at_epoch_ms,
       coalesce(o.arguments_digest, copied.arguments_digest), o.serialization
"""
# `offset 0` keeps it a look-up by key: with old statistics, as after a burst of steps, the planner
# would read all steps for each one.
_COPIED_STEP: Final = """
  left join lateral (
       select s.step_key, s.arguments_digest
         from lineage l,
              lateral (select c.step_key, c.arguments_digest
                         from dbos.operation_outputs c
                        where c.workflow_uuid = l.ancestor and c.function_id = o.function_id
                          and c.function_name = o.function_name offset 0) s
        where l.workflow_uuid = o.workflow_uuid and o.step_key is null
        order by s.step_key is null, s.step_key is null and s.arguments_digest is null, l.distance
        limit 1) copied on true
"""

# The workflow at the root of the line of forks that `w` ends.
_ROOT: Final = """
       case when w.root_workflow_id is not null then w.root_workflow_id
            when w.forked_from is null then w.workflow_uuid
            else (with recursive line(workflow_uuid, distance) as (
                      select w.forked_from, 1
                      union all
                      select coalesce(f.root_workflow_id, f.forked_from), l.distance + 1
                        from line l join dbos.workflow_status f
                          on f.workflow_uuid = l.workflow_uuid
                       where coalesce(f.root_workflow_id, f.forked_from) is not null
                         and l.distance < 1000)
                  select l.workflow_uuid from line l order by l.distance desc limit 1) end
"""

# A claimed workflow `w`.
_CLAIMED_COLUMNS: Final = """
       w.workflow_uuid, w.status, w.name, w.class_name, w.config_name,
       coalesce((select i.inputs from dbos.workflow_input i
                  where i.workflow_uuid = w.workflow_uuid), w.inputs),
       w.serialization, w.queue_name, w.recovery_attempts, w.workflow_deadline_epoch_ms,
""" + _ROOT + """,
       w.owner_xid, w.queue_partition_key, w.priority, coalesce(w.in_line_at, w.created_at),
       coalesce(w.enqueue_order, 9223372036854775807), w.authenticated_user,
       w.authenticated_roles, w.assumed_role, false as is_fresh, w.schedule_name is not null
"""

# --- the checkpointer's: arrays in, counts out --------------------------------------------------

# Fenced: a step lands only while its workflow is PENDING under the owner that ran it. The row lock
# makes a takeover wait for a batch in flight, and a zombie's batch wait for the takeover and then
# land nothing. Status stays out of WHERE, so that only the primary key fits.
RECORD_STEPS: Final = """
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, error, child_workflow_id,
        started_at_epoch_ms, completed_at_epoch_ms, step_key, arguments_digest,
        serialization, application_name)
select t.workflow_uuid, t.function_id, t.function_name, t.output, t.error, t.child_workflow_id,
       t.started_at, t.completed_at, t.step_key, t.digest, 'portable_json', $12
  from unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[],
              $7::bigint[], $8::bigint[], $9::text[], $10::bigint[], $11::text[])
       as t(workflow_uuid, function_id, function_name, output, error, child_workflow_id,
            started_at, completed_at, step_key, digest, owner)
 where (select case w.status when 'PENDING' then w.owner_xid end
          from dbos.workflow_status w
         where w.workflow_uuid = t.workflow_uuid
           for no key update) = t.owner
on conflict do nothing
"""
_STEPS: Final = """
steps as (""" + RECORD_STEPS + """
returning workflow_uuid, function_id
)"""

# The same for one step: no arrays to unpack.
RECORD_STEP: Final = """
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, error, child_workflow_id,
        started_at_epoch_ms, completed_at_epoch_ms, step_key, arguments_digest,
        serialization, application_name)
select $1::text, $2::int, $3::text, $4::text, $5::text, $6::text,
       $7::bigint, $8::bigint, $9::text, $10::bigint, 'portable_json', $12::text
 where (select case w.status when 'PENDING' then w.owner_xid end
          from dbos.workflow_status w
         where w.workflow_uuid = $1
           for no key update) = $11::text
on conflict do nothing
"""

# Starts (PENDING) and enqueues (ENQUEUED, DELAYED) of workflows that have no parent step. Enqueues
# are numbered in the order of their arrival, though rows are written in the order of their ids: one
# number of the sequence a batch, and the place in the batch, which is at most 1,000.
CREATE_WORKFLOWS: Final = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, inputs, executor_id,
        application_version, owner_xid, creator_xid, workflow_timeout_ms,
        workflow_deadline_epoch_ms, queue_name, deduplication_id, priority, queue_partition_key,
        delay_until_epoch_ms, parent_workflow_id, attributes, authenticated_user,
        authenticated_roles, assumed_role, recovery_attempts, enqueue_order, serialization,
        application_name)
select t.workflow_uuid, t.status, t.name, t.class_name, t.config_name, t.inputs, t.executor_id,
       t.app_version, t.owner, t.creator, t.timeout_ms, t.deadline_ms, t.queue_name,
       t.deduplication_id, t.priority, t.partition_key, t.delay_until_ms, t.parent_id,
       t.attributes::jsonb, t.caller::json ->> 'user', t.caller::json ->> 'roles',
       t.caller::json ->> 'role', case t.status when 'PENDING' then 1 else 0 end,
       (select nextval('dbos.workflow_order') * 1024 where $20::int[] <> '{}') + t.arrival,
       'portable_json', $22
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
              $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::text[],
              $14::text[], $15::int[], $16::text[], $17::bigint[], $18::text[], $19::text[],
              $20::int[], $21::text[])
       as t(workflow_uuid, status, name, class_name, config_name, inputs, executor_id,
            app_version, owner, creator, timeout_ms, deadline_ms, queue_name, deduplication_id,
            priority, partition_key, delay_until_ms, parent_id, attributes, arrival, caller)
on conflict do nothing
"""

# Fenced like a step. The row keeps its owner, so that a batch sent twice recognizes its own work.
COMPLETE_WORKFLOWS: Final = """
update dbos.workflow_status w
   set status = t.status, output = t.output, error = t.error, serialization = 'portable_json',
       deduplication_id = null, waiting_for = null,
       completed_at = (extract(epoch from clock_timestamp()) * 1000)::bigint,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
       as t(workflow_uuid, owner, status, output, error)
 where w.workflow_uuid = t.workflow_uuid
   and case w.status when 'PENDING' then w.owner_xid end = t.owner
"""

# A row has one format for its inputs and its result. What another library stored in its own format
# becomes portable before the workflow runs here.
MAKE_PORTABLE: Final = """
with ours as (
    update dbos.workflow_status w
       set inputs = $3, serialization = 'portable_json'
     where w.workflow_uuid = $1
       and case w.status when 'PENDING' then w.owner_xid end = $2
    returning w.workflow_uuid
)
delete from dbos.workflow_input i using ours
 where i.workflow_uuid = ours.workflow_uuid
"""

# All kinds in one statement, one snapshot, one commit. A child is created only if its parent's
# step row lands here: steps $1..$11, workflows $13..$33 and their parent's step position $34,
# completions $35..$39, the application $12.
RECORD_MIXED: Final = "with " + _STEPS + """, workflows as (
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, inputs, executor_id,
        application_version, owner_xid, creator_xid, workflow_timeout_ms,
        workflow_deadline_epoch_ms, queue_name, deduplication_id, priority, queue_partition_key,
        delay_until_epoch_ms, parent_workflow_id, attributes, authenticated_user,
        authenticated_roles, assumed_role, recovery_attempts, enqueue_order, serialization,
        application_name)
select t.workflow_uuid, t.status, t.name, t.class_name, t.config_name, t.inputs, t.executor_id,
       t.app_version, t.owner, t.creator, t.timeout_ms, t.deadline_ms, t.queue_name,
       t.deduplication_id, t.priority, t.partition_key, t.delay_until_ms, t.parent_id,
       t.attributes::jsonb, t.caller::json ->> 'user', t.caller::json ->> 'roles',
       t.caller::json ->> 'role', case t.status when 'PENDING' then 1 else 0 end,
       (select nextval('dbos.workflow_order') * 1024 where $32::int[] <> '{}') + t.arrival,
       'portable_json', $12
  from unnest($13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::text[],
              $19::text[], $20::text[], $21::text[], $22::text[], $23::bigint[], $24::bigint[],
              $25::text[], $26::text[], $27::int[], $28::text[], $29::bigint[], $30::text[],
              $31::text[], $32::int[], $33::text[], $34::int[])
       as t(workflow_uuid, status, name, class_name, config_name, inputs, executor_id,
            app_version, owner, creator, timeout_ms, deadline_ms, queue_name, deduplication_id,
            priority, partition_key, delay_until_ms, parent_id, attributes, arrival, caller,
            parent_position)
 where t.parent_position is null
    or (t.parent_id, t.parent_position) in (select s.workflow_uuid, s.function_id from steps s)
on conflict do nothing
returning workflow_uuid
), completions as (
update dbos.workflow_status w
   set status = t.status, output = t.output, error = t.error, serialization = 'portable_json',
       deduplication_id = null, waiting_for = null,
       completed_at = (extract(epoch from clock_timestamp()) * 1000)::bigint,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from unnest($35::text[], $36::text[], $37::text[], $38::text[], $39::text[])
       as t(workflow_uuid, owner, status, output, error)
 where w.workflow_uuid = t.workflow_uuid
   and case w.status when 'PENDING' then w.owner_xid end = t.owner
returning w.workflow_uuid
)
select (select count(*) from steps) + (select count(*) from workflows)
       + (select count(*) from completions)
"""

# A step that named as its child what another function's workflow is called: an error from now on.
REFUSE_CHILD: Final = """
update dbos.operation_outputs o
   set error = $3, child_workflow_id = null
 where o.workflow_uuid = $1 and o.function_id = $2
   and (select case w.status when 'PENDING' then w.owner_xid end
          from dbos.workflow_status w
         where w.workflow_uuid = $1
           for no key update) = $4::text
"""

# What is recorded under the keys of these steps, or under their numbers, whoever recorded it.
FIND_STEPS: Final = _LINEAGE + """
select """ + _STEP_COLUMNS + """
  from unnest($1::text[], $2::text[]) as t(workflow_uuid, step_key)
  join dbos.operation_outputs o on o.workflow_uuid = t.workflow_uuid
""" + _COPIED_STEP + """
 where coalesce(o.step_key, copied.step_key, o.function_id::text) = t.step_key
"""

FIND_LAST_POSITION: Final = """
select coalesce(max(o.function_id), 0) from dbos.operation_outputs o where o.workflow_uuid = $1
"""

# Who has these workflows now.
FIND_OWNERS: Final = """
select w.workflow_uuid, w.status, w.name, w.owner_xid, w.creator_xid, w.queue_name, w.class_name,
       w.config_name
  from dbos.workflow_status w
 where w.workflow_uuid = any($1::text[])
"""

FIND_DEDUPLICATED: Final = """
select w.workflow_uuid
  from dbos.workflow_status w
 where w.queue_name = $1 and w.deduplication_id = $2
"""

# --- reading ------------------------------------------------------------------------------------

FETCH_HISTORY: Final = _LINEAGE + """
select """ + _STEP_COLUMNS + """
  from dbos.operation_outputs o
""" + _COPIED_STEP + """
 where o.workflow_uuid = any($1::text[])
 order by o.workflow_uuid, o.function_id
"""

FETCH_OUTCOMES: Final = """
select w.workflow_uuid, w.status, w.name, coalesce(o.output, w.output), coalesce(o.error, w.error),
       w.serialization, w.workflow_deadline_epoch_ms, w.completed_at
  from dbos.workflow_status w
  left join dbos.workflow_output o on o.workflow_uuid = w.workflow_uuid
 where w.workflow_uuid = any($1::text[])
"""

# Workflows as a check of their replay wants them.
FETCH_FOR_REPLAY: Final = """
select w.workflow_uuid, w.status, w.name, w.class_name, w.config_name,
       coalesce(i.inputs, w.inputs), coalesce(o.output, w.output), coalesce(o.error, w.error),
       w.serialization, w.workflow_deadline_epoch_ms,
""" + _ROOT + """, w.authenticated_user, w.authenticated_roles, w.assumed_role,
       w.schedule_name is not null
  from dbos.workflow_status w
  left join dbos.workflow_input i on i.workflow_uuid = w.workflow_uuid
  left join dbos.workflow_output o on o.workflow_uuid = w.workflow_uuid
 where w.workflow_uuid = any($1::text[])
"""

# One row of nulls if the workflow has no steps; no row if there is no workflow.
LIST_STEPS: Final = _LINEAGE + """
select """ + _STEP_COLUMNS + """
  from dbos.workflow_status w
  left join lateral (select s.* from dbos.operation_outputs s
                      where s.workflow_uuid = w.workflow_uuid offset 0) o on true
""" + _COPIED_STEP + """
 where w.workflow_uuid = any($1::text[])
 order by o.function_id
"""

CLOCK: Final = "select (extract(epoch from clock_timestamp()) * 1000)::float8"

# --- ownership and recovery ---------------------------------------------------------------------

# Take some of an executor's workflows over, oldest first: all if it is dead, those that it handed
# back (they have no token) if it is not. Any number of processes do so at the same time. Attempts
# count crashes in a row that got no new step recorded. Workflows of a queue go back to it: its
# limits are its own business.
TAKE_OVER: Final = """
with free as materialized (
    select $1::text = $2::text
           or not exists (select from dbos.dbos_async_alive a
                           where a.key = hashtextextended('dbos_async executor ' || $1, 0)) as yes
), chosen as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where w.status = 'PENDING' and w.executor_id = $1
       and w.application_version = $4 and (w.application_name = $5 or w.application_name is null)
       and (w.name, coalesce(w.class_name, ''), coalesce(w.config_name, ''))
           in (select * from unnest($6::text[], $7::text[], $8::text[]))
       and not starts_with(coalesce(w.owner_xid, ''), $9)
       and ((select yes from free) or w.owner_xid is null)
     order by w.created_at + 0
     limit $10
       for no key update skip locked
)
update dbos.workflow_status w
   set status = case when w.queue_name is null then 'PENDING' else 'ENQUEUED' end,
       executor_id = $2, application_name = $5,
       owner_xid = case when w.queue_name is null then $3::text end,
       started_at_epoch_ms = case when w.queue_name is null then w.started_at_epoch_ms end,
       waiting_for = null,
       recovery_attempts = case when p.position > coalesce(w.recovered_position, 0) then 1
                                else coalesce(w.recovery_attempts, 0) end
                           + case when w.queue_name is null then 1 else 0 end,
       recovered_position = p.position,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from chosen c, lateral (select coalesce(max(o.function_id), 0) as position
                            from dbos.operation_outputs o
                           where o.workflow_uuid = c.workflow_uuid) p
 where w.workflow_uuid = c.workflow_uuid
returning """ + _CLAIMED_COLUMNS

# What this launch ($2) of an executor has, but does not run.
FIND_ORPHANS: Final = """
select """ + _CLAIMED_COLUMNS + """
  from dbos.workflow_status w
 where w.status = 'PENDING' and w.executor_id = $1 and starts_with(w.owner_xid, $2)
   and not w.workflow_uuid = any($3::text[])
 limit 1000
"""

# What a dead executor left that nobody here can run, for the log.
UNKNOWN_PENDING: Final = """
select w.name, coalesce(w.class_name, ''), coalesce(w.config_name, ''), count(*)
  from dbos.workflow_status w
 where w.status = 'PENDING' and w.executor_id = $1
   and w.application_version = $2 and (w.application_name = $3 or w.application_name is null)
   and (w.name, coalesce(w.class_name, ''), coalesce(w.config_name, ''))
       not in (select * from unnest($4::text[], $5::text[], $6::text[]))
 group by 1, 2, 3
"""

COUNT_OTHER_VERSIONS: Final = """
select w.application_version, count(*)
  from dbos.workflow_status w
 where w.status = 'PENDING' and w.executor_id = $1 and w.application_version <> $2
   and (w.application_name = $3 or w.application_name is null)
 group by 1
"""

BURY: Final = """
update dbos.workflow_status w
   set status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED', queue_name = null, deduplication_id = null,
       completed_at = (extract(epoch from clock_timestamp()) * 1000)::bigint,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where w.workflow_uuid = $1 and w.status = 'PENDING' and w.owner_xid = $2
"""

# What a shutdown leaves: the next run is no crash's recovery, so that is taken off in advance.
# What came off a queue goes back to it at once, also what was claimed and never begun; the rest
# is nobody's, for whoever is told.
HAND_BACK: Final = """
update dbos.workflow_status w
   set status = case when w.queue_name is null then 'PENDING' else 'ENQUEUED' end,
       owner_xid = null,
       started_at_epoch_ms = case when w.queue_name is null then w.started_at_epoch_ms end,
       recovery_attempts = greatest(0, coalesce(w.recovery_attempts, 0) - 1),
       waiting_for = null,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where w.status = 'PENDING' and w.executor_id = $1 and starts_with(w.owner_xid, $2)
returning w.queue_name
"""

# Which of these are no longer ours to run: cancelled, finished elsewhere, or taken over.
FIND_LOST: Final = """
select t.workflow_uuid
  from unnest($1::text[], $2::text[]) as t(workflow_uuid, owner)
  left join dbos.workflow_status w on w.workflow_uuid = t.workflow_uuid
 where case w.status when 'PENDING' then w.owner_xid end is distinct from t.owner
"""

# Cancels these and, if asked, everything they started, but for what compensates them: that must be
# named itself. The lock order is by id.
CANCEL: Final = """
with recursive family(workflow_uuid) as (
    select unnest($1::text[])
    union
    select w.workflow_uuid
      from family f, lateral (select c.workflow_uuid from dbos.workflow_status c
                               where c.parent_workflow_id = f.workflow_uuid
                                 and c.name is distinct from 'DBOS.compensate' offset 0) w
     where $2::bool
), locked as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where w.workflow_uuid = any(array(select f.workflow_uuid from family f))
       and w.status in ('PENDING', 'ENQUEUED', 'DELAYED')
     order by w.workflow_uuid
       for no key update
)
update dbos.workflow_status w
   set status = 'CANCELLED', owner_xid = null, queue_name = null, deduplication_id = null,
       waiting_for = null, started_at_epoch_ms = null,
       completed_at = (extract(epoch from clock_timestamp()) * 1000)::bigint + $3::bigint,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from locked l
 where w.workflow_uuid = l.workflow_uuid
returning w.workflow_uuid
"""

NOTIFY: Final = "select pg_notify($1, payload) from unnest($2::text[]) as payload"
