"""Debounced workflows: begun, bounced, and who holds a key instead."""

from typing import Final

# What may be bounced, of the row `held`: it waits, was debounced, and is of the same function.
_BOUNCEABLE: Final = """
           held.status = 'DELAYED' and held.is_debounced
       and held.name = $2 and coalesce(held.class_name, '') = ''
       and coalesce(held.config_name, '') = ''
       and (held.application_name = $12 or held.application_name is null or $12::text is null)
"""

# Begins a workflow, or bounces the one that holds the key; no row if neither can be. The unique
# index decides between the two, so nothing can come in between: whoever releases or bounces the row
# at the same time is waited for, and then the newest row is looked at. The last call counts, with
# its arguments and options. The inputs are in workflow_input, where other clients put theirs: it is
# read first, and this statement finds also a row that it could not have seen when it began. That
# the workflow id is there already means that this call is repeated. A test may be $13 ahead.
DEBOUNCE: Final = """
with moment as materialized (
    select (extract(epoch from clock_timestamp()) * 1000)::bigint + $13::bigint as ms
), debounced as (
    insert into dbos.workflow_status as held
           (workflow_uuid, status, name, queue_name, deduplication_id, application_version,
            creator_xid, workflow_timeout_ms, attributes, authenticated_user, authenticated_roles,
            assumed_role, delay_until_epoch_ms, debounce_deadline_epoch_ms, is_debounced,
            recovery_attempts, enqueue_order, serialization, application_name)
    select $1::text, 'DELAYED', $2::text, $3::text, $4::text, $6::text, $7::text, $8::bigint,
           $9::text::jsonb, $14::text::json ->> 'user', $14::text::json ->> 'roles',
           $14::text::json ->> 'role', m.ms + least($10::bigint, $11::bigint), m.ms + $11, true, 0,
           nextval('dbos.workflow_order') * 1024, 'portable_json', $12
      from moment m
     where not exists (select from dbos.workflow_status w where w.workflow_uuid = $1)
    on conflict (queue_name, deduplication_id) where deduplication_id is not null do update
       set delay_until_epoch_ms = least(
               (extract(epoch from clock_timestamp()) * 1000)::bigint + $13 + $10,
               held.debounce_deadline_epoch_ms),
           application_version = excluded.application_version,
           application_name = coalesce(held.application_name, excluded.application_name),
           workflow_timeout_ms = excluded.workflow_timeout_ms,
           attributes = excluded.attributes,
           authenticated_user = excluded.authenticated_user,
           authenticated_roles = excluded.authenticated_roles,
           assumed_role = excluded.assumed_role,
           serialization = excluded.serialization, inputs = null,
           updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
     where """ + _BOUNCEABLE + """
    returning held.workflow_uuid, held.delay_until_epoch_ms
), inputs as (
    insert into dbos.workflow_input (workflow_uuid, inputs)
    select d.workflow_uuid, $5::text from debounced d
    on conflict (workflow_uuid) do update set inputs = excluded.inputs
)
select d.workflow_uuid, d.delay_until_epoch_ms from debounced d
"""

# Who holds the key, and whether it could be bounced by now.
FIND_KEY_HOLDER: Final = """
select held.workflow_uuid,
       """ + _BOUNCEABLE.replace("$12", "$4") + """
  from dbos.workflow_status held
 where held.queue_name = $1 and held.deduplication_id = $3
"""
