"""Every parameter of the official clients, with a probe and without: what docs/parameters.md says.

The comparisons rest on three things that tests/engine shows: a seed repeats, one candidate is the
base model's answer, and candidate i is sampled with seed + i. The module is long: half of it is
lists of values, one a line, and all of it shares what asks and compares.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

BASE = "smollm2-135m"
CAT = "Tell me about cats."
MESSAGES: Any = [{"role": "user", "content": CAT}]
Json = dict[str, Any]

# The smallest requests, each repeatable: Messages has no seed, so it samples greedily.
CHAT, COMPLETIONS, RESPONSES, ANTHROPIC = "chat", "completions", "responses", "messages"
SMALLEST: dict[str, Json] = {
    CHAT: {"messages": MESSAGES, "max_tokens": 6, "seed": 3, "temperature": 1.0},
    COMPLETIONS: {"prompt": "The cat", "max_tokens": 6, "seed": 3, "temperature": 1.0},
    RESPONSES: {
        "input": CAT,
        "max_output_tokens": 6,
        "temperature": 1.0,
        "extra_body": {"seed": 3},
    },
    ANTHROPIC: {"messages": MESSAGES, "max_tokens": 6, "extra_body": {"top_k": 1}},
}
# Ten tokens, the digits, that so large a bias leaves alone to choose from: answers that repeat.
DIGITS = {str(token): 100 for token in range(32, 42)}
YES_OR_NO: Any = {"type": "string", "enum": ["yes", "no"]}
PLACE: Any = {
    "type": "object",
    "properties": {"at": {"type": "string", "enum": ["Oslo"]}},
    "required": ["at"],
    "additionalProperties": False,
}
# The prompt is greater than the context of 8,192 tokens.
TOO_LONG = "word " * 9000


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: HTTP status.
        body: The JSON without our object, ids and times.
        q_probe: Our object.
    """

    status: int
    body: Any
    q_probe: Json

    @property
    def candidates(self) -> list[Json]:
        (result,) = self.q_probe["results"]
        return list(result["candidates"])

    @property
    def samples(self) -> list[str]:
        return [candidate["text"] for candidate in self.candidates]

    @property
    def texts(self) -> list[str]:
        """The answers' texts."""
        if "choices" in self.body:
            return [each.get("text") or each["message"]["content"] for each in self.body["choices"]]
        parts = self.body.get("content")
        if parts is None:
            parts = [part for item in self.body["output"] for part in item["content"]]
        return ["".join(part["text"] for part in parts)]


class Asker:
    """Asks the server by the official clients, and remembers what it has asked."""

    def __init__(self, create: dict[str, Any]) -> None:
        self._create = create
        self._known: dict[str, Reply] = {}

    def __call__(self, api: str, *, k: int | None, fresh: bool = False, **fields: Any) -> Reply:
        """Return the reply to the smallest request with other fields; k None: without a probe."""
        body = _body(api, k, fields)
        key = json.dumps([api, body], sort_keys=True)
        if fresh or key not in self._known:
            self._known[key] = self._ask(api, body)
        return self._known[key]

    def _ask(self, api: str, body: Json) -> Reply:
        try:
            raw = self._create[api].with_raw_response.create(**body)
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            return Reply(error.status_code, _clean(error.response.json()), {})
        raw.parse()
        content = raw.http_response.json()
        return Reply(200, _clean(content), content.get("q_probe", {}))

    def stream(self, api: str, *, k: int | None, **fields: Any) -> list[Json]:
        """Return the events of a stream, without our object."""
        events = self._create[api].create(**_body(api, k, fields), stream=True)
        cleaned = [_clean(event.to_dict()) for event in events]
        # The chunk of its own in which chat and text completions carry our object.
        return [event for event in cleaned if event.get("choices") != [] or event.get("usage")]


