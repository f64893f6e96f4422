"""Deleting what ended long ago, by a policy instead of by a filter."""

from dbos_async._config import Archive, Retention, check_archive
from dbos_async._engine import pruning
from dbos_async._engine.session import Session
from dbos_async._engine.steps import recorded
from dbos_async._limits import checked_id


class Pruning:
    """The verb that prunes."""

    async def prune(
        self,
        retention: Retention | None = None,
        *,
        dry_run: bool = False,
        archive: Archive | None = None,
        application_name: str | None = None,
    ) -> int:
        """Delete workflows that a policy lets go, with all that belongs to them; how many.

        The leader of an app with `DBOS(…, retention=…)` does so by itself, once a minute. This is
        for a policy that is applied when somebody says so, such as a schedule. It goes on in small
        transactions, with rests, so that what runs hardly notices: a million workflows take
        minutes. Cancelled, it stops after a batch. Batches whose answers an outage swallowed are
        not counted. Within a workflow, recorded.

        Args:
            retention: the policy; the app's own unless given.
            dry_run: only count.
            archive: where workflows are written first, instead of the policy's `archive`.
            application_name: of which application; of this app unless given, and of all
                applications from a client. What belongs to none goes in any case.

        Raises:
            ValueError: there is no policy.
            TypeError: it is none, or the archive is neither a path nor callable.
            OSError: the archive cannot be written to; or whatever else a callable one raises. What
                was not written down was not deleted.
        """
        session = self._acting()
        policy = checked(retention, session)
        if archive is not None:
            check_archive(archive)
        if application_name is not None:
            checked_id(application_name, "application_name")

        async def prune() -> int:
            walk = await pruning.begin(session, policy, application_name or session.application)
            if dry_run:
                return await pruning.count(session.database, walk)
            return await pruning.prune(session, walk, archive or policy.archive)

        return await recorded("DBOS.prune", prune, int)

    def _acting(self) -> Session:
        raise NotImplementedError


def checked(retention: Retention | None, session: Session) -> Retention:
    """The policy, else that of the app.

    Raises:
        ValueError: there is none.
        TypeError: it is something else.
    """
    policy = session.settings.retention if retention is None else retention
    if policy is None:
        raise ValueError(
            "what may go? Give prune a Retention(max_age=…, max_rows=…), or DBOS(…, retention=…)"
        )
    if not isinstance(policy, Retention):
        raise TypeError(f"prune takes a Retention(max_age=…, max_rows=…), not {policy!r}")
    return policy
