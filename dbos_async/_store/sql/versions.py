"""Versions of the code: which there are, who runs them, what waits for them."""

from typing import Final

REGISTER_VERSION: Final = """
insert into dbos.application_versions (version_id, version_name, application_name)
select gen_random_uuid()::text, $1::text, $2::text
 where not exists (select from dbos.application_versions v
                    where v.version_name = $1 and v.application_name is not distinct from $2)
on conflict do nothing
"""

# The newest first: it takes the work that names no version.
FETCH_VERSIONS: Final = """
select v.version_name, v.application_name, v.created_at, v.version_timestamp
  from dbos.application_versions v
 where $1::text is null or v.application_name = $1 or v.application_name is null
 order by v.version_timestamp desc, v.version_name
"""

# Newer than any other, whatever their writers' clocks said.
SET_LATEST_VERSION: Final = """
update dbos.application_versions v
   set version_timestamp = greatest(
           (extract(epoch from clock_timestamp()) * 1000)::bigint,
           (select max(o.version_timestamp) + 1 from dbos.application_versions o))
 where v.version_name = $1
   and ($2::text is null or v.application_name = $2 or v.application_name is null)
"""

# How many processes run each of these: $1 applications and $2 versions.
COUNT_PROCESSES: Final = """
select (select count(*)
          from dbos.dbos_async_executors e
         where e.application_name = t.app and e.application_version = t.version
           and exists (select from dbos.dbos_async_alive a
                        where a.key = hashtextextended('dbos_async executor ' || e.executor_id, 0)))
  from unnest($1::text[], $2::text[]) with ordinality as t(app, version, place)
 order by t.place
"""

# --- what waits ---------------------------------------------------------------------------------

# What waits, by application and version; of a long line, its first $2 at most. The conditions on
# names and times let everything through: they name the index that has what waits, and no more.
COUNT_WORK: Final = """
select w.application_name, w.application_version,
       count(*) filter (where w.status = 'ENQUEUED'), count(*) filter (where w.status = 'DELAYED'),
       count(*) filter (where w.status = 'PENDING')
  from ((select e.application_name, e.application_version, e.status
           from dbos.workflow_status e
          where e.status = 'ENQUEUED' and e.queue_name >= ''
          limit $2)
        union all
        (select d.application_name, d.application_version, d.status
           from dbos.workflow_status d
          where d.status = 'DELAYED' and d.delay_until_epoch_ms >= 0
          limit $2)
        union all
        (select p.application_name, p.application_version, p.status
           from dbos.workflow_status p
          where p.status = 'PENDING'
          limit $2)) w
 where $1::text is null or w.application_name = $1 or w.application_name is null
 group by 1, 2
 order by 1, 2
"""

# Gives what waits for version $1 to version $2, some at a time: what is on queues or delayed, and,
# if asked, what has begun: what was parked, and what dead executors left PENDING.
MOVE_WORK: Final = """
with queued as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where w.status = 'ENQUEUED' and w.queue_name >= '' and w.application_version = $1
       and ($3::text is null or w.application_name = $3 or w.application_name is null)
     limit 1000
       for no key update skip locked
), delayed as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where w.status = 'DELAYED' and w.delay_until_epoch_ms >= 0 and w.application_version = $1
       and ($3 is null or w.application_name = $3 or w.application_name is null)
       and ($4::bool or w.waiting_for is null)
     limit 1000
       for no key update skip locked
), begun as materialized (
    select w.workflow_uuid
      from dbos.workflow_status w
     where $4::bool and w.status = 'PENDING' and w.application_version = $1
       and ($3 is null or w.application_name = $3 or w.application_name is null)
       and not exists (
           select from dbos.dbos_async_alive a
            where a.key = hashtextextended('dbos_async executor ' || w.executor_id, 0))
     limit 1000
       for no key update of w skip locked
)
update dbos.workflow_status w
   set application_version = $2,
       updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
 where w.workflow_uuid in (select q.workflow_uuid from queued q
                           union all select d.workflow_uuid from delayed d
                           union all select b.workflow_uuid from begun b)
returning w.queue_name
"""

# What was given up and waits for a person.
COUNT_DEAD_LETTERS: Final = """
select count(*)
  from dbos.workflow_status w
 where w.status = 'MAX_RECOVERY_ATTEMPTS_EXCEEDED' and w.created_at >= 0
   and ($1::text is null or w.application_name = $1 or w.application_name is null)
"""
