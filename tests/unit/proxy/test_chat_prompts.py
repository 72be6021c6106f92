"""Answers that go on with a message, and arguments of templates: what the reader hears of them."""

from typing import Any

import pytest

from qprobe_server.proxy.chat_text import write_prompt
from qprobe_server.proxy.reader import Prompt

Json = dict[str, Any]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
BEGUN: Json = {"role": "assistant", "content": "It is"}
USER: Json = {"role": "user", "content": "hi"}
ON: Json = {"continue_final_message": True, "add_generation_prompt": False}


async def read(setting: Any, path: str, *messages: Json, **fields: Any) -> Prompt:
    """Return what the reader is asked to read."""
    body = {"model": "m:good", "max_tokens": 9, "messages": list(messages), **fields}
    async with setting.open() as proxy:
        reply = await proxy.post(path, json=body)
    assert reply.status_code == 200, reply.text
    prompt: Prompt = setting.reader.prompts[0]
    return prompt


@pytest.mark.parametrize(
    ("last", "fields", "continues"),
    [
        (BEGUN, ON, True),
        ({**BEGUN, "prefix": True}, {}, True),
        ({**BEGUN, "prefix": False}, {"continue_final_message": False}, False),
        (BEGUN, {}, False),
        (USER, {"add_generation_prompt": True}, False),
    ],
)
@pytest.mark.parametrize("text", [" four", "It is four"])
async def test_a_chat_may_go_on_with_the_last_message(
    setting: Any, make: Any, last: Json, fields: Json, text: str, *, continues: bool
) -> None:
    """Whether the upstream repeats it or not, it is of the prompt and is read there."""
    setting.stub.answer = make.answer_with(make.complete(text))
    prompt = await read(setting, CHAT, USER, last, **fields)
    assert prompt.continues == continues
    expected = " four" if continues else text
    for written in setting.reader.completions:
        assert written.text == expected
        assert written.message["content"] == expected


@pytest.mark.parametrize("continues", [True, False])
async def test_an_answer_of_anthropics_goes_on_with_what_is_begun(
    setting: Any, make: Any, *, continues: bool
) -> None:
    reply = {"content": [{"type": "text", "text": " four"}], "usage": {}, "stop_reason": "end_turn"}
    setting.stub.answer = make.answer_with(reply)
    prompt = await read(setting, MESSAGES, USER, *([BEGUN] if continues else []))
    assert prompt.continues == continues


async def test_arguments_of_the_template_reach_the_readers(setting: Any) -> None:
    """As vLLM hands them to its own."""
    given = {"enable_thinking": False, "own": [1]}
    fields = {"chat_template_kwargs": given, "documents": [{"text": "d"}]}
    prompt = await read(setting, CHAT, USER, **fields, reasoning_effort="low")
    assert prompt.template_arguments == {
        **given,
        "documents": [{"text": "d"}],
        "reasoning_effort": "low",
    }
    setting.reader.prompts.clear()
    prompt = await read(setting, CHAT, USER, reasoning_effort="none")
    assert prompt.template_arguments == {"reasoning_effort": "none", "enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        (ON, "messages"),
    ],
)
async def test_what_no_reader_can_follow_is_refused(setting: Any, fields: Json, param: str) -> None:
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json={"model": "m:good", "messages": [USER], **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert setting.stub.bodies == []


def test_a_chat_that_goes_on_ends_as_text_where_the_answer_does() -> None:
    chat = [USER, BEGUN]
    assert write_prompt(Prompt(messages=chat)) == "user: hi\n\nassistant: It is\n\nassistant: "
    assert write_prompt(Prompt(messages=chat, continues=True)) == "user: hi\n\nassistant: It is"
