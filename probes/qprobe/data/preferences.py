"""Turns preferences, in the forms in which they are published, into a prompt and completions."""

import re
from typing import Any

from qprobe.data.chats import read_chat, read_reply, user
from qprobe.data.completions import GivenCompletion, read_reward
from qprobe.data.fields import read_text, show
from qprobe.errors import RowError

__all__ = ["read_pair", "unfold"]

Json = dict[str, Any]
Prompt = str | list[Json]

_SIDES = ("chosen", "rejected")
# What a judge gave each side, by the names that data sets have for it.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def unfold(row: Json) -> Json:
    """Return a row of ours for one of SHP, RewardBench 2, HH-RLHF or of TRL's implicit prompts.

    What is of none of these is returned as it is.

    Raises:
        RowError: A field of a row that is of one of them is not valid.
    """
    if all(row.get(n) is not None for n in ("history", "human_ref_A", "human_ref_B", "labels")):
        return _unfold_shp(row)
    if not all(row.get(side) is not None for side in _SIDES):
        return row
    chosen, rejected = (row[side] for side in _SIDES)
    if _is_texts(chosen) and _is_texts(rejected):
        return _unfold_lists(row)
    without = {name: value for name, value in row.items() if name not in ("messages", "prompt")}
    if row.get("messages") == chosen:  # UltraFeedback says the chosen chat twice
        row = without | ({"prompt": row["prompt"]} if row.get("prompt") is not None else {})
    if row.get("messages") is not None or row.get("prompt") is not None:
        return row
    if isinstance(chosen, str) and isinstance(rejected, str):
        return without | (_split_transcripts(chosen, rejected) or _split_texts(chosen, rejected))
    return row


def read_pair(
    fields: Json, prompt: Prompt | None
) -> tuple[Prompt | None, tuple[GivenCompletion, ...]]:
    """Return the prompt, which may be the start of the chats, and two completions.

    They are worth what the row's scores say (``score_chosen``, ``score_rejected``), else 1 and 0.

    Raises:
        RowError: They are no pair.
    """
    texts = []
    befores: list[list[Json] | None] = []
    for side in _SIDES:
        value = fields.get(side)
        if value is None:
            raise RowError(side, "is missing, but the other of the pair is there")
        if isinstance(value, list):
            *before, last = read_chat(side, value)
            texts.append(read_reply(f"{side}[{len(before)}]", last))
            befores.append(before)
        else:
            texts.append(read_text(side, value))
            befores.append(None)
    if befores[0] != befores[1]:
        raise RowError("rejected", "must continue the same messages as 'chosen'")
    if texts[0] == texts[1]:
        raise RowError("rejected", f"must differ from 'chosen', got {show(texts[1])} as both")
    rewards = _read_scores(fields)
    pair = tuple(GivenCompletion(*each) for each in zip(texts, rewards, strict=True))
    return _join(prompt, befores[0]), pair


def _read_scores(fields: Json) -> tuple[float, float]:
    for names in _SCORES:
        better, worse = (read_reward(name, fields.get(name)) for name in names)
        if better is None or worse is None:
            continue
        if better < worse:
            raise RowError(names[0], f"must not be below {names[1]} {worse!r}, got {better!r}")
        return better, worse
    return 1.0, 0.0


def _join(prompt: Prompt | None, before: list[Json] | None) -> Prompt | None:
    """Return the prompt of a pair whose chats begin with ``before``; None: they are raw text."""
    if before is None:
        return prompt
    # Data sets often say the last user's message again as plain text, beside the chats.
    chat = [user(prompt)] if isinstance(prompt, str) else prompt
    if not before:
        return chat
    same = chat is None or chat == before or (isinstance(prompt, str) and chat == before[-1:])
    if not same:
        raise RowError("chosen", f"must continue the row's prompt, got {show(before)}")
    return before


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _unfold_lists(row: Json) -> Json:
    """Return a row of RewardBench 2: some completions are right, the others are wrong."""
    made = {name: value for name, value in row.items() if name not in _SIDES}
    if isinstance(row.get("prompt"), str):
        made["messages"] = [user(made.pop("prompt"))]
    both = set(row["chosen"]) & set(row["rejected"])
    if both:
        raise RowError("rejected", f"must differ from 'chosen', got {show(both.pop())} as both")
    made["completions"] = [
        {"text": text, "reward": reward}
        for side, reward in (("chosen", 1.0), ("rejected", 0.0))
        for text in row[side]
    ]
    return made


def _unfold_shp(row: Json) -> Json:
    """Return a row of the Stanford Human Preferences: a post and two replies to it."""
    names = ("history", "human_ref_A", "human_ref_B")
    history, a, b = (read_text(name, row[name]) for name in names)
    if row["labels"] not in (0, 1) or isinstance(row["labels"], bool):
        raise RowError("labels", f"must be 1 if A is preferred and 0 if B, got {row['labels']!r}")
    if a == b:
        raise RowError("human_ref_B", f"must differ from 'human_ref_A', got {show(b)} as both")
    first = float(row["labels"])
    made = {name: value for name, value in row.items() if name not in names}
    return made | {
        "messages": [user(history)],
        "completions": [{"text": a, "reward": first}, {"text": b, "reward": 1.0 - first}],
    }


def _split_transcripts(chosen: str, rejected: str) -> Json | None:
    """Return HH-RLHF's pair as a chat and two replies; None if they are no transcripts."""
    chats = []
    for side, text in zip(_SIDES, (chosen, rejected), strict=True):
        before, *turns = _TURN.split(text)
        if before or not turns or turns[0] != "Human":
            return None
        chats.append(
            [
                {"role": _ROLES[name], "content": content.strip()}
                for name, content in zip(turns[::2], turns[1::2], strict=True)
            ]
        )
        if turns[-2] != "Assistant":
            raise RowError(side, f"must end in a turn of the assistant, got {show(text[-80:])}")
    if chats[0][:-1] != chats[1][:-1]:
        raise RowError("rejected", "must continue the same turns as 'chosen'")
    replies = {side: chat[-1]["content"] for side, chat in zip(_SIDES, chats, strict=True)}
    return {"messages": chats[0][:-1], **replies}


def _split_texts(chosen: str, rejected: str) -> Json:
    """Return TRL's implicit prompt, the whole words that both texts begin with, and the rests."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shortest = min(len(chosen), len(rejected))
    prompt = chosen[: next((at for at, (a, b) in pairs if a != b), shortest)]
    if not prompt[-1:].isspace():
        prompt = prompt[: max(prompt.rfind(" "), prompt.rfind("\n")) + 1]
    prompt = prompt.rstrip()
    if not prompt:
        raise RowError("prompt", "is missing, and 'chosen' and 'rejected' do not begin with one")
    length = len(prompt)
    return {"prompt": prompt, "chosen": chosen[length:], "rejected": rejected[length:]}
