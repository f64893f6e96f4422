"""`dbos-async workflow`: what it prints is what the API says, and what it changes is changed."""

import json
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from commands import Commands, plain
from managed import Managed, managed

from dbos_async import DBOS, Client, WorkflowNotFoundError

FILL = """
insert into dbos.workflow_status
       (workflow_uuid, status, name, queue_name, application_version, application_name, inputs,
        created_at, completed_at, waiting_for, delay_until_epoch_ms, attributes, recovery_attempts,
        error, serialization, authenticated_user, executor_id, parent_workflow_id)
select id, status, name, queue, '1', 'shop', '{"positionalArgs":[1],"namedArgs":{"note":"n"}}',
       (extract(epoch from now() - age) * 1000)::bigint,
       (extract(epoch from now() - age / 2) * 1000)::bigint, waiting,
       (extract(epoch from now() + interval '2 h') * 1000)::bigint,
       case when id = 'ok-1' then '{"order": 5, "kind": "gold"}'::jsonb end, 3,
       case status when 'ERROR' then
         '{"name":"ValueError","message":"[red]no[/] money","code":null,"data":null}' end,
       'portable_json', case when id = 'ok-2' then 'ada' end, 'e-1',
       case when id = 'bad' then 'ok-1' end
  from (values ('ok-1', 'SUCCESS', 'buy', null, interval '3 days', null),
               ('ok-2', 'SUCCESS', 'sell', 'mail', interval '3 h', null),
               ('bad', 'ERROR', 'buy', null, interval '2 h', null),
               ('dead', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED', 'buy', null, interval '90 min', null),
               ('gone', 'CANCELLED', 'sell', null, interval '80 min', null),
               ('line', 'ENQUEUED', 'buy', 'mail', interval '70 min', null),
               ('later', 'DELAYED', 'buy', 'mail', interval '60 min', null),
               ('wait', 'DELAYED', 'buy', 'mail', interval '50 min', 'message approved')
       ) as v(id, status, name, queue, age, waiting)
"""


@pytest.fixture
async def filled(database: asyncpg.Connection) -> None:
    await database.execute(FILL)
    await database.execute("insert into dbos.queues (name) values ('bills')")


FILTERS: list[tuple[list[str], list[str]]] = [
    ([], ["wait", "later", "line", "gone", "dead", "bad", "ok-2", "ok-1"]),
    (["--oldest-first", "--limit", "2"], ["ok-1", "ok-2"]),
    (["-l", "2", "-o", "1"], ["later", "line"]),
    (["--status", "error", "-S", "DEAD"], ["dead", "bad"]),
    (["--status", "max_recovery_attempts_exceeded"], ["dead"]),
    (["--name", "sell"], ["gone", "ok-2"]),
    (["--queue", "mail", "--until", "65m"], ["line", "ok-2"]),
    (["--queued"], ["wait", "later", "line", "ok-2"]),
    (["--waiting-for", "message"], ["wait"]),
    (["--waiting-for", "message approved"], ["wait"]),
    (["--since", "1h15m"], ["wait", "later", "line"]),
    (["--since", "2000-01-01", "--until", "2d"], ["ok-1"]),
    (["--ended-until", "1d"], ["ok-1"]),
    (["--ended-since", "2000-01-01T00:00:00+02:00", "--ended-until", "1d"], ["ok-1"]),
    (["--attribute", "order=5", "--attribute", "kind=gold"], ["ok-1"]),
    (["--attribute", "order=6"], []),
    (["--user", "ada"], ["ok-2"]),
    (["--prefix", "ok-"], ["ok-2", "ok-1"]),
    (["--parent", "ok-1"], ["bad"]),
    (["--app", "shop", "--app-version", "1", "--executor", "e-1", "-l", "1"], ["wait"]),
    (["--app", "'; drop table dbos.workflow_status; --"], []),
    (["--schedule", "nightly"], []),
    (["--forked-from", "ok-1"], []),
]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("options", "ids"), FILTERS, ids=[" ".join(o) for o, _ in FILTERS])
async def test_the_list_has_what_the_options_say(
    cli: Commands, options: list[str], ids: list[str]
) -> None:
    listed = await cli.json("workflow", "list", *options)
    assert [each["workflow_id"] for each in listed] == ids
    table = (await cli("workflow", "list", *options)).stdout
    assert [line.split()[0] for line in table.splitlines()[1:]] == ids or "No workflow" in table


