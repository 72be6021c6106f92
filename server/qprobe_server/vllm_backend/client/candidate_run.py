"""One candidate of a prompt while the engine samples it.

Relies on vLLM 0.32.0: ``OutputProcessor`` (v1/engine/output_processor.py) puts a request's outputs,
of ``RequestOutputKind.FINAL_ONLY`` its last, or the engine's failure into what it was given as the
request's ``RequestOutputCollector``, by ``put``; ``AsyncLLM.generate`` (v1/engine/async_llm.py)
says which failures a client gets to see.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.outputs import RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from qprobe.probe.pooling import read_numbers
from qprobe_server.choice.candidates import Candidate
from qprobe_server.vllm_backend.client.tape import Tape

__all__ = ["CandidateRun", "Requests", "wrap_failure"]


class CandidateRun:
    """One candidate, from its first token to its last.

    Nobody is called while it grows: only when it passes the token that is awaited, and at its end.

    Args:
        key: What the workers call it.
        num_logprobs: As the request's parameters have it.
        changed: Called then.

    Attributes:
        key: As given.
        tape: What has come of it.
        output: vLLM's last, which holds all of it; None as long as it runs.
        failure: What took the engine from it, or None.
        checkpoint_scores: By the checkpoint's number of tokens.
        rejected_at: The checkpoint at which it left, or None.
    """

    def __init__(self, key: str, num_logprobs: int | None, changed: Callable[[], None]) -> None:
        self.key = key
        self.tape = Tape(num_logprobs, changed)
        self.output: RequestOutput | None = None
        self.failure: Exception | None = None
        self.checkpoint_scores: dict[int, float] = {}
        self.rejected_at: int | None = None
        self._changed = changed

    def put(self, output: RequestOutput | Exception) -> None:
        """Take the last output, or what it failed by."""
        if isinstance(output, Exception):
            self.failure = wrap_failure(output)
        else:
            self.output = output
        self._changed()

    def has_read(self, tokens: int) -> bool:
        """Whether the model has read so many tokens of it, or has read all there are.

        It has when the next token is there.
        """
        return self.tape.num_tokens > tokens or self.has_ended

    def read(self) -> Candidate:
        """Return what there is of it; one that was dropped while it ran has no reason to end."""
        assert self.output is not None
        (last,) = self.output.outputs
        was_dropped = self.rejected_at is not None and self.was_cut_short
        reason = None if was_dropped else last.finish_reason
        return Candidate(last.text, last.token_ids, reason, last.stop_reason)

    def read_numbers(self, tokens: int | None = None) -> dict[str, float]:
        """Return its numbers as ``Dataset.numbers`` has them; see ``qprobe.probe.pooling``.

        Args:
            tokens: Of its first so many tokens, if it has more; None: of what it is at its end.
        """
        logprob = self.tape.sum_logprobs(tokens)
        if tokens is not None and self.tape.num_tokens > tokens:
            return read_numbers(logprob=logprob, length=tokens, cut=True)
        whole = self.read()
        cut = whole.finish_reason == "length"
        return read_numbers(logprob=logprob, length=len(whole.token_ids), cut=cut)

    @property
    def was_cut_short(self) -> bool:
        """Whether the engine gave up on it, or it was dropped."""
        return self.output is not None and self.output.outputs[0].finish_reason in (
            "abort",
            "error",
        )

    @property
    def has_ended(self) -> bool:
        """Whether the engine has given all of it that it will give."""
        return self.output is not None


class Requests(Protocol):
    """The candidates' requests in the engine."""

    def begin(
        self, candidates: Sequence[CandidateRun], ask: Callable[[CandidateRun], list[Any] | None]
    ) -> None:
        """Begin one for each, which asks the worker so, if for anything.

        Its output goes into the candidate.
        """

    async def abort(self, some: Sequence[CandidateRun]) -> None:
        """Abort those of some candidates."""

    async def end(self) -> None:
        """Abort all that are left."""


def wrap_failure(error: Exception) -> Exception:
    """Return what ``AsyncLLM.generate`` raises for an error: its own class unless it tells more."""
    if isinstance(error, EngineDeadError | VLLMClientError | GracefulHTTPError):
        return error
    wrapped = EngineGenerateError()
    wrapped.__cause__ = error
    return wrapped