def _body(api: str, k: int | None, fields: Json) -> Json:
    extra = {**SMALLEST[api].get("extra_body", {}), **fields.get("extra_body", {})}
    if k is not None:
        extra["q_probe"] = {"probe": "end", "k": k, "return_candidates": True}
    return {"model": BASE, **SMALLEST[api], **fields, "extra_body": extra}


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if not isinstance(value, dict):
        return value
    new = ("id", "item_id", "call_id", "created", "created_at", "q_probe")
    return {name: _clean(each) for name, each in value.items() if name not in new}


@pytest.fixture(scope="module")
def ask(server: Any) -> Iterator[Asker]:
    with ExitStack() as stack:
        theirs = stack.enter_context(
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
        )
        other = stack.enter_context(
            anthropic.Anthropic(base_url=server.url, auth_token=server.key, max_retries=0)
        )
        yield Asker(
            {
                CHAT: theirs.chat.completions,
                COMPLETIONS: theirs.completions,
                RESPONSES: theirs.responses,
                ANTHROPIC: other.messages,
            }
        )


def check_ignored(ask: Asker, api: str, *, repeated: tuple[str, ...] = (), **fields: Any) -> None:
    """The reply is the one without the fields, save that it may repeat some; so are all samples."""
    for k in (None, 2):
        plain, reply = ask(api, k=k), ask(api, k=k, **fields)
        assert reply.status == 200, reply.body
        if k is not None:
            assert reply.samples == plain.samples
        for name in repeated:
            assert reply.body[name] != plain.body[name]
        assert without(reply.body, repeated) == without(plain.body, repeated)


def without(body: Json, names: tuple[str, ...]) -> Json:
    return {name: value for name, value in body.items() if name not in names}


def check_honoured(
    ask: Asker,
    api: str,
    holds: Callable[[Json], bool] | None = None,
    *,
    given: Json | None = None,
    **fields: Any,
) -> Reply:
    """One candidate is bare vLLM's answer with the fields, and of two each is sampled with them.

    Args:
        ask: Asks.
        api: Whom.
        holds: What is true of a candidate with the fields, and not of both without them.
        given: Fields of both requests that are compared, beside the smallest.
        **fields: What is looked at.

    Returns:
        The reply to two candidates.
    """
    given = given or {}
    bare = ask(api, k=None, **{**given, **fields})
    assert bare.status == 200, bare.body
    assert ask(api, k=1, **{**given, **fields}).body == bare.body
    plain, reply = ask(api, k=2, **given), ask(api, k=2, **{**given, **fields})
    assert reply.samples != plain.samples
    if holds is not None:
        assert all(map(holds, reply.candidates)), reply.candidates
        assert not all(map(holds, plain.candidates)), plain.candidates
    return reply


VOWELS = ["a", "e", "i", "o"]


def is_cut_at_a_vowel(candidate: Json) -> bool:
    return candidate["stop_reason"] in VOWELS and not set(VOWELS) & set(candidate["text"])


# What is sampled with each, and what is then true of every candidate.
BIASED = ("logit_bias", {"34": 100}, lambda each: each["text"] == "222222")
STOPPED = ("stop", VOWELS, is_cut_at_a_vowel)
NUCLEUS = ("top_p", 1e-9, None)
HOT = ("temperature", 2.0, None)
SEEDED = ("seed", 11, None)


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        *(BIASED, STOPPED, NUCLEUS, HOT, SEEDED),
        ("max_tokens", 3, lambda each: each["num_tokens"] == 3),
        # Wins over the max_tokens that every request has here.
        ("max_completion_tokens", 2, lambda each: each["num_tokens"] == 2),
    ],
)
def test_chat_samples_with(ask: Asker, name: str, value: Any, holds: Any) -> None:
    check_honoured(ask, CHAT, holds, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        *(BIASED, STOPPED, NUCLEUS, HOT, SEEDED),
        ("max_tokens", 3, lambda each: each["num_tokens"] == 3),
    ],
)
def test_completions_sample_with(ask: Asker, name: str, value: Any, holds: Any) -> None:
    check_honoured(ask, COMPLETIONS, holds, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [NUCLEUS, HOT, ("max_output_tokens", 3, lambda each: each["num_tokens"] == 3)],
)
def test_responses_sample_with(ask: Asker, name: str, value: Any, holds: Any) -> None:
    check_honoured(ask, RESPONSES, holds, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        ("stop_sequences", VOWELS, is_cut_at_a_vowel),
        ("max_tokens", 3, lambda each: each["num_tokens"] == 3),
    ],
)
def test_messages_sample_with(ask: Asker, name: str, value: Any, holds: Any) -> None:
    check_honoured(ask, ANTHROPIC, holds, **{name: value})


