"""What a reader's model does not take, and how it decodes, with an engine that is played."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from qprobe_server.errors import RequestError
from qprobe_server.proxy.reader import Prompt, Written
from qprobe_server.vllm_backend import reader as module
from qprobe_server.vllm_backend.reader import EngineReader
from qprobe_server.vllm_backend.rendering import RenderedAnswer, Rendering

PROMPT = Prompt(text="12")
MOST = 9  # tokens of a prompt and its answer


class Letters:
    """A token a character; an answer with ``!`` cannot be rendered.

    Attributes:
        decoded: The tokens that were, in their order.
        threads: That decoded them.
    """

    def __init__(self) -> None:
        self.decoded: list[int] = []
        self.threads: set[int] = set()

    def prompt(self, prompt: Prompt) -> list[int]:
        return [*map(ord, prompt.text or "")]

    def answer(self, prompt: Prompt, written: Written) -> RenderedAnswer:
        if "!" in written.text:
            raise KeyError(written.text)
        return RenderedAnswer([*map(ord, written.text), 0], len(written.text))

    def decode(self, token: int) -> str:
        self.decoded.append(token)
        self.threads.add(threading.get_ident())
        return chr(token)


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def reader(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> EngineReader:
    async def score(engine: Any, before: Any, tokens: Any, **given: Any) -> list[Any]:
        assert len(given["numbers"]) == len(tokens)
        return [([float(len(each))], [[1.0] * len(each)], None) for each in tokens]

    monkeypatch.setattr(module, "read_completions", score)
    engine: Any = SimpleNamespace(model_config=SimpleNamespace(max_model_len=MOST + 1))
    facts: Any = SimpleNamespace(name="m")
    rendering: Any = letters
    return EngineReader(engine, facts, [], rendering, allow_model_mismatch=False)


async def read(reader: EngineReader, *texts: str, with_tokens: bool = False) -> Any:
    probe: Any = SimpleNamespace(score=None, confidence=None)
    written = [Written(text=text) for text in texts]
    return await reader.read(PROMPT, written, [probe], with_tokens=with_tokens)


async def test_an_answer_that_cannot_be_rendered_costs_no_other_its_score(
    reader: EngineReader, caplog: pytest.LogCaptureFixture
) -> None:
    found = await read(reader, "abc", "secret!", "x" * MOST, "ab")
    assert [each and each.scores for each in found] == [[3], None, None, [2]]
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text
    assert await read(reader, "!") == [None]


async def test_each_token_is_decoded_once_and_beside_the_event_loop(
    reader: EngineReader, letters: Letters
) -> None:
    found = await read(reader, "abca", "cab", with_tokens=True)
    assert [each.tokens for each in found] == [list("abca"), list("cab")]
    assert found[0].token_scores == [(1,)] * 4
    assert sorted(letters.decoded) == [*map(ord, "abc")]
    assert threading.get_ident() not in letters.threads
    letters.decoded.clear()
    await read(reader, "abca")
    assert not letters.decoded


@pytest.mark.parametrize(("text", "says"), [("", "at least one"), ("x" * (MOST + 1), "at most")])
async def test_a_prompt_of_no_tokens_or_too_many_is_refused(
    reader: EngineReader, text: str, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        await reader.check_prompt(Prompt(text=text))
    assert (caught.value.param, caught.value.status) == ("prompt", 400)
    await reader.check_prompt(PROMPT)


class Template:
    """A renderer that writes each message as ``role:content;`` and counts how often it does."""

    tokenizer = None

    def __init__(self) -> None:
        self.num_rendered = 0

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            eos_token_id=None, encode=lambda text, **_: [*map(ord, text)], decode=None
        )

    def render_messages(self, messages: Any, params: Any) -> Any:
        self.num_rendered += 1
        turns = "".join(
            f"{each['role']}:{each.get('reasoning', '')}{each['content']};" for each in messages
        )
        opens = params.chat_template_kwargs["add_generation_prompt"]
        return None, {"prompt": turns + ("assistant:" if opens else "")}


def test_what_stands_around_the_answers_to_a_prompt_is_rendered_once() -> None:
    template: Any = Template()
    rendering = Rendering(template, None)
    for content in ("a", "b", "a"):
        prompt = Prompt(messages=[{"role": "user", "content": content}])
        template.num_rendered = 0
        for index in range(3):
            message = {"role": "assistant", "content": f"{index}", "reasoning": "so "}
            found = rendering.answer(prompt, Written(text=f"{index}", message=message))
            assert "".join(map(chr, found.token_ids)) == f"so {index}"
        assert template.num_rendered == 3 + 2
