"""The admin API by a real HTTP client, on the port that a launch opens."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from ended import ended, left
from managed import Managed, eventually, result_of

from dbos_async import DBOS, RateLimit
from dbos_async.errors import ConfigurationError
from dbos_async.testing import free_port

TOKEN = "a-token-of-thirty-two-characters"
LEFT_BY_THE_DEAD = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, created_at, application_version, executor_id, application_name,
        inputs, serialization)
values ('left', 'PENDING', 'unknown', 1, 'old', 'dead', 'shop', '{}', 'portable_json')
"""
AGED = "update dbos.workflow_status set created_at = $2 where workflow_uuid = $1"


@asynccontextmanager
async def served(url: str, **settings: Any) -> AsyncIterator[tuple[Managed, httpx.AsyncClient]]:
    """A launched app, and a client of its admin API that shows the token."""
    port = free_port()
    settings = {"admin_token": TOKEN, **settings}
    shop = Managed(url, admin_port=port, **settings)
    headers = {"authorization": f"Bearer {settings['admin_token']}"}
    async with (
        shop.dbos,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as api,
    ):
        yield shop, api


def ids_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["WorkflowUUID"] for row in answer.json()]


async def test_a_workflow_is_shown_in_the_documented_words(dbos_database_url: str) -> None:
    async with served(dbos_database_url) as (shop, api):
        asked = shop.simple.with_options(
            workflow_id="w", attributes={"tenant": "acme"}, priority=3, timeout=60
        )
        assert await result_of(await shop.mail.enqueue(asked, 21)) == 42
        row = (await api.get("/workflows/w")).json()
        assert (
            row
            | {
                "WorkflowUUID": "w",
                "Status": "SUCCESS",
                "WorkflowName": "simple",
                "Input": '{"args":[21],"kwargs":{}}',
                "Output": "42",
                "Error": None,
                "QueueName": "mail",
                "ApplicationName": "shop",
                "ApplicationVersion": "1",
                "ExecutorID": shop.dbos.executor_id,
                "Attributes": '{"tenant":"acme"}',
                "Priority": "3",
                "WorkflowTimeoutMS": "60000",
                "WasForkedFrom": False,
                "ForkedFrom": None,
                "ParentWorkflowID": None,
                "DeduplicationID": None,
                "QueuePartitionKey": None,
                "DelayUntilEpochMS": None,
                "ScheduleName": None,
                "AuthenticatedUser": None,
                "AssumedRole": None,
                "AuthenticatedRoles": None,
            }
            == row
        )
        moments = ["CreatedAt", "DequeuedAt", "CompletedAt", "UpdatedAt"]
        assert sorted(row[moment] for moment in moments) == [row[moment] for moment in moments]
        assert int(row["WorkflowDeadlineEpochMS"]) == int(row["DequeuedAt"]) + 60_000
        [step] = (await api.get("/workflows/w/steps")).json()
        assert (step["function_id"], step["function_name"], step["output"], step["error"]) == (
            1,
            "double",
            "42",
            None,
        )
        assert step["started_at_epoch_ms"] <= step["completed_at_epoch_ms"]


async def test_an_error_is_shown_as_a_person_reads_it(dbos_database_url: str) -> None:
    async with served(dbos_database_url) as (shop, api):
        with pytest.raises(ValueError, match="too risky"):
            await shop.risky.with_options(workflow_id="w")()
        assert (await api.get("/workflows/w")).json()["Error"] == "ValueError: too risky"
        steps = (await api.get("/workflows/w/steps")).json()
        assert [step["error"] for step in steps] == [None, "ValueError: too risky"]


async def test_listings_are_oldest_first_and_leave_large_values_where_they_are(
    dbos_database_url: str,
) -> None:
    async with served(dbos_database_url) as (shop, api):
        for number in range(3):
            await shop.simple.with_options(workflow_id=f"w-{number}")(number)
        answer = await api.post("/workflows")  # without a body: all, so far as a page goes
        assert ids_of(answer) == ["w-0", "w-1", "w-2"]
        assert {(row["Input"], row["Output"]) for row in answer.json()} == {(None, None)}
        newest = {"sort_desc": True, "limit": 1, "offset": 1, "load_input": True}
        [row] = (await api.post("/workflows", json=newest)).json()
        assert (row["WorkflowUUID"], row["Input"], row["Output"]) == (
            "w-1",
            '{"args":[1],"kwargs":{}}',
            None,
        )
        [row] = (await api.post("/workflows", json=newest | {"load_output": True})).json()
        assert row["Output"] == "2"


