"""From a score to the reward that is to be expected."""

import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qprobe.errors import ProbeFileError
from qprobe.probe.terms import Terms

__all__ = ["Calibration", "Confidence", "Isotonic", "Platt", "read_calibration"]

Floats = NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Platt:
    """sigmoid(slope * score + intercept), for rewards from 0 to 1 (Platt 1999).

    Raises:
        ProbeFileError: A field is not finite.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        for name in ("slope", "intercept"):
            _check_finite(f"calibration.{name}", getattr(self, name))

    def apply(self, scores: ArrayLike) -> Floats:
        """Return the expected reward of each score, shape as given."""
        logits = self.slope * np.asarray(scores, np.float64) + self.intercept
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))

    def to_json(self) -> Json:
        """Return it as a header holds it."""
        return {"kind": "platt", **asdict(self)}


@dataclass(frozen=True)
class Isotonic:
    """The straight lines between knots, level beyond them; for rewards of any range.

    Attributes:
        scores: Of the knots, rising; at least one.
        rewards: Likewise, never falling.

    Raises:
        ProbeFileError: A field is not as said above.
    """

    scores: tuple[float, ...]
    rewards: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores or len(self.scores) != len(self.rewards):
            raise ProbeFileError(
                "calibration.rewards",
                f"must be as many as the scores, one at least, got {len(self.rewards)} of "
                f"{len(self.scores)}",
            )
        for name in ("scores", "rewards"):
            for index, each in enumerate(getattr(self, name)):
                _check_finite(f"calibration.{name}.{index}", each)
        if any(former >= latter for former, latter in pairwise(self.scores)):
            raise ProbeFileError("calibration.scores", "must rise")
        if any(former > latter for former, latter in pairwise(self.rewards)):
            raise ProbeFileError("calibration.rewards", "must never fall")

    def apply(self, scores: ArrayLike) -> Floats:
        """Return the expected reward of each score, shape as given."""
        return np.asarray(np.interp(np.asarray(scores, np.float64), self.scores, self.rewards))

    def to_json(self) -> Json:
        """Return it as a header holds it."""
        return {"kind": "isotonic", "scores": list(self.scores), "rewards": list(self.rewards)}


Calibration = Platt | Isotonic


@dataclass(frozen=True, eq=False)
class Confidence:
    """How sure a probe is of an answer, whatever the other answers are.

    Attributes:
        calibration: From a score to the expected reward; of rewards 0 and 1, the probability of 1.
        terms: What that score is the sum of; None is the probe's own. A score that was trained to
            compare answers of one prompt need not know which prompts are hard.
    """

    calibration: Calibration
    terms: Terms | None = None


def read_calibration(value: object) -> Calibration:
    """Return what a header holds.

    Raises:
        ProbeFileError: It is not valid; the field is named.
    """
    if not isinstance(value, dict):
        raise ProbeFileError("calibration", f"must be an object, got {value!r}")
    given = {name: each for name, each in value.items() if name != "kind"}
    kinds = {"platt": {"slope", "intercept"}, "isotonic": {"scores", "rewards"}}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ProbeFileError("calibration.kind", f"must be platt or isotonic, got {kind!r}")
    if given.keys() != kinds[kind]:
        raise ProbeFileError(
            "calibration", f"must hold {', '.join(sorted(kinds[kind]))}, got {', '.join(given)}"
        )
    if kind == "platt":
        return Platt(**given)
    for name, each in given.items():
        if not isinstance(each, list):
            raise ProbeFileError(f"calibration.{name}", f"must be a list, got {each!r}")
    return Isotonic(tuple(given["scores"]), tuple(given["rewards"]))


def _check_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProbeFileError(name, f"must be a finite number, got {value!r}")
    if not abs(value) <= sys.float_info.max:  # also of an int, which may be beyond any float
        raise ProbeFileError(name, "must be a finite number")
