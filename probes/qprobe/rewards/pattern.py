"""Searches texts for a pattern, within bounds of time.

One search can take exponential time and holds the interpreter's lock all along, so that no thread
could stop it: searches run in a process of their own, which stops each when its time is up, and
which the kernel kills.
"""

import json
import math
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from qprobe.errors import RewardError
from qprobe.rewards import search
from qprobe.rewards.ending import find_next_questions
from qprobe.rewards.sandboxed.blocks import after_reasoning

__all__ = ["Found", "check_pattern", "check_pattern_apart", "find_last"]

# A pattern that asks for the form of an answer, its reasoning part included.
_NAMES_REASONING = re.compile("think|thought|reasoning", re.IGNORECASE)
# Of CPU time: one text, and all of a call, above the tenth of a second of the process's start.
SEARCH_S, _ALL_S = 1.0, 4
_WALL_S = 60
# How often it is looked whether a search is to be ended sooner.
_LOOK_S = 0.1


@dataclass(frozen=True)
class Found:
    """What a search came to; nothing if its time was up.

    Attributes:
        is_found: Whether the pattern is there at all.
        value: Group 1 of its last match that counts, the whole match of a pattern without groups;
            None without a match, or if the group is in no part of it.
    """

    is_found: bool
    value: str | None


def check_pattern(pattern: str) -> int:
    """Return how many groups a pattern has.

    Raises:
        ValueError: It is no regular expression; says why.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a later Python will read in another way
        try:
            return re.compile(pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is no regular expression: {error}") from error


def check_pattern_apart(pattern: str) -> None:
    """Check a pattern of unknown origin, in a process of its own. Blocks, for some 30 ms.

    A thousand characters can take a second to compile, which would hold all other threads up.

    Raises:
        ValueError: It is no regular expression, or takes more than 1 s of CPU time; says why.
        RewardError: The process could not be run.
    """
    status, _, complaint = _run(pattern, [], all_s=math.ceil(SEARCH_S))
    if status == search.NO_PATTERN:
        reason = complaint.decode(errors="replace").strip()
        raise ValueError(f"is no regular expression: {reason}")
    if status < 0:
        raise ValueError(f"takes more than {SEARCH_S:g} s to compile")
    if status:
        raise RewardError("the pattern could not be read")


def find_last(pattern: str, texts: Sequence[str], *, stop: Event | None = None) -> list[Found]:
    """Search completions; matches in a further question that the model asks itself do not count.

    Nor does a reasoning part, unless the pattern names its tag, as ``<think>`` does. Blocks. A text
    that takes more than 1 s of CPU time, and those left after 4 s of a call, have no match.

    Args:
        pattern: Passes ``check_pattern``.
        texts: The completions.
        stop: When it is set the search ends, within a tenth of a second: those left have no match.

    Raises:
        RewardError: The search could not be run.
    """
    if not _NAMES_REASONING.search(pattern):
        texts = [after_reasoning(text) for text in texts]
    status, said, _ = _run(pattern, texts, all_s=_ALL_S, stop=stop)
    if status > 0:  # not killed, which it is when it is out of time
        raise RewardError(f"the search for the pattern {pattern!r:.80} failed")
    # Of a process that was killed the last line may be cut.
    found = [Found(*json.loads(line)) for line in said.split(b"\n")[:-1]]
    return found + [Found(is_found=False, value=None)] * (len(texts) - len(found))


def _run(
    pattern: str, texts: Sequence[str], *, all_s: int, stop: Event | None = None
) -> tuple[int, bytes, bytes]:
    """Run a search; return the process's status, below 0 if it was killed, and what it said."""
    asked = [pattern, [[text, find_next_questions(text)] for text in texts], SEARCH_S, all_s]
    given: bytes | None = json.dumps(asked).encode()
    deadline_s = time.monotonic() + _WALL_S
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-W", "ignore", search.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                while True:
                    try:
                        said, complaint = process.communicate(given, timeout=_LOOK_S)
                        return process.returncode, said, complaint
                    except subprocess.TimeoutExpired:
                        given = None  # it has that already
                    if time.monotonic() > deadline_s:
                        raise RewardError(f"the search took more than {_WALL_S} s")
                    if stop is not None and stop.is_set():
                        process.kill()
            finally:
                process.kill()
    except OSError as error:
        raise RewardError(f"the search could not be run: {type(error).__name__}") from error
