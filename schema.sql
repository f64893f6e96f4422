-- The system database of dbos_async: what the durable workflows of an application are made of.
--
-- A workflow is one row of workflow_status. Each step that it finishes adds one row to
-- operation_outputs, and a process that takes the workflow over reads those rows instead of
-- running the steps again. Everything else is what workflows exchange while they run (messages,
-- events, streams) and what an application declares (queues, schedules, versions).
--
-- The names and columns are those of DBOS Transact at version 125 of its system database, so that
-- its clients, in any language, can work with the workflows kept here, and so that a database that
-- it made can be adopted as it is. What is ours on top: the columns at the end of part 1, the
-- indexes of part 2, and what is called dbos_async_…. Workflow ids are called workflow_uuid,
-- destination_uuid or workflow_id here; steps are called operations and functions. Times are
-- milliseconds since 1970 by this database's clock, which is the only one that decides anything.
--
-- How a workflow moves through `status`:
--
--     DELAYED ──▶ ENQUEUED ──▶ PENDING ──▶ SUCCESS, ERROR
--     (not before  (waits for   (runs, or     CANCELLED: by a user or a deadline
--      its time)    a worker)    its process  MAX_RECOVERY_ATTEMPTS_EXCEEDED: its processes
--         ▲                      died)          died too often
--         └── parked: waits long ──┘
--
-- An executor owns a PENDING row while owner_xid is the token that it wrote there. Whoever takes
-- the workflow over replaces the token; writes that carry an older one do not land.
--
-- Lock order: workflow_status before operation_outputs before all the others; within a table, rows
-- in the order of their keys. A statement that needs several rows sorts before it locks.
--
-- The file is idempotent and asks for no extension and no superuser; Postgres 14 or newer, UTF-8.
-- It may be applied with psql. A launch that finds the version of part 3 runs none of it: even a
-- statement that changes nothing queues for locks, and everybody's writes queue behind it. The
-- parts are told apart by their headings, and _store/schema.py reads the names of tables, columns,
-- indexes and functions from here: keep one column a line, indented by four.


-- Part 1. Tables and functions

-- CREATE SCHEMA IF NOT EXISTS would ask for the right to create even where the schema exists.
do $$
begin
    if to_regnamespace('dbos') is null then
        create schema dbos;
    end if;
end
$$;

-- One row a workflow. Written by whoever starts or enqueues it, then by the executor that owns it,
-- by cancel, resume, fork and rewind, and by the leader (recovery, delays, deadlines). Deleted by
-- delete_workflow and by pruning; that takes along the rows of the four tables that refer to it,
-- while operation_outputs, workflow_input and workflow_output must be deleted by name.
-- We write inputs, output and error inline and read them as
-- coalesce(workflow_input or workflow_output, inline), because other clients write there.
create table if not exists dbos.workflow_status (
    workflow_uuid text primary key,
    status text,
    name text,
    authenticated_user text,
    assumed_role text,
    authenticated_roles text,
    request text,
    output text,
    error text,
    executor_id text,
    created_at bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    updated_at bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    application_version text,
    application_id text,
    class_name varchar(255) default null,
    config_name varchar(255) default null,
    recovery_attempts bigint default 0,
    queue_name text,
    workflow_timeout_ms bigint,
    workflow_deadline_epoch_ms bigint,
    inputs text,
    started_at_epoch_ms bigint,
    deduplication_id text,
    priority integer not null default 0,
    queue_partition_key text,
    forked_from text,
    owner_xid text,
    parent_workflow_id text,
    serialization text,
    delay_until_epoch_ms bigint,
    was_forked_from boolean not null default false,
    rate_limited boolean not null default false,
    completed_at bigint,
    attributes jsonb,
    schedule_name text,
    debounce_deadline_epoch_ms bigint,
    is_debounced boolean not null default false,
    application_name text,
    creator_xid text
);

-- Arguments as other clients write them, and those of debounced workflows whoever wrote them: each
-- call replaces the last one's, and a replacement must be where the first reader looks.
create table if not exists dbos.workflow_input (
    workflow_uuid text primary key,
    inputs text,
    retention_timestamp bigint not null default (extract(epoch from now()) * 1000.0)::bigint
);

-- Results as other executors write them.
create table if not exists dbos.workflow_output (
    workflow_uuid text primary key,
    output text,
    error text,
    retention_timestamp bigint not null default (extract(epoch from now()) * 1000.0)::bigint
);

-- One row a finished step: the checkpoint. Written once, by the owner of the workflow, under a lock
-- on its row in workflow_status; copied by fork. No foreign key: checking it would cost as much
-- as the insert.
create table if not exists dbos.operation_outputs (
    workflow_uuid text not null,
    function_id integer not null,
    function_name text not null default '',
    output text,
    error text,
    child_workflow_id text,
    started_at_epoch_ms bigint,
    completed_at_epoch_ms bigint,
    serialization text,
    application_name text,
    retention_timestamp bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    primary key (workflow_uuid, function_id)
);

-- Messages to workflows. Inserted by anybody who sends, marked consumed by the workflow that
-- receives, together with the step row of that receipt.
create table if not exists dbos.notifications (
    message_uuid text primary key default gen_random_uuid(),
    destination_uuid text not null,
    topic text,
    message text not null,
    created_at_epoch_ms bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    serialization text,
    consumed boolean not null default false,
    consumed_by_function_id integer,
    foreign key (destination_uuid) references dbos.workflow_status (workflow_uuid)
        on update cascade on delete cascade
);

-- What a workflow publishes under a key: the latest value, for everybody to read.
create table if not exists dbos.workflow_events (
    workflow_uuid text not null,
    key text not null,
    value text not null,
    serialization text,
    primary key (workflow_uuid, key),
    foreign key (workflow_uuid) references dbos.workflow_status (workflow_uuid)
        on update cascade on delete cascade
);

-- Every value of every event, with the step that set it: what a fork starts from.
create table if not exists dbos.workflow_events_history (
    workflow_uuid text not null,
    function_id integer not null,
    key text not null,
    value text not null,
    serialization text,
    primary key (workflow_uuid, function_id, key),
    foreign key (workflow_uuid) references dbos.workflow_status (workflow_uuid)
        on update cascade on delete cascade
);

-- What a workflow streams out under a key, in order.
create table if not exists dbos.streams (
    workflow_uuid text not null,
    key text not null,
    value text not null,
    "offset" integer not null,
    function_id integer not null default 0,
    serialization text,
    primary key (workflow_uuid, key, "offset"),
    foreign key (workflow_uuid) references dbos.workflow_status (workflow_uuid)
        on update cascade on delete cascade
);

