"""What people do to workflows: resume, fork, rewind, delete, export, import.

Lock order, as everywhere: workflow_status, rows by id, before all other tables.
"""

from typing import Final

from dbos_async._store.sql.workflows import _COPIED_STEP, _LINEAGE, _ROOT, _STEP_COLUMNS

# Back on a queue, as new but for their history. They pay for a start again, may be of another
# version ($4), and are never taken for fresh: a recovered position says that there is a history.
# What was cancelled and compensated stays so: its steps are recorded, and undone.
RESUME: Final = """
with locked as materialized (
    select w.workflow_uuid, w.status
      from dbos.workflow_status w
     where w.workflow_uuid = any($1::text[]) and w.status = any($2::text[])
       and not (w.status = 'CANCELLED'
                and exists (select from dbos.workflow_status c
                             where c.parent_workflow_id = w.workflow_uuid
                               and c.name = 'DBOS.compensate' and c.created_at >= w.created_at))
     order by w.workflow_uuid
       for update
)
update dbos.workflow_status w
   set status = 'ENQUEUED', queue_name = $3, owner_xid = null, deduplication_id = null,
       application_version = coalesce($4, w.application_version),
       recovery_attempts = 0, recovered_position = coalesce(w.recovered_position, 0),
       workflow_deadline_epoch_ms = null, started_at_epoch_ms = null, completed_at = null,
       waiting_for = null, in_line_at = null, rate_limited = false,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from locked l
 where w.workflow_uuid = l.workflow_uuid
returning w.workflow_uuid, l.status
"""

# $3: what it had stays, unless $2 says otherwise.
UPDATE_ATTRIBUTES: Final = """
update dbos.workflow_status w
   set attributes = case when $3::bool then coalesce(w.attributes, '{}') || $2::text::jsonb
                         else $2::jsonb end,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where w.workflow_uuid = $1
"""

# What a cut may be named by. Results stay where they are.
FETCH_OUTLINE: Final = """
select o.function_id, o.function_name, o.error is not null, o.child_workflow_id is not null
  from dbos.operation_outputs o
 where o.workflow_uuid = $1
 order by o.function_id
"""

# A new workflow with the history of $1 (an array of one) before position $3. Its steps name their
# keys, so that it does not depend on its source; what steps after that streamed meanwhile leaves no
# gap in its streams. No row if the id $2 is taken. The lock keeps whoever deletes the source, and
# then what its large values lie in, waiting until the fork has committed that it has them, too.
FORK: Final = _LINEAGE + """, forked as (
    insert into dbos.workflow_status
           (workflow_uuid, status, name, class_name, config_name, application_id,
            authenticated_user, assumed_role, authenticated_roles, inputs, serialization,
            attributes, application_name, application_version, queue_name, queue_partition_key,
            workflow_timeout_ms, forked_from, root_workflow_id, recovery_attempts, enqueue_order)
    select $2::text, 'ENQUEUED', w.name, w.class_name, w.config_name, w.application_id,
           w.authenticated_user, w.assumed_role, w.authenticated_roles,
           coalesce((select i.inputs from dbos.workflow_input i
                      where i.workflow_uuid = w.workflow_uuid), w.inputs),
           w.serialization, w.attributes, w.application_name, $4::text, $5::text,
           w.queue_partition_key, $6::bigint, w.workflow_uuid, """ + _ROOT + """, 0,
           nextval('dbos.workflow_order') * 1024
      from dbos.workflow_status w
     where w.workflow_uuid = any($1)
       for key share of w
    on conflict do nothing
    returning workflow_uuid, forked_from
), steps as (
    insert into dbos.operation_outputs
           (workflow_uuid, function_id, step_key, function_name, output, error, child_workflow_id,
            started_at_epoch_ms, completed_at_epoch_ms, arguments_digest, serialization,
            application_name)
    select f.workflow_uuid, s.function_id, s.step_key, s.function_name, s.output, s.error,
           s.child_workflow_id, s.started_at, s.completed_at, s.digest, s.serialization,
           s.application_name
      from forked f, lateral (
    select """ + _STEP_COLUMNS + """, o.application_name
      from dbos.operation_outputs o
    """ + _COPIED_STEP + """
     where o.workflow_uuid = f.forked_from and o.function_id < $3::int
    offset 0) as s(source, function_id, step_key, function_name, output, error, child_workflow_id,
                   started_at, completed_at, digest, serialization, application_name)
), history as (
    insert into dbos.workflow_events_history
           (workflow_uuid, function_id, key, value, serialization)
    select f.workflow_uuid, h.function_id, h.key, h.value, h.serialization
      from forked f join dbos.workflow_events_history h
        on h.workflow_uuid = f.forked_from and h.function_id < $3
), events as (
    insert into dbos.workflow_events (workflow_uuid, key, value, serialization)
    select distinct on (h.key) f.workflow_uuid, h.key, h.value, h.serialization
      from forked f join dbos.workflow_events_history h
        on h.workflow_uuid = f.forked_from and h.function_id < $3
     order by h.key, h.function_id desc
), streams as (
    insert into dbos.streams (workflow_uuid, key, value, "offset", function_id, serialization)
    select f.workflow_uuid, s.key, s.value,
           row_number() over (partition by s.key order by s."offset") - 1, s.function_id,
           s.serialization
      from forked f join dbos.streams s
        on s.workflow_uuid = f.forked_from and s.function_id < $3
), marked as (
    update dbos.workflow_status w
       set was_forked_from = true
      from forked f
     where w.workflow_uuid = f.forked_from and not w.was_forked_from
)
select f.workflow_uuid from forked f
"""

