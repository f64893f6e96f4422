"""Schedules: declared, changed, fired.

Lock order: a schedule's row before rows of workflow_status.
"""

from typing import Final

_NOW_MS: Final = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
_SCHEDULE_COLUMNS: Final = """
       s.schedule_name, s.workflow_name, s.schedule, s.cron_timezone, s.queue_name, s.status,
       s.context, s.automatic_backfill, s.overlap, s.jitter_sec, s.last_fired_at,
       s.application_name, coalesce(s.is_declared, false), s.decided_until_epoch_ms,
       s.held_epoch_ms
"""
# What application $2 may see and change; NULL is a client, which may all.
_OURS: Final = """
       ($2::text is null or s.application_name = $2 or s.application_name is null)
"""

# --- configuration ------------------------------------------------------------------------------

FETCH_SCHEDULES: Final = """
select """ + _SCHEDULE_COLUMNS + """
  from dbos.workflow_schedules s
 where ($1::text[] is null or s.schedule_name = any($1)) and """ + _OURS + """
   and ($3::text[] is null or s.status = any($3))
   and ($4::text[] is null or s.workflow_name = any($4))
   and ($5::text[] is null or exists (select from unnest($5) as prefix
                                       where starts_with(s.schedule_name, prefix)))
   and ($6::text[] is null or s.application_name = any($6))
 order by s.schedule_name
"""

# One that is there already is left alone. A test may be $4 ahead of the clock.
_INSERT: Final = """
    insert into dbos.workflow_schedules as s
           (schedule_id, schedule_name, workflow_name, workflow_class_name, schedule,
            cron_timezone, queue_name, context, automatic_backfill, overlap, jitter_sec,
            application_name, is_declared, decided_until_epoch_ms)
    select coalesce($3::text, gen_random_uuid()::text), g.name, g.workflow_name, null, g.cron,
           g.timezone, g.queue_name, g.context, g.backfill, g.overlap, g.jitter, $2, $5::bool,
           """ + _NOW_MS + """ + $4::bigint
      from json_to_recordset($1::json)
           as g(name text, workflow_name text, cron text, timezone text, queue_name text,
                context text, backfill bool, overlap text, jitter double precision)
     order by g.name
        on conflict (schedule_name)
"""
CREATE_SCHEDULE: Final = _INSERT + " do nothing returning s.schedule_id"

# Those that are there already get what is given, and keep their state; by a declaration, only if
# version $6 is the newest. Other times begin now.
UPSERT_SCHEDULES: Final = _INSERT + """ do update
   set workflow_name = excluded.workflow_name, workflow_class_name = null,
       schedule = excluded.schedule, cron_timezone = excluded.cron_timezone,
       queue_name = excluded.queue_name, context = excluded.context,
       automatic_backfill = excluded.automatic_backfill, overlap = excluded.overlap,
       jitter_sec = excluded.jitter_sec,
       application_name = coalesce(s.application_name, excluded.application_name),
       is_declared = s.is_declared is true or excluded.is_declared,
       decided_until_epoch_ms =
           case when (s.schedule, s.cron_timezone)
                     is not distinct from (excluded.schedule, excluded.cron_timezone)
                then s.decided_until_epoch_ms else excluded.decided_until_epoch_ms end
 where """ + _OURS + """
   and ($6::text is null
        or coalesce((select v.version_name from dbos.application_versions v
                      where v.application_name = $2 or v.application_name is null
                      order by v.version_timestamp desc limit 1), $6) = $6)
   and (s.workflow_name, s.workflow_class_name, s.schedule, s.cron_timezone, s.queue_name,
        s.context, s.automatic_backfill, s.overlap, s.jitter_sec,
        coalesce(s.application_name, excluded.application_name),
        s.is_declared is true or excluded.is_declared)
       is distinct from
       (excluded.workflow_name, null, excluded.schedule, excluded.cron_timezone,
        excluded.queue_name, excluded.context, excluded.automatic_backfill, excluded.overlap,
        excluded.jitter_sec, s.application_name, s.is_declared)
"""

# Who has these names.
FIND_SCHEDULE_OWNERS: Final = """
select s.schedule_name, s.schedule_id, s.application_name
  from dbos.workflow_schedules s
 where s.schedule_name = any($1::text[])
"""

SET_SCHEDULE_STATUS: Final = """
update dbos.workflow_schedules s
   set status = $3,
       decided_until_epoch_ms =
           case when $3 = 'ACTIVE' and s.status <> 'ACTIVE'
                then """ + _NOW_MS + """ + $4::bigint else s.decided_until_epoch_ms end
 where s.schedule_name = $1 and """ + _OURS

