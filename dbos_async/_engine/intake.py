"""From a call to the row of a new workflow."""

import itertools
import os
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from msgspec import Struct

from dbos_async import errors
from dbos_async._config import Settings, seconds_of
from dbos_async._engine.callers import NOBODY, admitted, caller_of, written
from dbos_async._engine.execution import Execution
from dbos_async._engine.options import (
    WorkflowOptions,
    check_enqueueable,
    check_startable,
    written_attributes,
)
from dbos_async._engine.registry import Address, WorkflowDefinition
from dbos_async._engine.steps import check_size
from dbos_async._store.arguments import encode_arguments
from dbos_async._store.clock import Clock, milliseconds_of
from dbos_async._store.payloads import Payloads
from dbos_async._store.pieces import Body
from dbos_async._store.records import WorkflowWrite

UUID7_MARKS: Final = 7 << 76 | 2 << 62
"""The version and the variant of a UUID, where RFC 9562 puts them."""
UUID7_RANDOM: Final = (1 << 80) - 1 & ~(15 << 76) & ~(3 << 62)


class Call(Struct, frozen=True):
    """A workflow with its options and arguments, not started."""

    definition: WorkflowDefinition
    instance: object | None
    options: WorkflowOptions
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Order(NamedTuple):
    """What a call comes to: the row, and the arguments as they read back from it."""

    write: WorkflowWrite
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Intake:
    """Writes down what a caller asked for."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        payloads: Payloads,
        address_of: Callable[[WorkflowDefinition, object | None], Address],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._payloads = payloads
        self._address_of = address_of
        self._claims = itertools.count(1)
        self.boot = uuid.uuid4().hex
        """What every token of this launch begins with."""

    def next_owner(self) -> str:
        """A token for one claim, never used before."""
        return f"{self.boot}-{next(self._claims)}"

    def new_id(self) -> str:
        """An id for a workflow whose caller names none.

        They increase by the millisecond, so that new rows go to the same few pages of the index,
        however large it is: with a million rows, that is 0.6 instead of 1.9 kB of WAL a row.
        Source: RFC 9562, section 5.7 (UUID version 7); measured after a checkpoint.
        """
        number = self._clock.now_ms() << 80 | int.from_bytes(os.urandom(10), "big") & UUID7_RANDOM
        text = f"{number | UUID7_MARKS:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def order_of(
        self,
        call: Call,
        queue_name: str | None = None,
        *,
        parent: Execution | None = None,
        key: str = "",
    ) -> Order:
        """A workflow to start here, or to put on a queue.

        Raises:
            TypeError: the arguments do not fit the function.
            ValueError: an option fits only enqueues, or does not go with another.
            SerializationError: an argument cannot be stored or is not of its parameter's type, or
                they are too large together.
            ConfigurationError: the workflow's instance is not registered.
            NotAuthorizedError: its caller has no role that the workflow requires.
        """
        write = self.row_of(call, queue_name, parent)
        write.workflow_id = self._id_of(call, parent, key)
        write.inputs, args, kwargs = self.inputs_of(call)
        return Order(write, args, kwargs)

    async def kept_order_of(
        self,
        call: Call,
        queue_name: str | None = None,
        *,
        parent: Execution | None = None,
        key: str = "",
    ) -> Order:
        """The same with large arguments in the payload store, if there is one.

        Raises:
            PayloadStoreError: the store did not take them.
            Exception: as `order_of` does.
        """
        if not self._payloads.is_on:
            return self.order_of(call, queue_name, parent=parent, key=key)
        write = self.row_of(call, queue_name, parent)
        write.workflow_id = self._id_of(call, parent, key)
        write.inputs, args, kwargs = await self._kept_inputs_of(call, write.workflow_id)
        return Order(write, args, kwargs)

    async def keep_large(
        self, calls: Sequence[Call], id_of: Callable[[int], str]
    ) -> dict[int, tuple[str, str]]:
        """The ids and stored inputs of those of many calls that are large, by their places.

        Raises as `kept_order_of` does.
        """
        large: dict[int, tuple[str, str]] = {}
        if not self._payloads.is_on:
            return large
        for place, call in enumerate(calls):
            if self._payloads.may_be_long((call.args, call.kwargs)):
                workflow_id = call.options.get("workflow_id") or id_of(place)
                inputs, _, _ = await self._kept_inputs_of(call, workflow_id)
                large[place] = workflow_id, inputs
        return large

    def _id_of(self, call: Call, parent: Execution | None, key: str) -> str:
        return call.options.get("workflow_id") or (
            self.new_id() if parent is None else f"{parent.workflow_id}-{key}"
        )

    def row_of(
        self, call: Call, queue_name: str | None, parent: Execution | None = None
    ) -> WorkflowWrite:
        """A new workflow's row, its id and inputs not filled in. Raises as `order_of` does."""
        options = call.options
        if queue_name is None:
            if call.definition.function is None:
                raise TypeError(
                    f"{call.definition.name!r} is a stub, which this process cannot run: enqueue "
                    "it for a process that has the workflow"
                )
            check_startable(options)
        else:
            check_enqueueable(options)
        caller = admitted(
            call.definition, caller_of(options, NOBODY if parent is None else parent.caller)
        )
        address = self._address_of(call.definition, call.instance)
        due_ms = self._due(options)
        token = self.next_owner()
        timeout = options.get("timeout")
        attributes = options.get("attributes")
        return WorkflowWrite(
            workflow_id="",
            status="PENDING" if queue_name is None else "ENQUEUED" if due_ms is None else "DELAYED",
            name=address.name,
            class_name=address.class_name or None,
            config_name=address.config_name or None,
            inputs="",
            executor_id=self._settings.executor_id if queue_name is None else None,
            app_version=options.get("app_version", self._settings.app_version),
            owner=token if queue_name is None else None,
            creator=token,
            timeout_ms=None if timeout is None else int(seconds_of(timeout) * 1000),
            deadline_ms=self._deadline(options, parent, is_queued=queue_name is not None),
            queue_name=queue_name,
            deduplication_id=options.get("deduplication_id"),
            priority=options.get("priority", 0),
            partition_key=options.get("partition_key"),
            delay_until_ms=due_ms,
            parent_id=None if parent is None else parent.workflow_id,
            attributes=None if attributes is None else written_attributes(attributes),
            caller=written(caller),
        )

    def inputs_of(self, call: Call) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """A call's arguments as they are stored, and read back. Raises as `order_of` does."""
        inputs = self._encoded(call)
        what = f"the input of workflow {call.definition.name!r}"
        check_size(inputs[0], self._settings.max_payload_bytes, what)
        return inputs

    async def _kept_inputs_of(
        self, call: Call, workflow_id: str
    ) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        text: str | Body
        if self._payloads.is_large((call.args, call.kwargs)):
            arguments = call.definition.arguments
            if arguments is not None:
                arguments.bind(call.args, call.kwargs)
            try:
                packed = await self._payloads.pack_arguments(arguments, call.args, call.kwargs)
            except errors.SerializationError as exc:
                raise not_started(call, exc) from exc
            text, (args, kwargs) = packed.text, packed.value
        else:
            text, args, kwargs = self._encoded(call)
        return await self._payloads.kept(workflow_id, "input", text), args, kwargs

    def _encoded(self, call: Call) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        arguments = call.definition.arguments
        try:
            if arguments is None:
                text = encode_arguments(call.args, call.kwargs)
                args, kwargs = call.args, call.kwargs
            else:
                arguments.bind(call.args, call.kwargs)
                text = arguments.encode(call.args, call.kwargs)
                args, kwargs = arguments.read_back(call.args, call.kwargs, text)
        except errors.SerializationError as exc:
            raise not_started(call, exc) from exc
        return text, args, kwargs

    def _due(self, options: WorkflowOptions) -> int | None:
        delay = options.get("delay")
        if delay is None:
            return None
        if isinstance(delay, datetime):
            return milliseconds_of(delay)
        return self._clock.now_ms() + int(seconds_of(delay) * 1000)

    def _deadline(
        self, options: WorkflowOptions, parent: Execution | None, *, is_queued: bool
    ) -> int | None:
        """When the workflow must have ended: a timeout runs from the start, queued from the claim.

        A child without a timeout of its own has its parent's deadline.
        """
        if "timeout" not in options:
            return None if parent is None else parent.deadline_ms
        timeout = options["timeout"]
        if timeout is None or is_queued:
            return None
        return self._clock.now_ms() + int(seconds_of(timeout) * 1000)


def not_started(call: Call, why: Exception) -> errors.SerializationError:
    """What a caller is told whose arguments cannot be stored."""
    name = call.definition.name
    return errors.SerializationError(f"workflow {name!r} cannot be started: {why}")
