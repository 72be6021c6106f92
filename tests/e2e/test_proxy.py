"""The proxy before a real vLLM, read by an engine of its own, with the official clients.

The upstream is the run's server without its probes, the reader the same small model, so that what
the proxy scores can be compared with what the server scores itself.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from qprobe import Probe, load_probe, save_probe
from qprobe.probe.confidence import Confidence, Platt

BASE = "smollm2-135m"
MODEL = f"{BASE}:end"
MESSAGES: Any = [{"role": "user", "content": "What is a volcano?"}]
ASK: Any = {"model": MODEL, "messages": MESSAGES, "seed": 1, "max_tokens": 24}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# All is bounded: so small a model may write digits until it is cut off.
SCHEMA: Any = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def proxy(
    server: Any,
    start_server: Callable[..., AbstractContextManager[Any]],
    make_probe: Callable[..., Path],
    small_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Serve the server's own probe ``end`` before it, ``early`` of an inner layer, and ``sure``.

    The last scores as ``early``, and is as sure as ``end`` says.
    """
    folder = tmp_path_factory.mktemp("proxy")
    early = load_probe(make_probe("early", layer=2, window=8))
    end = load_probe(make_probe("end", layer="final", pooling="last"))
    sure = Probe(early.info, early.terms, confidence=Confidence(Platt(1, 0), end.terms))
    save_probe(sure, folder / "sure")
    flags = ["--upstream", f"{server.url}/v1", "--reader", str(small_model)]
    flags += ["--dtype", "float32", "--enforce-eager", "--block-size", "32"]
    flags += ["--probe", f"end={make_probe('end', layer='final', pooling='last')}"]
    flags += ["--probe", f"early={make_probe('early', layer=2, window=8)}"]
    flags += ["--probe", f"sure={folder / 'sure'}"]
    more = {"QPROBE_UPSTREAM_API_KEY": server.key, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with start_server(folder / "log", *flags, command="proxy", **more) as started:
        yield started


@pytest.fixture(scope="module")
def client(proxy: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.key, max_retries=0) as made:
        yield made


def rerank(of: Any, **fields: Any) -> dict[str, Any]:
    """Return the result of a reranked chat, by whichever server."""
    body = {**ASK, "model": BASE, "q_probe": {"return_candidates": True, **fields}}
    reply = of.client().post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    (result,) = reply.json()["q_probe"]["results"]
    return dict(result)


@pytest.mark.parametrize("probe", ["end", "early"])
def test_what_is_read_scores_as_if_it_were_sampled_here(
    proxy: Any, server: Any, probe: str
) -> None:
    """The same seeds give the same texts, and tokens the same scores, as far as these round alike.

    A text does not tell how it was sampled where the tokenizer makes other tokens of it. Float32
    states of norm about 30 differ by 1e-4 of that between batches; so do the scores, whose weights
    are of norm about 1.
    """
    asked = {"probe": probe, "k": 16, "return_token_scores": True}
    theirs, ours = rerank(server, **asked), rerank(proxy, **asked)
    tokens = [[each["tokens"] for each in result["candidates"]] for result in (theirs, ours)]
    same = [index for index, (a, b) in enumerate(zip(*tokens, strict=True)) if a == b]
    assert len(same) >= 4
    for index in same:
        assert ours["scores"][index] == pytest.approx(theirs["scores"][index], abs=0.02)
    assert ours["sampled_tokens"] == ours["sampled_usage"]["completion_tokens"]


def test_a_probe_says_how_sure_it_is_by_terms_of_its_own(proxy: Any) -> None:
    """The texts are the same, as far as batches round alike; so is what ``end`` scores of them."""
    sure, end = rerank(proxy, probe="sure"), rerank(proxy, probe="end")
    texts = [[each["text"] for each in result["candidates"]] for result in (sure, end)]
    same = [index for index, (a, b) in enumerate(zip(*texts, strict=True)) if a == b]
    assert len(same) >= 3
    for index in same:
        wanted = 1 / (1 + math.exp(-end["scores"][index]))
        assert sure["confidence"][index] == pytest.approx(wanted, abs=0.01)


def test_an_answer_by_the_official_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, n=2, logprobs=True, top_logprobs=2)
    assert answer.model == MODEL
    assert [each.index for each in answer.choices] == [0, 1]
    (result,) = answer.to_dict()["q_probe"]["results"]
    assert len(result["scores"]) == 4
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    counted = sum(len(each.logprobs.content or ()) for each in answer.choices if each.logprobs)
    assert answer.usage.completion_tokens == counted


