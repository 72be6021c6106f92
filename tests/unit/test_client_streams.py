"""Streams, cut into pieces at any place; with both clients."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from qprobe_client import (
    APIError,
    AsyncClient,
    BadRequestError,
    Client,
    ClientError,
    Completion,
    InternalServerError,
    ReplyError,
    TextDelta,
    ToolCall,
    TransportError,
    TransportTimeoutError,
    Usage,
)
from qprobe_client._events import EventDecoder

# U+2028, U+0085 and U+001C end a line for str.splitlines, and are no line end of a stream's.
TEXT = ["h\u00e9", "\u2028\u0085", "\U0001f600 data: x\n\n", "\x1c\r\n"]
RESULT = {
    "selected": [1],
    "scores": [0.0, 1.5],
    "weights": [0.1, 0.9],
    "kl": 0.3,
    "beta": 0.5,
    "sampled_tokens": 6,
}
RERANK = {"probe": "kind", "version": "ab", "k": 2, "beta": 0.5, "results": [RESULT]}


def event(fields: dict[str, Any], *, end: str = "\n") -> bytes:
    # As pydantic writes it: unescaped.
    return f"data: {json.dumps(fields, ensure_ascii=False)}{end}{end}".encode()


def delta(fields: dict[str, Any], index: int = 0, finish_reason: str | None = None) -> Any:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish_reason}]}


ENDS = [
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}},
    {"choices": [], "q_probe": RERANK},
]
DONE = b"data: [DONE]\n\n"
EVENTS = [
    delta({"role": "assistant", "content": ""}),
    *(delta({"content": text}) for text in TEXT),
    delta({}, finish_reason="stop"),
    *ENDS,
]
STREAM = b": keep-alive\n\n" + b"".join(event(fields) for fields in EVENTS) + DONE


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces that knows whether it was closed; an error among them is raised."""

    def __init__(self, pieces: list[Any]) -> None:
        self.pieces = pieces
        self.num_read = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            self.num_read += 1
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.close()


Read = Callable[..., Any]


@pytest.fixture(params=[Client, AsyncClient])
def read(request: pytest.FixtureRequest) -> Read:
    """Return a function that streams a body, up to a number of pieces of text.

    It gives the pieces; then the completion, or the error that asking for it raised.
    """

    async def stream(
        body: Pieces,
        *,
        most: int | None = None,
        seen: list[httpx.Request] | None = None,
        **asked: Any,
    ) -> tuple[list[TextDelta], Completion]:
        def handle(got: httpx.Request) -> httpx.Response:
            if seen is not None:
                seen.append(got)
            headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r1"}
            return httpx.Response(200, headers=headers, stream=body)

        client = request.param("http://test", transport=httpx.MockTransport(handle))
        context = client.stream_chat("hey", model="m", **asked)
        got: list[TextDelta] = []
        if request.param is Client:
            with context as opened:
                while most is None or len(got) < most:
                    if (one := next(opened, None)) is None:
                        break
                    got.append(one)
            return got, opened.get_final_completion()
        async with context as opened:
            while most is None or len(got) < most:
                if (one := await anext(opened, None)) is None:
                    break
                got.append(one)
        return got, await opened.get_final_completion()

    return stream


def check(got: tuple[list[TextDelta], Completion]) -> None:
    deltas, completion = got
    assert deltas == [TextDelta(text, 0) for text in TEXT]
    assert completion.text == "".join(TEXT)
    assert completion.answers[0].finish_reason == "stop"
    assert completion.usage == Usage(5, 4)
    assert completion.rerank
    assert (completion.rerank.probe, completion.rerank.selected) == ("kind", [1])


