"""The fixtures are the plugin's, which pytest finds by its entry point: `dbos_async.testing`."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from poolers import OF_NEWS, THROUGH_BOTH, VARIABLE, Bouncers, Mode, bouncers

pytest_plugins = ["pytester"]

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def poolers() -> Iterator[Bouncers]:
    """PgBouncers in front of the servers that are asked for."""
    with bouncers() as found:
        yield found


@pytest.fixture
def pooler_mode() -> Mode | None:
    """How a PgBouncer in front of the test's database works; None where there is none."""
    mode = os.environ.get(VARIABLE)
    assert mode in ("session", "transaction", None, ""), f"{VARIABLE}={mode}"
    return mode or None  # type: ignore[return-value]  # asserted


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the chosen tests in every run through a pooler, too."""
    if metafunc.definition.originalname in THROUGH_BOTH and not os.environ.get(VARIABLE):
        modes = [None, "session", "transaction"]
        metafunc.parametrize("pooler_mode", modes, ids=["direct", "session", "transaction"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what cannot be where nothing is heard."""
    if os.environ.get(VARIABLE) == "transaction":
        for item in items:
            if getattr(item, "originalname", None) in OF_NEWS:
                item.add_marker(pytest.mark.skip(reason="it is of what is heard, and nothing is"))


@pytest.fixture
def dbos_database_url(
    dbos_database_url: str, pooler_mode: Mode | None, request: pytest.FixtureRequest
) -> str:
    """The plugin's, through a PgBouncer if there is one."""
    if pooler_mode is None:
        return dbos_database_url
    found: Bouncers = request.getfixturevalue("poolers")
    return found.before(dbos_database_url, pooler_mode)
