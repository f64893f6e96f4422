"""Enqueues of many workflows at once, also on connections that are the user's.

Every parameter is a text or a number, and rows travel as JSON, because that is what all drivers
send alike; it is also the least work for this process.
"""

from typing import Final

# The same columns as CREATE_WORKFLOWS fills, for workflows that nobody runs yet; a key that is left
# out is NULL. $2 is the application. One number of the sequence a chunk, and the place in the
# chunk, which is at most 1,000.
ENQUEUE: Final = """
with enqueued as (
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, config_name, inputs, application_version,
        creator_xid, workflow_timeout_ms, workflow_deadline_epoch_ms, queue_name, deduplication_id,
        priority, queue_partition_key, delay_until_epoch_ms, parent_workflow_id, attributes,
        authenticated_user, authenticated_roles, assumed_role, recovery_attempts, enqueue_order,
        serialization, application_name)
select t.workflow_id, t.status, t.name, t.class_name, t.config_name, t.inputs, t.app_version,
       t.creator, t.timeout_ms, t.deadline_ms, t.queue_name, t.deduplication_id,
       coalesce(t.priority, 0), t.partition_key, t.delay_until_ms, t.parent_id,
       cast(t.attributes as jsonb), cast(t.caller as json) ->> 'user',
       cast(t.caller as json) ->> 'roles', cast(t.caller as json) ->> 'role', 0,
       (select nextval('dbos.workflow_order') * 1024) + t.arrival, 'portable_json',
       cast($2 as text)
  from json_to_recordset(cast(cast($1 as text) as json))
       as t(workflow_id text, status text, name text, class_name text, config_name text,
            inputs text, app_version text, creator text, timeout_ms bigint, deadline_ms bigint,
            queue_name text, deduplication_id text, priority int, partition_key text,
            delay_until_ms bigint, parent_id text, attributes text, arrival int, caller text)
on conflict do nothing
returning 1
)
select count(*) from enqueued
"""

# Who has these workflows now.
FIND_ENQUEUED: Final = """
select w.workflow_uuid, w.status, w.name, w.owner_xid, w.creator_xid, w.queue_name, w.class_name,
       w.config_name
  from dbos.workflow_status w
 where w.workflow_uuid = any(array(
           select json_array_elements_text(cast(cast($1 as text) as json))))
"""

# Who holds these deduplication ids of a queue.
FIND_HOLDERS: Final = """
select w.deduplication_id, w.workflow_uuid
  from dbos.workflow_status w
 where w.queue_name = cast($1 as text)
   and w.deduplication_id = any(array(
           select json_array_elements_text(cast(cast($2 as text) as json))))
"""
