"""Finds the pieces of code in an answer: fenced ones, and those that stand between sentences.

Lines are looked at once, from the first to the last, so that it takes linear time, whatever a model
writes.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from .statements import Unit, split_units

__all__ = ["Block", "after_reasoning", "find_blocks"]

_REASONING = re.compile(
    # Not in a string of the answer's own code.
    r"(?<![\"'])(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷)(?![\"'])",
    re.IGNORECASE,
)
_REASONING_STARTS = re.compile(
    r"^\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷)", re.IGNORECASE
)
# Where they cannot be a list or a comparison of Python's.
_TAGS = re.compile(
    r"^[ \t]*(?:\[/?(?:PYTHON|CODE|ANSWER|SOLUTION)\]|</?(?:code|python|answer|solution)>)"
    r"|^\[(?:BEGIN|DONE|END)\]"
    r"|(?:\[/(?:PYTHON|CODE|ANSWER|SOLUTION)\]|</?(?:code|python|answer|solution)>)[ \t]*$",
    re.MULTILINE,
)
_QUOTE = re.compile(r"^(?!>>> |>>>$) {0,3}(?:> ?)+", re.MULTILINE)
_QUOTED_CODE = re.compile(
    r"^(?!>>> |>>>$) {0,3}>[> ]*(?:```|~~~|(?:async )?def |class |import |from |@)", re.MULTILINE
)
_FENCE = re.compile(r"`{3,}|~{3,}")
_PYTHON = re.compile(
    r"(?:i?python|py|pycon|sage|sagemath|cython)[\d.]*(?:-repl|con)?|.*\.py", re.IGNORECASE
)
_OTHERS = {
    "bash", "sh", "shell", "zsh", "fish", "console", "terminal", "cmd", "bat", "powershell",
    "ps1", "shell-session", "output", "out", "stdout", "result", "results", "text", "txt",
    "plaintext", "plain", "log", "json", "yaml", "toml", "ini", "diff", "html", "xml", "css",
    "sql", "latex", "markdown", "md", "javascript", "js", "typescript", "ts", "java", "c", "cpp",
    "c++", "go", "rust", "ruby",
}  # fmt: skip
_CODE_FOLLOWS = re.compile(r"(?:async +def|def|class|import|from|return)\b|@\w")
_DOCTEST = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A piece of text that may be code.

    Attributes:
        text: Without fences, and without the indentation that all of it shares.
        kind: ``python`` or ``other`` as its fence says, ``bare`` if that says nothing, ``plain``
            without a fence.
        is_cut: Whether the answer ended before the fence did.
    """

    text: str
    kind: str
    is_cut: bool = False


def after_reasoning(answer: str) -> str:
    """Return what comes after the reasoning part; nothing if that does not end."""
    answer = answer.replace("\r\n", "\n")
    ends = list(_REASONING.finditer(answer))
    if ends:
        return answer[ends[-1].end() :]
    return "" if _REASONING_STARTS.match(answer) else answer


def find_blocks(text: str) -> list[Block]:
    """Return the pieces of code in the order in which they stand."""
    if _QUOTED_CODE.search(text):
        text = _QUOTE.sub("", text)
    found: list[Block] = []
    plain: list[str] = []
    lines = iter(text.split("\n"))
    for line in lines:
        opening = _open_fence(line)
        if opening is None:
            plain.append(line)
            continue
        plain.append(line[: opening.start])
        while opening is not None:  # a fence that is not closed before the next is
            content, opening, is_cut = _read_fenced(opening, lines)
            found += [*_find_plain("\n".join(plain)), *content] if plain else content
            plain = []
            if is_cut:
                return found
    return [*found, *_find_plain("\n".join(plain), is_last=True)]


@dataclass(frozen=True)
class _Opening:
    start: int
    fence: str
    indent: int
    mark: str
    rest: str


def _open_fence(line: str) -> _Opening | None:
    match = _FENCE.search(line)
    if match is None or (match[0][0] == "`" and "`" in line[match.end() :].rstrip("` \t")):
        return None
    mark, rest = _split_mark(line[match.end() :].strip())
    is_behind_words = bool(line[: match.start()].strip(" \t>*-+.)0123456789"))
    if is_behind_words and rest and not _CODE_FOLLOWS.match(rest):
        return None  # words of a sentence
    indent = len(line) - len(line.lstrip())
    return _Opening(match.start(), match[0], indent, mark, rest)


