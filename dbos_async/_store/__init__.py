"""How Postgres is spoken to. The only part that imports asyncpg.

sql, records     every statement, and the rows it takes and gives
database         the pool, what the driver's errors mean, and the one prober of an outage
checkpointer     the write path: group commit, fenced and idempotent, on one connection; batches:
                 what goes out together; landings: what became of it
notifier         LISTEN and NOTIFY, beside the write path; a hint, never needed
lease            an advisory lock that says this process lives
clock            the database's time, kept between looks at it
schema           installs and verifies the tables; embedded: a Postgres of one's own
workflows        reading them
queues           declaring and changing them; claiming: taking work off, within exact limits
schedules        declaring and changing them; a tick and its run in one transaction
messages, events, streams     reading them, and sending from outside; parking: who waits long
datasources      databases of the user's that transactions run on; recording: the step's row in one
                 of ours; outputs: the row that stands for it in another; borrowed: connections
enqueues         many at once, and in users' own transactions; debounces, limiters: what they keep
codec, arguments, portable_errors     values as `portable_json`; foreign: what others wrote

Every await on the database is bounded. A write may be sent twice and must land once; a read may be
repeated. What passes (an outage, a deadlock, a failover) is a `DatabaseLostError`, waited out by
`Database.patiently`; what will never work is a `DatabaseRefusedError`.
"""
