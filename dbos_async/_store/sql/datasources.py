"""Transactions of the user's: the step row in the same database, or a row of its own in another.

What runs on the user's connection has texts and numbers for parameters, and casts in words, because
that is what all drivers send alike.
"""

from typing import Final

# --- the same database --------------------------------------------------------------------------

# As RECORD_STEP, in the user's transaction: the last statement before its COMMIT. A process that
# stands still from here on holds the workflow's row, and whoever takes over waits for it; so the
# server ends such a transaction by itself.
RECORD_IN_TRANSACTION: Final = """
insert into dbos.operation_outputs
       (workflow_uuid, function_id, function_name, output, error, child_workflow_id,
        started_at_epoch_ms, completed_at_epoch_ms, step_key, arguments_digest, serialization,
        application_name)
select cast($1 as text), cast($2 as int), cast($3 as text), cast($4 as text), cast($5 as text),
       cast($6 as text), cast($7 as bigint), cast($8 as bigint), cast($9 as text),
       cast($10 as bigint), 'portable_json', cast($12 as text)
 where (select case w.status when 'PENDING' then w.owner_xid end
          from dbos.workflow_status w
         where w.workflow_uuid = cast($1 as text)
           for no key update) = cast($11 as text)
on conflict do nothing
returning set_config('idle_in_transaction_session_timeout', '10s', true)
"""

# Whether a connection leads to this database, by whatever name, port or proxy: one side takes a
# lock of a random number, the other looks for it.
TAKE_MARK: Final = "select pg_advisory_xact_lock($1)"
SEES_MARK: Final = """
select 1
  from pg_locks l
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and l.database = (select d.oid from pg_database d where d.datname = current_database())
   and (cast(l.classid as bigint) << 32) | cast(l.objid as bigint) = cast($1 as bigint)
"""

# What a transaction step needs in its own database, and its role lacks.
MISSING_GRANTS: Final = """
select g.wanted
  from (values ('usage', 'schema dbos', 1), ('select', 'workflow_status', 2),
               ('update', 'workflow_status', 3), ('insert', 'operation_outputs', 4))
       as n(privilege, name, place)
  left join pg_class c on c.relname = n.name and c.relnamespace = to_regnamespace('dbos'),
       lateral (select case when c.oid is null then has_schema_privilege('dbos', n.privilege)
                            else has_any_column_privilege(c.oid, n.privilege) end as is_there,
                       case when c.oid is null then n.privilege || ' on ' || n.name
                            else n.privilege || ' on dbos.' || n.name end as wanted) g
 where not g.is_there
 order by n.place
"""
WHO_ASKS: Final = "select cast(current_user as text)"

# --- another database ---------------------------------------------------------------------------

# Who these workflows are, if they are ours still: another after a rewind, or after a deletion.
FIND_INCARNATION: Final = """
select coalesce(w.creator_xid, cast(w.created_at as text))
  from dbos.workflow_status w
 where w.workflow_uuid = $1
   and case w.status when 'PENDING' then w.owner_xid end = $2
"""
# The same of a workflow that was cancelled, for who undoes what it did.
FIND_CANCELLED_INCARNATION: Final = """
select coalesce(w.creator_xid, cast(w.created_at as text))
  from dbos.workflow_status w
 where w.workflow_uuid = $1
"""
FETCH_SYSTEM: Final = "select cast(s.system_id as text) from dbos.dbos_async_schema s"

# The table's columns; no row if there is none.
FIND_OUTPUTS_TABLE: Final = """
select cast(a.attname as text), format_type(a.atttypid, null)
  from pg_class c join pg_attribute a on a.attrelid = c.oid
 where c.relname = 'datasource_outputs' and c.relnamespace = to_regnamespace('dbos')
   and a.attnum > 0 and not a.attisdropped
"""
LOCK_OUTPUTS_TABLE: Final = """
select cast(pg_advisory_xact_lock(hashtextextended('dbos.datasource_outputs', 0)) as text)
"""
# What a transaction step needs there, and its role lacks.
MISSING_OUTPUTS_GRANTS: Final = """
select g.wanted
  from (values ('usage', 'schema dbos', 1), ('select', 'datasource_outputs', 2),
               ('insert', 'datasource_outputs', 3), ('delete', 'datasource_outputs', 4))
       as n(privilege, name, place)
  left join pg_class c on c.relname = n.name and c.relnamespace = to_regnamespace('dbos'),
       lateral (select case when c.oid is null then has_schema_privilege('dbos', n.privilege)
                            else has_table_privilege(c.oid, n.privilege) end as is_there,
                       case when c.oid is null then n.privilege || ' on ' || n.name
                            else n.privilege || ' on dbos.' || n.name end as wanted) g
 where not g.is_there
 order by n.place
"""

# In the user's transaction, its last statement but COMMIT. No row: it is there already. As above,
# the server ends a transaction that does not go on from here.
INSERT_OUTPUT: Final = """
insert into dbos.datasource_outputs (workflow_id, step_id, output, serialization)
values (cast($1 as text), cast($2 as text), cast($3 as text), 'portable_json')
on conflict do nothing
returning set_config('idle_in_transaction_session_timeout', '10s', true)
"""
FIND_OUTPUT: Final = """
select o.output
  from dbos.datasource_outputs o
 where o.workflow_id = cast($1 as text) and o.step_id = cast($2 as text)
"""
LIMIT_LOCKS: Final = "select set_config('lock_timeout', '500ms', true)"

# Rows of ours, a page at a time: step ids that end with this system database's.
FETCH_OUTPUTS: Final = """
select o.workflow_id, o.step_id
  from dbos.datasource_outputs o
 where o.step_id like cast($1 as text)
   and (o.workflow_id, o.step_id) > (cast($2 as text), cast($3 as text))
 order by o.workflow_id, o.step_id
 limit 1000
"""
DELETE_OUTPUTS: Final = """
delete from dbos.datasource_outputs o
 using json_to_recordset(cast(cast($1 as text) as json)) as t(workflow_id text, step_id text)
 where o.workflow_id = t.workflow_id and o.step_id = t.step_id
"""

# Of these workflows' ($1) steps ($2) those that need no such row any more: they are recorded, or
# their workflow ended for good, or was deleted or rewound since ($3: who it was). One that was
# cancelled may be resumed, unless it was compensated, and who does that looks there, too. A fork's
# row without a key is a copy, and has none.
FIND_SPENT: Final = """
select t.place
  from unnest($1::text[], $2::text[], $3::text[]) with ordinality
       as t(workflow_uuid, step_key, incarnation, place)
  left join lateral (
       select w.status, w.forked_from, coalesce(w.creator_xid, w.created_at::text) as incarnation
         from dbos.workflow_status w
        where w.workflow_uuid = t.workflow_uuid offset 0) w on true
 where w.incarnation is distinct from t.incarnation
    or w.status in ('SUCCESS', 'ERROR')
    or w.status = 'CANCELLED' and coalesce((
           select true from dbos.workflow_status c
            where c.parent_workflow_id = t.workflow_uuid and c.name = 'DBOS.compensate'
              and c.status = 'SUCCESS' limit 1), false)
    or exists (select from dbos.operation_outputs o
                where o.workflow_uuid = t.workflow_uuid
                  and (o.step_key = t.step_key
                       or o.step_key is null and w.forked_from is null
                      and o.function_id::text = t.step_key))
 order by t.place
"""