-- One row a schedule. Declared and deleted by applications; the leader notes when it last fired. It
-- is locked before rows of workflow_status, by whoever fires it; nobody takes the two the other way
-- round.
create table if not exists dbos.workflow_schedules (
    schedule_id text primary key,
    schedule_name text not null unique,
    workflow_name text not null,
    workflow_class_name text,
    schedule text not null,
    status text not null default 'ACTIVE',
    context text not null,
    last_fired_at text,
    automatic_backfill boolean not null default false,
    cron_timezone text,
    queue_name text,
    application_name text
);

-- One row a version of an application's code, added when it first launches. The newest takes the
-- work that names no version.
create table if not exists dbos.application_versions (
    version_id text primary key,
    version_name text not null unique,
    version_timestamp bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    created_at bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    application_name text
);

-- One row a queue: its limits. Declared by applications, changed while they run.
create table if not exists dbos.queues (
    queue_id text primary key default gen_random_uuid()::text,
    name text not null unique,
    concurrency integer,
    worker_concurrency integer,
    rate_limit_max integer,
    rate_limit_period_sec double precision,
    priority_enabled boolean not null default false,
    partition_queue boolean not null default false,
    polling_interval_sec double precision not null default 1.0,
    created_at bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    updated_at bigint not null default (extract(epoch from now()) * 1000.0)::bigint,
    application_name text,
    partition_concurrency integer,
    partition_worker_concurrency integer,
    partition_rate_limit_max integer,
    partition_rate_limit_period_sec double precision
);

-- Unused; part of the layout.
create table if not exists dbos.event_dispatch_kv (
    service_name text not null,
    workflow_fn_name text not null,
    key text not null,
    value text,
    update_seq numeric(38, 0),
    update_time numeric(38, 15),
    primary key (service_name, workflow_fn_name, key)
);

-- The version of the shared layout, one row. Other clients refuse or migrate an older one, so it is
-- written where there is none and never lowered.
create table if not exists dbos.dbos_migrations (
    version bigint primary key
);

insert into dbos.dbos_migrations (version)
select 125 where not exists (select from dbos.dbos_migrations);

-- The version of this file that the database has, one row. See part 3.
create table if not exists dbos.dbos_async_schema (
    only_row boolean primary key default true check (only_row),
    version integer not null
);

--     system_id  which system database this is: rows of transaction steps in other databases say
--                whose they are
alter table dbos.dbos_async_schema
    add column if not exists system_id uuid not null default gen_random_uuid();

-- Breaks ties between workflows that were enqueued in the same millisecond. Taken by our enqueues
-- only: other clients may lack the right to use it, and a direct start has no place in a line.
create sequence if not exists dbos.workflow_order;

-- Numbers messages as they arrive, whoever sends them, so everybody may use it.
create sequence if not exists dbos.message_order;
grant usage on sequence dbos.message_order to public;

-- Our columns. None is required and none is added with a default, so that adding them to an adopted
-- table rewrites nothing and other clients need not know them.
--     root_workflow_id    seeds the deterministic ids and random numbers of a workflow that was
--                         forked; NULL: its own id
--     enqueue_order       from the sequence above; NULL sorts after all others of its millisecond
--     waiting_for         what a workflow waits for that has begun. One that has a process and does
--                         not count as running: 'workflow', others that it enqueued; 'slot', to go
--                         on. One that is parked, so DELAYED and nobody's: 'sleep', or before its
--                         time 'message <topic>', 'message' without one, 'event <workflow> <key>'
--     in_line_at          when a workflow that was parked was due, or woken: it stands in line since
--                         then; NULL: since it was created
--     recovered_position  the last function_id at the latest recovery: a recovery that finds a
--                         higher one starts counting attempts anew
alter table dbos.workflow_status
    add column if not exists root_workflow_id text,
    add column if not exists enqueue_order bigint,
    add column if not exists waiting_for text,
    add column if not exists in_line_at bigint,
    add column if not exists recovered_position integer;

--     step_key            which step this is, by its place in the task tree; NULL: exactly
--                         function_id::text. function_id only puts the rows in order
--     arguments_digest    of the encoded arguments: a replay that calls the step with others has
--                         diverged; NULL: they could not be encoded
alter table dbos.operation_outputs
    add column if not exists step_key text,
    add column if not exists arguments_digest bigint;

--     message_order  from the sequence above; NULL, of messages older than it, comes first
alter table dbos.notifications
    add column if not exists message_order bigint;
alter table dbos.notifications alter message_order set default nextval('dbos.message_order');

--     is_paused                      nothing is claimed; what runs goes on
--     worker_rate_limit_max          starts within a period, in each process
--     worker_rate_limit_period_sec   that period
alter table dbos.queues
    add column if not exists is_paused boolean,
    add column if not exists worker_rate_limit_max integer,
    add column if not exists worker_rate_limit_period_sec double precision;

--     overlap                 what a due run does while an earlier one has not ended: 'allow' (NULL),
--                             'skip', 'buffer_one', 'cancel_previous'
--     jitter_sec              a run begins up to this many seconds after it is due
--     decided_until_epoch_ms  whatever was due up to then has fired, or never will
--     held_epoch_ms           when that was due which buffer_one holds back
--     is_declared             by the code of its application, which writes it down at each launch
alter table dbos.workflow_schedules
    add column if not exists overlap text,
    add column if not exists jitter_sec double precision,
    add column if not exists decided_until_epoch_ms bigint,
    add column if not exists held_epoch_ms bigint,
    add column if not exists is_declared boolean;

-- Tokens that are out, one row a claim. A bucket is a rate limit: of a queue, or of one partition
-- of it. It has its limit less what was taken within the last period, so a token is back a period
-- after it was taken. Whoever takes deletes what is back, under the advisory lock of the queue.
-- Apart from the workflows, because cancel, resume and delete must not give tokens back.
create table if not exists dbos.dbos_async_tokens (
    bucket text not null,
    partition_key text not null default '',
    taken_at_epoch_ms bigint not null,
    tokens integer not null
);

-- Tokens of limiters of steps that are out, one row a lease: some were or will be used until its
-- end, and all are back a period after that. A process settles a lease of its own when it is over:
-- what was used is added to a row named 'used …', the rest is back. Whoever leases deletes what is
-- back, under the advisory lock of the limiter, as all who write here.
create table if not exists dbos.dbos_async_leases (
    limiter text not null,
    lease_id text not null,
    tokens integer not null,
    ends_at_epoch_ms bigint not null,
    primary key (limiter, lease_id)
);

-- Permits of limiters of steps, one row an executor: how many calls it may make at a time, and how
-- many it would make. Written by the executor; deleted by it at its launch and shutdown, and by
-- anybody who sees that its lock is gone. Same lock.
create table if not exists dbos.dbos_async_permits (
    limiter text not null,
    executor_id text not null,
    held integer not null,
    wanted integer not null,
    primary key (limiter, executor_id)
);