FIND_FORK: Final = """
select w.name, w.forked_from from dbos.workflow_status w where w.workflow_uuid = $1
"""

# One transaction: this lock, then a snapshot that is younger than whatever landed before it.
LOCK_WORKFLOWS: Final = """
select w.workflow_uuid, w.status
  from dbos.workflow_status w
 where w.workflow_uuid = any($1::text[]) and ($2::text[] is null or w.status = any($2))
 order by w.workflow_uuid
   for update
"""

# Drop what $1 did at position $2 and after, and enqueue it again. Events are as they were before;
# what was streamed stays, but for the end of a stream, because others have read it; messages that
# were received there, or not yet, belong to the run that is dropped. It is another incarnation
# then: what the dropped run left in databases of the user's is not its own.
REWIND: Final = """
with discarded as materialized (
    select distinct h.key
      from dbos.workflow_events_history h
     where h.workflow_uuid = $1::text and h.function_id >= $2::int
), surviving as materialized (
    select distinct on (h.key) h.key, h.value, h.serialization
      from dbos.workflow_events_history h
     where h.workflow_uuid = $1 and h.function_id < $2 and h.key in (select d.key from discarded d)
     order by h.key, h.function_id desc
), restored as (
    update dbos.workflow_events e
       set value = s.value, serialization = s.serialization
      from surviving s
     where e.workflow_uuid = $1 and e.key = s.key
), unset as (
    delete from dbos.workflow_events e
     where e.workflow_uuid = $1 and e.key in (select d.key from discarded d)
       and e.key not in (select s.key from surviving s)
), history as (
    delete from dbos.workflow_events_history h where h.workflow_uuid = $1 and h.function_id >= $2
), steps as (
    delete from dbos.operation_outputs o where o.workflow_uuid = $1 and o.function_id >= $2
), ends as (
    delete from dbos.streams s
     where s.workflow_uuid = $1 and s.function_id >= $2
       and s.value = '"__DBOS_STREAM_CLOSED__"' and s.serialization = 'portable_json'
), messages as (
    delete from dbos.notifications n
     where n.destination_uuid = $1 and (not n.consumed or n.consumed_by_function_id >= $2)
), outputs as (
    delete from dbos.workflow_output o where o.workflow_uuid = $1
), compensations as (
    delete from dbos.dbos_async_compensations c where c.workflow_uuid = $1 and c.function_id >= $2
)
update dbos.workflow_status w
   set status = 'ENQUEUED', queue_name = $3, owner_xid = null, deduplication_id = null,
       creator_xid = gen_random_uuid()::text,
       application_version = coalesce($4, w.application_version), output = null, error = null,
       recovery_attempts = 0, recovered_position = 0,
       workflow_deadline_epoch_ms = null, started_at_epoch_ms = null, completed_at = null,
       waiting_for = null, in_line_at = null, rate_limited = false,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where w.workflow_uuid = $1
"""

# These and everything they started, directly or not.
FIND_FAMILY: Final = """
with recursive family(workflow_uuid) as (
    select unnest($1::text[])
    union
    select w.workflow_uuid
      from family f, lateral (select c.workflow_uuid from dbos.workflow_status c
                               where c.parent_workflow_id = f.workflow_uuid offset 0) w
)
select f.workflow_uuid from family f
"""

