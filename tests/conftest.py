"""The fixtures are the plugin's, which pytest finds by its entry point: `dbos_async.testing`."""

pytest_plugins = ["pytester"]
