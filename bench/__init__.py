"""How fast dbos_async is on this machine, beside what it could be at best and what its peer does.

    make bench                                  # about five minutes
    make bench ARGS=--full                      # all workloads at their full sizes, about an hour
    make bench ARGS='sequential one_step'       # some workloads
    make bench ARGS='--json figures.json'       # every round's value in this file, too
    make bench ARGS='--processes 8'             # how far a load is spread by those that spread it
    make bench ARGS='--database-url postgresql://postgres@localhost/postgres'
    make bench ARGS='--quick'                   # seconds: shows that it works, not how fast
    make bench ARGS='--full --reference'        # keep the run as the one that others look at
    make bench-check                            # a minute: is any ratio worse than in that run?

Without a URL it runs an embedded Postgres in a temporary directory, with fsync on and Postgres's
own settings. With one, it makes databases of its own on that server, and drops them at the end.
All load comes from one process and one event loop (uvloop), unless it says otherwise.

A run ends with a table, and leaves `bench/results/TIME.json` and plots in `bench/results/TIME/`, as
PNG and SVG: the ratios at a glance, a plot of each workload whose size varies, and a histogram of
each whose single measurements are told. git ignores them but for `bench/results/reference.json` and
its plots. A quick run leaves none, unless `--results` says where.

What is measured, a file a workload; the sizes are those of `--full`, and without it some are
smaller, as `SHORT` in `bench/bench.py` says:

- `self_test`: delays of 2 ms and 4 ms, by the clock that everything is measured by. If their ratio
  is not 2, then no other figure of the run is worth anything.
- `sequential`: one workflow whose steps follow each other. *Step* is the median time of a step that
  returns its argument, from its call to its durable result. *Bare insert* is the median time of one
  prepared, autocommitted single-row insert of the same row into the same table of another database,
  over one asyncpg connection. The ratio says what durability costs on top of the one write that
  nobody can save. All single times of both are in a histogram.
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
- `sweep`: 1, 10, 100, 1,000 and 10,000 workflows of ten steps, all started at once; when they are
  done, the next as many, for at least a second: durable steps per second.
- `children`: a workflow starts 1,000 children that do nothing, and awaits them: children per
  second, from the parent's call to its durable end. *Called*: the parent calls them in a `gather`;
  *by handle*: it starts them, and then awaits their results. *No parent*: as many without one.
- `enqueue_singly`: workflows per second that are enqueued one a call, one call after the other and
  100 calls at a time, from within a workflow (where each is a step) and from outside, beside calls
  of `enqueue_many` that take 10,000 each. Nobody takes any.
- `queue_end_to_end`: clients in this process that each enqueue a workflow that does nothing, await
  its result, and go on so for a second; another process runs them. Results per second, and the
  milliseconds from the call of `enqueue` to the result: p50 and p99, by the number of clients.
- `queue_limited`: 20,000 workflows that do nothing, taken off a queue with 100 partitions, and off
  one with a rate limit, beside one without limits; the limits are out of reach. *Allowance used*:
  one that may start 1,000 a second, and has more to do: how many started after the first 1,000, of
  those that might have. (`queue_limits` is about whether limits hold, over several processes.)
- `ping_pong`: two workflows of one process send each other 100 messages, in turn: round trips per
  second, and how long each took, by the number of such pairs.
- `waiting`: 10,000 workflows sleep, or wait for a message; in memory, and parked. *All wait after*:
  from the start of the first until the last one waits (or is parked). *Memory of each*: what the
  process has grown by meanwhile, by what the system says, for each. *Woken*: how many a second end,
  durably, from the moment at which all are due (or their messages are sent) to the last. Each in a
  process of its own; one round, no warm-up.
- `recovery`: a process with 10,000 workflows that have recorded one step, and have one ahead, is
  killed. From the kill until the first goes on and the last has ended, in another process that runs
  already, and in one that is launched after the death. *Recovered*: per second, between the two.
- `list_queries`: pages of a hundred out of 1,000,000 workflows, copies of one that was run, from
  the call of `list_workflows` to its records, by a `Client` on its own: p50 and p99 of a round's
  100 listings of each kind. *Deep* pages go on half way, by `after`. One workflow in 100 is an
  ERROR, one in 1,000 ENQUEUED, one in ten has the name, one in 10,000 the rare one, one in 1,000
  the attribute; *a second* is what was created in one, at random. *Newest, by offset* skips a
  tenth of all, and *rare name* reads all: neither has an index, and both are listed less often.
- `payloads`: steps whose results have 100 bytes to a mebibyte of text that does not compress: 1,000
  workflows of 10 steps at once, fewer where their results would be more than 64 MiB. *Bare batches*
  is the same rows in the same number of workflows, as in `concurrent`. Megabytes are of results.
- `processes`: 1,000 workflows of 10 steps in flight in each of one to four processes of
  `bench/load.py` on one database; steps a second of all of them, within the same four seconds,
  which begin when all have been at work for one. Those whose turn it is not are launched and idle.
- `round_trips`: as `concurrent` and `sequential`, through a proxy in a process of its own,
  `bench/delay.py`, that holds back each direction for half of 0, 1 and 5 ms. *Bare query* is the
  median time of an empty query the same way, so what a round trip really takes: the proxy, the
  socket and the server have their part in it.
- `long_run`: `concurrent` in a database that has seen 1, 5 and 10 million steps, in turns with one
  that was emptied just now. The target is the ratio of the two after the last: at the start, too,
  it was empty. The plain ratio of the last to the first is told as well, but minutes lie between
  them, in which the machine may have changed.
- `cores`: durable steps a second of 1,000 workflows of 10 steps in flight in each process of
  `bench/load.py`, where these processes and all of Postgres are pinned to one core or to two. (A
  core is what the system calls a processor; who looks on is not pinned.) A step is one durable
  write; the start and the end of a workflow, two more for every ten, are not counted. For each
  setting, the evidence: how many cores Python, Postgres, all else and nobody had, and what CPU a
  step cost the first two, by /proc; bytes and flushes of WAL, by the server's own counters, which
  are a second late; and what the backends that write were doing, by looks at pg_stat_activity
  every 20 ms: *computes* (or would, had it a core), *flushes WAL*, *waits for Python*, and else for
  something else. *At most* is what a core could do that did nothing else, and a process that cost
  nothing but that CPU. *Extrapolated* is Amdahl's law through the rates of one core with one
  process and of two cores with two: a process for each core, and whatever did not get faster with
  the second core never does. Where all else had more than a tenth of a core, neither the rates nor
  the extrapolation say anything; the CPU of a step still does. Only for a Postgres on this machine,
  on Linux, that this account may pin.

How to read a figure. Contenders take turns in rounds, A B A B, after a round of warm-up that does
not count. A ratio is taken within each round, so that what slows the machine down slows down both
sides. The table shows the median over the rounds, and the lowest and highest. The load of the
machine is printed beside it: figures of a machine that does something else are worth what a figure
from a shared machine is worth, the ratios less so.

How sure a verdict is. A target is *met* or *MISSED* if all of the interval says so in which the
median is with a confidence of at least 90 %; or else the table says *unsure*, for what differs from
round to round is more than what the target is away. With five rounds, the interval is from the
lowest to the highest (94 %); with ten, from the second lowest to the second highest (98 %). With
less than five there is no such interval: the verdict is that of the whole spread, and says of how
many rounds. A ratio without a target whose interval has 1 in it says *unsure*, too. The interval
assumes nothing about distributions; `bench/confidence.py` has the rule and its source.
`make bench ARGS='--rounds 15 sequential'` is what helps against *unsure*, and a quiet machine.

What `make bench-check` says. It measures some workloads anew and compares each ratio with that of
the reference run; never a rate or a time, for those are of a machine and a day. Worse is one whose
interval lies beyond that of the reference in the bad direction, and whose median is worse by more
than a tenth, and again so when it is measured a second time. It then exits with 1, and else with 0;
`bench/check.py` says why. What differs between the two machines is printed beside it. Without a
reference it measures nothing, and says how to make one.

To repeat a run: the same command, on a quiet machine, with `TMPDIR` on the disk in question: on a
tmpfs, fsync costs nothing and every figure is too good. Its file says which commit, machine,
packages and server settings it is of.
"""