def test_messages_sample_with_what_older_clients_send(ask: Asker) -> None:
    """Of a greedy answer, of a nucleus or ten that holds one token, and of neither."""
    greedy = ask(ANTHROPIC, k=2).samples
    assert len(set(greedy)) == 1
    nucleus = ask(ANTHROPIC, k=2, extra_body={"top_k": 0, "top_p": 1e-9})
    assert nucleus.samples == greedy
    hot = ask(ANTHROPIC, k=2, extra_body={"top_k": 0, "temperature": 2.0})
    assert len({*hot.samples, *greedy}) == 3
    cold = ask(ANTHROPIC, k=2, extra_body={"top_k": 0, "temperature": 0.0})
    assert (cold.q_probe["k"], cold.samples) == (1, greedy[:1])


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties(ask: Asker, api: str, name: str) -> None:
    """Ten digits to choose from in eight tokens: what is penalised for its use is used less."""
    given: Json = {"logit_bias": DIGITS, "max_tokens": 8}
    penalised = check_honoured(ask, api, None, given=given, **{name: 2.0})
    assert count_digits(penalised) > count_digits(ask(api, k=2, **given))


def count_digits(reply: Reply) -> int:
    """How many different digits the candidates use, added up."""
    return sum(len(set(sample)) for sample in reply.samples)


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
def test_seeds(ask: Asker, api: str) -> None:
    """The same seed repeats; candidate i is sampled with seed + i."""
    first, again = ask(api, k=2), ask(api, k=2, fresh=True)
    assert (again.samples, again.body) == (first.samples, first.body)
    assert ask(api, k=2, seed=SMALLEST[api]["seed"] + 1).samples[0] == first.samples[1]


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES])
def test_temperature_zero_is_one_greedy_candidate(ask: Asker, api: str) -> None:
    bare, probed = (ask(api, k=k, temperature=0) for k in (None, 2))
    assert probed.body == bare.body
    assert probed.q_probe["k"] == len(probed.candidates) == 1
    assert "temperature 0" in probed.q_probe["notice"]


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
def test_n_gives_different_candidates(ask: Asker, api: str) -> None:
    """All k candidates if n = k, and they are what bare vLLM answers; usage counts what is sent."""
    bare, probed = ask(api, k=None, n=2), ask(api, k=2, n=2)
    assert sorted(probed.texts) == sorted(bare.texts) == sorted(probed.samples)
    assert len(set(probed.texts)) == 2
    assert probed.body["usage"] == bare.body["usage"]


def test_best_of_is_k(ask: Asker) -> None:
    assert ask(COMPLETIONS, k=None, best_of=3).body == ask(COMPLETIONS, k=None).body
    probed = ask(COMPLETIONS, k=3, best_of=3)
    assert (probed.q_probe["k"], len(probed.candidates)) == (3, 3)
    assert ask(COMPLETIONS, k=2, best_of=3).status == 400


def test_echo_is_of_the_answer(ask: Asker) -> None:
    bare, one, two = (ask(COMPLETIONS, k=k, echo=True, logprobs=1) for k in (None, 1, 2))
    assert one.body == bare.body
    (answer,) = two.texts
    assert answer.removeprefix("The cat") in two.samples
    assert "".join(two.body["choices"][0]["logprobs"]["tokens"]) == answer
    assert all("The cat" not in sample for sample in two.samples)


