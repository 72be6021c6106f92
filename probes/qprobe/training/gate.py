"""A gate: which segments of a completion its score hears (SWIFT, arXiv 2505.12225).

It is no linear term, so that it is trained by itself first. Its scores of prompts held out are then
one more column of the linear fit, which gives it its weight.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.probe.reading import Reading
from qprobe.probe.terms import GateTerm
from qprobe.probe.values import Layer
from qprobe.training.cross_validation import Problem
from qprobe.training.inputs import Inputs, prepare
from qprobe.training.settings import TrainingSettings

__all__ = ["GATE_FITS", "FittedGate", "Gate", "fit_gate", "weigh"]

Floats = NDArray[np.float64]
# The main axes of the states that gate and value read: all of them would fit noise.
_NUM_AXES = 32
_WEIGHT_DECAYS = (1.0, 0.1, 0.01)
# How often ``fit_gate`` tells of its progress.
GATE_FITS = len(_WEIGHT_DECAYS) + 1
_MAX_STEPS = 100
# That the axes are found by.
_MAX_SAMPLES = 1024
# Of each, where every token is a segment of its own.
_MAX_TOKENS = 16


@dataclass(frozen=True)
class Gate:
    """A gate that is to be trained: ``20/8,16,32`` ends segments after 8, 16 and 32 tokens.

    ``20`` hears every token by itself.

    Attributes:
        layer: As in ``Reading``.
        segments: Ends of the segments, rising. What is left is the last. Empty: every token is one.
    """

    layer: Layer
    segments: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read LAYER/END,END,... or LAYER.

        Raises:
            TrainingError: It is not that.
        """
        found = re.fullmatch(r"(final|[1-9]\d*)(?:/([1-9]\d*(?:,[1-9]\d*)*))?", text)
        ends = [int(each) for each in found[2].split(",")] if found and found[2] else []
        if found is None or ends != sorted(set(ends)):
            raise TrainingError(
                "gate", f"must be LAYER, or LAYER/END,END,..., rising, got {text!r}"
            )
        return cls("final" if found[1] == "final" else int(found[1]), tuple(ends))

    @property
    def readings(self) -> list[Reading]:
        """The means that its segments are differences of, the whole one last; none for tokens."""
        if not self.segments:
            return []
        return [Reading(self.layer, "mean", each) for each in (*self.segments, None)]

    @property
    def token_layers(self) -> list[Layer]:
        """The layer, if the states of its tokens are read."""
        return [] if self.segments else [self.layer]


@dataclass(frozen=True)
class FittedGate:
    """A trained gate.

    Attributes:
        term: The gate.
        held_out_scores: Shape (samples,): each by a fit without its prompt.
    """

    term: GateTerm
    held_out_scores: Floats


@dataclass(frozen=True)
class _Segments:
    """Means over segments along the main axes, (samples, segments, axes), and their sizes."""

    means: Tensor
    sizes: Tensor

    def score(self, parameters: Tensor) -> Tensor:
        """Score by gate and value, (axes + 1,) each in one, the biases last: (samples,)."""
        gate, value = parameters.chunk(2)
        logs = torch.nn.functional.logsigmoid(self.means @ gate[:-1] + gate[-1])
        weights = (logs + self.sizes.log()).softmax(1)  # an empty segment weighs 0
        return (weights * (self.means @ value[:-1] + value[-1])).sum(1)

    def take(self, rows: Tensor) -> "_Segments":
        return _Segments(self.means[rows], self.sizes[rows])


def fit_gate(
    dataset: Dataset,
    gate: Gate,
    settings: TrainingSettings,
    *,
    progress: Callable[[], object] = lambda: None,
) -> FittedGate:
    """Train a gate with the objective of the settings, at the best of three weight decays.

    Args:
        dataset: Has the gate's readings, or the states of its tokens. Of these 32 numbers each are
            held, for as many tokens of every sample as the longest has.
        gate: Which.
        settings: Of the training; its own weight decays are those of the linear fit.
        progress: Called ``GATE_FITS`` times.

    Raises:
        QProbeError: A reading is not stored, or rewards do not go with the objective.
    """
    inputs = _find_axes(dataset, gate)
    axes = inputs.axes[:, :_NUM_AXES].cpu().double()
    read = _read_segments if gate.segments else _read_tokens
    segments = read(dataset, gate, lambda raw: ((raw - inputs.means) * inputs.scales) @ axes)
    problem = Problem(dataset.rewards, dataset.groups, settings, dataset.questions[dataset.groups])

    def hold_out(decay: float) -> Floats:
        scores = np.empty(len(dataset.rewards))
        for fold, places in enumerate(problem.places):
            known = torch.cat([each for at, each in enumerate(problem.places) if at != fold])
            found = _fit(problem, fold, segments.take(known), decay)
            scores[places.numpy()] = segments.take(places).score(found).numpy()
        progress()
        return scores

    tried = {decay: hold_out(decay) for decay in _WEIGHT_DECAYS}

    def earn(decay: float) -> float:
        rewards, groups = dataset.rewards, dataset.groups
        fewest = int(dataset.num_samples.min())
        return float(expected_rewards(tried[decay], rewards, groups, k=fewest, beta=0).mean())

    decay = max(tried, key=earn)
    every = torch.cat(problem.places)
    found = _fit(problem, None, segments.take(every), decay)
    progress()
    return FittedGate(_to_term(gate, inputs, found), tried[decay])