# The tables that refer to nothing, then the workflows, and by their foreign keys all the rest.
DELETE_STEPS: Final = """
with inputs as (
    delete from dbos.workflow_input i where i.workflow_uuid = any($1::text[])
), outputs as (
    delete from dbos.workflow_output o where o.workflow_uuid = any($1)
)
delete from dbos.operation_outputs s where s.workflow_uuid = any($1)
"""
DELETE_WORKFLOWS: Final = """
delete from dbos.workflow_status w where w.workflow_uuid = any($1::text[])
"""

# Each workflow with all that belongs to it as one JSON object: rows as they are, but that arguments
# and results are inline, step keys and the root are explicit, and owners are nobody's business.
EXPORT: Final = _LINEAGE + """
select json_build_object(
           'workflow_status',
           to_jsonb(w) - array['owner_xid', 'creator_xid'] || jsonb_build_object(
               'inputs', coalesce((select i.inputs from dbos.workflow_input i
                                    where i.workflow_uuid = w.workflow_uuid), w.inputs),
               'output', coalesce((select r.output from dbos.workflow_output r
                                    where r.workflow_uuid = w.workflow_uuid), w.output),
               'error', coalesce((select r.error from dbos.workflow_output r
                                   where r.workflow_uuid = w.workflow_uuid), w.error),
               'root_workflow_id', nullif(""" + _ROOT + """, w.workflow_uuid)),
           'operation_outputs',
           (select coalesce(json_agg(to_jsonb(o) || jsonb_build_object(
                       'step_key', coalesce(o.step_key, copied.step_key),
                       'arguments_digest', coalesce(o.arguments_digest, copied.arguments_digest))
                       order by o.function_id), '[]')
              from dbos.operation_outputs o """ + _COPIED_STEP + """
             where o.workflow_uuid = w.workflow_uuid),
           'workflow_events',
           (select coalesce(json_agg(e order by e.key), '[]') from dbos.workflow_events e
             where e.workflow_uuid = w.workflow_uuid),
           'workflow_events_history',
           (select coalesce(json_agg(h order by h.function_id, h.key), '[]')
              from dbos.workflow_events_history h where h.workflow_uuid = w.workflow_uuid),
           'streams',
           (select coalesce(json_agg(s order by s.key, s."offset"), '[]') from dbos.streams s
             where s.workflow_uuid = w.workflow_uuid),
           'notifications',
           (select coalesce(json_agg(n order by n.created_at_epoch_ms, n.message_uuid), '[]')
              from dbos.notifications n where n.destination_uuid = w.workflow_uuid))::text
  from dbos.workflow_status w
 where w.workflow_uuid = any($1)
 order by w.created_at + 0, w.workflow_uuid
"""

# Rows of an export, in the layout that this database has: a column that it lacks is left out.
IMPORT_WORKFLOWS: Final = """
insert into dbos.workflow_status
select * from json_populate_recordset(null::dbos.workflow_status, $1::text::json)
"""
IMPORT_STEPS: Final = """
insert into dbos.operation_outputs
select * from json_populate_recordset(null::dbos.operation_outputs, $1::text::json)
"""
IMPORT_EVENTS: Final = """
insert into dbos.workflow_events
select * from json_populate_recordset(null::dbos.workflow_events, $1::text::json)
"""
IMPORT_EVENTS_HISTORY: Final = """
insert into dbos.workflow_events_history
select * from json_populate_recordset(null::dbos.workflow_events_history, $1::text::json)
"""
IMPORT_STREAMS: Final = """
insert into dbos.streams
select * from json_populate_recordset(null::dbos.streams, $1::text::json)
"""
# Numbered anew, in the order that they had: they came before whatever is sent from now on.
IMPORT_MESSAGES: Final = """
insert into dbos.notifications
       (message_uuid, destination_uuid, topic, message, created_at_epoch_ms, serialization,
        consumed, consumed_by_function_id, message_order)
select r.message_uuid, r.destination_uuid, r.topic, r.message, r.created_at_epoch_ms,
       r.serialization, r.consumed, r.consumed_by_function_id, nextval('dbos.message_order')
  from (select * from json_populate_recordset(null::dbos.notifications, $1::text::json) m
         order by m.message_order nulls first, m.created_at_epoch_ms offset 0) r
"""
