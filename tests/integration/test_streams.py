"""Streams: written by the workflow that owns them, read by anybody, in order, as they come."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Struct

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DivergenceError,
    Retry,
    SerializationError,
    StreamClosedError,
    Workflow,
    WorkflowCancelledError,
    WorkflowNotFoundError,
)
from dbos_async._store import sql, streams
from dbos_async._store.notifier import Notifier

PATIENCE = 20.0
HOUR = 3_600.0

Database = Any
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
Body = Callable[["Speaker"], Awaitable[Any]]


class Token(Struct):
    text: str
    number: int


class Speaker:
    """An app with one workflow of any body; rechecks are an hour apart unless given."""

    def __init__(self, url: str, body: Body | None = None, *, recheck: float = HOUR) -> None:
        self.dbos = dbos = DBOS("speaker", url, app_version="1")
        self.gate = asyncio.Event()
        dbos.configure(recheck_interval=recheck)

        @dbos.step(name="say")
        async def say(key: str, *values: Any) -> None:
            for value in values:
                await dbos.write_stream(key, value)

        @dbos.step(name="close")
        async def close(key: str) -> None:
            await dbos.close_stream(key)

        @dbos.workflow(name="speak")
        async def speak() -> Any:
            assert body is not None
            return await body(self)

        self.say, self.close, self.speak = say, close, speak

    async def start(self, workflow_id: str = "w") -> Any:
        return await self.dbos.start_workflow(self.speak.with_options(workflow_id=workflow_id))


async def all_of(source: Any, workflow_id: str = "w", key: str = "k", **options: Any) -> list[Any]:
    """A stream from somewhere to its end."""
    async with asyncio.timeout(PATIENCE):
        return [value async for value in source.read_stream(workflow_id, key, **options)]


async def rows_of(database: Database, workflow_id: str = "w", key: str = "k") -> list[Any]:
    """A stream as the table has it."""
    return [
        tuple(row)
        for row in await database.fetch(
            'select "offset", value, function_id from dbos.streams '
            "where workflow_uuid = $1 and key = $2 order by 1",
            workflow_id,
            key,
        )
    ]


async def hello(speaker: Speaker) -> None:
    """Three values of the workflow's own around two of a step."""
    await speaker.dbos.write_stream("k", "hello")
    await speaker.say("k", 1, 2)
    await speaker.dbos.write_stream("k", {"is": ["there"]})
    await speaker.dbos.write_stream("k", None)


HELLO = ["hello", 1, 2, {"is": ["there"]}, None]

# Reading


async def test_what_a_workflow_and_its_steps_write_is_read_in_order(
    dbos_database_url: str, database: Database
) -> None:
    speaker = Speaker(dbos_database_url, hello)
    async with speaker.dbos as dbos, Client(dbos_database_url) as client:
        await speaker.start()
        assert await all_of(dbos) == HELLO
        assert await all_of(client) == HELLO
        assert await all_of(client, offset=3) == HELLO[3:]
        assert await all_of(client, offset=100) == []
        assert await all_of(client, key="another") == []
    assert [(offset, position) for offset, _, position in await rows_of(database)] == [
        (0, 1), (1, 2), (2, 2), (3, 3), (4, 4),
    ]  # fmt: skip


async def test_each_value_reaches_a_reader_elsewhere_before_the_next_is_written(
    dbos_database_url: str,
) -> None:
    heard = asyncio.Semaphore(0)

    async def body(speaker: Speaker) -> None:
        for number in range(5):
            await speaker.say("k", number)
            await heard.acquire()
        await speaker.dbos.close_stream("k")
        await speaker.gate.wait()

    speaker, listener = Speaker(dbos_database_url, body), Speaker(dbos_database_url)
    async with asyncio.timeout(PATIENCE), speaker.dbos, listener.dbos:
        handle = await speaker.start()
        numbers: list[int] = []
        async for number in listener.dbos.read_stream("w", "k", as_=int):
            numbers.append(number)
            heard.release()
        assert numbers == list(range(5))
        assert (await handle.get_status()).status == "PENDING", "the stream ended, it goes on"
        speaker.gate.set()
        await handle.get_result()


