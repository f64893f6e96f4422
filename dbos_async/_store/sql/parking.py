"""Parking: a workflow that only waits becomes nobody's, until it is due or its news comes.

One transaction. The locks come first and in a statement of their own, so that the one that parks
sees whatever was sent before them. `for update` is what the foreign keys of messages and events
wait for: who sends while it is held finds the row parked, and its trigger wakes it. Rows that
somebody has locked are skipped: perhaps he is sending just now.
"""

from typing import Final

# The workflows to be parked, and those whose events they wait for.
LOCK_PARKED: Final = """
select w.workflow_uuid, case w.status when 'PENDING' then w.owner_xid end
  from dbos.workflow_status w
 where w.workflow_uuid = any($1::text[])
 order by w.workflow_uuid
   for update skip locked
"""

# A new version of each row and no other change: so a sender whose snapshot is older than this
# learns that somebody has begun to wait for its events.
TOUCH: Final = """
update dbos.workflow_status w set waiting_for = w.waiting_for
 where w.workflow_uuid = any($1::text[])
"""

# News that somebody waits for: a topic $5, or a workflow $6 and a key $7; else they are null. The
# next claim counts an attempt, which is taken off in advance; and a recovered position says that
# there is a history to be read.
PARK: Final = """
update dbos.workflow_status w
   set status = 'DELAYED', queue_name = coalesce(w.queue_name, '_dbos_internal_queue'),
       delay_until_epoch_ms = t.until_ms, waiting_for = t.waiting_for, owner_xid = null,
       recovery_attempts = greatest(0, coalesce(w.recovery_attempts, 0) - 1),
       recovered_position = coalesce(w.recovered_position, 0),
       started_at_epoch_ms = coalesce(w.started_at_epoch_ms, w.created_at),
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
  from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
       as t(workflow_uuid, owner, until_ms, waiting_for, topic, source_id, key)
 where w.workflow_uuid = t.workflow_uuid
   and case w.status when 'PENDING' then w.owner_xid end = t.owner
   and not exists (select from dbos.notifications n
                    where n.destination_uuid = t.workflow_uuid
                      and n.topic = t.topic and not n.consumed offset 0)
   and not exists (select from dbos.workflow_events e
                    where e.workflow_uuid = t.source_id and e.key = t.key offset 0)
returning w.workflow_uuid, w.queue_name
"""
