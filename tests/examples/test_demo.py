"""`make demo`, with fewer orders: its report is true, and it would notice if it were not."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from programs import Program, Start, eventually

from dbos_async._store import databases
from dbos_async.testing import PostgresServer
from examples.demo import make_orders, report
from examples.demo.job import read_orders
from examples.demo.shop import Items, read_items

ORDERS = 1_000
DOCTORED = {
    "Every order was processed": "update dbos.workflow_status set status = 'ERROR' where {one}",
    "The job was killed and resumed": "update dbos.workflow_status set recovery_attempts = 1",
    "No checkpointed step ran again": """
        insert into shop.executions (run, workflow_id, step_id, step, executor_id, attempt)
        select run, workflow_id, step_id, step, 'another', 1 from shop.executions limit 1""",
    "Only what a kill cut off did": """
        insert into shop.executions (run, workflow_id, step_id, step, executor_id, attempt)
        select run, workflow_id, step_id, step, executor_id, attempt from shop.executions
         limit 1""",
    "Every effect happened once": "update shop.stock set available = available - 1 where {sku}",
}
ONE = {
    "one": "workflow_uuid = (select min(workflow_uuid) from dbos.workflow_status)",
    "sku": "sku = 'MUG-BLUE'",
}


class Finished:
    """A demo that has run to its end."""

    def __init__(self, url: str, program: Program) -> None:
        self.url = url
        self.code = program.ended()
        self.said = program.said
        self.run = self.said.partition("--report ")[2].partition("'")[0]


@pytest.fixture(scope="module")
def demo(
    dbos_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """One run, for all tests of this module; they must leave its database as it is."""
    name = f"demo_{uuid4().hex}"  # another worker may run other tests of this module
    url = dbos_postgres.url_of(name)
    asyncio.run(databases.ensure_database(dbos_postgres.url, name))
    yield Finished(url, demo_in(tmp_path_factory.mktemp("demo"), url))
    asyncio.run(databases.drop_database(dbos_postgres.url, name))


def demo_in(directory: Path, url: str, *options: str) -> Program:
    options = options or ("--orders", str(ORDERS))
    return Program(directory, "examples.demo", "--database-url", url, *options)


@pytest.fixture
async def doctored(demo: Finished) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection whose changes to the run nobody else sees."""
    connection = await asyncpg.connect(demo.url)
    await connection.execute("begin")
    yield connection
    await connection.close()


async def failures(connection: "asyncpg.Connection[Any]", run: str) -> list[str]:
    facts = await report.fetch_facts(connection, run)
    assert facts is not None
    return [proof.claim for proof in report.proofs_of(facts) if not proof.holds]


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def test_it_proves_what_it_promises(demo: Finished) -> None:
    assert demo.code == 0, demo.said
    assert "✘" not in demo.said
    assert demo.said.count("✔") == 5
    assert demo.said.count("SIGKILL at") == 2


def test_its_figures_are_those_of_the_database(demo: Finished) -> None:
    with psycopg.connect(demo.url) as connection:

        def count(what: str) -> int:
            row = connection.execute(f"select count(*) from {what}".encode()).fetchone()
            assert row is not None
            return int(row[0])

        accepted = number(r"([\d,]+) accepted", demo.said)
        rejected = number(r"([\d,]+) rejected", demo.said)
        assert accepted + rejected == ORDERS == count("dbos.workflow_status")
        assert accepted == count("shop.charges") > 0
        assert rejected == count("shop.notifications where message like '%cannot send%'") > 0
        assert number(r"of ([\d,]+) steps", demo.said) == count("dbos.operation_outputs")
        again = count("shop.executions") - count("dbos.operation_outputs")
        assert number(r"([\d,]+) steps in flight", demo.said) <= again
        recovered = count("dbos.workflow_status where recovery_attempts > 1")
        assert number(r"([\d,]+) workflows recovered", demo.said) == recovered > 0


async def test_it_finds_nothing_wrong_with_what_is_right(
    demo: Finished, doctored: "asyncpg.Connection[Any]"
) -> None:
    assert await failures(doctored, demo.run) == []


@pytest.mark.parametrize("claim", DOCTORED)
async def test_it_notices_a_lie(
    claim: str, demo: Finished, doctored: "asyncpg.Connection[Any]"
) -> None:
    await doctored.execute(DOCTORED[claim].format(**ONE))
    assert claim in await failures(doctored, demo.run)