async def fail(speaker: Speaker) -> None:
    await speaker.say("k", 1, 2)
    await speaker.gate.wait()
    raise ValueError("no more")


async def test_a_stream_ends_with_a_workflow_that_fails(dbos_database_url: str) -> None:
    speaker, listener = Speaker(dbos_database_url, fail), Speaker(dbos_database_url)
    async with speaker.dbos, listener.dbos:
        await speaker.start()
        reading = [asyncio.create_task(all_of(one.dbos)) for one in (speaker, listener)]
        assert await anext(listener.dbos.read_stream("w", "k", offset=1)) == 2
        speaker.gate.set()
        assert await asyncio.gather(*reading) == [[1, 2], [1, 2]]


async def test_a_stream_ends_with_a_workflow_that_is_cancelled(dbos_database_url: str) -> None:
    speaker, listener = Speaker(dbos_database_url, fail), Speaker(dbos_database_url)
    async with speaker.dbos, listener.dbos:
        handle = await speaker.start()
        reading = [asyncio.create_task(all_of(one.dbos)) for one in (speaker, listener)]
        assert await anext(listener.dbos.read_stream("w", "k", offset=1)) == 2
        async with Client(dbos_database_url) as client:
            await client.cancel_workflow("w")
            assert await asyncio.gather(*reading) == [[1, 2], [1, 2]]
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result()


async def test_ten_thousand_values_come_in_order(dbos_database_url: str) -> None:
    async def body(speaker: Speaker) -> None:
        await asyncio.gather(
            *[speaker.say(f"k{key}", *range(key, 10_000, 20)) for key in range(20)]
        )

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos, Client(dbos_database_url) as client, asyncio.timeout(120):
        await speaker.start()
        read = await asyncio.gather(*[all_of(client, key=f"k{key}") for key in range(20)])
    assert [values == list(range(key, 10_000, 20)) for key, values in enumerate(read)] == [
        True
    ] * 20


async def test_values_have_the_type_that_is_asked_for(dbos_database_url: str) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.dbos.write_stream("k", Token("a", 1))

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos as dbos:
        await speaker.start()
        assert await all_of(dbos, as_=Token) == [Token("a", 1)]
        assert await all_of(dbos) == [{"text": "a", "number": 1}]
        with pytest.raises(SerializationError, match="does not fit int"):
            await all_of(dbos, as_=int)


async def test_a_value_is_what_it_was_when_it_was_written(dbos_database_url: str) -> None:
    async def body(speaker: Speaker) -> None:
        value = [1]
        writing = speaker.dbos.write_stream("k", value)
        value.append(2)
        await writing

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos as dbos:
        await speaker.start()
        assert await all_of(dbos) == [[1]]


async def test_a_large_value_comes_alone(dbos_database_url: str) -> None:
    big = "x" * streams.MAX_VALUE_BYTES

    async def body(speaker: Speaker) -> None:
        await speaker.say("k", 1, big, big, 2)

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos as dbos:
        await (await speaker.start()).get_result()
        assert await all_of(dbos) == [1, big, big, 2]
        places = [streams.Place("w", "k", offset) for offset in range(4)]
        found = await streams.fetch_values(dbos.launched().session.database, places)  # type: ignore[attr-defined]  # more than an executor needs
    assert [len(values) for values in found] == [2, 1, 1, 1]


# Waiting


async def test_a_reader_is_told_when_nothing_came_in_time(
    dbos_database_url: str, advance: Any
) -> None:
    speaker = Speaker(dbos_database_url, fail)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        handle = await speaker.start()
        assert await anext(dbos.read_stream("w", "k", offset=1)) == 2
        with pytest.raises(TimeoutError, match=r"value 2 of the stream 'k' of workflow 'w'"):
            await all_of(dbos, timeout=0)
        reading = asyncio.create_task(all_of(dbos, timeout=HOUR))
        while not reading.done():
            await advance(HOUR + 1)
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError, match=f"within {HOUR} s"):
            await reading
        speaker.gate.set()
        assert await all_of(dbos, timeout=HOUR) == [1, 2]
        with pytest.raises(ValueError, match="no more"):
            await handle.get_result()


