"""How a workflow runs.

registry    what can be run, and under which name rows say so; version: a hash of that
functions   what the decorators make of a function; context: where in the task tree a call stands
intake      from a call to the row of a new workflow
executor    starts, runs and settles; an `Execution` is one run
steps       run and replay; inner: what a workflow does besides, it starts children, awaits, sleeps
races       who was done first; timeouts: limits on blocks; replay: the old goes before the new
patches     new code for workflows under way
transacting a function in a transaction of the user's, again while others are in its way;
transactions  the same as a step, exactly once; tidying: rows that it left in other databases
outbox      what is enqueued and sent within one
claims      from a claim to a run
deeds       a verb that is numbered and recorded once; messages, events: those that talk
streams     written by their workflow; readers: read by anybody
wakers      waiting for news of any kind; outcomes: how workflows ended, wherever they ran
parking     who waits long leaves memory; still: whether anything goes on
recovery    takes over what dead processes left
dispatcher  which queues this process works on; line: claims from one of them; window: its own rate
bulk        many enqueues at once; catalog: which queues there are; debounce: the last of many calls
limits      tokens and permits of limited steps
scheduler   fires what is due; ticks: which of it; cron: when that is
rehearsal   would this code still go the recorded way?
watchdog    names the step that blocks the loop
session     the open parts of a launched app, wired

One life of a workflow: its inputs are durable before its body runs; each step's outcome before the
body goes on; its own outcome before anybody sees it. Whoever runs it holds an owner token, written
into its row at the claim; every write is fenced by that token under the row's lock. So at any
moment the process may die, be stopped, or be wrongly thought dead: what landed stands, what did not
land is repeated by the next owner, and the last one's writes land no more.

State has one owner each: `Executor.running` its executions, an `Execution` its history and numbers,
a `Branch` its count. All of it can be thrown away; Postgres has what counts.
"""
