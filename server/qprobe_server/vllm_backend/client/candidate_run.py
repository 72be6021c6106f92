"""One candidate of a prompt while the engine samples it.

Relies on vLLM 0.32.0: ``RequestOutput, CompletionOutput`` (outputs.py), ``RequestOutputKind``
(sampling_params.py).
"""

import asyncio

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from qprobe_server.choice.candidates import Candidate

__all__ = ["CandidateRun", "Outputs"]

Outputs = list[RequestOutput]


class CandidateRun:
    """One candidate while the engine samples it.

    Attributes:
        key: What the workers call it.
        outputs: What the engine has given of it: all parts of a stream, otherwise the last.
        num_tokens: How many tokens these hold.
        task: Reads them.
        checkpoint_scores: By the checkpoint's number of tokens.
        rejected_at: The checkpoint at which it left, or None.
    """

    task: asyncio.Task[None]

    def __init__(self, key: str, kind: RequestOutputKind) -> None:
        self.key = key
        self.outputs: Outputs = []
        self.num_tokens = 0
        self.checkpoint_scores: dict[int, float] = {}
        self.rejected_at: int | None = None
        self._kind = kind
        self._awaited = 0
        self._reached = asyncio.Event()
        self._over = False

    def add(self, output: RequestOutput) -> None:
        """Note what the engine has given."""
        new = len(output.outputs[0].token_ids)
        if self._kind is RequestOutputKind.DELTA:
            self.outputs.append(output)
            self.num_tokens += new
        else:
            self.outputs = [output]
            self.num_tokens = new
        if self.num_tokens > self._awaited:
            self._reached.set()

    def stop_waiting(self) -> None:
        """Let nobody wait for its tokens any more, now and later."""
        self._over = True
        self._reached.set()

    async def reach(self, tokens: int) -> None:
        """Wait until token number ``tokens`` has a score, or the candidate has ended.

        A token has one when the model has read it, and then the next token is there.
        """
        self._awaited = tokens
        while self.num_tokens <= tokens and not self._over:
            self._reached.clear()
            await self._reached.wait()

    def read(self) -> Candidate:
        """Return what there is of it."""
        parts = [output.outputs[0] for output in self.outputs]
        return Candidate(
            text="".join(part.text for part in parts),
            token_ids=[token for part in parts for token in part.token_ids],
            finish_reason=parts[-1].finish_reason,
            stop_reason=parts[-1].stop_reason,
        )

    @property
    def was_cut_short(self) -> bool:
        """Whether the engine gave up on it."""
        last = self.outputs[-1].outputs[0] if self.outputs else None
        return last is not None and last.finish_reason in ("abort", "error")

    @property
    def has_ended(self) -> bool:
        """Whether the engine has given all of it that it will give."""
        return bool(self.outputs) and self.outputs[-1].outputs[0].finish_reason is not None
