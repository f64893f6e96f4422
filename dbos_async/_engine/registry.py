"""What an app can run: its workflows, the instances some of them belong to, its queues."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import Struct

from dbos_async import errors
from dbos_async._engine.version import version_of
from dbos_async._limits import Limiter, Limits, checked_id
from dbos_async._store import codec
from dbos_async._store.arguments import Arguments
from dbos_async._store.datasources import Datasource
from dbos_async._store.schedules import ScheduleWrite

if TYPE_CHECKING:
    from dbos_async._engine.functions import Step


class Address(NamedTuple):
    """How a row names what runs it; empty strings for functions."""

    name: str
    class_name: str
    config_name: str


class WorkflowDefinition:
    """A workflow function and what is known of it; without a function, a foreign one's stub."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any] | None,
        max_recovery_attempts: int | None = 100,
        required_roles: tuple[str, ...] = (),
    ) -> None:
        self.name = checked_id(name, "the workflow's name")
        self.function = function
        self.max_recovery_attempts = max_recovery_attempts
        self.required_roles = required_roles  # of which any will do
        self.owner: type | None = None  # the class, if it is a method
        self.is_static = False  # it was a staticmethod when it was decorated
        self._signature: Arguments | None = None
        self._codec: tuple[codec.Encode, codec.Decode] | None = None

    @property
    def arguments(self) -> Arguments | None:
        """How its arguments are stored; None for a stub."""
        if self._signature is None and self.function is not None:
            self._signature = Arguments(self.function, skip_first=self.owner is not None)
        return self._signature

    @property
    def encode(self) -> codec.Encode:
        """Writes its result, typed as annotated."""
        return self._codecs()[0]

    @property
    def decode(self) -> codec.Decode:
        """Reads its stored result, typed as annotated."""
        return self._codecs()[1]

    def _codecs(self) -> tuple[codec.Encode, codec.Decode]:
        if self._codec is None:
            kind = Any if self.function is None else codec.result_type(self.function)
            self._codec = codec.encoder(kind, at="the result"), codec.decoder(kind, at="the result")
        return self._codec


OnConflict = Literal["update_if_latest_version", "always_update", "never_update"]
"""What a launch does with the limits that the database has of a queue."""


class QueueDefinition(Struct, frozen=True):
    """A queue as this app declares it."""

    name: str
    limits: Limits
    on_conflict: OnConflict = "update_if_latest_version"
    park: bool = False
    """Whether its workflows are parked though its limits count what runs."""


class ScheduleDefinition(Struct, frozen=True):
    """A schedule as this app declares it, and what it runs."""

    write: ScheduleWrite
    workflow: WorkflowDefinition


class Runnable(NamedTuple):
    """A workflow definition and the instance it runs on, if it is a method."""

    definition: WorkflowDefinition
    instance: object | None


