"""Listings and counts: which workflows, and a page of them.

A filter that was not given is NULL and lets everything through, so one statement serves them all;
but a statement that is planned for any filter cannot choose its index by them. So there is one for
each index that a listing may go by, and `_store/listing.py` chooses. `w.created_at + 0` keeps
the index of the walk out of the others.
"""

from typing import Final

# --- parts --------------------------------------------------------------------------------------

# $5 and $6 are the first and the last millisecond of creation. $7 is the id of the workflow after
# which the page begins, if that was created at the page's first millisecond; $8: newest first.
_IN_TIME: Final = """
           w.created_at between $5::bigint and $6::bigint
"""
_IN_TIME_BY_ANOTHER_INDEX: Final = _IN_TIME.replace("w.created_at", "w.created_at + 0")
_FITS: Final = """
       and ($7::text is null
            or case when $8::bool then w.created_at < $6 or w.workflow_uuid < $7
                    else w.created_at > $5 or w.workflow_uuid > $7 end)
       and ($1::text[] is null or w.status = any($1))
       and ($2::text[] is null or w.name = any($2))
       and ($3::text[] is null or w.queue_name = any($3))
       and ($4::text[] is null or w.workflow_uuid ^@ any($4))
       and ($9::text[] is null or w.workflow_uuid = any($9))
       and ($10::text[] is null or w.parent_workflow_id = any($10))
       and ($11::text[] is null or w.forked_from = any($11))
       and ($12::text[] is null or w.application_version = any($12))
       and ($13::text[] is null or w.executor_id = any($13))
       and ($14::text[] is null or w.authenticated_user = any($14))
       and ($15::text[] is null or w.schedule_name = any($15))
       and ($16::text[] is null or w.application_name = any($16))
       and ($17::bigint is null or w.completed_at >= $17)
       and ($18::bigint is null or w.completed_at <= $18)
       and ($19::bigint is null or w.started_at_epoch_ms >= $19)
       and ($20::bigint is null or w.started_at_epoch_ms <= $20)
       and ($21::bool is not true or w.queue_name is not null)
       and ($22::bool is null or w.was_forked_from = $22)
       and ($23::bool is null or (w.forked_from is not null) = $23)
       and ($24::bool is null or (w.parent_workflow_id is not null) = $24)
       and ($25::text is null or w.attributes @> $25::text::jsonb)
       and ($26::text[] is null or w.waiting_for = any($26)
            or split_part(w.waiting_for, ' ', 1) = any($26))
"""
_SORTED: Final = """
     order by case when $8 then -w.created_at else w.created_at + 0 end,
              case when $8 then w.workflow_uuid end desc, w.workflow_uuid
     limit $27::bigint offset $28::bigint
"""

# The rows of `page`. Arguments and results are as large as they like: only if asked for.
_ROWS_OF_PAGE: Final = """
select w.workflow_uuid, w.status, w.name, w.class_name, w.config_name,
       case when $29::bool then
           coalesce((select i.inputs from dbos.workflow_input i
                      where i.workflow_uuid = w.workflow_uuid), w.inputs) end,
       case when $30::bool then
           coalesce((select o.output from dbos.workflow_output o
                      where o.workflow_uuid = w.workflow_uuid), w.output) end,
       case when $30 then
           coalesce((select o.error from dbos.workflow_output o
                      where o.workflow_uuid = w.workflow_uuid), w.error) end,
       w.serialization, w.executor_id, w.application_version, w.application_name, w.queue_name,
       w.created_at, w.updated_at, w.started_at_epoch_ms, w.completed_at,
       w.workflow_timeout_ms, w.workflow_deadline_epoch_ms, w.delay_until_epoch_ms,
       w.deduplication_id, w.priority, w.queue_partition_key, w.recovery_attempts,
       w.parent_workflow_id, w.forked_from, w.attributes::text, w.authenticated_user,
       w.schedule_name, w.was_forked_from,
       case when w.status in ('PENDING', 'DELAYED') then w.waiting_for end,
       w.authenticated_roles, w.assumed_role
  from page p, lateral (select s.* from dbos.workflow_status s
                         where s.workflow_uuid = p.workflow_uuid offset 0) w
 order by case when $8 then -p.created_at else p.created_at + 0 end,
          case when $8 then p.workflow_uuid end desc, p.workflow_uuid
"""
_FROM: Final = """
    select w.workflow_uuid, w.created_at
      from dbos.workflow_status w
     where """

