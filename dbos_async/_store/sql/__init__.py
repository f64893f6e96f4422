"""Every statement, one constant each: grep in this folder first.

Columns keep the names of the DBOS system tables in the database and ours in Python; the
translation is here. Lock order: workflow_status before operation_outputs before all others.
"""

from dbos_async._store.sql.compensations import *
from dbos_async._store.sql.datasources import *
from dbos_async._store.sql.debounces import *
from dbos_async._store.sql.effects import *
from dbos_async._store.sql.enqueues import *
from dbos_async._store.sql.executors import *
from dbos_async._store.sql.health import *
from dbos_async._store.sql.limiters import *
from dbos_async._store.sql.listing import *
from dbos_async._store.sql.management import *
from dbos_async._store.sql.messages import *
from dbos_async._store.sql.parking import *
from dbos_async._store.sql.payloads import *
from dbos_async._store.sql.pruning import *
from dbos_async._store.sql.queues import *
from dbos_async._store.sql.schedules import *
from dbos_async._store.sql.streams import *
from dbos_async._store.sql.versions import *
from dbos_async._store.sql.workflows import *
