"""Scores of a dataset's samples, as a server computes them."""

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.errors import DatasetError
from qprobe.probe.reading import Reading
from qprobe.probe.terms import GateTerm, Terms

__all__ = ["list_readings", "score"]

Floats = NDArray[np.float64]


def score(terms: Terms, dataset: Dataset, *, tokens: int | None = None) -> Floats:
    """Score all samples of a dataset: shape (samples,).

    Args:
        terms: What the score is the sum of.
        dataset: Of the model that the terms read.
        tokens: Look at the first so many tokens only, as a head does; None: at all.

    Raises:
        DatasetError: What a term reads is not stored.
    """
    scores = np.full(len(dataset.samples), terms.bias)
    for state in terms.states:
        features = dataset.features(_at(state.reading, tokens))
        scores += features.numpy().astype(np.float64) @ state.weight.astype(np.float64)
    for gate in terms.gates:
        scores += _score_gate(gate, dataset, tokens)
    if terms.numbers:
        weights = np.array(list(terms.numbers.values()))
        scores += dataset.numbers(list(terms.numbers), tokens=tokens) @ weights
    return scores


def list_readings(terms: Terms, *, tokens: int | None = None) -> list[Reading]:
    """Return what must be stored for ``score``."""
    readings = [_at(each, tokens) for each in terms.readings]
    for gate in terms.gates:
        readings += [Reading(gate.layer, "mean", each) for each in _ends(gate, tokens)]
    return list(dict.fromkeys(readings))


def _at(reading: Reading, tokens: int | None) -> Reading:
    """Return a reading as it is of the first so many tokens."""
    if tokens is None:
        return reading
    if reading.pooling != "mean":
        raise DatasetError("reading", f"{reading} is not stored of the first {tokens} tokens")
    return Reading(reading.layer, "mean", min(reading.window or tokens, tokens))


def _ends(gate: GateTerm, tokens: int | None) -> list[int | None]:
    """Return where a gate's segments end, the last of them too."""
    if not gate.segments:
        raise DatasetError(
            "reading", f"{gate.layer}/gate of single tokens is scored while they are sampled only"
        )
    return [*(each for each in gate.segments if tokens is None or each < tokens), tokens]


def _score_gate(gate: GateTerm, dataset: Dataset, tokens: int | None) -> Floats:
    """As ``pool_gated``; the means over segments are differences of the means over windows."""
    lengths = np.array([max(each.num_scored, 1) for each in dataset.samples], dtype=np.float64)
    sums = {name: [np.zeros(len(lengths))] for name in ("gate", "value")}
    counts = [np.zeros(len(lengths))]
    for end in _ends(gate, tokens):
        means = dataset.features(Reading(gate.layer, "mean", end)).numpy().astype(np.float64)
        counts.append(lengths if end is None else np.minimum(lengths, end))
        for name, so_far in sums.items():
            so_far.append(means @ getattr(gate, name).astype(np.float64) * counts[-1])
    sizes = np.diff(counts, axis=0)  # (segments, samples)
    parts = {name: np.diff(each, axis=0) / np.maximum(sizes, 1) for name, each in sums.items()}
    logs = -np.logaddexp(0.0, -(parts["gate"] + gate.gate_bias))
    weights = sizes * np.exp(logs - np.where(sizes > 0, logs, -np.inf).max(axis=0))
    values = parts["value"] + gate.value_bias
    return np.asarray((weights * values).sum(axis=0) / weights.sum(axis=0))