def test_a_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**ASK, **options))
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {each.model for each in chunks} == {MODEL}


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["A volcano is", "The sea is"], max_tokens=8, seed=1, echo=True
    )
    assert [each.index for each in answer.choices] == [0, 1]
    assert answer.choices[1].text.startswith("The sea is")


def test_a_forced_tool_call(client: openai.OpenAI) -> None:
    forced: Any = {"type": "function", "function": {"name": "get_weather"}}
    ask = {**ASK, "max_tokens": 80}
    answer = client.chat.completions.create(**ask, tools=[TOOL], tool_choice=forced)
    (call,) = answer.choices[0].message.tool_calls or [None]
    assert call is not None
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_structured_output(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "age", "schema": SCHEMA}}
    answer = client.chat.completions.create(**ASK, response_format=form)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"age"}


async def test_the_async_client(proxy: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.key) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(**{**ASK, "seed": seed}) for seed in (1, 2, 1))
        )
        stream = await client.chat.completions.create(**ASK, stream=True)
        pieces = [each.choices[0].delta.content or "" async for each in stream if each.choices]
    first, _, again = [each.choices[0].message.content for each in answers]
    assert first == again == "".join(pieces)


@pytest.mark.parametrize("is_stream", [False, True])
def test_anthropics_client(proxy: Any, *, is_stream: bool) -> None:
    ask: Any = {"model": MODEL, "max_tokens": 16, "messages": MESSAGES, "system": "Be brief."}
    with anthropic.Anthropic(base_url=proxy.url, api_key=proxy.key) as client:
        if is_stream:
            with client.messages.stream(**ask) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**ask)
            assert len(message.to_dict()["q_probe"]["results"]) == 1
    assert message.model == MODEL
    assert message.content[0].type == "text"
    assert message.usage.output_tokens > 0


def test_langchain(proxy: Any) -> None:
    model = ChatOpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.key, model=MODEL)
    assert model.invoke("What is a volcano?").content
    assert "".join(str(each.content) for each in model.stream("What is a volcano?"))


def test_what_names_no_probe_is_the_upstreams(proxy: Any, server: Any) -> None:
    body = {"model": BASE, "messages": MESSAGES, "seed": 1, "max_tokens": 8}
    for path in ("/v1/models", "/tokenize", "/v1/chat/completions"):
        replies = []
        for each in (proxy, server):
            call = {"json": body} if path != "/v1/models" else {}
            method = "POST" if call else "GET"
            replies.append(each.client().request(method, path, **call))
        assert [each.status_code for each in replies] == [200, 200]
        ours, theirs = [each.json() for each in replies]
        for reply in (ours, theirs):
            for name in ("id", "created"):
                reply.pop(name, None)
            for model in reply.get("data", ()):
                model.pop("created")
                for permission in model.pop("permission", ()):
                    assert permission
        assert ours == theirs


def test_what_the_upstream_refuses_it_refuses_itself(proxy: Any, server: Any) -> None:
    body = {**ASK, "model": BASE, "max_tokens": 10**9}
    theirs = server.client().post("/v1/chat/completions", json=body)
    ours = proxy.client().post("/v1/chat/completions", json={**body, "model": MODEL})
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)


async def test_clients_that_leave_end_their_candidates(proxy: Any, server: Any) -> None:
    """30 of them; soon the engine has nothing to do, and the next one is answered."""
    headers = {"authorization": f"Bearer {proxy.key}"}
    body = {**ASK, "max_tokens": 400, "ignore_eos": True}

    async def leave(client: httpx.AsyncClient, after_s: float, *, is_stream: bool) -> None:
        asked = {**body, "stream": is_stream}
        # Once it is connected, which 30 at once may take a while to be.
        limits = httpx.Timeout(after_s, connect=30)
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=asked, timeout=limits)

    async with httpx.AsyncClient(base_url=proxy.url, headers=headers) as client:
        leavers = (leave(client, 0.3 + 0.1 * n, is_stream=bool(n % 2)) for n in range(30))
        await asyncio.gather(*leavers)
        async with asyncio.timeout(30):
            while count_running(server):  # noqa: ASYNC110  the upstream tells nobody
                await asyncio.sleep(0.1)
        reply = await client.post("/v1/chat/completions", json=ASK, timeout=120)
    assert reply.status_code == 200


def count_running(server: Any) -> float:
    text = server.client().get("/metrics").text
    lines = [each for each in text.splitlines() if each.startswith("vllm:num_requests_running{")]
    return sum(float(each.rpartition(" ")[2]) for each in lines)


def test_no_key_and_no_text_is_in_the_log(proxy: Any, server: Any) -> None:
    log = proxy.log.read_text()
    for secret in (proxy.key, server.key, "volcano"):
        assert secret not in log
