"""What a reranked request becomes behind the proxy, and what comes back."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.responses import Response

from qprobe import Probe, save_probe
from qprobe.probe.confidence import Confidence, Platt
from qprobe_server.library.registry import read_probe
from qprobe_server.settings import Settings

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
TEXTS = ["a", "the longest", "bb", "ccc"]
MESSAGES = [{"role": "user", "content": "hi"}]
ASK: Json = {"model": "m:good", "messages": MESSAGES, "seed": 5, "logprobs": True}


def read_data(text: str) -> list[Json]:
    """Return the data of a stream's events but the last, which must be its end."""
    *events, end = [each.removeprefix("data: ") for each in text.split("\n\n") if each]
    assert end == "[DONE]"
    return [json.loads(each) for each in events]


async def test_the_best_of_k_is_returned_as_the_upstream_wrote_it(setting: Any, make: Any) -> None:
    setting.stub.answer = make.by_seed(*TEXTS, first=5)
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json=ASK)).json()
    told = reply.pop("q_probe")
    assert reply == {**make.complete(TEXTS[1]), "model": "m:good"}
    assert (told["k"], told["beta"]) == (4, 0)
    assert "notice" not in told
    (result,) = told["results"]
    assert result["selected"] == [1]
    assert result["scores"] == [1, 11, 2, 3]
    assert result["sampled_tokens"] == 17
    assert result["sampled_usage"] == {
        "prompt_tokens": 28,
        "completion_tokens": 17,
        "total_tokens": 45,
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


async def test_candidates_are_asked_for_as_the_client_asks(setting: Any, make: Any) -> None:
    """Each once, with a seed and ids of its own; nothing of ours, nor of the client's key."""
    setting.stub.answer = make.by_seed(*TEXTS, first=5)
    ids = ("x-request-id", "Idempotency-Key")
    headers = {"authorization": "Bearer mine", "x-other": "passed", **dict.fromkeys(ids, "one")}
    async with setting.open(keys={None: (b"x-api-key", b"theirs")}) as proxy:
        await proxy.post(CHAT, json={**ASK, "n": 1, "own_field": {"é": None}}, headers=headers)
    same = {"model": "m", "messages": MESSAGES, "logprobs": True, "own_field": {"é": None}}
    assert sorted(each["seed"] for each in setting.stub.bodies) == [5, 6, 7, 8]
    assert all(each == {**same, "seed": each["seed"]} for each in setting.stub.bodies)
    for name in ids:
        sent = {each[name] for each in setting.stub.headers}
        assert sent == {f"one-0-{index}" for index in range(4)}
    for each in setting.stub.headers:
        assert (each["x-api-key"], each["x-other"]) == ("theirs", "passed")
        assert "authorization" not in each


async def test_a_reply_may_be_laid_out_as_the_upstream_likes(setting: Any, make: Any) -> None:
    """DeepSeek sends empty lines until it has an answer; others indent what they send."""
    laid_out = f"\n\n \r\n{json.dumps(make.complete('x'), indent=1)}\n"
    setting.stub.answer = make.answer_with(
        lambda: Response(laid_out, media_type="application/json")
    )
    body = {**ASK, "q_probe": {}}
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json=body)).json()
        assert (reply["model"], reply["q_probe"]["k"]) == ("m:good", 4)
        for first in ("data:  ", "data: "):
            chunk, *others = make.chunks("x")
            lines = json.dumps(chunk, indent=1).replace("\n", "\ndata: ")
            parts = [f"{first}{lines}\n\n", *others]
            setting.stub.answer = make.answer_with(lambda parts=parts: make.stream(parts))
            text = (await proxy.post(CHAT, json={**body, "stream": True})).text
            *events, told = read_data(text.replace("\ndata: ", "\n"))
            assert {each["model"] for each in events} == {"m:good"}
            assert (told["model"], told["q_probe"]["k"]) == ("m:good", 4)


