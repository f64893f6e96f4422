"""Messages to workflows: sent from anywhere, received once, in order."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from conftest import Life, Lives
from talk import PATIENCE, Talk, names_of, talking

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DivergenceError,
    Message,
    Router,
    SerializationError,
    Workflow,
    WorkflowCancelledError,
    WorkflowNotFoundError,
)
from dbos_async._store import sql
from dbos_async.testing import advance


@pytest.fixture
async def talk(dbos_database_url: str) -> AsyncIterator[Talk]:
    async with talking(dbos_database_url) as talk:
        yield talk


class Order(msgspec.Struct):
    number: int
    at: datetime


MOMENT = datetime(2026, 1, 2, tzinfo=UTC)

# Sending and receiving


async def test_a_message_that_waits_is_received_at_once_and_costs_one_row(talk: Talk) -> None:
    handle = await talk.receiver(2, "t")
    await talk.waits("r")
    await talk.dbos.send_many([Message("r", 1, "t"), Message("r", 2, "t")])
    assert await handle.get_result() == [1, 2]
    assert await names_of(talk, "r") == ["DBOS.recv", "DBOS.sleep", "DBOS.recv"]


async def test_a_waiting_receiver_is_woken_from_a_web_handler_a_client_a_step_and_a_workflow(
    talk: Talk, dbos_database_url: str
) -> None:
    handle = await talk.receiver(4)
    await talk.waits("r", 1)
    await talk.dbos.send("r", "web")
    await talk.waits("r", 2)
    async with Client(dbos_database_url) as client:
        await client.send("r", "client")
    await talk.waits("r", 3)
    await talk.dbos.step(talk.dbos.send, name="tell")("r", "step")
    await talk.waits("r", 4)
    await talk.send("r", ["workflow"])
    assert await handle.get_result() == ["web", "client", "step", "workflow"]


async def test_sql_wakes_a_waiting_receiver(talk: Talk, database: Any) -> None:
    handle = await talk.receiver(2, "t")
    await talk.waits("r", 1)
    await database.execute("""select dbos.send_message('r', '{"a": 1}', 't', 'once')""")
    await talk.waits("r", 2)
    await database.execute("""select dbos.send_message('r', '{"a": 1}', 't', 'once')""")
    await database.execute(
        "insert into dbos.notifications (destination_uuid, topic, message) values ('r', 't', '2')"
    )
    assert await handle.get_result() == [{"a": 1}, 2]


async def test_topics_are_apart(talk: Talk) -> None:
    handle = await talk.receiver(1, "t")
    await talk.waits("r")
    odd = "a::b\n'ü"
    for topic in (None, "", odd, "t"):
        await talk.dbos.send("r", topic, topic)
    assert await handle.get_result() == ["t"]


@pytest.mark.parametrize("topic", [None, "", "a::b\n'ü", "x" * 1_000])
async def test_a_topic_may_be_any_text(talk: Talk, topic: str | None) -> None:
    handle = await talk.receiver(1, topic)
    await talk.waits("r")
    await talk.dbos.send("r", 1, topic)
    assert await handle.get_result() == [1]


async def test_a_thousand_messages_of_one_transaction_are_received_in_order(talk: Talk) -> None:
    handle = await talk.receiver(1_000)
    await talk.dbos.send_many(Message("r", number) for number in range(1_000))
    assert await handle.get_result() == list(range(1_000))


async def test_messages_of_one_millisecond_are_received_as_they_arrived(
    talk: Talk, database: Any
) -> None:
    handle = await talk.receiver(300, "t")
    await talk.waits("r")
    async with database.transaction():  # in which now() stands still
        for number in range(300):
            await database.execute(
                "select dbos.send_message('r', $1::text::json, 't')", f"{number}"
            )
    assert await handle.get_result() == list(range(300))


async def test_messages_without_a_number_come_first_by_their_time(
    talk: Talk, database: Any
) -> None:
    """As they were before the database was ours."""
    await talk.receiver(3)
    await talk.waits("r")
    await talk.dbos.cancel_workflow("r")
    await talk.dbos.send("r", 3)
    for number, at in ((2, 2_000), (1, 1_000)):
        await database.execute(
            "insert into dbos.notifications (destination_uuid, topic, message, created_at_epoch_ms,"
            " message_order) values ('r', '__null__topic__', $1, $2, null)",
            str(number),
            at,
        )
    again = await talk.dbos.resume_workflow("r")
    assert await again.get_result(timeout=PATIENCE) == [1, 2, 3]


async def test_typed_messages_come_back_as_their_types(talk: Talk) -> None:
    dbos = DBOS("typed", talk.dbos._settings.database_url, app_version="1")

    @dbos.workflow
    async def typed() -> list[Any]:
        order = await dbos.recv("order", as_=Order)
        none = await dbos.recv("order", as_=Order)
        plain = await dbos.recv("order")
        dates = await dbos.recv("order", as_=list[datetime])
        return [order == Order(1, MOMENT), none, plain, dates == [MOMENT]]

    async with dbos:
        handle = await dbos.start_workflow(typed.with_options(workflow_id="typed"))
        for message in (Order(1, MOMENT), None, Order(1, MOMENT), [MOMENT]):
            await dbos.send("typed", message, "order")
        plain = {"number": 1, "at": "2026-01-02T00:00:00Z"}
        assert await handle.get_result() == [True, None, plain, True]


async def test_a_message_that_does_not_fit_is_received_and_raises_the_same_on_replay(
    lives: Lives,
) -> None:
    raised: list[str] = []

    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="flow")
        async def flow() -> Any:
            await dbos.send("w", "many")
            await dbos.send("w", 2)
            try:
                await dbos.recv(as_=int)
            except SerializationError as exc:
                raised.append(str(exc))
            second = await dbos.recv(as_=int)
            await life.halt()
            return second

        return flow

    assert await lives.both(declare) == 2
    assert len(raised) == 2
    assert raised[0] == raised[1]
    assert raised[0].startswith("the message to workflow 'w' does not fit int")


# Time


async def test_a_receiver_that_nobody_writes_to_gets_none(talk: Talk) -> None:
    assert await talk.receive(2, None, 0.05) == [None, None]


async def test_a_timeout_of_nothing_only_looks(talk: Talk) -> None:
    handle = await talk.dbos.start_workflow(talk.receive.with_options(workflow_id="r"), 1, "t", 0)
    assert await handle.get_result() == [None]
    assert await names_of(talk, "r") == ["DBOS.recv"]


async def test_a_timeout_may_be_a_timedelta_of_days(talk: Talk) -> None:
    dbos = DBOS("days", talk.dbos._settings.database_url, app_version="1")

    @dbos.workflow
    async def patient() -> Any:
        return await dbos.recv(timeout=timedelta(days=30))

    async with dbos:
        handle = await dbos.start_workflow(patient.with_options(workflow_id="r"))
        await talk.waits("r")
        advance(timedelta(days=29))
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.1)
        await advance(86_400)
        assert await handle.get_result(timeout=PATIENCE) is None


async def test_a_replayed_receiver_waits_on_until_the_moment_of_the_first_run(
    dbos_database_url: str,
) -> None:
    async with talking(dbos_database_url) as first:
        await first.dbos.start_workflow(
            first.receive.with_options(workflow_id="r"), 1, "t", 1_000.0
        )
        await first.waits("r")
        [before] = await first.dbos.list_steps("r")
        advance(900)
    async with talking(dbos_database_url) as second:
        handle = await second.dbos.retrieve_workflow("r")
        with pytest.raises(TimeoutError):
            await handle.get_result(timeout=0.1)
        assert await second.dbos.list_steps("r") == [before]
        await advance(101)
        assert await handle.get_result(timeout=PATIENCE) == [None]
        outline = [(step.position, step.name) for step in await second.dbos.list_steps("r")]
        assert outline == [(1, "DBOS.recv"), (2, "DBOS.sleep")]


async def test_what_was_received_is_replayed(lives: Lives) -> None:
    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="flow")
        async def flow() -> list[Any]:
            await dbos.send("w", 1, "t")
            await dbos.send_many([Message("w", 2, "t"), Message("w", 3, "u")])
            received = [await dbos.recv("t"), await dbos.recv("t"), await dbos.recv("t", timeout=0)]
            await life.halt()
            return [*received, await dbos.recv("u")]

        return flow

    assert await lives.both(declare) == [1, 2, None, 3]


async def test_another_topic_or_message_than_the_recorded_one_is_a_divergence(
    lives: Lives,
) -> None:
    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="flow")
        async def flow() -> list[str]:
            diverged: list[str] = []
            for call in (
                lambda: dbos.send("w", life.number),
                lambda: dbos.recv(str(life.number), timeout=0),
            ):
                try:
                    await call()
                except DivergenceError as exc:
                    diverged.append(str(exc))
            await life.halt()
            return diverged

        return flow

    sent, received = await lives.both(declare)
    assert "'DBOS.send' with its arguments is recorded" in sent
    assert "'DBOS.recv' with its arguments is recorded" in received


# Several receivers


async def test_two_receivers_and_one_message_one_gets_it_and_the_other_waits_its_whole_time(
    talk: Talk,
) -> None:
    handle = await talk.dbos.start_workflow(
        talk.receive_at_once.with_options(workflow_id="r"), [1_000.0, 2_000.0]
    )
    await talk.waits("r", 2)
    await talk.dbos.send("r", "one", "t")
    async with asyncio.timeout(PATIENCE):
        while "DBOS.recv" not in await names_of(talk, "r"):
            await asyncio.sleep(0.01)
    advance(1_500)  # the first one had it, or the other one would be over now
    with pytest.raises(TimeoutError):
        await handle.get_result(timeout=0.2)
    await advance(600)
    assert await handle.get_result(timeout=PATIENCE) == ["one", None]


async def test_many_receivers_share_the_messages(talk: Talk) -> None:
    handle = await talk.dbos.start_workflow(
        talk.receive_at_once.with_options(workflow_id="r"), [1_000.0] * 50
    )
    await talk.waits("r", 50)
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(talk.dbos.send("r", number, "t"))
    assert sorted(await handle.get_result()) == list(range(50))


async def test_a_cancelled_receiver_ends_at_once_and_leaves_the_message(
    talk: Talk, database: Any
) -> None:
    handle = await talk.receiver(1, "t")
    await talk.waits("r")
    await talk.dbos.cancel_workflow("r")
    with pytest.raises(WorkflowCancelledError):
        await handle.get_result()
    await talk.dbos.send("r", 1, "t")
    assert not await database.fetchval("select consumed from dbos.notifications")
    again = await talk.dbos.resume_workflow("r")
    assert await again.get_result(timeout=PATIENCE) == [1]


async def test_waiting_receivers_hold_no_connection(talk: Talk, database: Any) -> None:
    handles = [
        await talk.dbos.start_workflow(talk.receive.with_options(workflow_id=f"r{n}"), 1)
        for n in range(20)
    ]
    for n in range(20):
        await talk.waits(f"r{n}")
    assert await talk.dbos.list_workflows(limit=1)  # the pool has six
    async with asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(talk.dbos.send(f"r{n}", n))
    assert [await handle.get_result() for handle in handles] == [[n] for n in range(20)]


# Idempotency


async def test_a_second_send_with_the_same_key_is_none_also_from_elsewhere(
    talk: Talk, dbos_database_url: str, database: Any
) -> None:
    handle = await talk.receiver(2)
    await talk.dbos.send("r", 1, idempotency_key="k")
    async with Client(dbos_database_url) as client:
        await client.send("r", 2, idempotency_key="k")
        await client.send_many([Message("r", 3, idempotency_key="k"), Message("r", 4)])
    assert await handle.get_result() == [1, 4]
    ids = [row[0] for row in await database.fetch("select message_uuid from dbos.notifications")]
    assert "k::r" in ids
    assert len(ids) == 2


async def test_an_idempotency_key_is_one_of_a_workflow(talk: Talk) -> None:
    for name in ("a", "b"):
        await talk.publish.with_options(workflow_id=name)({})
    await talk.dbos.send_many(
        [Message("a", 1, idempotency_key="k"), Message("b", 2, idempotency_key="k")]
    )


async def test_a_workflow_sends_again_when_it_is_rewound(talk: Talk) -> None:
    handle = await talk.receiver(2)
    await talk.send.with_options(workflow_id="s")("r", ["word"])
    await talk.waits("r")
    await (await talk.dbos.rewind_workflow("s")).get_result()
    assert await handle.get_result() == ["word", "word"]


# Bad input


async def test_sending_to_nobody_is_an_error_and_nothing_is_sent(talk: Talk, database: Any) -> None:
    await talk.receiver(1, "t")
    with pytest.raises(WorkflowNotFoundError, match="'nobody'"):
        await talk.dbos.send("nobody", 1)
    with pytest.raises(WorkflowNotFoundError, match="'nobody'"):
        await talk.dbos.send_many([Message("r", 1), Message("nobody", 2), Message("none", 3)])
    with pytest.raises(WorkflowNotFoundError, match="'nobody'"):
        await talk.send("nobody", [1])
    assert await database.fetchval("select count(*) from dbos.notifications") == 0


async def test_in_a_workflow_it_is_the_steps_error_though_somebody_comes_later(
    lives: Lives, database: Any
) -> None:
    def declare(life: Life) -> Workflow[..., Any]:
        dbos = life.dbos

        @dbos.workflow(name="other")
        async def other() -> None: ...

        @dbos.workflow(name="flow")
        async def flow() -> list[str]:
            failed: list[str] = []
            for call in (
                lambda: dbos.send("later", 1),
                lambda: dbos.send_many([Message("w", 1), Message("later", 2)]),
            ):
                try:
                    await call()
                except WorkflowNotFoundError as exc:
                    failed.append(exc.workflow_id)
            await other.with_options(workflow_id="later")()
            await life.halt()
            return failed

        return flow

    assert await lives.both(declare) == ["later", "later"]
    assert await database.fetchval("select count(*) from dbos.notifications") == 0


async def test_many_who_send_to_nobody_do_not_keep_the_others_from_sending(talk: Talk) -> None:
    handle = await talk.receiver(40)
    async with asyncio.TaskGroup() as group:
        sent = [
            group.create_task(outcome_of(talk.send("r" if n % 2 else f"nobody-{n}", [n])))
            for n in range(80)
        ]
    assert sorted(await handle.get_result()) == list(range(1, 80, 2))
    assert [type(task.result()) for task in sent] == [WorkflowNotFoundError, type(None)] * 40


async def outcome_of(call: Any) -> Any:
    try:
        return await call
    except WorkflowNotFoundError as exc:
        return exc


async def test_a_message_for_a_workflow_that_has_ended_is_kept_and_does_no_harm(
    talk: Talk, database: Any
) -> None:
    await talk.publish.with_options(workflow_id="p")({})
    await talk.dbos.send("p", 1)
    assert not await database.fetchval("select consumed from dbos.notifications")
    assert (await (await talk.dbos.retrieve_workflow("p")).get_status()).status == "SUCCESS"
    await talk.dbos.delete_workflow("p")
    assert await database.fetchval("select count(*) from dbos.notifications") == 0


async def test_what_cannot_be_sent_is_refused_by_name_and_nothing_is_written(
    talk: Talk, database: Any
) -> None:
    await talk.receiver(1, "t")
    send: Any = talk.dbos.send
    with pytest.raises(SerializationError, match=r"the message\['a'\]\[0\]"):
        await send("r", {"a": [object()]})
    with pytest.raises(SerializationError, match="message 1 of 2"):
        await talk.dbos.send_many([Message("r", 1), Message("r", object())])
    for odd, what in (
        ((1, "m"), "the workflow id is a str"),
        (("r", "m", 1), "the topic is a str"),
        (("r", "m", b"t"), "the topic is a str"),
    ):
        with pytest.raises(TypeError, match=what):
            await send(*odd)
    with pytest.raises(TypeError, match="idempotency key is a str"):
        await send("r", 1, idempotency_key=1)
    with pytest.raises(TypeError, match="as_ is a type, such as int"):
        await talk.dbos.get_event("r", "key", as_=3)
    with pytest.raises(ConfigurationError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(send("r", 1)))
    with pytest.raises(ValueError, match="idempotency key must not be empty"):
        await send("r", 1, idempotency_key="")
    with pytest.raises(TypeError, match=r"write send_many\(\[message\]\)"):
        await talk.dbos.send_many(Message("r", 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Message\(…\)"):
        await talk.dbos.send_many(["r"])  # type: ignore[list-item]
    for topic, what in (("\0", "NUL"), ("x" * 1_001, "1000 bytes"), ("\udc00", "Unicode")):
        with pytest.raises(ValueError, match=what):
            await send("r", 1, topic)
    with pytest.raises(ValueError, match="the same idempotency key"):
        await talk.dbos.send_many([Message("r", n, idempotency_key="k") for n in range(2)])
    assert await database.fetchval("select count(*) from dbos.notifications") == 0
    await send("r", "\0 and \\u0000", "t")  # in a message they are fine


async def test_a_message_that_is_too_large_is_refused(dbos_database_url: str) -> None:
    small = Talk(dbos_database_url)
    small.dbos.configure(max_payload_bytes=1_000)
    async with small.dbos:
        await small.publish.with_options(workflow_id="p")({})
        with pytest.raises(SerializationError, match="the message has 1,002 bytes"):
            await small.dbos.send("p", "x" * 1_000)


async def test_recv_says_where_it_may_be_called(talk: Talk) -> None:
    with pytest.raises(ConfigurationError, match="no workflow calls it"):
        await talk.dbos.recv()
    with pytest.raises(ConfigurationError, match="no workflow calls it"):
        await Router().recv()
    dbos = DBOS("steps", talk.dbos._settings.database_url, app_version="1")

    @dbos.step
    async def step() -> None:
        await dbos.recv()

    @dbos.workflow
    async def flow() -> None:
        await step()

    async with dbos:
        with pytest.raises(ConfigurationError, match="a step calls it"):
            await flow()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), timedelta(seconds=-1)])
async def test_a_timeout_that_cannot_be_is_refused(talk: Talk, timeout: Any) -> None:
    with pytest.raises(ValueError, match="a duration must be"):
        await talk.dbos.recv(timeout=timeout)
    with pytest.raises(ValueError, match="a duration must be"):
        await talk.dbos.get_event("w", "k", timeout=timeout)


async def test_a_send_that_is_never_awaited_is_told(talk: Talk) -> None:
    dbos = DBOS("forgetful", talk.dbos._settings.database_url, app_version="1")

    @dbos.workflow
    async def forgetful() -> None:
        dbos.send("w", 1)  # type: ignore[unused-coroutine]

    async with dbos:
        with pytest.raises(Exception, match="without awaiting"):
            await forgetful()


# News and numbers


async def test_with_all_notifications_lost_a_receiver_is_found_at_the_recheck_and_the_deadline(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "NOTIFY", "select $1::text, $2::text[]")
    async with (
        talking(dbos_database_url, recheck_interval=0.2) as here,
        Client(dbos_database_url) as there,
    ):
        handle = await here.receiver(1)
        await here.waits("r")
        await there.send("r", 1)
        assert await handle.get_result(timeout=PATIENCE) == [1]
        watching = asyncio.create_task(there.get_event("p", "k"))
        await here.publish.with_options(workflow_id="p")({"k": 2})
        assert await here.dbos.get_event("p", "k") == 2
        assert await watching == 2


async def test_a_message_whose_news_was_lost_is_found_when_the_time_is_up(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "NOTIFY", "select $1::text, $2::text[]")
    async with talking(dbos_database_url) as here, Client(dbos_database_url) as there:
        handle = await here.receiver(1)
        await here.waits("r")
        await there.send("r", 1)
        advance(3_600)
        assert await handle.get_result(timeout=PATIENCE) == [1]


async def test_a_step_whose_number_is_taken_receives_under_the_next_one(
    talk: Talk, database: Any
) -> None:
    handle = await talk.receiver(1)
    await talk.waits("r")
    await database.execute(
        "insert into dbos.operation_outputs (workflow_uuid, function_id, function_name, step_key)"
        " values ('r', 1, 'odd', 'odd')"
    )
    await talk.dbos.send("r", "word")
    assert await handle.get_result(timeout=PATIENCE) == ["word"]
    assert await database.fetchval("select consumed_by_function_id from dbos.notifications") == 3


# Forks, exports, rehearsals


async def test_a_fork_has_what_was_received_before_it(talk: Talk) -> None:
    handle = await talk.receiver(3)
    for number in range(3):
        await talk.dbos.send("r", number)
    assert await handle.get_result() == [0, 1, 2]
    outline = [(step.position, step.name) for step in await talk.dbos.list_steps("r")]
    second = [position for position, name in outline if name == "DBOS.recv"][1]
    fork = await talk.dbos.fork_workflow("r", second, new_workflow_id="f")
    for number in (10, 20):
        await talk.dbos.send("f", number)
    assert await fork.get_result(timeout=PATIENCE) == [0, 10, 20]


async def test_a_receiver_that_is_rewound_has_its_earlier_messages_and_asks_for_new_ones(
    talk: Talk,
) -> None:
    await talk.receiver(2)
    await talk.dbos.send_many([Message("r", 1), Message("r", 2), Message("r", 3)])
    assert await (await talk.dbos.retrieve_workflow("r")).get_result() == [1, 2]
    second = [step for step in await talk.dbos.list_steps("r") if step.name == "DBOS.recv"][1]
    again = await talk.dbos.rewind_workflow("r", second.position)
    await talk.dbos.send("r", 4)
    assert await again.get_result(timeout=PATIENCE) == [1, 4]


async def test_an_imported_mailbox_is_read_before_what_comes_after_it(
    talk: Talk, database: Any
) -> None:
    await talk.receiver(3)
    await talk.waits("r")
    await talk.dbos.cancel_workflow("r")
    await talk.dbos.send_many([Message("r", 1), Message("r", 2)])
    text = await talk.dbos.export_workflow("r")
    await talk.dbos.delete_workflow("r")
    await database.execute("select setval('dbos.message_order', 1)")  # as in another database
    await talk.dbos.import_workflow(text)
    await talk.dbos.send("r", 3)
    again = await talk.dbos.resume_workflow("r")
    assert await again.get_result(timeout=PATIENCE) == [1, 2, 3]


async def test_a_check_of_replays_knows_messages_and_events(talk: Talk) -> None:
    waiting = await talk.receiver(2)
    await talk.waits("r")
    await talk.dbos.send("r", 1)
    await talk.waits("r", 2)
    await talk.send.with_options(workflow_id="s")("r", [1])
    await talk.publish.with_options(workflow_id="p")({"k": 1})
    await talk.watch.with_options(workflow_id="w")("p", "k")
    await talk.watch.with_options(workflow_id="none")("p", "other", 0.01)
    await waiting.get_result()
    await talk.dbos.start_workflow(talk.receive.with_options(workflow_id="r2"), 1)
    await talk.waits("r2")
    reports = {report.workflow_id: report for report in await talk.dbos.check_replay()}
    assert [report for report in reports.values() if not report.is_ok] == []
    assert reports["r2"].detail == "goes on with 'DBOS.recv' (step 1)"
    assert len(reports) == 6


# Beside each other

WAITING = """
select count(*) from pg_stat_activity
 where datname = current_database() and wait_event_type = 'Lock' and query like '%wanted as%'