async def test_the_request_asks_for_the_result_and_the_usage(read: Read) -> None:
    seen: list[httpx.Request] = []
    check(await read(Pieces([STREAM]), seen=seen))
    assert json.loads(seen[0].content) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hey"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "q_probe": {},
    }
    options = {"continuous_usage_stats": True, "include_usage": False}
    await read(Pieces([STREAM]), seen=seen, probe="kind", k=3, stream_options=options, n=1)
    sent = json.loads(seen[1].content)
    assert sent["q_probe"] == {"probe": "kind", "k": 3}
    assert sent["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


async def test_a_stream_may_be_cut_at_every_byte(read: Read) -> None:
    check(await read(Pieces([STREAM[i : i + 1] for i in range(len(STREAM))])))
    for cut in range(len(STREAM)):
        check(await read(Pieces([STREAM[:cut], STREAM[cut:]])))


def test_lines_may_end_in_any_way_and_be_cut_anywhere() -> None:
    """The decoder gives the same events for each way to end lines, cut into two or into bytes."""
    expected = ["a", "b\n c", "", "\u2028"]
    lines = [
        *("\ufeffdata:a", ""),
        *(": comment", "event: x", "id: 1", "retry: 5", "data", "nodata: y", "", ""),
        *("data: b", "data:  c", ""),
        *("database: no", "data:", "", "data: \u2028", ""),
        "data: never ended",
    ]
    # The field "data" without a colon is an empty line of data, by the standard.
    expected.insert(1, "")
    for end in ("\n", "\r", "\r\n"):
        raw = end.join(lines).encode()
        cuts = [[raw[:cut], b"", raw[cut:]] for cut in range(len(raw))]
        for pieces in [*cuts, [raw[i : i + 1] for i in range(len(raw))]]:
            decoder = EventDecoder()
            assert [data for piece in pieces for data in decoder.feed(piece)] == expected


async def test_several_answers_and_tool_calls_grow_apart(read: Read) -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {**({"name": "f"} if more else {}), "arguments": arguments}
        return {"tool_calls": [{"index": index, **more, "function": function}]}

    events = [
        delta({"content": "b"}, 1),
        delta({"content": "a"}, 0),
        delta({"content": "B"}, 1),
        delta(call(1, '{"y"', id="c2")),
        delta(call(0, "{", id="c1")),
        delta(call(1, ":1}")),
        delta(call(0, "}"), finish_reason="tool_calls"),
        delta({}, 1, "length"),
        *ENDS,
    ]
    body = Pieces([*(event(fields) for fields in events), DONE])
    deltas, completion = await read(body, n=2)
    assert deltas == [TextDelta("b", 1), TextDelta("a", 0), TextDelta("B", 1)]
    first, second = completion.answers
    assert (first.text, second.text) == ("a", "bB")
    assert (first.finish_reason, second.finish_reason) == ("tool_calls", "length")
    assert first.tool_calls == [ToolCall("c1", "f", "{}"), ToolCall("c2", "f", '{"y":1}')]


async def test_the_stream_is_closed_after_its_end(read: Read) -> None:
    body = Pieces([STREAM, b"never read"])
    check(await read(body))
    assert body.is_closed
    assert body.num_read == 1


async def test_leaving_early_closes_the_connection(read: Read) -> None:
    body = Pieces([event(fields) for fields in EVENTS])
    with pytest.raises(ClientError, match="left before its end") as failed:
        await read(body, most=1)
    assert not isinstance(failed.value, TransportError)
    assert body.is_closed
    assert body.num_read == 2  # the first carries no text


@pytest.mark.parametrize(
    ("error", "kind", "status", "param"),
    [
        ({"message": "m", "type": "T", "param": "n", "code": 400}, BadRequestError, 400, "n"),
        ({"message": "m", "type": "T", "param": None, "code": 500}, InternalServerError, 500, None),
        ({"message": "m"}, InternalServerError, 500, None),
        ("m", InternalServerError, 500, None),
    ],
)
async def test_an_error_in_a_stream(
    read: Read, error: Any, kind: type[APIError], status: int, param: str | None
) -> None:
    body = Pieces([event(EVENTS[1]) + event({"error": error}) + DONE])
    with pytest.raises(APIError, match=f"{status}: m") as failed:
        await read(body)
    assert type(failed.value) is kind
    assert (failed.value.status, failed.value.param) == (status, param)
    assert failed.value.request_id == "r1"
    assert body.is_closed


@pytest.mark.parametrize("cut", range(0, len(STREAM) - 1, 7))
async def test_a_stream_without_its_end_is_broken(read: Read, cut: int) -> None:
    """The last byte may be missing at most: without an empty line an event is not complete."""
    body = Pieces([STREAM[:cut]])
    with pytest.raises(TransportError, match="broke off"):
        await read(body)
    assert body.is_closed


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.RemoteProtocolError("gone"), TransportError),
        (httpx.ReadError("gone"), TransportError),
        (httpx.ReadTimeout("gone"), TransportTimeoutError),
    ],
)
async def test_a_connection_that_breaks_is_not_opened_again(
    read: Read, error: Exception, kind: type[Exception]
) -> None:
    seen: list[httpx.Request] = []
    body = Pieces([event(EVENTS[1]), error])
    with pytest.raises(TransportError, match="gone") as failed:
        await read(body, seen=seen)
    assert type(failed.value) is kind
    assert len(seen) == 1
    assert body.is_closed


@pytest.mark.parametrize(
    "raw",
    [
        b"data: {\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": 1}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": 3}}]}\n\n',
        event(ENDS[0]) + DONE,
        event(EVENTS[1]) + DONE,
    ],
)
async def test_streams_that_are_no_chat(read: Read, raw: bytes) -> None:
    body = Pieces([raw])
    with pytest.raises(ReplyError):
        await read(body)
    assert body.is_closed
