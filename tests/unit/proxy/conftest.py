"""An upstream that does as it is told, and a proxy before it: real servers, real connections."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qprobe import Probe, ProbeFileError
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import LoadedProbe, ServedProbe, read_probe
from qprobe_server.proxy.address import read_upstreams
from qprobe_server.proxy.app import make_app, open_upstreams
from qprobe_server.proxy.reader import Prompt, Read, Written
from qprobe_server.proxy.settings import ProxySettings
from qprobe_server.settings import Settings

Json = dict[str, Any]
Answer = Callable[[Request, Json, int], Awaitable[Response]]
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listen(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app on a port of its own; gives its address."""
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serving = asyncio.create_task(server.serve())
    while not server.started:  # uvicorn has no event for it
        await asyncio.wait({serving}, timeout=0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def complete(text: str, **choice: Any) -> Json:
    """Return a chat completion of this text."""
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-{text[:8]}",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": len(text),
            "total_tokens": 7 + len(text),
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


def dump(part: Json | str) -> bytes:
    """Return a chunk as it is sent, and a text as it is."""
    return (part if isinstance(part, str) else f"data: {json.dumps(part)}\n\n").encode()


def stream(parts: Sequence[Json | str], *, pause_s: float = 0) -> StreamingResponse:
    """Return a stream of these chunks, and what is a text as it is."""

    async def events() -> AsyncIterator[bytes]:
        for part in parts:
            await asyncio.sleep(pause_s)
            yield dump(part)

    return StreamingResponse(events(), media_type="text/event-stream")


def chunks(text: str, **last: Any) -> list[Json | str]:
    """Return a chat's stream of this text, in pieces of three characters, with its usage."""
    same = {"id": f"c-{text[:8]}", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
    made: list[Json | str] = [
        {**same, "choices": [{"index": 0, "delta": {"content": each}, "finish_reason": None}]}
        for each in pieces
    ]
    made.append({**same, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **last}]})
    usage = {"prompt_tokens": 7, "completion_tokens": len(text), "total_tokens": 7 + len(text)}
    return [*made, {**same, "choices": [], "usage": usage}, "data: [DONE]\n\n"]


