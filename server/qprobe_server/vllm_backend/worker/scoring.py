"""Scores the tokens of running candidates inside vLLM's worker, as the model computes them.

EXTRA_ARG holds [address, key, rows, ends]: whom to send the scores to and as what, the index of the
linear probe of each row, and how many leading tokens the row is wanted of, 0 for all. A row with an
end is one of a head: its scores are sent when the last of these tokens has one. All others are sent
when the engine has ended the request. If the completion is part of the prompt, a fifth says the
position of the last token before it.
"""

from typing import Any

from qprobe_server.vllm_backend.mail import Outbox
from qprobe_server.vllm_backend.worker.hooks import StepHooks
from qprobe_server.vllm_backend.worker.scorer import Scorer
from qprobe_server.vllm_backend.worker.step import Step

__all__ = ["ScoringMixin"]


class ScoringMixin(StepHooks):
    """Mixed into vLLM's worker class of a platform, before it."""

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and expose the layers that probes read; see ``StepHooks``."""
        super().load_model(**kwargs)
        self._scorer = Scorer(
            self._layers,
            self.device,
            self._copies,
            Outbox() if self._speaks else None,
            drafted=self.vllm_config.speculative_config is not None,
        )

    def qprobe_load(self, probes: list[tuple[int, int | str, bytes]]) -> None:
        """Set linear probes; see ``ProbeWeights.load``."""
        if self._reads:
            self._scorer.load(probes)

    def qprobe_num_candidates(self) -> int | None:
        """Return how many candidates are held; None where this worker does not score."""
        return self._scorer.num_held if self._speaks else None

    def _has_requests(self) -> bool:
        return self._scorer.is_busy

    def _begin(self, request_id: str, asked: Any) -> None:
        self._scorer.begin(request_id, *asked)

    def _end(self, request_id: str) -> None:
        self._scorer.end(request_id)

    def _read(self, step: Step) -> None:
        self._scorer.read(step)
