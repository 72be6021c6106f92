"""The official clients against a running server, with an unchanged model name but for the probe."""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

BASE = "smollm2-135m"
MODEL = f"{BASE}:end"
MESSAGES: Any = [
    {"role": "user", "content": "Write a Python function `add(a, b)` that returns a + b."}
]
WEATHER: Any = {
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
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def check_reply(reply: dict[str, Any], *, k: int, probe: str = "end", prompts: int = 1) -> None:
    assert (reply["probe"], reply["k"]) == (probe, k)
    assert len(reply["results"]) == prompts
    for result in reply["results"]:
        assert len(result["scores"]) == len(result["weights"]) == k
        assert sum(result["weights"]) == pytest.approx(1)
        assert set(result["selected"]) <= set(range(k))


def test_models_and_probes_are_listed(client: openai.OpenAI, server: Any) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {BASE, f"{BASE}:python", f"{BASE}:end", f"{BASE}:early"}
    assert (listed[MODEL].model_extra or {})["parent"] == BASE
    probes = server.client().get("/v1/probes").json()
    assert probes["object"] == "list"
    by_name = {probe["id"]: probe for probe in probes["data"]}
    assert by_name["end"]["terms"][0]["layer"] == "final"
    assert by_name["early"]["terms"][0]["window"] == 8
    training = by_name["python"]["training"]
    assert training["cross_validated_reward"] > training["train_base"] > 0


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, logprobs=True, top_logprobs=2, n=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    tokens = 0
    for choice in answer.choices:
        assert choice.message.content
        assert choice.logprobs
        assert choice.logprobs.content
        tokens += len(choice.logprobs.content)
    assert answer.usage
    assert answer.usage.completion_tokens == tokens
    reply = answer.q_probe  # type: ignore[attr-defined]  # ours
    check_reply(reply, k=4)
    assert reply["results"][0]["sampled_tokens"] > answer.usage.completion_tokens


def test_chat_with_our_object(client: openai.OpenAI) -> None:
    asked = {"probe": "early", "k": 3, "beta": 0, "return_candidates": True}
    answer = client.chat.completions.create(
        model=BASE, messages=MESSAGES, max_tokens=12, extra_body={"q_probe": asked}
    )
    reply = answer.q_probe  # type: ignore[attr-defined]  # ours
    check_reply(reply, k=3, probe="early")
    (result,) = reply["results"]
    (chosen,) = result["selected"]
    assert result["scores"][chosen] == max(result["scores"])
    assert result["candidates"][chosen]["text"] == answer.choices[0].message.content


def test_a_seed_gives_the_same_answer_streamed_or_not(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "seed": 5}
    whole = client.chat.completions.create(**fields)
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len([c for c in chunks if c.choices]) > 5
    assert chunks[-1].usage == whole.usage


def test_the_stream_ends_with_the_result_if_asked(client: openai.OpenAI) -> None:
    fields: Any = {"messages": MESSAGES, "max_tokens": 8, "stream": True}
    asked = list(
        client.chat.completions.create(
            model=BASE, **fields, extra_body={"q_probe": {"probe": "end", "k": 2}}
        )
    )
    silent = list(client.chat.completions.create(model=MODEL, **fields))
    assert asked[-1].choices == []
    check_reply((asked[-1].model_extra or {})["q_probe"], k=2)
    assert all(chunk.choices for chunk in silent)


def test_candidates_share_their_prompt(client: openai.OpenAI, server: Any) -> None:
    """Its whole cache blocks are read once, whatever k is; here at least one of 32 tokens."""

    def count_hits() -> float:
        with server.client() as http:
            lines = http.get("/metrics").text.splitlines()
        counter = "vllm:prefix_cache_hits_total{"
        return sum(float(line.split()[-1]) for line in lines if line.startswith(counter))

    message: Any = {"role": "user", "content": f"Name a colour, not {os.urandom(8).hex()}. " * 2}
    before = count_hits()
    answer = client.chat.completions.create(
        model=MODEL, messages=[message], max_tokens=4, extra_body={"q_probe": {"k": 8}}
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 32
    # Where they are read in one step, too: vLLM hands out a block when it plans its computation.
    assert count_hits() - before >= 7 * 32


def test_completions_with_best_of_and_n(client: openai.OpenAI) -> None:
    prompts = ["def add(a, b):", "import os\n"]
    answer = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=10, best_of=6, n=2, stop=["\n\n"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    check_reply(answer.q_probe, k=6, prompts=2)  # type: ignore[attr-defined]  # ours
    streamed = list(
        client.completions.create(model=MODEL, prompt=prompts, max_tokens=5, best_of=2, stream=True)
    )
    assert {choice.index for chunk in streamed for choice in chunk.choices} == {0, 1}


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
    assert answer.output_text
    check_reply(answer.q_probe, k=4)  # type: ignore[attr-defined]  # ours
    with client.responses.stream(
        model=BASE,
        input="Say hello.",
        max_output_tokens=16,
        extra_body={"q_probe": {"probe": "end", "k": 2}},
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    last: Any = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    check_reply(last.response.q_probe, k=2)


def test_forced_tool_call(client: openai.OpenAI) -> None:
    for stream in (False, True):
        answer: Any = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
            max_tokens=300,
            stream=stream,
        )
        if stream:
            parts = [
                call.function
                for chunk in answer
                for choice in chunk.choices
                for call in choice.delta.tool_calls or []
            ]
            name = next(part.name for part in parts if part.name)
            arguments = "".join(part.arguments or "" for part in parts)
        else:
            (call,) = answer.choices[0].message.tool_calls
            name, arguments = call.function.name, call.function.arguments
        assert name == "get_weather"
        assert isinstance(json.loads(arguments)["city"], str)


def test_json_schema(client: openai.OpenAI) -> None:
    schema: Any = {"name": "person", "schema": SCHEMA, "strict": True}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={"type": "json_schema", "json_schema": schema},
        max_tokens=80,
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 150


async def test_async_client(server: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8)
                for model in (MODEL, BASE, f"{BASE}:early")
            )
        )
    replies = [answer.model_extra or {} for answer in answers]
    assert [reply.get("q_probe", {}).get("probe") for reply in replies] == ["end", None, "early"]


def test_anthropic(server: Any) -> None:
    with anthropic.Anthropic(base_url=server.url, auth_token=server.key) as client:
        answer = client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=12)
        assert answer.content[0].type == "text"
        check_reply(answer.q_probe, k=4)  # type: ignore[attr-defined]  # ours
        counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
        assert counted.input_tokens > 0
        asked: Any = {"q_probe": {"probe": "end", "k": 2}}
        events = list(
            client.messages.create(
                model=BASE, messages=MESSAGES, max_tokens=12, stream=True, extra_body=asked
            )
        )
        delta: Any = next(event for event in events if event.type == "message_delta")
        check_reply(delta.q_probe, k=2)
        with pytest.raises(anthropic.NotFoundError, match="nobody"):
            client.messages.create(model=f"{BASE}:nobody", messages=MESSAGES, max_tokens=5)


