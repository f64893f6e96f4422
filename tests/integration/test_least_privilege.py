"""An app whose role may do no more than it must, in a schema that somebody else installed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from dbos_async import DBOS, ConfigurationError
from dbos_async._store import databases
from dbos_async.testing import PostgresServer

GRANTS = (
    "grant usage on schema dbos to {role}",
    "grant select, insert, update, delete on all tables in schema dbos to {role}",
    "grant usage on all sequences in schema dbos to {role}",
    "grant execute on all functions in schema dbos to {role}",
)
"""All that is needed."""


class Role:
    """A login that may do nothing yet."""

    def __init__(self, name: str, owner: Any, url: str) -> None:
        self.name = name
        self.owner = owner
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{name}:{name}@{host}{parts.path}?{parts.query}".rstrip("?")

    async def grant(self, *grants: str) -> None:
        for grant in grants:
            await self.owner.execute(grant.format(role=self.name))


@pytest.fixture
async def role(dbos_database_url: str) -> AsyncIterator[Role]:
    owner = await asyncpg.connect(dbos_database_url)
    name = f"least_{uuid4().hex[:12]}"
    try:
        if not await owner.fetchval("select rolsuper from pg_roles where rolname = current_user"):
            pytest.skip("making roles takes a superuser")
        await owner.execute(f"""
            create role {name} login password '{name}';
            revoke all on schema public from public;
            revoke execute on all functions in schema dbos from public
        """)
        yield Role(name, owner, dbos_database_url)
        await owner.execute(f"drop owned by {name} cascade; drop role {name}")
    finally:
        await owner.close()


class Shop:
    """An app that uses whatever there is."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.dbos = dbos = DBOS("shop", url, app_version="1", **settings)
        self.mail = dbos.queue("mail", concurrency=2)

        @dbos.step
        async def double(number: int) -> int:
            return 2 * number

        @dbos.workflow(name="child")
        async def child(number: int) -> int:
            return await double(number)

        @dbos.workflow(name="everything")
        async def everything() -> list[int]:
            branches = await asyncio.gather(double(1), double(2))
            await dbos.sleep(0.01)
            queued = await self.mail.enqueue(child.with_options(delay=0.01), 3)
            return [*branches, await child(4), await queued.get_result()]

        self.everything, self.child = everything, child


@pytest.mark.parametrize("migrate", [False, True])
async def test_an_app_needs_no_more_than_the_granted_rights(role: Role, *, migrate: bool) -> None:
    await role.grant(*GRANTS)
    shop = Shop(role.url, migrate=migrate)
    async with shop.dbos:
        handle = await shop.dbos.start_workflow(shop.everything)
        assert await handle.get_result() == [2, 4, 8, 6]
        assert len(await shop.dbos.list_workflows()) == 3
        assert len(await shop.dbos.list_steps(handle.workflow_id)) == 7
        await shop.dbos.cancel_workflow(handle.workflow_id)
    assert (
        await role.owner.fetchval(
            "select count(*) from pg_class where relowner = $1::regrole", role.name
        )
        == 0
    )


async def test_an_app_with_the_granted_rights_takes_over_what_a_dead_process_left(
    role: Role,
) -> None:
    await role.grant(*GRANTS)
    await role.owner.execute("""
        insert into dbos.workflow_status
               (workflow_uuid, status, name, inputs, executor_id, application_version, owner_xid,
                application_name, serialization)
        values ('left', 'PENDING', 'child', '{"positionalArgs":[21]}', 'dead', '1', 'gone', 'shop',
                'portable_json')
    """)
    shop = Shop(role.url, migrate=False)
    async with shop.dbos:
        left = await shop.dbos.retrieve_workflow("left")
        assert await left.get_result(timeout=20) == 42


async def test_an_app_without_rights_is_told_which_it_needs(role: Role) -> None:
    with pytest.raises(ConfigurationError, match=f"{role.name}.*usage on the schema"):
        await Shop(role.url, migrate=False).dbos.launch()


@pytest.mark.parametrize("left_out", [1, 2])
async def test_each_grant_is_needed(role: Role, left_out: int) -> None:
    grants = [grant for grant in GRANTS if grant != GRANTS[left_out]]
    await role.grant(*grants)
    shop = Shop(role.url, migrate=False)
    with pytest.raises(Exception, match="permission denied"):
        async with shop.dbos:
            await shop.mail.enqueue(shop.child, 1)


async def test_an_app_that_may_not_migrate_says_what_an_empty_database_lacks(
    dbos_postgres: PostgresServer,
) -> None:
    name = f"empty_{uuid4().hex}"
    await databases.ensure_database(dbos_postgres.url, name)
    url = dbos_postgres.url_of(name)
    try:
        with pytest.raises(ConfigurationError, match=r"no schema dbos.*schema\.sql"):
            await Shop(url, migrate=False).dbos.launch()
        connection = await asyncpg.connect(url)
        try:
            assert await connection.fetchval("select to_regnamespace('dbos')") is None
        finally:
            await connection.close()
    finally:
        await databases.drop_database(dbos_postgres.url, name)


async def test_an_app_that_may_not_migrate_names_all_that_is_missing(
    dbos_database_url: str,
) -> None:
    connection = await asyncpg.connect(dbos_database_url)
    try:
        await connection.execute("""
            alter table dbos.workflow_status drop column enqueue_order;
            drop index dbos.dbos_async_pending;
            drop table dbos.streams
        """)
    finally:
        await connection.close()
    with pytest.raises(ConfigurationError) as raised:
        await Shop(dbos_database_url, migrate=False).dbos.launch()
    for missing in ("workflow_status.enqueue_order", "dbos_async_pending", "table streams"):
        assert missing in str(raised.value)
    async with Shop(dbos_database_url).dbos:  # the way out that the message names
        pass
