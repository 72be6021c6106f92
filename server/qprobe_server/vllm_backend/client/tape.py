"""What the engine gives of one candidate, kept as it comes: of losers no delta is ever made.

Relies on vLLM 0.32.0: ``OutputProcessor.process_outputs`` (v1/engine/output_processor.py) hands
every ``EngineCoreOutput`` of a request to its ``RequestState.logprobs_processor``, a
``LogprobsProcessor`` (v1/engine/logprobs.py), without the tokens after a stop string; that sums
the sampled tokens' as ``cumulative_logprob``;
``LogprobsLists`` (v1/outputs.py), whose rows are one a token, the token itself in front.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy

import numpy as np
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists

__all__ = ["Tape"]

# What few steps bring: of these the whole output is kept.
_SELDOM = (
    "finish_reason",
    "prefill_stats",
    "new_prompt_logprobs_tensors",
    "prompt_token_id_logprobs",
    "new_sampling_mask",
    "routed_experts",
    "spec_decode_metrics",
    "kv_transfer_params",
    "ec_transfer_params",
)


class Tape(LogprobsProcessor):
    """Takes the place of a request's logprobs processor.

    A token takes 8 bytes here, and with logprobs 8 more for each and 4 or 8 for the rank; 4 more
    where they are summed.

    Args:
        num_logprobs: Beside the token's own, as the request has it; None for none, -1 for all.
        reached: Called when the token that is awaited comes.

    Attributes:
        num_tokens: How many have come.
        awaited: The token that somebody waits for, counted from 1, or None.
        sums_logprobs: Whether ``sum_logprobs`` is wanted, also where the request itself has no
            logprobs; to be set before the first token comes.
        is_undecoded: Whether there is anything but tokens that vLLM's last output lacks.
    """

    def __init__(self, num_logprobs: int | None, reached: Callable[[], None]) -> None:
        super().__init__(
            tokenizer=None,
            logprobs=None,
            prompt_logprobs=None,
            cumulative_logprob=None,
            num_logprobs=None,
            num_prompt_logprobs=None,
        )
        self.num_tokens = 0
        self.awaited: int | None = None
        self.sums_logprobs = False
        self.is_undecoded = False
        self._reached = reached
        self._counts: list[int] = []  # tokens of each step
        self._whole: dict[int, EngineCoreOutput] = {}  # by step
        self._sampled = bytearray()  # float32: each token's own log-probability
        self._is_asked = num_logprobs is not None
        # What a batch brings is as wide as the widest request in it wants.
        self._columns = None if num_logprobs in (None, -1) else num_logprobs + 1
        self._rows = [bytearray(), bytearray(), bytearray()]  # token ids, logprobs, ranks
        self._kinds: list[tuple[np.dtype, tuple[int, ...]]] = []  # of these: type, shape of a row

    def update_from_output(self, output: EngineCoreOutput) -> None:
        """Keep a step."""
        if any(getattr(output, name) is not None for name in _SELDOM):
            whole = self._whole[len(self._counts)] = copy(output)
            whole.new_logprobs = None
            self.is_undecoded |= whole.new_prompt_logprobs_tensors is not None
            self.is_undecoded |= whole.prompt_token_id_logprobs is not None
        if output.new_logprobs is not None:
            if self.sums_logprobs:
                self._sampled += output.new_logprobs.logprobs[:, 0].astype(np.float32).tobytes()
            if self._is_asked:
                self._keep(output.new_logprobs)
        self._counts.append(len(output.new_token_ids))
        self.num_tokens += len(output.new_token_ids)
        if self.awaited is not None and self.num_tokens >= self.awaited:
            self.awaited = None
            self._reached()

    def _keep(self, new: LogprobsLists) -> None:
        ids, logprobs, ranks, _ = new
        parts = [ids[:, : self._columns], logprobs[:, : self._columns], ranks]
        self.is_undecoded = True
        self._kinds = [(part.dtype, part.shape[1:]) for part in parts]
        for rows, part in zip(self._rows, parts, strict=True):
            rows += part.tobytes()

    def sum_logprobs(self, tokens: int | None = None) -> float:
        """Return the sum over the first so many tokens, None: all; 0 where none are kept."""
        sampled = np.frombuffer(bytes(self._sampled), np.float32)
        return float(sampled[:tokens].sum(dtype=np.float64))

    def play(
        self, request_id: str, token_ids: Sequence[int], stop: int | str | None
    ) -> Iterator[EngineCoreOutput]:
        """Give all steps again.

        Args:
            request_id: What their request is called now.
            token_ids: All of the candidate.
            stop: Why it ended, as in ``CompletionOutput.stop_reason``.
        """
        logprobs = [
            np.frombuffer(rows, dtype).reshape(-1, *shape)
            for rows, (dtype, shape) in zip(self._rows, self._kinds, strict=False)
        ]
        start = 0
        for step, count in enumerate(self._counts):
            end = start + count
            whole = self._whole.get(step)
            output = EngineCoreOutput(request_id, []) if whole is None else copy(whole)
            output.request_id = request_id
            output.new_token_ids = list(token_ids[start:end])
            if logprobs:
                output.new_logprobs = LogprobsLists(*(rows[start:end] for rows in logprobs))
            if isinstance(stop, str):
                # Who reads this finds the stop string itself. That the engine had stopped by then,
                # at a token behind it, would hide the string's last token.
                output.finish_reason = None
            yield output
            start = end