# --- pages --------------------------------------------------------------------------------------

# A walk through all workflows by age, which stops when it has enough.
LIST_NEWEST: Final = "with page as materialized (" + _FROM + _IN_TIME + _FITS + """
     order by w.created_at desc, w.workflow_uuid desc
     limit $27::bigint offset $28::bigint
)""" + _ROWS_OF_PAGE
LIST_OLDEST: Final = "with page as materialized (" + _FROM + _IN_TIME + _FITS + """
     order by w.created_at, w.workflow_uuid
     limit $27::bigint offset $28::bigint
)""" + _ROWS_OF_PAGE

# Some that an index knows, sorted.
LIST_THESE: Final = (
    "with page as materialized (" + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.workflow_uuid = any($9)
""" + _SORTED + ")" + _ROWS_OF_PAGE)
LIST_CHILDREN: Final = (
    "with page as materialized (" + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.parent_workflow_id = any($10)
""" + _SORTED + ")" + _ROWS_OF_PAGE)
LIST_FORKS: Final = (
    "with page as materialized (" + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.forked_from = any($11) and w.forked_from <> ''
""" + _SORTED + ")" + _ROWS_OF_PAGE)
LIST_TAGGED: Final = (
    "with page as materialized (" + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.attributes @> $25::text::jsonb
""" + _SORTED + ")" + _ROWS_OF_PAGE)

# Those in some states, none of them SUCCESS: all that have not ended, which are as many as there is
# work, and of the others a page each, by age.
_A_PAGE_OF_FAILED: Final = """
           lateral (""" + _FROM + _IN_TIME + _FITS + """
       and w.status = s.status
       and w.status in ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED')
"""
LIST_UNSUCCESSFUL: Final = (
    "with unsuccessful as (" + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.status = 'PENDING' and 'PENDING' = any($1)
    union all """ + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.status = 'ENQUEUED' and 'ENQUEUED' = any($1)
    union all """ + _FROM + _IN_TIME_BY_ANOTHER_INDEX + _FITS + """
       and w.status = 'DELAYED' and 'DELAYED' = any($1)
    union all
    select f.workflow_uuid, f.created_at
      from unnest(case when $8 then $1 end) as s(status),
""" + _A_PAGE_OF_FAILED + """
     order by w.created_at desc, w.workflow_uuid desc
     limit $27::bigint + $28::bigint) f
    union all
    select f.workflow_uuid, f.created_at
      from unnest(case when not $8 then $1 end) as s(status),
""" + _A_PAGE_OF_FAILED + """
     order by w.created_at, w.workflow_uuid
     limit $27::bigint + $28::bigint) f
), page as materialized (
    select w.workflow_uuid, w.created_at from unsuccessful w
""" + _SORTED + ")" + _ROWS_OF_PAGE)

# --- counts -------------------------------------------------------------------------------------

# By the columns that $27 names, and by spans of $28 ms of creation. All that fit are looked at.
COUNT_WORKFLOWS: Final = """
select count(*),
       case when 'status' = any($27::text[]) then w.status end as status,
       case when 'name' = any($27) then w.name end as name,
       case when 'queue_name' = any($27) then w.queue_name end as queue_name,
       case when 'app_version' = any($27) then w.application_version end as app_version,
       case when 'executor_id' = any($27) then w.executor_id end as executor_id,
       case when 'application_name' = any($27) then w.application_name end as application_name,
       w.created_at - w.created_at % $28::bigint as bucket
  from dbos.workflow_status w
 where """ + _IN_TIME + _FITS + """
 group by 2, 3, 4, 5, 6, 7, 8
"""