@pytest.mark.parametrize(
    ("model", "extra", "param", "error"),
    [
        (f"{BASE}:nobody", {}, "model", openai.NotFoundError),
        (BASE, {"q_probe": {"probe": "nobody"}}, "q_probe.probe", openai.NotFoundError),
        (MODEL, {"q_probe": {"k": 0}}, "q_probe.k", openai.BadRequestError),
        (MODEL, {"q_probe": {"k": 65}}, "q_probe.k", openai.BadRequestError),
        (MODEL, {"q_probe": {"beta": -1}}, "q_probe.beta", openai.BadRequestError),
        (MODEL, {"q_probe": {"what": 1}}, "q_probe.what", openai.BadRequestError),
        (
            MODEL,
            {"q_probe": {"schedule": [{"tokens": 16, "keep": 1}]}},
            "q_probe.schedule.0.tokens",
            openai.BadRequestError,
        ),
        (MODEL, {"use_beam_search": True}, "use_beam_search", openai.BadRequestError),
        (MODEL, {"n": 5}, "n", openai.BadRequestError),
        (BASE, {"vllm_xargs": {"qprobe": "x"}}, "vllm_xargs.qprobe", openai.BadRequestError),
    ],
)
def test_refusals_name_the_field(
    client: openai.OpenAI, model: str, extra: dict[str, Any], param: str, error: type[Exception]
) -> None:
    for stream in (False, True):
        with pytest.raises(error) as refused:
            client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=5, stream=stream, extra_body=extra
            )
        assert refused.value.param == param  # type: ignore[attr-defined]  # openai's APIError


@pytest.mark.parametrize("stream", [False, True])
def test_early_rejection_with_tools_answers_and_several_prompts(
    client: openai.OpenAI, server: Any, *, stream: bool
) -> None:
    """A forced tool call, n answers and two prompts come as ever; metrics tell what was dropped."""
    schedule = {"schedule": [{"tokens": 16, "keep": 4}, {"tokens": 32, "keep": 1}]}
    asked: Any = {"model": f"{BASE}:python", "extra_body": {"q_probe": {"k": 8, **schedule}}}
    completion: Any = client.completions.create(
        prompt=["def add(a, b):", "def sub(a, b):"], n=2, max_tokens=40, stream=stream, **asked
    )
    if stream:
        last = next(chunk for chunk in completion if hasattr(chunk, "q_probe"))
        results = last.q_probe["results"]
    else:
        assert len(completion.choices) == 4
        results = completion.q_probe["results"]
    for result in results:
        assert result["rejected_at"].count(None) == 2  # n of them, though the schedule keeps one
        assert [result["rejected_at"][index] for index in result["selected"]] == [None, None]
    chat: Any = client.chat.completions.create(
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=300,
        stream=stream,
        **asked,
    )
    if stream:
        chunks = list(chat)
        parts = [
            call.function.arguments or ""
            for chunk in chunks
            for choice in chunk.choices
            for call in choice.delta.tool_calls or []
        ]
        assert set(json.loads("".join(parts))) == {"city"}
    else:
        (call,) = chat.choices[0].message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"city"}
    metrics = server.client().get("/metrics").text
    assert 'qprobe_early_rejected_candidates_total{checkpoint="16",probe="python"}' in metrics
    for name in ("saved", "wasted"):
        assert f'qprobe_{name}_tokens_total{{probe="python"}}' in metrics


def test_refusals_behind_the_key_only(server: Any) -> None:
    body = {"model": f"{BASE}:nobody", "messages": MESSAGES}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            client.post("/chat/completions", body=body, cast_to=dict)
        with pytest.raises(openai.AuthenticationError):
            client.get("/probes", cast_to=dict)
