"""The reply of a reranked request: vLLM's, with our object and the name that was asked for.

Relies on vLLM 0.32.0: the order of the fields in ``ResponseCompletedEvent``, and which events of
``StreamingResponsesResponse`` hold a response (entrypoints/openai/responses/protocol.py).
"""

import asyncio
import contextlib
import json
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from qprobe_server.choice.rerank import Rerank
from qprobe_server.edge.splice import add_field, find_value, replace_value

__all__ = ["WITH_RESPONSE", "ReplyWriter", "unbuffered"]

_FIELD = b"q_probe"
_DATA = b"data: "
_DONE = b"data: [DONE]\n\n"
_NO_CHOICES = re.compile(rb'"choices": ?\[\]')  # vLLM writes no space, others do
_KEEP_ALIVE = b": keep-alive\n\n"
# Events of Responses that hold the response, which names the model. The others are not looked
# through: an item that is done may have thousands of tokens with their logprobs.
WITH_RESPONSE = frozenset(
    b"response." + state
    for state in (b"created", b"queued", b"in_progress", b"completed", b"incomplete", b"failed")
)
# Where the response ends in its event. In a string the quotes would be escaped.
_END_OF_RESPONSE = b'},"sequence_number":'


class ReplyWriter:
    """Passes a reply on, and puts our ``q_probe`` object into it.

    A JSON reply gets it as a field. A stream gets it only if the request carried the object: in
    chat and text completions in the chunk with the usage, else as a last chunk with empty
    ``choices``; in Responses on the response of the last event; in Messages on the
    ``message_delta`` event. A silent stream is kept alive.

    Args:
        rerank: What comes of the request.
        model: The name that it asked for, where that is an alias: the reply repeats it.
        send: To the client.
        keep_alive_s: A stream that is silent for so many seconds gets a comment.
    """

    def __init__(
        self, rerank: Rerank, send: Send, *, model: str | None, keep_alive_s: float
    ) -> None:
        self._rerank = rerank
        self._model = None if model is None else json.dumps(model).encode()
        self._send = send
        self._keep_alive_s = keep_alive_s
        self._held: Message | None = None  # start of a JSON reply, until its length is known
        self._parts: list[bytes] = []
        self._first_chunk: bytes | None = None
        self._has_told = False
        self._alive: asyncio.Task[None] | None = None
        self._last_sent_s = 0.0

    async def send(self, message: Message) -> None:
        """Take one message of the app behind."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._alive is not None:
            await self._stream(message)
        elif self._held is not None:
            await self._collect(message)
        else:
            await self._send(message)

    def close(self) -> None:
        """Stop the keep-alive."""
        if self._alive is not None:
            self._alive.cancel()

    async def _start(self, message: Message) -> None:
        content_type = Headers(raw=message["headers"]).get("content-type", "")
        if message["status"] == 200 and content_type.startswith("application/json"):
            self._held = message
            return
        await self._send(message)
        if content_type.startswith("text/event-stream"):
            self._last_sent_s = asyncio.get_running_loop().time()
            self._alive = asyncio.create_task(self._keep_alive())

    async def _collect(self, message: Message) -> None:
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        assert self._held is not None
        body = b"".join(self._parts)
        # A client that left gets `null` from vLLM; DeepSeek begins with empty lines.
        if body.lstrip().startswith(b"{"):
            if self._model is not None:
                body = replace_value(body, (b"model",), self._model)
            # A Responses request in the background is answered before it is sampled: no results.
            if self._rerank.results:
                body = add_field(body, _FIELD, self._rerank.reply_json())
        MutableHeaders(raw=self._held["headers"])["content-length"] = str(len(body))
        await self._send(self._held)
        await self._send({"type": "http.response.body", "body": body})

    async def _stream(self, message: Message) -> None:
        body = message.get("body", b"")
        if body.startswith(_DATA):
            body = self._change_chunk(body)
        elif body.startswith(b"event: "):
            body = self._change_event(body)
        self._last_sent_s = asyncio.get_running_loop().time()
        if not message.get("more_body", False):
            self.close()
        await self._send({**message, "body": body})

    @property
    def _is_to_tell(self) -> bool:
        return self._rerank.request.explicit and bool(self._rerank.results) and not self._has_told

    def _change_chunk(self, body: bytes) -> bytes:
        """Return a chunk of chat or text completions with what is ours."""
        if body.endswith(_DONE):
            own = b""
            if self._is_to_tell and self._first_chunk is not None:
                own = _DATA + self._make_last_chunk(self._first_chunk) + b"\n\n"
            return body[: -len(_DONE)] + own + _DONE
        if self._model is not None:
            body = replace_value(body, (b"model",), self._model)
        if self._first_chunk is None and body.removeprefix(_DATA).lstrip().startswith(b"{"):
            self._first_chunk = body
        if self._is_to_tell and _NO_CHOICES.search(body) and find_value(body, (b"usage",)):
            self._has_told = True
            return add_field(body, _FIELD, self._rerank.reply_json())
        return body

    def _change_event(self, body: bytes) -> bytes:
        """Return an event of Responses or Messages with what is ours."""
        name = body.removeprefix(b"event: ").partition(b"\n")[0].strip()
        if self._model is not None:
            if name in WITH_RESPONSE:
                body = replace_value(body, (b"response", b"model"), self._model)
            elif name == b"message_start":
                body = replace_value(body, (b"message", b"model"), self._model)
        if not self._is_to_tell:
            return body
        if name == b"message_delta":
            return add_field(body, _FIELD, self._rerank.reply_json())
        if name in (b"response.completed", b"response.incomplete"):
            return add_field(body, _FIELD, self._rerank.reply_json(), end=_END_OF_RESPONSE)
        return body

    def _make_last_chunk(self, first: bytes) -> bytes:
        lines = first.partition(b"\n\n")[0].splitlines()  # several, where a server indents it
        like = json.loads(b"".join(each.removeprefix(_DATA) for each in lines))
        same = ("id", "object", "created", "model")
        chunk = {name: like[name] for name in same if name in like}
        made = json.dumps({**chunk, "choices": []}, separators=(",", ":")).encode()
        return add_field(made, _FIELD, self._rerank.reply_json())

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        # The client may leave at any moment; vLLM's side of the request learns of it by itself.
        with contextlib.suppress(OSError):
            while True:
                silent_s = loop.time() - self._last_sent_s
                if silent_s < self._keep_alive_s:
                    await asyncio.sleep(self._keep_alive_s - silent_s)
                    continue
                self._last_sent_s = loop.time()
                await self._send(
                    {"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True}
                )


def unbuffered(send: Send) -> Send:
    """Return what sends a reply, and keeps proxies from holding back a stream."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            raw = list(message["headers"])
            headers = MutableHeaders(raw=raw)
            if headers.get("content-type", "").startswith("text/event-stream"):
                headers.setdefault("cache-control", "no-cache")
                headers.setdefault("x-accel-buffering", "no")
            message = {**message, "headers": raw}
        await send(message)

    return sent