async def test_every_documented_filter_filters(dbos_database_url: str, database: Any) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.simple.with_options(workflow_id="one", attributes={"a": 1})(1)
        with pytest.raises(ValueError, match="risky"):
            await shop.family.with_options(workflow_id="two")()
        await database.execute(AGED, "one", 1_750_000_000_000)
        moment = datetime.fromtimestamp(1_750_000_000, UTC)
        later = (moment + timedelta(milliseconds=1)).isoformat()
        [child] = ids_of(await api.post("/workflows", json={"parent_workflow_id": "two"}))
        everything = {"one", "two", child}
        for asked, expected in [
            ({"workflow_uuids": ["one", "none"]}, {"one"}),
            ({"workflow_id_prefix": "tw"}, {"two", child}),
            ({"workflow_name": "simple"}, {"one"}),
            ({"workflow_name": ["simple", "family"]}, {"one", "two"}),
            ({"status": "ERROR"}, {"two", child}),
            ({"status": ["SUCCESS", "ERROR"]}, everything),
            ({"start_time": moment.isoformat()}, everything),
            ({"start_time": later}, everything - {"one"}),
            ({"end_time": moment.isoformat()}, {"one"}),
            ({"end_time": "2020-01-01T00:00:00Z"}, set()),
            ({"end_time": "9999-12-31T23:59:59.999999Z"}, everything),
            ({"completed_after": later, "completed_before": "9999-12-31T00:00:00Z"}, everything),
            ({"dequeued_after": later}, set()),
            ({"application_version": "1"}, everything),
            ({"application_name": "other"}, set()),
            ({"authenticated_user": "ann"}, set()),
            ({"executor_id": shop.dbos.executor_id}, everything),
            ({"forked_from": "one"}, set()),
            ({"was_forked_from": True}, set()),
            ({"has_parent": True}, {child}),
            ({"queue_name": "mail"}, set()),
            ({"queues_only": True}, set()),
            ({"schedule_name": "nightly"}, set()),
            ({"attributes": {"a": 1}}, {"one"}),
            ({"limit": None, "sort_desc": None, "status": None}, everything),
        ]:
            assert set(ids_of(await api.post("/workflows", json=asked))) == expected, asked


async def test_queued_workflows_are_those_on_queues_that_have_not_ended(
    dbos_database_url: str,
) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.mail.pause()
        for number in range(2):
            await shop.mail.enqueue(shop.simple.with_options(workflow_id=f"q-{number}"), number)
        await shop.simple.with_options(workflow_id="direct")(1)
        assert ids_of(await api.post("/queues", json={})) == ["q-0", "q-1"]
        assert ids_of(await api.post("/queues", json={"queue_name": "other"})) == []
        assert ids_of(await api.post("/queues", json={"status": "SUCCESS"})) == []
        assert (await api.get("/metrics/mail")).json() == {"queue_length": 2}
        await shop.mail.resume()

        async def empty() -> bool:
            return (await api.get("/metrics/mail")).json() == {"queue_length": 0}

        await eventually(empty)
        assert ids_of(await api.post("/queues", json={"status": "SUCCESS"})) == ["q-0", "q-1"]


async def test_what_runs_off_a_queue_counts_until_it_has_ended(dbos_database_url: str) -> None:
    async with served(dbos_database_url) as (shop, api):
        handle = await shop.mail.enqueue(shop.waiting, 1)
        await shop.until(lambda: "hold" in shop.calls)
        assert (await api.get("/metrics/mail")).json() == {"queue_length": 1}
        shop.gate.set()
        await result_of(handle)
        assert (await api.get("/metrics/mail")).json() == {"queue_length": 0}


@pytest.mark.parametrize("name", ["nothing", "it's; drop table dbos.queues --", "a/b", "%00"])
async def test_the_length_of_an_unknown_queue_is_an_error_that_a_scaler_holds_still_at(
    dbos_database_url: str, name: str
) -> None:
    async with served(dbos_database_url) as (_, api):
        answer = await api.get(f"/metrics/{name}")
        assert answer.status_code == (404 if name == "%00" else 500)
        assert answer.json()["error"]


