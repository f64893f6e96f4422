"""Executors: who lives, who leads, and what the leader has to see to."""

from typing import Final

_NOW_MS: Final = "(extract(epoch from clock_timestamp()) * 1000)::bigint"

# Which process of the server answers: behind a pooler, not the one that it named at first.
FETCH_BACKEND: Final = "select pg_backend_pid()"
# Which database this is, whatever the way to it.
FETCH_PLACE: Final = """
select d.oid::bigint as oid, pg_postmaster_start_time() as server_started_at
  from pg_database d
 where d.datname = current_database()
"""
# A session that is busy with a statement of ours sees that we are gone.
HEED_OUR_END: Final = "select set_config('client_connection_check_interval', '1s', false)"

# One advisory lock an executor, held by a session of its own as long as the process lives.
LIMIT_IDLENESS: Final = "select set_config('idle_session_timeout', $1, false)"
HOLD_EXECUTOR: Final = """
select pg_try_advisory_lock(hashtextextended('dbos_async executor ' || $1, 0))
"""
TRY_TO_LEAD: Final = """
select pg_try_advisory_lock(hashtextextended('dbos_async leader ' || $1, 0))
"""

REGISTER_EXECUTOR: Final = """
insert into dbos.dbos_async_executors as e
       (executor_id, application_name, application_version, hostname, process_id, boot, lease_ms,
        started_at_epoch_ms, last_seen_epoch_ms)
values ($1, $2, $3, $4, $5, $6, $7, """ + _NOW_MS + ", " + _NOW_MS + """)
    on conflict (executor_id) do update
   set application_name = excluded.application_name,
       application_version = excluded.application_version, hostname = excluded.hostname,
       process_id = excluded.process_id, boot = excluded.boot, lease_ms = excluded.lease_ms,
       is_deactivated = e.is_deactivated and e.boot = excluded.boot,
       started_at_epoch_ms = case when e.boot = excluded.boot then e.started_at_epoch_ms
                                  else excluded.started_at_epoch_ms end,
       last_seen_epoch_ms = excluded.last_seen_epoch_ms
"""
# Without a session of one's own the row is the lease: it is taken when it is free.
HOLD_ROW: Final = REGISTER_EXECUTOR + """
 where e.boot = excluded.boot
    or not exists (select from dbos.dbos_async_alive a
                    where a.key = hashtextextended('dbos_async executor ' || $1, 0))
"""
# Who has the id of executor $1 now, if it is not the launch $2.
FETCH_USURPER: Final = """
select e.process_id || ' on ' || e.hostname
  from dbos.dbos_async_executors e
 where e.executor_id = $1 and e.boot <> $2
"""
DEACTIVATE_EXECUTOR: Final = """
update dbos.dbos_async_executors e
   set is_deactivated = true
 where e.executor_id = $1 and e.boot = $2
"""
UNREGISTER_EXECUTOR: Final = """
delete from dbos.dbos_async_executors e where e.executor_id = $1 and e.boot = $2
"""
FETCH_EXECUTORS: Final = """
select e.executor_id, e.application_name, e.application_version, e.hostname, e.process_id,
       e.started_at, e.last_seen_at, e.is_alive, e.workflows, e.is_deactivated
  from dbos.executors e
 where ($1::text is null or e.application_name = $1) and ($2::text is null or e.executor_id = $2)
 order by e.started_at, e.executor_id
"""

# Of each of these executors, whether it lives, and what it has PENDING; no row of one that has
# nothing and is not known.
FETCH_LEFT: Final = """
select t.executor_id,
       exists (select from dbos.dbos_async_alive a
                where a.key = hashtextextended('dbos_async executor ' || t.executor_id, 0)),
       coalesce(p.ids, '{}')
  from unnest($1::text[]) as t(executor_id),
       lateral (select array_agg(w.workflow_uuid) as ids
                  from dbos.workflow_status w
                 where w.status = 'PENDING' and w.executor_id = t.executor_id
                   and ($2::text is null
                        or w.application_name = $2 or w.application_name is null)) p
 where p.ids is not null
    or exists (select from dbos.dbos_async_executors e where e.executor_id = t.executor_id)
"""

# What a leader has to see to: the dead executors that have PENDING work (a loose index scan: one
# look-up an executor, however many workflows each has), how long the server has been up,
# milliseconds until the next delayed workflow is due, and whether a deadline has passed that nobody
# kept.
LOOK_AROUND: Final = """
with recursive known(executor_id) as (
    (select w.executor_id from dbos.workflow_status w
      where w.status = 'PENDING' and w.executor_id is not null
      order by w.executor_id limit 1)
    union all
    select (select w.executor_id from dbos.workflow_status w
             where w.status = 'PENDING' and w.executor_id > k.executor_id
             order by w.executor_id limit 1)
      from known k
     where k.executor_id is not null
), moment as materialized (
    select """ + _NOW_MS + """ + $1::bigint as ms
)
select array(select k.executor_id from known k
              where k.executor_id is not null
                and not exists (
                    select from dbos.dbos_async_alive a
                     where a.key = hashtextextended('dbos_async executor ' || k.executor_id, 0))),
       extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8,
       (select min(w.delay_until_epoch_ms) from dbos.workflow_status w
         where w.status = 'DELAYED') - (select ms from moment),
       exists (select from dbos.workflow_status w
                where w.status in ('PENDING', 'ENQUEUED', 'DELAYED')
                  and w.workflow_deadline_epoch_ms < (select ms from moment) - $2::bigint
                  and (w.application_name = $3 or w.application_name is null))
"""

# Workflows whose deadline passed $2 ms ago: their process is dead, or nobody has taken them.
FIND_LATE: Final = """
select w.workflow_uuid
  from dbos.workflow_status w
 where w.status in ('PENDING', 'ENQUEUED', 'DELAYED')
   and w.workflow_deadline_epoch_ms < """ + _NOW_MS + """ + $1::bigint - $2::bigint
   and (w.application_name = $3 or w.application_name is null)
 order by w.workflow_deadline_epoch_ms
 limit 1000
"""

# Rows of executors that are dead and have left nothing.
FORGET_EXECUTORS: Final = """
delete from dbos.dbos_async_executors e
 where not exists (select from dbos.dbos_async_alive a
                    where a.key = hashtextextended('dbos_async executor ' || e.executor_id, 0))
   and not exists (select from dbos.workflow_status w
                    where w.status = 'PENDING' and w.executor_id = e.executor_id)
   and e.started_at_epoch_ms < """ + _NOW_MS + """ - 60000
"""
