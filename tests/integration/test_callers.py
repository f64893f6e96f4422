"""On whose behalf workflows run, and what their roles let them do."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from dbos_async import DBOS, Client, NotAuthorizedError, Workflow

PATIENCE = 20
ANN = {"authenticated_user": "ann", "authenticated_roles": ["clerk", "admin"]}


def shop(url: str, **settings: Any) -> DBOS:
    return DBOS("shop", url, app_version="1", **settings)


def whoami(dbos: DBOS) -> list[Any]:
    return [dbos.authenticated_user, list(dbos.authenticated_roles), dbos.assumed_role]


def refunds(dbos: DBOS, *, required: Any = ("admin", "owner")) -> Workflow[..., Any]:
    @dbos.step(name="look")
    async def look() -> list[Any]:
        return whoami(dbos)

    @dbos.workflow(name="refund", required_roles=required)
    async def refund() -> list[Any]:
        return [whoami(dbos), await look()]

    return refund


async def rows_of(url: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(
            "select workflow_uuid, status, authenticated_user, authenticated_roles, assumed_role "
            "from dbos.workflow_status order by created_at, workflow_uuid"
        )
    finally:
        await connection.close()
    return rows


async def test_a_caller_with_a_required_role_is_served_in_it(dbos_database_url: str) -> None:
    dbos = shop(dbos_database_url)
    refund = refunds(dbos)
    async with asyncio.timeout(PATIENCE), dbos:
        asked = refund.with_options(workflow_id="r-1", **ANN)
        served = ["ann", ["clerk", "admin"], "admin"]
        assert await asked() == [served, served]
        status = await (await dbos.retrieve_workflow("r-1")).get_status()
        assert whoami(dbos) == [None, [], None]
    assert status.authenticated_user == "ann"
    assert status.authenticated_roles == ["clerk", "admin"]
    assert status.assumed_role == "admin"
    [row] = await rows_of(dbos_database_url)
    assert tuple(row)[2:] == ("ann", '["clerk","admin"]', "admin")


@pytest.mark.parametrize(
    "options",
    [{}, {"authenticated_user": "bob"}, {"authenticated_roles": ["clerk"]}],
    ids=["nobody", "a user without roles", "another role"],
)
async def test_nobody_else_is_served_and_nothing_is_written(
    dbos_database_url: str, options: dict[str, Any]
) -> None:
    dbos = shop(dbos_database_url)
    refund, jobs = refunds(dbos).with_options(**options), dbos.queue("jobs")
    async with asyncio.timeout(PATIENCE), dbos:
        with pytest.raises(NotAuthorizedError, match=r"'admin', 'owner'.*with_options"):
            await refund()
        with pytest.raises(NotAuthorizedError):
            await dbos.start_workflow(refund)
        with pytest.raises(NotAuthorizedError):
            await jobs.enqueue(refund)
        with pytest.raises(NotAuthorizedError):
            await jobs.enqueue_many([refund.bind()])
        assert await dbos.list_workflows() == []


async def test_children_serve_their_parents_caller_unless_they_are_given_another(
    dbos_database_url: str,
) -> None:
    dbos = shop(dbos_database_url)
    refund, jobs = refunds(dbos), dbos.queue("jobs")

    @dbos.workflow(name="desk")
    async def desk() -> Any:
        called = await refund()
        queued = await (await jobs.enqueue(refund)).get_result()
        [bulk] = await jobs.enqueue_many([refund.bind()])
        other = refund.with_options(authenticated_user="eve", authenticated_roles=["owner"])
        refused = refund.with_options(authenticated_user="eve")
        try:
            await refused()
        except NotAuthorizedError:
            return [whoami(dbos), called, queued, await bulk.get_result(), await other()]

    async with asyncio.timeout(PATIENCE), dbos:
        [desks, *served] = await desk.with_options(**ANN)()
    ann, eve = ["ann", ["clerk", "admin"], "admin"], ["eve", ["owner"], "owner"]
    assert desks == ["ann", ["clerk", "admin"], None]
    assert served == [[ann, ann], [ann, ann], [ann, ann], [eve, eve]]


async def test_a_recovery_serves_the_same_caller(lives: Any) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        @life.dbos.workflow(name="w", required_roles=["admin"])
        async def workflow() -> Any:
            await life.halt()
            return whoami(life.dbos)

        return workflow.with_options(**ANN)  # type: ignore[no-any-return]

    assert await lives.both(declare) == ["ann", ["clerk", "admin"], "admin"]


async def test_a_client_enqueues_for_a_caller_and_whoever_takes_it_up_decides(
    dbos_database_url: str,
) -> None:
    dbos = shop(dbos_database_url)
    refunds(dbos)
    dbos.queue("jobs")
    async with asyncio.timeout(PATIENCE), dbos, Client(dbos_database_url) as client:
        stub = client.stub("refund")
        served = await client.enqueue("jobs", stub.with_options(**ANN))
        refused = await client.enqueue("jobs", stub.with_options(authenticated_user="bob"))
        bounced = await client.debouncer(stub.with_options(**ANN), period=0.05).debounce("key")
        assert (await served.get_result())[0] == ["ann", ["clerk", "admin"], "admin"]
        assert (await bounced.get_result())[0] == ["ann", ["clerk", "admin"], "admin"]
        with pytest.raises(NotAuthorizedError, match="'bob' with no role"):
            await refused.get_result()
        [failed] = await dbos.list_workflows(status="ERROR", user="bob")
    assert failed.workflow_id == refused.workflow_id


async def test_roles_that_were_taken_away_from_the_code_end_a_recovery(
    dbos_database_url: str,
) -> None:
    before = shop(dbos_database_url)
    refund = refunds(before, required=["clerk"])
    async with asyncio.timeout(PATIENCE), before:
        await refund.with_options(workflow_id="r-1", **ANN)()
    after = shop(dbos_database_url)
    refunds(after, required=["owner"])
    [report] = await after.check_replay(workflow_ids=["r-1"])
    assert report.verdict == "not_authorized"
    async with asyncio.timeout(PATIENCE), after:
        with pytest.raises(NotAuthorizedError, match="'owner'"):
            await (await after.fork_workflow("r-1")).get_result()


async def test_roles_that_cannot_be_read_serve_nobody(dbos_database_url: str) -> None:
    dbos = shop(dbos_database_url)
    refunds(dbos, required=[])
    async with asyncio.timeout(PATIENCE), dbos:
        connection = await asyncpg.connect(dbos_database_url)
        [(workflow_id,)] = await connection.fetch(
            "select dbos.enqueue_workflow('refund', '_dbos_internal_queue', "
            "authenticated_user => 'eve', authenticated_roles => 'admin')"
        )
        await connection.close()
        handle = await dbos.retrieve_workflow(workflow_id)
        with pytest.raises(Exception, match="authenticated_roles"):
            await handle.get_result()
        assert (await handle.get_status()).authenticated_roles == []


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda w: w.with_options(authenticated_roles="admin"), TypeError),
        (lambda w: w.with_options(authenticated_roles=[1]), TypeError),
        (lambda w: w.with_options(authenticated_roles=[""]), ValueError),
        (lambda w: w.with_options(authenticated_user=7), TypeError),
        (lambda w: w.with_options(authenticated_user=""), ValueError),
        (lambda w: refunds(shop(""), required="admin"), TypeError),
        (lambda w: refunds(shop(""), required=[None]), TypeError),
    ],
)
def test_callers_and_roles_that_cannot_be_are_refused(
    wrong: Callable[[Any], Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"authenticated_|required_roles"):
        wrong(refunds(shop("")))
