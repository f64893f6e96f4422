"""The fixtures are the plugin's, which pytest finds by its entry point: `dbos_async.testing`."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