def test_logprobs_are_the_answers(ask: Asker) -> None:
    """Its tokens make its text, and with one candidate they are bare vLLM's."""
    asked: list[tuple[str, Json]] = [
        (CHAT, {"logprobs": True, "top_logprobs": 2}),
        (COMPLETIONS, {"logprobs": 2}),
        (RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    ]
    for api, fields in asked:
        bare, one, two = (ask(api, k=k, **fields) for k in (None, 1, 2))
        assert one.body == bare.body
        assert two.texts == ask(api, k=2).texts
        tokens, alternatives = read_logprobs(two.body)
        assert "".join(tokens) == two.texts[0]
        assert all(2 <= count <= 3 for count in alternatives)


def read_logprobs(body: Json) -> tuple[list[str], list[int]]:
    """Return the tokens, and how many alternatives are told of each."""
    if "output" in body:
        listed = body["output"][0]["content"][0]["logprobs"]
    else:
        listed = body["choices"][0]["logprobs"].get("content")
    if listed is None:
        logprobs = body["choices"][0]["logprobs"]
        return logprobs["tokens"], [len(each) for each in logprobs["top_logprobs"]]
    return [each["token"] for each in listed], [len(each["top_logprobs"]) for each in listed]


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"stream_options": {"include_usage": True}}),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}),
        (RESPONSES, {}),
        (ANTHROPIC, {}),
    ],
)
def test_stream(ask: Asker, api: str, fields: Json) -> None:
    """One candidate comes in the events of bare vLLM, whose order and number is the same."""
    bare = ask.stream(api, k=None, **fields)
    assert ask.stream(api, k=1, **fields) == bare
    assert len(bare) > 5
    if fields:
        silent = ask.stream(api, k=1)
        assert "usage" in bare[-1]
        assert not any(event.get("usage") for event in silent)


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (
            CHAT,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": YES_OR_NO},
                }
            },
        ),
        (
            RESPONSES,
            {"text": {"format": {"type": "json_schema", "name": "answer", "schema": YES_OR_NO}}},
        ),
        (ANTHROPIC, {"output_config": {"format": {"type": "json_schema", "schema": YES_OR_NO}}}),
    ],
)
def test_schemas_hold_for_every_candidate(ask: Asker, api: str, fields: Json) -> None:
    check_honoured(ask, api, lambda each: each["text"] in ('"yes"', '"no"'), **fields)


