"""What gates (SWIFT, arXiv 2505.12225) and rolling maxima read of a dataset, for a fit."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qprobe.data.dataset import Dataset
from qprobe.errors import TrainingError
from qprobe.probe.reading import Reading
from qprobe.probe.values import Layer, Source
from qprobe.training.inputs import prepare
from qprobe.training.pooled import Axes, Pooled

__all__ = ["Gate", "read_gate", "read_maximum"]

# The main axes of the states that are read: all of them would fit noise.
_NUM_AXES = 32
# That the axes are found by: so many samples, and so many means of each over tokens.
_MAX_SAMPLES, _MAX_MEANS = 1024, 16


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


def read_gate(dataset: Dataset, gate: Gate) -> Pooled:
    """Return what a gate reads: means over its segments, or the states of single tokens.

    Args:
        dataset: Has the gate's readings, or the states of its tokens. Of each 32 numbers are held;
            of tokens, for as many of every sample as the longest has.
        gate: Which.

    Raises:
        QProbeError: Something is not stored, or does not vary.
    """
    if not gate.segments:
        return _read_tokens(dataset, gate.layer, 1, gated=True)
    rows = torch.from_numpy(_spread(len(dataset.samples), _MAX_SAMPLES))
    means, sizes = _read_segments(dataset, gate, lambda raw: raw[rows], rows.numpy())
    axes = _find_axes(means[sizes > 0])
    return Pooled(axes, *_read_segments(dataset, gate, axes.project), gated=True)


def read_maximum(dataset: Dataset, reading: Reading) -> Pooled:
    """Return what a rolling maximum reads: the means over all its windows, as ``pool`` takes them.

    Arguments and errors are those of ``read_gate``.
    """
    assert reading.window is not None
    return _read_tokens(dataset, reading.layer, reading.window, gated=False)


def _find_axes(states: Tensor) -> Axes:
    """Return the main axes of states, (samples, hidden)."""
    inputs = prepare([states])
    turn = inputs.scales[:, None] * inputs.axes[:, :_NUM_AXES].cpu().double()
    return Axes(inputs.means.float(), turn.float())


def _spread(length: int, most: int) -> NDArray[np.int64]:
    """Return at most so many places of a sequence, evenly spread."""
    return np.unique(np.linspace(0, length - 1, most).astype(np.int64))


def _read_tokens(dataset: Dataset, layer: Source, window: int, *, gated: bool) -> Pooled:
    """Read the means over all windows of so many tokens, of all tokens where there are fewer."""

    def roll(rows: Iterable[int] | None, of_each: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Yield means of what is taken of each sample's tokens, (windows, ...)."""
        for states in dataset.token_states(layer, rows):
            kept = of_each(states)
            yield kept.unfold(0, min(window, len(kept)), 1).mean(-1)

    rows = _spread(len(dataset.samples), _MAX_SAMPLES)
    some = [each[_spread(len(each), _MAX_MEANS)] for each in roll(rows, Tensor.float)]
    axes = _find_axes(torch.cat(some))
    means = [*roll(None, axes.project)]
    sizes = [torch.ones(len(each)) for each in means]
    return Pooled(
        axes, pad_sequence(means, batch_first=True), pad_sequence(sizes, batch_first=True), gated
    )


def _read_segments(
    dataset: Dataset,
    gate: Gate,
    project: Callable[[Tensor], Tensor],
    rows: NDArray[np.int64] | slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Return means over segments, (samples, segments, width) float32, and sizes.

    The means are differences of those over windows.

    Args:
        dataset: Has the gate's readings.
        gate: Which.
        project: What of an embedding, (samples, hidden) float32, is kept; affine.
        rows: The samples that are.
    """
    lengths = np.array([max(each.num_scored, 1) for each in dataset.samples], np.float64)[rows]
    counts, sums = [np.zeros_like(lengths)], []
    for reading in gate.readings:
        counts.append(np.minimum(lengths, reading.window or np.inf))
        means = project(dataset.features(reading)).double()
        sums.append(means * torch.from_numpy(counts[-1])[:, None])
    sizes = torch.from_numpy(np.diff(counts, axis=0).T).float()  # (samples, segments)
    parts = torch.stack([torch.zeros_like(sums[0]), *sums], 1).diff(dim=1).float()
    return parts / sizes.clamp_min(1)[:, :, None], sizes
