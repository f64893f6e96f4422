"""The command line within the test's own process, beside apps that run."""

import asyncio
import json
from typing import Any

import msgspec
from typer.testing import CliRunner, Result

from dbos_async import PortableWorkflowError
from dbos_async.cli.commands import app


class Commands:
    """Runs `dbos-async …` on one database."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __call__(
        self, *arguments: str, code: int = 0, stdin: str | None = None, **environment: str
    ) -> Result:
        """What it printed; it must exit with `code`."""
        given = {"DBOS_SYSTEM_DATABASE_URL": self.url, **environment}

        def invoke() -> Result:
            return CliRunner().invoke(app, list(arguments), env=given, input=stdin)

        result = await asyncio.to_thread(invoke)
        assert isinstance(result.exception, SystemExit | None), repr(result.exception)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "\x1b" not in result.output
        return result

    async def json(self, *arguments: str, code: int = 0, **environment: str) -> Any:
        """What it printed with --json."""
        result = await self(*arguments, "--json", code=code, **environment)
        return json.loads(result.stdout)

    async def refused(self, *arguments: str, code: int = 1, **environment: str) -> str:
        """The one sentence on stderr with which it refused."""
        result = await self(*arguments, code=code, **environment)
        assert result.stdout == ""
        assert result.stderr.startswith("dbos-async: ")
        assert result.stderr.count("\n") == 1, result.stderr
        return str(result.stderr)


def plain(value: Any) -> Any:
    """A record as its JSON is read back."""

    def hook(odd: Any) -> Any:
        assert isinstance(odd, BaseException)
        if isinstance(odd, PortableWorkflowError):
            return {"type": odd.name, "message": odd.message}
        return {"type": type(odd).__name__, "message": str(odd)}

    return json.loads(msgspec.json.encode(value, enc_hook=hook))
