"""Several system databases behind one process: which of them a workflow is in, and a door to all.

    id ─▶ hash ─▶ its home ─▶ there? ─ no ─▶ who of the others has it?
    key ─▶ hash ─▶ the shard of everything that has this key

A shard is an app or a client like any other, and knows nothing of the others: what a workflow
starts, sends and waits for stays in its own database. So nothing is transactional over two of them,
and each queue's limits hold within one.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from hashlib import blake2b
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack

from dbos_async import errors
from dbos_async._app import DBOS
from dbos_async._client import Client, call_of
from dbos_async._config import Seconds
from dbos_async._engine.context import current_branch
from dbos_async._engine.functions import Workflow
from dbos_async._handle import StepInfo, WorkflowHandle, WorkflowStatus
from dbos_async._limits import checked_id
from dbos_async._listing import Group, WorkflowCount, WorkflowFilter, order_of_counts
from dbos_async._router import Router
from dbos_async._store import health

C = TypeVar("C", bound=Client)
P = ParamSpec("P")
T = TypeVar("T")


class Shards(Generic[C]):
    """Apps, or clients, of several system databases.

        shards = Shards({"a": DBOS("shop", url_a), "b": DBOS("shop", url_b)})
        shards.include(orders)  # a Router with the workflows: every shard runs them
        async with shards:
            handle = await shards.start_workflow(checkout, "o-1")

    Where a workflow is follows from its id and the names of the shards. A shard's database may move
    to another server under its name; a shard that is added takes over some ids, so that one of
    them, started again, is another workflow there. Begin with as many as there will ever be:
    several may be databases of one server.

    Args:
        shards: at least one, by name; apps before their launch, clients before they are opened.
    """

    def __init__(self, shards: Mapping[str, C]) -> None:
        if not shards:
            raise ValueError("there must be at least one shard")
        for name, shard in shards.items():
            checked_id(name, "the shard's name")
            if not isinstance(shard, Client):
                raise TypeError(f"shard {name!r} is a DBOS or a Client, not {shard!r}")
        self._shards = dict(shards)
        self._stack: AsyncExitStack | None = None

    # The shards

    def __iter__(self) -> Iterator[C]:
        """The shards, in the order in which they were given."""
        return iter(self._shards.values())

    def __getitem__(self, name: str) -> C:
        """The shard of this name."""
        return self._shards[name]

    def of(self, key: str) -> C:
        """The shard of a key, such as a tenant: always the same one.

        What is started there is found by its id even so, at the price of asking every shard.
        """
        return max(self._shards.items(), key=lambda shard: weight_of(shard[0], key))[1]

    async def find(self, workflow_id: str) -> C:
        """The shard that has a workflow.

        Raises:
            WorkflowNotFoundError: none has.
            DatabaseLostError: one that might have it cannot be reached; the message names it.
            ConfigurationError: a workflow or a step calls it.
        """
        refuse_inside()
        shard = await self._find(workflow_id)
        if shard is None:
            raise errors.WorkflowNotFoundError(workflow_id)
        return shard

    async def _find(self, workflow_id: str) -> C | None:
        home = self.of(workflow_id)
        if await self._is_in(home, workflow_id):
            return home
        others = [shard for shard in self if shard is not home]
        found = await asyncio.gather(*(self._is_in(shard, workflow_id) for shard in others))
        return next((shard for shard, has_it in zip(others, found, strict=True) if has_it), None)

    async def _is_in(self, shard: C, workflow_id: str) -> bool:
        """Whether a shard has a workflow."""
        with self._named(shard):
            try:
                await shard.retrieve_workflow(workflow_id)
            except errors.WorkflowNotFoundError:
                return False
        return True

    @contextmanager
    def _named(self, shard: C) -> Iterator[None]:
        """Say of which shard it is that its database does not answer, or cannot be used."""
        name = next(name for name, each in self._shards.items() if each is shard)
        try:
            yield
        except errors.DatabaseLostError as exc:
            raise errors.DatabaseLostError(f"shard {name!r}: {exc}") from exc
        except errors.DatabaseRefusedError as exc:
            raise errors.DatabaseRefusedError(f"shard {name!r}: {exc}") from exc

    def include(self, router: Router, /) -> None:
        """Let every shard run what a router declares; its schedules would fire on each, too.

        Raises:
            ConfigurationError: a name is held twice, or a shard is launched.
            TypeError: it is no router, or the shards are clients, which run nothing.
        """
        for shard in self:
            app_of(shard).include(router)

    async def __aenter__(self) -> Self:
        """Launch, or open, every shard; if one fails, none stays open.

        Raises:
            ConfigurationError: one cannot work, or two are one database; the message names them.
            DatabaseLostError: the database of one cannot be reached; the message names it.
        """
        async with AsyncExitStack() as stack:
            for name, shard in self._shards.items():
                try:
                    with self._named(shard):
                        await stack.enter_async_context(shard)
                except errors.ConfigurationError as exc:
                    raise errors.ConfigurationError(f"shard {name!r}: {exc}") from exc
            await self._check_places()
            self._stack = stack.pop_all()
        return self

    async def _check_places(self) -> None:
        """Refuse a database that two shards lead to, by whatever names.

        Raises:
            ConfigurationError: there is one.
        """
        found: dict[health.Place, str] = {}
        for name, shard in self._shards.items():
            with self._named(shard):
                place = await health.fetch_place(shard._own_session().database)  # noqa: SLF001  # ours
            first = found.setdefault(place, name)
            if first != name:
                raise errors.ConfigurationError(
                    f"shards {first!r} and {name!r} are one database: give each one of its own"
                )

    async def __aexit__(self, *exc_info: object) -> None:
        """Shut every shard down."""
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object = None, /) -> AsyncIterator[None]:
        """Their lifespan, for web frameworks: see `DBOS.lifespan`."""
        async with self:
            yield

    # One workflow

    async def start_workflow(
        self, workflow: Workflow[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[T]:
        """Start a workflow on the shard of its id, and return at once.

        Raises as `DBOS.start_workflow` does; also:
            TypeError: the shards are clients, which run nothing: enqueue.
        """
        shard, placed = self._placed(workflow.bind(*args, **kwargs), workflow)
        return await app_of(shard).start_workflow(placed, *args, **kwargs)

    async def enqueue(
        self, queue: str, workflow: Workflow[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowHandle[T]:
        """Put a workflow on the queue of this name, on the shard of its id.

        Raises as `Client.enqueue` does. The queue's limits are those of one shard.
        """
        shard, placed = self._placed(workflow.bind(*args, **kwargs), workflow)
        return await shard.enqueue(queue, placed, *args, **kwargs)

    def _placed(self, call: Any, workflow: Workflow[P, T]) -> tuple[C, Workflow[P, T]]:
        """Where a call belongs, and the workflow with the id that says so."""
        refuse_inside()
        workflow_id = call_of(call).options.get("workflow_id") or str(uuid.uuid4())
        return self.of(workflow_id), workflow.with_options(workflow_id=workflow_id)

    async def retrieve_workflow(self, workflow_id: str) -> WorkflowHandle[Any]:
        """A handle on a workflow, wherever it is. Raises as `find` does."""
        return await (await self.find(workflow_id)).retrieve_workflow(workflow_id)

    async def list_steps(self, workflow_id: str) -> list[StepInfo]:
        """A workflow's recorded steps. Raises as `find` does."""
        return await (await self.find(workflow_id)).list_steps(workflow_id)

    async def cancel_workflow(self, workflow_id: str, *, cancel_children: bool = False) -> None:
        """Cancel a workflow. Raises as `find` does."""
        shard = await self.find(workflow_id)
        await shard.cancel_workflow(workflow_id, cancel_children=cancel_children)

    async def resume_workflow(self, workflow_id: str) -> WorkflowHandle[Any]:
        """Let a workflow go on. Raises as `find` and `Client.resume_workflow` do."""
        return await (await self.find(workflow_id)).resume_workflow(workflow_id)

    async def rewind_workflow(
        self, workflow_id: str, from_step: int | str = 1
    ) -> WorkflowHandle[Any]:
        """Run a workflow again from a step on. Raises as `find` and `Client.rewind_workflow` do."""
        return await (await self.find(workflow_id)).rewind_workflow(workflow_id, from_step)

    async def fork_workflow(
        self, workflow_id: str, from_step: int | str = 1, *, new_workflow_id: str | None = None
    ) -> WorkflowHandle[Any]:
        """Make another of a workflow, on the same shard.

        Raises as `find` and `Client.fork_workflow` do; also:
            WorkflowConflictError: another shard has a workflow of the new id. It is looked for
                before the fork is made, so two forks of one id at the same time may both be.
        """
        shard = await self.find(workflow_id)
        if new_workflow_id is not None:
            await self._check_free(new_workflow_id, shard)
        return await shard.fork_workflow(workflow_id, from_step, new_workflow_id=new_workflow_id)

    async def _check_free(self, workflow_id: str, place: C) -> None:
        """Refuse an id that is taken elsewhere than at its place."""
        if await self._find(checked_id(workflow_id, "new_workflow_id")) not in (None, place):
            raise errors.WorkflowConflictError(
                f"the workflow id {workflow_id!r} is taken by one on another shard: choose another",
                workflow_id=workflow_id,
            )

    async def delete_workflow(self, workflow_id: str, *, delete_children: bool = False) -> None:
        """Delete a workflow. Raises as `find` does."""
        shard = await self.find(workflow_id)
        await shard.delete_workflow(workflow_id, delete_children=delete_children)

    async def send(
        self,
        workflow_id: str,
        message: Any,
        topic: str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> None:
        """Send a message to a workflow. Raises as `find` and `Client.send` do."""
        shard = await self.find(workflow_id)
        await shard.send(workflow_id, message, topic, idempotency_key=idempotency_key)

    async def get_event(self, workflow_id: str, key: str, *, timeout: Seconds = 60) -> Any:
        """The value that a workflow has published. Raises as `find` and `Client.get_event` do."""
        return await (await self.find(workflow_id)).get_event(workflow_id, key, timeout=timeout)

    # All of them

    async def list_workflows(
        self,
        *,
        limit: int = 100,
        offset: int = 0,
        newest_first: bool = True,
        after: WorkflowStatus | None = None,
        **filter: Unpack[WorkflowFilter],
    ) -> list[WorkflowStatus]:
        """The workflows of all shards that fit the filter, by time of creation.

        As `Client.list_workflows`. Each shard is asked for `offset + limit`: page by `after`.
        """
        pages = await self._everywhere(
            lambda shard: shard.list_workflows(
                limit=offset + limit, newest_first=newest_first, after=after, **filter
            )
        )
        found = sorted(
            (each for page in pages for each in page),
            key=lambda each: (each.created_at, each.workflow_id),
            reverse=newest_first,
        )
        return found[offset : offset + limit]

    async def count_workflows(
        self, group_by: Group = "status", **filter: Unpack[WorkflowFilter]
    ) -> list[WorkflowCount]:
        """How many workflows of all shards fit the filter, of each kind."""
        counted = await self._everywhere(lambda shard: shard.count_workflows(group_by, **filter))
        sums: dict[str | None, int] = {}
        for count in (count for counts in counted for count in counts):
            kind = getattr(count, group_by)
            sums[kind] = sums.get(kind, 0) + count.count
        kinds: list[dict[str, Any]] = [{group_by: kind, "count": n} for kind, n in sums.items()]
        return sorted((WorkflowCount(**kind) for kind in kinds), key=order_of_counts)

    async def cancel_workflows(
        self, *, dry_run: bool = False, **filter: Unpack[WorkflowFilter]
    ) -> list[str]:
        """Cancel all workflows that fit the filter, on every shard; their ids."""
        ids = await self._everywhere(
            lambda shard: shard.cancel_workflows(dry_run=dry_run, **filter)
        )
        return [workflow_id for each in ids for workflow_id in each]

    async def _everywhere(self, ask: Callable[[C], Coroutine[Any, Any, T]]) -> list[T]:
        refuse_inside()
        return await asyncio.gather(*(self._ask(shard, ask) for shard in self))

    async def _ask(self, shard: C, ask: Callable[[C], Coroutine[Any, Any, T]]) -> T:
        with self._named(shard):
            return await ask(shard)


def weight_of(shard: str, key: str) -> bytes:
    """How much a shard wants a key; the one that wants it most has it.

    So one that is added takes keys from all the others, and none changes hands between those.
    Source: rendezvous hashing, Thaler and Ravishankar 1998.
    """
    return blake2b(f"{shard}\n{key}".encode(), digest_size=8).digest()


def app_of(shard: Client) -> DBOS:
    """A shard that runs workflows.

    Raises:
        TypeError: it is a client.
    """
    if not isinstance(shard, DBOS):
        raise TypeError("these shards are clients, which run nothing: use apps, or enqueue")
    return shard


def refuse_inside() -> None:
    """Refuse to leave the shard of a workflow.

    Raises:
        ConfigurationError: a workflow or a step calls.
    """
    branch = current_branch()
    if branch is not None:
        raise errors.ConfigurationError(
            f"workflow {branch.execution.workflow_id} is on one shard, and nothing that it does on "
            "another could be recorded with it: use the router's verbs for its own, or one shard's "
            "in a step"
        )
