"""``qprobe_client`` against a running server, with and without asyncio."""

import hashlib
import inspect
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from qprobe_client import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    NotFoundError,
    RequestTooLargeError,
    Rerank,
    TextDelta,
)

BASE = "smollm2-135m"
MODEL = f"{BASE}:end"
QUESTION = "Write a Python function `add(a, b)` that returns a + b."


async def settle(given: Any) -> Any:
    """Return what a call of either client gives."""
    return await given if inspect.isawaitable(given) else given


async def stream(client: Any, *arguments: Any, **asked: Any) -> tuple[list[TextDelta], Any]:
    """Read a stream of either client to its end."""
    context = client.stream_chat(*arguments, **asked)
    if isinstance(client, Client):
        with context as opened:
            return list(opened), opened.get_final_completion()
    async with context as opened:
        return [delta async for delta in opened], await opened.get_final_completion()


@pytest.fixture(params=[Client, AsyncClient])
async def connect(request: pytest.FixtureRequest, server: Any) -> AsyncIterator[Any]:
    """Return a function that makes a client with a key; the server's, unless another is given."""
    made: list[Any] = []

    def make(key: str = server.key) -> Any:
        made.append(request.param(server.url, api_key=key))
        return made[-1]

    yield make
    for client in made:
        await settle(client.close())


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()


def check_rerank(rerank: Rerank, *, k: int) -> None:
    """Check a result against the rule: weights are softmax(scores / beta), KL is log k - H."""
    assert rerank.k == len(rerank.scores) == len(rerank.weights) == k
    assert set(rerank.selected) <= set(range(k))
    scores = [score for score in rerank.scores if score is not None]
    assert len(scores) == k
    raw = [math.exp((score - max(scores)) / rerank.beta) for score in scores]
    assert rerank.weights == pytest.approx([weight / sum(raw) for weight in raw], abs=1e-4)
    entropy = -sum(weight * math.log(weight) for weight in rerank.weights if weight)
    assert rerank.kl == pytest.approx(math.log(k) - entropy, abs=1e-4)
    assert rerank.sampled_tokens is not None
    assert rerank.sampled_tokens >= k


async def test_chat(client: Any) -> None:
    got = await settle(client.chat(QUESTION, model=MODEL, max_tokens=12, n=2, seed=3))
    assert len(got.answers) == 2
    assert all(answer.text and answer.finish_reason for answer in got.answers)
    check_rerank(got.rerank, k=4)
    assert got.rerank.probe == "end"
    assert got.rerank.candidates is None
    assert got.usage.completion_tokens < got.rerank.sampled_tokens
    bare = await settle(client.chat(QUESTION, model=BASE, max_tokens=4))
    assert bare.rerank is None
    assert bare.text


async def test_token_scores_and_versions(client: Any) -> None:
    got = await settle(
        client.chat(
            QUESTION, model=BASE, probe="early", k=3, return_token_scores=True, max_tokens=9
        )
    )
    probe = await settle(client.probe("early"))
    assert got.rerank.version == probe.version
    assert len(got.rerank.candidates) == 3
    (chosen,) = got.rerank.selected
    assert got.rerank.candidates[chosen].text == got.text
    for candidate in got.rerank.candidates:
        assert 0 < len(candidate.tokens) == len(candidate.token_scores) <= candidate.num_tokens


async def test_early_rejection(client: Any) -> None:
    """The shipped probe's own schedule, and one of the request's, streamed."""
    asked: Any = {"model": f"{BASE}:python", "k": 8, "seed": 1, "max_tokens": 80}
    (card,) = [each for each in await settle(client.probes()) if each.name == "python"]
    got = await settle(client.chat(QUESTION, **asked, schedule="default"))
    rerank = got.rerank
    assert rerank.schedule == card.schedule
    assert rerank.rejected_at.count(None) == min(keep for _, keep in card.schedule)
    for at, score, weight in zip(rerank.rejected_at, rerank.scores, rerank.weights, strict=True):
        assert (score is None) == (at is not None)
        assert weight == 0 or at is None
    assert rerank.kl is None
    assert rerank.sampled_tokens == sum(rerank.num_tokens)
    whole = await settle(client.chat(QUESTION, **asked))
    assert whole.rerank.rejected_at is None
    assert rerank.sampled_tokens < 0.8 * whole.rerank.sampled_tokens


async def test_a_mix_with_a_target_kl(client: Any) -> None:
    mix = {"end": 1.0, "early": -0.5}
    got = await settle(
        client.chat(QUESTION, model=BASE, probe=mix, k=8, target_kl=0.5, max_tokens=9)
    )
    assert got.rerank.probe == mix
    assert set(got.rerank.version) == set(mix)
    assert got.rerank.target_kl == 0.5
    assert got.rerank.kl == pytest.approx(0.5, abs=1e-3)
    check_rerank(got.rerank, k=8)


async def test_a_tool_call_comes_whole_streamed_or_not(client: Any) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    # Only what is strict is held to its schema.
    function = {"name": "tell", "strict": True, "parameters": parameters}
    asked: dict[str, Any] = {
        "model": MODEL,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "tell"}},
        "max_tokens": 300,
        "seed": 2,
    }
    whole = await settle(client.chat("What is the weather in Paris?", **asked))
    _, streamed = await stream(client, "What is the weather in Paris?", **asked)
    (call,), (grown,) = whole.answers[0].tool_calls, streamed.answers[0].tool_calls
    assert call.id
    assert grown.id
    assert call.name == grown.name == "tell"
    # The same values: vLLM writes a whole reply's JSON anew, and streams it as it was sampled.
    assert json.loads(call.arguments) == json.loads(grown.arguments)
    assert isinstance(json.loads(call.arguments)["city"], str)


