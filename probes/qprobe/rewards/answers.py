"""Rewards of an answer's text: the number it ends in, or what a pattern finds in it."""

import json
import math
import re
import subprocess
import sys
from typing import Any

from qprobe.errors import RewardError, RowError
from qprobe.rewards.ending import find_next_questions, read_gold, read_quantity
from qprobe.rewards.quantity import Quantity
from qprobe.rewards.sandboxed.blocks import after_reasoning

__all__ = ["NumericReward", "RegexReward", "read_number"]

Json = dict[str, Any]

# A pattern that asks for the form of an answer, its reasoning part included.
_NAMES_REASONING = re.compile("think|thought|reasoning", re.IGNORECASE)
# One search can take exponential time and holds the interpreter's lock all along, so that no thread
# could stop it: it runs in a process that the kernel kills.
_SEARCH_CPU_S = 1
_SEARCH_WALL_S = 60
_SEARCH = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_SEARCH_CPU_S}, {_SEARCH_CPU_S}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pattern, text, want, questions = json.load(sys.stdin)
if want is None:
    print(re.search(pattern, text) is not None)
else:
    group, end = None, None
    for found in re.finditer(pattern, text):
        if end is None:
            end = min((each for each in questions if each >= found.end()), default=len(text))
        if found.start() > end:
            break
        group = found[1]
    print(group is not None and group.strip() == want.strip())
"""


class NumericReward:
    r"""1 if the number that an answer ends in is the row's ``answer``.

    ``qprobe.rewards.ending`` says which number that is, ``qprobe.rewards.quantity`` how it may be
    written and when two are equal. Units do not count; a percent sign may be left out, and 50 % is
    also 0.5.
    """

    name = "numeric"

    def check(self, fields: Json) -> None:
        r"""Check ``answer``: a finite number, a string of nothing but one, or a solution.

        A solution ends in ``#### 42``, as in GSM8K, or in ``\boxed{42}``.

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
        found = read_quantity(completion)
        return float(found is not None and found.equals(want))


def read_number(completion: str) -> float | None:
    """Return the number that an answer ends in, as NumericReward reads it; None without one."""
    found = read_quantity(completion)
    return None if found is None else found.value


def _read_answer(fields: Json) -> Quantity:
    value = fields.get("answer")
    found: Quantity | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = Quantity(float(value))
        except OverflowError:  # an integer beyond every float
            found = None
    elif isinstance(value, str):
        found = read_gold(value)
    if found is None or not math.isfinite(found.value):
        raise RowError("answer", f"must be a finite number, or a string of one, got {value!r:.80}")
    return found


class RegexReward:
    """1 if the row's ``pattern`` is found in an answer, by ``re.search``.

    With a string ``answer`` in the row, 1 if group 1 of the pattern's last match equals it, white
    space around it aside; matches do not count in a further question that the model asks itself.
    Nor does a reasoning part, unless the pattern names its tag, as ``<think>`` does. A search that
    takes more than 1 s of CPU time has found nothing.
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
        text = completion
        if not _NAMES_REASONING.search(fields["pattern"]):
            text = after_reasoning(completion)
        questions = find_next_questions(text)
        asked = json.dumps([fields["pattern"], text, fields.get("answer"), questions])
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
