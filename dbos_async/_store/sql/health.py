"""How the database is: what `dbos-async doctor`, `queue list` and `reset` look at."""

from typing import Final

# Of the server and this database. What other roles' sessions are is hidden from us: no type is one.
FETCH_SERVER: Final = """
select current_setting('server_version'), current_setting('max_connections')::int,
       (select coalesce(sum(s.setting::int), 0)::int from pg_settings s
         where s.name in ('superuser_reserved_connections', 'reserved_connections')),
       (select count(*) from pg_stat_activity a
         where coalesce(a.backend_type, 'client backend') = 'client backend'),
       (select count(*) from pg_stat_activity a where a.application_name like 'dbos\\_async %'),
       pg_notification_queue_usage(),
       (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relkind in ('r', 'p') and n.nspname <> 'dbos' and n.nspname <> 'information_schema'
           and n.nspname not like 'pg\\_%')
"""

# The transaction of this database that has been open for the longest: nothing that ended since it
# began can be vacuumed.
FETCH_OLDEST_TRANSACTION: Final = """
select t.who, t.state, t.seconds
  from (select format('session %s (%s)', a.pid,
                      coalesce(nullif(a.application_name, ''), 'unnamed')) as who,
               coalesce(a.state, 'hidden') as state,
               extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds
          from pg_stat_activity a
         where a.datname = current_database() and a.xact_start is not null
           and a.pid <> pg_backend_pid() and a.backend_type is distinct from 'autovacuum worker'
        union all
        select format('prepared transaction %s', p.gid), 'prepared',
               extract(epoch from clock_timestamp() - p.prepared)::float8
          from pg_prepared_xacts p
         where p.database = current_database()) t
 order by t.seconds desc
 limit 1
"""

# Our tables, the largest first. The numbers of rows are the statistics': about right, and at once.
FETCH_TABLE_SIZES: Final = """
select s.relname::text, pg_table_size(s.relid), pg_indexes_size(s.relid), s.n_live_tup,
       s.n_dead_tup, extract(epoch from now() - greatest(s.last_vacuum, s.last_autovacuum))::float8
  from pg_stat_user_tables s
 where s.schemaname = 'dbos'
 order by pg_total_relation_size(s.relid) desc, s.relname
"""

FETCH_OLDEST_WORKFLOW: Final = """
select min(w.created_at) from dbos.workflow_status w where w.created_at >= 0
"""

# Each queue that is declared, or has something on it: what waits, what runs, and since when the
# first has waited. The conditions that let everything through name the index, as in COUNT_WORK.
FETCH_QUEUE_LOADS: Final = """
with load as (
    select w.queue_name, count(*) filter (where w.status = 'ENQUEUED') as enqueued,
           count(*) filter (where w.status = 'DELAYED') as delayed,
           count(*) filter (where w.status = 'PENDING') as pending, min(w.in_line_at) as oldest_ms
      from (select e.queue_name, e.status, coalesce(e.in_line_at, e.created_at) as in_line_at
              from dbos.workflow_status e
             where e.status = 'ENQUEUED' and e.queue_name >= ''
            union all
            select d.queue_name, d.status, null
              from dbos.workflow_status d
             where d.status = 'DELAYED' and d.delay_until_epoch_ms >= 0
            union all
            select p.queue_name, p.status, null
              from dbos.workflow_status p
             where p.status = 'PENDING' and p.queue_name is not null) w
     where w.queue_name is not null
     group by w.queue_name
)
select coalesce(q.name, l.queue_name), q.application_name, q.name is not null,
       coalesce(q.is_paused, false), coalesce(l.enqueued, 0), coalesce(l.delayed, 0),
       coalesce(l.pending, 0), l.oldest_ms
  from load l full join dbos.queues q on q.name = l.queue_name
 order by 1
"""
