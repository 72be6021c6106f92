"""What a step of vLLM's model runner has computed, seen the same way whichever runner it is.

Relies on vLLM 0.32.0: ``GPUModelRunner.execute_model_state``, which both runners set in
``execute_model`` and take in ``sample_tokens``; of the "V1" runner (v1/worker/gpu_model_runner.py)
``input_batch, query_start_loc, positions``; of the "V2" runner (v1/worker/gpu/model_runner.py)
``ExecuteModelState.input_batch``, ``req_states.prompt_len`` and ``pcp_manager``, whose
``restore_for_sampling`` puts the rows of prefill context parallelism back in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Step", "StepTokens", "read_step", "select_tokens"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """The requests of a step and the states of their tokens.

    Attributes:
        request_ids: In the order of the batch.
        starts: Shape (requests + 1,): where each request's tokens begin among the step's.
        num_computed: Shape (requests,): tokens computed before this step, as the host knows: exact
            while a prompt is read, perhaps too many where drafts were rejected.
        prompt_lengths: Shape (requests,).
        positions: Shape (>= tokens,), on the device: of each token in its request.
        states: Of each exposed inner layer in rising order, then after the last norm; each of shape
            (>= tokens, hidden) in the model's dtype, on the device.
    """

    request_ids: Sequence[str]
    starts: NDArray[np.integer[Any]]
    num_computed: NDArray[np.integer[Any]]
    prompt_lengths: NDArray[np.integer[Any]]
    positions: Tensor
    states: Sequence[Tensor]


@dataclass(frozen=True)
class StepTokens:
    """The tokens of a step that matter: of completions, and the last of each prompt.

    Attributes:
        rows: Shape (tokens,): where they stand in the step. Those of a request are neighbours.
        owners: Shape (tokens,): whose they are, as the caller numbers the requests.
        prompt_ends: Shape (tokens,): position of the owner's last prompt token.
    """

    rows: Ints
    owners: Ints
    prompt_ends: Ints


def read_step(runner: Any, *, is_v2: bool) -> Step | None:
    """Return the step that a runner is in the midst of, between its forward pass and sampling.

    With prefill context parallelism every rank of the group has to call this.
    """
    state = runner.execute_model_state
    if state is None:
        return None
    final, inner = state.hidden_states, state.aux_hidden_states
    if is_v2:
        batch = state.input_batch
        if runner.pcp_manager is not None:
            final, inner, batch = runner.pcp_manager.restore_for_sampling(final, inner)
        count = len(batch.req_ids)
        starts, computed = batch.query_start_loc_np, batch.num_computed_tokens_np
        lengths = runner.req_states.prompt_len.np[batch.idx_mapping_np[:count]]
        positions = batch.positions
    else:
        batch = runner.input_batch
        count = len(batch.req_ids)
        starts, computed = runner.query_start_loc.np, batch.num_computed_tokens_cpu
        lengths = batch.num_prompt_tokens[:count]
        positions = runner.positions
    return Step(
        request_ids=batch.req_ids,
        starts=starts[: count + 1],
        num_computed=computed[:count],
        prompt_lengths=lengths,
        positions=positions,
        states=[*(inner or ()), final],
    )


def select_tokens(step: Step, numbers: Mapping[str, int], prompt_ends: Ints) -> StepTokens:
    """Select the tokens that matter of some requests of a step.

    Args:
        step: What was computed.
        numbers: The requests that matter, by their ids.
        prompt_ends: By these numbers: position of the last prompt token, or -1 where the runner's
            own length of the prompt says it.
    """
    asked = np.fromiter(
        (numbers.get(request_id, -1) for request_id in step.request_ids),
        dtype=np.int64,
        count=len(step.request_ids),
    )
    places = np.flatnonzero(asked >= 0)
    owners = asked[places]
    ends = step.prompt_lengths[places].astype(np.int64) - 1
    given = prompt_ends[owners]
    ends = np.where(given >= 0, given, ends)
    starts = step.starts[places].astype(np.int64)
    firsts = starts + np.maximum(ends - step.num_computed[places], 0)
    counts = np.maximum(step.starts[places + 1] - firsts, 0)
    which = np.repeat(np.arange(places.size), counts)  # (tokens,)
    rows = np.arange(which.size) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    return StepTokens(rows=rows, owners=owners[which], prompt_ends=ends[which])
