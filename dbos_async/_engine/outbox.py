"""What is enqueued and sent in a transaction of the user's: it commits with the user's rows.

Either the connection is given, as `connection=`, or a `@dbos.transaction` function asks, and then
it is its own. A trigger tells everybody once it has committed.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dbos_async import errors
from dbos_async._engine.context import open_transaction

if TYPE_CHECKING:
    from dbos_async._engine.session import Session


def connection_for(session: "Session", given: object, what: str) -> object:
    """The user's connection to do `what` on; None: one of ours will do.

    Raises:
        ConfigurationError: it is asked in a transaction on another database.
    """
    transaction = open_transaction()
    if given is not None or transaction is None:
        return given
    if transaction.datasource in session.homes:
        return transaction.handle
    raise errors.ConfigurationError(
        f"{what} is called in the transaction {transaction.name!r}, which is on another database "
        f"than the app's system database, so that they could not commit together: call {what} in "
        "the workflow, after the transaction"
    )


def refuse_connection(connections: Iterable[object]) -> None:
    """Refuse the user's connections where a replay would find them in another state.

    Raises:
        ConfigurationError: there is one.
    """
    if any(connection is not None for connection in connections):
        raise errors.ConfigurationError(
            "connection= does not work in a workflow, which is replayed while what its connection "
            "did is not undone: open the transaction in a step, and enqueue or send there"
        )
