"""Finds the number that a completion gives as its answer: in a box, behind ``####``, at the end."""

import re
from collections.abc import Iterator

from qprobe.rewards.notation import tidy
from qprobe.rewards.quantity import Quantity, evaluate, find_lone, find_quantities
from qprobe.rewards.sandboxed.blocks import after_reasoning

__all__ = ["find_next_questions", "read_gold", "read_quantity"]

_NEXT_QUESTION = re.compile(
    r"^[^A-Za-z0-9\n]{0,12}(?:(?:next |new )?(?:question|problem|exercise|user|human|instruction)"
    r"[ \t]{0,3}\d{0,4}[*_ ]{0,4}(?::|$)|q[ \t]{0,3}\d{0,4}[*_ ]{0,4}:)"
    r"|<\|(?:im_start|start_header_id)\|>\s{0,3}user|\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)
_DIGIT = re.compile(r"\d", re.ASCII)
_BRACE = re.compile(r"(\\(?:boxed|fbox)\s{0,3}\{)|\\[{}]|([{}])")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_HASHES = re.compile(r"####(?!#)([^\n]*)")
# Headings look like GSM8K's last line: "#### 1. Count the apples". Where there are several.
_HEADING = re.compile(r"\s*\d{1,2}\s*[.):]\s+[A-Za-z*]")
_ANSWER = re.compile(r"\s*(?:the |my |final |so )*answer\b(?: is)?\s*[:=]?", re.IGNORECASE)
# Where an answer is stated in running text, and what may stand before its number.
_STATED = re.compile(
    r"\banswer[\s*_]{0,8}(?:\b(?:is|was|equals|would be|should be)\b|[:=])[\s*_:]{0,8}"
    r"(?:(?:equal to|about|approximately|exactly|simply|just|thus|therefore)\b[\s,:]{0,4}){0,2}",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)
_END_OF_SENTENCE = re.compile(r"\.(?=\s|$)")
_END_OF_CLAUSE = re.compile(r"[;(]|,(?!\d)")
_CALCULATION = re.compile(r"[^(,;:]*[-+*/]\s*[\d\\][^(,;:]*")
_MAX_STATEMENT = 200
_STARTS = re.compile(r"\s*(?:[A-Za-z]\s*=)?\s*[-+]?\s*(?:\.?\d|\\(?:frac|sqrt|pi))")
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|mbox|mathrm|mathbf|mathit|operatorname)\s?\{([^{}]*)\}"
    r"(?:\s?\^\s?(?:\{[^{}]*\}|[-+]?\w))?"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_SEVERAL = re.compile(r",(?!\d{3}(?!\d))|;|\b(?:or|and)\b")


def read_quantity(completion: str) -> Quantity | None:
    r"""Return the number that a completion ends in.

    It is that of the last ``\boxed{}`` with a number, else of the first ``####`` line that is an
    answer, else what stands in the last ``<answer>``, else what follows the last "the answer is"
    or "Answer:", else the last of the whole text. A reasoning part does not count, nor does what
    follows when the model goes on with a question of its own. A box with several numbers is none.
    """
    text = after_reasoning(completion)
    first = _DIGIT.search(text)
    if first is not None and (next_question := _NEXT_QUESTION.search(text, first.end())):
        text = text[: next_question.start()]
    for box in reversed(list(_find_boxes(text))):
        found = list(find_quantities(tidy(_BOX.sub("", box))))
        if found:
            return _read_box(box)
    lines = _HASHES.findall(text)
    for line in lines:
        if not (len(lines) > 1 and _HEADING.match(line)) and (marked := _read_line(tidy(line))):
            return marked
    for inner in reversed(_TAGGED.findall(text)):
        if _DIGIT.search(inner):
            text = inner
            break
    text = tidy(text)
    return _read_stated(text) or _find_last(text)


def _find_last(text: str) -> Quantity | None:
    return next(iter(reversed(list(find_quantities(text)))), None)


def _read_stated(text: str) -> Quantity | None:
    """Return the number right behind the last "answer is"; None if there is none."""
    for stated in reversed(list(_STATED.finditer(text))):
        rest = text[stated.end() : stated.end() + _MAX_STATEMENT]
        is_list = "\n" in stated[0] and _HEADING.match(rest)
        if _STARTS.match(rest) and not is_list:
            sentence = _END_OF_SENTENCE.split(rest.partition("\n")[0])[0]
            return _read_sentence(sentence)
    return None


def _read_sentence(sentence: str) -> Quantity | None:
    """Return the number that a sentence begins with, or of the calculation that it begins with."""
    first, equals, others = sentence.partition("=")
    while equals and (_CALCULATION.fullmatch(first) or len(first.strip()) == 1):
        sentence = others
        first, equals, others = sentence.partition("=")
    clause = _END_OF_CLAUSE.split(sentence)[0]
    return evaluate(clause) or next(find_quantities(sentence), None)


def read_gold(text: str) -> Quantity | None:
    """Return the number that a row's answer is, or that its solution (GSM8K, MATH) ends in."""
    _, hashes, last = text.rpartition("####")
    if hashes:
        return evaluate(tidy(last))
    boxes = list(_find_boxes(text))
    return _read_box(boxes[-1]) if boxes else _read_whole(text)


def find_next_questions(text: str) -> list[int]:
    """Return where a model that was not stopped may go on with a question of its own."""
    return [found.start() for found in _NEXT_QUESTION.finditer(text)]


def _find_boxes(text: str) -> Iterator[str]:
    """Yield what is in boxes that are in no other box, to whichever depth braces are nested."""
    depth, box, start = 0, -1, 0
    for brace in _BRACE.finditer(text):
        if brace[1] or brace[2] == "{":
            if brace[1] and box < 0:
                box, start = depth, brace.end()
            depth += 1
        elif brace[2]:
            depth -= 1
            if depth == box:
                yield text[start : brace.start()]
                box = -1


def _read_box(content: str) -> Quantity | None:
    content = _BOX.sub("", content)
    whole = _read_whole(content)
    if whole is not None:
        return whole
    text = tidy(_drop_words(content))
    last = text if _SEVERAL.search(tidy(content)) else text.rpartition("=")[2]
    if not any(find_quantities(last)):  # 5 = x
        last = text.partition("=")[0]
    return find_lone(last)


def _read_whole(content: str) -> Quantity | None:
    """Return the value of a text that is nothing but a number, with an equals sign before it."""
    if _SEVERAL.search(tidy(content)):
        return None
    text = tidy(_drop_words(content)).strip(" \n\t.")
    text = text.rpartition("=")[2].strip()
    return evaluate(_THOUSANDS.sub(lambda found: found[0].replace(" ", ""), text))


def _drop_words(content: str) -> str:
    r"""Take out ``\text{ cm}^2``, but not ``\text{42}``."""
    return _WORDS.sub(lambda found: f" {found[1]} " if _DIGIT.search(found[1]) else " ", content)


def _read_line(line: str) -> Quantity | None:
    """Return the number of a line behind ``####``; None if it is no answer but a heading."""
    answer = _ANSWER.match(line)
    line = line[answer.end() :] if answer else line
    if not (answer or _STARTS.match(line)):
        return None
    return evaluate(line.rpartition("=")[2]) or next(find_quantities(line), None)
