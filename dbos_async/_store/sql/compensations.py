"""Compensations: opened by steps of sagas, dropped at their ends, run for who was cancelled."""

from typing import Final

from dbos_async._store.sql.workflows import _STEPS

# Steps of sagas, $1..$11, the application $12, and what lands with each or not at all: a
# compensation that is open from now on, or, without a key of its own, the end of all that its saga
# has. Where the owner is given, there is no step: the compensation was opened by an earlier run of
# this workflow, or of the one that it was forked from, and is open again if the workflow is ours.
RECORD_SAGAS: Final = "with " + _STEPS + """, told as materialized (
select t.*
  from unnest($13::text[], $14::int[], $15::text[], $16::text[], $17::text[], $18::text[],
              $19::text[], $20::text[], $21::text[])
       as t(workflow_uuid, function_id, owner, saga, step_key, name, class_name, config_name,
            inputs)
 where case when t.owner is null
            then (t.workflow_uuid, t.function_id)
                 in (select s.workflow_uuid, s.function_id from steps s)
            else (select case w.status when 'PENDING' then w.owner_xid end
                    from dbos.workflow_status w
                   where w.workflow_uuid = t.workflow_uuid
                     for no key update) = t.owner end
), opened as (
insert into dbos.dbos_async_compensations
       (workflow_uuid, step_key, function_id, saga, name, class_name, config_name, inputs)
select t.workflow_uuid, t.step_key, t.function_id, t.saga, t.name, t.class_name, t.config_name,
       t.inputs
  from told t
 where t.step_key is not null
 order by t.workflow_uuid, t.step_key
on conflict (workflow_uuid, step_key) do update
   set function_id = excluded.function_id, saga = excluded.saga, name = excluded.name,
       class_name = excluded.class_name, config_name = excluded.config_name,
       inputs = excluded.inputs
), dropped as (
delete from dbos.dbos_async_compensations c
 using told t
 where t.step_key is null and c.workflow_uuid = t.workflow_uuid and c.saga = t.saga
)
select (select count(*) from steps) + (select count(*) from told t where t.owner is not null)
"""

# What is left to be compensated of a workflow, the latest first: what has succeeded in the workflow
# itself is not. A compensation that failed there is: who was cancelled did not tell anybody.
FETCH_OPEN_COMPENSATIONS: Final = """
select c.step_key, c.name, c.class_name, c.config_name, c.inputs
  from dbos.dbos_async_compensations c
 where c.workflow_uuid = $1
   and not exists (select from dbos.operation_outputs o
                    where o.workflow_uuid = c.workflow_uuid and o.error is null
                      and coalesce(o.step_key, o.function_id::text) = c.step_key)
 order by c.function_id desc
"""

DROP_COMPENSATIONS: Final = """
delete from dbos.dbos_async_compensations c
 where c.workflow_uuid = $1 and c.step_key = any($2::text[])
"""

# Whether a workflow was compensated after its cancellation, or is about to be.
FIND_COMPENSATION: Final = """
select c.workflow_uuid
  from dbos.workflow_status w join dbos.workflow_status c on c.parent_workflow_id = w.workflow_uuid
 where w.workflow_uuid = $1::text and c.name = 'DBOS.compensate' and c.created_at >= w.created_at
 limit 1
"""

# The safety net under the trigger on cancellations: of the next $2 open compensations after
# workflow $1, those whose workflow was cancelled by somebody whose snapshot was too old to see
# them, or who may not see them. Where the next look goes on; null: at the beginning.
START_COMPENSATIONS: Final = """
with seen as materialized (
    select c.workflow_uuid
      from dbos.dbos_async_compensations c
     where c.workflow_uuid > $1::text
     order by c.workflow_uuid
     limit $2
), cancelled as materialized (
    select distinct s.workflow_uuid
      from seen s, lateral (select w.status, w.application_name
                              from dbos.workflow_status w
                             where w.workflow_uuid = s.workflow_uuid offset 0) w
     where w.status = 'CANCELLED' and (w.application_name = $3 or w.application_name is null)
), started as materialized (
    select dbos.dbos_async_compensate(c.workflow_uuid) as yes from cancelled c
)
select case when (select count(*) from seen) = $2 then (select max(s.workflow_uuid) from seen s) end
  from (select count(s.yes) from started s) as all_of_them
"""
