"""How a step runs: load → replay → call → decide → record.

A step of a fresh run is called, its outcome encoded, written through the checkpointer and decoded
again for the workflow: what the first run sees is what a replay sees. A step that is in the history
returns what is there, after its name and the digest of its arguments were compared.

What happens if the process dies: before the record landed, the step runs again on replay; after it,
never. If the run was stopped meanwhile (a shutdown, a takeover, a cancel), CancelledError is raised
and nothing more of the workflow runs.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct, structs

from dbos_async import errors
from dbos_async._engine.context import (
    Branch,
    RunningStep,
    ambient,
    asking_branch,
    calling_branch,
    current_branch,
)
from dbos_async._engine.execution import Execution, Stop
from dbos_async._engine.limits import Turn, Turnstiles
from dbos_async._engine.retry import Retry
from dbos_async._limits import Limiter
from dbos_async._store import codec, stored
from dbos_async._store.arguments import digest as digest_of
from dbos_async._store.checkpointer import Checkpointer
from dbos_async._store.clock import Clock
from dbos_async._store.landings import Landing
from dbos_async._store.large_digests import digest
from dbos_async._store.pacing import Whole
from dbos_async._store.payloads import Payloads, is_reference
from dbos_async._store.pieces import Body
from dbos_async._store.portable_errors import decode_error, encode_error
from dbos_async._store.records import Fence, Recorded, StepWrite

if TYPE_CHECKING:
    from dbos_async._engine.transacting import Transaction
    from dbos_async._engine.transactions import Transactions

T = TypeVar("T")


class StepDefinition(Struct, frozen=True):
    """A step function and how it is called."""

    name: str
    function: Callable[..., Any]
    is_async: bool = True
    retry: Retry | None = None
    timeout: float | None = None
    limiter: Limiter | None = None
    encode: Callable[[Any], str] = codec.encode
    decode: Callable[[str], Any] = codec.decode
    is_internal: bool = False
    """One of the library's own: it is no user code, and its arguments are not compared."""

    begun_by: tuple[str, str] | None = None
    """The workflow that may have begun it, if it is another, and its key there."""

    @property
    def is_plain(self) -> bool:
        """Whether calling it is all there is to do: no retry, no timeout, no thread, no turn."""
        return (
            self.is_async and self.retry is None and self.timeout is None and self.limiter is None
        )

    is_method: bool = False
    """Its first argument is the instance, which is no data."""
    is_static: bool = False
    """It was a staticmethod when it was decorated."""
    transaction: "Transaction[Any] | None" = None
    """What `function` is, if it is one."""


class Made(NamedTuple):
    """What a step came to: a result as it is stored and as it reads back, or an error."""

    output: Any = None
    """Text, in the end; until it is in the payload store, a large one is a `Body`."""
    value: Any = None
    error: str | None = None
    cause: Exception | None = None
    landed: StepWrite | None = None
    """The step's row, if a transaction has committed it already."""
    recorded: Recorded | None = None
    """What is recorded already and counts instead, as a transaction found out."""
    on_recorded: Callable[[], None] | None = None
    """Called once it is recorded."""