-- Objects that large values lie in, outside of this database: inputs and outputs of workflows and
-- steps then hold a reference, 'dbos_async payload {…}', which is no JSON, so that no value is ever
-- taken for one. One row an object and a workflow that has it, committed before the object is
-- uploaded; a fork has those of its source. An object is deleted once no workflow of its rows exists,
-- and before its rows are: by whoever deletes the workflow, or else by a sweep. A sweep that has
-- begun says is_doomed; from then on nobody may come to refer to the object. The row of a store whose
-- object and workflow are '' says when its last sweep began.
create table if not exists dbos.dbos_async_payloads (
    store text not null,
    object_key text not null,
    workflow_id text not null,
    created_at_epoch_ms bigint not null
        default (extract(epoch from clock_timestamp()) * 1000)::bigint,
    is_doomed boolean not null default false,
    primary key (object_key, workflow_id, store)
);

-- What sagas will undo if they fail, one row a compensation that is open. Written by the workflow,
-- together with the step that registers it; deleted together with the step that ends its saga, or,
-- when the workflow was cancelled, by the workflow that compensates it (see dbos_async_compensate).
--     step_key     under which the workflow itself records the compensation
--     function_id  of the step that registered it: the latest is undone first
--     saga         which saga of the workflow it belongs to
create table if not exists dbos.dbos_async_compensations (
    workflow_uuid text not null,
    step_key text not null,
    function_id integer not null,
    saga text not null,
    name text not null,
    class_name text,
    config_name text,
    inputs text not null,
    primary key (workflow_uuid, step_key),
    foreign key (workflow_uuid) references dbos.workflow_status (workflow_uuid)
        on update cascade on delete cascade
);

-- Executors: the processes that run workflows, one row each, written at the launch and deleted at the
-- shutdown, or by the leader once nothing of a dead one is left. Which of them live, its lock says,
-- or, where sessions are not its own (lease_ms is not null), that it was seen within its lease.
--     boot                what all owner tokens of that launch begin with
--     last_seen_epoch_ms  of a row with a lease; else pg_stat_activity knows
--     is_deactivated      it takes nothing new, until its next launch
create table if not exists dbos.dbos_async_executors (
    executor_id text primary key,
    application_name text not null,
    application_version text not null,
    hostname text not null,
    process_id integer not null,
    boot text not null,
    started_at_epoch_ms bigint not null,
    last_seen_epoch_ms bigint not null,
    lease_ms bigint
);
alter table dbos.dbos_async_executors
    add column if not exists is_deactivated boolean not null default false;

-- The executors that live, by the key of their advisory lock.
create or replace view dbos.dbos_async_alive as
select (l.classid::bigint << 32) | l.objid::bigint as key, l.pid as backend
  from pg_locks l
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and l.mode = 'ExclusiveLock'
   and l.database = (select d.oid from pg_database d where d.datname = current_database())
union all
select hashtextextended('dbos_async executor ' || e.executor_id, 0), null
  from dbos.dbos_async_executors e
 where e.last_seen_epoch_ms + e.lease_ms
       > (select (extract(epoch from clock_timestamp()) * 1000)::bigint);

-- The same for people: who runs, since when, last seen when, and how many workflows it has.
create or replace view dbos.executors as
select e.executor_id, e.application_name, e.application_version, e.hostname, e.process_id,
       to_timestamp(e.started_at_epoch_ms / 1000.0) as started_at,
       coalesce(s.state_change, to_timestamp(e.last_seen_epoch_ms / 1000.0)) as last_seen_at,
       a.key is not null as is_alive,
       (select count(*) from dbos.workflow_status w
         where w.status = 'PENDING' and w.executor_id = e.executor_id) as workflows,
       e.is_deactivated
  from dbos.dbos_async_executors e
  left join dbos.dbos_async_alive a
    on a.key = hashtextextended('dbos_async executor ' || e.executor_id, 0)
  left join pg_stat_activity s on s.pid = a.backend;

-- Vacuum of the tables that change most. Each workflow leaves a dead row of workflow_status, and its
-- entries in most indexes, for each state that it passed through; of the others pruning makes dead
-- rows. By default vacuum comes when a fifth of a table is dead: of ten million rows kept, two
-- million that claims and recovery pass in the small indexes of what waits and runs. At a twentieth,
-- tables and indexes are 15 % smaller for 30 % more vacuums, and grow no more from the second time on
-- that they are filled (50,000 kept, six times as many processed). A thousand rows are added, or small
-- tables would be vacuumed every minute. workflow_events leaves room in its pages for the next value
-- of a key: 94 % of updates then write no index, against 34 %, and the table is a seventh as large
-- (2,000 keys, 50 values each). Room is of no use to the others: workflow_status has its state in the
-- conditions of indexes, so none of 199,000 updates was spared them. What somebody else has set stays.
do $$
declare
    hot text;
begin
    for hot in
        select c.relname from pg_class c
         where c.relnamespace = 'dbos'::regnamespace
           and c.relname in ('workflow_status', 'operation_outputs', 'workflow_input',
                             'workflow_output', 'notifications', 'workflow_events',
                             'workflow_events_history', 'streams')
           and coalesce(c.reloptions::text, '') not like '%autovacuum_vacuum_scale_factor%'
         order by c.relname
    loop
        execute format('alter table dbos.%I set (autovacuum_vacuum_scale_factor = 0.05, '
                       'autovacuum_vacuum_threshold = 1000, '
                       'toast.autovacuum_vacuum_scale_factor = 0.05)', hot);
        if hot = 'workflow_events' then
            alter table dbos.workflow_events set (fillfactor = 80);
        end if;
    end loop;
end
$$;

-- Version 1 had other indexes for what the same ones of part 2 do now.
drop index if exists dbos.dbos_async_claimable, dbos.dbos_async_rate_limited,
    dbos.dbos_async_mailbox;

-- Enqueues a workflow from SQL, for instance from a trigger or in the transaction that causes it.
-- The caller's own rights apply. An id that is taken is left as it is, so that a repeated call is
-- harmless; the id is returned either way. It is not even locked: a claim would skip the row just
-- then, and nothing would wake the worker again.
create or replace function dbos.enqueue_workflow(
    workflow_name text,
    queue_name text,
    positional_args json[] default array[]::json[],
    named_args json default '{}'::json,
    class_name text default null,
    config_name text default null,
    workflow_id text default null,
    app_version text default null,
    timeout_ms bigint default null,
    deadline_epoch_ms bigint default null,
    deduplication_id text default null,
    priority integer default null,
    queue_partition_key text default null,
    authenticated_user text default null,
    authenticated_roles text default null,
    delay_until_epoch_ms bigint default null,
    application_name text default null
) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    new_id constant text := coalesce(workflow_id, gen_random_uuid()::text);
    arguments constant text := json_build_object(
        'positionalArgs', coalesce(to_json(positional_args), '[]'),
        'namedArgs', coalesce(named_args, '{}')
    );