class Stub:
    """An upstream.

    Attributes:
        answer: Makes the answer to a request of which the body and the number are given.
        bodies: The JSON that came, in its order; empty for what is none.
        raw: The same as bytes.
        headers: Theirs.
        paths: Theirs, with their queries.
        num_open: Requests that are being answered.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answer: Answer = answer_with(complete("four"))
        self.bodies: list[Json] = []
        self.raw: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        number = len(self.paths)
        query = f"?{request.url.query}" if request.url.query else ""
        self.paths.append(scope["raw_path"].decode() + query)
        self.headers.append(request.headers)
        raw = await request.body()
        body: Json = json.loads(raw) if raw.startswith(b"{") else {}
        self.bodies.append(body)
        self.raw.append(raw)
        self.num_open += 1
        try:
            await (await self._answer(request, body, number))(scope, receive, send)
        finally:
            self.num_open -= 1

    async def _answer(self, request: Request, body: Json, number: int) -> Response:
        """Answer as told, unless the client leaves meanwhile."""
        answering = asyncio.ensure_future(self.answer(request, body, number))
        try:
            while not answering.done():
                await asyncio.wait({answering}, timeout=0.02)
                if await request.is_disconnected():
                    return Response()
            return answering.result()
        finally:
            answering.cancel()


def answer_with(*replies: Json | Response | Callable[[], Response]) -> Answer:
    """Return what gives these replies one after the other, the last for ever; JSON as it is."""

    async def answer(request: Request, body: Json, number: int) -> Response:
        reply = replies[min(number, len(replies) - 1)]
        if isinstance(reply, dict):
            return JSONResponse(reply)
        return reply if isinstance(reply, Response) else reply()

    return answer


@dataclass
class LengthReader:
    """Scores a completion by its length, a token a character; reads no prompt with ``bad``.

    Attributes:
        prompts: That were read.
        completions: Likewise, all of them.
        too_long: Completions of more characters cannot be read.
    """

    gives_token_scores: bool = True
    prompts: list[Prompt] = field(default_factory=list)
    completions: list[Written] = field(default_factory=list)
    too_long: int = 10**9

    def check(self, probe: Probe) -> None:
        size = probe.info.hidden_size
        if size != 4:
            raise ProbeFileError("hidden_size", f"is {size}, the reader's is 4")

    async def load(self, probes: Sequence[tuple[ServedProbe, Probe]]) -> None:
        pass

    async def check_prompt(self, prompt: Prompt) -> None:
        if "bad" in json.dumps(prompt.messages or prompt.text):
            raise RequestError("messages: cannot be read", param="messages")

    async def read(
        self,
        prompt: Prompt,
        completions: Sequence[Written],
        probes: Sequence[ServedProbe],
        *,
        with_tokens: bool,
    ) -> Sequence[Read | None]:
        self.prompts.append(prompt)
        self.completions += completions
        return [
            Read(
                scores=[float(len(each.text))] * len(probes),
                tokens=list(each.text) if with_tokens else (),
                token_scores=[[1.0] * len(probes)] * len(each.text) if with_tokens else (),
            )
            if len(each.text) <= self.too_long
            else None
            for each in completions
        ]

    async def check_health(self) -> None:
        pass

    async def close(self) -> None:
        pass


@dataclass
class Setting:
    """A proxy before a stub, with the probes ``good`` (k 4, beta 0) and ``kind``.

    Attributes:
        stub: The upstream.
        reader: Of the proxy.
        probes: That are served.
    """

    stub: Stub
    reader: LengthReader
    probes: list[LoadedProbe]

    @contextlib.asynccontextmanager
    async def open(
        self, *, upstreams: Sequence[str] = (), settings: Settings | None = None, **own: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        """Start the proxy; gives a client of it. Keywords are fields of its settings."""
        given = upstreams or [f"{self.stub.url}/v1"]
        made = ProxySettings(upstreams=read_upstreams(given), **own)
        counted, settings = CollectorRegistry(), settings or Settings()
        async with open_upstreams(made, counted) as behind:
            app = await make_app(made, settings, self.probes, None, self.reader, behind, counted)
            async with (
                listen(app) as url,
                httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
            ):
                yield client

    async def leave_in_upload(self, proxy: httpx.AsyncClient) -> None:
        """Begin an upload that has reached the upstream, and leave."""
        url = proxy.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nx")
        async with asyncio.timeout(10):
            while not self.stub.headers:  # noqa: ASYNC110  uvicorn tells nobody
                await asyncio.sleep(0.01)
        writer.close()

    @contextlib.asynccontextmanager
    async def open_before(self, handle: Handle) -> AsyncIterator[httpx.AsyncClient]:
        """Start the proxy before a server that reads and writes bytes itself."""
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with self.open(upstreams=[url]) as proxy:
                yield proxy


@pytest.fixture
async def setting(make_probe: Callable[..., Path]) -> AsyncIterator[Setting]:
    """Return a stub that listens, with a proxy to open before it."""
    stub = Stub()
    probes = [
        read_probe(name, make_probe(name, k=4, beta=0).read_bytes()) for name in ("good", "kind")
    ]
    async with listen(stub) as url:
        stub.url = url
        yield Setting(stub, LengthReader(), probes)


class Make:
    """What a stub answers."""

    json = JSONResponse
    complete = staticmethod(complete)
    chunks = staticmethod(chunks)
    dump = staticmethod(dump)
    stream = staticmethod(stream)
    answer_with = staticmethod(answer_with)
    listen = staticmethod(listen)

    @staticmethod
    def by_seed(*texts: str, first: int = 0) -> Answer:
        """Answer the request of seed first + i with text i, streamed if it asks for that."""

        async def answer(request: Request, body: Json, number: int) -> Response:
            text = texts[body["seed"] - first]
            return stream(chunks(text)) if body.get("stream") else JSONResponse(complete(text))

        return answer


@pytest.fixture
def make() -> type[Make]:
    """Return what makes the stub's answers."""
    return Make
