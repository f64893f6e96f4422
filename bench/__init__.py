"""How fast dbos_async is on this machine, beside what it could be at best and what its peer does.

    make bench                                  # everything, about forty minutes
    make bench ARGS='sequential one_step'       # some workloads
    make bench ARGS='--json figures.json'       # every round's value, too
    make bench ARGS='--database-url postgresql://postgres@localhost/postgres'
    make bench ARGS='--quick'                   # seconds: shows that it works, not how fast

Without a URL it runs an embedded Postgres in a temporary directory, with fsync on and Postgres's
own settings. With one, it makes databases of its own on that server, and drops them at the end.
All load comes from one process and one event loop (uvloop), unless it says otherwise.

What is measured, a file a workload:

- `sequential`: one workflow whose steps follow each other. *Step* is the median time of a step that
  returns its argument, from its call to its durable result. *Bare insert* is the median time of one
  prepared, autocommitted single-row insert of the same row into the same table of another database,
  over one asyncpg connection. The ratio says what durability costs on top of the one write that
  nobody can save.
- `concurrent`: 1,000 workflows of 10 steps, all started at once; when they are done, the next
  1,000, for at least a second. *Steps* is durable steps per second. *Steps, in flight* is the same
  where each workflow that ends is replaced at once. *Bare batches* is the same rows, columns and
  sizes, by a loop that has nothing to wait for: per 1,000 workflows, one statement inserts the
  workflows, ten insert their steps, one completes them. Its ratio is that of rates. *Connections*
  is the most that pg_stat_activity showed in the library's database meanwhile.
- `one_step`: 1,000 workflows of one step, in the same way: workflows per second.
- `peer`: 100 workflows of 10 steps, all started at once, by dbos_async and by the official `dbos`
  package: the same server, a database of its own, a process of its own, which waits while
  dbos_async has its turn. `bench/official.py` is that process, and says how it is configured.
  Without `dbos` in this environment, one is made for it in `bench/.cache`.
- `queue_idle`: an enqueue in this process, and the first line of the workflow in another; nothing
  else happens, and the gaps between enqueues are random. The milliseconds between the two, by the
  one clock of the machine: p50 and p99 of each round's 300.
- `queue_throughput`: 50,000 workflows that do nothing wait in a paused queue; from its resumption
  to the last durable end, workflows per second. They got there as rows, copies of one that was
  enqueued, for how they got there is not measured. *PgQueuer, jobs* is the same by its own drain,
  in a process and a database of its own; `bench/jobs.py` says how it is configured.
- `enqueue_many`: workflows per second that calls of 10,000 enqueue; nobody takes any.
- `queue_backlog`: as `queue_throughput`, and beside it the same off the head of a queue where
  1,000,000 more wait and stay.
- `queue_snapshot`: a queue that is filled up while it is worked on, for 20 seconds; then the same
  for 60 seconds, in a fresh database, while a transaction elsewhere holds a snapshot from before.
  One round, no warm-up. The last ten seconds are told apart: what vacuum may not remove only grows.
- `queue_limits`: processes of `bench/worker.py`. Three have more to do than 50 starts a second for
  30 seconds: the most starts in any second, by the rows and by the workflows' first lines, and the
  share of the allowance after the first second's that was used. Four share ten slots, for 60
  seconds in which one of them is killed every second or so: the most workflows at once, and how
  many were running twice at once, by what they wrote down. One round, no warm-up.
- `streams`: 100 workflows in one process, `bench/streamer.py`, each of which writes 200 values a
  second for 5 seconds and awaits each; this process has a reader for each. The milliseconds from
  the call of `write_stream` to the reader's hands, by the one clock of the machine: p50 and p99 of
  all values of a round, and how many were read a second. Once from a step, and once from the
  workflow itself, where each value is a step. *Saturated*: the same 100 write 500 values each
  without a pause, and nobody reads.
- `retention`: 40 workflows of 10 steps at a time, without an end, while 1,000,000 workflows of two
  steps that ended long ago are pruned as the leader does it, from the same process: steps a second,
  in turns of ten seconds with pruning and five without, until nothing is left to prune. *A batch*
  is what each transaction that pruned took the server, its commit aside: longer than any lock was
  held before, for it begins with a look at what may go. Then a policy that keeps 50,000, and ten
  times as many workflows: the size of all tables and indexes after each 50,000. One round, no
  warm-up.

How to read a figure. Contenders take turns in rounds, A B A B, after a round of warm-up that does
not count. A ratio is taken within each round, so that what slows the machine down slows down both
sides. The table shows the median over the rounds, and the lowest and highest. The load of the
machine is printed beside it: figures of a machine that does something else are worth what a figure
from a shared machine is worth, the ratios less so.

To repeat a run: the same command, on a quiet machine, with `TMPDIR` on the disk in question: on a
tmpfs, fsync costs nothing and every figure is too good.
"""
