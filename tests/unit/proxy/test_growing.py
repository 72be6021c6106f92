"""What a choice of OpenAI's API is, whole or in pieces, where its content is a list of parts."""

from typing import Any

import pytest

from qprobe_server.proxy.growing import GrowingChoice

Json = dict[str, Any]


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def thinking(*said: str) -> Json:
    return {"type": "thinking", "thinking": [text(each) for each in said]}


def grow(*contents: object) -> Json:
    choice = GrowingChoice()
    for content in contents:
        choice.add({"delta": {"role": "assistant", "content": content}})
    return choice.finish_message()


CONTENT = [
    thinking("I ", "think"),
    text("it is"),
    {"type": "reference", "reference_ids": [1]},
    text(" 7"),
    "odd",
    {"type": "thinking", "thinking": "!"},
    {"type": "text", "text": None},
]
MESSAGE = {"role": "assistant", "content": "it is 7", "reasoning_content": "I think!"}


def test_the_parts_of_an_answer_are_text_and_reasoning() -> None:
    whole = GrowingChoice.of({"message": {"role": "assistant", "content": CONTENT}})
    assert whole.finish_message() == MESSAGE


def test_a_stream_of_parts_is_what_they_are_in_one_piece() -> None:
    assert grow(*([each] for each in CONTENT)) == MESSAGE


def test_pieces_may_be_parts_first_and_text_then() -> None:
    """As Mistral's streams are: lists as long as the model thinks."""
    assert grow("", [thinking("I ")], [thinking("think!")], "it is", " 7") == MESSAGE


@pytest.mark.parametrize("content", ["plain", None])
def test_what_is_no_list_stays_as_it_is(content: str | None) -> None:
    assert grow(content) == {"role": "assistant", "content": content}