async def test_a_stream_replays_the_winners_own_chunks(setting: Any, make: Any) -> None:
    setting.stub.answer = make.by_seed(*TEXTS)
    body = {**ASK, "model": "m", "seed": 0, "stream": True, "q_probe": {"probe": "good"}}
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, last = read_data(reply.text)
    assert events == make.chunks(TEXTS[1])[:-2]  # but for the usage that nobody has asked for
    assert last["choices"] == []
    assert last["q_probe"]["results"][0]["selected"] == [1]
    assert all(each["stream_options"] == {"include_usage": True} for each in setting.stub.bodies)
    assert last["q_probe"]["results"][0]["sampled_usage"]["completion_tokens"] == 17


async def test_a_stream_has_its_usage_where_the_client_wants_it(setting: Any, make: Any) -> None:
    setting.stub.answer = make.by_seed(*TEXTS)
    body = {**ASK, "seed": 0, "stream": True, "stream_options": {"include_usage": True}}
    async with setting.open() as proxy:
        events = read_data((await proxy.post(CHAT, json=body)).text)
    alias = [{**each, "model": "m:good"} for each in make.chunks(TEXTS[1])[:-1]]
    assert events == alias


async def test_a_server_without_streams_is_streamed_in_one_piece(setting: Any, make: Any) -> None:
    setting.stub.answer = make.answer_with(make.complete("whole"))
    async with setting.open() as proxy:
        client = openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="none")
        stream = await client.chat.completions.create(**{**ASK, "stream": True})
        deltas = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
    assert deltas == ["whole"]


async def test_n_answers_come_from_n_candidates(setting: Any, make: Any) -> None:
    """Under one id, numbered anew; the prompt counts once, as in a reply of n choices."""
    setting.stub.answer = make.by_seed(*TEXTS, first=5)
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "n": 2})).json()
    assert [each["index"] for each in reply["choices"]] == [0, 1]
    assert [each["message"]["content"] for each in reply["choices"]] == [TEXTS[1], TEXTS[3]]
    assert reply["q_probe"]["results"][0]["selected"] == [1, 3]
    assert reply["usage"]["prompt_tokens"] == 7
    assert reply["usage"]["completion_tokens"] == 14
    assert reply["usage"]["total_tokens"] == 21
    assert reply["id"] == make.complete(TEXTS[1])["id"]


async def test_n_streamed_answers_share_one_envelope(setting: Any, make: Any) -> None:
    setting.stub.answer = make.by_seed(*TEXTS, first=5)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with setting.open() as proxy:
        events = read_data((await proxy.post(CHAT, json={**ASK, "n": 2, **options})).text)
    texts = ["", ""]
    for event in events[:-1]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [TEXTS[1], TEXTS[3]]
    assert {event["id"] for event in events} == {f"c-{TEXTS[1][:8]}"}
    assert events[-1]["usage"]["completion_tokens"] == 14


async def test_tools_reasoning_and_logprobs_reach_reader_and_client(
    setting: Any, make: Any
) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls, "reasoning": "think"}
    logprobs = {"content": [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    choice = {"message": message, "finish_reason": "tool_calls", "logprobs": logprobs}
    setting.stub.answer = make.answer_with(make.complete("", **choice))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "tools": tools})).json()
    assert reply["choices"] == [{"index": 0, **choice}]
    assert list(setting.reader.prompts[0].tools) == tools
    written = setting.reader.completions[0]
    assert written.logprobs == [-0.5]
    assert written.finish_reason == "tool_calls"
    assert written.message == {
        "role": "assistant",
        "content": None,
        "tool_calls": calls,
        "reasoning_content": "think",
    }


NUMBERINGS: dict[str, Json] = {
    "numbered": {},
    "without numbers": {"index": ...},
    "numbers are null": {"index": None},
}


