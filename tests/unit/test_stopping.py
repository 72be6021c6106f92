"""Open requests when the server stops: each ends with an error, and no other begins."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.middleware import Middleware

from qprobe_server.edge.stopping import OpenRequests, StoppingMiddleware

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Server:
    """An app with one slow route of each kind, called as uvicorn calls it."""

    def __init__(self) -> None:
        self.requests = OpenRequests()
        self.begun = asyncio.Event()
        self.left: list[str] = []
        middleware = Middleware(StoppingMiddleware, requests=self.requests)
        self.app = FastAPI(middleware=[middleware])
        self.app.post("/whole")(self.whole)
        self.app.post("/stream")(self.stream)
        self.app.post("/quick")(self.quick)
        self.app.get("/metrics")(self.quick)
        self.app.get("/v1/responses/{name}")(self.stream)

    async def whole(self, request: Request) -> JSONResponse:
        """Answer when the client has left, as vLLM's routes do."""
        self.begun.set()
        while not await request.is_disconnected():  # noqa: ASYNC110 - Starlette has no event for it
            await asyncio.sleep(0.01)
        self.left.append("whole")
        return JSONResponse(None)

    async def stream(self) -> StreamingResponse:
        """Send a first event, and then nothing more until the client leaves."""

        async def events() -> AsyncIterator[str]:
            yield 'data: {"choices": []}\n\n'
            self.begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.left.append("stream")

        return StreamingResponse(events(), media_type="text/event-stream")

    async def quick(self) -> dict[str, bool]:
        """Answer at once."""
        return {"quick": True}

    async def call(self, path: str, method: str = "POST") -> httpx.Response:
        """Ask once."""
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path)


@pytest.fixture
def server() -> Server:
    return Server()


def is_error(fields: dict[str, Any]) -> bool:
    error = fields["error"]
    return bool(error["code"] == 503 and error["message"] and error["type"])


async def test_a_whole_reply_becomes_a_503(server: Server) -> None:
    asked = asyncio.create_task(server.call("/whole"))
    await server.begun.wait()
    await server.requests.stop(let_end_s=0, let_leave_s=2)
    reply = await asked
    assert reply.status_code == 503
    assert is_error(reply.json())
    assert server.left == ["whole"]


async def test_a_stream_ends_with_an_error_that_clients_see(server: Server) -> None:
    asked = asyncio.create_task(server.call("/stream"))
    await server.begun.wait()
    await server.requests.stop(let_end_s=0, let_leave_s=2)
    reply = await asked
    first, last, rest = reply.text.split("\n\n")
    assert first == 'data: {"choices": []}'
    event, data = last.split("\n")
    assert event == "event: error"
    assert is_error(json.loads(data.removeprefix("data: ")))
    assert rest == ""
    assert server.left == ["stream"]


@pytest.mark.parametrize(
    ("sent", "headers", "num_told"),
    [
        ((), {}, 1),
        ((b"data: 1\r\n\r", b"\n"), {}, 1),
        ((b"data: 1\n\nda",), {}, 0),
        ((b"data: 1\n\n",), {"content-encoding": "gzip"}, 0),
    ],
)
async def test_a_stream_that_can_have_no_error_breaks_off(
    server: Server, sent: Sequence[bytes], headers: dict[str, str], num_told: int
) -> None:
    """As one may that is passed on: what comes after half an event would be part of it."""

    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            for each in sent:
                yield each
            server.begun.set()
            await asyncio.sleep(60)

        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    server.app.post("/passed")(stream)
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/passed"},
        **{"headers": [], "query_string": b""},
    }
    asked = asyncio.create_task(server.app(scope, receive, send))
    await server.begun.wait()
    await server.requests.stop(let_end_s=0, let_leave_s=2)
    await asked
    bodies = [each["body"] for each in messages[1:]]
    assert bodies[: len(sent)] == [*sent]
    assert [b"event: error" in each for each in bodies[len(sent) :]] == [True] * num_told
    assert messages[-1].get("more_body", False) == (not num_told)


async def test_a_stream_from_the_background_ends_as_others_do(server: Server) -> None:
    asked = asyncio.create_task(server.call("/v1/responses/mine?stream=true", "GET"))
    await server.begun.wait()
    await server.requests.stop(let_end_s=0, let_leave_s=2)
    assert "event: error" in (await asked).text
    assert (await server.call("/v1/responses/mine", "GET")).status_code == 503


async def test_the_app_sees_that_a_client_leaves(server: Server) -> None:
    """By looking, which waits for nothing; and no look takes a message from a later one."""
    has_left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        assert message["type"].startswith("http.response")

    scope = {"type": "http", "method": "POST", "path": "/whole", "headers": [], "query_string": b""}
    served = asyncio.create_task(server.app(scope, receive, send))  # type: ignore[arg-type]
    await server.begun.wait()
    await asyncio.sleep(0.1)
    assert not server.left
    has_left.set()
    await asyncio.wait_for(served, 10)
    assert server.left == ["whole"]


async def test_what_comes_while_it_stops_is_refused(server: Server) -> None:
    await server.requests.stop(let_end_s=0, let_leave_s=0)
    refused = await server.call("/quick")
    assert refused.status_code == 503
    assert is_error(refused.json())
    assert (await server.call("/metrics", "GET")).status_code == 200


async def test_requests_may_end_by_themselves(server: Server) -> None:
    """They get their time, and no more of it than they need."""
    asked = [asyncio.create_task(server.call(path)) for path in ("/quick", "/stream")]
    await server.begun.wait()
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await server.requests.stop(let_end_s=0.3, let_leave_s=2)
    assert 0.3 <= loop.time() - begun_s < 5
    quick, stream = await asyncio.gather(*asked)
    assert quick.json() == {"quick": True}
    assert "event: error" in stream.text


async def test_errors_of_the_app_stay_errors(server: Server) -> None:
    async def fail() -> None:
        raise RuntimeError("of the app")

    server.app.post("/fail")(fail)
    with pytest.raises(RuntimeError, match="of the app"):
        await server.call("/fail")


async def test_two_may_wait_for_the_same_client() -> None:
    """As vLLM's own listener and Starlette's would; both hear that it has left."""
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        both = asyncio.gather(receive(), receive())
        await asyncio.sleep(0.01)
        left.set()
        found.extend(await both)

    found: list[dict[str, Any]] = []
    middleware = StoppingMiddleware(app, requests=OpenRequests())
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await middleware(scope, receive, lambda _: asyncio.sleep(0))
    assert [each["type"] for each in found] == ["http.disconnect"] * 2