@pytest.mark.usefixtures("filled")
async def test_the_list_is_that_of_the_api(cli: Commands) -> None:
    async with Client(cli.url) as client:
        expected = [plain(each) for each in await client.list_workflows()]
    assert await cli.json("workflow", "list", "--with-data") == expected
    slim = await cli.json("workflow", "list")
    for each in expected:
        for name in ("input", "output", "error"):
            del each[name]
    assert slim == expected


@pytest.mark.usefixtures("filled")
async def test_the_table_tells_a_person_what_to_look_at(cli: Commands) -> None:
    result = await cli("workflow", "list", "--limit", "7")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert re.search(r"DELAYED +buy +50m +message approved, gives up in (2h|1h59m)", lines["wait"])
    assert re.search(r"DELAYED +buy +60m +on mail, due in (2h|1h59m)", lines["later"])
    assert re.search(r"ENQUEUED +buy +70m +on mail", lines["line"])
    assert re.search(r"DEAD +buy +90m +3 attempts", lines["dead"])
    assert re.search(r"ERROR +buy +2h +ValueError: \[red\]no\[/\] money", lines["bad"])
    assert "7 are shown, and there are more" in result.stderr
    assert "1 is shown, and" in (await cli("workflow", "list", "--limit", "1")).stderr


async def test_an_empty_list_says_so(cli: Commands) -> None:
    assert (await cli("workflow", "list")).stdout == "No workflow fits.\n"
    assert await cli.json("workflow", "list") == []


@pytest.mark.usefixtures("filled")
async def test_one_workflow_is_shown_as_the_api_has_it(cli: Commands) -> None:
    async with Client(cli.url) as client:
        for workflow in await client.list_workflows():
            shown = await cli.json("workflow", "get", workflow.workflow_id)
            assert shown.pop("stands")
            assert shown == plain(workflow)
    text = (await cli("workflow", "get", "bad")).stdout
    assert re.search(r'input +\(1, note="n"\)', text)
    assert re.search(r"error +ValueError: \[red\]no\[/\] money", text)
    assert re.search(r"created at +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(2h ago\)", text)


STANDS = {
    "ok-2": "it has succeeded after 1h30m",
    "bad": "it has failed after 1h; once the cause is mended: "
    "dbos-async workflow rewind bad --from-last-failure",
    "dead": "it is a dead letter: its processes died too often, in 3 attempts; "
    "no step has ended yet; once the cause is mended: dbos-async workflow resume dead",
    "gone": "it was cancelled; no step has ended yet; to let it go on: "
    "dbos-async workflow resume gone",
    "begun": "its process e-1 is dead, and no process runs its version 1: launch that, or "
    "dbos-async versions move 1 NEW --include-pending; no step has ended yet",
    "newest": "it is enqueued, and no process runs the newest version of the code: "
    "launch the newest version, v2 of shop",
    "line": "it is enqueued, and its queue mail was deleted: launch an app that declares it",
    "later": r"it has not begun: it is delayed until .* UTC \(in .*\); and no process runs its "
    "version 1: launch that, or dbos-async versions move 1 NEW",
    "wait": r"it waits for a message on approved until .* UTC \(in .*\); no step has ended yet; "
    "and no process runs its version 1: .* move 1 NEW --include-pending",
}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("workflow_id", "stands"), STANDS.items(), ids=STANDS.keys())
async def test_it_is_said_where_a_workflow_stands(
    cli: Commands, database: asyncpg.Connection, workflow_id: str, stands: str
) -> None:
    await database.execute(
        "insert into dbos.workflow_status (workflow_uuid, status, name, executor_id, queue_name,"
        " application_name, application_version) values"
        " ('begun', 'PENDING', 'n', 'e-1', null, 'shop', '1'),"
        " ('newest', 'ENQUEUED', 'n', null, 'bills', 'shop', null)"
    )
    async with DBOS("shop", cli.url, app_version="v2"):
        pass
    said = (await cli.json("workflow", "get", workflow_id))["stands"]
    assert re.fullmatch(stands, said), said