async def test_queues_are_described(dbos_database_url: str) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.mail.update(
            concurrency=10, worker_concurrency=5, rate_limit=RateLimit(50, per=timedelta(minutes=1))
        )
        assert (await api.get("/dbos-workflow-queues-metadata")).json() == [
            {
                "name": "mail",
                "concurrency": 10,
                "workerConcurrency": 5,
                "rateLimit": {"limit": 50, "period": 60.0},
            }
        ]
        await shop.mail.update(concurrency=None, worker_concurrency=None, rate_limit=None)
        assert (await api.get("/dbos-workflow-queues-metadata")).json() == [{"name": "mail"}]


async def test_a_workflow_is_cancelled_resumed_restarted_forked_and_deleted(
    dbos_database_url: str,
) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.hold("w")
        assert (await api.post("/workflows/w/cancel")).status_code == 204
        assert (await api.get("/workflows/w")).json()["Status"] == "CANCELLED"
        shop.gate.set()
        assert (await api.post("/workflows/w/resume")).status_code == 204
        await shop.until_status("SUCCESS")
        refused = await api.post("/workflows/w/resume")
        assert (refused.status_code, refused.json()["title"]) == (409, "Conflict")

        fork_id = (await api.post("/workflows/w/restart")).json()["workflow_id"]
        await shop.until_status("SUCCESS", fork_id)
        assert shop.calls.count("double 1") == 2
        asked = {"start_step": 3, "new_workflow_id": "f", "application_version": "1"}
        assert (await api.post("/workflows/w/fork", json=asked)).json() == {"workflow_id": "f"}
        await shop.until_status("SUCCESS", "f")
        assert shop.calls.count("double 1") == 2  # copied
        again = await api.post("/workflows/w/fork")  # from the first step, without a body
        await shop.until_status("SUCCESS", again.json()["workflow_id"])

        assert (await api.delete("/workflows/w")).status_code == 204
        assert (await api.get("/workflows/w")).status_code == 404


UNKNOWN = [
    ("GET", "/workflows/none", 404),
    ("GET", "/workflows/none/steps", 404),
    ("POST", "/workflows/none/cancel", 404),
    ("POST", "/workflows/none/resume", 404),
    ("POST", "/workflows/none/restart", 404),
    ("POST", "/workflows/none/fork", 404),
    ("DELETE", "/workflows/none", 404),
    ("GET", "/workflows/%00", 404),
    ("POST", "/workflows/a%00b/cancel", 404),
    ("GET", "/workflows/", 404),
    ("GET", "/nothing", 404),
    ("GET", "/", 404),
    ("PUT", "/workflows", 405),
    ("GET", "/workflows", 405),
    ("DELETE", "/dbos-healthz", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), UNKNOWN)
async def test_what_there_is_not_is_answered_so(
    dbos_database_url: str, method: str, path: str, status: int
) -> None:
    async with served(dbos_database_url) as (_, api):
        answer = await api.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    "workflow_id", ["a/b/steps", "x'; drop table dbos.workflow_status; --", "ü✓ %41", "..", "a?b#c"]
)
async def test_an_id_is_what_it_is_and_no_sql(dbos_database_url: str, workflow_id: str) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.simple.with_options(workflow_id=workflow_id)(1)
        quoted = "".join(f"%{byte:02x}" for byte in workflow_id.encode())
        row = (await api.get(f"/workflows/{quoted}")).json()
        if not workflow_id.endswith("/steps"):  # else those of a/b, which is said in the docs
            assert row["WorkflowUUID"] == workflow_id
        asked = {"workflow_uuids": [workflow_id], "workflow_name": ["simple", workflow_id]}
        assert ids_of(await api.post("/workflows", json=asked)) == [workflow_id]
        assert ids_of(await api.post("/workflows", json={"queue_name": workflow_id})) == []


