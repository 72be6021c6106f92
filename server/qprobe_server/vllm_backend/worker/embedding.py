"""Keeps the states of running completions inside vLLM's worker, for the embeddings of a dataset.

The same hooks as scoring, so that a probe is trained on the numbers that it will be served with:
the states of a step are read where scoring reads them, and kept instead of multiplied.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe_server.vllm_backend.worker.scoring import ScoringMixin

__all__ = ["EmbeddingMixin"]


class EmbeddingMixin(ScoringMixin):
    """Mixed into vLLM's worker class instead of ScoringMixin: embeds candidates, scores none.

    Its memory on the host: hidden_size x (inner layers + 1) numbers of the model's dtype for every
    token of every completion that the engine is writing.
    """

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and expose the wanted layers; see ScoringMixin."""
        super().load_model(**kwargs)
        self._scores: Any = _TokenStates()

    def _score_rows(self, state: Any, rows: Tensor, probes: NDArray[np.int64]) -> Tensor:
        """Return the states of rows of the step: (rows, layers, hidden) in the model's dtype."""
        layers = [*(state.aux_hidden_states or [])[: len(self._layers)], state.hidden_states]
        return torch.stack([states.index_select(0, rows) for states in layers], dim=1)

    def _write(self, slots: NDArray[np.int64], offsets: NDArray[np.int64], values: Tensor) -> None:
        self._scores.write(slots, offsets, values)

    def qprobe_embed(self, key: str, length: int, windows: list[int]) -> bytes | None:
        """Remove a completion and return its embeddings.

        Args:
            key: The completion.
            length: How many leading tokens make its embedding.
            windows: Numbers of tokens, >= 1, for the means of the first so many.

        Returns:
            The bytes of float16 (layers, 2 + windows, hidden): the inner layers in rising order and
            the final one; for each the last token's state, the mean, and the means of the windows.
            None where this worker does not embed.

        Raises:
            KeyError: There is no such completion, or a state of it was never computed.
        """
        if not self._scores_here:
            return None
        self._store_copied(wait=True)
        states = self._scores.take(key, length)  # (length + 1, layers, hidden)
        self._forget(key)
        kept = states[1:] if length else states  # an empty completion: the prompt's last token
        means = [kept[:window].float().mean(0) for window in (None, *windows)]
        made = torch.stack([kept[-1].float(), *means], dim=1)  # (layers, 2 + windows, hidden)
        return made.to(torch.float16).numpy().tobytes()


class _TokenStates:
    """States by completion and position; TokenScores' interface where the base class uses it."""

    def __init__(self) -> None:
        self._key_of_slot: list[str] = []
        self._states: dict[str, Tensor] = {}  # (capacity, layers, hidden) by key
        self._known: dict[str, NDArray[np.bool_]] = {}  # (capacity,) by key

    def __len__(self) -> int:
        return len(self._known)

    def start(self, key: str, probes: Sequence[int]) -> list[int]:
        """Begin a completion; return its slot, alone in a list."""
        self._known[key] = np.zeros(0, dtype=np.bool_)
        self._key_of_slot.append(key)
        return [len(self._key_of_slot) - 1]

    def write(self, slots: NDArray[np.int64], offsets: NDArray[np.int64], values: Tensor) -> None:
        """Store values[i], shape (layers, hidden), at an offset of a slot."""
        for slot in np.unique(slots):
            key = self._key_of_slot[slot]
            if key not in self._known:  # taken already: the engine ran a step ahead
                continue
            mine = np.flatnonzero(slots == slot)
            self._grow(key, int(offsets[mine].max()) + 1, values)
            self._states[key][torch.from_numpy(offsets[mine])] = values[torch.from_numpy(mine)]
            self._known[key][offsets[mine]] = True

    def _grow(self, key: str, needed: int, like: Tensor) -> None:
        known = self._known[key]
        if needed <= known.size:
            return
        capacity = max(needed, 2 * known.size, 64)
        grown = like.new_zeros(capacity, *like.shape[1:])
        if known.size:
            grown[: known.size] = self._states[key]
        self._states[key] = grown
        self._known[key] = np.pad(known, (0, capacity - known.size))

    def finish(self, key: str) -> None:
        """Nothing: a finished completion is kept until it is taken."""

    def drop(self, key: str) -> None:
        """Forget a completion. Unknown keys are ignored."""
        self._states.pop(key, None)
        self._known.pop(key, None)

    def take(self, key: str, length: int) -> Tensor:
        """Remove a completion; return its states at offsets 0 to length."""
        known = self._known[key]
        if known.size <= length or not known[: length + 1].all():
            raise KeyError(f"not every state of {key} was computed")
        states = self._states[key][: length + 1].clone()
        self.drop(key)
        return states