def _to_term(gate: Gate, inputs: Inputs, parameters: Tensor) -> GateTerm:
    """Return a gate with parameters of the main axes, as ``_Segments.score`` takes them."""
    weights = []
    for part in parameters.chunk(2):
        raw = inputs.expand(
            torch.cat([part[:-1], part.new_zeros(inputs.axes.shape[1] - len(part) + 1)])
        )
        weights.append(inputs.undo(raw, float(part[-1])))
    (gating,), (value,) = (each.blocks for each in weights)
    return GateTerm(
        gate.layer, gate.segments, gating.numpy(), value.numpy(), weights[0].bias, weights[1].bias
    )


def weigh(term: GateTerm, weight: float) -> GateTerm:
    """Return a gate whose score is so many times as large."""
    value = np.asarray(term.value * np.float32(weight), np.float32)
    return replace(term, value=value, value_bias=term.value_bias * weight)


def _fit(problem: Problem, fold: int | None, segments: _Segments, decay: float) -> Tensor:
    """Return the parameters that fit samples of all folds but one, in order of the folds."""
    loss = problem.make_loss(fold)
    width = segments.means.shape[2] + 1
    free = torch.ones(2 * width, dtype=torch.float64)
    free[[width - 1, 2 * width - 1]] = 0

    def evaluate(values: Floats) -> tuple[float, Floats]:
        parameters = torch.from_numpy(values).requires_grad_()
        value = loss(segments.score(parameters)) + decay / 2 * (parameters * free).square().sum()
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.numpy()

    options = {"maxiter": _MAX_STEPS}
    start = np.zeros(2 * width)
    # With no value yet, no gate has an effect: a little of one lets both begin.
    start[width:-1] = 1e-2 / math.sqrt(width)
    return torch.from_numpy(
        minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options).x
    )


def _find_axes(dataset: Dataset, gate: Gate) -> Inputs:
    """Return the main axes of the means over segments, by some of the samples."""
    rows = _spread(len(dataset.samples), _MAX_SAMPLES)
    if not gate.segments:
        each_some = [
            states[torch.from_numpy(_spread(len(states), _MAX_TOKENS))]
            for states in dataset.token_states(gate.layer, rows)
        ]
        return prepare([torch.cat(each_some)])
    some = _read_segments(dataset, gate, lambda raw: raw[torch.from_numpy(rows)], rows)
    return prepare([some.means[some.sizes > 0]])


def _spread(length: int, most: int) -> NDArray[np.int64]:
    """Return at most so many places of a sequence, evenly spread."""
    return np.unique(np.linspace(0, length - 1, most).astype(np.int64))


def _read_tokens(dataset: Dataset, gate: Gate, project: Callable[[Tensor], Tensor]) -> _Segments:
    """As ``_read_segments``, of segments of one token."""
    kept = [project(each.double()) for each in dataset.token_states(gate.layer)]
    sizes = [torch.ones(len(each), dtype=torch.float64) for each in kept]
    return _Segments(pad_sequence(kept, batch_first=True), pad_sequence(sizes, batch_first=True))


def _read_segments(
    dataset: Dataset,
    gate: Gate,
    project: Callable[[Tensor], Tensor],
    rows: NDArray[np.int64] | slice = slice(None),
) -> _Segments:
    """Return means over segments, which are differences of those over windows.

    Args:
        dataset: Has the gate's readings.
        gate: Which.
        project: What of an embedding, (samples, hidden) float64, is kept; affine.
        rows: The samples that are.
    """
    lengths = np.array([max(each.num_scored, 1) for each in dataset.samples], np.float64)[rows]
    counts, sums = [np.zeros_like(lengths)], []
    for reading in gate.readings:
        counts.append(np.minimum(lengths, reading.window or np.inf))
        means = project(dataset.features(reading).double())
        sums.append(means * torch.from_numpy(counts[-1])[:, None])
    sizes = torch.from_numpy(np.diff(counts, axis=0).T)  # (samples, segments)
    parts = torch.stack([torch.zeros_like(sums[0]), *sums], 1).diff(dim=1)
    return _Segments(parts / sizes.clamp_min(1)[:, :, None], sizes)
