"""Every exception this library raises on purpose.

DBOSError
├── ConfigurationError
│   ├── NotLaunchedError
│   ├── QueueNotFoundError            also a ValueError
│   └── ScheduleNotFoundError         also a ValueError
├── DatabaseError
│   ├── DatabaseLostError
│   └── DatabaseRefusedError
├── WorkflowNotFoundError
├── WorkflowConflictError
├── DeduplicatedError
├── WorkflowCancelledError
│   └── WorkflowTimeoutError          also a TimeoutError
├── RecoveryExhaustedError
├── DivergenceError
├── NotAuthorizedError
├── SerializationError
├── StepRetriesExhaustedError
├── CompensationError
├── StreamClosedError
├── PayloadStoreError
│   └── PayloadMissingError
└── PortableWorkflowError

Bad arguments are plain ValueError and TypeError. A class's docstring is its default message.
"""

from collections.abc import Sequence

__all__ = [
    "CompensationError",
    "ConfigurationError",
    "DBOSError",
    "DatabaseError",
    "DatabaseLostError",
    "DatabaseRefusedError",
    "DeduplicatedError",
    "DivergenceError",
    "NotAuthorizedError",
    "NotLaunchedError",
    "PayloadMissingError",
    "PayloadStoreError",
    "PortableWorkflowError",
    "QueueNotFoundError",
    "RecoveryExhaustedError",
    "ScheduleNotFoundError",
    "SerializationError",
    "StepRetriesExhaustedError",
    "StreamClosedError",
    "WorkflowCancelledError",
    "WorkflowConflictError",
    "WorkflowNotFoundError",
    "WorkflowTimeoutError",
]


class DBOSError(Exception):
    """Something went wrong in dbos_async."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ConfigurationError(DBOSError):
    """The app is set up in a way that cannot work; the message says what to change."""


class NotLaunchedError(ConfigurationError):
    """The app is not launched."""


class QueueNotFoundError(ConfigurationError, ValueError):
    """There is no queue of this name; declare it with dbos.queue(…) in the app that works on it."""


class ScheduleNotFoundError(ConfigurationError, ValueError):
    """There is no schedule of this name; list_schedules() has those that there are."""


class DatabaseError(DBOSError):
    """Postgres did not do what it was asked."""


class DatabaseLostError(DatabaseError):
    """The connection to Postgres broke; whether the statement ran is unknown. Try again."""


class DatabaseRefusedError(DatabaseError):
    """Postgres understood the statement and rejected it. Trying again will not help."""


class WorkflowNotFoundError(DBOSError):
    """There is no workflow with this id."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"there is no workflow with the id {workflow_id!r}")
        self.workflow_id = workflow_id


class WorkflowConflictError(DBOSError):
    """This workflow id belongs to another workflow function; choose another id."""

    def __init__(self, message: str | None = None, *, workflow_id: str | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class DeduplicatedError(DBOSError):
    """A live workflow holds this deduplication id; `workflow_id` is its id."""

    def __init__(self, message: str | None = None, *, workflow_id: str | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class WorkflowCancelledError(DBOSError):
    """The workflow was cancelled; resume it to let it go on."""

    def __init__(self, message: str | None = None, *, workflow_id: str | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class WorkflowTimeoutError(WorkflowCancelledError, TimeoutError):
    """The workflow ran past its deadline and was cancelled."""


class RecoveryExhaustedError(DBOSError):
    """The workflow's process died too often without a new step; fix the cause, then resume it."""

    def __init__(self, message: str | None = None, *, workflow_id: str | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class DivergenceError(DBOSError):
    """The code took another path than the recorded one; patch it or pin its version."""


class NotAuthorizedError(DBOSError):
    """The workflow requires a role that its caller does not have."""


class SerializationError(DBOSError):
    """A value cannot be stored as JSON, or a stored value does not fit its type."""


class StepRetriesExhaustedError(DBOSError):
    """Every attempt of a step failed; `errors` has each attempt's error, oldest first."""

    def __init__(self, message: str | None = None, errors: Sequence[Exception] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class CompensationError(DBOSError):
    """Compensations of a saga failed; `errors` has what each raised, in the order of their runs."""

    def __init__(self, message: str | None = None, errors: Sequence[Exception] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class StreamClosedError(DBOSError):
    """The stream was closed: nothing can be written to it any more."""


class PayloadStoreError(DBOSError):
    """The store of large values did not do what it was asked. Try again."""

    def __init__(
        self,
        message: str | None = None,
        *,
        workflow_id: str | None = None,
        key: str | None = None,
        store: str | None = None,
    ) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.key = key
        self.store = store


class PayloadMissingError(PayloadStoreError):
    """A large value is not in the store, or not what was put there; trying again will not help."""


class PortableWorkflowError(DBOSError):
    """An error of another process whose class is not to be had here."""

    def __init__(
        self, name: str, message: str = "", code: int | str | None = None, data: object = None
    ) -> None:
        super().__init__(f"{name}: {message}" if message else name)
        self.name = name
        self.message = message
        self.code = code
        self.data = data