async def test_a_reader_that_goes_away_leaves_nothing_behind(dbos_database_url: str) -> None:
    speaker = Speaker(dbos_database_url, fail)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        await speaker.start()
        wakers = dbos.launched().session.readers._wakers
        breaking = dbos.read_stream("w", "k")
        async for value in breaking:
            assert value == 1
            break
        await breaking.aclose()
        waiting = dbos.read_stream("w", "k", offset=2)
        task = asyncio.ensure_future(anext(waiting))
        while not wakers._asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (wakers._asked, wakers._by_word) == ({}, {})


async def test_a_reader_that_stops_reading_holds_up_nobody_and_asks_for_nothing(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.say("k", *range(1_000))

    fetch, fetched = streams.fetch_values, 0

    async def counted(database: Any, places: Any) -> Any:
        nonlocal fetched
        found = await fetch(database, places)
        fetched += sum(len(values) for values in found)
        return found

    monkeypatch.setattr(streams, "fetch_values", counted)
    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(60), speaker.dbos as dbos, Client(dbos_database_url) as client:
        handle = await speaker.start()
        lazy = client.read_stream("w", "k")
        assert await anext(lazy) == 0
        so_far = fetched
        await handle.get_result()
        assert fetched == so_far <= streams.MAX_VALUES
        assert [value async for value in lazy] == list(range(1, 1_000))
        assert dbos.launched().session.readers._wakers._asked == {}


async def test_many_readers_share_one_look(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, looks = streams.fetch_values, []

    async def counted(database: Any, places: Any) -> Any:
        looks.append(len(places))
        return await fetch(database, places)

    speaker = Speaker(dbos_database_url, fail)
    async with asyncio.timeout(PATIENCE), speaker.dbos, Client(dbos_database_url) as client:
        for number in range(50):
            await speaker.start(f"w{number}")
            assert await anext(client.read_stream(f"w{number}", "k", offset=1)) == 2
        monkeypatch.setattr(streams, "fetch_values", counted)
        reading = [anext(client.read_stream(f"w{number}", "k")) for number in range(50)]
        assert await asyncio.gather(*reading) == [1] * 50
        assert looks == [50]


# Without news


async def test_with_every_notification_lost_the_recheck_finds_the_values(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "NOTIFY", "select $1::text, $2::text[]")
    heard = asyncio.Semaphore(0)

    async def body(speaker: Speaker) -> None:
        for number in range(3):
            await speaker.dbos.write_stream("k", number)
            await heard.acquire()

    speaker = Speaker(dbos_database_url, body)
    listener = Speaker(dbos_database_url, recheck=0.05)
    async with asyncio.timeout(PATIENCE), speaker.dbos, listener.dbos:
        await speaker.start()
        async for _ in listener.dbos.read_stream("w", "k"):
            heard.release()


async def test_after_the_listener_was_cut_and_is_back_nothing_is_missed(
    dbos_database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.dbos.write_stream("k", 1)
        await speaker.gate.wait()
        await speaker.dbos.write_stream("k", 2)

    speaker, listener = Speaker(dbos_database_url, body), Speaker(dbos_database_url)
    async with asyncio.timeout(PATIENCE), speaker.dbos, listener.dbos as dbos:
        handle = await speaker.start()
        reading = dbos.read_stream("w", "k")
        assert await anext(reading) == 1
        monkeypatch.setattr(Notifier, "_heard", lambda *_: None)
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name like '%notifier' and datname = current_database()"
        )
        speaker.gate.set()
        await handle.get_result()
        assert [value async for value in reading] == [2]


async def test_who_writes_by_sql_is_heard(dbos_database_url: str, database: Database) -> None:
    speaker = Speaker(dbos_database_url, fail)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        await speaker.start()
        reading = dbos.read_stream("w", "other")
        waiting = asyncio.ensure_future(anext(reading))
        while not dbos.launched().session.readers._wakers._asked:
            await asyncio.sleep(0)
        await database.execute(INSERT, "other", "1", 0)
        assert await waiting == 1
        await database.execute(INSERT, "\1" * 3_000, "1", 0)  # too long a name to be told


INSERT = """
insert into dbos.streams (workflow_uuid, key, value, "offset", serialization)
values ('w', $1, $2, $3, 'portable_json')
"""


@pytest.mark.parametrize("form", ["workflow", "step"])
async def test_what_was_put_by_sql_where_a_value_belongs_gives_way(
    dbos_database_url: str, database: Database, form: str
) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.dbos.write_stream("k", "first")
        await database.execute(
            'insert into dbos.streams (workflow_uuid, key, value, "offset", serialization)'
            """ values ('w', 'k', '"foreign"', 1, 'portable_json')"""
        )
        if form == "workflow":
            await speaker.dbos.write_stream("k", "second")
        else:
            await speaker.say("k", "second")

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos:
        await (await speaker.start()).get_result(timeout=PATIENCE)
        assert await all_of(speaker.dbos) == ["first", "second"]


async def test_a_value_behind_a_gap_waits_for_what_is_missing(
    dbos_database_url: str, database: Database
) -> None:
    speaker = Speaker(dbos_database_url, fail)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        handle = await speaker.start()
        for offset in (0, 2):
            await database.execute(INSERT, "gap", str(offset), offset)
        reading = dbos.read_stream("w", "gap")
        assert await anext(reading) == 0
        with pytest.raises(TimeoutError):
            await all_of(dbos, key="gap", offset=1, timeout=0)
        waiting = asyncio.ensure_future(anext(reading))
        await database.execute(INSERT, "gap", "1", 1)
        assert await waiting == 1
        assert await anext(reading) == 2
        await database.execute(INSERT, "gap", "5", 5)
        speaker.gate.set()
        with pytest.raises(ValueError, match="no more"):
            await handle.get_result()
        assert [value async for value in reading] == [5], "nothing can fill it any more"


# Writing


async def test_sixteen_branches_write_to_one_key(
    dbos_database_url: str, database: Database
) -> None:
    async def body(speaker: Speaker) -> None:
        async def branch(number: int) -> None:
            for value in range(20):
                await asyncio.sleep(random.uniform(0, 0.002))
                await speaker.dbos.write_stream("k", [number, value])

        await asyncio.gather(*[branch(number) for number in range(16)])

    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(60), speaker.dbos as dbos:
        await speaker.start()
        values = await all_of(dbos)
        steps = await dbos.list_steps("w")
    assert [offset for offset, _, _ in await rows_of(database)] == list(range(320))
    for number in range(16):
        assert [value for n, value in values if n == number] == list(range(20))
    assert {step.name for step in steps} == {"DBOS.writeStream"}
    assert len(steps) == 320


async def test_a_replay_writes_nothing_again(lives: Any, database: Database) -> None:
    ran: list[str] = []

    def declare(life: Any) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.step(name="say")
        async def say(*values: int) -> None:
            ran.append("say")
            for value in values:
                await dbos.write_stream("k", value)

        @dbos.workflow(name="speak")
        async def speak() -> None:
            await dbos.write_stream("k", 0)
            await say(1, 2)
            await dbos.write_stream("k", 3)
            await life.halt()
            await dbos.write_stream("k", 4)
            await say(5)

        return speak

    await lives.both(declare)
    assert [value for _, value, _ in await rows_of(database)] == list("012345")
    assert ran == ["say", "say"]


async def test_a_step_that_runs_again_writes_its_values_again(
    lives: Any, database: Database
) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.step(name="say", retry=Retry(max_attempts=2, interval=0))
        async def say() -> None:
            await dbos.write_stream("k", [life.number, dbos.attempt])
            if dbos.attempt == 1:
                raise ValueError("again")
            await life.halt()

        @dbos.workflow(name="speak")
        async def speak() -> None:
            await asyncio.gather(say(), dbos.write_stream("k", "a"), dbos.write_stream("k", "b"))

        return speak

    await lives.both(declare)
    rows = await rows_of(database)
    assert [offset for offset, _, _ in rows] == list(range(6))
    values = [value for _, value, _ in rows]
    assert [value for value in values if value not in {'"a"', '"b"'}] == [
        "[1,1]",
        "[1,2]",
        "[2,1]",
        "[2,2]",
    ]
    assert values.index('"a"') < values.index('"b"')


async def test_a_workflow_that_was_adopted_keeps_the_order_of_its_calls(
    lives: Any, database: Database
) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="speak")
        async def speak() -> None:
            await dbos.write_stream("k", "first")
            await life.halt()
            await asyncio.gather(*[dbos.write_stream("k", number) for number in range(50)])

        return speak

    await lives.both(declare)
    values = [value for _, value, _ in await rows_of(database)]
    assert values == ['"first"', *map(str, range(50))]


async def test_a_replay_that_writes_another_value_diverges(lives: Any) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        @life.dbos.workflow(name="speak")
        async def speak() -> None:
            await life.dbos.write_stream("k", life.number)
            await life.halt()

        return speak

    with pytest.raises(DivergenceError, match=r"'DBOS.writeStream' with its arguments"):
        await lives.both(declare)


async def test_after_a_cancel_nothing_more_is_written(
    dbos_database_url: str, database: Database
) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.dbos.write_stream("k", 1)
        try:
            await speaker.gate.wait()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await speaker.dbos.write_stream("k", 2)
            with contextlib.suppress(asyncio.CancelledError):
                await speaker.say("k", 3)

    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        handle = await speaker.start()
        assert await anext(dbos.read_stream("w", "k")) == 1
        await dbos.cancel_workflow("w")
        with pytest.raises(WorkflowCancelledError):
            await handle.get_result()
    assert [value for _, value, _ in await rows_of(database)] == ["1"]


async def test_a_process_that_lost_its_workflow_writes_nothing_from_its_step(
    dbos_database_url: str, database: Database
) -> None:
    went_on = asyncio.Event()

    async def body(speaker: Speaker) -> None:
        await speaker.dbos.write_stream("k", 1)
        await speaker.gate.wait()
        try:
            await speaker.say("k", 2, 3)
        finally:
            went_on.set()

    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        await speaker.start()
        assert await anext(dbos.read_stream("w", "k")) == 1
        await database.execute("update dbos.workflow_status set owner_xid = 'another'")
        speaker.gate.set()
        await went_on.wait()
    assert [value for _, value, _ in await rows_of(database)] == ["1"]


# Closing


async def test_what_is_written_after_the_end_is_refused_in_every_life(
    lives: Any, database: Database
) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.step(name="say")
        async def say() -> str:
            with pytest.raises(StreamClosedError, match="'k' of workflow 'w' was closed"):
                await dbos.write_stream("k", 2)
            await dbos.close_stream("k")
            return "refused"

        @dbos.workflow(name="speak")
        async def speak() -> list[str]:
            said: list[str] = []
            await dbos.write_stream("k", 1)
            await dbos.close_stream("k")
            await dbos.close_stream("k")
            for _ in range(2):
                try:
                    await dbos.write_stream("k", 2)
                except StreamClosedError as exc:
                    said.append(str(exc))
                said.append(await say())
                await life.halt()
            return said

        return speak

    said = await lives.both(declare)
    assert said == [said[0], "refused"] * 2
    assert [value for _, value, _ in await rows_of(database)] == ["1", streams.CLOSED]


async def test_a_step_may_close_a_stream(dbos_database_url: str) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.say("k", 1)
        await speaker.close("k")
        await speaker.gate.wait()

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos as dbos:
        await speaker.start()
        assert await all_of(dbos) == [1]
        speaker.gate.set()


# Bad input


async def test_bad_input_is_refused(dbos_database_url: str, database: Database) -> None:
    async def body(speaker: Speaker) -> None:
        dbos = speaker.dbos
        with pytest.raises(ValueError, match="ends a stream"):
            await dbos.write_stream("k", "__DBOS_STREAM_CLOSED__")
        with pytest.raises(ValueError, match="must not be empty"):
            await dbos.write_stream("", 1)
        with pytest.raises(ValueError, match="cannot be printed"):
            await dbos.close_stream("a\nb")
        with pytest.raises(TypeError, match="is a str, not int"):
            await dbos.write_stream(1, 1)  # type: ignore[arg-type]
        with pytest.raises(SerializationError, match="for the stream 'k' cannot be stored"):
            await dbos.write_stream("k", object())
        await dbos.write_stream("k", 1)

    speaker = Speaker(dbos_database_url, body)
    async with speaker.dbos as dbos:
        await (await speaker.start()).get_result()
        for arguments in ({"offset": -1}, {"timeout": -1}, {"offset": 2**31}):
            with pytest.raises(ValueError, match="not"):
                dbos.read_stream("w", "k", **arguments)  # type: ignore[call-overload]
        for arguments in ({"offset": "1"}, {"offset": True}, {"timeout": "1"}):
            with pytest.raises(TypeError):
                dbos.read_stream("w", "k", **arguments)  # type: ignore[call-overload]
        for bad in ("\0", "\ud800"):
            with pytest.raises(ValueError, match="cannot be stored"):
                dbos.read_stream(bad, "k")
        with pytest.raises(WorkflowNotFoundError):
            await all_of(dbos, "nobody")
        assert await all_of(dbos) == [1]
    assert len(await rows_of(database)) == 1


async def test_only_workflows_and_their_steps_write(dbos_database_url: str) -> None:
    speaker = Speaker(dbos_database_url)
    async with speaker.dbos as dbos:
        with pytest.raises(ConfigurationError, match="write_stream writes to a stream of the"):
            await dbos.write_stream("k", 1)
        with pytest.raises(ConfigurationError, match="close_stream writes to a stream of the"):
            await dbos.close_stream("k")
        with pytest.raises(ConfigurationError, match="write_stream"):
            await speaker.say("k", 1)


# In workflows


async def test_a_workflow_that_reads_reads_the_same_again(
    lives: Any, database: Database, until: Until
) -> None:
    read: list[list[int]] = []

    def declare(life: Any) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="listen")
        async def listen() -> list[list[int]]:
            async def branch(start: int) -> list[int]:
                return [value async for value in dbos.read_stream("s", "k", offset=start)]

            read[:] = []
            stream = dbos.read_stream("s", "k")
            first = [await anext(stream), await anext(stream)]
            await life.halt()
            rest = [value async for value in stream]
            return [first, rest, *await asyncio.gather(branch(0), branch(3))]

        return listen

    async def body(speaker: Speaker) -> None:
        await speaker.say("k", 0, 1)
        await speaker.gate.wait()
        await speaker.say("k", *range(2, 250))

    speaker = Speaker(lives.url, body)
    async with asyncio.timeout(PATIENCE), speaker.dbos:
        await speaker.start("s")
        await lives.begin(declare)
        await database.execute("update dbos.streams set value = '100' where \"offset\" < 2")
        speaker.gate.set()
        first, rest, whole, tail = await lives.resume(declare)
        names = {step.name for step in await speaker.dbos.list_steps("w")}
    assert first == [0, 1], "as recorded, though it is another now"
    assert rest == list(range(2, 250))
    assert whole == [100, 100, *range(2, 250)]
    assert tail == list(range(3, 250))
    assert names == {"DBOS.readStream"}