def _split_mark(info: str) -> tuple[str, str]:
    """Return the language that a fence names and what follows it."""
    if _CODE_FOLLOWS.match(info):
        return "", info
    match = re.match(r"\{?\.?([^\s:,{}=(]*)", info)
    assert match is not None  # it matches nothing, too
    rest = info[match.end() :]
    return match[1].lower(), rest.strip() if rest[:1].isspace() else ""


def _read_fenced(
    opening: _Opening, lines: Iterator[str]
) -> tuple[list[Block], _Opening | None, bool]:
    """Return the fenced block, the fence that opens in place of one that closes, and is_cut."""
    content: list[str] = []
    rest = opening.rest if _CODE_FOLLOWS.match(opening.rest) else ""
    if rest:
        closed = rest.rstrip("`~ \t")
        content.append(closed)
        if closed != rest and rest.rstrip().endswith(opening.fence):
            return [_fenced(opening, content)], None, False
    for line in lines:
        closing = _close_fence(line, opening)
        if closing is None:
            content.append(line)
            continue
        before, following = closing
        if before:
            content.append(before)
        return [_fenced(opening, content)], following, False
    return [_fenced(opening, content, is_cut=True)], None, True


def _close_fence(line: str, opening: _Opening) -> tuple[str, _Opening | None] | None:
    """Return what stands before a fence that closes, and the fence if it opens another block."""
    stripped = line.strip()
    if stripped.startswith(opening.fence):
        # As in CommonMark: one that is indented by 4 more is of the content, as in a docstring.
        if len(line) - len(line.lstrip()) >= opening.indent + 4:
            return None
        after = stripped.lstrip(opening.fence[0]).strip()
        if not after:
            return "", None
        mark, rest = _split_mark(after)
        is_known = _PYTHON.fullmatch(mark) or mark in _OTHERS
        if is_known and (not rest or _CODE_FOLLOWS.match(rest)):
            return "", _open_fence(line)
        return ("", None) if after[0].isalpha() else None
    # The last line of code and the fence in one.
    if stripped.endswith(opening.fence) and stripped[-len(opening.fence) - 1] != opening.fence[0]:
        return line.rstrip()[: -len(opening.fence)], None
    return None


def _fenced(opening: _Opening, content: list[str], *, is_cut: bool = False) -> Block:
    text = _strip_prompts(textwrap.dedent("\n".join(content) + "\n" * bool(content)))
    if is_cut and content and text.endswith("\n"):
        text = text[:-1]
    kind = "other"
    if not opening.mark:
        kind = "bare"
    elif _PYTHON.fullmatch(opening.mark):
        kind = "python"
    elif opening.mark not in _OTHERS:
        kind = "bare"
    return Block(text, kind, is_cut)


def _strip_prompts(text: str) -> str:
    """Return the input of an interactive session, if it is one."""
    if not text.lstrip().startswith(">>>"):
        return text
    lines = [line for line in text.split("\n") if _DOCTEST.match(line)]
    return "\n".join(_DOCTEST.sub("", line) for line in lines) + "\n"


def _find_plain(text: str, *, is_last: bool = False) -> list[Block]:
    """Return the runs of statements between sentences."""
    runs: list[list[Unit]] = [[]]
    # Across a line of a dot alone no statement goes on.
    for unit in split_units(_TAGS.sub("\n.\n", text)):
        if unit.is_code:
            runs[-1].append(unit)
            continue
        runs.append([])
        if unit.looks_defined:  # cut, or wrong: to be told from no code
            runs[-1].append(unit)
            runs.append([])
            continue
        # Code that is indented below a sentence.
        head, _, tail = unit.text.partition("\n")
        if tail.strip() and not head[:1].isspace():
            runs += [[each] for each in split_units(textwrap.dedent(tail)) if each.is_code]
            runs.append([])
    blocks = [Block("\n".join(unit.text for unit in run), "plain") for run in runs if run]
    if blocks and is_last:
        blocks[-1] = Block(blocks[-1].text, "plain", is_cut=True)
    return blocks