begin
    if coalesce(workflow_name, '') = '' then
        raise exception 'workflow_name must be given';
    elsif coalesce(queue_name, '') = '' then
        raise exception 'queue_name must be given';
    elsif workflow_id = '' then
        raise exception 'workflow_id must not be empty; NULL makes a new one';
    elsif json_typeof(named_args) <> 'object' then
        raise exception 'named_args must be a JSON object, not %', json_typeof(named_args);
    elsif delay_until_epoch_ms < 0 then
        raise exception 'delay_until_epoch_ms must not be negative';
    elsif timeout_ms < 0 then
        raise exception 'timeout_ms must not be negative';
    elsif priority < 0 then
        raise exception 'priority must not be negative; 1 goes first, and what has none before it';
    end if;

    insert into dbos.workflow_status
           (workflow_uuid, status, name, class_name, config_name, queue_name,
            application_name, application_version, priority, queue_partition_key,
            deduplication_id, workflow_timeout_ms, workflow_deadline_epoch_ms,
            delay_until_epoch_ms, authenticated_user, authenticated_roles,
            serialization, owner_xid)
    values (new_id,
            case when delay_until_epoch_ms is null then 'ENQUEUED' else 'DELAYED' end,
            workflow_name, class_name, config_name, queue_name,
            application_name, app_version, coalesce(priority, 0), queue_partition_key,
            deduplication_id, timeout_ms, deadline_epoch_ms,
            delay_until_epoch_ms, authenticated_user, authenticated_roles,
            'portable_json', gen_random_uuid()::text)
    on conflict (workflow_uuid) do nothing;

    insert into dbos.workflow_input (workflow_uuid, inputs)
    values (new_id, arguments)
    on conflict (workflow_uuid) do nothing;

    return new_id;
exception
    when unique_violation then
        raise exception 'DBOS queue duplicated' using
            errcode = 'unique_violation',
            detail = format('queue %s already holds a workflow with the deduplication id %s, '
                            'so workflow %s was not enqueued',
                            queue_name, deduplication_id, new_id);
end
$$;

