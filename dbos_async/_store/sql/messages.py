"""Messages and events, outside the checkpointer's batches: sent, looked up, read."""

from typing import Final

# From outside a workflow, or within a step: $1 ids, $2 destinations, $3 topics, $4 messages. Of
# each destination in this order. An id that is there already says that this was sent before.
SEND_MESSAGES: Final = """
insert into dbos.notifications (message_uuid, destination_uuid, topic, message, serialization)
select t.message_uuid, t.destination_uuid, t.topic, t.message, 'portable_json'
  from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality
       as t(message_uuid, destination_uuid, topic, message, place)
 order by t.destination_uuid, t.place
on conflict (message_uuid) do nothing
"""

# The same on a connection of the user's: $1 the messages as JSON. None is sent if one is for a
# workflow that does not exist: the first such one is returned.
SEND_MESSAGES_AS_JSON: Final = """
with given as materialized (
    select t.message_id, t.destination_id, t.topic, t.message, row_number() over () as place
      from json_to_recordset(cast(cast($1 as text) as json))
           as t(message_id text, destination_id text, topic text, message text)
), unknown as materialized (
    select g.destination_id, g.place
      from given g
     where (select w.workflow_uuid from dbos.workflow_status w
             where w.workflow_uuid = g.destination_id) is null
     order by g.place
     limit 1
), sent as (
    insert into dbos.notifications (message_uuid, destination_uuid, topic, message, serialization)
    select g.message_id, g.destination_id, g.topic, g.message, 'portable_json'
      from given g
     where not exists (select from unknown)
     order by g.destination_id, g.place
    on conflict (message_uuid) do nothing
)
select u.destination_id from unknown u
"""

# Which of these ids no workflow has. A subquery a row: an index, whatever the statistics say.
FIND_UNKNOWN: Final = """
select t.workflow_uuid
  from unnest($1::text[]) with ordinality as t(workflow_uuid, place)
 where (select w.workflow_uuid from dbos.workflow_status w
         where w.workflow_uuid = t.workflow_uuid) is null
 order by t.place
"""

# How many unread messages there are for each workflow ($1) and topic ($2); no more than ask ($3).
COUNT_UNREAD: Final = """
select t.destination_uuid, t.topic, m.unread
  from unnest($1::text[], $2::text[], $3::int[]) as t(destination_uuid, topic, askers),
       lateral (select count(*)::int as unread
                  from (select from dbos.notifications n
                         where n.destination_uuid = t.destination_uuid and n.topic = t.topic
                           and not n.consumed
                         limit t.askers) u) m
 where m.unread > 0
"""

# The latest values of these workflows' ($1) events ($2), of those that there are.
FIND_EVENTS: Final = """
select t.workflow_uuid, t.key, e.value, e.serialization
  from unnest($1::text[], $2::text[]) as t(workflow_uuid, key),
       lateral (select v.value, v.serialization from dbos.workflow_events v
                 where v.workflow_uuid = t.workflow_uuid and v.key = t.key offset 0) e
"""

# All of a workflow's events. No row if there is no such workflow; one of nothing if it has none.
FETCH_EVENTS: Final = """
select w.workflow_uuid, e.key, e.value, e.serialization
  from dbos.workflow_status w
  left join dbos.workflow_events e on e.workflow_uuid = w.workflow_uuid
 where w.workflow_uuid = $1
 order by e.key
"""
