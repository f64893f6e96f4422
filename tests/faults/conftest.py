"""Servers that a test may break."""

from collections.abc import Iterator

import pytest

from dbos_async._store import databases
from dbos_async.testing import EmbeddedServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
async def server_url(server: EmbeddedServer, request: pytest.FixtureRequest) -> str:
    """A fresh database on it."""
    name = f"test_{abs(hash(request.node.nodeid))}"
    await databases.ensure_database(server.url, name)
    return server.url_of(name)