async def test_it_is_said_where_one_runs_and_what_keeps_it(cli: Commands, database: Any) -> None:
    async with managed(cli.url) as shop:
        held = await shop.hold()
        running = await cli.json("workflow", "get", "w")
        assert re.fullmatch(
            r"it runs in process \d+ on \S+; the last step that ended is 1 double, \d+s ago",
            running["stands"],
        )
        await shop.mail.pause()
        await shop.mail.enqueue(shop.simple.with_options(workflow_id="queued"), 1)
        queued = await cli.json("workflow", "get", "queued")
        assert "its queue is paused: dbos-async queue resume mail" in queued["stands"]
        await shop.mail.resume()
        await shop.until_status("SUCCESS", "queued")
        unknown = shop.dbos.stub("unknown").with_options(workflow_id="unknown")
        await shop.mail.enqueue(unknown)
        said = (await cli.json("workflow", "get", "unknown"))["stands"]
        assert "a process that works on the queue mail and has the workflow unknown" in said
        shop.gate.set()
        await held.get_result()
        await database.execute(
            "update dbos.workflow_status set status = 'PENDING',"
            " executor_id = 'other' where workflow_uuid = 'w'"
        )
        dead = await cli.json("workflow", "get", "w")
        assert "its process other is dead, and another takes it over" in dead["stands"]