async def test_a_workflow_that_read_in_vain_does_so_again(lives: Any) -> None:
    def declare(life: Any) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="listen")
        async def listen() -> list[str]:
            said: list[str] = []
            for workflow_id, timeout in (("w", 0), ("nobody", None)):
                try:
                    await anext(dbos.read_stream(workflow_id, "k", timeout=timeout))
                except (TimeoutError, WorkflowNotFoundError) as exc:
                    said.append(type(exc).__name__)
                await life.halt()
            return said

        return listen

    assert await lives.both(declare) == ["TimeoutError", "WorkflowNotFoundError"]


async def test_a_workflow_that_waits_for_a_value_says_so(dbos_database_url: str) -> None:
    async def body(speaker: Speaker) -> int:
        return await anext(speaker.dbos.read_stream("s", "k", timeout=HOUR, as_=int))

    async def source(speaker: Speaker) -> None:
        await speaker.gate.wait()
        await speaker.say("k", 7)

    reader, speaker = Speaker(dbos_database_url, body), Speaker(dbos_database_url, source)
    async with asyncio.timeout(PATIENCE), speaker.dbos, reader.dbos:
        await speaker.start("s")
        handle = await reader.start()
        execution = reader.dbos.launched().running["w"]
        while not execution.waits:
            await asyncio.sleep(0)
        [wait] = execution.waits
        assert wait.key == "1"
        assert wait.until_ms is None  # a value may come any moment: it must stay in memory
        speaker.gate.set()
        assert await handle.get_result() == 7


