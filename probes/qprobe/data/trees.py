"""OpenAssistant's conversations, as flat messages or as trees: a prompt and its ranked replies."""

from collections.abc import Iterator, Sequence
from typing import Any

from qprobe.data.fields import read_text, show
from qprobe.errors import RowError

__all__ = ["is_flat", "is_tree", "walk_flat", "walk_tree"]

Json = dict[str, Any]
Numbered = tuple[int, Json]

_ROLES = {"prompter": "user", "assistant": "assistant"}
_KEPT = ("message_id", "lang", "split")


def is_flat(row: Json) -> bool:
    """Whether a row is one message of many, whose parents are in other rows."""
    is_whole = any(row.get(name) is not None for name in ("prompt", "messages"))
    return {"message_id", "text", "role"} <= row.keys() and not is_whole


def is_tree(row: Json) -> bool:
    """Whether a row is a whole conversation with all its replies."""
    return "message_tree_id" in row and isinstance(row.get("prompt"), dict)


def walk_flat(rows: Sequence[Numbered]) -> list[Numbered]:
    """Return a row of ours for every user's message with at least two ranked replies.

    Args:
        rows: All messages, in any order.

    Raises:
        RowError: A message is not valid.
    """
    names = [read_text("message_id", row.get("message_id")) for _, row in rows]
    nodes = {name: {**row, "replies": []} for name, (_, row) in zip(names, rows, strict=True)}
    numbers = {name: number for name, (number, _) in zip(names, rows, strict=True)}
    roots: list[Json] = []
    for node in nodes.values():
        # JSON without nulls has no such field in a root.
        name = node.get("parent_id")
        parent = None if name is None else nodes.get(read_text("parent_id", name))
        (roots if parent is None else parent["replies"]).append(node)
    return [
        (numbers[row["message_id"]], row)
        for root in roots
        if root.get("parent_id") is None
        for row in _walk(root)
    ]


def walk_tree(row: Json) -> Iterator[Json]:
    """Yield a row of ours for every user's message of a tree with at least two ranked replies."""
    split = {"split": row["split"]} if "split" in row else {}
    for made in _walk(row["prompt"]):
        yield made | split


def _walk(root: Json) -> Iterator[Json]:
    waiting: list[tuple[Json, list[Json]]] = [(root, [])]
    while waiting:
        node, path = waiting.pop()
        if node.get("deleted"):
            continue
        role, text = node.get("role"), read_text("text", node.get("text"))
        if not isinstance(role, str) or role not in _ROLES:
            raise RowError("role", f"must be 'prompter' or 'assistant', got {show(role)}")
        here = [*path, {"role": _ROLES[role], "content": text}]
        replies = [each for each in _read_replies(node) if not each.get("deleted")]
        waiting += [(each, here) for each in reversed(replies)]
        completions = _rank(replies) if role == "prompter" else []
        if completions:
            kept = {name: node[name] for name in _KEPT if name in node}
            yield kept | {"messages": here, "completions": completions}


def _read_replies(node: Json) -> list[Json]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(each, dict) for each in replies):
        raise RowError("replies", f"must be a list of messages, got {show(replies)}")
    return replies


def _rank(replies: Sequence[Json]) -> list[Json]:
    """Return replies with rewards from 1 for the best to 0 for the last, if two were ranked."""
    for each in replies:
        rank = each.get("rank")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
            raise RowError("rank", f"must be a number or null, got {show(rank)}")
    ranked = sorted(
        (each for each in replies if each.get("rank") is not None), key=lambda each: each["rank"]
    )
    if len(ranked) < 2:
        return []
    last = len(ranked) - 1
    return [
        {"text": read_text("text", each.get("text")), "reward": 1.0 - place / last}
        for place, each in enumerate(ranked)
    ]
