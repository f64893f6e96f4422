"""Large values in an object store: which objects there are, and whose they are."""

from typing import Final

# Before an object is uploaded. Whoever tries again uses another key.
REGISTER_PAYLOAD: Final = """
insert into dbos.dbos_async_payloads (store, object_key, workflow_id)
values ($1, $2, $3)
on conflict do nothing
"""

# One process of all that have this store looks through it ($2, milliseconds, after the last one);
# a row of no object says when that was.
CLAIM_SWEEP: Final = """
insert into dbos.dbos_async_payloads as p (store, object_key, workflow_id)
values ($1, '', '')
on conflict (object_key, workflow_id, store) do update
   set created_at_epoch_ms = excluded.created_at_epoch_ms
 where p.created_at_epoch_ms + $2::bigint <= excluded.created_at_epoch_ms
"""

# The next ones of a store behind ($2, $3), and which of them nobody has any more: those whose
# deletion was begun, and those older than $5 milliseconds without a workflow.
PAGE_PAYLOADS: Final = """
select p.object_key, p.workflow_id,
       p.is_doomed
       or (p.created_at_epoch_ms + $5::bigint
             < (select (extract(epoch from clock_timestamp()) * 1000)::bigint)
           and not exists (select from dbos.workflow_status w
                            where w.workflow_uuid = p.workflow_id offset 0))
  from (select * from dbos.dbos_async_payloads q
         where q.store = $1 and (q.object_key, q.workflow_id) > ($2, $3)
         order by q.object_key, q.workflow_id
         limit $4) p
 order by p.object_key, p.workflow_id
"""

FIND_PAYLOADS: Final = """
select p.object_key, p.workflow_id, true
  from dbos.dbos_async_payloads p
 where p.store = $1 and p.workflow_id = any($2::text[])
"""

# Lock these, so that a workflow that comes to refer to one meanwhile is seen by the next statement,
# or finds the object doomed. Who inserts such a workflow holds a lock against this one.
LOCK_PAYLOADS: Final = """
select p.object_key, p.workflow_id
  from unnest($2::text[], $3::text[]) as t(object_key, workflow_id)
  join dbos.dbos_async_payloads p
    on p.store = $1 and p.object_key = t.object_key and p.workflow_id = t.workflow_id
 order by p.object_key, p.workflow_id
   for update of p skip locked
"""

# From now on nobody may come to refer to these as these workflows' own. Not while there is a fork
# that an unknown client made in a way that did not register what it copied.
DOOM_PAYLOADS: Final = """
update dbos.dbos_async_payloads p
   set is_doomed = true
  from (select t.object_key, t.workflow_id
          from unnest($2::text[], $3::text[]) as t(object_key, workflow_id)
         where not exists (select from dbos.workflow_status w
                            where w.workflow_uuid = t.workflow_id offset 0)
           and not exists (select from dbos.workflow_status f
                            where f.forked_from = t.workflow_id and f.forked_from <> ''
                              and not exists (select from dbos.dbos_async_payloads q
                                               where q.object_key = t.object_key
                                                 and q.workflow_id = f.workflow_uuid
                                                 and q.store = $1 offset 0)
                           offset 0)
        offset 0) t
 where p.object_key = t.object_key and p.workflow_id = t.workflow_id and p.store = $1
returning p.object_key, p.workflow_id
"""

# Of these, the objects that somebody else has, too: a fork, or what it was forked from.
FIND_SHARED: Final = """
select distinct p.object_key
  from dbos.dbos_async_payloads p
 where p.store = $1 and p.object_key = any($2::text[]) and not p.is_doomed
"""

FORGET_PAYLOADS: Final = """
delete from dbos.dbos_async_payloads p
 using unnest($2::text[], $3::text[]) as t(object_key, workflow_id)
 where p.store = $1 and p.object_key = t.object_key and p.workflow_id = t.workflow_id
   and p.is_doomed
"""
