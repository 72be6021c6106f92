"""Prometheus metrics of reranking, beside vLLM's own in ``/metrics``.

Labels are bounded: with ten thousand probes only the first few that are used get their own.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.equal import Classes
from qprobe_server.choice.schemas import ResultReply
from qprobe_server.library.registry import ProbeRegistry

__all__ = ["Outcome", "RerankMetrics", "VoteMetrics"]

Outcome = Literal["ok", "error", "cancelled"]

_MAX_LABELS = 50
_OTHER, _MIX = "other", "mix"


class _ByProbe:
    """Makes metrics that are told by probe, and forgets a probe in all of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._made: list[Counter | Histogram] = []

    def count(self, name: str, about: str, *labels: str) -> Counter:
        """Return a counter; the probe is the first of its labels."""
        made = Counter(name, about, ["probe", *labels], registry=self._registry)
        self._made.append(made)
        return made

    def measure(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        """Return a histogram."""
        made = Histogram(name, about, ["probe"], buckets=buckets, registry=self._registry)
        self._made.append(made)
        return made

    def forget(self, name: str) -> None:
        """Remove the series of a probe."""
        for metric in self._made:
            metric.remove_by_labels({"probe": name})


class VoteMetrics:
    """What was voted on, by the kind of vote.

    Args:
        registry: The one behind ``/metrics``.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._votes = Counter("qprobe_votes", "Prompts voted on", ["by"], registry=registry)
        self._without_answer = Counter(
            "qprobe_vote_no_answer_candidates",
            "Candidates that gave no answer to vote for",
            ["by"],
            registry=registry,
        )
        self._seconds = Histogram(
            "qprobe_vote_seconds",
            "From a prompt's scores to its classes of equal answers; by code this runs it",
            ["by"],
            buckets=(0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30),
            registry=registry,
        )

    def observe(self, by: str, classes: Classes, seconds: float) -> None:
        """Note a vote, and how long it took to tell its classes."""
        self._votes.labels(by).inc()
        self._without_answer.labels(by).inc(classes.of.count(NO_CLASS))
        self._seconds.labels(by).observe(seconds)


class RerankMetrics:
    """What was reranked, by probe, and what that cost.

    Args:
        registry: The one behind ``/metrics``.

    Attributes:
        votes: Of those prompts that were voted on.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.votes = VoteMetrics(registry)
        self._labels: set[str] = set()
        self._checkpoints: set[int] = set()
        self._by_probe = _ByProbe(registry)
        count, measure = self._by_probe.count, self._by_probe.measure
        self._prompts = count("qprobe_prompts", "Reranked prompts", "outcome")
        self._candidates = measure(
            "qprobe_candidates", "Candidates per reranked prompt", (1, 2, 4, 8, 16, 32, 64)
        )
        self._sampled_tokens = count("qprobe_sampled_tokens", "Tokens of all candidates")
        self._rejected_tokens = count(
            "qprobe_rejected_tokens", "Tokens of candidates that were not returned"
        )
        self._early_rejected = count(
            "qprobe_early_rejected_candidates",
            "Candidates dropped at a checkpoint, by its tokens",
            "checkpoint",
        )
        self._saved_tokens = count(
            "qprobe_saved_tokens",
            "Tokens that early rejection saved, if a dropped candidate would have been as long as "
            "its prompt's others",
        )
        self._wasted_tokens = count(
            "qprobe_wasted_tokens",
            "Tokens of dropped candidates beyond what their checkpoint needed",
        )
        self._score_mean = measure(
            "qprobe_score_mean", "Mean of a prompt's scores", (-8, -4, -2, -1, 0, 1, 2, 4, 8)
        )
        self._score_spread = measure(
            "qprobe_score_spread",
            "Standard deviation of a prompt's scores",
            (0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self._weight_entropy = measure(
            "qprobe_weight_entropy_nats",
            "Entropy of a prompt's weights",
            (0.01, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4),
        )
        self._confidence = measure(
            "qprobe_confidence",
            "Reward to be expected of an answer, by a probe that tells it",
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
        )
        self._non_finite = count("qprobe_non_finite_scores", "Scores that are no number")
        self._overhead = Histogram(
            "qprobe_rerank_overhead_seconds",
            "From the end of a prompt's last candidate to its answer, without a vote",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
            registry=registry,
        )
        self._loaded = Gauge("qprobe_probes_loaded", "Probes that are served", registry=registry)

    def watch(self, probes: ProbeRegistry) -> None:
        """Show how many probes there are, and forget those that are gone."""
        self._loaded.set_function(lambda: len(probes))
        probes.when_forgotten(self._forget)

    def _forget(self, name: str) -> None:
        """Free the label of a probe that no request uses any more."""
        if name in self._labels:
            self._labels.remove(name)
            self._by_probe.forget(name)

    def label(self, names: Sequence[str]) -> str:
        """Return the label of a request by its probes' names."""
        if len(names) > 1:
            return _MIX
        (name,) = names
        if name not in self._labels:
            if len(self._labels) >= _MAX_LABELS or name in (_OTHER, _MIX):
                return _OTHER
            self._labels.add(name)
        return name

    def count_prompt(self, label: str, outcome: Outcome) -> None:
        """Count a prompt that has ended."""
        self._prompts.labels(label, outcome).inc()

    def observe(self, label: str, result: ResultReply, num_tokens: Sequence[int | None]) -> None:
        """Note what came of a prompt.

        Args:
            label: Of the request.
            result: With finite scores; null for candidates that were dropped.
            num_tokens: Of each candidate; None where an upstream does not say.
        """
        self._candidates.labels(label).observe(len(result.scores))
        self._count_tokens(label, result, num_tokens)
        scores = [score for score in result.scores if score is not None]
        self._score_mean.labels(label).observe(statistics.fmean(scores))
        self._score_spread.labels(label).observe(statistics.pstdev(scores))
        entropy = -math.fsum(weight * math.log(weight) for weight in result.weights if weight)
        self._weight_entropy.labels(label).observe(max(entropy, 0.0))
        for index in result.selected:
            confidence = None if result.confidence is None else result.confidence[index]
            if confidence is not None:
                self._confidence.labels(label).observe(confidence)
        if result.rejected_at is not None:
            lengths = [each or 0 for each in num_tokens]
            self._observe_rejection(label, result.rejected_at, lengths)

    def _count_tokens(
        self, label: str, result: ResultReply, num_tokens: Sequence[int | None]
    ) -> None:
        """Count what was sampled, and what of it was not returned, as far as anybody knows."""
        if result.sampled_tokens is None:
            return
        self._sampled_tokens.labels(label).inc(result.sampled_tokens)
        returned = [num_tokens[index] for index in result.selected]
        known = [each for each in returned if each is not None]
        if len(known) == len(returned):
            self._rejected_tokens.labels(label).inc(result.sampled_tokens - sum(known))

    def _observe_rejection(
        self, label: str, rejected_at: Sequence[int | None], num_tokens: Sequence[int]
    ) -> None:
        both = list(zip(rejected_at, num_tokens, strict=True))
        usual = statistics.fmean(length for at, length in both if at is None)
        for at, length in both:
            if at is None:
                continue
            # A checkpoint needs one token more than it compares: the model has read those then.
            self._wasted_tokens.labels(label).inc(max(length - at - 1, 0))
            if length > at:  # one that is shorter had ended by itself
                self._saved_tokens.labels(label).inc(max(usual - length, 0))
            self._early_rejected.labels(label, self._checkpoint_label(at)).inc()

    def _checkpoint_label(self, tokens: int) -> str:
        if tokens not in self._checkpoints:
            if len(self._checkpoints) >= _MAX_LABELS:
                return _OTHER
            self._checkpoints.add(tokens)
        return str(tokens)

    def count_non_finite(self, label: str, scores: Sequence[float]) -> None:
        """Count the scores that are no number."""
        self._non_finite.labels(label).inc(sum(not math.isfinite(score) for score in scores))

    def observe_overhead(self, seconds: float) -> None:
        """Note how long the choice took once all candidates had ended."""
        self._overhead.observe(seconds)