BAD_BODIES = [
    ("/workflows", b"{", "truncated"),
    ("/workflows", b"[]", "Expected `object`"),
    ("/workflows", b'{"limi": 3}', "limi"),
    ("/workflows", b'{"limit": "3"}', "$.limit"),
    ("/workflows", b'{"limit": -1}', "$.limit"),
    ("/workflows", b'{"limit": 10001}', "$.limit"),
    ("/workflows", b'{"offset": 1e300}', "$.offset"),
    ("/workflows", b'{"status": "DONE"}', "$.status"),
    ("/workflows", b'{"status": ["ERROR", "DONE"]}', "$.status[1]"),
    ("/workflows", b'{"start_time": "yesterday"}', "$.start_time"),
    ("/workflows", b'{"start_time": "2026-07-01T12:00:00"}', "$.start_time"),
    ("/workflows", b'{"workflow_uuids": "w"}', "$.workflow_uuids"),
    ("/workflows", b'{"workflow_name": "a\\u0000b"}', "$.workflow_name"),
    ("/workflows", b'{"workflow_name": "\\ud800"}', "truncated"),
    ("/workflows", b'{"workflow_name": "\xff"}', "utf-8"),
    ("/workflows", b'{"attributes": {"a": "\\u0000"}}', "NUL"),
    ("/workflows", b'{"attributes": {"\\u0000": 1}}', "NUL"),
    ("/workflows", b'{"attributes": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, "deep"),
    ("/queues", b'{"limi": 3}', "limi"),
    ("/workflows/w/fork", b'{"start_step": 0}', "$.start_step"),
    ("/workflows/w/fork", b'{"start_step": 77}', "no step 77"),
    ("/workflows/w/fork", b'{"queue_name": "none"}', "none"),
    ("/workflows/w/fork", b'{"new_workflow_id": ""}', "new_workflow_id"),
    ("/workflows/w/fork", b'{"step": 1}', "step"),
    ("/dbos-workflow-recovery", b"{}", "Expected `array`"),
    ("/dbos-workflow-recovery", b"[1]", "$[0]"),
    ("/dbos-workflow-recovery", b'["nobody"]', "nobody"),
    ("/workflows", b'{"status": "FOO"}', "`$.status`; there are"),
    ("/queues", b'{"status": ["FOO"]}', "CANCELLED"),
    ("/dbos-garbage-collect", b"{}", "cutoff_epoch_timestamp_ms"),
    ("/dbos-garbage-collect", b'{"rows_threshold": 0}', "$.rows_threshold"),
    ("/dbos-garbage-collect", b'{"cutoff_epoch_timestamp_ms": 1e18}', "$.cutoff_epoch"),
    ("/dbos-global-timeout", b"", "cutoff_epoch_timestamp_ms"),
    ("/dbos-global-timeout", b'{"cutoff_epoch_timestamp_ms": -5}', "$.cutoff_epoch"),
]


async def test_a_body_that_is_not_understood_is_refused_naming_the_field(
    dbos_database_url: str,
) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.simple.with_options(workflow_id="w")(1)
        odd: list[Any] = []
        for path, body, named in BAD_BODIES:
            headers = {"content-type": "application/json"}
            answer = await api.post(path, content=body, headers=headers)
            if answer.status_code != 400 or named not in answer.json()["detail"]:
                odd.append((path, body[:40], named, answer.status_code, answer.text))
        assert not odd
        assert len(ids_of(await api.post("/workflows"))) == 1


async def test_a_fork_that_another_workflow_is_in_the_way_of_conflicts(
    dbos_database_url: str,
) -> None:
    async with served(dbos_database_url) as (shop, api):
        for workflow_id in ("a", "b"):
            await shop.simple.with_options(workflow_id=workflow_id)(1)
        answer = await api.post("/workflows/a/fork", json={"new_workflow_id": "b"})
        assert answer.status_code == 409


async def test_a_large_body_is_refused_however_it_comes(dbos_database_url: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    async with served(dbos_database_url) as (_, api):
        for content in (b" " * 1_100_000, chunks()):
            headers = {"content-type": "application/json"}
            answer = await api.post("/workflows", content=content, headers=headers)
            assert answer.status_code == 413


async def test_only_what_says_that_it_is_json_is_read(dbos_database_url: str) -> None:
    async with served(dbos_database_url) as (_, api):
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            headers = {"content-type": kind} if kind else {}
            answer = await api.post("/workflows", content=b"{}", headers=headers)
            assert answer.status_code == 415, kind
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        assert (await api.post("/workflows", content=b"{}", headers=headers)).status_code == 200


async def test_what_dead_executors_left_is_recovered_now(
    dbos_database_url: str, database: Any
) -> None:
    async with served(dbos_database_url) as (shop, api):
        await database.execute(LEFT_BY_THE_DEAD)
        assert (await api.post("/dbos-workflow-recovery", json=["dead"])).json() == ["left"]
        assert (await api.post("/dbos-workflow-recovery", json=[])).json() == []
        alive = await api.post("/dbos-workflow-recovery", json=[shop.dbos.executor_id])
        assert (alive.status_code, "is alive" in alive.json()["detail"]) == (400, True), alive.text


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_deactivated_app_finishes_and_takes_nothing_new(
    dbos_database_url: str, method: str
) -> None:
    async with served(dbos_database_url) as (shop, api):
        handle = await shop.hold("w")
        answer = await api.request(method, "/deactivate")
        assert (answer.status_code, answer.text) == (200, "deactivated")
        await shop.mail.enqueue(shop.simple.with_options(workflow_id="new"), 1)
        shop.gate.set()
        await result_of(handle)
        assert (await shop.status("new")).status == "ENQUEUED"
        ready = await api.get("/readyz")
        assert (ready.status_code, ready.json()["detail"]) == (503, "the app was deactivated")
        assert (await api.get("/dbos-healthz")).text == "healthy"


async def test_old_workflows_that_ended_are_collected_of_this_app_only(
    dbos_database_url: str, database: Any
) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.hold("running")
        for number in range(6):
            await shop.simple.with_options(workflow_id=f"w-{number}")(number)
            await database.execute(AGED, f"w-{number}", 1000 * (number + 1))
        await database.execute(AGED, "running", 1)
        await database.execute(
            "update dbos.workflow_status set application_name = 'other' where workflow_uuid = 'w-0'"
        )

        async def left_by(**asked: int) -> set[str]:
            answer = await api.post("/dbos-garbage-collect", json=asked)
            assert answer.status_code == 204
            return set(ids_of(await api.post("/workflows"))) - {"running", "w-0"}

        assert await left_by(cutoff_epoch_timestamp_ms=3000) == {"w-2", "w-3", "w-4", "w-5"}
        assert await left_by(rows_threshold=100) == {"w-2", "w-3", "w-4", "w-5"}
        assert await left_by(rows_threshold=3) == {"w-3", "w-4", "w-5"}
        assert await left_by(rows_threshold=3, cutoff_epoch_timestamp_ms=5000) == {"w-4", "w-5"}
        assert {"running", "w-0"} <= set(ids_of(await api.post("/workflows")))


async def test_what_somebody_needs_is_no_garbage(dbos_database_url: str, database: Any) -> None:
    async with served(dbos_database_url) as (_, api):
        await ended(database, "parent", 20, status="PENDING")
        await ended(database, "child", 10, parent="parent")
        await ended(database, "source", 20, status="CANCELLED")
        await ended(database, "fork", 10, status="DELAYED", forked_from="source")
        await ended(database, "alone", 10)
        now_ms = await database.fetchval("select (extract(epoch from now()) * 1000)::bigint")
        asked = {"cutoff_epoch_timestamp_ms": now_ms}
        assert (await api.post("/dbos-garbage-collect", json=asked)).status_code == 204
        assert await left(database) == ["child", "fork", "parent", "source"]


async def test_old_workflows_that_have_not_ended_are_cancelled(
    dbos_database_url: str, database: Any
) -> None:
    async with served(dbos_database_url) as (shop, api):
        for workflow_id, moment_ms in (("old", 1000), ("at", 2000), ("young", 2001)):
            await shop.hold(workflow_id)
            await database.execute(AGED, workflow_id, moment_ms)
        answer = await api.post("/dbos-global-timeout", json={"cutoff_epoch_timestamp_ms": 2000})
        assert answer.status_code == 204
        cancelled = await api.post("/workflows", json={"status": "CANCELLED"})
        assert ids_of(cancelled) == ["old", "at"]
        end_of_times = {"cutoff_epoch_timestamp_ms": 253_402_300_799_999}
        assert (await api.post("/dbos-global-timeout", json=end_of_times)).status_code == 204
        assert (await shop.status("young")).status == "CANCELLED"


async def test_more_than_a_page_is_collected(dbos_database_url: str, database: Any) -> None:
    await database.execute(
        "insert into dbos.workflow_status (workflow_uuid, status, name, created_at) "
        "select 'w-' || i, 'SUCCESS', 'x', i from generate_series(1, 2500) i"
    )
    async with served(dbos_database_url) as (_, api):
        asked = {"cutoff_epoch_timestamp_ms": 2450}
        assert (await api.post("/dbos-garbage-collect", json=asked)).status_code == 204
        assert len(ids_of(await api.post("/workflows", json={"limit": 10_000}))) == 51


async def test_head_is_allowed_where_get_is(dbos_database_url: str) -> None:
    async with served(dbos_database_url) as (_, api):
        answer = await api.head("/dbos-healthz")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_a_taken_port_is_one_warning_and_the_app_works(
    dbos_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(dbos_database_url) as (shop, api):
        second = Managed(dbos_database_url, admin_port=api.base_url.port)
        with caplog.at_level(logging.WARNING):
            async with second.dbos:
                assert await second.simple(4) == 8
        warnings = [r.getMessage() for r in caplog.records if "admin API" in r.getMessage()]
        assert len(warnings) == 1
        assert str(api.base_url.port) in warnings[0]
        assert (await api.get("/readyz")).status_code == 200
        assert await shop.simple(1) == 2


async def test_the_port_is_free_again_after_a_shutdown_and_serves_the_next_launch(
    dbos_database_url: str,
) -> None:
    port = free_port()
    shop = Managed(dbos_database_url, admin_port=port)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:
        for _ in range(2):
            async with shop.dbos:
                assert (await api.get("/readyz")).status_code == 200
            with socket.create_server(("127.0.0.1", port)):
                pass


async def test_signals_and_logs_of_the_process_are_left_alone(dbos_database_url: str) -> None:
    import signal

    access = logging.getLogger("uvicorn.access")
    before = (
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        logging.getLogger("uvicorn.error").level,
        list(access.handlers),
        access.propagate,
    )
    async with served(dbos_database_url) as (_, api):
        await api.get("/dbos-healthz")
        assert before == (
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            logging.getLogger("uvicorn.error").level,
            list(access.handlers),
            access.propagate,
        )


async def test_a_request_under_way_is_answered_before_a_shutdown_ends(
    dbos_database_url: str, database: Any
) -> None:
    async with served(dbos_database_url) as (shop, api):
        await shop.simple.with_options(workflow_id="w")(1)
        async with database.transaction():
            await database.execute("select from dbos.workflow_status for update")
            asked = asyncio.create_task(api.delete("/workflows/w"))
            waiting = "select count(*) > 0 from pg_locks where not granted"

            async def is_held_up() -> bool:
                return bool(await database.fetchval(waiting))

            await eventually(is_held_up)
            closing = asyncio.create_task(shop.dbos.shutdown())

            async def is_closing() -> bool:
                try:
                    return (await api.get("/readyz")).status_code == 503
                except httpx.ConnectError:
                    return True

            await eventually(is_closing)
        assert (await asked).status_code == 204
        await closing


@pytest.mark.parametrize("value", [0, -1, 65_536, "3001", 3001.0, True])
async def test_a_port_that_is_none_is_refused(dbos_database_url: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="admin_port must be a port"):
        await DBOS("shop", dbos_database_url, admin_port=value).launch()


async def test_an_address_that_is_none_of_ours_is_refused(dbos_database_url: str) -> None:
    dbos = DBOS("shop", dbos_database_url)
    dbos.configure(admin_port=free_port(), admin_host="203.0.113.7", admin_token=TOKEN)
    with pytest.raises(ConfigurationError, match=r"cannot listen on 203\.0\.113\.7"):
        await dbos.launch()
    assert dbos.find_launched() is None


async def test_the_environment_says_where_it_is_served(
    dbos_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("DBOS_ADMIN_PORT", str(port))
    monkeypatch.setenv("DBOS_ADMIN_HOST", "localhost")
    monkeypatch.setenv("DBOS_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("DBOS_ADMIN_ALLOWED_HOSTS", "admin.example.com, shop")
    async with (
        DBOS("shop", dbos_database_url),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api,
    ):
        assert (await api.post("/workflows")).status_code == 401
        headers = {"authorization": f"Bearer {TOKEN}", "host": "shop"}
        assert (await api.post("/workflows", headers=headers)).status_code == 200
    monkeypatch.setenv("DBOS_ADMIN_PORT", "http")
    with pytest.raises(ConfigurationError, match="DBOS_ADMIN_PORT must be a port"):
        await DBOS("shop", dbos_database_url).launch()
