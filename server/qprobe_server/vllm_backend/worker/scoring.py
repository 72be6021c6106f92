"""Scores the tokens of running candidates inside vLLM's worker, as the model computes them.

Relies on vLLM 0.32.0: ``Worker.load_model/execute_model/sample_tokens`` (v1/worker/gpu_worker.py),
``GPUModelRunner.execute_model_state, input_batch, query_start_loc, positions,
use_aux_hidden_state_outputs`` (v1/worker/gpu_model_runner.py, the "V1" runner; CPUModelRunner is a
subclass) and ``SupportsEagle3.set_aux_hidden_state_layers`` (model_executor/models/interfaces.py).
``tests/engine/test_vllm_contract.py`` fails when one of them changes.

A request is scored if its ``SamplingParams.extra_args`` hold EXTRA_ARG; others cost nothing.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.distributed.parallel_state import get_pp_group, get_tp_group

from qprobe_server.choice.scores import TokenScores, pool

__all__ = ["ADDITIONAL_CONFIG", "EXTRA_ARG", "ScoringMixin"]

# Key in vLLM's additional_config: {"layers": [inner layers to expose]}. It enters the hash of the
# compile cache, so that a graph compiled without these outputs is never loaded.
ADDITIONAL_CONFIG = "qprobe"
# Key in SamplingParams.extra_args: [candidate key, probe indices]; and, if the completion is part
# of the prompt, the position of the last token before it.
EXTRA_ARG = "qprobe"

# Place of the state after the last norm, beside the places of the exposed inner layers.
_FINAL = -1
# Rows scored at once, at most: 64 MiB for states of 8,192 numbers.
_ROWS = 1024
# Finished candidates that nobody takes, as after the death of a server, are forgotten after this.
_KEEP_FINISHED_S = 3600.0


@dataclass(frozen=True)
class _Candidate:
    key: str
    rows: tuple[tuple[int, int], ...]  # (slot in the table of scores, probe) of each probe
    prompt_end: int | None  # position of the last prompt token, where vLLM's count does not say


@dataclass
class _Step:
    """The scores of one step on their way to the host."""

    slots: NDArray[np.int64]  # (rows,)
    prompt_ends: NDArray[np.int64]  # (rows,): position of the last prompt token
    positions: Tensor  # (rows,) int64
    values: Tensor  # (rows,) float32
    copied: Any  # torch.cuda.Event; None where the scores are made on the host


class ScoringMixin:
    """Mixed into vLLM's worker class of a platform, before it.

    Only the last pipeline stage's first tensor-parallel rank scores; the others answer None.
    """

    model_runner: Any
    vllm_config: Any
    device: torch.device

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, then have it give the states of the layers that probes read.

        Raises:
            ValueError: The layers cannot be had in this configuration.
        """
        super().load_model(**kwargs)  # type: ignore[misc]  # the worker class beside this mixin
        self._layers: list[int] = list(
            self.vllm_config.additional_config[ADDITIONAL_CONFIG]["layers"]
        )
        self._scores = TokenScores(keep_finished_s=_KEEP_FINISHED_S)
        self._running: dict[str, _Candidate] = {}  # by vLLM's request id
        self._request_ids: dict[str, str] = {}  # of the running candidates, by their key
        self._steps: deque[_Step | str] = deque()  # str: key of a candidate that has finished
        self._weights = torch.zeros(0, 0, device=self.device)  # (capacity, hidden)
        self._biases = torch.zeros(0, device=self.device)  # (capacity,)
        self._layer_of_probe = np.zeros(0, dtype=np.int64)  # (capacity,): place among the exposed
        self._poolings: dict[int, tuple[str, int | None]] = {}  # by probe
        self._scores_here = get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0
        if self._layers and get_pp_group().is_last_rank:
            self._expose_layers()

    def _expose_layers(self) -> None:
        runner = self.model_runner
        drafting = runner.speculative_config
        if runner.use_aux_hidden_state_outputs or (drafting and drafting.use_eagle()):
            raise ValueError(
                f"probes read the inner layers {self._layers}, but this speculative decoding "
                "method uses vLLM's only output for inner layers: use probes of layer 'final', or "
                "another method"
            )
        decoder = _find_decoder(runner.get_model())
        if get_pp_group().world_size > 1 and not getattr(
            decoder, "supports_aux_hidden_states_over_pp", False
        ):
            raise ValueError(
                f"probes read the inner layers {self._layers}, which vLLM's "
                f"{type(decoder).__name__} does not give in a pipeline: use probes of layer 'final'"
            )
        first = int(getattr(decoder, "start_layer", 0))
        if self._layers[0] <= first:
            raise ValueError(
                f"layer {self._layers[0]} is not on the last pipeline stage, which begins after "
                f"layer {first}: use probes of later layers or of layer 'final'"
            )
        runner.get_model().set_aux_hidden_state_layers(tuple(self._layers))
        runner.use_aux_hidden_state_outputs = True

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step; before it, note which candidates begin and which have ended."""
        if self._scores_here:
            self._note_requests(scheduler_output)
        return super().execute_model(scheduler_output)  # type: ignore[misc]  # as above

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Score the tokens that the step has read, then sample the next."""
        if self._running:
            self._score_step()
        return super().sample_tokens(grammar_output)  # type: ignore[misc]  # as above

    def _note_requests(self, scheduler_output: Any) -> None:
        if self._running:
            for request_id in scheduler_output.finished_req_ids:
                candidate = self._running.pop(request_id, None)
                if candidate is not None:
                    del self._request_ids[candidate.key]
                    self._steps.append(candidate.key)
        for request in scheduler_output.scheduled_new_reqs:
            params = request.sampling_params
            asked = params.extra_args.get(EXTRA_ARG) if params and params.extra_args else None
            if asked is not None:
                key, probes, *prompt_end = asked
                rows = zip(self._scores.start(key, probes), probes, strict=True)
                self._running[request.req_id] = _Candidate(key, (*rows,), *prompt_end or [None])
                self._request_ids[key] = request.req_id
        self._store_copied(wait=False)

    @torch.inference_mode()
    def _score_step(self) -> None:
        state = self.model_runner.execute_model_state
        if state is None:
            return
        batch = self.model_runner.input_batch
        known = [
            (
                index,
                slot,
                probe,
                int(batch.num_prompt_tokens[index]) - 1
                if candidate.prompt_end is None
                else candidate.prompt_end,
            )
            for index, request_id in enumerate(batch.req_ids)
            if (candidate := self._running.get(request_id)) is not None
            for slot, probe in candidate.rows
        ]
        if not known:
            return
        # (candidates x probes,) each
        indices, slots, probes, prompt_ends = np.array(known, dtype=np.int64).T
        starts = self.model_runner.query_start_loc.np
        # Of a prompt only the last token's state counts. While the prompt is read, the host's
        # count of computed tokens is exact; later it only has to be past the prompt.
        skipped = np.maximum(prompt_ends - batch.num_computed_tokens_cpu[indices], 0)
        firsts = starts[indices] + skipped
        counts = np.maximum(starts[indices + 1] - firsts, 0)
        which = np.repeat(np.arange(indices.size), counts)  # (rows,)
        if not which.size:
            return
        rows = np.arange(which.size) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        device_rows = self._upload(rows)
        values = self._score_rows(state, device_rows, probes[which])
        # The device's positions are right even where accepted draft tokens are not known yet here.
        positions = self.model_runner.positions[device_rows]
        self._steps.append(
            _Step(
                slots=slots[which],
                prompt_ends=prompt_ends[which],
                positions=_start_copy(positions),
                values=_start_copy(values),
                copied=_record_event(self.device),
            )
        )
        self._store_copied(wait=False)

    def _score_rows(self, state: Any, rows: Tensor, probes: NDArray[np.int64]) -> Tensor:
        """Return the scores of rows of the step's states by each row's probe; (rows,) float32."""
        layers = self._layer_of_probe[probes]  # (rows,)
        if (layers == layers[0]).all():
            return self._score_layer(state, int(layers[0]), rows, probes)
        values = torch.empty(rows.shape[0], dtype=torch.float32, device=self.device)
        for layer in np.unique(layers):
            mine = np.flatnonzero(layers == layer)
            at = self._upload(mine)
            values[at] = self._score_layer(state, int(layer), rows[at], probes[mine])
        return values

    def _score_layer(
        self, state: Any, layer: int, rows: Tensor, probes: NDArray[np.int64]
    ) -> Tensor:
        states = state.hidden_states if layer == _FINAL else state.aux_hidden_states[layer]
        which = self._upload(probes)
        # In parts: a preempted batch that is computed again may bring thousands of rows at once.
        parts = [
            torch.linalg.vecdot(states.index_select(0, some).float(), self._weights[of])
            + self._biases[of]
            for some, of in zip(torch.split(rows, _ROWS), torch.split(which, _ROWS), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _upload(self, values: NDArray[np.int64]) -> Tensor:
        """Copy to the device without waiting for it, which takes pinned memory."""
        host = torch.from_numpy(values)
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def _store_copied(self, *, wait: bool) -> None:
        while self._steps:
            step = self._steps[0]
            if isinstance(step, str):
                self._scores.finish(step)
            else:
                if step.copied is not None and not step.copied.query():
                    if not wait:
                        return
                    step.copied.synchronize()
                offsets = step.positions.numpy() - step.prompt_ends
                self._write(step.slots, offsets, step.values)
            self._steps.popleft()

    def _write(self, slots: NDArray[np.int64], offsets: NDArray[np.int64], values: Tensor) -> None:
        self._scores.write(slots, offsets, values.numpy())

    def qprobe_load(self, probes: list[tuple[int, int | str, str, int | None, bytes]]) -> None:
        """Set probes; requests name them by their index. One that was there is replaced.

        Args:
            probes: (index, layer, pooling, window, weights) each; weights are the bytes of
                hidden_size + 1 float32: the vector, then the bias.
        """
        if not probes or not self._scores_here:
            return
        indices = [index for index, *_ in probes]
        both = torch.frombuffer(
            bytearray(b"".join(data for *_, data in probes)), dtype=torch.float32
        ).view(len(probes), -1)  # (probes, hidden + 1)
        self._reserve(max(indices) + 1, both.shape[1] - 1)
        places = torch.tensor(indices, device=self.device)
        self._weights[places] = both[:, :-1].to(self.device)
        self._biases[places] = both[:, -1].to(self.device)
        for index, layer, pooling, window, _ in probes:
            place = _FINAL if layer == "final" else self._layers.index(int(layer))
            self._layer_of_probe[index] = place
            self._poolings[index] = (pooling, window)

    def _reserve(self, needed: int, hidden_size: int) -> None:
        capacity = self._layer_of_probe.size
        if needed <= capacity:
            return
        # Twice as many at most, and 1.25 times where there are many, for they come in bulk.
        grown = max(needed, min(2 * capacity, capacity + capacity // 4 + 16))
        weights = torch.zeros(grown, hidden_size, device=self.device)
        biases = torch.zeros(grown, device=self.device)
        if capacity:
            weights[:capacity] = self._weights
            biases[:capacity] = self._biases
        self._weights, self._biases = weights, biases
        self._layer_of_probe = np.pad(self._layer_of_probe, (0, grown - capacity))

    def qprobe_take(
        self, keys: list[str], lengths: list[int], details: Literal["pooled", "tokens"]
    ) -> list[tuple[list[float], list[list[float]], int] | None] | None:
        """Remove candidates and return their scores.

        Args:
            keys: The candidates.
            lengths: How many leading tokens of each completion make its embedding.
            details: ``tokens`` if the scores of those tokens are wanted too.

        Returns:
            For each candidate one score of each of its probes, NaN if a token's state was never
            computed; if wanted the scores of its tokens by each of its probes, else nothing; and
            how many tokens the engine has generated of it, as far as scores have been written.
            None for a candidate that is unknown. None alone where this worker does not score.
        """
        if not self._scores_here:
            return None
        self._store_copied(wait=True)
        return [
            self._take(key, length, with_tokens=details == "tokens")
            for key, length in zip(keys, lengths, strict=True)
        ]

    def _take(
        self, key: str, length: int, *, with_tokens: bool
    ) -> tuple[list[float], list[list[float]], int] | None:
        num_positions = self._scores.num_positions(key)
        found = self._scores.take(key, length)
        self._forget(key)
        if found is None:
            return None
        probes, scores = found  # (probes,), (probes, length + 1)
        pooled = [self._pool(probe, row) for probe, row in zip(probes, scores, strict=True)]
        return pooled, scores[:, 1:].tolist() if with_tokens else [], num_positions

    def _pool(self, probe: int, row: NDArray[np.float32]) -> float:
        pooling, window = self._poolings[probe]
        return pool(row, pooling=pooling, window=window)

    def qprobe_peek(
        self, keys: list[str], lengths: list[int], rows: list[int]
    ) -> list[list[float] | None] | None:
        """Return scores at a checkpoint, and score no further token by the probes asked for.

        Args:
            keys: The candidates.
            lengths: How many leading tokens of each count.
            rows: Which of a candidate's probes, by their places in its request.

        Returns:
            As ``qprobe_take``: for each candidate one score of each of these probes.
        """
        if not self._scores_here:
            return None
        self._store_copied(wait=True)
        peeked: list[list[float] | None] = []
        for key, length in zip(keys, lengths, strict=True):
            found = self._scores.read(key, length)
            if found is None:
                peeked.append(None)
                continue
            probes, scores = found
            peeked.append([self._pool(probes[row], scores[row]) for row in rows])
            self._end_rows(key, {probes[row] for row in rows})
        return peeked

    def _end_rows(self, key: str, probes: set[int]) -> None:
        request_id = self._request_ids.get(key)
        if request_id is not None:
            candidate = self._running[request_id]
            rows = tuple(row for row in candidate.rows if row[1] not in probes)
            self._running[request_id] = replace(candidate, rows=rows)

    def qprobe_drop(self, keys: list[str]) -> None:
        """Forget candidates; unknown ones are ignored."""
        if not self._scores_here:
            return
        self._store_copied(wait=True)
        for key in keys:
            self._scores.drop(key)
            self._forget(key)

    def _forget(self, key: str) -> None:
        """Write no more for a candidate that the engine may still be running."""
        request_id = self._request_ids.pop(key, None)
        if request_id is not None:
            del self._running[request_id]

    def qprobe_num_candidates(self) -> int | None:
        """Return how many candidates are held; None where this worker does not score."""
        return len(self._scores) if self._scores_here else None


def _find_decoder(model: Any) -> Any:
    """Return the EagleModelMixin of a model, as SupportsEagle3 finds it."""
    parent = model.get_language_model() if hasattr(model, "get_language_model") else model
    return getattr(parent, "model", parent)


def _start_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _record_event(device: torch.device) -> Any:
    if device.type == "cpu":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no type for it
    event.record()
    return event
