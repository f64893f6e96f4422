"""Transactions as steps: the user's rows and the record that the step is done, exactly once.

    the system database   begin ─▶ function ─▶ fence + step row ─▶ COMMIT
    another database      begin ─▶ function ─▶ its row there ─▶ still ours? ─▶ COMMIT ─▶ step row

On the system database there is one commit, and the checkpointer has no part in it but for errors:
a function that raises is rolled back, and then recorded like any step's error. On another database
the row there, in the same commit as the effects, says that they happened, until the step is
recorded here; then it is deleted (`tidying`).

Who owns what: a `Transacting` is one call of one step by one run. It alone knows whether a COMMIT
of it got no answer, and it does not let the function begin again before that is found out.

What may be true at each await, and what happens if the process dies there:

- *the function runs*: nothing is committed. Postgres rolls back; the replay begins anew.
- *the row is written, COMMIT is not sent*: the same. A process that only stands still here holds
  locks that a takeover waits for; after 10 s the server ends its transaction.
- *COMMIT is on its way*: committed or not; the replay finds the step in the history, or the row in
  the other database, or neither, and is right each time.
- *another owner took over meanwhile*: on the system database the fence, locked, sees it at READ
  COMMITTED; above that, the lock fails with a serialization error, and the repetition sees it. On
  another database, whoever inserts the row first has the effect, and who comes second takes what is
  there; a run that lost its workflow before it inserted is told by the look that follows.
- *the connection breaks before COMMIT*: rolled back, for certain. On the system database it is as
  when the checkpointer loses its connection: the workflow waits, and the transaction is repeated
  when the database is back. Only when the connection breaks again and again though the database
  answers, the step fails with `DatabaseLostError`: something in the function must be to blame. On
  another database it fails at once, and its retry policy decides.
- *the connection breaks at COMMIT*: in doubt. It is found out by a lock that waits for the end of
  the lost transaction; until it can be, the workflow waits, on either database.

A conflict with other transactions is no failure: it is repeated, without a limit, for as long as
the run goes on and the step's timeout allows.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

from dbos_async import errors
from dbos_async._engine.execution import Execution
from dbos_async._engine.steps import Made, StepDefinition, lost
from dbos_async._engine.tidying import Tidier
from dbos_async._engine.transacting import Pauses, Transaction
from dbos_async._log import log
from dbos_async._store import outputs, recording, sql
from dbos_async._store.batches import Waiting
from dbos_async._store.checkpointer import Checkpointer, CrashPoint
from dbos_async._store.datasources import Datasource, InDoubtError, Opened
from dbos_async._store.outputs import Key, OutputId
from dbos_async._store.records import Fence, Recorded, StepWrite

if TYPE_CHECKING:
    from dbos_async._engine.session import Session

MAX_LOSSES: Final = 10
"""Connections that one call may lose although the database answers at once."""
AT_ONCE: Final = 1.0
"""Seconds within which it does."""
LONGEST_LOOK: Final = 2.0
"""Seconds between looks at what became of a COMMIT."""


class Place(Protocol):
    """Where a datasource leads, and how a step is recorded there."""

    is_home: bool
    """Whether that is the system database."""

    async def settle(self, call: "Transacting") -> Made | None:
        """What became of an earlier try; None: nothing, for certain.

        Raises:
            DatabaseLostError: not known yet.
            CancelledError: the workflow is no longer ours.
        """
        ...

    async def commit(self, opened: Opened[Any], call: "Transacting", made: Made) -> None:
        """Record the step and commit. Raises `Overruled` if it is recorded already."""
        ...


class Overruled(Exception):  # noqa: N818  # a way out of a transaction, not an error
    """The step is done already: undo this."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made


