"""Which terms a probe is to be the sum of, and what of a dataset its fit takes for them."""

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
from qprobe.training.cross_validation import Problem
from qprobe.training.fit import FittedProbe, TrainingSettings
from qprobe.training.gate import Gate, read_gate, read_maximum
from qprobe.training.inputs import Inputs, prepare, prepare_each
from qprobe.training.pooled import Pooled

__all__ = ["Columns", "Design", "has_logprobs", "pose", "settle_numbers"]


@dataclass(frozen=True)
class Columns:
    """What a fit reads of samples.

    Attributes:
        blocks: Shape (samples, hidden) for each reading, float32.
        numbers: Shape (samples, numbers), float64; None without any.
        pooled: What rolling maxima and gates read, along axes that all samples give.
    """

    blocks: list[Tensor]
    numbers: Tensor | None
    pooled: tuple[Pooled, ...] = ()

    def prepare(self, order: Tensor) -> Inputs:
        """Return what a fit takes, in an order as ``Problem`` has it: shape (samples,).

        Raises:
            TrainingError: As ``qprobe.training.inputs.prepare``.
        """
        return prepare(self.blocks, self.numbers, order=order, pooled=self.pooled)

    def __getitem__(self, rows: NDArray[np.int64]) -> "Columns":
        """Return some samples, in the order given."""
        picked = torch.from_numpy(rows)
        numbers = None if self.numbers is None else self.numbers[picked]
        pooled = tuple(each.take(picked) for each in self.pooled)
        return Columns([each[picked] for each in self.blocks], numbers, pooled)


@dataclass(frozen=True)
class Design:
    """The terms of a probe without their weights. ``str`` is what ``Terms.describe`` says.

    Attributes:
        readings: Each another one.
        numbers: Of ``NUMBERS``, each another one.
        gates: Each another one.

    Raises:
        TrainingError: There is no term, or one twice, or a number that there is not, or an
            endpoint's embedding beside states.
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
        if EMBEDDING in self.readings and (self.readings != (EMBEDDING,) or self.gates):
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
        parts, numbers = text.split(" + "), ()
        found = re.fullmatch(r"numbers(?:\((.+)\))?", parts[-1])
        if found is not None:
            parts.pop()
            numbers = NUMBERS if found[1] is None else tuple(found[1].split(","))
        gates = [each.replace("/gate", "") for each in parts if "/gate" in each]
        readings = [each for each in parts if "/gate" not in each]
        return cls(tuple(map(Reading.parse, readings)), numbers, tuple(map(Gate.parse, gates)))

    @classmethod
    def of(cls, terms: Terms) -> "Design":
        """Return the terms of a probe that was trained."""
        gates = tuple(Gate(each.layer, each.segments) for each in terms.gates)
        return cls(tuple(terms.readings), tuple(terms.numbers), gates)

    def require(self, dataset: Dataset) -> None:
        """Check that a dataset has what is read.

        Raises:
            DatasetError: It has not.
        """
        dataset.require(self._linear)
        dataset.require((), [each.layer for each in self._maxima])
        for gate in self.gates:
            dataset.require(gate.readings, gate.token_layers)

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
            tokens: The numbers are those of the first so many tokens, as a head's.

        Raises:
            DatasetError: Something is not stored.
            TrainingError: A head is asked for with a gate or a maximum.
        """
        pooled = self._read_pooled(dataset, tokens)
        blocks = [dataset.features(each) for each in self._linear]
        return Columns(blocks, self._read_numbers(dataset, tokens), pooled)

    def prepare(self, dataset: Dataset, order: Tensor, *, tokens: int | None = None) -> Inputs:
        """Prepare what ``read`` returns without ever holding more than one reading of it.

        Args:
            dataset: Has the readings.
            order: Shape (samples,), as ``Problem`` has it.
            tokens: As in ``read``.

        Raises:
            DatasetError: Something is not stored.
            TrainingError: As ``read`` and ``prepare_each``.
        """
        pooled = self._read_pooled(dataset, tokens)
        return prepare_each(
            map(dataset.features, self._linear),
            self._read_numbers(dataset, tokens),
            widths=[dataset.manifest["hidden_size"]] * len(self._linear),
            order=order,
            pooled=pooled,
        )

    @property
    def _linear(self) -> list[Reading]:
        return [each for each in self.readings if each.pooling != "max"]

    @property
    def _maxima(self) -> list[Reading]:
        return [each for each in self.readings if each.pooling == "max"]

    def _read_numbers(self, dataset: Dataset, tokens: int | None) -> Tensor | None:
        if not self.numbers:
            return None
        return torch.from_numpy(dataset.numbers(self.numbers, tokens=tokens))

    def _read_pooled(self, dataset: Dataset, tokens: int | None) -> tuple[Pooled, ...]:
        if tokens is not None and (self._maxima or self.gates):
            raise TrainingError("terms", f"{str(self)!r} are not trained as a head")
        maxima = (read_maximum(dataset, each) for each in self._maxima)
        return (*maxima, *(read_gate(dataset, each) for each in self.gates))

    def to_terms(self, fitted: FittedProbe) -> Terms:
        """Return the terms with the weights of a fit to their columns."""
        weights, pooled = iter(fitted.weights), iter(fitted.pooled)
        states = tuple(
            StateTerm(each, next(pooled).value if each.pooling == "max" else next(weights).numpy())
            for each in self.readings
        )
        gates = tuple(
            GateTerm(gate.layer, gate.segments, own.gate, own.value, own.gate_bias)
            for gate, own in zip(self.gates, pooled, strict=True)
        )
        numbers = dict(zip(self.numbers, fitted.number_weights.tolist(), strict=True))
        return Terms(states, gates, numbers, fitted.bias)


def pose(dataset: Dataset, settings: TrainingSettings) -> Problem:
    """Return what a probe is fitted to on all samples of a dataset.

    Raises:
        TrainingError: As ``fit_probe``.
    """
    questions = dataset.questions[dataset.groups]
    return Problem(dataset.rewards, dataset.groups, settings, questions)


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
