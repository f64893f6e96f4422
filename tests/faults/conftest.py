"""Servers that a test may break."""

from collections.abc import Iterator

import pytest
from poolers import Bouncers, Mode

from dbos_async._store import databases
from dbos_async.testing import EmbeddedServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
async def server_url(
    server: EmbeddedServer, pooler_mode: Mode | None, request: pytest.FixtureRequest
) -> str:
    """A fresh database on it, through a PgBouncer if there is one."""
    name = f"test_{abs(hash(request.node.nodeid))}"
    await databases.ensure_database(server.url, name)
    if pooler_mode is None:
        return server.url_of(name)
    poolers: Bouncers = request.getfixturevalue("poolers")
    return poolers.before(server.url_of(name), pooler_mode)
