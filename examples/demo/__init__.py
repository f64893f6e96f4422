"""5,000 orders, a durable workflow each, in a process that is killed twice: make demo

    __main__   the parent: starts the job, shows its progress, kills it, starts it again, reports
    job        the child: starts a workflow for every order in orders.csv
    shop       the workflow, its five steps, and the tables that they write to
    report     what the database says about it afterwards, and whether that is as it must be

Each run has a name, which is part of its workflows' ids and in every row. Earlier runs stay where
they are; a run that was broken off leaves workflows PENDING, which the next run's job finishes.
"""
