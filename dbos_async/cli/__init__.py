"""`dbos-async`, the command line: what a person asks at 3 a.m., and CI before a deploy.

    commands    which there are: a module a noun, a function a verb, wired here
    options     what many of them take; filters: the filter of list_workflows as options
    output      tables for people, JSON for scripts, exit codes; moments: times and durations
    workflows, verbs, standing    looking at workflows, changing their course, where one stands
    queues, executors, versions, replay, retention, doctor, schema, postgres, server    other nouns

All but `run` connect as a client and run no workflows: asking takes nothing over. What was asked
for goes to stdout, all else to stderr.

Exit codes: 0 it is done, and all is well; 1 something needs a person, there is no such thing, or it
was refused without --yes; 2 the command cannot be understood, or makes no sense for what is there;
3 the database cannot be used: it does not answer, or is none of ours.
"""

from dbos_async.cli.commands import main

__all__ = ["main"]