# Managing


async def test_a_fork_has_what_was_streamed_before_its_cut_without_gaps(
    dbos_database_url: str, database: Database
) -> None:
    async def body(speaker: Speaker) -> None:
        dbos = speaker.dbos
        await dbos.write_stream("k", "a")
        async with asyncio.TaskGroup() as group:
            group.create_task(speaker.say("k", 1, 2, 3))  # step 2
            group.create_task(dbos.write_stream("k", "b"))
        await dbos.write_stream("k", "c")
        await dbos.close_stream("k")

    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        await (await speaker.start()).get_result()
        whole = await all_of(dbos)
        assert sorted(map(str, whole)) == ["1", "2", "3", "a", "b", "c"]
        for cut in range(1, 7):
            fork = await dbos.fork_workflow("w", cut, app_version="none yet")
            offsets = [offset for offset, _, _ in await rows_of(database, fork.workflow_id)]
            assert offsets == list(range(len(offsets)))
            fork = await dbos.fork_workflow("w", cut)
            await fork.get_result()
            values = await all_of(dbos, fork.workflow_id)
            assert sorted(map(str, values)) == ["1", "2", "3", "a", "b", "c"]
            assert len(await rows_of(database, fork.workflow_id)) == 7


async def test_a_rewound_workflow_streams_on_behind_what_was_read(
    dbos_database_url: str, database: Database
) -> None:
    async def body(speaker: Speaker) -> None:
        await speaker.dbos.write_stream("k", 1)
        await speaker.say("k", 2)
        await speaker.dbos.close_stream("k")

    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        await (await speaker.start()).get_result()
        assert await all_of(dbos) == [1, 2]
        await (await dbos.rewind_workflow("w", 2)).get_result()
        assert await all_of(dbos) == [1, 2, 2]
    assert len(await rows_of(database)) == 4