"""


async def test_two_receipts_that_travel_beside_each_other_do_not_read_the_same_message(
    talk: Talk, dbos_database_url: str, database: Any, until: Any
) -> None:
    """One that was set aside, and one of the next batch."""
    await talk.dbos.start_workflow(talk.receive.with_options(workflow_id="r"), 1, "other")
    await talk.waits("r")
    await talk.dbos.send("r", "one", "t")
    owner = await database.fetchval("select owner_xid from dbos.workflow_status")
    locker, *lanes = [await asyncpg.connect(dbos_database_url) for _ in range(3)]

    def receipt(lane: Any, position: int) -> Any:
        step = (["r"], [position], ["DBOS.recv"], [], [], [], [0], [0], [], [], [owner])
        return asyncio.create_task(lane.fetch(sql.RECORD_RECEIPTS, *step, ["t"], "talk"))

    async def both_wait() -> bool:
        return bool(await database.fetchval(WAITING) == 2)

    async with locker.transaction():
        await locker.execute("select from dbos.workflow_status for update")
        travelling = [receipt(lane, 10 + number) for number, lane in enumerate(lanes)]
        await until(both_wait)
    received = [len(await task) for task in travelling]
    for connection in (locker, *lanes):
        await connection.close()
    assert sorted(received) == [0, 1]


async def test_a_message_on_its_way_to_a_workflow_that_waits_in_line_does_not_hold_it_up(
    talk: Talk, database: Any
) -> None:
    await (await talk.dbos.retrieve_queue("line")).pause()
    handle = await talk.dbos.enqueue("line", talk.receive.with_options(workflow_id="r"), 1)
    async with database.transaction():
        await database.execute("select dbos.send_message('r', '1')")
        await (await talk.dbos.retrieve_queue("line")).resume()
        await talk.waits("r")
    assert await handle.get_result(timeout=PATIENCE) == [1]