-- Sends a message to a workflow from SQL. One that names a message_id is sent once, however often
-- this is called.
create or replace function dbos.send_message(
    destination_id text,
    message json,
    topic text default null,
    message_id text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into dbos.notifications
           (message_uuid, destination_uuid, topic, message, serialization)
    values (coalesce(message_id, gen_random_uuid()::text), destination_id,
            coalesce(topic, '__null__topic__'), message, 'portable_json')
    on conflict (message_uuid) do nothing;
exception
    when foreign_key_violation then
        raise exception 'DBOS non-existent workflow' using
            errcode = 'foreign_key_violation',
            detail = format('there is no workflow %s to send a message to', destination_id);
end
$$;

-- Pruning: workflows that ended long ago, or of which there are newer ones enough, are deleted in
-- small transactions, so that nobody waits long for a lock of theirs. The leader and the command
-- line call the inner functions, SQL the last two. An age is counted from the end of a workflow, a
-- number by the time of creation. What pruning walks along is the index of that: a position is the
-- time and the id of the last workflow that it looked at, and what stays is looked at once a round.
--
-- What has not ended stays, and so does whom somebody needs that stays (dbos_async_unneeded). Two that
-- prune at a time do no harm: each skips what the other has locked, and deletes only the versions of
-- rows that it has looked at, or, before that, has written to an archive.

-- Whether a policy lets a workflow go. failed_cutoff_ms is for those that failed; NULL: they are as
-- the others.
create or replace function dbos.dbos_async_is_past(
    status text, created_at bigint, workflow_id text, ended_at bigint,
    cutoff_ms bigint, boundary_ms bigint, boundary_id text, failed_cutoff_ms bigint
) returns boolean
language sql immutable
return case
    when status = 'SUCCESS'
         or failed_cutoff_ms is null
         and status in ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED')
    then ended_at < cutoff_ms or (created_at, workflow_id) <= (boundary_ms, boundary_id)
    when status in ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED')
    then ended_at < failed_cutoff_ms
    else false end;

-- Where a policy draws its lines at this moment; -1 where it draws none. To find the boundary of
-- max_rows is to walk past that many workflows, so it is found once a round.
create or replace function dbos.dbos_async_limits(
    max_age_ms bigint, max_rows bigint, keep_failed_ms bigint, application text,
    out cutoff_ms bigint, out boundary_ms bigint, out boundary_id text, out failed_cutoff_ms bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $$
declare
    now_ms constant bigint := (extract(epoch from clock_timestamp()) * 1000)::bigint;
begin
    cutoff_ms := coalesce(now_ms - max_age_ms, -1);
    failed_cutoff_ms := now_ms - keep_failed_ms;
    if max_rows is not null then
        select w.created_at, w.workflow_uuid into boundary_ms, boundary_id
          from dbos.workflow_status w
         where (w.status = 'SUCCESS'
                or keep_failed_ms is null
                and w.status in ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED'))
           and (application is null
                or w.application_name = application or w.application_name is null)
         order by w.created_at desc, w.workflow_uuid desc
        offset max_rows limit 1;
    end if;
    boundary_ms := coalesce(boundary_ms, -1);
    boundary_id := coalesce(boundary_id, '');
end
$$;

-- The same of a policy as SQL gives it.
create or replace function dbos.dbos_async_limits_of(
    max_age interval, max_rows bigint, keep_failed interval, application text,
    out cutoff_ms bigint, out boundary_ms bigint, out boundary_id text, out failed_cutoff_ms bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if max_age is null and max_rows is null then
        raise exception 'max_age or max_rows must be given: without a limit nothing is pruned';
    elsif max_age < interval '0' or max_rows < 0 or keep_failed < interval '0' then
        raise exception 'max_age, max_rows and keep_failed must not be negative';
    end if;
    select * into cutoff_ms, boundary_ms, boundary_id, failed_cutoff_ms
      from dbos.dbos_async_limits(
           case when max_age is not null
                then (least(extract(epoch from max_age), 1e11) * 1000)::bigint end,
           max_rows,
           case when keep_failed is not null
                then (least(extract(epoch from keep_failed), 1e11) * 1000)::bigint end,
           application);
end
$$;

-- Which of these, all of which have ended, nobody needs who stays. There stay
--     a parent of a child that has not ended, which may need what the parent left;
--     the source of a fork that has not ended: what another client forked reads its step keys;
--     who has open compensations: nothing else tells what is to be undone;
--     a child of whoever stays, who may ask for its result, or be resumed or rewound.
-- So of a parent that stays the whole tree does, and a parent that is gone keeps nobody.
create or replace function dbos.dbos_async_unneeded(workflow_ids text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
    return array(
        with recursive asked as materialized (
            select w.workflow_uuid as id, w.parent_workflow_id as parent, w.created_at,
                   exists (select from dbos.workflow_status c
                            where c.parent_workflow_id = w.workflow_uuid
                              and c.status in ('PENDING', 'ENQUEUED', 'DELAYED') offset 0)
                   or w.was_forked_from
                   and exists (select from dbos.workflow_status f
                                where f.forked_from = w.workflow_uuid and f.forked_from <> ''
                                  and f.status in ('PENDING', 'ENQUEUED', 'DELAYED'))
                   or exists (select from dbos.dbos_async_compensations c
                               where c.workflow_uuid = w.workflow_uuid)
                   or w.parent_workflow_id <> all(workflow_ids)
                   and exists (select from dbos.workflow_status p
                                where p.workflow_uuid = w.parent_workflow_id offset 0) as stays
              from dbos.workflow_status w
             where w.workflow_uuid = any(workflow_ids)
        ), staying(id) as (
            select a.id from asked a where a.stays
            union
            select a.id from staying s join asked a on a.parent = s.id
        )
        select a.id from asked a
         where a.id not in (select s.id from staying s)
         order by a.created_at, a.id);
end
$$;

-- The next workflows that may go, with the versions of what was looked at, since nothing is locked;
-- and where the look came to. It ends after so many workflows, or so many rows to be deleted
-- (NULL: whatever they are), but for a workflow that alone has more.
create or replace function dbos.dbos_async_find_prunable(
    cutoff_ms bigint, boundary_ms bigint, boundary_id text, failed_cutoff_ms bigint,
    application text, after_ms bigint, after_id text, looks integer, most_rows integer,
    out workflow_ids text[], out versions text[],
    out reached_ms bigint, out reached_id text, out is_last boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $$
declare
    workflow record;
    looked integer := 0;
    found_rows bigint := 0;
begin
    workflow_ids := '{}';
    versions := '{}';
    reached_ms := after_ms;
    reached_id := after_id;
    for workflow in
        select w.workflow_uuid as id, w.xmin::text as version, w.created_at,
               dbos.dbos_async_is_past(w.status, w.created_at, w.workflow_uuid,
                                       coalesce(w.completed_at, w.updated_at), cutoff_ms,
                                       boundary_ms, boundary_id, failed_cutoff_ms)
               and (application is null
                    or w.application_name = application or w.application_name is null) as is_past
          from dbos.workflow_status w
         where w.created_at >= after_ms
           and w.created_at <= greatest(cutoff_ms, boundary_ms, failed_cutoff_ms)
           and (w.created_at > after_ms or w.workflow_uuid > after_id)
         order by w.created_at, w.workflow_uuid
         limit looks
    loop
        if workflow.is_past then
            if most_rows is not null then
                found_rows := found_rows + 1 + (
                    select coalesce(max(o.function_id), 0)  -- counts them, and reads one
                      from dbos.operation_outputs o where o.workflow_uuid = workflow.id) + (
                    select count(*)
                      from (select from dbos.streams s where s.workflow_uuid = workflow.id
                            union all
                            select from dbos.workflow_events_history h
                             where h.workflow_uuid = workflow.id
                            union all
                            select from dbos.notifications n where n.destination_uuid = workflow.id
                             limit most_rows) r);
                exit when found_rows > most_rows and cardinality(workflow_ids) > 0;
            end if;
            workflow_ids := workflow_ids || workflow.id;
            versions := versions || workflow.version;
        end if;
        looked := looked + 1;
        reached_ms := workflow.created_at;
        reached_id := workflow.id;
    end loop;
    is_last := looked < looks and (most_rows is null or found_rows <= most_rows);
    workflow_ids := dbos.dbos_async_unneeded(workflow_ids);
end
$$;

-- Deletes what was found, if the rows are the same still, nobody holds them, and nobody has come
-- meanwhile who needs them; how many that were.
create or replace function dbos.dbos_async_delete_prunable(workflow_ids text[], versions text[])
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    doomed text[];
begin
    doomed := array(
        select w.workflow_uuid
          from dbos.workflow_status w
         where w.workflow_uuid = any(workflow_ids)
           and w.xmin::text in (select unnest(versions))
         order by w.workflow_uuid
           for update of w skip locked);
    doomed := dbos.dbos_async_unneeded(doomed);
    delete from dbos.operation_outputs o where o.workflow_uuid = any(doomed);
    delete from dbos.workflow_input i where i.workflow_uuid = any(doomed);
    delete from dbos.workflow_output o where o.workflow_uuid = any(doomed);
    delete from dbos.workflow_status w where w.workflow_uuid = any(doomed);
    return cardinality(doomed);
end
$$;

-- One batch after a position: found and deleted a little at a time, until so many are deleted. Its
-- locks are held for 25 ms and little longer: the time counts from the first look that found any, or,
-- for whoever waits for it to go on, ten times as long from the beginning.
create or replace function dbos.dbos_async_prune_some(
    cutoff_ms bigint, boundary_ms bigint, boundary_id text, failed_cutoff_ms bigint,
    application text, after_ms bigint, after_id text, most integer,
    out deleted integer, out reached_ms bigint, out reached_id text, out is_last boolean
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    ends_at timestamptz := clock_timestamp() + interval '250 milliseconds';
    began timestamptz;
    found record;
begin
    deleted := 0;
    reached_ms := after_ms;
    reached_id := after_id;
    loop
        began := clock_timestamp();
        found := dbos.dbos_async_find_prunable(cutoff_ms, boundary_ms, boundary_id, failed_cutoff_ms,
                                               application, reached_ms, reached_id,
                                               least(200, most - deleted), 2000);
        if deleted = 0 and cardinality(found.workflow_ids) > 0 then
            ends_at := clock_timestamp() + interval '25 milliseconds';
        end if;
        deleted := deleted + dbos.dbos_async_delete_prunable(found.workflow_ids, found.versions);
        reached_ms := found.reached_ms;
        reached_id := found.reached_id;
        is_last := found.is_last;
        exit when is_last or deleted >= most
               or clock_timestamp() + (clock_timestamp() - began) > ends_at;  -- by the next look
    end loop;
end
$$;

-- Prunes one batch, of at most batch_size and of as many as take 25 ms: workflows that ended longer
-- than max_age ago, or of which max_rows newer ones are kept. Those that failed (ERROR, CANCELLED,
-- dead letters) go like all others, or keep_failed after their end; `interval '1000 years'` keeps
-- them. application_name: of that application, and of none; NULL: of all. How many were deleted,
-- whether there may be more, and where it came to: given as after_ms and after_id, the next call goes
-- on there. Nothing before it is deleted then.
create or replace function dbos.prune(
    max_age interval default null,
    max_rows bigint default null,
    keep_failed interval default null,
    batch_size integer default 1000,
    application_name text default null,
    after_ms bigint default 0,
    after_id text default '',
    out deleted integer,
    out is_last boolean,
    out reached_ms bigint,
    out reached_id text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    past record;
    batch record;
begin
    if batch_size is null or batch_size not between 1 and 10000 then
        raise exception 'batch_size must be from 1 to 10000';
    end if;
    past := dbos.dbos_async_limits_of(max_age, max_rows, keep_failed, application_name);
    reached_ms := coalesce(after_ms, 0);
    reached_id := coalesce(after_id, '');
    loop
        batch := dbos.dbos_async_prune_some(
            past.cutoff_ms, past.boundary_ms, past.boundary_id, past.failed_cutoff_ms,
            application_name, reached_ms, reached_id, batch_size);
        deleted := batch.deleted;
        is_last := batch.is_last;
        reached_ms := batch.reached_ms;
        reached_id := batch.reached_id;
        exit when deleted > 0 or is_last;
    end loop;
end
$$;

-- Prunes all that may go, with a commit after each batch and a rest of three times its length:
--     call dbos.prune_all(max_age => interval '30 days', keep_failed => interval '1 year');
-- It must not be called in a transaction. No search_path is set, which would forbid the commits: all
-- that is called here is in dbos, or of one meaning only.
create or replace procedure dbos.prune_all(
    max_age interval default null,
    max_rows bigint default null,
    keep_failed interval default null,
    application_name text default null,
    inout deleted bigint default 0
)
language plpgsql
as $$
declare
    past record;
    batch record;
    began timestamptz;
    position_ms bigint := 0;
    position_id text := '';
begin
    past := dbos.dbos_async_limits_of(max_age, max_rows, keep_failed, application_name);
    deleted := 0;
    loop
        began := pg_catalog.clock_timestamp();
        batch := dbos.dbos_async_prune_some(
            past.cutoff_ms, past.boundary_ms, past.boundary_id, past.failed_cutoff_ms,
            application_name, position_ms, position_id, 10000);
        commit;
        deleted := deleted + batch.deleted;
        exit when batch.is_last;
        position_ms := batch.reached_ms;
        position_id := batch.reached_id;
        perform pg_catalog.pg_sleep(3 * extract(epoch from pg_catalog.clock_timestamp() - began));
    end loop;
end
$$;

-- Wakes the workers of a queue when somebody who does not know how enqueues: psql, a trigger,
-- another client. Our own sessions set dbos_async.own and notify after their commit instead, because
-- a commit that notifies takes a lock that all commits of the cluster share. A notification is a
-- hint, so none is better than a failing commit where the server's queue of them is nearly full.
create or replace function dbos.dbos_async_tell_queue() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if octet_length(new.queue_name) < 1300 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_queued', json_build_array(new.queue_name)::text);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_enqueued
after insert on dbos.workflow_status
for each row
when (new.status = 'ENQUEUED' and current_setting('dbos_async.own', true) is distinct from 'on')
execute function dbos.dbos_async_tell_queue();

-- The same for who streams: an executor of another library. Readers wait for the stream's name, which
-- is the workflow's id and the key with a newline between them.
create or replace function dbos.dbos_async_tell_stream() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    words constant text := json_build_array(new.workflow_uuid || chr(10) || new.key)::text;
begin
    if octet_length(words) < 7900 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_streams', words);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_streamed
after insert on dbos.streams
for each row
when (current_setting('dbos_async.own', true) is distinct from 'on')
execute function dbos.dbos_async_tell_stream();

-- The same for who changes a queue's limits or pauses it by SQL.
create or replace function dbos.dbos_async_tell_configured() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := case when tg_op = 'DELETE' then old.name else new.name end;
begin
    if octet_length(name) < 1300 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_configured', json_build_array(name)::text);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_configured
after insert or update or delete on dbos.queues
for each row
when (current_setting('dbos_async.own', true) is distinct from 'on')
execute function dbos.dbos_async_tell_configured();

-- A schedule begins with what is due from now on: when it is made, resumed, or given other times,
-- whoever does that. Who knows better says until when it is decided.
create or replace function dbos.dbos_async_begin_schedule() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'UPDATE' then
        new.held_epoch_ms := null;
    end if;
    if new.decided_until_epoch_ms is null
       or tg_op = 'UPDATE' and new.decided_until_epoch_ms = old.decided_until_epoch_ms then
        new.decided_until_epoch_ms := (extract(epoch from clock_timestamp()) * 1000)::bigint;
    end if;
    return new;
end
$$;

create or replace trigger dbos_async_schedule_made
before insert on dbos.workflow_schedules
for each row
execute function dbos.dbos_async_begin_schedule();

create or replace trigger dbos_async_schedule_begun
before update of schedule, cron_timezone, status on dbos.workflow_schedules
for each row
when (new.schedule <> old.schedule or new.cron_timezone is distinct from old.cron_timezone
      or new.status = 'ACTIVE' and old.status <> 'ACTIVE')
execute function dbos.dbos_async_begin_schedule();

-- The leader hears of every change of a schedule, whoever makes it; that it fired is none.
create or replace function dbos.dbos_async_tell_schedule() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := case when tg_op = 'DELETE' then old.schedule_name
                               else new.schedule_name end;
begin
    if octet_length(name) < 1300 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_schedules', json_build_array(name)::text);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_schedule_changed
after insert or delete or update of schedule, cron_timezone, status, automatic_backfill, overlap,
    application_name on dbos.workflow_schedules
for each row
execute function dbos.dbos_async_tell_schedule();

-- The same for who manages our workflows without knowing us. What is cancelled, and what is taken
-- from a running executor to be enqueued again, is told to that executor, so that it stops at once;
-- what is enqueued again, to the workers of its queue. Ends that an executor records are no news of
-- this kind.
create or replace function dbos.dbos_async_tell_change() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_notification_queue_usage() >= 0.5 then
        return null;
    end if;
    if octet_length(new.workflow_uuid) < 1300
       and (new.status = 'CANCELLED' or old.status = 'PENDING') then
        perform pg_notify('dbos_async_ended', json_build_array(new.workflow_uuid)::text);
    end if;
    if new.status = 'ENQUEUED' and octet_length(new.queue_name) < 1300 then
        perform pg_notify('dbos_async_queued', json_build_array(new.queue_name)::text);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_changed
after update of status on dbos.workflow_status
for each row
when (new.status in ('ENQUEUED', 'CANCELLED')
      and current_setting('dbos_async.own', true) is distinct from 'on')
execute function dbos.dbos_async_tell_change();

-- The same for who sends messages or publishes events without knowing us: it wakes whoever waits.
create or replace function dbos.dbos_async_tell_message() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    payload constant text := json_build_array(new.destination_uuid || '::' || new.topic)::text;
begin
    if octet_length(payload) < 7900 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_messages', payload);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_message_sent
after insert on dbos.notifications
for each row
when (current_setting('dbos_async.own', true) is distinct from 'on')
execute function dbos.dbos_async_tell_message();

create or replace function dbos.dbos_async_tell_event() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    payload constant text := json_build_array(new.workflow_uuid || '::' || new.key)::text;
begin
    if octet_length(payload) < 7900 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_events', payload);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_event_set
after insert or update on dbos.workflow_events
for each row
when (current_setting('dbos_async.own', true) is distinct from 'on')
execute function dbos.dbos_async_tell_event();

-- A parked workflow waits for a message or for an event, and whoever sends it puts the workflow back
-- on its queue: our own processes, other clients and SQL alike, in the transaction that sends. No
-- wake-up is lost. Who parks a workflow locks its row, and that of the workflow whose event it waits
-- for, before he looks whether the news is there; the foreign keys of messages and events make the
-- sender wait for that lock. So either he sees the news, or they see his row, here: triggers of a
-- statement run after its foreign keys are checked, and by READ COMMITTED with a snapshot that is
-- younger still.
--
-- In REPEATABLE READ and above the snapshot may be older than the parking. There the rows that would
-- have been locked must be as the snapshot has them: a lock that can be had says so, and one that
-- cannot raises a serialization error, which such senders know to repeat. It is given back at once,
-- by the end of the subtransaction, because a running workflow needs the row for each of its steps;
-- the foreign key's lock stays, and keeps anybody from parking before the sender's end.
create or replace function dbos.dbos_async_expect_unchanged(workflow_ids text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') in ('read committed', 'read uncommitted') then
        return;
    end if;
    perform from dbos.workflow_status w
      where w.workflow_uuid = any(workflow_ids)
      order by w.workflow_uuid
        for no key update;
    raise exception using errcode = 'DA001', message = 'unchanged';
exception
    when sqlstate 'DA001' then
        return;
end
$$;

-- Wakes each of these workflows if it waits for its piece of news, and tells the workers of their
-- queues. They are locked in the order of their ids.
create or replace function dbos.dbos_async_wake(workflow_ids text[], news text[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    queue text;
begin
    for queue in
        with parked as materialized (
            select w.workflow_uuid
              from unnest(workflow_ids, news) as t(workflow_id, piece)
              join dbos.workflow_status w on w.workflow_uuid = t.workflow_id
             where w.status = 'DELAYED' and w.waiting_for = t.piece
             order by w.workflow_uuid
               for update of w
        ), woken as (
            update dbos.workflow_status w
               set status = 'ENQUEUED', waiting_for = null, delay_until_epoch_ms = null,
                   in_line_at = (extract(epoch from clock_timestamp()) * 1000)::bigint,
                   updated_at = (extract(epoch from clock_timestamp()) * 1000)::bigint
              from parked p
             where w.workflow_uuid = p.workflow_uuid
            returning w.queue_name
        )
        select distinct w.queue_name from woken w
    loop
        if octet_length(queue) < 1300 and pg_notification_queue_usage() < 0.5 then
            perform pg_notify('dbos_async_queued', json_build_array(queue)::text);
        end if;
    end loop;
end
$$;

create or replace function dbos.dbos_async_wake_receivers() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    receivers text[];
    news text[];
begin
    select array_agg(s.destination_uuid),
           array_agg(case when coalesce(s.topic, '__null__topic__') = '__null__topic__'
                          then 'message' else 'message ' || s.topic end)
      into receivers, news
      from sent s;
    perform dbos.dbos_async_expect_unchanged(receivers);
    perform dbos.dbos_async_wake(receivers, news);
    return null;
end
$$;

create or replace trigger dbos_async_sent
after insert on dbos.notifications
referencing new table as sent
for each statement
execute function dbos.dbos_async_wake_receivers();

-- Of an event only the first value is news. Whoever parks leaves a new version of the row of the
-- workflow whose event it is, though nothing in it has changed: that is what a sender with an older
-- snapshot stumbles over.
create or replace function dbos.dbos_async_wake_watchers() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    news constant text[] := array(
        select 'event ' || p.workflow_uuid || ' ' || p.key from published p);
    watchers text[];
    awaited text[];
begin
    perform dbos.dbos_async_expect_unchanged(
        array(select distinct p.workflow_uuid from published p));
    select array_agg(w.workflow_uuid), array_agg(w.waiting_for) into watchers, awaited
      from dbos.workflow_status w
     where w.status = 'DELAYED' and starts_with(w.waiting_for, 'event ')
       and w.waiting_for = any(news);
    if watchers is not null then
        perform dbos.dbos_async_wake(watchers, awaited);
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_published
after insert on dbos.workflow_events
referencing new table as published
for each statement
execute function dbos.dbos_async_wake_watchers();

-- Who inserts a workflow that refers to an object, or copies another that may, keeps the object:
-- deleting the source waits for the fork's commit, and a sweep for that of the workflow. Whoever is
-- too late is refused; in REPEATABLE READ and above the snapshot may be older than the object's row,
-- so nobody is, and the hour that a sweep leaves every object must do. A fork gets its source's
-- objects whoever makes it, so this runs with the rights of the schema's owner.
create or replace function dbos.dbos_async_keep_payloads() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.forked_from is not null then
        perform from dbos.workflow_status w
          where w.workflow_uuid = new.forked_from
            for key share;
        insert into dbos.dbos_async_payloads (store, object_key, workflow_id)
        select p.store, p.object_key, new.workflow_uuid
          from dbos.dbos_async_payloads p
         where p.workflow_id = new.forked_from and not p.is_doomed
         order by p.store, p.object_key
        on conflict do nothing;
    end if;
    if starts_with(new.inputs, 'dbos_async payload ') then
        perform from dbos.dbos_async_payloads p
          where p.workflow_id = new.workflow_uuid and not p.is_doomed
            and p.object_key = substr(new.inputs, 20)::json ->> 'key'
            for key share;
        if not found
           and current_setting('transaction_isolation') in ('read committed', 'read uncommitted')
        then
            raise exception 'the object of the large input of workflow % is gone', new.workflow_uuid
                using hint = 'start it again';
        end if;
    end if;
    return null;
end
$$;

create or replace trigger dbos_async_referred
after insert on dbos.workflow_status
for each row
when (new.forked_from is not null or starts_with(new.inputs, 'dbos_async payload '))
execute function dbos.dbos_async_keep_payloads();

-- A workflow that is cancelled can record nothing more, so what its sagas have open is undone by
-- another one, '<its id>-compensate', which exists from the same commit on, whoever cancels. It is
-- of the same version of the code, on behalf of the same caller, and a child of the cancelled one.
-- Where the id is taken, by an earlier workflow of the same id or by somebody, a number is added. A
-- cancellation starts one unless one is alive; the leader, again => false, unless there was one.
create or replace function dbos.dbos_async_compensate(workflow_id text, again boolean default false)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    new_id text := workflow_id || '-compensate';
begin
    perform from dbos.dbos_async_compensations c where c.workflow_uuid = workflow_id;
    if not found then
        return false;
    end if;
    perform from dbos.workflow_status c, dbos.workflow_status w
      where w.workflow_uuid = workflow_id and c.parent_workflow_id = workflow_id
        and c.name = 'DBOS.compensate' and c.created_at >= w.created_at
        and (not again or c.status in ('PENDING', 'ENQUEUED', 'DELAYED'));
    if found then
        return false;
    end if;
    for number in 2 .. 1000 loop
        exit when not exists (select from dbos.workflow_status w where w.workflow_uuid = new_id);
        new_id := workflow_id || '-compensate-' || number;
    end loop;
    insert into dbos.workflow_status
           (workflow_uuid, status, name, inputs, serialization, queue_name, application_name,
            application_version, parent_workflow_id, authenticated_user, authenticated_roles,
            assumed_role)
    select new_id, 'ENQUEUED', 'DBOS.compensate',
           json_build_object('positionalArgs', json_build_array(w.workflow_uuid),
                             'namedArgs', json_build_object())::text,
           'portable_json', '_dbos_internal_queue', w.application_name, w.application_version,
           w.workflow_uuid, w.authenticated_user, w.authenticated_roles, w.assumed_role
      from dbos.workflow_status w
     where w.workflow_uuid = workflow_id and w.status = 'CANCELLED'
       and exists (select from dbos.dbos_async_compensations c
                    where c.workflow_uuid = w.workflow_uuid
                      and not exists (select from dbos.operation_outputs o
                                       where o.workflow_uuid = c.workflow_uuid
                                         and o.error is null
                                         and coalesce(o.step_key, o.function_id::text)
                                             = c.step_key))
    on conflict (workflow_uuid) do nothing;
    if not found then
        return false;
    end if;
    if pg_notification_queue_usage() < 0.5 then
        perform pg_notify('dbos_async_queued', json_build_array('_dbos_internal_queue')::text);
    end if;
    return true;
end
$$;

-- Who may cancel may do so though he may not see our table: the leader finds what he leaves, as it
-- finds the workflows of those whose snapshot is older than the compensation.
create or replace function dbos.dbos_async_compensate_cancelled() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from dbos.dbos_async_compensations c
                where c.workflow_uuid = new.workflow_uuid) then
        perform dbos.dbos_async_compensate(new.workflow_uuid, again => true);
    end if;
    return null;
exception
    when insufficient_privilege then
        return null;
end
$$;

create or replace trigger dbos_async_cancelled
after update of status on dbos.workflow_status
for each row
when (new.status = 'CANCELLED' and old.status is distinct from 'CANCELLED')
execute function dbos.dbos_async_compensate_cancelled();


-- Part 2. Indexes
--
-- Few, because every one is written at each start and again whenever status changes. Those
-- with an official name are the official ones: other clients name them in their statements.

-- One live workflow per queue and deduplication id.
create unique index if not exists uq_workflow_status_dedup_id
    on dbos.workflow_status (queue_name, deduplication_id)
    where deduplication_id is not null;

-- Claims: the head of a queue, in order.
create index if not exists dbos_async_line
    on dbos.workflow_status
       (queue_name, priority, coalesce(in_line_at, created_at),
        coalesce(enqueue_order, 9223372036854775807))
    where status = 'ENQUEUED';

-- Claims from a partitioned queue: which partitions wait, and the head of each.
create index if not exists dbos_async_partition_line
    on dbos.workflow_status
       (queue_name, queue_partition_key, priority, coalesce(in_line_at, created_at),
        coalesce(enqueue_order, 9223372036854775807))
    where status = 'ENQUEUED' and queue_partition_key is not null;

-- Limits: what a queue, or a partition of it, is running.
create index if not exists dbos_async_running
    on dbos.workflow_status (queue_name, queue_partition_key)
    where status = 'PENDING' and queue_name is not null;

-- Recovery: what an executor was running.
create index if not exists dbos_async_pending
    on dbos.workflow_status (executor_id)
    where status = 'PENDING';

-- What comes due next.
create index if not exists dbos_async_delayed
    on dbos.workflow_status (delay_until_epoch_ms)
    where status = 'DELAYED';

-- Whom the first value of an event wakes.
create index if not exists dbos_async_watching
    on dbos.workflow_status (waiting_for)
    where status = 'DELAYED' and starts_with(waiting_for, 'event ');

-- Deadlines that nobody keeps: what waits, and what a dead process has.
create index if not exists dbos_async_deadline
    on dbos.workflow_status (workflow_deadline_epoch_ms)
    where status in ('PENDING', 'ENQUEUED', 'DELAYED') and workflow_deadline_epoch_ms is not null;

-- Rate limits: which of those that wait have paid already.
create index if not exists dbos_async_paid
    on dbos.workflow_status (queue_name)
    where rate_limited and status = 'ENQUEUED';

-- Rate limits: what a bucket has given out lately.
create index if not exists dbos_async_bucket
    on dbos.dbos_async_tokens (bucket, partition_key, taken_at_epoch_ms);

-- A workflow's children: cancelled and deleted with it.
create index if not exists dbos_async_parent
    on dbos.workflow_status (parent_workflow_id)
    where parent_workflow_id is not null;

-- Schedules: which runs of one have not ended.
create index if not exists dbos_async_scheduled
    on dbos.workflow_status (schedule_name)
    where status in ('PENDING', 'ENQUEUED', 'DELAYED') and schedule_name is not null;

-- Listing what went wrong, by age. Nothing is written here for a workflow that succeeds.
create index if not exists dbos_async_failed
    on dbos.workflow_status (status, created_at)
    where status in ('ERROR', 'CANCELLED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED');

-- Listing a workflow's forks. Not `is not null`: what asks for that has the id at hand.
create index if not exists dbos_async_forked_from
    on dbos.workflow_status (forked_from)
    where forked_from <> '';

-- Listing by attributes. Nothing is written here for a workflow that has none.
create index if not exists dbos_async_attributes
    on dbos.workflow_status using gin (attributes jsonb_path_ops)
    where attributes is not null;

-- Listing and pruning by age.
create index if not exists dbos_async_created_at
    on dbos.workflow_status (created_at);

-- A step key is recorded once.
create unique index if not exists dbos_async_step_key
    on dbos.operation_outputs (workflow_uuid, step_key)
    where step_key is not null;

-- A workflow's mailbox: what is unread of a topic, in order; all of it, to be deleted with it.
create index if not exists dbos_async_messages
    on dbos.notifications (destination_uuid, topic, consumed, message_order nulls first);

-- The objects of a workflow: for its forks, and to be deleted with it.
create index if not exists dbos_async_payloads_of
    on dbos.dbos_async_payloads (workflow_id);

-- A version name is one application's, or nobody's.
create unique index if not exists uq_application_versions_owner_version
    on dbos.application_versions (application_name, version_name)
    where application_name is not null;

create unique index if not exists uq_application_versions_unclaimed_version
    on dbos.application_versions (version_name)
    where application_name is null;


-- Part 3. Version
--
-- Last, so that a database that has the version has all of the above. Raise it with every change
-- above, here and in _store/schema.py.
insert into dbos.dbos_async_schema (version)
values (3)
on conflict (only_row) do update
set version = greatest(dbos_async_schema.version, excluded.version);