@pytest.mark.parametrize("own", NUMBERINGS.values(), ids=NUMBERINGS.keys())
@pytest.mark.parametrize("repeats_id", [False, True])
async def test_streamed_tool_calls_are_put_together_for_the_reader(
    setting: Any, make: Any, own: Json, *, repeats_id: bool
) -> None:
    """Not every server numbers them; some say the id with every piece."""

    def chunk(**delta: Any) -> Json:
        for call in delta.get("tool_calls", ()):
            if repeats_id:
                call["id"] = f"c{call['index'] + 1}"
            call |= own
            if call["index"] is ...:
                del call["index"]
        return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    deltas = [
        chunk(role="assistant", content=None, reasoning_content="th"),
        chunk(reasoning_content="ink"),
        chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        chunk(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]),
    ]
    parts = [*deltas, "data: [DONE]\n\n"]
    setting.stub.answer = make.answer_with(lambda: make.stream(parts))
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json={**ASK, "stream": True})
    assert read_data(reply.text) == deltas
    functions = [{"name": "f", "arguments": '{"a": 1}'}, {"name": "g", "arguments": "{}"}]
    assert setting.reader.completions[0].message == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "think",
        "tool_calls": [
            {"id": f"c{index}", "type": "function", "function": function}
            for index, function in enumerate(functions, start=1)
        ],
    }


async def test_texts_are_reranked_prompt_by_prompt(setting: Any, make: Any) -> None:
    """Of two prompts, two answers each; ``best_of`` is k, and ``echo`` is not read."""

    async def answer(request: Any, body: Json, number: int) -> Any:
        text = body["prompt"] + "x" * (body["seed"] + 1)
        choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return make.json({"id": "t", "model": "m", "choices": [choice], "usage": usage})

    setting.stub.answer = answer
    body = {"model": "m:good", "prompt": ["p", "q"], "n": 2, "best_of": 3, "echo": True, "seed": 0}
    async with setting.open() as proxy:
        reply = (await proxy.post("/v1/completions", json=body)).json()
    assert [each["text"] for each in reply["choices"]] == ["pxxx", "pxx", "qxxx", "qxx"]
    assert [each["index"] for each in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    assert [each["scores"] for each in reply["q_probe"]["results"]] == [[1, 2, 3]] * 2
    assert {prompt.text for prompt in setting.reader.prompts} == {"p", "q"}
    assert "best_of" not in setting.stub.bodies[0]


async def test_upstreams_that_honour_n_are_asked_once(setting: Any, make: Any) -> None:
    """What the winner alone has used nobody says: the usage is what is paid."""
    reply = make.complete("")
    reply["choices"] = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(TEXTS)
    ]
    setting.stub.answer = make.answer_with(reply)
    async with setting.open(has_n=True) as proxy:
        got = (await proxy.post(CHAT, json=ASK)).json()
    assert [each["n"] for each in setting.stub.bodies] == [4]
    assert [each["message"]["content"] for each in got["choices"]] == [TEXTS[1]]
    assert got["choices"][0]["index"] == 0
    assert got["usage"] == reply["usage"] == got["q_probe"]["results"][0]["sampled_usage"]


async def test_choices_of_one_stream_are_told_apart(setting: Any, make: Any) -> None:
    """As an upstream that honours ``n`` mixes them; the winner's alone are replayed."""
    parts: list[Any] = []
    for index, text in enumerate(TEXTS):
        for chunk in make.chunks(text)[:-2]:
            parts.append({**chunk, "choices": [{**chunk["choices"][0], "index": index}]})
    parts.sort(key=lambda part: not part["choices"][0]["delta"])  # all ends at the end
    setting.stub.answer = make.answer_with(lambda: make.stream([*parts, *make.chunks("")[-2:]]))
    async with setting.open(has_n=True) as proxy:
        events = read_data((await proxy.post(CHAT, json={**ASK, "stream": True})).text)
    choices = [each["choices"][0] for each in events]
    assert {each["index"] for each in choices} == {0}
    assert "".join(each["delta"].get("content", "") for each in choices) == TEXTS[1]
    assert choices[-1]["finish_reason"] == "stop"


async def test_greedy_is_one_candidate(setting: Any) -> None:
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "temperature": 0})).json()
    assert len(setting.stub.bodies) == 1
    assert "greedy" in reply["q_probe"]["notice"]