NAMED: Json = {"name": "look", "description": "Tell the weather of a place"}
TOOLS: dict[str, Json] = {
    CHAT: {
        "tools": [{"type": "function", "function": {**NAMED, "parameters": PLACE, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "max_tokens": 200,
        "top_p": 1e-9,
    },
    RESPONSES: {
        "tools": [{"type": "function", **NAMED, "parameters": PLACE, "strict": True}],
        "tool_choice": {"type": "function", "name": "look"},
        "max_output_tokens": 200,
        "top_p": 1e-9,
    },
    ANTHROPIC: {
        "tools": [{**NAMED, "input_schema": PLACE, "strict": True}],
        "tool_choice": {"type": "tool", "name": "look"},
        "max_tokens": 200,
    },
}


@pytest.mark.parametrize("api", [CHAT, RESPONSES, ANTHROPIC])
def test_tools_are_called_by_every_candidate(ask: Asker, api: str) -> None:
    """A forced call is in every candidate and told of as by bare vLLM; or a call is forbidden."""
    bare, reply = ask(api, k=None, **TOOLS[api]), ask(api, k=2, **TOOLS[api])
    assert all('"look"' in text and '"Oslo"' in text for text in reply.samples)
    called = next(name for name in ("choices", "output", "content") if name in bare.body)
    assert reply.body[called] == bare.body[called]
    assert "Oslo" in json.dumps(reply.body[called])
    none = {"type": "none"} if api == ANTHROPIC else "none"
    repeated = ("tools",) if api == RESPONSES else ()
    fields = {"tools": TOOLS[api]["tools"], "tool_choice": none}
    check_ignored(ask, api, repeated=repeated, **fields)


TWO_CALLS = '<tool_call>{"name":"f","arguments":{}}</tool_call>' * 2


@pytest.mark.parametrize(
    ("api", "parallel", "fields"),
    [
        (CHAT, True, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (CHAT, False, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (RESPONSES, False, {"tools": [{"type": "function", "name": "f", "parameters": {}}]}),
    ],
)
def test_parallel_tool_calls(ask: Asker, api: str, fields: Json, *, parallel: bool) -> None:
    """Of candidates that are made to call a tool twice, the answer may have the first call only."""
    made: Json = {"extra_body": {"structured_outputs": {"choice": [TWO_CALLS]}}, "top_p": 1e-9}
    made["max_output_tokens" if api == RESPONSES else "max_tokens"] = 90
    reply = ask(api, k=2, parallel_tool_calls=parallel, **made, **fields)
    assert reply.samples == [TWO_CALLS, TWO_CALLS]
    answer = json.dumps(reply.body["output" if api == RESPONSES else "choices"])
    assert answer.count('"arguments"') == (2 if parallel else 1)


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"messages": [{"role": "system", "content": "Be a pirate."}, *MESSAGES]}),
        (COMPLETIONS, {"prompt": "Once upon a time"}),
        (RESPONSES, {"input": [*MESSAGES, {"role": "user", "content": "And of dogs."}]}),
        (RESPONSES, {"instructions": "Be a pirate."}),
        (ANTHROPIC, {"messages": [*MESSAGES, {"role": "assistant", "content": "Dogs"}]}),
        (ANTHROPIC, {"system": "Write in Spanish."}),
    ],
)
def test_all_candidates_answer_the_prompt(ask: Asker, api: str, fields: Json) -> None:
    bare = ask(api, k=None, **fields)
    reply = check_honoured(ask, api, **fields)
    names = ("prompt_tokens", "input_tokens")
    counts = [[each.body["usage"].get(name) for name in names] for each in (bare, reply)]
    assert counts[0] == counts[1]
    assert bare.body["usage"] != ask(api, k=None).body["usage"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("function_call", {"name": "f"}),
        ("functions", [{"name": "f", "parameters": {}}]),
        ("metadata", {"a": "b"}),
        ("modalities", ["text", "audio"]),
        ("moderation", {"model": "omni-moderation-latest"}),
        ("prediction", {"type": "content", "content": "Cats"}),
        ("prompt_cache_key", "a"),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
        # Goes into the chat template; the default model's does not read it.
        ("reasoning_effort", "low"),
        ("safety_identifier", "a"),
        ("service_tier", "flex"),
        ("store", True),
        ("user", "a"),
        ("verbosity", "low"),
        ("web_search_options", {}),
    ],
)
def test_ignored_in_chat(ask: Asker, name: str, value: Any) -> None:
    check_ignored(ask, CHAT, **{name: value})


def test_ignored_in_completions(ask: Asker) -> None:
    check_ignored(ask, COMPLETIONS, user="a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("access_programs", ["a"]),
        ("background_options", {"a": 1}),
        ("context_management", [{"type": "compaction", "compact_threshold": 1000}]),
        ("conversation", "conv_1"),
        ("image", {"a": 1}),
        ("include", ["reasoning.encrypted_content"]),
        ("moderation", {"model": "omni-moderation-latest"}),
        ("prompt_cache_key", "a"),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
        ("safety_identifier", "a"),
        ("store", True),
        ("top_logprobs", 2),
    ],
)
def test_ignored_in_responses(ask: Asker, name: str, value: Any) -> None:
    check_ignored(ask, RESPONSES, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tool_calls", 1),
        ("metadata", {"a": "b"}),
        ("reasoning", {"effort": "low"}),
        ("service_tier", "flex"),
        ("text", {"verbosity": "low"}),
        # Without a tool server there is nobody to search.
        ("tools", [{"type": "web_search"}]),
        ("truncation", "auto"),
        ("user", "a"),
    ],
)
def test_repeated_by_responses(ask: Asker, name: str, value: Any) -> None:
    repeated = ("tools", "tool_choice") if name == "tools" else (name,)
    check_ignored(ask, RESPONSES, repeated=repeated, **{name: value})


