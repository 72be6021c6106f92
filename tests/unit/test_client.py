"""The clients' requests and results, against a stand-in for the network.

Every test runs with ``Client`` and with ``AsyncClient``.
"""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import qprobe_client
from qprobe_client import (
    Answer,
    ArgumentError,
    AsyncClient,
    Candidate,
    Client,
    ClientError,
    ReplyError,
    ToolCall,
    Usage,
    Vote,
)

MakeClient = Callable[..., Any]

RESULT: dict[str, Any] = {
    "selected": [1],
    "scores": [0, 1.5],
    "weights": [0.1, 0.9],
    "kl": 0.3,
    "beta": 0.5,
    "sampled_tokens": 6,
    "candidates": [
        {"text": "hi", "num_tokens": 4, "finish_reason": "length", "stop_reason": None},
        {
            "text": "hello",
            "num_tokens": 2,
            "finish_reason": "stop",
            "stop_reason": "\n",
            "tokens": ["hel", "lo"],
            "token_scores": [1, 2.0],
        },
    ],
}
RERANK: dict[str, Any] = {"probe": "kind", "version": "ab", "k": 2, "beta": 0.5}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
CHOICE = {"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}
CHAT: dict[str, Any] = {
    "choices": [CHOICE],
    "usage": USAGE,
    "q_probe": {**RERANK, "results": [RESULT]},
}
CARD: dict[str, Any] = {
    "id": "kind",
    "object": "probe",
    "version": "ab",
    "created": 1700000000,
    "base_model": "m",
    "adapter": "sql-3",
    "terms": [{"kind": "state", "layer": "final", "pooling": "mean", "window": None}],
    "confidence": True,
    "objective": "ce",
    "k": 4,
    "beta": 0.1,
    "checkpoints": [16, 32],
    "schedule": [{"tokens": 16, "keep": 2}],
    "training": {"rows": 9},
    "licence": None,
    "num_requests": 3,
}


async def settle(given: Any) -> Any:
    """Return what a call of either client gives."""
    return await given if inspect.isawaitable(given) else given


@pytest.fixture(params=[Client, AsyncClient])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """Return a function that makes a client to which a reply, or what a function says, is given."""

    def make(answer: Any, seen: list[httpx.Request] | None = None, **options: Any) -> Any:
        def handle(got: httpx.Request) -> httpx.Response:
            if seen is not None:
                seen.append(got)
            return httpx.Response(200, json=answer) if isinstance(answer, dict) else answer

        transport = httpx.MockTransport(handle)
        return request.param("http://test", **{"transport": transport, **options})

    return make


async def test_chat_sends_what_is_asked_and_reads_the_reply(make_client: MakeClient) -> None:
    seen: list[httpx.Request] = []
    client = make_client(CHAT, seen, api_key="key")
    got = await settle(
        client.chat("hey", model="m", probe="kind", beta=0, return_candidates=True, seed=1)
    )
    (sent,) = seen
    assert (sent.method, sent.url.path) == ("POST", "/v1/chat/completions")
    assert sent.headers["authorization"] == "Bearer key"
    assert sent.headers["content-type"] == "application/json"
    assert json.loads(sent.content) == {
        "model": "m",
        "seed": 1,
        "messages": [{"role": "user", "content": "hey"}],
        "q_probe": {"probe": "kind", "beta": 0, "return_candidates": True},
    }
    assert (got.text, got.usage, got.raw) == ("hello", Usage(5, 2), CHAT)
    assert got.answers == [Answer("hello", "stop")]
    rerank = got.rerank
    assert (rerank.probe, rerank.version, rerank.k, rerank.beta) == ("kind", "ab", 2, 0.5)
    assert (rerank.selected, rerank.scores, rerank.target_kl) == ([1], [0.0, 1.5], None)
    assert rerank.candidates == [
        Candidate("hi", 4, "length"),
        Candidate("hello", 2, "stop", "\n", ["hel", "lo"], [1.0, 2.0]),
    ]


async def test_plain_chat_has_no_object_of_ours(make_client: MakeClient) -> None:
    seen: list[httpx.Request] = []
    plain = {name: CHAT[name] for name in ("choices", "usage")}
    messages = [{"role": "user", "content": "hey"}]
    got = await settle(make_client(plain, seen).chat(messages, model="m:kind"))
    assert json.loads(seen[0].content) == {"model": "m:kind", "messages": messages}
    assert "authorization" not in seen[0].headers
    assert got.rerank is None


@pytest.mark.parametrize(("solved", "beta"), [(0.25, 0.25), (None, math.inf)])
async def test_a_mix_with_a_target_kl(
    make_client: MakeClient, solved: float | None, beta: float
) -> None:
    mix = {"kind": 1.0, "short": -0.5}
    ours = {"probe": mix, "version": {"kind": "ab", "short": "cd"}, "k": 2, "target_kl": 0.7}
    reply = {**CHAT, "q_probe": {**ours, "notice": "n", "results": [{**RESULT, "beta": solved}]}}
    seen: list[httpx.Request] = []
    client = make_client(reply, seen)
    got = await settle(
        client.chat("hey", model="m", probe=mix, target_kl=0.7, return_token_scores=True)
    )
    assert json.loads(seen[0].content)["q_probe"] == {
        "probe": mix,
        "target_kl": 0.7,
        "return_token_scores": True,
    }
    assert (got.rerank.probe, got.rerank.version) == (mix, {"kind": "ab", "short": "cd"})
    assert (got.rerank.beta, got.rerank.target_kl, got.rerank.notice) == (beta, 0.7, "n")


async def test_a_vote_is_sent_and_its_result_read(make_client: MakeClient) -> None:
    told = {"classes": [0, None], "weights": [1], "answers": ["7"]}
    result = {**RESULT, "kl": None, "vote": told}
    ours = {"probe": "kind", "version": "ab", "k": 2, "results": [result]}
    seen: list[httpx.Request] = []
    client = make_client({**CHAT, "q_probe": ours}, seen)
    got = await settle(client.chat("hey", model="m", vote="numeric"))
    assert json.loads(seen[0].content)["q_probe"] == {"vote": {"by": "numeric"}}
    assert got.rerank.vote == Vote([0, None], [1.0], ["7"])
    by_code = {"by": "code", "inputs": ["f(3)"]}
    await settle(client.chat("hey", model="m", vote=by_code))
    assert json.loads(seen[1].content)["q_probe"] == {"vote": by_code}


async def test_a_schedule_is_sent_and_its_result_read(make_client: MakeClient) -> None:
    steps = [{"tokens": 16, "keep": 1}]
    result = {
        **{**RESULT, "scores": [None, 1.5], "kl": None},
        "num_tokens": [18, 40],
        "rejected_at": [16, None],
        "checkpoint_scores": [{"16": -1}, {"16": 0.5}],
    }
    ours = {"probe": "kind", "version": "ab", "k": 2, "schedule": steps, "results": [result]}
    seen: list[httpx.Request] = []
    client = make_client({**CHAT, "q_probe": ours}, seen)
    got = await settle(client.chat("hey", model="m", probe="kind", schedule=[(16, 1)]))
    assert json.loads(seen[0].content)["q_probe"] == {"probe": "kind", "schedule": steps}
    assert got.rerank.schedule == [(16, 1)]
    assert (got.rerank.scores, got.rerank.kl) == ([None, 1.5], None)
    assert (got.rerank.num_tokens, got.rerank.rejected_at) == ([18, 40], [16, None])
    assert got.rerank.checkpoint_scores == [{16: -1.0}, {16: 0.5}]
    for odd in ([{"tokens": 16, "keep": 1}], [16], [(16, 1, 2)]):
        with pytest.raises(ArgumentError, match=r"schedule: must be pairs \(tokens, keep\), got "):
            await settle(client.chat("hey", model="m", schedule=odd))
    await settle(client.chat("hey", model="m", schedule="off"))
    assert json.loads(seen[1].content)["q_probe"] == {"schedule": "off"}


async def test_several_answers_come_in_the_order_of_their_index(make_client: MakeClient) -> None:
    choices = [{**CHOICE, "index": i, "message": {"content": f"{i}"}} for i in (1, 0, 2)]
    got = await settle(make_client({**CHAT, "choices": choices}).chat("hey", model="m", n=3))
    assert [answer.text for answer in got.answers] == ["0", "1", "2"]
    assert got.text == "0"


async def test_tool_calls(make_client: MakeClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = {
        "index": 0,
        "message": {"content": None, "tool_calls": [call]},
        "finish_reason": "tool_calls",
    }
    got = await settle(make_client({**CHAT, "choices": [choice]}).chat("hey", model="m"))
    assert got.answers == [Answer("", "tool_calls", [ToolCall("c1", "f", "{}")])]


async def test_each_prompt_gets_its_own_answers_and_result(make_client: MakeClient) -> None:
    seen: list[httpx.Request] = []
    choices = [{"index": i, "text": f"t{i}", "finish_reason": "length"} for i in (2, 3, 0, 1)]
    results = [RESULT, {**RESULT, "selected": [0, 1]}]
    reply = {"choices": choices, "usage": USAGE, "q_probe": {**RERANK, "results": results}}
    client = make_client(reply, seen)
    got = await settle(client.complete(["a", "b"], model="m:kind", k=2, n=2, max_tokens=3))
    assert seen[0].url.path == "/v1/completions"
    assert json.loads(seen[0].content) == {
        "model": "m:kind",
        "prompt": ["a", "b"],
        "n": 2,
        "max_tokens": 3,
        "q_probe": {"k": 2},
    }
    texts = [[answer.text for answer in result.answers] for result in got.results]
    assert texts == [["t0", "t1"], ["t2", "t3"]]
    assert [result.rerank.selected for result in got.results] == [[1], [0, 1]]
    assert [result.text for result in got.results] == ["t0", "t2"]


async def test_what_an_upstream_does_not_say_is_unknown(make_client: MakeClient) -> None:
    ours = {**RERANK, "results": [{**RESULT, "sampled_tokens": None}]}
    got = await settle(make_client({**CHAT, "q_probe": ours}).chat("hi", model="m"))
    assert got.rerank.sampled_tokens is None


async def test_a_prompt_without_a_result(make_client: MakeClient) -> None:
    choices = [{"index": i, "text": "t", "finish_reason": "abort"} for i in (0, 1)]
    reply = {"choices": choices, "usage": USAGE, "q_probe": {**RERANK, "results": [None, RESULT]}}
    got = await settle(make_client(reply).complete(["a", "b"], model="m:kind"))
    assert [result.rerank is None for result in got.results] == [True, False]


async def test_probes_are_listed_and_shown(make_client: MakeClient) -> None:
    (listed,) = await settle(make_client({"data": [CARD]}).probes())
    seen: list[httpx.Request] = []
    numbers = [{"kind": "numbers", "names": ["cut"]}]
    card = {**CARD, "terms": numbers, "confidence": False}
    shown = await settle(make_client(card, seen).probe("kind"))
    assert seen[0].url.path == "/v1/probes/kind"
    assert (listed.name, listed.adapter, listed.licence) == ("kind", "sql-3", None)
    assert (listed.terms, listed.confidence) == (CARD["terms"], True)
    assert (shown.terms, shown.confidence) == (numbers, False)
    assert (shown.training, shown.num_requests) == ({"rows": 9}, 3)


async def test_how_sure_a_probe_is_of_its_candidates(make_client: MakeClient) -> None:
    result = {**RESULT, "confidence": [0.25, None]}
    reply = {**CHAT, "q_probe": {**RERANK, "results": [result]}}
    got = await settle(make_client(reply).chat("hey", model="m:kind"))
    assert got.rerank.confidence == [0.25, None]
    without = await settle(make_client(CHAT).chat("hey", model="m:kind"))
    assert without.rerank.confidence is None
    assert await settle(make_client({"data": [{"id": "m"}, {"id": "m:kind"}]}).models()) == [
        "m",
        "m:kind",
    ]


@pytest.mark.parametrize("how", ["bytes", "path", "text"])
async def test_a_probe_is_uploaded(make_client: MakeClient, tmp_path: Path, how: str) -> None:
    path = tmp_path / "probe.safetensors"
    path.write_bytes(b"\x00weights")
    file = {"bytes": b"\x00weights", "path": path, "text": str(path)}[how]
    seen: list[httpx.Request] = []
    made = await settle(make_client(httpx.Response(201, json=CARD), seen).upload_probe("a.b", file))
    assert (seen[0].method, seen[0].url.path) == ("PUT", "/v1/probes/a.b")
    assert seen[0].content == b"\x00weights"
    assert made.name == "kind"


async def test_a_probe_is_deleted(make_client: MakeClient) -> None:
    seen: list[httpx.Request] = []
    reply = {"id": "kind", "object": "probe", "deleted": True}
    assert await settle(make_client(reply, seen).delete_probe("kind")) is None
    assert (seen[0].method, seen[0].url.path) == ("DELETE", "/v1/probes/kind")
    with pytest.raises(ReplyError):
        await settle(make_client({**reply, "deleted": False}).delete_probe("kind"))


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.probe(".."),
        lambda client: client.delete_probe(""),
        lambda client: client.upload_probe("a/b", b""),
        lambda client: client.upload_probe("a" * 65, b""),
        lambda client: client.probe("a\n"),
        lambda client: client.chat("hey", model="m", stream=True),
        lambda client: client.chat("hey", model="m", q_probe={"k": 1}),
        lambda client: client.chat("hey", model="m", beta=math.nan),
        lambda client: client.chat("hey", model="m", seed={1}),
        lambda client: client.complete([], model="m"),
    ],
)
async def test_what_cannot_be_sent_is_not(make_client: MakeClient, ask: Any) -> None:
    seen: list[httpx.Request] = []
    with pytest.raises(ArgumentError):
        await settle(ask(make_client(CHAT, seen)))
    assert not seen


@pytest.mark.parametrize(
    "url", ["http://test", "http://test/", "http://test/v1", "http://test/v1/"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_the_address_may_end_in_v1(kind: Any, url: str) -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json={"data": []})

    await settle(kind(url, transport=httpx.MockTransport(handle)).probes())
    assert seen == ["http://test/v1/probes"]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "options",
    [{"api_key": ""}, {"api_key": "secret\n"}, {"api_key": "secr\u00e9t"}, {"api_key": " secret"}]
    + [{"base_url": url} for url in ("localhost:8000", "http://", "http://a:b", "")],
)
def test_a_client_that_cannot_work_is_not_made(kind: Any, options: dict[str, str]) -> None:
    with pytest.raises(ArgumentError) as refused:
        kind(**options)
    assert "secr" not in str(refused.value)


def test_public_names() -> None:
    assert qprobe_client.__all__ == sorted(qprobe_client.__all__)
    assert all(hasattr(qprobe_client, name) for name in qprobe_client.__all__)
    raised = [value for name, value in vars(qprobe_client).items() if name.endswith("Error")]
    assert len(raised) > 10
    assert all(issubclass(error, ClientError) for error in raised)
