"""A payload store that is spoken to by S3's protocol; the server is the least that there can be."""

import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from dbos_async import DBOS

LONG = "long " * 1000


class Bucket:
    """A bucket in memory; `requests` says what was asked of it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        key = request.path.removeprefix("/bucket").removeprefix("/")
        self.requests.append(request.method)
        match request.method:
            case "PUT":
                self.objects[key] = await request.read()
                return web.Response(headers={"ETag": '"e"'})
            case "POST":  # several at once
                keys = re.findall(r"<Key>(.*?)</Key>", await request.text())
                for each in keys:
                    self.objects.pop(each, None)
                deleted = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
                return web.Response(
                    text=f"<DeleteResult>{deleted}</DeleteResult>", content_type="application/xml"
                )
            case "DELETE":
                self.objects.pop(key, None)
                return web.Response(status=204)
        if key not in self.objects:
            return web.Response(status=404)
        headers = {"ETag": '"e"', "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT"}
        return web.Response(body=self.objects[key], headers=headers)


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    bucket = Bucket()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", bucket.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    for name, value in {
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "here",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    yield bucket
    await runner.cleanup()


async def test_values_go_to_a_bucket_and_come_back_and_go(
    dbos_database_url: str, bucket: Bucket
) -> None:
    dbos = DBOS(
        "shop", dbos_database_url, payload_store="s3://bucket/some/prefix", payload_threshold=1000
    )

    @dbos.workflow(name="echo")
    async def echo(text: str) -> str:
        return text

    async with dbos:
        assert await echo.with_options(workflow_id="../w")(LONG) == LONG
        kinds = sorted(re.sub("-[0-9a-f]{16}$", "", key) for key in bucket.objects)
        assert kinds == ["some/prefix/=2E=2E=2Fw/input", "some/prefix/=2E=2E=2Fw/result"]
        assert bucket.requests == ["PUT", "PUT", "GET"]
        await dbos.delete_workflow("../w")
        assert bucket.objects == {}
        large = "x" * 12_000_000  # above what others send in parts
        assert await echo(large) == large
        assert bucket.requests.count("PUT") == 4
