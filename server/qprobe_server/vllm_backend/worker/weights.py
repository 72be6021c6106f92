"""The weights of the loaded probes on the device, and their products with states.

A probe here is one vector and its bias: what a probe's file calls a term is one of them, or two.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe_server.vllm_backend.worker.copies import upload

__all__ = ["ProbeWeights", "WantedScores"]

# Place of the state after the last norm among a step's states.
_FINAL = -1
# Rows scored at once, at most: 64 MiB for states of 8,192 numbers. A preempted batch that is
# computed again may bring thousands.
_ROWS = 1024
# One product of all states by all probes is taken where it makes at most so many times the scores
# that are wanted; beyond, a copy of the weights for each score costs less.
_SPARE = 16

Ints = NDArray[np.int64]


class WantedScores:
    """Which of a step's tokens are scored by which probes.

    Args:
        tokens: Shape (m,): the token of each score, from 0.
        columns: Shape (m,): its probe among ``probes``.
        probes: Shape (p,): indices of loaded probes, as ``ProbeWeights.sort`` orders them.
    """

    def __init__(self, tokens: Ints, columns: Ints, probes: Ints) -> None:
        self.tokens = tokens
        self.columns = columns
        self.probes = probes

    def pick(self, product: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the wanted scores, shape (m,), of what ``ProbeWeights.score`` made."""
        return product if product.ndim == 1 else product[self.tokens, self.columns]


class ProbeWeights:
    """Linear probes; requests name them by index.

    Args:
        layers: The exposed inner layers, rising.
        device: Where the states are.
    """

    def __init__(self, layers: Sequence[int], device: torch.device) -> None:
        self._layers = list(layers)
        self._device = device
        self._weights = torch.zeros(0, 0, device=device)  # (capacity, hidden)
        self._biases = torch.zeros(0, device=device)  # (capacity,)
        self._places = np.zeros(0, np.int64)  # (capacity,): of the layer among a step's states
        self._gathered: tuple[Ints, Tensor, Tensor] | None = None

    def load(self, probes: Sequence[tuple[int, int | str, bytes]]) -> None:
        """Set probes; one that was there is replaced.

        Args:
            probes: (index, layer, weights) each; weights are the bytes of hidden_size + 1 float32:
                the vector, then the bias.
        """
        if not probes:
            return
        indices = [index for index, *_ in probes]
        both = torch.frombuffer(
            bytearray(b"".join(data for *_, data in probes)), dtype=torch.float32
        ).view(len(probes), -1)  # (probes, hidden + 1)
        self._reserve(max(indices) + 1, both.shape[1] - 1)
        places = torch.tensor(indices, device=self._device)
        self._weights[places] = both[:, :-1].to(self._device)
        self._biases[places] = both[:, -1].to(self._device)
        for index, layer, _ in probes:
            self._places[index] = _FINAL if layer == "final" else self._layers.index(int(layer))
        self._gathered = None

    def _reserve(self, needed: int, hidden_size: int) -> None:
        capacity = self._places.size
        if needed <= capacity:
            return
        # Twice as many at most, and 1.25 times where there are many, for they come in bulk.
        grown = max(needed, min(2 * capacity, capacity + capacity // 4 + 16))
        weights = torch.zeros(grown, hidden_size, device=self._device)
        biases = torch.zeros(grown, device=self._device)
        if capacity:
            weights[:capacity] = self._weights
            biases[:capacity] = self._biases
        self._weights, self._biases = weights, biases
        self._places = np.pad(self._places, (0, grown - capacity))

    def sort(self, probes: Ints) -> tuple[Ints, Ints]:
        """Return probes once each, those of a layer together, and where each stands in that."""
        found, columns = np.unique((self._places[probes] + 1) << 32 | probes, return_inverse=True)
        return found & 0xFFFFFFFF, columns

    def score(self, states: Sequence[Tensor], rows: Tensor, wanted: WantedScores) -> Tensor:
        """Score tokens of a step.

        Args:
            states: Of each exposed layer, then the final ones: (>= tokens of the step, hidden).
            rows: Shape (tokens,) int64, on the device: where the tokens stand in the step.
            wanted: The scores.

        Returns:
            float32 on the device: (tokens, probes) or (m,), for ``WantedScores.pick``.
        """
        if rows.shape[0] * wanted.probes.size <= _SPARE * wanted.tokens.size:
            return self._score_all(states, rows, wanted.probes)
        return self._score_each(states, rows, wanted)

    def _score_all(self, states: Sequence[Tensor], rows: Tensor, probes: Ints) -> Tensor:
        weights, biases = self._gather(probes)
        made = torch.empty(rows.shape[0], probes.size, dtype=torch.float32, device=self._device)
        places = self._places[probes]
        bounds = [0, *(np.flatnonzero(np.diff(places)) + 1), probes.size]
        for first, end in pairwise(bounds):
            of_layer = states[places[first]]
            for some, target in zip(
                torch.split(rows, _ROWS), torch.split(made, _ROWS), strict=True
            ):
                read = of_layer.index_select(0, some).float()
                target[:, first:end] = torch.addmm(biases[first:end], read, weights[first:end].T)
        return made

    def _gather(self, probes: Ints) -> tuple[Tensor, Tensor]:
        """Return the weights of probes, which change when candidates come and go only."""
        if self._gathered is None or self._gathered[0] is not probes:
            which = upload(probes, self._device)
            self._gathered = (probes, self._weights[which], self._biases[which])
        return self._gathered[1:]

    def _score_each(self, states: Sequence[Tensor], rows: Tensor, wanted: WantedScores) -> Tensor:
        probes = wanted.probes[wanted.columns]  # (m,)
        places = self._places[probes]
        made = torch.empty(probes.size, dtype=torch.float32, device=self._device)
        for place in np.unique(places):
            mine = np.flatnonzero(places == place)
            parts = zip(
                *(
                    torch.split(upload(each, self._device), _ROWS)
                    for each in (mine, wanted.tokens[mine], probes[mine])
                ),
                strict=True,
            )
            for at, tokens, which in parts:
                read = states[place].index_select(0, rows[tokens]).float()
                made[at] = torch.linalg.vecdot(read, self._weights[which]) + self._biases[which]
        return made