class Steps:
    """Runs steps within workflows."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        clock: Clock,
        threads: anyio.CapacityLimiter,
        turnstiles: Turnstiles,
        payloads: Payloads,
        transactions: "Transactions",
        *,
        max_payload_bytes: int,
        allow_pickle: bool,
    ) -> None:
        self._checkpointer = checkpointer
        self._clock = clock
        self._threads = threads
        self._turnstiles = turnstiles
        self._payloads = payloads
        self._transactions = transactions
        self._max_payload_bytes = max_payload_bytes
        self._allow_pickle = allow_pickle

    def call(
        self,
        branch: Branch,
        step: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Coroutine[Any, Any, Any]:
        """A step's call: numbered now, run when awaited."""
        execution: Execution = branch.execution
        key = branch.next_key()
        run = self.run(execution, key, execution.position_of(key), step, args, kwargs)
        execution.called(key, step.name, run)
        return run

    async def run(
        self,
        execution: Execution,
        key: str,
        position: int,
        step: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A numbered step's outcome: from the record, or by calling it and recording that."""
        execution.begin(key)
        branch = current_branch() or Branch(execution)
        data = args[1:] if step.is_method else args
        if step.is_internal:
            digest = None
        elif self._payloads.is_large((data, kwargs)):
            digest = await large_digest(execution, self._payloads, data, kwargs)
        else:
            digest = digest_of(data, kwargs)
        recorded = execution.history.get(key)
        if recorded is not None:
            return await self._recorded(execution, branch, step, digest, recorded)
        await execution.live(key)
        running = RunningStep(key, position, step.begun_by)
        return await self._called(execution, branch, running, step, digest, args, kwargs)

    async def _called(
        self,
        execution: Execution,
        branch: Branch,
        running: RunningStep,
        step: StepDefinition,
        digest: int | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a step for the first time as far as is known, and record what it comes to."""
        if execution.slot is not None and not step.is_internal:
            await execution.slot.enter()
        started_at_ms = self._clock.now_ms()
        if step.transaction is None:
            made = await self._outcome(execution, branch, running, step, args, kwargs)
        else:
            row = partial(self._row, execution, running, step, digest, started_at_ms)
            made = await self._transacted(execution, branch, running, step, row, args, kwargs)
        if step.is_internal and execution.stopped is not None:
            execution.begin(running.key)  # what a run learns because it is stopped is no outcome
        if running.key in execution.frozen:  # nor what it returns though a limit has cancelled it
            raise asyncio.CancelledError
        write = made.landed or self._row(execution, running, step, digest, started_at_ms, made)
        landing: Landing = made.recorded
        if made.landed is None and landing is None:
            durable = self._checkpointer.commit(write)
            try:  # as `landed` does, without one more coroutine for each step
                landing = await durable
            except asyncio.CancelledError as exc:
                landing = await execution.landed_late(running.key, write, durable, exc)
        if isinstance(landing, Fence):
            lost(execution)
        if made.on_recorded is not None:
            made.on_recorded()
        if isinstance(landing, Recorded):
            return await self._replay(execution, branch, step, digest, landing)
        branch.recorded(running.key, write.completed_at_ms)
        return value_of(made)

    async def _recorded(
        self,
        execution: Execution,
        branch: Branch,
        step: StepDefinition,
        digest: int | None,
        recorded: Recorded,
    ) -> Any:
        """What is recorded of a step, when it is its turn."""
        if execution.replay is not None:
            await execution.replay.turn(recorded.key)
        return await self._replay(execution, branch, step, digest, recorded)

    def _row(
        self,
        execution: Execution,
        running: RunningStep,
        step: StepDefinition,
        digest: int | None,
        started_at_ms: int,
        made: "Made",
    ) -> StepWrite:
        """The row that a step becomes, completed now."""
        return StepWrite(
            execution.workflow_id,
            running.position,
            step.name,
            made.output,
            made.error,
            None,
            started_at_ms,
            self._clock.now_ms(),
            execution.written_key(running.key, running.position),
            digest,
            execution.owner,
        )

    async def _transacted(
        self,
        execution: Execution,
        branch: Branch,
        running: RunningStep,
        step: StepDefinition,
        row: "Callable[[Made], StepWrite]",
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> "Made":
        """What a transaction comes to, which records itself where it can."""
        store = partial(self._stored, execution, running, step)
        call = self._transactions.begun(execution, step, running.key, row, store)
        attempts = structs.replace(step, function=call.attempt)
        made = await self._outcome(execution, branch, running, attempts, args, kwargs)
        return await call.decided(made)

    async def _replay(
        self,
        execution: Execution,
        branch: Branch,
        step: StepDefinition,
        digest: int | None,
        recorded: Recorded,
    ) -> Any:
        check_same(execution, recorded, step.name, digest)
        if is_reference(recorded.output, recorded.serialization):
            value = await self._fetched(execution, step, recorded.output or "")
            branch.recorded(recorded.key, recorded.completed_at_ms or 0)
            return value
        branch.recorded(recorded.key, recorded.completed_at_ms or 0)
        if recorded.error is not None:
            raise stored.read_error(
                recorded.error, recorded.serialization, allow_pickle=self._allow_pickle
            )
        return stored.read(
            recorded.output, recorded.serialization, step.decode, allow_pickle=self._allow_pickle
        )

    async def _fetched(self, execution: Execution, step: StepDefinition, reference: str) -> Any:
        """A recorded result that is in the payload store, whose outages are waited out.

        One that is not there is no outcome of the step: whatever the code would make of the error,
        the workflow ends with it, and can be rewound once the object is back.
        """
        payloads = self._payloads
        try:
            with execution.busy():
                return await payloads.patiently(
                    lambda: payloads.value(reference, execution.workflow_id, step.decode)
                )
        except errors.PayloadMissingError as exc:
            execution.break_off(exc)

    async def _outcome(
        self,
        execution: Execution,
        branch: Branch,
        running: RunningStep,
        step: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> "Made":
        """Call the step and encode what comes of it."""
        outer, branch.step = branch.step, running
        if not step.is_internal:
            execution.steps_running += 1
        try:
            if not step.is_plain:
                return await self._attempts(execution, running, step, args, kwargs)
            value = await step.function(*args, **kwargs)
            if isinstance(value, Made):
                return value
            if not self._is_large(value):
                made = self._encoded(execution, step, value)
                if not self._payloads.is_on or not self._payloads.is_long(made.output or ""):
                    return made
            else:
                made = await self._packed(execution, step, value)
            return await self._kept(execution, running, step, made)
        except Exception as exc:  # whatever user code raises is the step's outcome
            return Made(error=encode_error(exc), cause=exc)
        finally:
            running.is_over = True
            branch.step = outer
            if not step.is_internal:
                execution.steps_running -= 1
                execution.rest()

    async def _attempts(
        self,
        execution: Execution,
        running: RunningStep,
        step: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Made:
        failures: list[Exception] = []
        while True:
            made: Made | None = None
            pause = 0.0
            try:
                value = await self._in_turn(execution, step, args, kwargs)
            except Exception as exc:
                pause = pause_after(step, failures, exc)
            else:
                if isinstance(value, Made):
                    return value
                made = await self._made_of(execution, step, value)
            try:
                if made is not None:
                    return await self._kept(execution, running, step, made)
            except errors.PayloadStoreError as exc:
                pause = pause_after(step, failures, exc)
            await asyncio.sleep(pause)
            if execution.executor.is_unsure:
                await execution.executor.sure()
            running.attempt = len(failures) + 1

    async def _in_turn(
        self,
        execution: Execution,
        step: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """One attempt, once its limiter lets it pass; a limiter may take long."""
        if step.limiter is None:
            return await self._attempt(step, args, kwargs)

        async def attempt(turn: Turn) -> Any:
            if execution.executor.is_unsure:
                await execution.executor.sure()
            return await self._attempt(beginning(step, turn), args, kwargs)

        return await self._turnstiles.of(step.limiter).through(attempt)

    async def _attempt(
        self, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if step.timeout is None:
            return await call_plainly(step, args, kwargs, self._threads)
        limit = asyncio.timeout(step.timeout)
        try:
            async with limit:
                return await call_plainly(step, args, kwargs, self._threads)
        except TimeoutError as exc:
            if limit.expired():
                raise TimeoutError(f"step {step.name!r} took longer than {step.timeout} s") from exc
            raise

    def call_outside(
        self, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """A step's plain call, outside a workflow or within another step; its limiter holds too."""
        if step.limiter is None:
            return call_plainly(step, args, kwargs, self._threads)

        async def call(turn: Turn) -> Any:
            return await call_plainly(beginning(step, turn), args, kwargs, self._threads)

        return self._turnstiles.of(step.limiter).through(call)

    def _encoded(self, execution: Execution, step: StepDefinition, value: object) -> "Made":
        try:
            text = step.encode(value)
            decoded = (
                step.decode(text)
                if step.is_internal
                else codec.read_back(value, text, step.encode, step.decode, at="the result")
            )
        except errors.SerializationError as exc:
            raise not_stored(execution, step, exc) from exc
        if not self._payloads.is_on:
            check_size(text, self._max_payload_bytes, f"the result of step {step.name!r}")
        return Made(text, decoded)

    async def _stored(
        self, execution: Execution, running: RunningStep, step: StepDefinition, value: object
    ) -> "Made":
        """A value as it is stored, in the payload store if it is long. Raises as `_kept` does."""
        return await self._kept(
            execution, running, step, await self._made_of(execution, step, value)
        )

    async def _made_of(self, execution: Execution, step: StepDefinition, value: object) -> "Made":
        """As `_encoded`, of any value."""
        if self._is_large(value):
            return await self._packed(execution, step, value)
        return self._encoded(execution, step, value)

    def _is_large(self, value: object) -> bool:
        return isinstance(value, Body) or self._payloads.is_large(value)

    async def _packed(self, execution: Execution, step: StepDefinition, value: object) -> "Made":
        """As `_encoded`, of a large value."""
        try:
            packed = await self._payloads.pack(value, step.encode, step.decode)
        except errors.SerializationError as exc:
            raise not_stored(execution, step, exc) from exc
        return Made(packed.text, packed.value)

    async def _kept(
        self, execution: Execution, running: RunningStep, step: StepDefinition, made: "Made"
    ) -> "Made":
        """The same with what is long in the payload store; of our own steps, with patience.

        Raises:
            PayloadStoreError: the store did not take it.
        """
        text = made.output
        if text is None or (isinstance(text, str) and not self._payloads.is_long(text)):
            return made
        payloads = self._payloads
        kept = await payloads.patiently(
            lambda: payloads.kept(execution.workflow_id, f"step-{running.key}", text),
            payloads.patience if step.is_internal else 0,
        )
        return Made(kept, made.value)


def value_of(made: Made) -> Any:
    """What a step returns to the workflow, or raises there."""
    if made.error is not None:
        raised = decode_error(made.error)
        raise raised from raised.__cause__ or made.cause
    return made.value


def not_stored(
    execution: Execution, step: StepDefinition, why: Exception
) -> errors.SerializationError:
    """What a step fails with whose result cannot be stored."""
    return errors.SerializationError(
        f"step {step.name!r} of workflow {execution.name!r} returned what cannot be stored: {why}"
    )


def pause_after(step: StepDefinition, failures: list[Exception], failure: Exception) -> float:
    """Note a failed attempt; seconds until the next one, if there is to be one.

    Raises:
        StepRetriesExhaustedError: there were as many as there may be.
        Exception: the failure, if the step is not retried after such a one.
    """
    failures.append(failure)
    if step.retry is None or not step.retry.wants(failure):
        raise failure
    if len(failures) >= step.retry.max_attempts:
        raise errors.StepRetriesExhaustedError(
            f"step {step.name!r} failed {len(failures)} times, at last with "
            f"{type(failure).__name__}: {failure}",
            failures,
        ) from failure
    return step.retry.pause_after(len(failures))


async def large_digest(
    execution: Execution, payloads: Payloads, args: Sequence[Any], kwargs: dict[str, Any]
) -> int | None:
    """The digest of large arguments, found in pieces."""
    try:
        with execution.busy():
            return await payloads.paced(digest((args, kwargs)))
    except Whole:
        return digest_of(args, kwargs)


def recorded(
    name: str, operation: Callable[[], Coroutine[Any, Any, T]], kind: Any
) -> Coroutine[Any, Any, T]:
    """Do something once, as a step of the workflow that asks; plainly, outside one."""
    branch = calling_branch(name.removeprefix("DBOS."))
    if branch is None or branch.step is not None:
        return operation()
    step = StepDefinition(
        name,
        operation,
        encode=codec.encoder(kind),
        decode=codec.decoder(kind),
        is_internal=True,
    )
    called: Coroutine[Any, Any, T] = branch.execution.executor.steps.call(branch, step, (), {})
    return called


def within_workflow() -> bool:
    """Whether what is called now is a step of a workflow, and so recorded."""
    branch = asking_branch()
    return branch is not None and branch.step is None


async def call_plainly(
    step: StepDefinition,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    threads: anyio.CapacityLimiter | None,
) -> Any:
    """Call a step's function, a plain one in a thread; nothing is recorded."""
    if step.is_async:
        return await step.function(*args, **kwargs)
    with ambient(current_branch()):
        value = await anyio.to_thread.run_sync(
            partial(step.function, *args, **kwargs), limiter=threads, abandon_on_cancel=True
        )
    return await value if inspect.isawaitable(value) else value


def beginning(step: StepDefinition, turn: Turn) -> StepDefinition:
    """The step, in a turn: it raises LateError instead of beginning when the turn is past."""

    def begin(*args: Any, **kwargs: Any) -> Any:
        turn.begin()
        return step.function(*args, **kwargs)

    def begin_in_thread(*args: Any, **kwargs: Any) -> Any:
        with turn.in_thread():
            return step.function(*args, **kwargs)

    return structs.replace(step, function=begin if step.is_async else begin_in_thread)


def check_same(execution: Execution, recorded: Recorded, name: str, digest: int | None) -> None:
    """Compare what is recorded with what is called now.

    Raises:
        DivergenceError: they differ: the code took another path than when it was recorded.
    """
    if recorded.name == name and (
        digest is None or recorded.digest is None or digest == recorded.digest
    ):
        return
    what = f"{name!r} is called" if recorded.name != name else f"{name!r} is called with others"
    raise execution.diverged(
        f"workflow {execution.name!r} ({execution.workflow_id}) diverged at step {recorded.key}: "
        f"{recorded.name!r}{' with its arguments' if recorded.name == name else ''} is recorded, "
        f"now {what}. Either the code changed (patch it back, or let the old version, pinned by "
        "app_version=, finish what it began) or it is not deterministic (move clocks, random "
        "numbers and I/O into steps; dbos.timeout and dbos.wait instead of asyncio's)."
    )


def check_size(text: str, limit: int, what: str) -> None:
    """Refuse what is too large to store.

    Raises:
        SerializationError: it is larger than the limit; store a reference instead.
    """
    if len(text) * 4 <= limit:
        return
    size = len(text.encode())
    if size > limit:
        raise errors.SerializationError(
            f"{what} has {size:,} bytes, more than max_payload_bytes={limit:,}: store it elsewhere "
            "and pass a reference"
        )


def lost(execution: Execution) -> NoReturn:
    """Stop a run whose workflow is no longer ours.

    Raises:
        CancelledError: always.
    """
    execution.stop(Stop.LOST)
    raise asyncio.CancelledError(f"workflow {execution.workflow_id}: {Stop.LOST.value}")
