"""What workflows tell others and are told: messages, events, streams. The checkpointer's part."""

from typing import Final

from dbos_async._store.sql.workflows import _STEPS

# Steps that tell others something, and what they tell, which lands with its step; or, from within
# a step that runs and is recorded later, if the workflow is still ours ($21: the owner; NULL: it
# has a step of its own). Steps $1..$11, the application $12; in the order in which they were told:
# messages $13..$18, events and values of streams $19..$24, which have an offset. Of two events of
# one key the later one stands.
RECORD_EFFECTS: Final = "with " + _STEPS + """, messages as (
insert into dbos.notifications
       (message_uuid, destination_uuid, topic, message, serialization)
select t.message_uuid, t.destination_uuid, t.topic, t.message, 'portable_json'
  from unnest($13::text[], $14::int[], $15::text[], $16::text[], $17::text[], $18::text[])
       with ordinality
       as t(workflow_uuid, function_id, message_uuid, destination_uuid, topic, message, place)
 where (t.workflow_uuid, t.function_id) in (select s.workflow_uuid, s.function_id from steps s)
 order by t.destination_uuid, t.place
on conflict do nothing
), told as materialized (
select t.*
  from unnest($19::text[], $20::int[], $21::text[], $22::text[], $23::text[], $24::int[])
       with ordinality as t(workflow_uuid, function_id, owner, key, value, "offset", place)
 where case when t.owner is null
            then (t.workflow_uuid, t.function_id)
                 in (select s.workflow_uuid, s.function_id from steps s)
            else (select case w.status when 'PENDING' then w.owner_xid end
                    from dbos.workflow_status w
                   where w.workflow_uuid = t.workflow_uuid
                     for no key update) = t.owner end
), events as (
insert into dbos.workflow_events as e (workflow_uuid, key, value, serialization)
select distinct on (t.workflow_uuid, t.key) t.workflow_uuid, t.key, t.value, 'portable_json'
  from told t
 where t."offset" is null
 order by t.workflow_uuid, t.key, t.place desc
on conflict (workflow_uuid, key) do update
   set value = excluded.value, serialization = excluded.serialization
), history as (
insert into dbos.workflow_events_history (workflow_uuid, function_id, key, value, serialization)
select distinct on (t.workflow_uuid, t.function_id, t.key)
       t.workflow_uuid, t.function_id, t.key, t.value, 'portable_json'
  from told t
 where t."offset" is null
 order by t.workflow_uuid, t.function_id, t.key, t.place desc
on conflict (workflow_uuid, function_id, key) do update
   set value = excluded.value, serialization = excluded.serialization
), streams as (
insert into dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization)
select t.workflow_uuid, t.key, t.value, t."offset", t.function_id, 'portable_json'
  from told t
 where t."offset" is not null
on conflict (workflow_uuid, key, "offset") do update
   set value = excluded.value, function_id = excluded.function_id,
       serialization = excluded.serialization
)
select (select count(*) from steps) + (select count(*) from told where owner is not null)
"""

# Nothing but values of streams, from within steps that run: each lands if its workflow is still
# ours. One that is sent again is there already; what anybody else put in its place gives way.
RECORD_STREAM_VALUES: Final = """
insert into dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization)
select t.workflow_uuid, t.key, t.value, t."offset", t.function_id, 'portable_json'
  from unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::int[])
       as t(workflow_uuid, function_id, owner, key, value, "offset")
 where (select case w.status when 'PENDING' then w.owner_xid end
          from dbos.workflow_status w
         where w.workflow_uuid = t.workflow_uuid
           for no key update) = t.owner
on conflict (workflow_uuid, key, "offset") do update
   set value = excluded.value, function_id = excluded.function_id,
       serialization = excluded.serialization
"""

# Steps that receive a message ($12: its topic), if there is one: the oldest that is unread, the
# second oldest for the second of them, …. The message is the step's result, and read from then on.
# It is locked, so that one which another receipt of the same workflow reads just now is passed
# over: that may travel beside this one. The last column: whether the step has landed; if not, it
# is recorded, or its number is taken.
RECORD_RECEIPTS: Final = """
with wanted as materialized (
select t.*, row_number() over (partition by t.workflow_uuid, t.topic order by t.place) as turn
  from unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[],
              $7::bigint[], $8::bigint[], $9::text[], $10::bigint[], $11::text[], $12::text[])
       with ordinality
       as t(workflow_uuid, function_id, function_name, output, error, child_workflow_id,
            started_at, completed_at, step_key, digest, owner, topic, place)
), found as materialized (
select t.*, m.message_uuid, m.message, m.serialization
  from wanted t, lateral (
       select n.message_uuid, n.message, n.serialization
         from dbos.notifications n
        where n.destination_uuid = t.workflow_uuid and n.topic = t.topic and not n.consumed
        order by n.message_order nulls first, n.created_at_epoch_ms
       offset t.turn - 1 limit 1
          for update) m
 where (select case w.status when 'PENDING' then w.owner_xid end
          from dbos.workflow_status w
         where w.workflow_uuid = t.workflow_uuid
           for no key update) = t.owner
), steps as (
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, started_at_epoch_ms,
        completed_at_epoch_ms, step_key, arguments_digest, serialization, application_name)
select f.workflow_uuid, f.function_id, f.function_name, f.message, f.started_at,
       f.completed_at, f.step_key, f.digest, f.serialization, $13
  from found f
on conflict do nothing
returning workflow_uuid, function_id
), consumed as (
update dbos.notifications n
   set consumed = true, consumed_by_function_id = f.function_id
  from found f join steps s
    on s.workflow_uuid = f.workflow_uuid and s.function_id = f.function_id
 where n.message_uuid = f.message_uuid
)
select f.workflow_uuid, f.function_id, coalesce(f.step_key, f.function_id::text), f.function_name,
       f.message, f.error, f.child_workflow_id, f.started_at, f.completed_at, f.digest,
       f.serialization, s.workflow_uuid is not null as has_landed
  from found f left join steps s
    on s.workflow_uuid = f.workflow_uuid and s.function_id = f.function_id
"""
