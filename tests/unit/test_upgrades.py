"""Raw requests to a real uvicorn that runs as the server's does, around an app of our own."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI, Request, WebSocket

from qprobe_server.edge.upgrades import UpgradeIgnoringProtocol

BODY = b'{"text": "' + b"x" * 100_000 + b'"}'
OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, object]:
        body = await request.body()
        query = dict(request.query_params)
        return {"bytes": len(body), "query": query, "version": request.scope["http_version"]}

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    config = uvicorn.Config(app, port=0, log_level="critical", http=UpgradeIgnoringProtocol)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def exchange(port: int, *parts: bytes, num_replies: int = 1) -> list[tuple[int, str]]:
    """Send parts, each on its own; return the status and body of each reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.02)
    replies = []
    for _ in range(num_replies):
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or "0")
        replies.append((int(head.split()[1]), (await reader.readexactly(length)).decode()))
    writer.close()
    return replies


def head(headers: str, target: str = "/echo", version: str = "1.1") -> bytes:
    return f"POST {target} HTTP/{version}\r\nHost: a\r\n{headers}\r\n".encode()


LENGTH = f"Content-Length: {len(BODY)}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:], b""))


@pytest.mark.parametrize("offer", ["", OFFER, OFFER.replace("h2c", "TLS/1.0, h2c")])
@pytest.mark.parametrize(("framing", "body"), [(LENGTH, BODY), (CHUNKED, IN_CHUNKS)])
async def test_a_request_that_offers_an_upgrade_keeps_its_body(
    port: int, offer: str, framing: str, body: bytes
) -> None:
    """However it is cut into packets."""
    whole = head(offer + framing) + body
    for parts in ([whole], [whole[:30], whole[30:]], [head(offer + framing), body]):
        ((status, text),) = await exchange(port, *parts)
        assert status == 200
        assert json.loads(text)["bytes"] == len(BODY)


async def test_a_connection_goes_on_after_an_offer(port: int) -> None:
    """With further offers, with none, and with many requests sent at once."""
    asked = [
        head(OFFER + LENGTH) + BODY,
        head(LENGTH) + BODY,
        head(OFFER + "Content-Length: 0\r\n"),
    ]
    for parts in (asked, [b"".join(asked)]):
        replies = await exchange(port, *parts, num_replies=3)
        assert [status for status, _ in replies] == [200] * 3
        found = [json.loads(text)["bytes"] for _, text in replies]
        assert found == [len(BODY), len(BODY), 0]
    replies = await exchange(port, asked[2] * 2000, num_replies=2000)
    assert {status for status, _ in replies} == {200}


@pytest.mark.parametrize("offer", ["", OFFER])
async def test_old_versions_and_absolute_targets_still_work(port: int, offer: str) -> None:
    targets = ["/echo?a=b", "http://other:1/echo?a=b"]
    for target in targets:
        for version in ("1.0", "1.1"):
            ((status, text),) = await exchange(port, head(offer + LENGTH, target, version) + BODY)
            assert status == 200
            expected = {"bytes": len(BODY), "query": {"a": "b"}, "version": version}
            assert json.loads(text) == expected


async def test_web_sockets_are_still_taken(port: int) -> None:
    asked = (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    ((status, _),) = await exchange(port, asked)
    assert status == 101


async def test_what_is_no_http_is_refused(port: int) -> None:
    ((status, _),) = await exchange(port, b"\x16\x03\x01\r\n\r\n")
    assert status == 400