class Transactions:
    """The transaction steps of one app."""

    def __init__(
        self,
        session: "Session",
        datasources: Iterable[Datasource[Any]] = (),
    ) -> None:
        self.session = session
        self._datasources = list(datasources)
        self._places: dict[Datasource[Any], Place] = {}
        self._opened: list[Datasource[Any]] = []
        self._looking = asyncio.Lock()
        self._tidier = Tidier(session.database)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Transactions"]:
        """Let transactions begin for the length of the block.

        Raises:
            ConfigurationError: a datasource will not do; the message says what to change.
        """
        try:
            for datasource in self._datasources:
                try:
                    await self.place_of(datasource)
                except errors.DatabaseLostError as exc:  # asked again by the first transaction
                    log.warning("datasource unavailable", datasource=datasource.name, now=str(exc))
            async with self._tidier.open():
                yield self
        finally:
            self._places.clear()
            self.session.homes.clear()
            while self._opened:
                await self._opened.pop().close()

    def begun(
        self,
        execution: Execution,
        step: StepDefinition,
        key: str,
        write_of: Callable[[Made], StepWrite],
        store: Callable[[object], Coroutine[Any, Any, Made]],
    ) -> "Transacting":
        """A call of a transaction step by a workflow; its row, and its result, as they are made."""
        assert step.transaction is not None
        return Transacting(self, execution, step, step.transaction, key, write_of, store)

    def find_place(self, datasource: Datasource[Any]) -> Place | None:
        """Where it leads, if that is known."""
        return self._places.get(datasource)

    async def place_of(self, datasource: Datasource[Any]) -> Place:
        """Where it leads: looked up once. Raises as `open` does; also DatabaseLostError."""
        known = self._places.get(datasource)
        if known is not None:
            return known
        async with self._looking:
            if datasource not in self._opened:
                await datasource.open()
                self._opened.append(datasource)
            if datasource not in self._places:
                self._places[datasource] = await self._look(datasource)
        return self._places[datasource]

    async def _look(self, datasource: Datasource[Any]) -> Place:
        mark = random.getrandbits(62)
        async with (
            self.session.database.lease() as connection,
            connection.transaction(),
            outputs.begun(datasource) as opened,
        ):
            await connection.fetchval(sql.TAKE_MARK, mark)
            if await opened.fetch(sql.SEES_MARK, mark):
                missing = await opened.fetch(sql.MISSING_GRANTS)
                if missing:
                    role = await outputs.asker(opened)
                    raise outputs.lacking(datasource.name, role, [row[0] for row in missing])
                self.session.homes.add(datasource)
                return Home(self.session)
        await outputs.install(datasource)
        system = await outputs.fetch_system(self.session.database)
        self._tidier.watch(datasource, system)
        return Abroad(self.session, datasource, self._tidier, system)