def test_responses_stream_options(ask: Asker) -> None:
    options: Json = {"stream_options": {"include_obfuscation": False}}
    for k in (None, 1):
        assert ask.stream(RESPONSES, k=k, **options) == ask.stream(RESPONSES, k=k)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache_control", {"type": "ephemeral"}),
        ("container", "a"),
        ("diagnostics", {"a": 1}),
        ("inference_geo", "us"),
        ("metadata", {"user_id": "a"}),
        # Goes into the chat template; the default model's does not read it.
        ("output_config", {"effort": "low"}),
        ("service_tier", "auto"),
        ("speed", "fast"),
        ("thinking", {"type": "adaptive"}),
        ("thinking", {"type": "disabled"}),
        ("user_profile_id", "a"),
        ("workspace_id", "a"),
    ],
)
def test_ignored_in_messages(ask: Asker, name: str, value: Any) -> None:
    check_ignored(ask, ANTHROPIC, **{name: value})


STORE = "VLLM_ENABLE_RESPONSES_API_STORE=1"


@pytest.mark.parametrize(
    ("api", "status", "message", "fields"),
    [
        (CHAT, 400, "cannot be converted to integer", {"logit_bias": {"a": 1}}),
        (CHAT, 400, "n must be at least 1", {"n": 0}),
        (CHAT, 400, "presence_penalty must be in", {"presence_penalty": 5}),
        (CHAT, 400, "body.reasoning_effort", {"reasoning_effort": "much"}),
        (CHAT, 400, "'json_schema' field", {"response_format": {"type": "json_schema"}}),
        (CHAT, 400, "`stream=True`", {"stream_options": {"include_usage": True}}),
        (CHAT, 400, "`tools` must be set", {"tool_choice": "required"}),
        (CHAT, 400, "must not be an empty array", {"tools": []}),
        (CHAT, 400, "`logprobs` must be set", {"top_logprobs": 2}),
        (COMPLETIONS, 400, "max allowed: 20", {"logprobs": 50}),
        (COMPLETIONS, 400, "must be provided", {"prompt": ""}),
        (COMPLETIONS, 400, "FIM completion", {"suffix": "."}),
        (RESPONSES, 400, STORE, {"background": True}),
        (RESPONSES, 400, "body.include.0", {"include": ["web_search_call.action.sources"]}),
        (RESPONSES, 404, "'resp_1' not found", {"previous_response_id": "resp_1"}),
        (RESPONSES, 400, "prompt template is not", {"prompt": {"id": "a"}}),
        (RESPONSES, 400, "body.service_tier", {"service_tier": "fast"}),
        (RESPONSES, 400, "specified with 'tools'", {"tool_choice": "required"}),
        (RESPONSES, 400, "context length is 8192", {"input": TOO_LONG, "truncation": "disabled"}),
        (ANTHROPIC, 400, "body.max_tokens", {"max_tokens": 0}),
        (
            ANTHROPIC,
            400,
            "--reasoning-parser",
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1025},
        ),
        (
            ANTHROPIC,
            400,
            "body.tools.0.input_schema",
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        ),
    ],
)
def test_refused_as_by_vllm(ask: Asker, api: str, status: int, message: str, fields: Json) -> None:
    bare, probed = ask(api, k=None, **fields), ask(api, k=2, **fields)
    assert (bare.status, probed.status) == (status, status)
    assert message in bare.body["error"]["message"]
    assert probed.body == bare.body
