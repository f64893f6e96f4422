"""Large values beside the official client: it sees references, and its forks keep the objects."""

import json
from pathlib import Path
from typing import Any

import pytest

from dbos_async._store.payloads import PREFIX

NOTE = "note " * 100


@pytest.fixture
def store(tmp_path: Path) -> dict[str, Any]:
    return {"payload_store": f"file://{tmp_path / 'objects'}", "payload_threshold": 200}


def files_in(path: Path) -> list[Path]:
    return [each for each in path.rglob("*") if each.is_file()]


async def test_the_official_client_lists_references_and_hides_nothing(
    shop_on: Any, official: Any, dbos_database_url: str, store: dict[str, Any]
) -> None:
    async with shop_on(dbos_database_url, **store) as shop:
        await shop.simple.with_options(workflow_id="large")(1, note=NOTE)
        await shop.simple.with_options(workflow_id="small")(1, note="short")
        listed = {each.workflow_id: each for each in await official.list_workflows_async()}
        assert listed["small"].output == {"doubled": 2, "note": "short"}
        assert listed["large"].output.startswith(PREFIX)
        assert listed["large"].input.startswith(PREFIX)
        handle = await official.retrieve_workflow_async("large")
        with pytest.raises(json.JSONDecodeError):  # rather than a value that is none
            await handle.get_result()


async def test_a_fork_by_the_official_client_keeps_the_objects(
    shop_on: Any, official: Any, dbos_database_url: str, store: dict[str, Any], tmp_path: Path
) -> None:
    async with shop_on(dbos_database_url, **store) as shop:
        await shop.simple.with_options(workflow_id="w")(1, note=NOTE)
        fork = await official.fork_workflow_async("w", 1)
        first = await shop.dbos.retrieve_workflow(fork.workflow_id)
        assert await first.get_result(timeout=20) == {"doubled": 2, "note": NOTE}
        again = await official.fork_workflow_async(fork.workflow_id, 2)
        await official.delete_workflow_async("w")
        await official.delete_workflow_async(fork.workflow_id)
        await shop.dbos.launched().session.payloads.forget(["w", fork.workflow_id])
        handle = await shop.dbos.retrieve_workflow(again.workflow_id)
        assert await handle.get_result(timeout=20) == {"doubled": 2, "note": NOTE}
        await shop.dbos.delete_workflow(again.workflow_id)
    assert files_in(tmp_path / "objects") == []
