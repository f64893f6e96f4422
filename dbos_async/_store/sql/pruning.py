"""Pruning: schema.sql has the functions, which SQL and pg_cron call, too; these call them."""

from typing import Final

# Where a policy draws its lines now: an age, a number and an age of those that failed.
FIND_LIMITS: Final = """
select l.cutoff_ms, l.boundary_ms, l.boundary_id, l.failed_cutoff_ms
  from dbos.dbos_async_limits($1, $2, $3, $4) l
"""

# $1 to $4 are these lines, $5 the application, $6 and $7 where to go on; then the most workflows to
# delete, or to look at, and the most rows that are to be deleted with them.
PRUNE: Final = """
select b.deleted, b.reached_ms, b.reached_id, b.is_last
  from dbos.dbos_async_prune_some($1, $2, $3, $4, $5, $6, $7, $8) b
"""
FIND_PRUNABLE: Final = """
select f.workflow_ids, f.versions, f.reached_ms, f.reached_id, f.is_last
  from dbos.dbos_async_find_prunable($1, $2, $3, $4, $5, $6, $7, $8, $9) f
"""

# Which of these nobody needs who stays.
FIND_UNNEEDED: Final = """
select unnest(dbos.dbos_async_unneeded($1::text[]))
"""

DELETE_PRUNABLE: Final = """
select dbos.dbos_async_delete_prunable($1::text[], $2::text[])
"""

# How many bytes each of these workflows is about to be as text; nothing large is read for it.
MEASURE: Final = """
select w.workflow_uuid,
       (coalesce(octet_length(w.inputs), 0) + coalesce(octet_length(w.output), 0)
        + coalesce(octet_length(w.error), 0)
        + coalesce((select octet_length(i.inputs) from dbos.workflow_input i
                     where i.workflow_uuid = w.workflow_uuid), 0)
        + coalesce((select sum(coalesce(octet_length(r.output), 0)
                               + coalesce(octet_length(r.error), 0))
                      from dbos.workflow_output r where r.workflow_uuid = w.workflow_uuid), 0)
        + coalesce((select sum(coalesce(octet_length(o.output), 0)
                               + coalesce(octet_length(o.error), 0))
                      from dbos.operation_outputs o where o.workflow_uuid = w.workflow_uuid), 0)
        + coalesce((select sum(octet_length(h.value))
                      from dbos.workflow_events_history h
                     where h.workflow_uuid = w.workflow_uuid), 0)
        + coalesce((select sum(octet_length(s.value))
                      from dbos.streams s where s.workflow_uuid = w.workflow_uuid), 0)
        + coalesce((select sum(octet_length(n.message))
                      from dbos.notifications n
                     where n.destination_uuid = w.workflow_uuid), 0))::bigint
  from dbos.workflow_status w
 where w.workflow_uuid = any($1::text[])
"""
