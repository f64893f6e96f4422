"""A process that prunes with an archive, as leader and by the verb: `pruner.py URL ARCHIVE`.

It says `ready` when it is launched, and lives until it is killed. It writes a few at a time.
"""

import asyncio
import sys

from dbos_async import DBOS, Retention
from dbos_async._store import pruning

PART_BYTES = 500


async def main(url: str, archive: str) -> None:
    pruning.PART_BYTES = PART_BYTES  # type: ignore[misc]  # smaller than it ever is
    dbos = DBOS("shop", url, app_version="1", retention=Retention(max_age=3600, archive=archive))
    dbos.configure(prune_interval=0.05)
    async with dbos:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            await dbos.prune()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