async def test_a_stream_gives_what_a_reply_gives(client: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "k": 3, "max_tokens": 16, "seed": 5}
    whole = await settle(client.chat(QUESTION, **asked))
    deltas, streamed = await stream(client, QUESTION, **asked)
    assert len(deltas) > 5
    assert "".join(delta.text for delta in deltas) == streamed.text == whole.text
    assert streamed.usage == whole.usage
    assert streamed.answers == whole.answers
    check_rerank(streamed.rerank, k=3)


async def test_leaving_a_stream_early(client: Any) -> None:
    context = client.stream_chat(QUESTION, model=MODEL, k=1, max_tokens=200)
    if isinstance(client, Client):
        with context as opened:
            first = next(opened)
    else:
        async with context as opened:
            first = await anext(opened)
    assert first.text
    assert (await settle(client.chat("hi", model=MODEL, max_tokens=2))).text


async def test_several_prompts(client: Any) -> None:
    prompts = ["def add(a, b):", "import os\n", "The sky is"]
    got = await settle(
        client.complete(prompts, model=MODEL, k=3, n=2, max_tokens=6, return_candidates=True)
    )
    assert len(got.results) == 3
    for result in got.results:
        check_rerank(result.rerank, k=3)
        shown = [result.rerank.candidates[i].text for i in result.rerank.selected]
        assert [answer.text for answer in result.answers] == shown
    one = await settle(client.complete("def add(a, b):", model=BASE, max_tokens=3))
    assert len(one.results) == 1
    assert one.rerank is None


@pytest.mark.parametrize(
    ("asked", "kind", "param"),
    [
        ({"model": f"{BASE}:nobody"}, NotFoundError, "model"),
        ({"model": BASE, "probe": "nobody"}, NotFoundError, "q_probe.probe"),
        ({"model": BASE, "probe": {"end": 1.0, "nobody": 1.0}}, NotFoundError, "q_probe.probe"),
        ({"model": MODEL, "k": 65}, BadRequestError, "q_probe.k"),
        ({"model": MODEL, "beta": 1, "target_kl": 1}, BadRequestError, "q_probe.target_kl"),
    ],
)
async def test_refusals(client: Any, asked: dict[str, Any], kind: Any, param: str) -> None:
    with pytest.raises(kind) as failed:
        await settle(client.chat("hi", **asked))
    with pytest.raises(kind) as failed_stream:
        await stream(client, "hi", **asked)
    for error in (failed.value, failed_stream.value):
        assert error.param == param
        assert error.request_id


async def test_a_bare_stream_is_refused(client: Any) -> None:
    with pytest.raises(BadRequestError) as failed:
        await stream(client, "hi", model=BASE)
    assert failed.value.param == "q_probe.probe"


async def test_a_malformed_request_is_not_repeated(client: Any) -> None:
    with pytest.raises(BadRequestError) as failed:
        await settle(client.chat("hi", model=BASE, stop={"secret": 1}, seed="secret words"))
    assert "secret" not in str(failed.value)


async def test_keys(connect: Callable[..., Any], server: Any) -> None:
    with pytest.raises(AuthenticationError):
        await settle(connect("wrong").probes())
    with pytest.raises(AuthenticationError):
        await settle(connect("wrong").chat("hi", model=MODEL))
    with pytest.raises(AuthenticationError):
        await settle(connect().upload_probe("mine", b""))
    with pytest.raises(AuthenticationError):
        await settle(connect().delete_probe("end"))
    assert await settle(connect(server.admin_key).probes())


async def test_the_life_of_a_probe(
    connect: Callable[..., Any], server: Any, make_probe: Callable[..., Path]
) -> None:
    client, admin = connect(), connect(server.admin_key)
    first = make_probe("mine", layer=2, pooling="last")
    made = await settle(admin.upload_probe("mine", first))
    try:
        assert (made.name, made.confidence, made.num_requests) == ("mine", False, 0)
        assert made.terms == [{"kind": "state", "layer": 2, "pooling": "last", "window": None}]
        assert made.version == hashlib.sha256(first.read_bytes()).hexdigest()
        assert await settle(client.probe("mine")) == made
        assert made in await settle(client.probes())
        assert f"{BASE}:mine" in await settle(client.models())
        got = await settle(client.chat("hi", model=f"{BASE}:mine", max_tokens=3))
        assert got.rerank.version == made.version
        second = make_probe("mine2", layer="final").read_bytes()
        replaced = await settle(admin.upload_probe("mine", second))
        assert (replaced.name, replaced.terms[0]["layer"]) == ("mine", "final")
        assert replaced.version == hashlib.sha256(second).hexdigest() != made.version
    finally:
        await settle(admin.delete_probe("mine"))
    with pytest.raises(NotFoundError):
        await settle(client.probe("mine"))
    with pytest.raises(NotFoundError):
        await settle(admin.delete_probe("mine"))


async def test_files_that_are_no_probe(
    connect: Callable[..., Any], server: Any, make_probe: Callable[..., Path]
) -> None:
    admin = connect(server.admin_key)
    with pytest.raises(BadRequestError):
        await settle(admin.upload_probe("mine", b"no probe"))
    with pytest.raises(BadRequestError) as failed:
        await settle(admin.upload_probe("mine", make_probe("mine", layer=3)))
    assert failed.value.param
    with pytest.raises(RequestTooLargeError):
        await settle(admin.upload_probe("mine", bytes((4 << 20) + 1)))
    assert "mine" not in [probe.name for probe in await settle(admin.probes())]
