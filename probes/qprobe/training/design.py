"""Which terms a probe is to be the sum of, and what of a dataset its fit reads for them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.data.dataset import Dataset
from qprobe.errors import DatasetError, TrainingError
from qprobe.probe.pooling import LOGPROB_NUMBERS
from qprobe.probe.reading import EMBEDDING, Reading
from qprobe.probe.terms import GateTerm, StateTerm, Terms
from qprobe.probe.values import NUMBERS
from qprobe.training.fit import FittedProbe
from qprobe.training.gate import FittedGate, Gate, weigh
from qprobe.training.inputs import Inputs, prepare_each

__all__ = ["Columns", "Design", "has_logprobs", "settle_numbers"]


@dataclass(frozen=True)
class Columns:
    """What a fit reads of samples, as ``fit_probe`` takes it.

    Attributes:
        blocks: Shape (samples, hidden) for each reading, float32.
        numbers: Shape (samples, numbers), float64; None without any.
    """

    blocks: list[Tensor]
    numbers: Tensor | None

    def add(self, scores: Sequence[NDArray[np.float64]]) -> "Columns":
        """Return them with more numbers, shape (samples,) each, after those that there are."""
        more = [torch.from_numpy(each)[:, None] for each in scores]
        parts = [*([] if self.numbers is None else [self.numbers]), *more]
        return Columns(self.blocks, torch.cat(parts, 1) if parts else None)

    def __getitem__(self, rows: NDArray[np.int64]) -> "Columns":
        """Return some samples, in the order given."""
        picked = torch.from_numpy(rows)
        numbers = None if self.numbers is None else self.numbers[picked]
        return Columns([each[picked] for each in self.blocks], numbers)


@dataclass(frozen=True)
class Design:
    """The terms of a probe without their weights. ``str`` is what ``Terms.describe`` says.

    Attributes:
        readings: Each another one.
        numbers: Of ``NUMBERS``, each another one.
        gates: Each another one.

    Raises:
        TrainingError: There is no term, or one twice, or a number that there is not, or a reading
            beside a gate.
    """

    readings: tuple[Reading, ...] = ()
    numbers: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()

    def __post_init__(self) -> None:
        every = {"readings": self.readings, "numbers": self.numbers, "gates": self.gates}
        if not any(every.values()):
            raise TrainingError("terms", "must be one at least: a reading, a gate or numbers")
        for name, given in every.items():
            for index, each in enumerate(given):
                if each in given[:index]:
                    raise TrainingError(name, f"must be different, got {str(each)!r} twice")
        for number in self.numbers:
            if number not in NUMBERS:
                raise TrainingError("numbers", f"must be of {', '.join(NUMBERS)}, got {number!r}")
        for reading in self.readings:
            if reading.pooling == "max":
                raise TrainingError(
                    "reading", f"{str(reading)!r} is no mean of states, and cannot be trained"
                )
        self._check_together()

    def _check_together(self) -> None:
        if self.gates and self.readings:
            # A gate's score of a prompt comes from gates that have seen the rewards of all others;
            # its states beside it decode these, also where the others are held out.
            raise TrainingError(
                "gates",
                "go with numbers (--gate with --numbers), not with readings: their held-out scores "
                "would leak the rewards of other prompts into cross-validation",
            )
        if EMBEDDING in self.readings and self.readings != (EMBEDDING,):
            raise TrainingError("readings", "must be an endpoint's embedding, or a model's states")

    def __str__(self) -> str:
        nothing = np.zeros(0, np.float32)
        states = tuple(StateTerm(each, nothing) for each in self.readings)
        gates = tuple(GateTerm(each.layer, each.segments, nothing, nothing) for each in self.gates)
        return Terms(states, gates, dict.fromkeys(self.numbers, 0.0)).describe()

    @classmethod
    def parse(cls, text: str) -> "Design":
        """Read what ``str`` wrote.

        Raises:
            QProbeError: It is not that.
        """
        *parts, last = text.split(" + ")
        found = re.fullmatch(r"numbers(?:\((.+)\))?", last)
        if found is None:
            return cls(tuple(map(Reading.parse, [*parts, last])))
        numbers = NUMBERS if found[1] is None else tuple(found[1].split(","))
        return cls(tuple(map(Reading.parse, parts)), numbers)

    @classmethod
    def of(cls, terms: Terms) -> "Design":
        """Return the terms of a probe that was trained.

        Raises:
            TrainingError: One of them is a gate, which is not trained anew for a part of the
                prompts.
        """
        if terms.gates:
            raise TrainingError(
                "terms",
                f"{terms.describe()!r} have a gate, which is not trained anew for a part of the "
                "prompts",
            )
        return cls(tuple(terms.readings), tuple(terms.numbers))

    def begin(self, tokens: int) -> "Design":
        """Return the terms of a head: the means of each layer over the first so many tokens.

        Gates do not count in them; their layers do.
        """
        read = [each.layer for each in self.readings]
        layers = dict.fromkeys([*read, *(each.layer for each in self.gates)])
        if "embedding" in layers:
            raise TrainingError("checkpoints", "are not for an endpoint's embedding")
        return Design(tuple(Reading(each, "mean", tokens) for each in layers), self.numbers)

    def read(self, dataset: Dataset, *, tokens: int | None = None) -> Columns:
        """Read what is stored.

        Args:
            dataset: Has the readings.
            tokens: The numbers are those of the first so many tokens.

        Raises:
            DatasetError: Something is not stored.
        """
        blocks = [dataset.features(each) for each in self.readings]
        return Columns(blocks, self._read_numbers(dataset, tokens))

    def _read_numbers(self, dataset: Dataset, tokens: int | None) -> Tensor | None:
        if not self.numbers:
            return None
        return torch.from_numpy(dataset.numbers(self.numbers, tokens=tokens))

    def prepare(
        self,
        dataset: Dataset,
        order: Tensor,
        *,
        tokens: int | None = None,
        scores: Sequence[NDArray[np.float64]] = (),
    ) -> Inputs:
        """Prepare what ``read`` returns without ever holding more than one reading of it.

        Args:
            dataset: Has the readings.
            order: Shape (samples,), as ``Problem`` has it.
            tokens: As in ``read``.
            scores: More numbers, shape (samples,) each.

        Raises:
            DatasetError: Something is not stored.
            TrainingError: As ``prepare_each``.
        """
        return prepare_each(
            map(dataset.features, self.readings),
            Columns([], self._read_numbers(dataset, tokens)).add(scores).numbers,
            widths=[dataset.manifest["hidden_size"]] * len(self.readings),
            order=order,
        )

    def to_terms(self, fitted: FittedProbe, gates: Sequence[FittedGate] = ()) -> Terms:
        """Return the terms with the weights of a fit to their columns, those of gates last."""
        pairs = zip(self.readings, fitted.weights, strict=True)
        weights = fitted.number_weights.tolist()
        count = len(self.numbers)
        return Terms(
            tuple(StateTerm(reading, weight.numpy()) for reading, weight in pairs),
            tuple(weigh(each.term, w) for each, w in zip(gates, weights[count:], strict=True)),
            dict(zip(self.numbers, weights[:count], strict=True)),
            fitted.bias,
        )


def settle_numbers(dataset: Dataset, numbers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the numbers that were asked for, or, of None, all if the log-probabilities are known.

    Without them the others say little. So of None it is none where an API has sampled: a model that
    reads for a proxy takes no probe of the API's log-probabilities, though it takes one of length
    and cut. It is none either where a completion was given: it has no token that ends it, which
    sampled ones have, so that its numbers are not those of what is served.
    """
    if numbers is not None:
        return tuple(numbers)
    given = any(each.finish_reason == "given" for each in dataset.samples)
    if given or dataset.manifest.get("upstream"):
        return ()
    return NUMBERS if has_logprobs(dataset) else ()


def has_logprobs(dataset: Dataset, *, tokens: Sequence[int | None] = (None,)) -> bool:
    """Whether a dataset knows the log-probabilities, of the first so many tokens each."""
    try:
        for each in tokens:
            dataset.numbers(sorted(LOGPROB_NUMBERS), tokens=each)
    except DatasetError:
        return False
    return True
