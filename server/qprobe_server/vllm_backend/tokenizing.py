"""Prompts and given completions as tokens of the model on vLLM's offline engine, and back.

Relies on vLLM 0.32.0: ``OfflineInferenceMixin._preprocess_chat_one, _preprocess_cmpl_one``
(entrypoints/common/offline.py).
"""

from collections.abc import Sequence
from typing import Any

from vllm import LLM

from qprobe.errors import RowError

__all__ = ["RowTokenizer"]

Tokens = list[int]


class RowTokenizer:
    """Reads the rows of a collection with the model's template and tokenizer.

    Args:
        llm: Whose.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def prompt(self, prompt: str | list[dict[str, Any]], texts: Sequence[str] = ()) -> Tokens:
        """Return a prompt's tokens: raw text, or chat messages by the model's template.

        Args:
            prompt: Of a row.
            texts: Completions of it that are to be read.

        Raises:
            RowError: The template refuses the chat; or the prompt, or it and a completion, do not
                fit into the model's context.
        """
        is_text = isinstance(prompt, str)
        field = "prompt" if is_text else "messages"
        render = self._llm._preprocess_cmpl_one if is_text else self._llm._preprocess_chat_one
        try:
            tokens: Tokens = list(render(prompt)["prompt_token_ids"])
        except Exception as error:  # templates raise what they like
            raise RowError(field, f"cannot be read by the model: {error}") from error
        limit = self._llm.model_config.max_model_len
        if len(tokens) >= limit:
            raise RowError(
                field, f"must have fewer tokens than --max-model-len {limit}, got {len(tokens)}"
            )
        for index, text in enumerate(texts):
            length = len(self.completion(text))
            if len(tokens) + length >= limit:
                raise RowError(
                    f"completions[{index}]",
                    f"and its prompt must have fewer tokens than --max-model-len {limit}, got "
                    f"{length} + {len(tokens)}",
                )
        return tokens

    def completion(self, text: str) -> Tokens:
        """Return the tokens of a completion's text, and of nothing around it."""
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self._llm.get_tokenizer().decode(list(token_ids), skip_special_tokens=True)
        return text
