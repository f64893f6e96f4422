"""Several system databases behind one process."""

import asyncio
import collections
from typing import Any

import pytest

from dbos_async import (
    DBOS,
    Client,
    ConfigurationError,
    DatabaseLostError,
    NotLaunchedError,
    Router,
    Shards,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from dbos_async.testing import free_port

PATIENCE = 20


class Shop:
    """The workflows of both shards."""

    def __init__(self, first_url: str, second_url: str) -> None:
        router = Router()
        self.urls = {"a": first_url, "b": second_url}
        self.shards = Shards(
            {name: DBOS("shop", url, app_version="1") for name, url in self.urls.items()}
        )

        @router.step(name="look")
        async def look() -> Any:
            return router.workflow_id

        @router.workflow(name="buy")
        async def buy(cents: int = 0) -> Any:
            await router.set_event("cents", cents)
            if cents < 0:
                raise ValueError("negative")
            return await look()

        @router.workflow(name="wait")
        async def wait() -> Any:
            return await router.recv()

        @router.workflow(name="parent")
        async def parent() -> Any:
            return await buy(1)

        self.router, self.buy, self.wait, self.parent = router, buy, wait, parent
        self.shards.include(router)
        for shard in self.shards:
            shard.queue("jobs")

    def id_on(self, name: str, prefix: str = "w") -> str:
        """An id whose home is this shard."""
        ids = (f"{prefix}-{number}" for number in range(1000))
        return next(each for each in ids if self.shards.of(each) is self.shards[name])


@pytest.fixture
def shop(dbos_database_url: str, dbos_other_database_url: str) -> Shop:
    return Shop(dbos_database_url, dbos_other_database_url)


async def names_on(shard: Client) -> set[str]:
    return {each.workflow_id for each in await shard.list_workflows()}


async def test_workflows_are_where_their_ids_say(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        ids = [f"o-{number}" for number in range(30)]
        handles = [
            await shards.start_workflow(shop.buy.with_options(workflow_id=each))
            for each in ids[:15]
        ]
        handles += [
            await shards.enqueue("jobs", shop.buy.with_options(workflow_id=each))
            for each in ids[15:]
        ]
        assert [await handle.get_result() for handle in handles] == ids
        a, b = await names_on(shards["a"]), await names_on(shards["b"])
        assert a == {each for each in ids if shards.of(each) is shards["a"]}
        assert a | b == set(ids)
        assert not a & b
        assert min(len(a), len(b)) > 4
        unnamed = await shards.start_workflow(shop.buy)
        assert await names_on(shards.of(unnamed.workflow_id)) >= {unnamed.workflow_id}
        again = await shards.start_workflow(shop.buy.with_options(workflow_id="o-1"))
        assert await again.get_result() == "o-1"


async def test_what_has_one_key_is_on_one_shard_and_is_found_by_its_id(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        acme = shards.of("acme")
        other = next(shard for shard in shards if shard is not acme)
        away = shop.id_on("a" if other is shards["a"] else "b")
        await (await acme.start_workflow(shop.buy.with_options(workflow_id=away))).get_result()
        assert await shards.find(away) is acme
        assert await (await shards.retrieve_workflow(away)).get_result() == away
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await shards.find("nobody")


@pytest.mark.parametrize("name", ["a", "b"])
async def test_management_goes_to_the_shard_that_has_the_workflow(shop: Shop, name: str) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        there = shop.id_on(name)
        await shards.start_workflow(shop.wait.with_options(workflow_id=there))
        await shards.cancel_workflow(there)
        [cancelled] = await shards.list_workflows(status="CANCELLED")
        assert cancelled.workflow_id == there
        handle = await shards.resume_workflow(there)
        await shards.send(there, "go on", idempotency_key="k")
        assert await handle.get_result() == "go on"
        fork = await shards.fork_workflow(there, new_workflow_id=f"{there}-fork")
        await shards.send(fork.workflow_id, "fork")
        assert await fork.get_result() == "fork"
        await shards.rewind_workflow(there)
        await shards.send(there, "again")
        assert await (await shards.retrieve_workflow(there)).get_result() == "again"
        steps = await shards.list_steps(there)
        assert "DBOS.recv" in {step.name for step in steps}
        assert await names_on(shards[name]) == {there, f"{there}-fork"}
        await shards.delete_workflow(there)
        await shards.delete_workflow(f"{there}-fork")
        assert await shards.list_workflows() == []


async def test_children_and_events_stay_on_the_shard(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        for name in ("a", "b"):
            there = shop.id_on(name, "parent")
            handle = await shards.start_workflow(shop.parent.with_options(workflow_id=there))
            child = await handle.get_result()
            assert await names_on(shards[name]) == {there, child}
            assert await shards.get_event(child, "cents", timeout=PATIENCE) == 1


async def test_listings_are_merged_page_by_page(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        for number in range(12):
            buy = shop.buy.with_options(workflow_id=f"o-{number}")
            handle = await shards.start_workflow(buy, -(number % 3))
            await asyncio.gather(handle.get_result(), return_exceptions=True)
        everything = await shards.list_workflows(newest_first=False)
        assert [each.workflow_id for each in everything] == [
            each.workflow_id
            for each in sorted(everything, key=lambda w: (w.created_at, w.workflow_id))
        ]
        assert len(everything) == 12
        pages: list[str] = []
        after = None
        while page := await shards.list_workflows(limit=5, after=after):
            pages += [each.workflow_id for each in page]
            after = page[-1]
        assert pages == [each.workflow_id for each in reversed(everything)]
        cut = await shards.list_workflows(limit=3, offset=4)
        assert [each.workflow_id for each in cut] == pages[4:7]
        counts = await shards.count_workflows("status")
        assert {count.status: count.count for count in counts} == {"ERROR": 8, "SUCCESS": 4}


async def test_bulk_verbs_reach_every_shard(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        ids = {shop.id_on("a"), shop.id_on("b")}
        for each in ids:
            await shards.start_workflow(shop.wait.with_options(workflow_id=each))
        assert set(await shards.cancel_workflows(name="wait", dry_run=True)) == ids
        assert set(await shards.cancel_workflows(name="wait")) == ids
        assert {each.status for each in await shards.list_workflows()} == {"CANCELLED"}


async def test_clients_find_their_way_too(shop: Shop) -> None:
    clients = Shards({name: Client(url) for name, url in shop.urls.items()})
    async with asyncio.timeout(PATIENCE), shop.shards, clients:
        buy = clients["a"].stub("buy").with_options(workflow_id="o-1")
        handle = await clients.enqueue("jobs", buy, 7)
        assert await handle.get_result() == "o-1"
        assert await shop.shards.find("o-1") is shop.shards.of("o-1")
        assert await clients.find("o-1") is clients.of("o-1")
        with pytest.raises(TypeError, match="clients, which run nothing"):
            await clients.start_workflow(buy)
    with pytest.raises(TypeError, match="clients"):
        clients.include(Router())


async def test_if_one_shard_cannot_be_opened_none_stays_open(shop: Shop) -> None:
    first = DBOS("shop", shop.urls["a"])
    for url, error in [
        (f"postgresql://nobody@127.0.0.1:{free_port()}/nowhere", DatabaseLostError),
        ("mysql://nowhere", ConfigurationError),
    ]:
        broken = Shards({"a": first, "second": Client(url)})
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(error, match=r"shard 'second': .*(nowhere|mysql)"):
                async with broken:
                    pass
            with pytest.raises(NotLaunchedError):
                await first.list_workflows()


@pytest.mark.parametrize("kind", [DBOS, Client])
async def test_two_shards_are_two_databases_whatever_they_are_called(shop: Shop, kind: Any) -> None:
    def shard(url: str) -> Any:
        return kind(url) if kind is Client else kind("shop", url)

    url, other = shop.urls.values()
    again = f"{url}{'&' if '?' in url else '?'}application_name=another"
    shards = Shards({"one": shard(url), "two": shard(other), "three": shard(again)})
    async with asyncio.timeout(PATIENCE):
        if kind is Client:
            async with DBOS("shop", url), DBOS("shop", other):
                pass  # which installs the schema
        with pytest.raises(ConfigurationError, match="'one' and 'three' are one database"):
            async with shards:
                pass
        with pytest.raises(NotLaunchedError):
            await shards["two"].list_workflows()


@pytest.mark.parametrize("taken_at", ["home", "elsewhere"])
async def test_a_fork_takes_no_id_of_another_shard(shop: Shop, taken_at: str) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        source = shop.id_on("a", "source")
        taken = shop.id_on("b" if taken_at == "home" else "a", "taken")
        for shard, each in [("a", source), ("b", taken)]:
            buy = shop.buy.with_options(workflow_id=each)
            await (await shards[shard].start_workflow(buy)).get_result()
        with pytest.raises(WorkflowConflictError, match="taken by one on another shard") as refused:
            await shards.fork_workflow(source, new_workflow_id=taken)
        assert refused.value.workflow_id == taken
        assert await names_on(shards["a"]) == {source}
        with pytest.raises(ValueError, match="new_workflow_id must not be empty"):
            await shards.fork_workflow(source, new_workflow_id="")


async def test_a_shard_that_does_not_answer_is_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        there = shop.id_on("a")
        await (await shards.start_workflow(shop.buy.with_options(workflow_id=there))).get_result()

        async def lost(*_: object, **__: object) -> Any:
            raise DatabaseLostError("the connection broke")

        for verb in ("retrieve_workflow", "list_workflows", "count_workflows", "cancel_workflows"):
            monkeypatch.setattr(shards["b"], verb, lost)
        assert await (await shards.retrieve_workflow(there)).get_result() == there
        for ask in (
            lambda: shards.find("nobody"),
            shards.list_workflows,
            shards.count_workflows,
            lambda: shards.cancel_workflows(name="buy"),
        ):
            with pytest.raises(DatabaseLostError, match="shard 'b': the connection broke"):
                await ask()


async def test_workflows_do_not_leave_their_shard(shop: Shop) -> None:
    @shop.router.workflow(name="leave")
    async def leave() -> None:
        await shop.shards.start_workflow(shop.buy)

    async with asyncio.timeout(PATIENCE), shop.shards as shards:
        handle = await shards.start_workflow(leave)
        with pytest.raises(ConfigurationError, match="one shard"):
            await handle.get_result()


def test_a_new_shard_takes_ids_and_the_others_swap_none() -> None:
    def homes(names: str) -> dict[str, str]:
        shards = Shards({name: DBOS(name) for name in names})
        return {str(each): shards.of(str(each)).name for each in range(3000)}

    before, after = homes("abc"), homes("abcd")
    moved = {key for key in before if before[key] != after[key]}
    assert {after[key] for key in moved} == {"d"}
    assert 600 < len(moved) < 900
    assert min(collections.Counter(before.values()).values()) > 850


def test_shards_that_cannot_be_are_refused() -> None:
    wrong: Any
    with pytest.raises(ValueError, match="at least one"):
        Shards({})
    for wrong in ({"a": "postgresql://x"}, {"a": Router()}):
        with pytest.raises(TypeError, match="DBOS or a Client"):
            Shards(wrong)
    with pytest.raises(ValueError, match="name"):
        Shards({"": DBOS("shop")})
