"""What an upstream wrote, read by the model here: its tokens, its scores, and what it refuses."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from qprobe_server.errors import RequestError
from qprobe_server.library.registry import LoadedProbe, ServedProbe
from qprobe_server.proxy.reader import Prompt, Written
from qprobe_server.vllm_backend.checks import describe_model
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.reader import EngineReader
from qprobe_server.vllm_backend.rendering import Rendering

DIRECTIONS, LAYERS = 16, (2, 4)
QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."
CHAT = Prompt(messages=[{"role": "user", "content": QUESTION}])
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
# As templates of models that know tools are: calls as tagged JSON, reasoning before the answer.
TEMPLATE = """
{%- if tools %}{{ 'tools ' ~ (tools | map(attribute='function.name') | join(',')) ~ '<|im_end|>
' }}{% endif -%}
{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '
' }}{% if m.reasoning_content %}{{ '<think>' ~ m.reasoning_content ~ '</think>' }}{% endif -%}
{{ m.content or '' }}{% for c in m.tool_calls or [] -%}
{{ '<call>' ~ c.function.name ~ ' ' ~ (c.function.arguments | tojson) ~ '</call>' }}{% endfor -%}
{{ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(scope="module")
def reader(engine: RerankingLLM) -> EngineReader:
    return EngineReader(
        engine,
        describe_model(engine.vllm_config),
        LAYERS,
        Rendering(engine.renderer, None),
        allow_model_mismatch=True,
    )


@pytest.mark.parametrize(("max_tokens", "temperature"), [(12, 0.8), (60, 0.3)])
async def test_text_of_the_same_model_gets_the_scores_that_serve_gives_it(
    ask: Any,
    engine: RerankingLLM,
    reader: EngineReader,
    probes: list[LoadedProbe],
    served: list[ServedProbe],
    chat_ids: Any,
    request: pytest.FixtureRequest,
    max_tokens: int,
    temperature: float,
) -> None:
    """Whole answers and such as were cut, of which the last token does not count.

    A text does not tell how it was sampled where its tokens are not those that the tokenizer makes
    of it: few are not. The error of a mean over several directions, relative to the scores', is
    that of the embeddings, of which parity allows 1e-4 each (0.02 in bfloat16); 3 for the spread of
    some 30 pairs a probe.
    """
    tokenizer = engine.get_tokenizer()
    limit = 3 * (2e-4 if request.config.getoption("--engine-dtype") == "float32" else 0.04)
    for index in range(0, 5 * DIRECTIONS, DIRECTIONS):
        answer = await ask(
            chat_ids(QUESTION),
            probe=index,
            k=16,
            n=16,
            seed=index,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        written, expected = [], []
        for output, score in zip(answer.candidates, answer.result["scores"], strict=True):
            ids = list(output.token_ids)
            if output.finish_reason == "stop":
                ids.pop()
            if tokenizer.encode(output.text, add_special_tokens=False) == ids:
                written.append(Written(text=output.text, finish_reason=output.finish_reason))
                expected.append(score)
        assert len(written) >= 4
        read = await reader.read(
            CHAT, written, [served[index], served[index + 1]], with_tokens=False
        )
        found = torch.tensor([each.scores[0] for each in read if each])
        right = torch.tensor(expected)
        size = right - probes[index].probe.terms.bias
        assert (found - right).square().mean() <= limit**2 * size.square().mean()


async def test_tokens_are_shown_with_their_scores(
    reader: EngineReader, served: list[ServedProbe]
) -> None:
    """Probe 0 is a mean, so that its score is the mean of its tokens'."""
    written = [Written(text="def add(a, b):\n    return a + b", finish_reason="stop")]
    (read,) = await reader.read(CHAT, written, served[:2], with_tokens=True)
    assert read is not None
    assert "".join(read.tokens) == written[0].text
    means = torch.tensor(read.token_scores).mean(0)
    torch.testing.assert_close(means, torch.tensor(read.scores), rtol=0, atol=1e-5)


async def test_what_goes_beyond_the_context_is_left_out(
    reader: EngineReader, served: list[ServedProbe]
) -> None:
    """Of 2,048 tokens, one of which is kept free."""
    written = [Written(text="a b c"), Written(text="word " * 3000), Written(text="")]
    read = await reader.read(CHAT, written, served[:1], with_tokens=False)
    assert [each is None for each in read] == [False, True, False]
    assert [
        each is None
        for each in await reader.read(CHAT, written[1:2], served[:1], with_tokens=False)
    ] == [True]


@pytest.mark.parametrize(
    ("prompt", "param", "says"),
    [
        (Prompt(text="word " * 3000), "prompt", "at most 2047 tokens"),
        (Prompt(messages=[{"role": "user", "content": "word " * 3000}]), "messages", "at most"),
        (
            Prompt(
                messages=[
                    {"role": "user", "content": [{"type": "text", "text": "my secret"}]},
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                ]
            ),
            "messages.1.content.0",
            "text only, got 'image_url'",
        ),
    ],
)
async def test_a_prompt_that_cannot_be_read_is_refused_before_it_is_sampled(
    reader: EngineReader, prompt: Prompt, param: str, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        await reader.check_prompt(prompt)
    assert caught.value.param == param
    assert "secret" not in str(caught.value)
    await reader.check_prompt(CHAT)


async def test_a_chat_that_the_template_refuses_is_refused_without_being_quoted(
    engine: RerankingLLM,
) -> None:
    rendering = Rendering(engine.renderer, "{{ raise_exception(messages[0].content) }}")
    facts = describe_model(engine.vllm_config)
    reader = EngineReader(engine, facts, LAYERS, rendering, allow_model_mismatch=True)
    with pytest.raises(RequestError, match="messages: cannot be read by") as caught:
        await reader.check_prompt(CHAT)
    assert QUESTION not in str(caught.value)


def test_a_prompt_is_rendered_as_serve_renders_it(engine: RerankingLLM, chat_ids: Any) -> None:
    rendering = Rendering(engine.renderer, None)
    assert rendering.prompt(CHAT) == chat_ids(QUESTION)
    assert rendering.prompt(Prompt(text="def f(")) == list(engine.get_tokenizer().encode("def f("))


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [call("weather", '{"city": "Oslo"}')]},
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]
TOLD = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"


def written_with(**message: Any) -> Written:
    content = message.get("content")
    return Written(text=content or "", message={"role": "assistant", **message})


@pytest.mark.parametrize(
    ("written", "with_tools", "without"),
    [
        (written_with(content="Rain."), "Rain.", "Rain."),
        (written_with(content=None, refusal="No."), "No.", "No."),
        (
            written_with(content="So", reasoning_content="hm"),
            "<think>hm</think>So",
            "So",
        ),
        (
            written_with(content="Look:", tool_calls=[call("weather", '{"city": "Rome"}')]),
            'Look:<call>weather {"city": "Rome"}</call>',
            'Look:\n{"name": "weather", "arguments": {"city": "Rome"}}',
        ),
        (
            written_with(content=None, tool_calls=[call("weather", "{broken")]),
            '{"name": "weather", "arguments": "{broken"}',
            '{"name": "weather", "arguments": "{broken"}',
        ),
    ],
)
def test_an_answer_is_read_as_the_template_writes_it(
    engine: RerankingLLM, written: Written, with_tools: str, without: str
) -> None:
    """By a template that knows tools and reasoning, and by one that does not."""
    prompt = Prompt(messages=MESSAGES, tools=[TOOL])
    before = json.dumps(MESSAGES)
    tokenizer = engine.get_tokenizer()
    rendering = Rendering(engine.renderer, TEMPLATE)
    assert tokenizer.decode(rendering.prompt(prompt)) == (
        f"tools weather<|im_end|>\n{TOLD}"
        '<|im_start|>assistant\n<call>weather {"city": "Oslo"}</call><|im_end|>\n'
        "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n"
    )
    for each, expected in ((rendering, with_tools), (Rendering(engine.renderer, None), without)):
        answer = each.answer(prompt, written)
        assert tokenizer.decode(answer.token_ids[: answer.num_scored]) == expected
        assert answer.token_ids[answer.num_scored :] == [tokenizer.eos_token_id]
        cut = each.answer(prompt, replace(written, finish_reason="length"))
        assert cut.token_ids == answer.token_ids[:-1]
        assert cut.num_scored == answer.num_scored - 1
    assert json.dumps(MESSAGES) == before


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_an_answer_that_goes_on_with_a_message_is_read_within_it(
    engine: RerankingLLM, template: str | None
) -> None:
    """The prompt ends where the message does, without the turn's end or another turn's begin."""
    begun = {"role": "assistant", "content": "It may"}
    user = {"role": "user", "content": "Weather?"}
    prompt = Prompt(messages=[user, begun], tools=[TOOL], continues=True)
    opened = Prompt(messages=[user], tools=[TOOL])
    tokenizer = engine.get_tokenizer()
    rendering = Rendering(engine.renderer, template)
    before = tokenizer.decode(rendering.prompt(prompt))
    assert before == tokenizer.decode(rendering.prompt(opened)) + "It may"
    answer = rendering.answer(prompt, written_with(content=" rain"))
    assert tokenizer.decode(answer.token_ids[: answer.num_scored]) == " rain"
    if template is not None:
        calls = [call("weather", '{"city": "Rome"}')]
        answer = rendering.answer(prompt, written_with(content=" rain", tool_calls=calls))
        text = tokenizer.decode(answer.token_ids[: answer.num_scored])
        assert text == ' rain<call>weather {"city": "Rome"}</call>'


def test_arguments_of_a_request_reach_the_template(engine: RerankingLLM) -> None:
    rendering = Rendering(engine.renderer, "{{ 'on' if enable_thinking else 'off' }}")
    messages = CHAT.messages
    for value, expected in ((True, "on"), (False, "off")):
        prompt = Prompt(messages=messages, template_arguments={"enable_thinking": value})
        assert engine.get_tokenizer().decode(rendering.prompt(prompt)) == expected