async def test_every_candidate_is_shown_with_its_tokens(setting: Any, make: Any) -> None:
    setting.stub.answer = make.by_seed(*TEXTS)
    body = {**ASK, "model": "m", "seed": 0, "q_probe": {"probe": {"good": 1, "kind": 2}}}
    body["q_probe"]["return_token_scores"] = True
    async with setting.open() as proxy:
        (result,) = (await proxy.post(CHAT, json=body)).json()["q_probe"]["results"]
    assert [each["text"] for each in result["candidates"]] == TEXTS
    assert [each["num_tokens"] for each in result["candidates"]] == [1, 11, 2, 3]
    assert result["candidates"][2]["tokens"] == ["b", "b"]
    assert result["candidates"][2]["token_scores"] == [3, 3]
    assert result["scores"] == [3, 33, 6, 9]


async def test_lengths_that_nobody_tells_are_unknown(setting: Any, make: Any) -> None:
    setting.stub.answer = make.answer_with({**make.complete("abc"), "usage": None})
    body = {**ASK, "q_probe": {"return_candidates": True}}
    async with setting.open() as proxy:
        (result,) = (await proxy.post(CHAT, json=body)).json()["q_probe"]["results"]
        counted = (await proxy.get("/metrics")).text
    assert [each["num_tokens"] for each in result["candidates"]] == [None] * 4
    assert (result["sampled_tokens"], result["sampled_usage"]) == (None, None)
    assert "qprobe_sampled_tokens_total{" not in counted


async def test_of_several_choices_nobody_tells_what_the_losers_had(setting: Any, make: Any) -> None:
    (choice,) = make.complete("abc")["choices"]
    choices = [{**choice, "index": index} for index in range(4)]
    setting.stub.answer = make.answer_with({**make.complete("abc"), "choices": choices})
    async with setting.open(has_n=True) as proxy:
        (result,) = (await proxy.post(CHAT, json=ASK)).json()["q_probe"]["results"]
        counted = (await proxy.get("/metrics")).text
    assert result["sampled_tokens"] == 3
    assert 'qprobe_sampled_tokens_total{probe="good"} 3.0' in counted
    assert "qprobe_rejected_tokens_total{" not in counted


async def test_a_reader_without_token_scores_says_so(setting: Any) -> None:
    """As embeddings are: the page, which always asks for them, still works."""
    setting.reader.gives_token_scores = False
    body = {**ASK, "q_probe": {"return_token_scores": True}}
    async with setting.open() as proxy:
        told = (await proxy.post(CHAT, json=body)).json()["q_probe"]
    assert "single tokens" in told["notice"]
    assert "tokens" not in told["results"][0]["candidates"][0]


async def test_candidates_may_vote(setting: Any, make: Any) -> None:
    setting.stub.answer = make.by_seed("it is 7", "exactly 1234567", "so 7", "7")
    q_probe = {"vote": {"by": "numeric"}}
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "seed": 0, "q_probe": q_probe})).json()
        counted = (await proxy.get("/metrics")).text
    for name in ("votes_total", "vote_seconds_count"):
        assert f'qprobe_{name}{{by="numeric"}} 1.0' in counted
    vote = reply["q_probe"]["results"][0]["vote"]
    one, other = vote["classes"][0], vote["classes"][1]
    assert vote["classes"] == [one, other, one, one]


async def test_calls_of_tools_vote_and_are_shown(setting: Any, make: Any) -> None:
    def call(arguments: str) -> Json:
        function = {"name": "f", "arguments": arguments}
        calls = [{"id": "c", "type": "function", "function": function}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        made: Json = make.complete("", message=message, finish_reason="tool_calls")
        return made

    setting.stub.answer = make.answer_with(
        call('{"a": 1}'), call('{"a": 2}'), call('{ "a": 1 }'), call('{"a": 1}')
    )
    q_probe = {"vote": {"by": "json"}, "return_candidates": True}
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "q_probe": q_probe})).json()["q_probe"]
    (result,) = reply["results"]
    assert "notice" not in reply
    assert sorted(Counter(result["vote"]["classes"]).values()) == [1, 3]
    assert {each["text"] for each in result["candidates"]} == {
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "f", "arguments": {"a": 2}}',
    }


