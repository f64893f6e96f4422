"""`dbos-async`, the command line: what a person asks at 3 a.m., and CI before a deploy.

commands    the commands; output: tables for people, JSON for scripts

It connects as a client and runs no workflows: asking takes nothing over. What was asked for goes to
stdout, all else to stderr.

Exit codes: 0 all is well; 1 something was found that needs a person; 2 the command cannot be
understood; 3 the database cannot be used: it does not answer, or is none of ours.
"""

from dbos_async.cli.commands import main

__all__ = ["main"]
