"""Anthropic's Messages before an upstream of Anthropic's API, by its own client."""

import json
from typing import Any

import anthropic
import pytest

from qprobe_server.proxy.anthropic_chat import convert_answer, convert_chat, convert_tools

Json = dict[str, Any]
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
ASK: Json = {
    "model": "claude",
    "max_tokens": 20,
    "system": [{"type": "text", "text": "Be brief."}],
    "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}],
    "messages": [{"role": "user", "content": "hi"}],
    "extra_body": {"q_probe": {"probe": "good", "k": 3}},
}
CONTENT: list[Json] = [
    {"type": "thinking", "thinking": "think", "signature": "s"},
    {"type": "text", "text": "the answer"},
    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1]}},
]


def message(content: list[Json], *, output_tokens: int = 5) -> Json:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-2026",
        "content": content,
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": output_tokens},
    }


def events(content: list[Json]) -> list[str]:
    """Return a message's stream, each block in two pieces."""
    start = {**message([]), "stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 1}}
    made: list[Json] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    names = {"text": "text", "thinking": "thinking", "tool_use": "input"}
    for index, block in enumerate(content):
        name = names[block["type"]]
        empty: Any = {} if name == "input" else ""
        made.append(
            {"type": "content_block_start", "index": index, "content_block": {**block, name: empty}}
        )
        text = json.dumps(block["input"]) if name == "input" else block[name]
        kind, key = ("input_json", "partial_json") if name == "input" else (name, name)
        for piece in (text[:4], text[4:]):
            delta = {"type": f"{kind}_delta", key: piece}
            made.append({"type": "content_block_delta", "index": index, "delta": delta})
        made.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": "tool_use", "stop_sequence": None}
    made.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}})
    made.append({"type": "message_stop"})
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in made]


def connect(proxy: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=str(proxy.base_url), api_key="none", max_retries=0)


async def test_the_best_message_is_returned_as_it_is(setting: Any, make: Any) -> None:
    texts = ["a", "bbb", "cc"]
    replies = [message([{"type": "text", "text": text}], output_tokens=len(text)) for text in texts]
    setting.stub.answer = make.answer_with(*replies)
    async with setting.open() as proxy:
        reply: Json = (await connect(proxy).messages.create(**ASK)).to_dict()
    told = reply.pop("q_probe")
    assert reply == replies[1]
    assert told["results"][0]["sampled_usage"] == {"input_tokens": 27, "output_tokens": 6}
    assert told["results"][0]["sampled_tokens"] == 6
    assert setting.stub.paths == ["/v1/messages"] * 3


async def test_tokens_of_messages_that_cannot_be_read_count_too(setting: Any, make: Any) -> None:
    texts = ["a", "bbb", "cc"]
    replies = [message([{"type": "text", "text": text}], output_tokens=len(text)) for text in texts]
    setting.stub.answer = make.answer_with(*replies)
    setting.reader.too_long = 2
    async with setting.open() as proxy:
        reply: Json = (await connect(proxy).messages.create(**ASK)).to_dict()
    (result,) = reply["q_probe"]["results"]
    assert len(result["scores"]) == 2
    assert result["sampled_tokens"] == 6


async def test_the_winners_events_are_replayed(setting: Any, make: Any) -> None:
    setting.stub.answer = make.answer_with(lambda: make.stream(events(CONTENT)))
    async with (
        setting.open() as proxy,
        connect(proxy).messages.stream(**{**ASK, "model": "claude:good"}) as stream,
    ):
        final = await stream.get_final_message()
    reply: Json = final.to_dict()
    assert reply["model"] == "claude:good"
    assert [block["type"] for block in reply["content"]] == [each["type"] for each in CONTENT]
    assert reply["content"][2]["input"] == CONTENT[2]["input"]
    assert final.usage.output_tokens == 5


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_reader_gets_openais_words(setting: Any, make: Any, *, is_stream: bool) -> None:
    whole = make.answer_with(message(CONTENT))
    setting.stub.answer = make.answer_with(lambda: make.stream(events(CONTENT)))
    if not is_stream:
        setting.stub.answer = whole
    body = {name: value for name, value in ASK.items() if name != "extra_body"}
    body |= {**ASK["extra_body"], "stream": is_stream}
    async with setting.open() as proxy:
        assert (await proxy.post("/v1/messages", json=body)).status_code == 200
    (prompt, *_), (written, *_) = setting.reader.prompts, setting.reader.completions
    assert prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    function = {"name": "f", "description": "d", "parameters": TOOL["input_schema"]}
    assert prompt.tools == [{"type": "function", "function": function}]
    assert (written.text, written.finish_reason, written.num_tokens) == (
        "the answer",
        "tool_calls",
        5,
    )
    call = {"name": "f", "arguments": '{"a": [1]}'}
    assert written.message == {
        "role": "assistant",
        "content": "the answer",
        "reasoning_content": "think",
        "tool_calls": [{"id": "t1", "type": "function", "function": call}],
    }