DELETE_SCHEDULE: Final = """
delete from dbos.workflow_schedules s where s.schedule_name = $1 and """ + _OURS

# Declared by earlier code of application $2, and not by this.
FIND_UNDECLARED: Final = """
select s.schedule_name
  from dbos.workflow_schedules s
 where s.application_name = $2 and s.is_declared and s.schedule_name <> all($1::text[])
 order by s.schedule_name
"""

# --- firing -------------------------------------------------------------------------------------

# What the leader of application $2 has to fire, of these names or of all: when to look at each.
FETCH_PLANS: Final = """
select s.schedule_name, s.schedule, s.cron_timezone, s.decided_until_epoch_ms,
       s.held_epoch_ms is not null
  from dbos.workflow_schedules s
 where ($1::text[] is null or s.schedule_name = any($1)) and """ + _OURS + """
   and s.status = 'ACTIVE'
"""

# Who has locked a schedule is alone in deciding what of it fires. What another library wrote as a
# context has to be read by who fires.
_LOCKED: Final = """
select s.schedule_name, s.workflow_name, s.schedule, s.cron_timezone,
       case when starts_with(s.context, 'gA') then s.context end, s.automatic_backfill, s.overlap,
       s.decided_until_epoch_ms, s.held_epoch_ms, s.last_fired_at
  from dbos.workflow_schedules s
 where s.schedule_name = any($1::text[]) and """ + _OURS + """
"""
LOCK_SCHEDULES: Final = _LOCKED + " order by s.schedule_name for no key update"

# For the leader: somebody's open transaction must not hold up the others.
LOCK_ACTIVE_SCHEDULES: Final = _LOCKED + """
   and s.status = 'ACTIVE'
 order by s.schedule_name
   for no key update skip locked
"""

# The runs of these schedules that have not ended. Asked after the lock was had, so that it sees
# what the last who had it fired.
FIND_ACTIVE_RUNS: Final = """
select n.name, w.workflow_uuid
  from unnest($1::text[]) as n(name),
       lateral (select r.workflow_uuid from dbos.workflow_status r
                 where r.schedule_name = n.name
                   and r.status in ('PENDING', 'ENQUEUED', 'DELAYED') offset 0) w
"""

# Runs $1..$4 (ids, schedules, moments, inputs that are not made of the context), and what is
# decided of the schedules $5..$8. With $9 jitter holds: a run is delayed by a part of it that its
# id chooses. An id that is taken is a run that was fired before. A test may be $10 ahead.
FIRE: Final = """
with moment as materialized (
    select """ + _NOW_MS + """ + $10::bigint as ms
), decided as (
    update dbos.workflow_schedules s
       set decided_until_epoch_ms = d.decided_until, held_epoch_ms = d.held,
           last_fired_at = coalesce(d.last_fired_at, s.last_fired_at)
      from unnest($5::text[], $6::bigint[], $7::bigint[], $8::text[])
           as d(name, decided_until, held, last_fired_at)
     where s.schedule_name = d.name
), runs as materialized (
    select t.id, t.moment, t.inputs, t.place, s.schedule_name, s.workflow_name,
           s.workflow_class_name, s.context, s.queue_name, s.application_name,
           (extract(epoch from t.moment::timestamptz) * 1000
            + (hashtextextended(t.id, 0) & 65535) / 65536.0 * s.jitter_sec * 1000)::bigint as due
      from unnest($1::text[], $2::text[], $3::text[], $4::text[])
           with ordinality as t(id, name, moment, inputs, place)
      join dbos.workflow_schedules s on s.schedule_name = t.name
)
insert into dbos.workflow_status
       (workflow_uuid, status, name, class_name, inputs, queue_name, delay_until_epoch_ms,
        schedule_name, recovery_attempts, enqueue_order, serialization, application_name)
select r.id, case when $9::bool and r.due > m.ms then 'DELAYED' else 'ENQUEUED' end,
       r.workflow_name, r.workflow_class_name,
       coalesce(r.inputs, '{"positionalArgs":["' || r.moment || '",' || r.context
                          || '],"namedArgs":{}}'),
       coalesce(r.queue_name, '_dbos_internal_queue'),
       case when $9 and r.due > m.ms then r.due end,
       r.schedule_name, 0, (select nextval('dbos.workflow_order') * 1024) + r.place,
       'portable_json', r.application_name
  from runs r, moment m
 order by r.id
on conflict do nothing
returning queue_name, delay_until_epoch_ms
"""
