"""Large values in a payload store: what goes there, who reads it, and when it goes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from obstore.store import LocalStore, MemoryStore, S3Store

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DatabaseRefusedError,
    PayloadMissingError,
    PayloadStoreError,
    Retry,
    SerializationError,
    StepRetriesExhaustedError,
)
from dbos_async._store import payloads, sql
from dbos_async._store.payloads import PREFIX
from dbos_async.testing import free_port

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]

LONG = "long " * 1000
"""What is above the threshold of these tests."""
THRESHOLD = 1000


class Shop:
    """An app whose threshold is low; `calls` counts what really ran."""

    def __init__(self, url: str, store: Any, **settings: Any) -> None:
        self.calls: list[str] = []
        settings = {"app_version": "1", "payload_threshold": THRESHOLD, **settings}
        self.dbos = dbos = DBOS("shop", url, payload_store=store, **settings)
        dbos.configure(recheck_interval=0.2)
        self.mail = dbos.queue("mail")
        self.gate = asyncio.Event()

        @dbos.step(name="make")
        async def make(size: int) -> str:
            self.calls.append("make")
            return "x" * size

        @dbos.step(name="hold")
        async def hold() -> None:
            self.calls.append("hold")
            await self.gate.wait()

        @dbos.workflow(name="echo")
        async def echo(text: str) -> str:
            return text

        @dbos.workflow(name="sizes")
        async def sizes(size: int) -> int:
            made = await make(size)
            await hold()
            return len(made)

        @dbos.workflow(name="parent")
        async def parent(text: str) -> int:
            handle = await dbos.start_workflow(echo, text)
            queued = await self.mail.enqueue(echo, text)
            many = await self.mail.enqueue_many([echo.bind(text), echo.bind("short")])
            results = [await each.get_result() for each in (handle, queued, *many)]
            return sum(map(len, [await echo(text), *results]))

        @dbos.workflow(name="careless")
        async def careless(size: int) -> str:
            try:
                await make(size)
            except Exception:  # noqa: BLE001  # what this is about
                return "caught"
            await hold()
            return "made"

        self.make, self.echo, self.sizes = make, echo, sizes
        self.parent, self.careless = parent, careless


class Shelf:
    """A directory of objects, and the database that refers to it."""

    def __init__(self, path: Path, database: Any) -> None:
        self.path = path
        self.database = database

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    async def column(self, statement: str, *values: object) -> list[Any]:
        return [row[0] for row in await self.database.fetch(statement, *values)]

    async def registered(self) -> list[str]:
        return await self.column(
            "select object_key from dbos.dbos_async_payloads where object_key <> '' order by 1"
        )

    async def age(self) -> None:
        """Let everything have been uploaded long ago."""
        await self.database.execute(
            "update dbos.dbos_async_payloads set created_at_epoch_ms = 0 where object_key <> ''"
        )


@pytest.fixture
def shelf(tmp_path: Path, database: Any) -> Shelf:
    return Shelf(tmp_path / "objects", database)


@pytest.fixture
async def shop(dbos_database_url: str, shelf: Shelf) -> AsyncIterator[Shop]:
    shop = Shop(dbos_database_url, shelf.url)
    shop.gate.set()
    async with shop.dbos:
        yield shop


# What goes there, and who reads it


async def test_a_large_input_and_result_are_in_the_store_and_references_in_the_row(
    shop: Shop, shelf: Shelf
) -> None:
    assert await shop.echo.with_options(workflow_id="w")(LONG) == LONG
    [row] = await shelf.database.fetch("select inputs, output from dbos.workflow_status")
    assert row["inputs"].startswith(PREFIX)
    assert row["output"].startswith(PREFIX)
    assert max(map(len, row)) < 300
    assert [path.name.partition("-")[0] for path in shelf.files()] == ["input", "result"]
    assert {path.parent.name for path in shelf.files()} == {"w"}


async def test_what_is_small_costs_nothing(shop: Shop, shelf: Shelf) -> None:
    assert await shop.echo("short") == "short"
    assert shelf.files() == []
    assert await shelf.registered() == []


async def test_a_step_and_its_replay_see_the_same(
    dbos_database_url: str, shelf: Shelf, until: Until
) -> None:
    first = Shop(dbos_database_url, shelf.url)
    await first.dbos.launch()
    await first.dbos.start_workflow(first.sizes.with_options(workflow_id="w"), 5000)
    await until(lambda: held(first))
    await first.dbos.shutdown(timeout=0)
    [output] = await shelf.column(
        "select output from dbos.operation_outputs where function_name = 'make'"
    )
    assert output.startswith(PREFIX)
    second = Shop(dbos_database_url, shelf.url)
    second.gate.set()
    async with second.dbos:
        handle = await second.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=20) == 5000
    assert second.calls == ["hold"]


async def held(shop: Shop) -> bool:
    return "hold" in shop.calls


async def test_children_and_bulk_enqueues_have_large_arguments_too(
    shop: Shop, shelf: Shelf
) -> None:
    assert await shop.parent(LONG) == 4 * len(LONG) + len("short")
    inputs = await shelf.column("select inputs from dbos.workflow_status where name = 'echo'")
    assert sum(text.startswith(PREFIX) for text in inputs) == 4


async def test_a_client_with_the_store_writes_and_reads(
    shop: Shop, shelf: Shelf, dbos_database_url: str
) -> None:
    store = LocalStore(shelf.path)
    client = Client(dbos_database_url, payload_store=store, payload_threshold=THRESHOLD)
    async with client:
        handle = await client.enqueue("mail", client.stub("echo"), LONG)
        assert await handle.get_result(timeout=20) == LONG
        many = await client.enqueue_many("mail", [client.stub("echo").bind(LONG)])
        assert await many[0].get_result(timeout=20) == LONG
        status = await handle.get_status()
        assert status.output == LONG
        assert status.input is not None
        assert status.input.args == (LONG,)
    inputs = await shelf.column("select inputs from dbos.workflow_status")
    assert all(text.startswith(PREFIX) for text in inputs)


async def test_listings_show_the_values_unless_they_are_not_asked_for(
    shop: Shop, shelf: Shelf
) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    await shop.sizes.with_options(workflow_id="s")(5000)
    [row] = await shop.dbos.list_workflows(workflow_ids=["w"])
    assert row.input is not None
    assert (row.input.args, row.output) == ((LONG,), LONG)
    made, _ = await shop.dbos.list_steps("s")
    assert made.output == "x" * 5000
    for path in shelf.files():
        path.unlink()
    [row] = await shop.dbos.list_workflows(workflow_ids=["w"], load_input=False, load_output=False)
    assert (row.input, row.output) == (None, None)


async def test_a_missing_object_hides_nothing_else_of_a_listing(shop: Shop, shelf: Shelf) -> None:
    await shop.echo.with_options(workflow_id="lost")(LONG)
    for path in shelf.files():
        path.unlink()
    await shop.echo.with_options(workflow_id="kept")(LONG)
    kept, lost = await shop.dbos.list_workflows()
    assert kept.output == LONG
    assert (lost.input, lost.output[: len(PREFIX)]) == (None, PREFIX)


async def test_a_listing_within_a_workflow_is_replayed_with_its_values(
    dbos_database_url: str, shelf: Shelf, until: Until
) -> None:
    first = Shop(dbos_database_url, shelf.url)
    second = Shop(dbos_database_url, shelf.url)
    second.gate.set()
    flows = {}
    for shop in (first, second):

        @shop.dbos.workflow(name="look")
        async def look(shop: Shop = shop) -> str:
            [row] = await shop.dbos.list_workflows(workflow_ids=["w"])
            await shop.sizes(1)
            return str(row.output)

        flows[shop] = look
    async with first.dbos:
        await first.echo.with_options(workflow_id="w")(LONG)
        await first.dbos.start_workflow(flows[first].with_options(workflow_id="look"))
        await until(lambda: held(first))
        await first.dbos.delete_workflow("w")
        await first.dbos.shutdown(timeout=0)
    async with second.dbos:
        handle = await second.dbos.retrieve_workflow("look")
        assert await handle.get_result(timeout=20) == LONG


async def test_an_export_holds_the_values_and_an_import_needs_no_store(
    shop: Shop, shelf: Shelf
) -> None:
    await shop.sizes.with_options(workflow_id="s")(5000)
    await shop.echo.with_options(workflow_id="w")(LONG)
    exported = [await shop.dbos.export_workflow(each) for each in ("s", "w")]
    assert not any(PREFIX in text for text in exported)
    await shop.dbos.delete_workflows(workflow_ids=["s", "w"])
    assert shelf.files() == []
    for text in exported:
        await shop.dbos.import_workflow(text)
    [row] = await shop.dbos.list_workflows(workflow_ids=["w"])
    assert row.output == LONG
    made, _ = await shop.dbos.list_steps("s")
    assert made.output == "x" * 5000


async def test_check_replay_reads_what_is_in_the_store(shop: Shop, shelf: Shelf) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    await shop.sizes.with_options(workflow_id="s")(5000)
    files = shelf.files()
    reports = await shop.dbos.check_replay(workflow_ids=["w", "s"])
    assert [(report.verdict, report.detail) for report in reports] == [("ok", "")] * 2
    assert shelf.files() == files
    for path in files:
        path.unlink()
    reports = await shop.dbos.check_replay(workflow_ids=["w", "s"])
    assert [report.verdict for report in reports] == ["stuck", "stuck"]
    assert all("cannot be read" in report.detail for report in reports)


async def test_what_goes_to_the_store_has_no_limit(dbos_database_url: str, shelf: Shelf) -> None:
    shop = Shop(dbos_database_url, shelf.url, max_payload_bytes=2000)
    async with shop.dbos:
        assert await shop.echo(LONG) == LONG
    shop = Shop(dbos_database_url, shelf.url, max_payload_bytes=500)
    async with shop.dbos:
        assert await shop.echo("x" * 900) == "x" * 900  # below the threshold


async def test_a_text_that_looks_like_a_reference_is_a_text(shop: Shop) -> None:
    forged = PREFIX + '{"key":"w/result-1","bytes":1,"digest":"","store":""}'
    assert await shop.echo.with_options(workflow_id="w")(forged) == forged
    status = await (await shop.dbos.retrieve_workflow("w")).get_status()
    assert status.output == forged


async def test_a_reference_to_no_object_of_ours_is_refused(shop: Shop, shelf: Shelf) -> None:
    (shelf.path.parent / "secret").write_text('"secret"')
    await shop.echo.with_options(workflow_id="w")("short")
    forged = PREFIX + '{"key":"../secret","bytes":8,"digest":"","store":""}'
    await shelf.database.execute("update dbos.workflow_status set output = $1", forged)
    with pytest.raises(PayloadMissingError, match="no object has such a key"):
        await (await shop.dbos.retrieve_workflow("w")).get_result()


async def test_an_object_that_was_changed_is_not_believed(shop: Shop, shelf: Shelf) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    for path in shelf.files():
        path.write_bytes(path.read_bytes().replace(b"long", b"Long"))
    with pytest.raises(PayloadMissingError, match="was not written as this object") as caught:
        await (await shop.dbos.retrieve_workflow("w")).get_result()
    assert caught.value.workflow_id == "w"
    assert caught.value.store == shelf.url
    assert caught.value.key is not None


async def test_a_memory_store_serves_one_process(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url, MemoryStore())
    async with shop.dbos:
        assert await shop.echo(LONG) == LONG


# What is missing, and who has no store


async def test_a_reader_without_a_store_is_told_what_to_do(
    shop: Shop, shelf: Shelf, dbos_database_url: str
) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    async with Client(dbos_database_url) as client:
        handle = await client.retrieve_workflow("w")
        with pytest.raises(PayloadMissingError, match="has no payload store: give it") as caught:
            await handle.get_result()
        assert "'w'" in str(caught.value)
        assert shelf.url in str(caught.value)
        assert (await handle.get_status()).output.startswith(PREFIX)


async def test_a_missing_result_of_a_step_ends_the_workflow_though_it_catches_everything(
    dbos_database_url: str, shelf: Shelf, until: Until
) -> None:
    first = Shop(dbos_database_url, shelf.url)
    await first.dbos.launch()
    await first.dbos.start_workflow(first.careless.with_options(workflow_id="w"), 5000)
    await until(lambda: held(first))
    await first.dbos.shutdown(timeout=0)
    [path] = shelf.files()
    content = path.read_bytes()
    path.unlink()
    second = Shop(dbos_database_url, shelf.url)
    second.gate.set()
    async with second.dbos:
        handle = await second.dbos.retrieve_workflow("w")
        with pytest.raises(PayloadMissingError, match="does not have it: restore it"):
            await handle.get_result(timeout=20)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        handle = await second.dbos.rewind_workflow("w", from_step=2)
        assert await handle.get_result(timeout=20) == "made"
    assert second.calls == ["hold"]


async def test_missing_arguments_end_the_workflow_by_name(
    dbos_database_url: str, shelf: Shelf
) -> None:
    client = Client(dbos_database_url, payload_store=shelf.url, payload_threshold=THRESHOLD)
    shop = Shop(dbos_database_url, shelf.url)
    async with shop.dbos:
        await shop.dbos.shutdown()
    async with client:
        await client.enqueue("mail", client.stub("echo").with_options(workflow_id="w"), LONG)
    [path] = shelf.files()
    path.unlink()
    async with shop.dbos:
        handle = await shop.dbos.retrieve_workflow("w")
        with pytest.raises(PayloadMissingError, match="workflow 'w'"):
            await handle.get_result(timeout=20)


# A store that does not answer


def closed_store() -> Any:
    """A bucket behind a port that nobody listens on."""
    return S3Store(
        "bucket",
        endpoint=f"http://127.0.0.1:{free_port()}",
        region="here",
        access_key_id="a",
        secret_access_key="b",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    )


async def test_an_unreachable_store_fails_the_attempts_of_a_step(dbos_database_url: str) -> None:
    shop = Shop(dbos_database_url, closed_store())
    patient = shop.make.with_options(retry=Retry(max_attempts=3, interval=0.01))

    @shop.dbos.workflow
    async def once() -> str:
        return await shop.make(5000)

    @shop.dbos.workflow
    async def thrice() -> str:
        return await patient(5000)

    async with shop.dbos:
        with pytest.raises(PayloadStoreError, match="s3://bucket took no object") as caught:
            await once.with_options(workflow_id="w")()
        assert caught.value.store == "s3://bucket"
        assert "the result of step 1 of workflow 'w'" in str(caught.value)
        assert shop.calls == ["make"]
        with pytest.raises(StepRetriesExhaustedError, match="failed 3 times") as exhausted:
            await thrice()
        assert [type(each) for each in exhausted.value.errors] == [PayloadStoreError] * 3
        assert shop.calls == ["make"] * 4


async def test_a_step_whose_store_is_back_for_the_next_attempt_succeeds(
    dbos_database_url: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(dbos_database_url, shelf.url)
    patient = shop.make.with_options(retry=Retry(max_attempts=2, interval=0.01))

    @shop.dbos.workflow
    async def twice() -> int:
        return len(await patient(5000))

    put = payloads.ObjectStore.put
    failures = iter([True, False])

    async def fail_once(self: Any, *args: Any) -> None:
        if next(failures):
            raise PayloadStoreError("away")
        await put(self, *args)

    monkeypatch.setattr(payloads.ObjectStore, "put", fail_once)
    async with shop.dbos:
        assert await twice() == 5000
    assert shop.calls == ["make", "make"]


async def test_arguments_that_the_store_does_not_take_start_nothing(
    dbos_database_url: str, shelf: Shelf
) -> None:
    shop = Shop(dbos_database_url, closed_store())
    async with shop.dbos:
        with pytest.raises(PayloadStoreError, match="the input of workflow 'w'"):
            await shop.echo.with_options(workflow_id="w")(LONG)
        with pytest.raises(PayloadStoreError, match="the input of workflow 'w'"):
            await shop.mail.enqueue(shop.echo.with_options(workflow_id="w"), LONG)
        assert await shop.dbos.list_workflows() == []


async def test_a_result_that_the_store_never_takes_is_an_error_by_name(
    dbos_database_url: str,
) -> None:
    shop = Shop(dbos_database_url, closed_store())

    @shop.dbos.workflow
    async def large() -> str:
        return LONG

    async with shop.dbos:
        shop.dbos.launched().session.payloads.patience = 0.2
        with pytest.raises(PayloadStoreError, match="the result of workflow 'w'"):
            await large.with_options(workflow_id="w")()


async def test_a_child_whose_arguments_the_store_never_takes_is_a_recorded_error(
    dbos_database_url: str, database: Any
) -> None:
    shop = Shop(dbos_database_url, closed_store())

    @shop.dbos.workflow
    async def bear() -> str:
        try:
            await shop.dbos.start_workflow(shop.echo, LONG)
        except PayloadStoreError:
            return "refused"
        return "started"

    async with shop.dbos:
        shop.dbos.launched().session.payloads.patience = 0.2
        assert await bear() == "refused"
        [error] = await database.fetch("select error from dbos.operation_outputs")
        assert "PayloadStoreError" in error["error"]


async def test_a_replay_waits_for_a_store_that_is_away(
    dbos_database_url: str, shelf: Shelf, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Shop(dbos_database_url, shelf.url)
    await first.dbos.launch()
    await first.dbos.start_workflow(first.sizes.with_options(workflow_id="w"), 5000)
    await until(lambda: held(first))
    await first.dbos.shutdown(timeout=0)
    get = payloads.ObjectStore.get
    asked = 0

    async def away_at_first(self: Any, key: str) -> AsyncIterator[bytes]:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise PayloadStoreError("away")
        async for chunk in get(self, key):
            yield chunk

    monkeypatch.setattr(payloads.ObjectStore, "get", away_at_first)
    second = Shop(dbos_database_url, shelf.url)
    second.gate.set()
    async with second.dbos:
        handle = await second.dbos.retrieve_workflow("w")
        assert await handle.get_result(timeout=20) == 5000
    assert asked == 4


# When an object goes


async def test_deleting_a_workflow_deletes_its_objects(shop: Shop, shelf: Shelf) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    await shop.echo.with_options(workflow_id="v")(LONG)
    await shop.dbos.delete_workflow("w")
    assert {path.parent.name for path in shelf.files()} == {"v"}
    assert not (shelf.path / "w").exists()
    await shop.dbos.delete_workflows(workflow_ids=["v"])
    assert shelf.files() == []
    assert await shelf.registered() == []


async def test_a_sweep_deletes_what_others_left(
    dbos_database_url: str, shelf: Shelf, until: Until
) -> None:
    shop = Shop(dbos_database_url, shelf.url)
    async with shop.dbos:
        for workflow_id in ("gone", "stays"):
            await shop.echo.with_options(workflow_id=workflow_id)(LONG)
    await shelf.database.execute("delete from dbos.workflow_status where workflow_uuid = 'gone'")
    async with shop.dbos:  # which is no hour later
        await shop.dbos.launched().session.payloads.sweep()
    assert len(shelf.files()) == 4
    await shelf.age()
    async with shop.dbos:
        await until(lambda: is_left(shelf, {"stays"}))
    assert {path.parent.name for path in shelf.files()} == {"stays"}


async def is_left(shelf: Shelf, names: set[str]) -> bool:
    return {key.partition("/")[0] for key in await shelf.registered()} == names


async def test_a_sweep_of_many_pages_misses_none(
    dbos_database_url: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "PAGE", 3)
    shop = Shop(dbos_database_url, shelf.url)
    async with shop.dbos:
        for number in range(5):
            await shop.echo.with_options(workflow_id=f"w{number}")(LONG)
        await shelf.database.execute("delete from dbos.workflow_status")
        await shelf.age()
        assert await shop.dbos.launched().session.payloads.sweep() == 10
    assert shelf.files() == []
    assert await shelf.registered() == []


async def test_one_process_of_several_sweeps(shop: Shop) -> None:
    kept = shop.dbos.launched().session.payloads
    assert await kept.claim_sweep(600_000)
    assert not await kept.claim_sweep(600_000)
    assert await kept.claim_sweep(0)


async def test_a_sweep_leaves_other_stores_alone(
    shop: Shop, shelf: Shelf, dbos_database_url: str, tmp_path: Path
) -> None:
    await shop.echo(LONG)
    await shelf.database.execute("delete from dbos.workflow_status")
    await shelf.age()
    other = Shop(dbos_database_url, f"file://{tmp_path / 'elsewhere'}")
    async with other.dbos:
        assert await other.dbos.launched().session.payloads.sweep() == 0
    assert len(shelf.files()) == 2


async def test_a_workflow_whose_object_was_swept_meanwhile_is_refused(
    shop: Shop, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = shop.dbos.launched().session.payloads
    put = payloads.ObjectStore.put

    async def slowly(self: Any, *args: Any) -> None:
        await put(self, *args)
        await shelf.age()
        await kept.sweep()

    monkeypatch.setattr(payloads.ObjectStore, "put", slowly)
    with pytest.raises(DatabaseRefusedError, match="is gone"):
        await shop.dbos.start_workflow(shop.echo, LONG)
    assert await shop.dbos.list_workflows() == []
    assert shelf.files() == []


async def test_a_second_start_of_a_workflow_leaves_nothing(shop: Shop, shelf: Shelf) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    files = shelf.files()
    assert await shop.echo.with_options(workflow_id="w")(LONG) == LONG
    assert shelf.files() == files


# Forks


async def test_a_fork_keeps_what_it_was_forked_from(shop: Shop, shelf: Shelf) -> None:
    await shop.sizes.with_options(workflow_id="w")(5000)
    fork = await shop.dbos.fork_workflow("w", from_step=2)
    assert await fork.get_result(timeout=20) == 5000
    again = await shop.dbos.fork_workflow(fork.workflow_id, from_step=2)
    assert await again.get_result(timeout=20) == 5000
    await shop.dbos.delete_workflow("w")
    await shop.dbos.delete_workflow(fork.workflow_id)
    made, _ = await shop.dbos.list_steps(again.workflow_id)
    assert made.output == "x" * 5000
    await shop.dbos.delete_workflow(again.workflow_id)
    assert shelf.files() == []


async def test_a_fork_that_nobody_registered_keeps_the_objects_too(
    shop: Shop, shelf: Shelf
) -> None:
    await shop.sizes.with_options(workflow_id="w")(5000)
    fork = await shop.dbos.fork_workflow("w", from_step=2)
    await fork.get_result(timeout=20)
    await shelf.database.execute(
        "delete from dbos.dbos_async_payloads where workflow_id = $1", fork.workflow_id
    )
    await shop.dbos.delete_workflow("w")
    made, _ = await shop.dbos.list_steps(fork.workflow_id)
    assert made.output == "x" * 5000
    await shelf.database.execute("delete from dbos.workflow_status")
    await shelf.age()
    await shop.dbos.launched().session.payloads.sweep()
    assert shelf.files() == []


async def test_a_deletion_waits_for_a_fork_that_has_not_committed(
    shop: Shop, shelf: Shelf, database: Any, until: Until
) -> None:
    await shop.sizes.with_options(workflow_id="w")(5000)
    transaction = database.transaction()
    await transaction.start()
    await database.execute(sql.FORK, ["w"], "fork", 2, "1", "mail", None)
    deleting = asyncio.create_task(shop.dbos.delete_workflow("w"))
    await until(lambda: is_blocked(database))
    assert not deleting.done()
    await transaction.commit()
    await deleting
    assert len(shelf.files()) == 1
    handle = await shop.dbos.retrieve_workflow("fork")
    assert await handle.get_result(timeout=20) == 5000


async def is_blocked(database: Any) -> bool:
    return bool(
        await database.fetchval(
            "select count(*) from pg_stat_activity where pg_backend_pid() = "
            "any(pg_blocking_pids(pid))"
        )
    )


async def test_a_fork_of_what_is_deleted_at_the_same_moment_finds_nothing(
    shop: Shop, shelf: Shelf, database: Any, dbos_database_url: str, until: Until
) -> None:
    await shop.echo.with_options(workflow_id="w")(LONG)
    transaction = database.transaction()
    await transaction.start()
    await database.execute("delete from dbos.workflow_status where workflow_uuid = 'w'")
    forker = await asyncpg.connect(dbos_database_url)
    try:
        forking = asyncio.create_task(forker.execute(sql.FORK, ["w"], "fork", 1, "1", "mail", None))
        await until(lambda: is_blocked(database))
        await transaction.commit()
        await forking
    finally:
        await forker.close()
    assert await shop.dbos.list_workflows() == []


# Bad settings


@pytest.mark.parametrize(
    ("store", "match"),
    [
        ("nonsense", "cannot be opened"),
        ("bogus://bucket/x", "cannot be opened"),
        ("s3://user:secret@/", r"payload_store='s3:///' cannot be opened"),
        (object(), "is a URL such as"),
    ],
)
async def test_a_store_that_cannot_be_is_refused_at_the_launch(
    dbos_database_url: str, store: Any, match: str
) -> None:
    shop = Shop(dbos_database_url, store)
    with pytest.raises(ConfigurationError, match=match):
        await shop.dbos.launch()


async def test_a_store_needs_obstore(
    dbos_database_url: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dbos_async\[payloads\]'"):
        await Shop(dbos_database_url, shelf.url).dbos.launch()


async def test_a_threshold_is_a_number_from_one_on(dbos_database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="payload_threshold must be at least 1"):
        await Shop(dbos_database_url, None, payload_threshold=0).dbos.launch()


async def test_the_environment_names_a_store(
    dbos_database_url: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBOS_PAYLOAD_STORE", shelf.url)
    shop = Shop(dbos_database_url, None)
    async with shop.dbos:
        await shop.echo(LONG)
    assert len(shelf.files()) == 2


async def test_a_value_that_cannot_be_stored_is_no_matter_of_the_store(
    shop: Shop, shelf: Shelf
) -> None:
    with pytest.raises(SerializationError, match=r"argument text.*lone surrogate"):
        await shop.echo("\ud800" * 3_000_000)
    assert shelf.files() == []