class Registry:
    """Definitions by name. Filled before the launch, only read after it."""

    def __init__(self) -> None:
        self.workflows: dict[str, WorkflowDefinition] = {}
        self.own: dict[str, WorkflowDefinition] = {}
        """The library's own workflows, which are no part of the version."""
        self.steps: dict[str, list[Step[..., Any]]] = {}
        """Those that were declared. A name may be held twice as long as nobody asks for it."""
        self.queues: dict[str, QueueDefinition] = {}
        self.schedules: dict[str, ScheduleDefinition] = {}
        self.limiters: dict[str, Limiter] = {}
        self.datasources: dict[Datasource[Any], None] = {}
        self.instances: dict[tuple[str, str], object] = {}
        self.listened: frozenset[str] | None = None
        """The queues that this process works on; None: all."""

    def add_workflow(self, definition: WorkflowDefinition) -> None:
        """Register a workflow.

        Raises:
            ConfigurationError: another function has the name.
        """
        known = self.workflows.get(definition.name)
        if known is not None and place_of(known.function) != place_of(definition.function):
            raise errors.ConfigurationError(
                f"there is already a workflow named {definition.name!r} "
                f"({place_of(known.function)}): rename one, or give it name=…"
            )
        if known is not None:
            raise errors.ConfigurationError(f"the workflow {definition.name!r} is registered twice")
        self.workflows[definition.name] = definition

    def add_own(self, definition: WorkflowDefinition) -> None:
        """Register a workflow of the library's.

        Raises:
            ConfigurationError: the user has given its name to another.
        """
        if definition.name in self.workflows:
            raise errors.ConfigurationError(
                f"{definition.name!r} names a workflow of the library: give yours another name"
            )
        self.own[definition.name] = definition

    def add_step(self, step: "Step[..., Any]") -> None:
        """Note a step under its name."""
        self.steps.setdefault(step.definition.name, []).append(step)

    def add_queue(self, queue: QueueDefinition) -> None:
        """Register a queue.

        Raises:
            ConfigurationError: the app has declared it already.
        """
        if queue.name in self.queues:
            raise errors.ConfigurationError(
                f"the queue {queue.name!r} is declared twice: declare it once, and elsewhere refer "
                f"to it by name, as in dbos.enqueue({queue.name!r}, …)"
            )
        self.queues[queue.name] = queue

    def add_schedule(self, schedule: ScheduleDefinition) -> None:
        """Register a schedule.

        Raises:
            ConfigurationError: the app has declared it already.
        """
        name = schedule.write.name
        if name in self.schedules:
            raise errors.ConfigurationError(
                f"the schedule {name!r} is declared twice: give one of them another name=…"
            )
        self.schedules[name] = schedule

    def add_limiter(self, limiter: Limiter) -> None:
        """Note a limiter that a step was given.

        Raises:
            ConfigurationError: another one of its name has other limits.
        """
        limiter.check_agrees(self.limiters.setdefault(limiter.name, limiter))

    def add_instance(self, instance: object, name: str) -> None:
        """Register an instance whose methods are workflows.

        Raises:
            ConfigurationError: another instance of its class has the name.
        """
        key = (type(instance).__qualname__, checked_id(name, "the instance's name"))
        if self.instances.get(key, instance) is not instance:
            raise errors.ConfigurationError(
                f"there is already an instance of {key[0]} named {name!r}: choose another name"
            )
        self.instances[key] = instance

    def include(self, other: "Registry") -> None:
        """Take over everything that `other` has. Raises ConfigurationError on a name held twice."""
        for definition in other.workflows.values():
            self.add_workflow(definition)
        for steps in other.steps.values():
            for step in steps:
                self.add_step(step)
        for queue in other.queues.values():
            self.add_queue(queue)
        for schedule in other.schedules.values():
            self.add_schedule(schedule)
        for limiter in other.limiters.values():
            self.add_limiter(limiter)
        self.datasources |= other.datasources
        for (_, name), instance in other.instances.items():
            self.add_instance(instance, name)
        if other.listened is not None:
            self.listened = other.listened | (self.listened or frozenset())

    def address_of(self, definition: WorkflowDefinition, instance: object | None) -> Address:
        """How rows of this workflow are named.

        Raises:
            ConfigurationError: it is a method of an instance that nobody registered.
        """
        return self._address(definition.name, instance, "a workflow")

    def _address(self, name: str, instance: object | None, what: str) -> Address:
        if instance is None:
            return Address(name, "", "")
        for (class_name, instance_name), known in self.instances.items():
            if known is instance:
                return Address(name, class_name, instance_name)
        raise errors.ConfigurationError(
            f"{name} is {what} of an instance of {type(instance).__qualname__} that is not "
            "registered: dbos.register(instance, name=…) before the launch, so that it can be "
            "recovered on the right one"
        )

    def address_of_step(self, step: "Step[..., Any]", instance: object | None) -> Address:
        """How other processes find a step.

        Raises:
            ConfigurationError: they cannot; the message says what to do.
        """
        name = step.definition.name
        functions = self._functions(name)
        if step.definition.function not in functions:
            raise errors.ConfigurationError(
                f"the step {name!r} was made ad hoc, so another process would not find it to "
                "compensate: declare it with @dbos.step at import time, before the launch"
            )
        self._check_one(name, functions)
        return self._address(name, instance, "a step")

    def step_at(self, address: Address) -> "Step[..., Any]":
        """The step that has this address; a method is bound to its instance.

        Raises:
            ConfigurationError: there is none here, or several.
        """
        self._check_one(address.name, self._functions(address.name))
        found = self.steps.get(address.name)
        instance = self.instances.get((address.class_name, address.config_name))
        if not found or (address.class_name and instance is None):
            where = f" on an instance named {address.config_name!r}" if address.class_name else ""
            raise errors.ConfigurationError(
                f"this app has no step named {address.name!r}{where}: declare it as it was when "
                "the workflow ran, then rewind this one"
            )
        return found[-1] if instance is None else found[-1].__get__(instance, type(instance))

    def _functions(self, name: str) -> list[Callable[..., Any]]:
        found = [step.definition.function for step in self.steps.get(name, ())]
        return list(dict.fromkeys(found))

    def _check_one(self, name: str, functions: list[Callable[..., Any]]) -> None:
        if len(functions) > 1:
            raise errors.ConfigurationError(
                f"there are several steps named {name!r} ({', '.join(map(place_of, functions))}), "
                "so it is not known which one compensates: give one of them name=…"
            )

    def addresses(self) -> dict[Address, Runnable]:
        """Everything that can be run here, by how rows name it."""
        return dict(self._addressed())

    def _addressed(self) -> Iterator[tuple[Address, Runnable]]:
        for definition in (*self.own.values(), *self.workflows.values()):
            if definition.owner is None:
                yield Address(definition.name, "", ""), Runnable(definition, None)
                continue
            for (class_name, name), instance in self.instances.items():
                if isinstance(instance, definition.owner):
                    yield Address(definition.name, class_name, name), Runnable(definition, instance)

    def version(self, app_name: str) -> str:
        """The version of this code, unless the app is given one: see `_engine/version.py`."""
        known = self.workflows.values()
        return version_of(app_name, [(each.name, each.function) for each in known])


def columns_of(addresses: Iterable[Address]) -> tuple[list[str], list[str], list[str]]:
    """Addresses turned on their side, as the claiming statements take them."""
    known = list(addresses)
    return [a.name for a in known], [a.class_name for a in known], [a.config_name for a in known]


def place_of(function: Callable[..., Any] | None) -> str:
    """Where a function is defined, for people."""
    if function is None:
        return "nowhere"
    code = getattr(function, "__code__", None)
    line = f":{code.co_firstlineno}" if code is not None else ""
    return f"{function.__module__}.{function.__qualname__}{line}"