async def test_it_notices_a_second_charge_and_a_forgotten_parcel(
    demo: Finished, doctored: "asyncpg.Connection[Any]"
) -> None:
    await doctored.execute("delete from shop.shipments where parcel = 1")
    await doctored.execute(
        "insert into shop.charges select 'another key', run, order_id from shop.charges limit 1"
    )
    assert await failures(doctored, demo.run) == ["Every effect happened once"]


def test_a_proof_that_fails_is_said_and_is_the_exit_code(demo: Finished, tmp_path: Path) -> None:
    forged = "insert into shop.runs (run, orders, kills) values ('forged', 7, 2)"
    with psycopg.connect(demo.url, autocommit=True) as connection:
        connection.execute(forged)
        program = demo_in(tmp_path, demo.url, "--report", "forged")
        assert program.ended() == 1
        connection.execute("delete from shop.runs where run = 'forged'")
    assert "The proof failed" in program.said
    assert "Traceback" not in program.said


def test_a_signal_ends_it_in_good_order_and_the_next_run_finishes_what_it_left(
    start: Start, dbos_database_url: str
) -> None:
    options = ("examples.demo", "--database-url", dbos_database_url, "--orders")
    ended = "select count(*) from dbos.workflow_status where status = 'SUCCESS'"
    program = start(*options, "3000")
    with psycopg.connect(dbos_database_url, autocommit=True) as connection:
        eventually(lambda: connection.execute(ended).fetchone() != (0,), what="the first orders")
        program.process.send_signal(signal.SIGINT)
        assert program.ended() == 128 + signal.SIGINT
        assert "Stopped at" in program.said
        second = start(*options, str(ORDERS))
        assert second.ended() == 0, second.said
        pending = "select count(*) from dbos.workflow_status where status <> 'SUCCESS'"
        eventually(lambda: connection.execute(pending).fetchone() == (0,), what="the rest")
    assert "Traceback" not in program.said + second.said


def test_a_parent_that_is_killed_takes_its_job_along(start: Start, dbos_database_url: str) -> None:
    program = start("examples.demo", "--database-url", dbos_database_url, "--orders", "3000")
    jobs = "select count(*) from pg_stat_activity where application_name like 'dbos_async demo %'"
    with psycopg.connect(dbos_database_url, autocommit=True) as connection:

        def at_work() -> int:
            row = connection.execute(f"{jobs} and datname = current_database()".encode()).fetchone()
            assert row is not None
            return int(row[0])

        eventually(lambda: at_work() > 0, what="the job")
        os.kill(program.process.pid, signal.SIGKILL)
        eventually(lambda: at_work() == 0, what="its end")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://somebody:secret@127.0.0.1:1/shop", "cannot reach Postgres"),
        ("mysql://localhost/shop", "must look like postgresql://"),
        ("{server}", "does not exist"),
    ],
)
def test_a_url_that_cannot_work_is_one_sentence(
    url: str, reason: str, tmp_path: Path, dbos_postgres: PostgresServer
) -> None:
    program = demo_in(tmp_path, url.format(server=dbos_postgres.url_of("nowhere")))
    assert program.ended() == 2
    assert reason in program.said
    assert "Traceback" not in program.said
    assert "secret" not in program.said
    assert program.said.count("\n") == 1


def test_a_schema_of_somebody_else_is_left_alone(tmp_path: Path, dbos_database_url: str) -> None:
    with psycopg.connect(dbos_database_url) as connection:
        connection.execute("create schema shop")
    program = demo_in(tmp_path, dbos_database_url)
    assert program.ended() == 2
    assert "schema `shop` of its own" in program.said


def test_the_orders_are_those_that_the_script_makes(tmp_path: Path) -> None:
    make_orders.main(tmp_path)
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (make_orders.HERE / made.name).read_bytes()
    assert len(read_orders()) >= 5_000


@pytest.mark.parametrize("quantity", ["0", "-1", "", "two", "1.5", "100000", "²"])
def test_an_order_with_a_bad_quantity_is_refused_with_a_reason(quantity: str) -> None:
    assert read_items("MUG-BLUE:1 TEE-SAND:2") == Items(["MUG-BLUE", "TEE-SAND"], [1, 2])
    assert read_items("") == "it has no items"
    assert (
        read_items(f"MUG-BLUE:1 TEE-SAND:{quantity}") == f"{quantity!r} is no quantity for TEE-SAND"
    )
