"""Few-shot prompts: questions with good answers that stand before what is asked."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qprobe.data.chats import flatten
from qprobe.data.completions import GivenCompletion
from qprobe.data.prompts import PromptRow
from qprobe.errors import RowError

__all__ = ["SEPARATOR", "Shot", "add_shots", "choose_shots"]

Json = dict[str, Any]
# Between raw texts; chats need none.
SEPARATOR = "\n\n"
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Shot:
    """A question with a good answer.

    Attributes:
        prompt: As a ``PromptRow`` has it.
        answer: What the model is to take for an example.
        line: Of the file, as a ``PromptRow`` has it.
    """

    prompt: str | list[Json]
    answer: str
    line: int


def choose_shots(
    rows: Sequence[PromptRow], prompts: Sequence[PromptRow], *, num_shots: int, seed: int
) -> tuple[Shot, ...]:
    """Choose shots for all of some prompts, none of which is the question of a shot.

    Of each question the completion of the highest reward is taken, the first of several, and the
    questions whose answers earned most before others; the seed orders those that earned the same.

    Args:
        rows: Each with completions. A reward of None is below all others.
        prompts: That the shots are for.
        num_shots: How many are wanted, >= 1.
        seed: Any.

    Returns:
        The shots in the order in which they are to stand; fewer where there are no more.
    """
    taken = {_identify(each.prompt) for each in prompts}
    known: dict[str, PromptRow] = {}
    for row in rows:
        known.setdefault(_identify(row.prompt), row)
    fit = [row for asked, row in known.items() if asked not in taken]
    random.Random(seed).shuffle(fit)
    fit.sort(key=lambda row: -max(map(_worth, row.completions)))
    best = ((row, max(row.completions, key=_worth)) for row in fit[:num_shots])
    return tuple(Shot(row.prompt, answer.text, row.line) for row, answer in best)


def add_shots(row: PromptRow, shots: Sequence[Shot]) -> PromptRow:
    """Return a row with shots before its prompt; its fields, which rewards get, stay as they are.

    In a chat they are turns of user and assistant behind the system's message, which must be that
    of the shots' own if these have one. Raw text follows on ``SEPARATOR``.

    Raises:
        RowError: The prompt is a chat and a shot is raw text or the other way round, or a shot has
            another system's message.
    """
    if isinstance(row.prompt, str):
        made: str | list[Json] = "".join(map(_write_text, shots)) + row.prompt
    else:
        system, asked = _split_system(row.prompt)
        made = [*system, *(turn for each in shots for turn in _write_turns(each, system)), *asked]
    return replace(row, prompt=made, shots=tuple(shots))


def _write_text(shot: Shot) -> str:
    if not isinstance(shot.prompt, str):
        raise RowError("prompt", f"is raw text, and the shot of line {shot.line} is a chat")
    return f"{shot.prompt}{shot.answer}{SEPARATOR}"


def _write_turns(shot: Shot, system: list[Json]) -> list[Json]:
    if isinstance(shot.prompt, str):
        raise RowError("messages", f"is a chat, and the shot of line {shot.line} is raw text")
    own, question = _split_system(shot.prompt)
    if own and flatten(own) != flatten(system):
        raise RowError(
            "messages", f"lacks the system's message that the shot of line {shot.line} has"
        )
    return [*question, {"role": "assistant", "content": shot.answer}]


def _worth(completion: GivenCompletion) -> float:
    return -math.inf if completion.reward is None else completion.reward


def _identify(prompt: str | list[Json]) -> str:
    return json.dumps(prompt if isinstance(prompt, str) else flatten(prompt), sort_keys=True)


def _split_system(chat: list[Json]) -> tuple[list[Json], list[Json]]:
    first = next((i for i, each in enumerate(chat) if each["role"] not in _SYSTEM), len(chat))
    return chat[:first], chat[first:]