async def test_steps_are_those_of_the_api(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        with pytest.raises(ValueError, match="risky"):
            await shop.risky.with_options(workflow_id="w")()
        expected = [plain(step) for step in await shop.dbos.list_steps("w")]
    assert await cli.json("workflow", "steps", "w") == expected
    header, first, second = (await cli("workflow", "steps", "w")).stdout.splitlines()
    assert header.split() == ["step", "name", "started", "took", "result"]
    assert re.search(r"1 +double +\d\d-\d\d \d\d:\d\d:\d\d +\S+ +2", first)
    assert second.rstrip().endswith("ValueError: too risky")


async def test_all_of_a_step_is_shown_when_all_is_asked_for(
    cli: Commands, database: asyncpg.Connection
) -> None:
    error = {"name": "ValueError", "message": f"{'x' * 3000}\nthe \x1b second line"}
    await database.execute(FILL)
    await database.execute(
        "insert into dbos.operation_outputs"
        " (workflow_uuid, function_id, function_name, error, serialization)"
        " values ('ok-1', 7, 'charge', $1, 'portable_json')",
        json.dumps({**error, "code": None, "data": None}),
    )
    short = (await cli("workflow", "steps", "ok-1")).stdout
    assert len(short.splitlines()) == 2
    whole = (await cli("workflow", "steps", "ok-1", "--full")).stdout.splitlines()
    assert whole[1].split()[:2] == ["7", "charge"]
    assert "x" * 3000 in whole[1]
    assert whole[2].strip() == r"the \x1b second line"


async def test_a_long_value_is_cut_unless_all_of_it_is_asked_for(
    cli: Commands, database: asyncpg.Connection
) -> None:
    await database.execute(
        "insert into dbos.workflow_status (workflow_uuid, status, name, output, serialization)"
        " values ('w', 'SUCCESS', 'n', $1, 'portable_json')",
        json.dumps(["x" * 3000]),
    )
    assert "more characters: --full shows them" in (await cli("workflow", "get", "w")).stdout
    assert "x" * 3000 in (await cli("workflow", "get", "w", "--full")).stdout


# Changing


async def status(cli: Commands, workflow_id: str) -> str:
    async with Client(cli.url) as client:
        handle = await client.retrieve_workflow(workflow_id)
        return (await handle.get_status()).status


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("verb", "options", "ids"),
    [
        ("cancel", ["--queue", "mail"], {"line", "later", "wait"}),
        ("resume", ["--status", "DEAD"], {"dead"}),
        ("resume", ["--since", "10d"], {"dead", "gone"}),
        ("delete", ["--status", "SUCCESS"], {"ok-1", "ok-2"}),
        ("delete", ["--prefix", "ok-1", "--children"], {"ok-1", "bad"}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_many_are_changed_only_when_it_was_said(
    cli: Commands, verb: str, options: list[str], ids: set[str]
) -> None:
    before = await cli.json("workflow", "list")
    refusal = await cli.refused("workflow", verb, *options)
    plural = "s" if len(ids) > 1 else ""
    assert f"this would {verb} {len(ids)} workflow{plural}: add --yes" in refusal
    dry = await cli("workflow", verb, *options, "--dry-run", "--yes")
    assert f"{len(ids)} workflow{plural} would be" in dry.stderr
    assert set(dry.stdout.split()) - {"workflow", "id"} == ids
    assert await cli.json("workflow", "list") == before
    done = await cli.json("workflow", verb, *options, "--yes")
    assert {each["workflow_id"] for each in done} == ids
    left = {each["workflow_id"]: each["status"] for each in await cli.json("workflow", "list")}
    expected = {"cancel": "CANCELLED", "resume": "ENQUEUED", "delete": None}[verb]
    assert {left.get(each) for each in ids} == {expected}


@pytest.mark.usefixtures("filled")
async def test_nothing_that_fits_is_nothing_to_confirm(cli: Commands) -> None:
    done = await cli("workflow", "delete", "--name", "nobody")
    assert done.stdout == "0 workflows deleted.\n"
    dry = await cli("workflow", "delete", "--name", "nobody", "--dry-run")
    assert (dry.stdout, dry.stderr) == ("", "0 workflows would be deleted.\n")


@pytest.mark.usefixtures("filled")
async def test_some_are_cancelled_and_resumed_by_their_ids(cli: Commands) -> None:
    done = await cli("workflow", "cancel", "line", "later", "ok-1")
    assert done.stdout == "2 workflows cancelled.\n"
    assert done.stderr == "ok-1 has ended with SUCCESS, and is left as it is.\n"
    done = await cli("workflow", "resume", "line", "dead")
    assert done.stdout == "2 workflows resumed.\n"
    assert "leaves it, and runs at once, whatever the queue's limits" in done.stderr
    assert [await status(cli, each) for each in ("line", "dead", "later", "ok-1")] == [
        "ENQUEUED",
        "ENQUEUED",
        "CANCELLED",
        "SUCCESS",
    ]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("verb", ["cancel", "resume", "delete"])
async def test_an_unknown_id_leaves_the_others_alone(cli: Commands, verb: str) -> None:
    assert "no workflow with the id 'nobody'" in await cli.refused(
        "workflow", verb, "line", "nobody"
    )
    assert await status(cli, "line") == "ENQUEUED"


@pytest.mark.usefixtures("filled")
async def test_what_has_ended_is_not_resumed_and_nothing_with_it(cli: Commands) -> None:
    refusal = await cli.refused("workflow", "resume", "gone", "ok-1", code=2)
    assert "ok-1 has ended with SUCCESS" in refusal
    assert await status(cli, "gone") == "CANCELLED"


@pytest.mark.usefixtures("filled")
async def test_one_is_deleted_by_its_id_and_its_family_when_that_was_said(cli: Commands) -> None:
    assert (await cli("workflow", "delete", "gone")).stdout == "1 workflow deleted.\n"
    assert "this would delete 2 workflows" in await cli.refused(
        "workflow", "delete", "ok-1", "--children"
    )
    assert "this would delete 2 workflows, 1 of them not ended: add" in await cli.refused(
        "workflow", "delete", "dead", "line"
    )
    assert "this would delete 1 workflow, 1 of them not ended" in await cli.refused(
        "workflow", "delete", "line"
    )
    await cli("workflow", "delete", "ok-1", "--children", "--yes")
    left = [each["workflow_id"] for each in await cli.json("workflow", "list")]
    assert left == ["wait", "later", "line", "dead", "ok-2"]


async def failed(shop: Managed, workflow_id: str) -> None:
    shop.fails = True
    with pytest.raises(ValueError, match="risky"):
        await shop.risky.with_options(workflow_id=workflow_id)()
    shop.fails = False
    shop.calls.clear()


async def test_a_workflow_is_forked_restarted_and_rewound(cli: Commands) -> None:
    async with managed(cli.url) as shop:
        await failed(shop, "w")
        fork = await cli("workflow", "fork", "w", "--step", "risk", "--id", "w-fork")
        assert fork.stdout == "w-fork is enqueued, a fork of w.\n"
        await shop.until_status("SUCCESS", "w-fork")
        assert shop.calls == ["risk", "double 2"]
        shop.calls.clear()
        [anew] = await cli.json("workflow", "restart", "w", "--timeout", "1h")
        await shop.until_status("SUCCESS", anew["workflow_id"])
        assert (await shop.status(anew["workflow_id"])).timeout == 3600
        assert shop.calls == ["double 1", "risk", "double 2"]
        shop.calls.clear()
        again = await cli("workflow", "rewind", "w", "--from-last-failure", "--to-queue", "mail")
        assert again.stdout == "w is enqueued again.\n"
        await shop.until_status("SUCCESS", "w")
        assert shop.calls == ["risk", "double 2"]
        shop.calls.clear()
        [second] = await cli.json("workflow", "fork", "w", "--step", "3", "--to-version", "1")
        await shop.until_status("SUCCESS", second["workflow_id"])
        assert shop.calls == ["double 2"]


async def test_a_workflow_is_exported_and_imported(cli: Commands, tmp_path: Path) -> None:
    async with managed(cli.url) as shop:
        await shop.simple.with_options(workflow_id="w")(2)
    before = await cli.json("workflow", "get", "w")
    exported = (await cli("workflow", "export", "w")).stdout
    assert json.loads(exported)
    file = tmp_path / "w.json"
    said = (await cli("workflow", "export", "w", "--output", str(file))).stdout
    assert said == f"w was written to {file}.\n"
    assert json.loads(file.read_text()) == json.loads(exported)
    other = tmp_path / "other.json"
    other.write_text("precious")
    refused = await cli.refused("workflow", "export", "w", "--output", str(other))
    assert "other.json exists" in refused
    assert "--yes" in refused
    assert other.read_text() == "precious"
    await cli("workflow", "export", "w", "--output", str(other), "--yes")
    assert json.loads(other.read_text()) == json.loads(exported)
    await cli("workflow", "export", "w", "--output", "/dev/null")
    assert "a workflow 'w' already" in await cli.refused("workflow", "import", str(file))
    await cli("workflow", "delete", "w")
    assert await cli.json("workflow", "import", str(file)) == [{"workflow_id": "w"}]
    assert await cli.json("workflow", "get", "w") == before
    await cli("workflow", "delete", "w")
    await cli("workflow", "import", "-", stdin=exported)
    assert await cli.json("workflow", "get", "w") == before


@pytest.mark.usefixtures("filled")
async def test_a_parent_that_is_deleted_is_said_to_leave_its_children(cli: Commands) -> None:
    done = await cli("workflow", "delete", "ok-1")
    assert done.stdout == "1 workflow deleted.\n"
    left = "What they had started is left, 1 workflow, such as bad: --children deletes that, too.\n"
    assert done.stderr == left
    assert not (await cli("workflow", "delete", "ok-2")).stderr


@pytest.mark.usefixtures("filled")
async def test_an_archive_is_imported_but_for_what_is_there(cli: Commands, tmp_path: Path) -> None:
    before = {each["workflow_id"]: each for each in await cli.json("workflow", "list")}
    archive = tmp_path / "old.jsonl"
    await cli("prune", "--max-age", "0s", "--yes", "--archive", str(archive))
    kept = archive.read_text()
    assert kept.count("\n") == 5
    [*_, last] = kept.splitlines()
    archive.write_text(kept + last[:-9])
    assert "line 6 of 6: this is no text" in await cli.refused(
        "workflow", "import", str(archive), code=2
    )
    assert "gone" not in {each["workflow_id"] for each in await cli.json("workflow", "list")}
    stale = last.replace('"status":"', '"status":"MAX_RECOVERY_ATTEMPTS_EXCEEDED","was":"')
    archive.write_text(f"{stale}\n{kept}\n")
    first = kept.splitlines()[0]
    await cli("workflow", "import", "-", stdin=first)
    there = json.loads(first)["workflows"][0]["workflow_status"]["workflow_uuid"]
    done = await cli("workflow", "import", str(archive))
    assert set(done.stdout.split()[2:]) == {"ok-1", "ok-2", "bad", "dead", "gone"} - {there}
    assert done.stderr == (f"4 workflows imported.\n1 was there already, and left as is: {there}\n")
    after = {each["workflow_id"]: each for each in await cli.json("workflow", "list")}
    for each in (before, after):
        for row in each.values():
            del row["updated_at"]
    assert after == before


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["get", "nobody"], 1, "no workflow with the id 'nobody'"),
        (["steps", "nobody"], 1, "no workflow with the id 'nobody'"),
        (["fork", "'; drop schema dbos; --"], 1, "no workflow with the id"),
        (["rewind", "nobody"], 1, "no workflow"),
        (["export", "nobody"], 1, "no workflow"),
        (["rewind", "line"], 2, "line"),
        (["fork", "ok-1", "--step", "charge"], 2, "step"),
        (["fork", "ok-1", "--step", "99"], 2, "step"),
        (["fork", "ok-1", "--step", "1", "--from-last-failure"], 2, "not both"),
        (["fork", "ok-1", "--id", "bad"], 1, "bad"),
        (["fork", "ok-1", "--to-queue", "nowhere"], 1, "nowhere"),
        (["fork", "ok-1", "--timeout", "soon"], 2, "'soon' is no duration"),
        (["list", "--status", "DONE"], 2, "'DONE' is no status; there are"),
        (["list", "--since", "yesterday"], 2, "'yesterday' is no time"),
        (["list", "--attribute", "order"], 2, "name=value"),
        (["cancel"], 2, "which ones?"),
        (["delete", "ok-1", "--status", "ERROR"], 2, "not both"),
        (["cancel", "--children", "--name", "buy"], 2, "--children goes with ids"),
        (["resume", "--to-queue", "mail", "--name", "buy"], 2, "go with ids"),
        (["import", "/nowhere/at/all.json"], 2, "cannot read"),
        (["import", "pyproject.toml"], 2, ""),
        (["export", "ok-1", "-o", "/nowhere/at/all.json"], 2, "cannot write"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_in_a_sentence(
    cli: Commands, arguments: list[str], code: int, why: str
) -> None:
    before = await cli.json("workflow", "list")
    assert why in await cli.refused("workflow", *arguments, code=code)
    assert await cli.json("workflow", "list") == before


async def test_an_unknown_workflow_is_unknown_to_the_api_too(cli: Commands) -> None:
    async with Client(cli.url) as client:
        with pytest.raises(WorkflowNotFoundError):
            await client.retrieve_workflow("nobody")
