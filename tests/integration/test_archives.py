"""Workflows are written down before they are pruned: every line can be imported again."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from ended import ended, left, many
from managed import Managed, managed, result_of
from test_deletion import BELONGINGS, TABLES, left_of

from dbos_async import Client, Retention
from dbos_async._engine import archives
from dbos_async._store import pruning

EVERYTHING = Retention(max_age=0)


async def test_a_file_has_a_line_of_each_that_was_pruned_and_gives_them_back(
    dbos_database_url: str, database: Any, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.jsonl"
    async with managed(dbos_database_url) as shop:
        result = await shop.rich.with_options(workflow_id="r")()
        await ended(database, "alive", status="DELAYED")
        await database.execute(BELONGINGS)
        await database.execute("delete from dbos.workflow_output")
        assert await shop.dbos.prune(EVERYTHING, archive=archive) == 2
        assert await left(database) == ["alive"]
        lines = archive.read_text().splitlines()
        assert len(lines) == 2
        for line in lines:
            await shop.dbos.import_workflow(line)
        assert (await left_of(database, "r")).keys() == TABLES.keys() - {
            "workflow_input",  # inline
            "workflow_output",
        }
        again = await shop.dbos.retrieve_workflow("r")
        assert await result_of(again) == result
        assert await shop.dbos.prune(EVERYTHING, archive=str(archive)) == 2
        assert len(archive.read_text().splitlines()) == 4


async def test_a_callback_gets_the_lines_before_anything_is_deleted(
    dbos_database_url: str, database: Any
) -> None:
    await many(database, "w-", 250)
    written: list[str] = []

    async def keep(lines: list[str]) -> None:
        ids = [id_of(line) for line in lines]
        assert set(ids) <= set(await left(database))
        written.extend(ids)

    async with Client(dbos_database_url) as client:
        assert await client.prune(Retention(max_age=0, archive=keep)) == 250
    assert sorted(written) == sorted(f"w-{n}" for n in range(1, 251))
    assert await left(database) == []


async def test_what_the_archive_refuses_stays(dbos_database_url: str, database: Any) -> None:
    await many(database, "w-", 1500)
    kept: list[str] = []

    async def keep(lines: list[str]) -> None:
        if kept:
            raise ConnectionError("no store")
        kept.extend(map(id_of, lines))

    async with Client(dbos_database_url) as client:
        with pytest.raises(ConnectionError, match="no store"):
            await client.prune(EVERYTHING, archive=keep)
        with pytest.raises(OSError, match="nowhere"):
            await client.prune(EVERYTHING, archive="/nowhere/archive.jsonl")
    assert set(await left(database)) == {f"w-{n}" for n in range(1, 1501)} - set(kept)


async def test_the_leader_outlives_what_its_archive_raises(
    dbos_database_url: str, database: Any
) -> None:
    calls: list[int] = []

    async def keep(lines: list[str]) -> None:
        calls.append(len(lines))
        if len(calls) < 3:
            raise ConnectionError("no store")

    shop = Managed(dbos_database_url, retention=Retention(max_age=3600, archive=keep))
    shop.dbos.configure(prune_interval=0.02)
    async with shop.dbos, asyncio.timeout(20):
        await many(database, "w-", 5)
        while await left(database):
            await asyncio.sleep(0.02)
    assert calls[:2] == [5, 5]


async def test_what_changes_while_it_is_written_down_is_not_deleted(
    dbos_database_url: str, database: Any
) -> None:
    async with managed(dbos_database_url) as shop:
        await shop.simple.with_options(workflow_id="rewound")(1)
        await shop.simple.with_options(workflow_id="marked")(1)
        await shop.simple.with_options(workflow_id="still")(1)

        async def keep(lines: list[str]) -> None:
            assert len(lines) == 3
            again = await shop.dbos.rewind_workflow("rewound")
            await result_of(again)  # it has ended again by now, otherwise
            await shop.dbos.update_workflow_attributes("marked", {"order": 1})

        assert await shop.dbos.prune(EVERYTHING, archive=keep) == 1
        assert await left(database) == ["marked", "rewound"]


async def test_who_is_needed_since_it_was_written_down_is_not_deleted(
    dbos_database_url: str, database: Any
) -> None:
    for family in ("asked", "forked", "quiet"):
        await ended(database, family, 20)
        await ended(database, f"{family}-1", 10, status="CANCELLED", parent=family)
    async with Client(dbos_database_url) as client:

        async def keep(lines: list[str]) -> None:
            assert len(lines) == 6
            await client.resume_workflow("asked-1")
            await client.fork_workflow("forked", 1, new_workflow_id="fork")

        assert await client.prune(EVERYTHING, archive=keep) == 2
    assert await left(database) == ["asked", "asked-1", "fork", "forked", "forked-1"]


async def test_what_cannot_be_written_down_stays_with_its_children_and_is_said_once(
    dbos_database_url: str, database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await many(database, "w-", 20)
    for number in range(2):
        await ended(database, f"lost-{number}", 20)
        await ended(database, f"child-{number}", 10, parent=f"lost-{number}")
    await database.execute(
        "update dbos.workflow_status set inputs = $1 where starts_with(workflow_uuid, 'lost')",
        'dbos_async payload {"key":"0/0","bytes":1,"digest":"","store":"s3://gone"}',
    )
    written: list[str] = []

    async def keep(lines: list[str]) -> None:
        written.extend(map(id_of, lines))

    async with Client(dbos_database_url) as client:
        for deleted in (20, 0):
            caplog.clear()
            assert await client.prune(EVERYTHING, archive=keep) == deleted
            [record] = [
                each for each in caplog.records if "cannot be archived" in each.getMessage()
            ]
            assert "lost-0" in record.getMessage()
    assert sorted(written) == sorted(f"w-{n}" for n in range(1, 21))
    assert await left(database) == ["child-0", "child-1", "lost-0", "lost-1"]


async def test_a_family_goes_though_it_is_written_in_parts(
    dbos_database_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "PART_BYTES", 1)
    await ended(database, "parent", 10)
    await ended(database, "child", 9, parent="parent")
    parts: list[int] = []

    async def keep(lines: list[str]) -> None:
        parts.append(len(lines))

    async with Client(dbos_database_url) as client:
        assert await client.prune(EVERYTHING, archive=keep) == 2
    assert parts == [1, 1]


async def test_what_is_large_is_written_by_itself(dbos_database_url: str, database: Any) -> None:
    await many(database, "w-", 10)
    large = json.dumps("x" * pruning.PART_BYTES)
    await database.execute(
        "update dbos.operation_outputs set output = $1 where workflow_uuid in ('w-3', 'w-4')", large
    )
    parts: list[int] = []

    async def keep(lines: list[str]) -> None:
        parts.append(len(lines))

    async with Client(dbos_database_url) as client:
        assert await client.prune(EVERYTHING, archive=keep) == 10
    assert sum(parts) == 10
    assert parts.count(1) >= 2


# Files


LINE = archives.HEAD.decode() + ',"version":1,"workflows":[]}'


def test_a_torn_line_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    long = LINE[:-2] + '"' + "x" * 3 * archives.CHUNK
    for torn in ("", LINE[:1], LINE[:20], LINE[:-1], long):
        for before in ("", "first\nsecond\n"):
            path.write_text(before + torn)
            archives.append(path, ["third", "fourth"])
            assert path.read_text() == before + "third\nfourth\n"


def test_a_whole_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_text(f"{LINE}\n{LINE}")
    archives.append(path, ["third"])
    assert path.read_text() == f"{LINE}\n{LINE}\nthird\n"


@pytest.mark.parametrize("notes", ["precious notes", "first\n{'precious'", "x" * 200_000, "\xff"])
async def test_a_file_that_is_no_archive_is_left_alone_and_nothing_deleted(
    dbos_database_url: str, database: Any, tmp_path: Path, notes: str
) -> None:
    path = tmp_path / "notes"
    path.write_text(notes)
    await ended(database, "old", 10)
    async with Client(dbos_database_url) as client:
        with pytest.raises(OSError, match="no archive of workflows"):
            await client.prune(EVERYTHING, archive=path)
    assert path.read_text() == notes
    assert await left(database) == ["old"]


async def test_writers_at_the_same_time_tear_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    lines = [[f"{writer}-{line}" * 500 for line in range(50)] for writer in range(8)]
    await asyncio.gather(*[archives.keep(path, each) for each in lines for _ in range(2)])
    written = path.read_text().splitlines()
    assert sorted(written) == sorted(2 * [line for each in lines for line in each])


def id_of(line: str) -> str:
    [workflow] = json.loads(line)["workflows"]
    workflow_id: str = workflow["workflow_status"]["workflow_uuid"]
    return workflow_id
