"""Scores of a dataset's samples, as a server computes them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.probe.pooling import pool, pool_gated
from qprobe.probe.probe import Probe
from qprobe.probe.reading import Reading
from qprobe.probe.terms import GateTerm, StateTerm, Terms
from qprobe.probe.values import Source

__all__ = ["list_readings", "list_token_layers", "score", "score_confidence"]

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
        if _needs_tokens(state.reading, tokens):
            scores += _score_tokens(state, dataset, tokens)
            continue
        features = dataset.features(_at(state.reading, tokens))
        scores += features.numpy().astype(np.float64) @ state.weight.astype(np.float64)
    for gate in terms.gates:
        score_one = _score_gate if gate.segments else _score_token_gate
        scores += score_one(gate, dataset, tokens)
    if terms.numbers:
        weights = np.array(list(terms.numbers.values()))
        scores += dataset.numbers(list(terms.numbers), tokens=tokens) @ weights
    return scores


def score_confidence(probe: Probe, dataset: Dataset) -> Floats | None:
    """Return the reward that a probe expects of each sample, (samples,); None if it cannot tell.

    Raises:
        DatasetError: What a term reads is not stored.
    """
    if probe.confidence is None:
        return None
    scores = score(probe.confidence.terms or probe.terms, dataset)
    return probe.confidence.calibration.apply(scores)


def list_readings(terms: Terms, *, tokens: int | None = None) -> list[Reading]:
    """Return what must be stored for ``score``."""
    stored = [each for each in terms.readings if not _needs_tokens(each, tokens)]
    readings = [_at(each, tokens) for each in stored]
    for gate in (each for each in terms.gates if each.segments):
        readings += [Reading(gate.layer, "mean", each) for each in _ends(gate, tokens)]
    return list(dict.fromkeys(readings))


def list_token_layers(terms: Terms, *, tokens: int | None = None) -> list[Source]:
    """Return the layers that the states of single tokens must be stored of for ``score``."""
    layers = [each.layer for each in terms.readings if _needs_tokens(each, tokens)]
    layers += [each.layer for each in terms.gates if not each.segments]
    return list(dict.fromkeys(layers))


def _needs_tokens(reading: Reading, tokens: int | None) -> bool:
    return reading.pooling == "max" or (reading.pooling == "last" and tokens is not None)


def _at(reading: Reading, tokens: int | None) -> Reading:
    """Return a reading as it is of the first so many tokens."""
    if tokens is None:
        return reading
    return Reading(reading.layer, "mean", min(reading.window or tokens, tokens))


def _ends(gate: GateTerm, tokens: int | None) -> list[int | None]:
    """Return where a gate's segments end, the last of them too."""
    return [*(each for each in gate.segments if tokens is None or each < tokens), tokens]


def _score_tokens(state: StateTerm, dataset: Dataset, tokens: int | None) -> Floats:
    reading = state.reading
    rows = _read_rows(dataset, reading.layer, tokens, state.weight)
    found = [pool(row, pooling=reading.pooling, window=reading.window) for (row,) in rows]
    return np.array(found, dtype=np.float64)


def _score_token_gate(gate: GateTerm, dataset: Dataset, tokens: int | None) -> Floats:
    rows = _read_rows(dataset, gate.layer, tokens, gate.gate, gate.value)
    found = [
        pool_gated(gates + gate.gate_bias, values + gate.value_bias, segments=())
        for gates, values in rows
    ]
    return np.array(found, dtype=np.float64)


def _read_rows(
    dataset: Dataset, layer: Source, tokens: int | None, *weights: NDArray[np.float32]
) -> Iterator[Floats]:
    """Yield each sample's scores of tokens, as ``pool`` takes them: (weights, m + 1)."""
    stacked = np.stack(weights).astype(np.float64)
    for sample, states in zip(dataset.samples, dataset.token_states(layer), strict=True):
        scores = stacked @ states[:tokens].numpy().astype(np.float64).T
        # Of the prompt's last token, which counts for nothing where there are others.
        yield np.pad(scores, ((0, 0), (1, 0))) if sample.num_scored else scores


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