@pytest.mark.parametrize("cut", ['{"a": [1', '{"a": "\\u00e', '"', "1", '"a"'])
async def test_a_call_that_was_cut_is_scored_as_it_is(setting: Any, make: Any, cut: str) -> None:
    """Where ``max_tokens`` ends it: the candidate stays, with the text of its arguments."""
    start, ping, begun, *_, stopped, _, stop = events(CONTENT[2:])
    delta = {"type": "input_json_delta", "partial_json": cut}
    piece = {"type": "content_block_delta", "index": 0, "delta": delta}
    end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {}}
    cut_off, ended = (f"data: {json.dumps(each)}\n\n" for each in (piece, end))
    parts = [start, ping, begun, cut_off, stopped, ended, stop]
    setting.stub.answer = make.answer_with(lambda: make.stream(parts))
    body = {name: value for name, value in ASK.items() if name != "extra_body"}
    async with setting.open() as proxy:
        reply = await proxy.post("/v1/messages", json={**body, **ASK["extra_body"], "stream": True})
    assert reply.status_code == 200, reply.text
    assert json.dumps(piece) in reply.text
    (written, *_) = setting.reader.completions
    assert written.finish_reason == "length"
    assert written.message is not None
    (call,) = written.message["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": cut}


async def test_a_stream_that_ends_with_an_error_fails(setting: Any, make: Any) -> None:
    overloaded = 'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}\n\n'
    for parts in ([*events(CONTENT)[:4], overloaded], events(CONTENT)[:-1]):
        setting.stub.answer = make.answer_with(lambda parts=parts: make.stream(parts))
        async with setting.open() as proxy:
            with pytest.raises(anthropic.APIStatusError) as failed:
                async with connect(proxy).messages.stream(**ASK) as stream:
                    await stream.get_final_message()
        assert failed.value.status_code == 502


def test_chats_with_results_of_tools_are_converted() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1"}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": CONTENT[1:]},
        {
            "role": "user",
            "content": [
                {**result, "content": [{"type": "text", "text": "42"}]},
                {"type": "text", "text": "well?"},
            ],
        },
        {"role": "user", "content": [result]},
    ]
    call = {"name": "f", "arguments": '{"a": [1]}'}
    assert convert_chat(None, chat) == [
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "the answer",
            "tool_calls": [{"id": "t1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "42"},
        {"role": "user", "content": "well?"},
        {"role": "tool", "tool_call_id": "t1", "content": ""},
    ]


def test_images_become_parts() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    (message,) = convert_chat(
        None, [{"role": "user", "content": [{"type": "image", "source": source}]}]
    )
    url = "data:image/png;base64,AAAA"
    assert message["content"] == [{"type": "image_url", "image_url": {"url": url}}]


def test_blocks_of_the_upstreams_own_tools_are_left_out_of_an_answer() -> None:
    blocks = [{"type": "server_tool_use", "id": "s"}, {"type": "text", "text": "found"}]
    assert convert_answer(blocks) == {"role": "assistant", "content": "found"}


BAD: list[tuple[object, str]] = [
    ("x", "messages.0"),
    ({"role": "system", "content": "x"}, "messages.0"),
    ({"role": "user", "content": 1}, "messages.0.content"),
    ({"role": "user", "content": ["x"]}, "messages.0.content.0"),
    ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0"),
    ({"role": "user", "content": [{"type": "document"}]}, "messages.0.content.0"),
    (
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [1]}]},
        "messages.0.content.0",
    ),
]


@pytest.mark.parametrize(("content", "param"), BAD)
async def test_what_cannot_be_read_is_refused(setting: Any, content: object, param: str) -> None:
    body = {"model": "m:good", "max_tokens": 1, "messages": [content]}
    async with setting.open() as proxy:
        reply = await proxy.post("/v1/messages", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert setting.stub.bodies == []


async def test_several_answers_are_refused(setting: Any) -> None:
    """The API has no such field, so that nobody would get them."""
    body = {"model": "m:good", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    async with setting.open() as proxy:
        reply = await proxy.post("/v1/messages", json={**body, "n": 2})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "n")
    assert setting.stub.bodies == []


def test_what_is_no_list_of_tools_is_none() -> None:
    assert convert_tools(None) == convert_tools("x") == convert_tools([1]) == []