class Transacting:
    """One call of a transaction step by a workflow."""

    def __init__(
        self,
        transactions: Transactions,
        execution: Execution,
        step: StepDefinition,
        transaction: Transaction[Any],
        key: str,
        write_of: Callable[[Made], StepWrite],
        store: Callable[[object], Coroutine[Any, Any, Made]],
    ) -> None:
        self.execution = execution
        self.step = step
        self.key = key
        self.write_of = write_of
        self.sent: StepWrite | None = None
        """The row whose COMMIT was sent last."""
        self.made: Made | None = None
        """What is committed."""
        self._transactions = transactions
        self._transaction = transaction
        self._store = store
        others = not execution.is_fresh or step.begun_by is not None
        self._is_in_doubt = others  # what another process did, or a COMMIT of ours
        self._losses = 0

    async def attempt(self, *args: Any, **kwargs: Any) -> Made:
        """Transactions until one is committed; or what an earlier one came to.

        Raises:
            DatabaseLostError: the connection broke, and this is not to be waited out.
            Exception: what the function or the driver raises.
        """
        while True:
            try:
                place = await self._transactions.place_of(self._transaction.datasource)
                await self._look_back(place)
                if self.made is None:
                    await self._transaction.repeated(partial(self._once, place, args, kwargs))
                assert self.made is not None
                return self.made
            except errors.DatabaseLostError as exc:
                await self._lose(exc)

    async def decided(self, made: Made) -> Made:
        """What the attempts came to: an error only if none of them has committed."""
        if made.error is None:
            return made
        pauses = Pauses(LONGEST_LOOK)
        while self._is_in_doubt:
            try:
                place = await self._transactions.place_of(self._transaction.datasource)
                await self._look_back(place)
            except errors.ConfigurationError:  # where there is no table, nothing was committed
                break
            except errors.DatabaseLostError:
                await pauses.next()
        return self.made or made

    async def commit(self, opened: Opened[Any], write: StepWrite, made: Made) -> None:
        """Commit, and know that it is; where there is no answer, know that."""
        self.sent = write
        self._is_in_doubt = True
        try:
            await opened.commit()
        except InDoubtError:
            raise
        except Exception:  # it was refused
            self._is_in_doubt = False
            raise
        self._is_in_doubt = False
        self.made = made

    async def _once(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.execution.executor.is_unsure:
            await self.execution.executor.sure()

        async def finish(opened: Opened[Any], value: object) -> None:
            await place.commit(opened, self, await self._store(value))

        try:
            await self._transaction.once(args, kwargs, finish)
        except Overruled as overruled:
            self.made = overruled.made

    async def _look_back(self, place: Place) -> None:
        """Find out what became of an earlier try, however long that takes."""
        if place.is_home and self.sent is None:  # its history has all that others did
            self._is_in_doubt = False
        pauses = Pauses(LONGEST_LOOK)
        while self._is_in_doubt and self.made is None:
            try:
                self.made = await place.settle(self)
                self._is_in_doubt = False
            except errors.DatabaseLostError:
                await pauses.next()

    async def _lose(self, lost: errors.DatabaseLostError) -> None:
        """Wait until it can be tried again, or raise."""
        place = self._transactions.find_place(self._transaction.datasource)
        if place is not None and not place.is_home and not isinstance(lost, InDoubtError):
            raise lost
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._transactions.session.database.back(lost)
        if loop.time() - began < AT_ONCE:
            self._losses += 1
            if self._losses >= MAX_LOSSES:
                raise lost
            await asyncio.sleep(min(0.05 * 2**self._losses, LONGEST_LOOK))


class Home:
    """The system database: the fence and the step's row are in the user's transaction."""

    is_home = True

    def __init__(self, session: "Session") -> None:
        self._session = session

    async def settle(self, call: Transacting) -> Made | None:
        """See `Place`."""
        assert call.sent is not None
        landing = await recording.settle(self._session.database, call.sent)
        return None if landing is None else self._overruling(call, landing)

    async def commit(self, opened: Opened[Any], call: Transacting, made: Made) -> None:
        """See `Place`."""
        write = call.write_of(made)
        session = self._session
        landing = await recording.record(opened, session.database, write, session.application)
        if landing is not None:
            raise Overruled(self._overruling(call, landing))
        committing = call.commit(opened, write, made._replace(landed=write))
        if Checkpointer.crash_point is None:
            await committing
        else:
            await checkpoint(Checkpointer.crash_point, write, committing)

    def _overruling(self, call: Transacting, landing: Recorded | Fence) -> Made:
        if not isinstance(landing, Recorded):
            lost(call.execution)
        return Made(recorded=landing)


class Abroad:
    """Another database: a row there says that the step is done, until it is recorded here."""

    is_home = False

    def __init__(
        self, session: "Session", datasource: Datasource[Any], tidier: Tidier, system: str
    ) -> None:
        self._database = session.database
        self._datasource = datasource
        self._tidier = tidier
        self._system = system
        self._incarnations: WeakKeyDictionary[Execution, str] = WeakKeyDictionary()

    async def settle(self, call: Transacting) -> Made | None:
        """See `Place`."""
        output_id = await self._id_of(call)
        output = await outputs.settle(self._datasource, output_id)
        return None if output is None else self._found(call, output_id, output)

    async def commit(self, opened: Opened[Any], call: Transacting, made: Made) -> None:
        """See `Place`."""
        assert made.output is not None
        output_id = await self._id_of(call)
        if not await outputs.insert(opened, output_id, made.output):
            output = await outputs.find(opened, output_id)
            if output is None:  # deleted in this moment: its step is recorded
                await self._ask(call.execution)
                raise errors.DatabaseLostError("a transaction met its own row, which is gone")
            raise Overruled(self._found(call, output_id, output))
        await self._ask(call.execution)  # after the insert: the module says why
        await call.commit(opened, call.write_of(made), self._noted(made, output_id))

    async def _id_of(self, call: Transacting) -> OutputId:
        execution = call.execution
        if call.step.begun_by is not None:
            return await self._id_of_cancelled(*call.step.begun_by)
        incarnation = self._incarnations.get(execution)
        if incarnation is None:
            incarnation = self._incarnations[execution] = await self._ask(execution)
        key = Key(call.key, self._system, incarnation)
        return OutputId(execution.workflow_id, str(key))

    async def _id_of_cancelled(self, workflow_id: str, key: str) -> OutputId:
        """What a cancelled workflow called the step that it may have begun."""
        incarnation = await self._database.patiently(
            lambda: outputs.find_cancelled_incarnation(self._database, workflow_id)
        )
        return OutputId(workflow_id, str(Key(key, self._system, incarnation)))

    async def _ask(self, execution: Execution) -> str:
        """Which incarnation this is. Raises CancelledError if the workflow is not ours."""
        incarnation = await self._database.patiently(
            lambda: outputs.find_incarnation(self._database, execution.workflow_id, execution.owner)
        )
        return lost(execution) if incarnation is None else incarnation

    def _found(self, call: Transacting, output_id: OutputId, output: str) -> Made:
        return self._noted(Made(output, call.step.decode(output)), output_id)

    def _noted(self, made: Made, output_id: OutputId) -> Made:
        return made._replace(on_recorded=lambda: self._tidier.spent(self._datasource, output_id))


async def checkpoint(
    point: CrashPoint, write: StepWrite, committing: Coroutine[Any, Any, None]
) -> None:
    """Commit at a checkpoint at which a test may want the process to die."""
    waiting = Waiting(write, asyncio.get_running_loop().create_future())
    try:
        await point.committing(waiting)
        await committing
    except Exception as exc:
        waiting.refuse(exc)
        waiting.durable.exception()  # nobody else asks
        raise
    finally:
        committing.close()
    await point.answered([waiting])
