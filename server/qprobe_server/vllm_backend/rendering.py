"""Chats and completions of another model as tokens of the model here, by its own chat template.

Relies on vLLM 0.32.0: ``BaseRenderer.render_messages, tokenize_prompt, get_tokenizer``
(renderers/base.py) and ``TokenizeParams`` (renderers/params.py), by which the HTTP routes render
too, and ``ChatCompletionToolsParam`` (entrypoints/openai/chat_completion/protocol.py), whose dump
is what these hand to the template.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.renderers import BaseRenderer, ChatParams, TokenizeParams
from vllm.utils.mistral import is_mistral_tokenizer

from qprobe_server.proxy.chat_text import mend, write_answer, write_content
from qprobe_server.proxy.reader import Prompt, Written

__all__ = ["RenderedAnswer", "Rendering"]

Tokens = list[int]
Message = Mapping[str, Any]

# Stands for an answer, where only what the template writes around it is wanted.
_ANSWER = "9f2c6e"


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer as the model would have sampled it; the fields are those of a ``Sample``.

    Attributes:
        token_ids: Of its text, without what else ends the turn, and the stop token, if the
            tokenizer has one and no limit has cut the answer.
        num_scored: How many of them, from the first, make its embedding: all of the text, but for
            the last of one that was cut, as a model that is stopped there has not read it.
    """

    token_ids: Tokens
    num_scored: int


class Rendering:
    """The model's template and tokenizer; not for several threads at once.

    Args:
        renderer: Of the engine.
        template: A Jinja template instead of the tokenizer's own, or None.
    """

    def __init__(self, renderer: BaseRenderer, template: str | None) -> None:
        self._renderer = renderer
        self._template = template
        # Mistral's writes tokens, never text.
        self._writes_tokens = is_mistral_tokenizer(renderer.tokenizer)
        self._framed: tuple[Prompt, tuple[str, str]] | None = None

    def prompt(self, prompt: Prompt) -> Tokens:
        """Return the tokens of a prompt, up to where its answer begins, however many they are.

        Raises:
            ValueError: The template or the model cannot take it. Templates and vLLM raise others.
        """
        if prompt.messages is None:
            rendered: Any = {"prompt": prompt.text}
        else:
            rendered = self._render(prompt, prompt.messages, opens_answer=True)
        # Of a chat the template writes them.
        params = TokenizeParams(None, add_special_tokens=prompt.messages is None)
        return list(self._renderer.tokenize_prompt(rendered, params)["prompt_token_ids"])

    def answer(self, prompt: Prompt, written: Written) -> RenderedAnswer:
        """Return the tokens of an answer to a prompt."""
        tokenizer = self._renderer.get_tokenizer()
        tokens = list(tokenizer.encode(self._write(prompt, written), add_special_tokens=False))
        if written.finish_reason == "length":
            return RenderedAnswer(tokens, max(len(tokens) - 1, 0))
        ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return RenderedAnswer([*tokens, *ends], len(tokens))

    def decode(self, token: int) -> str:
        """Return the text of one token."""
        text: str = self._renderer.get_tokenizer().decode([token])
        return text

    def _write(self, prompt: Prompt, written: Written) -> str:
        message = written.message or {}
        calls = message.get("tool_calls")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        # vLLM hands broken arguments to the template as none at all.
        if (calls or reasoning) and all(map(_has_arguments, calls or ())):
            turn = self._write_turn(prompt, message)
            # Templates of models that know no tools leave calls out.
            if turn is not None and all(each["function"]["name"] in turn for each in calls or ()):
                return turn
        return write_answer(written)

    def _write_turn(self, prompt: Prompt, message: Message) -> str | None:
        """Return what the template makes of an answer.

        Reasoning stands in it if the template writes it. None if the template does not take it, or
        if it does not go on as the prompt ends.
        """
        if self._writes_tokens or prompt.messages is None:
            return None
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        given = {name: value for name, value in message.items() if value is not None}
        if reasoning:
            given |= {"reasoning_content": reasoning, "reasoning": reasoning}
        try:
            before, end = self._find_frame(prompt, prompt.messages)
            whole = self._render_text(prompt, _add_answer(prompt, given), opens_answer=False)
        except Exception:  # noqa: BLE001 a model may write calls that no template takes
            return None
        if not whole.startswith(before):
            return None
        turn: str = mend(whole.removeprefix(before).removesuffix(end))
        return turn

    def _find_frame(self, prompt: Prompt, messages: Sequence[Message]) -> tuple[str, str]:
        """Return what the template writes before an answer to a prompt, and what behind it.

        Kept until another prompt is asked for: its k answers have it in common.
        """
        # Not an equal one of another request: templates may write the time.
        if self._framed is None or self._framed[0] is not prompt:
            before = self._render_text(prompt, messages, opens_answer=True)
            plain = {"role": "assistant", "content": _ANSWER}
            around = self._render_text(prompt, _add_answer(prompt, plain), opens_answer=False)
            self._framed = prompt, (before, around.rpartition(_ANSWER)[2])
        return self._framed[1]

    def _render_text(
        self, prompt: Prompt, messages: Sequence[Message], *, opens_answer: bool
    ) -> str:
        text: str = self._render(prompt, messages, opens_answer=opens_answer)["prompt"]
        return text

    def _render(self, prompt: Prompt, messages: Sequence[Message], *, opens_answer: bool) -> Any:
        kwargs: dict[str, Any] = {
            **prompt.template_arguments,
            "add_generation_prompt": opens_answer and not prompt.continues,
            "continue_final_message": opens_answer and prompt.continues,
            "tokenize": self._writes_tokens,
        }
        if prompt.tools:
            kwargs["tools"] = [
                ChatCompletionToolsParam.model_validate(each).model_dump() for each in prompt.tools
            ]
        params = ChatParams(chat_template=self._template, chat_template_kwargs=kwargs)
        # A copy: vLLM reads the arguments of tool calls in place.
        _, rendered = self._renderer.render_messages(deepcopy(list(messages)), params)
        return rendered


def _add_answer(prompt: Prompt, answer: Message) -> list[Message]:
    """Return the chat with an answer, in the message that it goes on with if there is one."""
    messages = list(prompt.messages or ())
    if not prompt.continues:
        return [*messages, answer]
    begun = messages.pop()
    content = write_content(begun) + (answer.get("content") or "")
    return [*messages, {**begun, **answer, "content": content}]


def _has_arguments(call: Message) -> bool:
    """Whether a call's arguments are a JSON object, as templates take them."""
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except (KeyError, TypeError, ValueError):  # a model may write anything
        return False
