"""From an answer to its code: which of its pieces count, and where a continuation ends."""

import re
import textwrap
from collections.abc import Collection, Iterator

from .blocks import Block, after_reasoning, find_blocks
from .statements import (
    begin_to_define,
    bound_names,
    define,
    missing_names,
    parse,
    split_units,
)

__all__ = ["extract_code"]

# How many lines at the margin are looked at for the end of a function, and how many lines at the
# end of an answer are given up, if it was cut in the middle of them.
_MAX_MARGINS = 60
_MAX_CUT_LINES = 12
_INDENT = "    "


def extract_code(answer: str, *, names: Collection[str] = (), head: str = "") -> str:
    """Return the code of an answer, "" if it has none.

    It is the last piece that defines what the tests name, with what it needs of the other pieces:
    helpers and imports. If none does, and the answer goes on from the head of a function, it is
    that head with the answer up to the first line that leaves the function. Else it is the last
    piece that is marked as Python, or the last at all. What was cut at the end of an answer is left
    out as far as it is not part of that function.

    Args:
        answer: As the model gave it, a reasoning part included.
        names: What the tests expect of the answer.
        head: The beginning of a function that the answer may go on from, or "".
    """
    text = after_reasoning(answer)
    tree = parse(text)
    is_whole = tree is not None and define(tree, names, by_def=False)
    if is_whole and not any(unit.may_be_words for unit in split_units(text)):
        return text
    if head and _begins_as_body(text):
        continued = _continue(head, text)
        if continued:
            return continued
    blocks = [each for each in find_blocks(text) if each.text.strip()]
    chosen = _choose(blocks, names)
    if chosen is not None:
        return _with_helpers(chosen, blocks)
    if head:
        pieces = [each.text for each in reversed(blocks) if each.kind in ("python", "bare")]
        for piece in pieces or [text]:
            continued = _continue(head, piece)
            if continued:
                return continued
    return _last_resort(blocks)


def _begins_as_body(text: str) -> bool:
    return _is_indented(text) and not text.lstrip().startswith(("```", "~~~", ">"))


def _is_indented(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1].isspace()


def _choose(blocks: list[Block], names: Collection[str]) -> Block | None:
    """Return the last piece that defines one of the names, of those that are likeliest code."""
    for kinds, by_def in (
        (("python", "bare"), True),
        (("python",), False),
        (("bare",), False),
        (("plain",), True),
        (("plain", "other"), False),
    ):
        for block in reversed(blocks):
            if block.kind in kinds and (found := _defining(block, names, by_def=by_def)):
                return found
    return None


def _defining(block: Block, names: Collection[str], *, by_def: bool) -> Block | None:
    """Return the piece if it defines one of the names, without what was cut at its end.

    Args:
        block: The piece.
        names: Of which it must define one.
        by_def: Whether by ``def`` or ``class``: that of an output, ``f = 3``, is none.
    """
    tree = parse(block.text)
    if tree is not None:
        return block if define(tree, names, by_def=by_def) else None
    if block.is_cut or block.kind == "plain":
        kept = _without_cut_end(block.text, names)
        if kept is not None:
            return Block(kept, block.kind)
        if block.kind != "plain":
            return None
    return block if begin_to_define(block.text, names) else None


def _without_cut_end(text: str, names: Collection[str]) -> str | None:
    """Return what is whole of a text that was cut, if it still defines one of the names."""
    units = split_units(text)
    whole = "\n".join(unit.text for unit in units[:-1])
    tree = parse(whole)
    return whole if tree is not None and define(tree, names, by_def=False) else None


def _with_helpers(chosen: Block, blocks: list[Block]) -> str:
    """Put before a piece what it needs of others: of the nearest before it, or else after it."""
    tree = parse(chosen.text)
    if tree is None:
        return chosen.text
    missing = missing_names(tree)
    if not missing:
        return chosen.text
    sources = _definitions([each.text for each in blocks if each.text != chosen.text])
    needed: dict[str, None] = {}
    while missing:
        found = {name: sources[name] for name in missing if name in sources}
        new = [source for source in found.values() if source not in needed]
        if not new:
            break
        needed |= dict.fromkeys(new)
        helpers = parse("\n".join(needed))
        missing = missing_names(helpers) if helpers is not None else set()
    order = [source for source in dict.fromkeys(sources.values()) if source in needed]
    return "\n".join([*order, chosen.text]) if order else chosen.text


def _definitions(texts: list[str]) -> dict[str, str]:
    """Return the source of what pieces bind, by name, in order; the last of a name counts."""
    found: dict[str, str] = {}
    for text in texts:
        for unit in split_units(text):
            if unit.tree is None or not unit.is_code:
                continue
            for statement in unit.tree.body:
                for name in bound_names(statement):
                    found.pop(name, None)
                    found[name] = unit.text
    return found


def _last_resort(blocks: list[Block]) -> str:
    for kinds in (("python",), ("bare",), ("plain",)):
        for block in reversed(blocks):
            if block.kind in kinds:
                return block.text
    return ""


def _continue(head: str, piece: str) -> str:
    """Return a head and what goes on from it, up to where the function is left; "" if none does."""
    joints = [
        (joined, start)
        for joined, start in _joints(head, piece)
        # Else it leaves the function at once.
        if joined[start - 1] != "\n" or _is_indented(joined[start:])
    ]
    for find_ends in (_margins, _cut_ends):
        for joined, start in joints:
            for end in find_ends(joined, start):
                if parse(joined[:end]) is not None:
                    rest = Block(joined[end:], "plain")
                    return _with_helpers(Block(joined[:end], "plain"), [rest])
    return ""


def _joints(head: str, piece: str) -> Iterator[tuple[str, int]]:
    """Yield the ways in which the two may be one text, and where the second begins in it."""
    closed = head.rstrip() + "\n"
    last = closed.rstrip().rpartition("\n")[2]
    indent = last[: len(last) - len(last.lstrip())]
    # After a docstring the body stands as that does; after the colon it stands further in.
    indent += _INDENT if last.endswith(":") else ""
    body = re.sub(r"\A(?:[ \t]*\n)+", "", piece).rstrip()
    first, _, others = body.partition("\n")
    if not head.endswith(":"):
        yield head + piece, len(head)
    # As it is, or in a fence without indentation, or stripped, so that the first line lost its own.
    for text in (
        piece.lstrip("\n"),
        textwrap.indent(textwrap.dedent(body), indent),
        indent + first.lstrip() + "\n" + others,
    ):
        yield closed + text, len(closed)


def _margins(text: str, start: int) -> Iterator[int]:
    """Yield where the function may be left, the nearest first; the end of the text is the last."""
    for number, match in enumerate(re.finditer(r"^[^\s#)\]}]", text[start:], re.MULTILINE)):
        if number == _MAX_MARGINS:
            return
        if match.start():  # not what goes on from the middle of the head's line
            yield start + match.start()
    yield len(text)


def _cut_ends(text: str, start: int) -> Iterator[int]:
    """Yield where the lines end that are left if the last ones are given up."""
    end = len(text.rstrip())
    for _ in range(_MAX_CUT_LINES):
        end = text.rfind("\n", 0, end)
        if end <= start:
            return
        yield end + 1
