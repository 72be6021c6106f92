"""Rewards of an answer's text: the number it ends in, or what a pattern finds in it."""

import math
from typing import Any

from qprobe.errors import RowError
from qprobe.rewards.ending import read_gold, read_quantity
from qprobe.rewards.pattern import check_pattern, find_last
from qprobe.rewards.quantity import Quantity

__all__ = ["NumericReward", "RegexReward"]

Json = dict[str, Any]


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
            num_groups = check_pattern(pattern)
        except ValueError as error:
            raise RowError("pattern", f"{error}, got {pattern!r:.80}") from error
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
        (found,) = find_last(fields["pattern"], [completion])
        answer = fields.get("answer")
        if answer is None:
            return float(found.is_found)
        return float(found.value is not None and found.value.strip() == answer.strip())