@pytest.mark.parametrize("has_own", [False, True])
async def test_a_probe_says_how_sure_it_is(
    setting: Any, make: Any, tmp_path: Path, *, has_own: bool
) -> None:
    """By its score; where it takes other terms, which this reader does not read, it says so."""
    good = setting.probes[0].probe
    sure = Confidence(Platt(1, -3), good.terms if has_own else None)
    save_probe(Probe(good.info, good.terms, confidence=sure), tmp_path / "sure")
    setting.probes.append(read_probe("sure", (tmp_path / "sure").read_bytes()))
    setting.stub.answer = make.by_seed(*TEXTS, first=5)
    async with setting.open() as proxy:
        told = (await proxy.post(CHAT, json={**ASK, "model": "m:sure"})).json()["q_probe"]
    if has_own:
        assert "confidence" in told["notice"]
        assert "confidence" not in told["results"][0]
    else:
        wanted = [1 / (1 + math.exp(3 - len(text))) for text in TEXTS]
        assert told["results"][0]["confidence"] == pytest.approx(wanted)


REFUSED: list[tuple[Json, int, str]] = [
    ({"q_probe": {"schedule": "default"}}, 400, "q_probe.schedule"),
    ({"q_probe": {"schedule": [{"tokens": 8, "keep": 1}]}}, 400, "q_probe.schedule"),
    ({"q_probe": {"k": 65}}, 400, "q_probe.k"),
    ({"q_probe": {"probe": "none"}}, 404, "q_probe.probe"),
    ({"n": 5}, 400, "n"),
    ({"n": 0}, 400, "n"),
    ({"n": -1}, 400, "n"),
    ({"n": 1.5}, 400, "n"),
    ({"n": "many"}, 400, "n"),
    ({"n": 2, "temperature": 0}, 400, "n"),
    ({"messages": []}, 400, "messages"),
    ({"messages": ["x"]}, 400, "messages.0"),
    ({"messages": [{"role": "user", "content": "bad"}]}, 400, "messages"),
]


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED)
async def test_what_is_refused_is_not_sampled(
    setting: Any, fields: Json, status: int, param: str
) -> None:
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json={**ASK, **fields})
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["param"] == param
    assert setting.stub.bodies == []


@pytest.mark.parametrize("prompt", [[1, 2], [[1], [2]], [], None, ["a", 1]])
async def test_tokens_of_the_upstream_are_refused(setting: Any, prompt: object) -> None:
    async with setting.open() as proxy:
        reply = await proxy.post("/v1/completions", json={"model": "m:good", "prompt": prompt})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions/batch"])
async def test_routes_that_are_not_reranked_refuse_probes(setting: Any, path: str) -> None:
    async with setting.open() as proxy:
        reply = await proxy.post(path, json={"model": "m:good"})
        assert reply.status_code == 400
        assert (await proxy.post(path, json={"model": "m"})).status_code == 200
    assert setting.stub.bodies == [{"model": "m"}]


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain", "a/b"])
async def test_a_probe_is_found_whatever_the_body_says_that_it_is(
    setting: Any, kind: str | None
) -> None:
    """As curl sends JSON that nobody has told it of; an upstream may read it all the same."""
    headers = {} if kind is None else {"content-type": kind}
    async with setting.open(budget_tokens=100) as proxy:

        async def post(path: str, **fields: Any) -> Any:
            raw = json.dumps({**ASK, **fields}).encode()
            return await proxy.post(path, content=raw, headers=headers)

        assert (await post(CHAT, max_tokens=26)).json()["error"]["param"] == "max_tokens"
        assert (await post(CHAT, max_tokens=25)).json()["q_probe"]["k"] == 4
        assert (await post("/v1/responses")).json()["error"]["param"] == "model"
        await post("/tokenize")
    assert [each["model"] for each in setting.stub.bodies] == ["m"] * 5


