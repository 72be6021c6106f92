"""Joins rows of one completion each by prompt: TRL's logs of GRPO, and unpaired preferences."""

import json
from collections.abc import Sequence
from types import NoneType
from typing import Any

from qprobe.data.chats import read_chat, read_reply
from qprobe.data.fields import read_text, show
from qprobe.errors import RowError

__all__ = ["gather", "read_single"]

Json = dict[str, Any]
Numbered = tuple[int, Json]

# Completions that agree in these are rivals.
_ASKED = ("messages", "prompt", "step", "split")
# Columns of a log that hold numbers and are no rewards.
_NO_REWARDS = {"step", "epoch", "advantage"}


def read_single(row: Json) -> Json:
    """Return a row whose ``completion`` is text, and its ``label``, if it has one, its reward.

    Raises:
        RowError: The completion is neither text nor a message, or the label is not true or false.
    """
    completion = row.get("completion")
    if completion is None or row.get("completions") is not None:
        return row
    if isinstance(completion, list):
        *before, last = read_chat("completion", completion)
        if before:
            raise RowError("completion", f"must be one message, got {len(completion)}")
        text = read_reply("completion[0]", last)
    else:
        text = read_text("completion", completion)
    made = row | {"completion": text}
    label = row.get("label")
    if label is not None and row.get("reward") is None:
        if label not in (0, 1):
            raise RowError("label", f"must be true or false, got {show(label)}")
        made["reward"] = float(label)
    return made


def gather(rows: Sequence[Numbered]) -> list[Numbered]:
    """Return rows with those of one ``completion`` joined where they ask the same in the same step.

    Those of two splits stay apart. Completions of one step come from the same weights. Of their
    other columns those stay that are the same for all of them.

    Args:
        rows: As ``read_single`` returns them.

    Raises:
        RowError: Several columns may be the reward.
    """
    singles = [row for _, row in rows if "completions" not in row and "completion" in row]
    reward = _find_reward(singles)
    made: list[Numbered] = []
    places: dict[str, int] = {}
    for number, row in rows:
        if row.get("completion") is None or row.get("completions") is not None:
            made.append((number, row))
            continue
        one = {"text": row["completion"], "reward": row.get(reward)}
        rest = {name: value for name, value in row.items() if name not in ("completion", reward)}
        asked = json.dumps([rest.get(name) for name in _ASKED])
        if asked not in places:
            places[asked] = len(made)
            made.append((number, rest | {"completions": [one]}))
            continue
        group = made[places[asked]][1]
        group["completions"].append(one)
        for name in [each for each in group if each != "completions"]:
            if group[name] != rest.get(name):
                del group[name]
    return made


def _find_reward(rows: Sequence[Json]) -> str:
    """Return the column that holds the rewards: ``reward``, or the only one of a log that may.

    That is one of numbers, or where there are none, of true and false.
    """
    if not rows or "step" not in rows[0] or any("reward" in row for row in rows):
        return "reward"
    columns = {name: {type(row.get(name)) for row in rows} - {NoneType} for name in rows[0]}
    columns = {name: types for name, types in columns.items() if name not in _NO_REWARDS and types}
    numbers = [name for name, types in columns.items() if types <= {int, float}]
    found = numbers or [name for name, types in columns.items() if types == {bool}]
    if len(found) > 1:
        names = ", ".join(found)
        raise RowError("reward", f"may be any of {names}: name one by --columns reward=NAME")
    return found[0] if found else "reward"
