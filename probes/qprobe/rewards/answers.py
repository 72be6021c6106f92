"""Rewards of an answer's text: its last number, or what a pattern finds in it."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from qprobe.errors import RewardError, RowError

__all__ = ["NumericReward", "RegexReward", "read_number"]

Json = dict[str, Any]

_RELATIVE_TOLERANCE = 1e-6
# A sign counts where it cannot be a minus between two terms; digits count where they do not end a
# word or a name, such as x2.
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\w)\]}])[-+])?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<=\d)|\.\d+)(?:e[-+]?\d+)?",
    re.ASCII | re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_HASHES = re.compile(r"####([^\n]*)")
_MINUS = str.maketrans({"\N{MINUS SIGN}": "-"})

# One search can take exponential time and holds the interpreter's lock all along, so that no thread
# could stop it: it runs in a process that the kernel kills.
_SEARCH_CPU_S = 1
_SEARCH_WALL_S = 60
_SEARCH = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_SEARCH_CPU_S}, {_SEARCH_CPU_S}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pattern, text, want = json.load(sys.stdin)
found = None
if want is None:
    print(re.search(pattern, text) is not None)
else:
    for found in re.finditer(pattern, text):
        pass
    print(found is not None and found[1] == want)
"""


class NumericReward:
    r"""1 if the number that an answer ends in is the row's ``answer``, to a millionth of it.

    It is the last number of the last ``\boxed{}`` that holds one, else of the last ``####`` line
    that does (as in GSM8K), else of the whole text. 1,234.5, -3, +.5 and 1e3 are read, fractions
    are not.
    """

    name = "numeric"

    def check(self, fields: Json) -> None:
        """Check ``answer``: a finite number, or a string of nothing but one.

        Raises:
            RowError: It is missing or something else.
        """
        _read_answer(fields)

    def __call__(self, fields: Json, completion: str) -> float:
        """Return 1.0 or 0.0.

        Raises:
            RowError: As ``check``.
        """
        want = _read_answer(fields)
        found = read_number(completion)
        if found is None:
            return 0.0
        return float(math.isclose(found, want, rel_tol=_RELATIVE_TOLERANCE))


def read_number(completion: str) -> float | None:
    """Return the number that an answer ends in, as NumericReward reads it; None without one."""
    text = completion.translate(_MINUS).replace("{,}", ",")
    for part in _where_the_answer_is(text):
        numbers = [match[0] for match in _NUMBER.finditer(part)]
        if numbers:
            return float(numbers[-1].replace(",", ""))
    return None


def _where_the_answer_is(text: str) -> Iterator[str]:
    for marked in (_BOXED, _HASHES):
        yield from reversed(marked.findall(text))
    yield text


def _read_answer(fields: Json) -> float:
    value = fields.get("answer")
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            number = math.inf
    elif isinstance(value, str) and (match := _NUMBER.fullmatch(value.strip().translate(_MINUS))):
        number = float(match[0].replace(",", ""))
    if not math.isfinite(number):
        raise RowError("answer", f"must be a finite number, or a string of one, got {value!r:.80}")
    return number


class RegexReward:
    """1 if the row's ``pattern`` is found in an answer, by ``re.search``.

    With a string ``answer`` in the row, 1 if group 1 of the pattern's last match equals it. A
    search that takes more than 1 s of CPU time has found nothing.
    """

    name = "regex"

    def check(self, fields: Json) -> None:
        """Check ``pattern``, and ``answer`` if there is one.

        Raises:
            RowError: The pattern is missing or not valid, or has no group to compare with
                ``answer``, or ``answer`` is not a string.
        """
        pattern = fields.get("pattern")
        if not isinstance(pattern, str):
            raise RowError("pattern", f"must be a string, got {pattern!r:.80}")
        try:
            num_groups = re.compile(pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise RowError(
                "pattern", f"is no regular expression: {error}, got {pattern!r:.80}"
            ) from error
        answer = fields.get("answer")
        if answer is not None and not isinstance(answer, str):
            raise RowError("answer", f"must be a string or null, got {answer!r:.80}")
        if answer is not None and not num_groups:
            raise RowError("pattern", f"must have a group, for 'answer', got {pattern!r:.80}")

    def __call__(self, fields: Json, completion: str) -> float:
        """Return 1.0 or 0.0.

        Raises:
            RowError: As ``check``.
            RewardError: The search could not be run.
        """
        self.check(fields)
        asked = json.dumps([fields["pattern"], completion, fields.get("answer")])
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _SEARCH],
                input=asked.encode(),
                capture_output=True,
                timeout=_SEARCH_WALL_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RewardError(f"reward 'regex' could not be run: {type(error).__name__}") from error
        if done.returncode < 0:  # killed: out of CPU time
            return 0.0
        if done.returncode:
            raise RewardError(f"reward 'regex' failed for pattern {fields['pattern']!r:.80}")
        return float(done.stdout.strip() == b"True")
