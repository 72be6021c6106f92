"""Keeps the states of running completions inside vLLM's worker, for the embeddings of a dataset.

The same hooks as scoring, so that a probe is trained on the numbers that it will be served with:
the states of a step are read where scoring reads them, and kept instead of multiplied.

EXTRA_ARG holds [key] or, if the completion is part of the prompt, [key, prompt_end], the position
of the last token before it.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe_server.vllm_backend.worker.copies import start_copy, upload
from qprobe_server.vllm_backend.worker.hooks import StepHooks
from qprobe_server.vllm_backend.worker.step import Step, StepTokens, select_tokens

__all__ = ["EmbeddingMixin"]

Ints = NDArray[np.int64]


class EmbeddingMixin(StepHooks):
    """Mixed into vLLM's worker class of a platform, before it.

    Its memory on the host: hidden_size x (inner layers + 1) numbers of the model's dtype for every
    token of every completion that the engine is writing.
    """

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and expose the wanted layers; see ``StepHooks``."""
        super().load_model(**kwargs)
        self._running: dict[str, tuple[str, int]] = {}  # key and prompt_end by vLLM's request id
        self._states: dict[str, _TokenStates] = {}  # by key

    def _has_requests(self) -> bool:
        return bool(self._running)

    def _begin(self, request_id: str, asked: Any) -> None:
        key, *prompt_end = asked
        self._running[request_id] = (key, *(prompt_end or [-1]))
        self._states.setdefault(key, _TokenStates())

    def _end(self, request_id: str) -> None:
        self._running.pop(request_id, None)

    def _read(self, step: Step) -> None:
        numbers = dict(zip(self._running, range(len(self._running)), strict=True))
        keys = [key for key, _ in self._running.values()]
        prompt_ends = np.array([end for _, end in self._running.values()], np.int64)
        tokens = select_tokens(step, numbers, prompt_ends)
        if not tokens.rows.size:
            return
        rows = upload(tokens.rows, self.device)
        # (tokens, layers, hidden) in the model's dtype
        states = torch.stack([each.index_select(0, rows) for each in step.states], dim=1)
        store = partial(
            self._store, keys, tokens, start_copy(states), start_copy(step.positions[rows])
        )
        self._copies.after_copies(self.device, store)

    def _store(
        self, keys: list[str], tokens: StepTokens, states: Tensor, positions: Tensor
    ) -> None:
        offsets = positions.numpy() - tokens.prompt_ends
        for number in np.unique(tokens.owners):
            found = self._states.get(keys[number])
            if found is not None:  # else taken already: the engine ran a step ahead
                mine = np.flatnonzero(tokens.owners == number)
                found.write(offsets[mine], states[torch.from_numpy(mine)])

    def qprobe_embed(
        self, key: str, length: int, windows: list[int], token_layers: list[int]
    ) -> bytes | None:
        """Remove a completion and return its embeddings.

        Args:
            key: The completion.
            length: How many leading tokens make its embedding.
            windows: Numbers of tokens, >= 1, for the means of the first so many.
            token_layers: Places, in the order below, of layers whose tokens' states are wanted too.

        Returns:
            The bytes of float16 (layers, 2 + windows, hidden): the inner layers in rising order and
            the final one; for each the last token's state, the mean, and the means of the windows.
            Then those of float16 (token layers, max(length, 1), hidden), of the tokens. None where
            this worker does not embed.

        Raises:
            KeyError: There is no such completion, or a state of it was never computed.
        """
        if not self._speaks:
            return None
        self._copies.run(wait=True)
        states = self._states.pop(key).read(length)  # (length + 1, layers, hidden)
        kept = states[1:] if length else states  # an empty completion: the prompt's last token
        means = [kept[:window].float().mean(0) for window in (None, *windows)]
        made = torch.stack([kept[-1].float(), *means], dim=1)  # (layers, 2 + windows, hidden)
        tokens = kept[:, token_layers].transpose(0, 1)  # (token layers, tokens, hidden)
        parts = (each.to(torch.float16).contiguous().numpy().tobytes() for each in (made, tokens))
        return b"".join(parts)


class _TokenStates:
    """The states of one completion, by the offset of the token; 0 is the prompt's last one."""

    def __init__(self) -> None:
        self._states = torch.zeros(0)  # (capacity, layers, hidden)
        self._known = np.zeros(0, np.bool_)  # (capacity,)

    def write(self, offsets: Ints, states: Tensor) -> None:
        """Store states[i], shape (layers, hidden), at offsets[i]."""
        needed = int(offsets.max()) + 1
        if needed > self._known.size:
            capacity = max(needed, 2 * self._known.size, 64)
            grown = states.new_zeros(capacity, *states.shape[1:])
            if self._known.size:
                grown[: self._known.size] = self._states
            self._states = grown
            self._known = np.pad(self._known, (0, capacity - self._known.size))
        self._states[torch.from_numpy(offsets)] = states
        self._known[offsets] = True

    def read(self, length: int) -> Tensor:
        """Return the states at offsets 0 to length.

        Raises:
            KeyError: One was never computed.
        """
        known = self._known[: length + 1]
        if known.size <= length or not known.all():
            raise KeyError(f"of {length + 1} states {int(known.sum())} were computed")
        return self._states[: length + 1].clone()
