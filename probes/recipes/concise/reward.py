"""What a short answer is worth: on topic, 12 to 40 words, whole, one paragraph of plain prose.

Owns the reward of ``prompts.jsonl``. Standard library only; nothing here asks whether the answer is
true.
"""

import math
import re
from typing import Any

__all__ = ["score"]

FEWEST_WORDS, MOST_WORDS = 12, 40
# Any three of a row's topic words make an answer on topic: right answers differ in their words.
FULL_TOPIC = 3
# A stem this short is a whole word, or "red" would be found in "reduce".
SHORT_STEM = 3
# Of 104 answers of SmolLM2-135M-Instruct all but one, a single word, were 22 to 62 % small words; a
# string of topic words has next to none.
SMALL_WORDS_OF_PROSE = 0.2
SMALL_WORDS = frozenset(
    "a about after all also an and are as at be because been but "  # noqa: SIM905 as one reads it
    "by can do does for from had has have he her his how if in into is it its like more most not "
    "of on one or other out over she so such than that the their them there these they this those "
    "through to up was we were what when where which while who will with without you your".split()
)

CUT_OFF = 0.5
MARKUP = 0.5
SEVERAL_LINES = 0.7
FILLER = 0.6
NO_CAPITAL = 0.8

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # noqa: RUF001 a typographic apostrophe
_BEFORE_A_WORD = re.compile(r"\A[\W_]+")
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+|\n+")
_MARKUP = re.compile(r"[`*|]|^[ \t]*(?:[-+•]|\d+[.)]|#+)[ \t]", re.MULTILINE)
_FILLER = re.compile(
    r"(?:sure|certainly|absolutely|of course|okay|ok|well,|great question|good question|"
    r"as an ai|as a language model|i am|i'm|i'd be|i'll|i can't|i cannot|i hope|i apologi[sz]e|"
    r"thank you for|here is|here's|here are|let me|let's|in (?:one|two|a) sentences?)(?!\w)",
    re.IGNORECASE,
)
_CLOSERS = "\"'”’)]"  # noqa: RUF001 typographic quotes


def score(fields: dict[str, Any], completion: str) -> float:
    """Return how good a short answer is, from 0 to 1: the product of eight parts.

    ================  =============================================================================
    on topic          a third for each different topic word used, up to three; none gives 0
    length            1 from 12 to 40 words; below, words / 12; above, 40 / words
    prose             the share of small words (the, of, is), times 5, at most 1
    no repetition     the share of its sentences, and of its runs of four words, that are new
    whole             0.5 if it does not end like a sentence: it was cut off
    plain             0.5 if it has markdown: a list, a heading, code, a table, or an asterisk
    one paragraph     0.7 if it has several lines
    opening           0.6 if it starts with filler ("Sure", "As an AI"), 0.8 with a small letter
    ================  =============================================================================

    As it is a product, no part makes up for another: without a topic word all is 0. The rows'
    topic words are none of their questions', so an empty answer and the question said again score
    0, and an answer to something else 0 or the third of a chance word.

    Args:
        fields: A row; ``topic`` holds lower-case words or stems. One of four letters or more is
            used by every word that starts with it, a shorter one only by itself.
        completion: Any text. White space around it does not count.

    Raises:
        KeyError: The row has no ``topic``.
    """
    text = completion.strip()
    words = _WORD.findall(text.lower())
    topic = _share_on_topic(words, fields["topic"])
    if topic == 0:
        return 0.0
    return topic * _fit_of_length(len(words)) * _prose(words) * _novelty(text, words) * _form(text)


def _share_on_topic(words: list[str], topic: list[str]) -> float:
    different = set(words)
    used = {stem for stem in topic if any(_uses(word, stem) for word in different)}
    return min(1.0, len(used) / FULL_TOPIC)


def _uses(word: str, stem: str) -> bool:
    return word == stem or (len(stem) > SHORT_STEM and word.startswith(stem))


def _fit_of_length(num_words: int) -> float:
    return min(1.0, num_words / FEWEST_WORDS, MOST_WORDS / num_words)


def _prose(words: list[str]) -> float:
    share = sum(word in SMALL_WORDS for word in words) / len(words)
    return min(1.0, share / SMALL_WORDS_OF_PROSE)


def _novelty(text: str, words: list[str]) -> float:
    sentences = [" ".join(_WORD.findall(each)) for each in _SENTENCE_BREAK.split(text.lower())]
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return min(_share_of_new(sentences), _share_of_new(runs))


def _share_of_new(items: list[Any]) -> float:
    return len(set(items)) / len(items) if items else 1.0


def _form(text: str) -> float:
    end = text.rstrip(_CLOSERS)
    opening = _BEFORE_A_WORD.sub("", text)
    faults = (
        (CUT_OFF, not end.endswith((".", "!", "?")) or end.endswith("..")),
        (MARKUP, _MARKUP.search(text) is not None),
        (SEVERAL_LINES, len(text.splitlines()) > 1),
        (FILLER, _FILLER.match(opening) is not None),
        (NO_CAPITAL, not (opening[:1].isupper() or opening[:1].isdigit())),
    )
    return math.prod(factor for factor, found in faults if found)
