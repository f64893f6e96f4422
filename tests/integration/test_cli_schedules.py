"""`dbos-async schedule`: what the API says, and what the verbs do."""

import re
from datetime import datetime
from typing import Any

import pytest
from commands import Commands, plain

from dbos_async import DBOS, Client


@pytest.fixture
async def scheduled(cli: Commands) -> None:
    """An app with two schedules, that is not launched any more."""
    dbos = DBOS("shop", cli.url, app_version="1")
    dbos.queue("mail")

    @dbos.scheduled("0 3 * * *", timezone="Europe/Berlin", name="nightly")
    @dbos.workflow(name="report")
    async def report(due: datetime, context: Any) -> None: ...

    @dbos.scheduled("*/5 * * * *", queue="mail", name="often")
    @dbos.workflow(name="poll")
    async def poll(due: datetime, context: Any) -> None: ...

    async with dbos:
        pass


async def listed(cli: Commands) -> dict[str, Any]:
    return {each["name"]: each for each in await cli.json("schedule", "list")}


@pytest.mark.usefixtures("scheduled")
async def test_schedules_are_listed_as_the_api_has_them(cli: Commands) -> None:
    async with Client(cli.url) as client:
        expected = {each.name: plain(each) for each in await client.list_schedules()}
    assert await listed(cli) == expected
    assert [each["name"] for each in await cli.json("schedule", "list", "--prefix", "ni")] == [
        "nightly"
    ]
    assert await cli.json("schedule", "list", "--app", "other") == []
    header, nightly, often = (await cli("schedule", "list")).stdout.splitlines()
    columns = "schedule state cron workflow fired next"
    assert header.split() == columns.split()
    assert re.match(r"nightly +0 3 \* \* \* Europe/Berlin +report +- ", nightly)
    assert re.search(r"often +\*/5 \* \* \* \* +poll on mail +\S+ +in \S+", often)


async def test_no_schedules_are_no_error(cli: Commands) -> None:
    assert (await cli("schedule", "list")).stdout == "There are no schedules.\n"
    assert await cli.json("schedule", "list") == []


@pytest.mark.usefixtures("scheduled")
async def test_a_schedule_is_paused_and_goes_on(cli: Commands) -> None:
    said = (await cli("schedule", "pause", "nightly")).stdout
    assert said == "nightly is paused, until: dbos-async schedule resume nightly\n"
    assert (await listed(cli))["nightly"]["status"] == "PAUSED"
    assert " paused " in (await cli("schedule", "list")).stdout
    assert (await cli("schedule", "resume", "nightly")).stdout == "nightly goes on.\n"
    assert (await listed(cli))["nightly"]["status"] == "ACTIVE"


@pytest.mark.usefixtures("scheduled")
async def test_a_schedule_is_fired_by_hand(cli: Commands) -> None:
    [made] = await cli.json("schedule", "trigger", "nightly")
    assert (await cli("schedule", "trigger", "often")).stdout.endswith(" is enqueued.\n")
    found = await cli.json("workflow", "list", "--schedule", "nightly")
    assert [each["workflow_id"] for each in found] == [made["workflow_id"]]


@pytest.mark.usefixtures("scheduled")
async def test_what_was_missed_is_made_up_for_once(cli: Commands) -> None:
    span = ["--since", "2026-06-01", "--until", "2026-06-04"]
    made = await cli.json("schedule", "backfill", "nightly", *span)
    assert len(made) == 3
    again = await cli("schedule", "backfill", "nightly", *span)
    assert again.stdout == "3 runs were due; what had not run is enqueued.\n"
    found = await cli.json("workflow", "list", "--schedule", "nightly")
    assert {each["workflow_id"] for each in found} == {each["workflow_id"] for each in made}


@pytest.mark.usefixtures("scheduled")
@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["pause", "nobody"], 1, "nobody"),
        (["resume", "'; drop table dbos.workflow_schedules; --"], 1, "drop table"),
        (["trigger", "nobody"], 1, "nobody"),
        (["backfill", "nobody", "--since", "1d"], 1, "nobody"),
        (["backfill", "nightly", "--since", "soon"], 2, "'soon' is no time"),
        (["backfill", "nightly", "--since", "1h", "--until", "2h"], 2, "before the start"),
        (["backfill", "often", "--since", "1000d"], 2, "10,000"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused(
    cli: Commands, arguments: list[str], code: int, why: str
) -> None:
    before = await listed(cli)
    assert why in await cli.refused("schedule", *arguments, code=code)
    assert await listed(cli) == before
    assert await cli.json("workflow", "list") == []