async def test_what_is_no_json_is_refused_where_a_probe_could_be_asked_for(setting: Any) -> None:
    async with setting.open() as proxy:
        for path in (CHAT, "/v1/responses", "/tokenize"):
            reply = await proxy.post(path, data={"model": "m:good"})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "body")
    assert setting.stub.bodies == []


WITHIN_BUDGET: list[Json] = [
    {"max_tokens": 25},
    {"max_completion_tokens": 1},
    {"max_completion_tokens": None, "max_tokens": 1},
    {"max_completion_tokens": 25, "max_tokens": 24},
]
# With the field that is named and its value.
BEYOND_BUDGET: list[tuple[Json, str, str]] = [
    ({}, "max_tokens", "None"),
    ({"max_tokens": None}, "max_tokens", "None"),
    ({"max_tokens": 26}, "max_tokens", "26"),
    ({"max_tokens": -1}, "max_tokens", "-1"),
    ({"max_tokens": 0}, "max_tokens", "0"),
    ({"max_tokens": True}, "max_tokens", "True"),
    ({"max_tokens": 2.5}, "max_tokens", "2.5"),
    ({"max_completion_tokens": "9"}, "max_completion_tokens", "'9'"),
    ({"max_completion_tokens": 1, "max_tokens": 99999}, "max_tokens", "99999"),
    ({"max_completion_tokens": 26, "max_tokens": 1}, "max_completion_tokens", "26"),
    ({"max_completion_tokens": -1, "max_tokens": 1}, "max_completion_tokens", "-1"),
]


@pytest.mark.parametrize("fields", WITHIN_BUDGET)
async def test_a_budget_lets_candidates_through(setting: Any, fields: Json) -> None:
    async with setting.open(budget_tokens=100) as proxy:
        assert (await proxy.post(CHAT, json={**ASK, **fields})).status_code == 200
    assert len(setting.stub.bodies) == 4


@pytest.mark.parametrize(("fields", "param", "value"), BEYOND_BUDGET)
async def test_a_budget_bounds_all_candidates(
    setting: Any, fields: Json, param: str, value: str
) -> None:
    async with setting.open(budget_tokens=100) as proxy:
        reply = await proxy.post(CHAT, json={**ASK, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    assert error["message"].endswith(f"got {value}")
    assert setting.stub.bodies == []


async def test_a_text_to_complete_has_to_say_its_bound_too(setting: Any) -> None:
    """OpenAI's default is 16 tokens, and llama.cpp's is as many as it likes."""
    body = {"model": "m:good", "prompt": "x", "seed": 0}
    async with setting.open(budget_tokens=100) as proxy:
        reply = await proxy.post("/v1/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "max_tokens")
    assert setting.stub.bodies == []


@pytest.mark.parametrize(("prompts", "k", "is_fine"), [(65, 64, False), (2, 1, True)])
async def test_a_request_has_so_many_candidates_in_all(
    setting: Any, make: Any, prompts: int, k: int, *, is_fine: bool
) -> None:
    choice = {"index": 0, "text": "x", "finish_reason": "stop"}
    setting.stub.answer = make.answer_with({"id": "t", "choices": [choice]})
    body = {"model": "m", "prompt": ["x"] * prompts, "q_probe": {"probe": "good", "k": k}}
    async with setting.open() as proxy:
        reply = await proxy.post("/v1/completions", json=body)
    if is_fine:
        assert reply.status_code == 200
        assert len(setting.stub.bodies) == prompts * k
    else:
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "prompt")
        assert "65 prompts with k=64 are 4160 candidates, a request may have 4096" in str(error)
        assert setting.stub.bodies == []


async def test_a_colon_may_belong_to_the_model(setting: Any) -> None:
    """As in Ollama's names: what stands behind it is no probe."""
    settings = Settings(default_probe="good")
    async with setting.open(settings=settings) as proxy:
        for model in ("llama:1b", "llama:1b:kind"):
            told = (await proxy.post(CHAT, json={**ASK, "model": model})).json()["q_probe"]
            assert told["probe"] == ("kind" if model.endswith("kind") else "good")
    assert {each["model"] for each in setting.stub.bodies} == {"llama:1b"}
