"""Durable execution for asyncio on Postgres, with no server to run.

    your workflow                                     your web handler / script
        │ @step, sleep, recv, child …                       │ start, enqueue, send, list …
        ▼                                                   ▼
    _engine: steps, executor                            _client
        │ replayed? return it. else run, then               │
        ▼                                                   ▼
    _store.checkpointer ── one batch, one round trip ──▶ Postgres ── NOTIFY ──▶ _store.notifier
                                                            ▲                        │
                                                            │ claim                  ▼
    _engine.executor ◀── _engine.dispatcher, recovery ──────┘ ◀────────────── _engine.wakers

Work flows down, news flows up; they meet once, in the app. `DBOS` is the way in.
"""

from dbos_async._app import DBOS
from dbos_async._client import Client, Verbs
from dbos_async._config import Retention, Seconds
from dbos_async._debouncer import Debouncer
from dbos_async._engine.functions import Call, Step, StepDecorator, Workflow
from dbos_async._engine.messages import Message
from dbos_async._engine.options import StepOptions, WorkflowOptions
from dbos_async._engine.rehearsal import ReplayReport
from dbos_async._engine.retry import Retry
from dbos_async._engine.sagas import Saga
from dbos_async._handle import StepInfo, WorkflowHandle, WorkflowInput, WorkflowStatus
from dbos_async._limits import Limiter, RateLimit
from dbos_async._listing import WorkflowCount, WorkflowFilter
from dbos_async._queue import Queue
from dbos_async._router import Router
from dbos_async._schedule import Overlap, Schedule, ScheduleSpec
from dbos_async._shards import Shards
from dbos_async._store.datasources import AsyncpgDatasource, Datasource, SQLAlchemyDatasource
from dbos_async._store.records import Status
from dbos_async._versions import ApplicationVersion, ExecutorInfo, VersionWork
from dbos_async.errors import (
    CompensationError,
    ConfigurationError,
    DatabaseError,
    DatabaseLostError,
    DatabaseRefusedError,
    DBOSError,
    DeduplicatedError,
    DivergenceError,
    NotAuthorizedError,
    NotLaunchedError,
    PayloadMissingError,
    PayloadStoreError,
    PortableWorkflowError,
    QueueNotFoundError,
    RecoveryExhaustedError,
    ScheduleNotFoundError,
    SerializationError,
    StepRetriesExhaustedError,
    StreamClosedError,
    WorkflowCancelledError,
    WorkflowConflictError,
    WorkflowNotFoundError,
    WorkflowTimeoutError,
)

__all__ = [
    "DBOS",
    "ApplicationVersion",
    "AsyncpgDatasource",
    "Call",
    "Client",
    "CompensationError",
    "ConfigurationError",
    "DBOSError",
    "DatabaseError",
    "DatabaseLostError",
    "DatabaseRefusedError",
    "Datasource",
    "Debouncer",
    "DeduplicatedError",
    "DivergenceError",
    "ExecutorInfo",
    "Limiter",
    "Message",
    "NotAuthorizedError",
    "NotLaunchedError",
    "Overlap",
    "PayloadMissingError",
    "PayloadStoreError",
    "PortableWorkflowError",
    "Queue",
    "QueueNotFoundError",
    "RateLimit",
    "RecoveryExhaustedError",
    "ReplayReport",
    "Retention",
    "Retry",
    "Router",
    "SQLAlchemyDatasource",
    "Saga",
    "Schedule",
    "ScheduleNotFoundError",
    "ScheduleSpec",
    "Seconds",
    "SerializationError",
    "Shards",
    "Status",
    "Step",
    "StepDecorator",
    "StepInfo",
    "StepOptions",
    "StepRetriesExhaustedError",
    "StreamClosedError",
    "Verbs",
    "VersionWork",
    "Workflow",
    "WorkflowCancelledError",
    "WorkflowConflictError",
    "WorkflowCount",
    "WorkflowFilter",
    "WorkflowHandle",
    "WorkflowInput",
    "WorkflowNotFoundError",
    "WorkflowOptions",
    "WorkflowStatus",
    "WorkflowTimeoutError",
]