async def test_streams_go_along_into_an_export_and_out_of_it(dbos_database_url: str) -> None:
    speaker = Speaker(dbos_database_url, hello)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        await (await speaker.start()).get_result()
        text = await dbos.export_workflow("w")
        await dbos.delete_workflow("w")
        with pytest.raises(WorkflowNotFoundError):
            await all_of(dbos)
        await dbos.import_workflow(text)
        assert await all_of(dbos) == HELLO


async def test_a_check_of_replays_goes_past_streams(dbos_database_url: str) -> None:
    async def body(speaker: Speaker) -> list[Any]:
        await hello(speaker)
        await speaker.dbos.close_stream("k")
        return [value async for value in speaker.dbos.read_stream("w", "k")]

    speaker = Speaker(dbos_database_url, body)
    async with asyncio.timeout(PATIENCE), speaker.dbos as dbos:
        assert await (await speaker.start()).get_result() == HELLO
        [report] = await dbos.check_replay()
    assert report.is_ok, report


async def test_a_pickle_is_read_only_if_the_app_says_so(
    dbos_database_url: str, database: Database
) -> None:
    speaker = Speaker(dbos_database_url, hello)
    async with speaker.dbos as dbos:
        await (await speaker.start()).get_result()
        await database.execute(
            "update dbos.streams set serialization = 'py_pickle', value = 'gASVBQAAAAAAAABLAS4=' "
            'where "offset" = 2'
        )
        values: list[Any] = []
        with pytest.raises(SerializationError, match="pickle"):
            async for value in dbos.read_stream("w", "k"):
                values.append(value)  # noqa: PERF401  # what came before the error counts
    assert values == HELLO[:2]
