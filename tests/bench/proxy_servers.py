"""What stands around the proxy that is measured: a fast upstream, and a plain reverse proxy.

Run as programs: ``proxy_servers.py upstream PORT``, ``proxy_servers.py plain PORT URL``.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
import uvloop
from fastapi import FastAPI, Request
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

__all__ = ["DIMENSIONS"]

DIMENSIONS = 1024
_TEXT = "An answer of some length, as a language model may give it. " * 8
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _TEXT},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120},
}


class Upstream(asyncio.Protocol):
    """One connection: answers at once, and notes when. As little as HTTP/1.1 takes."""

    times: dict[str, list[float]] = {"chat": [], "embeddings": []}  # noqa: RUF012  of all of them
    chat = json.dumps(_CHAT).encode()

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        begun_s = time.monotonic()
        self._data += data
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(rest) < length:
                return
            body, self._data = rest[:length], rest[length:]
            self._answer(head.split(b" ", 2)[1], body, begun_s)

    def _answer(self, path: bytes, body: bytes, begun_s: float) -> None:
        if path == b"/taken":
            reply = json.dumps(self.times).encode()
            for each in self.times.values():
                each.clear()
        elif path.endswith(b"/embeddings"):
            reply = self._embed(len(json.loads(body)["input"]))
        else:
            reply = self.chat
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(reply) + reply)
        if path != b"/taken":
            kind = "embeddings" if path.endswith(b"/embeddings") else "chat"
            self.times[kind] += [begun_s, time.monotonic()]

    def _embed(self, count: int) -> bytes:
        vector = [index / DIMENSIONS for index in range(DIMENSIONS)]
        data = [{"index": index, "embedding": vector} for index in range(count)]
        return json.dumps({"model": "e", "data": data}).encode()


async def serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


def make_plain(url: str) -> FastAPI:
    """Return a reverse proxy as one writes it with FastAPI and httpx."""

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=live)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(request: Request) -> StreamingResponse:
        client: httpx.AsyncClient = request.app.state.client
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        made = client.build_request(
            request.method, request.url.path, headers=headers, content=request.stream()
        )
        reply = await client.send(made, stream=True)
        return StreamingResponse(
            reply.aiter_raw(),
            status_code=reply.status_code,
            headers=dict(reply.headers),
            background=BackgroundTask(reply.aclose),
        )

    return app


def main() -> None:
    kind, port, *rest = sys.argv[1:]
    if kind == "upstream":
        uvloop.run(serve_upstream(int(port)))
    else:
        uvicorn.run(make_plain(*rest), host="127.0.0.1", port=int(port), log_level="info")


if __name__ == "__main__":
    main()
