"""What the server answers, as objects. Knows no JSON and no HTTP."""

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Answer",
    "Candidate",
    "Completion",
    "Probe",
    "PromptResult",
    "Rerank",
    "TextDelta",
    "ToolCall",
    "Usage",
    "Vote",
]


@dataclass(frozen=True)
class Candidate:
    """One sampled completion, shown if the request asked for candidates.

    Attributes:
        text: What the model wrote, before tool calls or reasoning are taken out of it.
        num_tokens: Its length; None if a proxy's upstream does not say.
        finish_reason: ``stop``, ``length`` ...
        stop_reason: The stop string or token that ended it, if one did.
        tokens: The scored tokens, if the request asked for their scores.
        token_scores: One per scored token, likewise.
    """

    text: str
    num_tokens: int | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    tokens: list[str] | None = None
    token_scores: list[float] | None = None


@dataclass(frozen=True)
class Vote:
    """How the candidates of a prompt voted.

    Attributes:
        classes: Of each candidate, equal for equal answers; None for one without an answer, or that
            was dropped early.
        weights: Probability of each class to be drawn first.
        answers: What each class says, cut short, if the request asked for candidates.
    """

    classes: list[int | None]
    weights: list[float]
    answers: list[str] | None = None


@dataclass(frozen=True)
class Rerank:
    """How the answers to one prompt were chosen.

    Attributes:
        probe: The probe's name, or a mix: the weight of each probe.
        version: SHA-256 of the probe's file; for a mix, of each.
        k: Candidates sampled.
        beta: Temperature of the choice, in units of score; solved for this prompt if the request
            gave a target_kl. ``inf`` draws evenly.
        target_kl: The KL that beta was solved for, in nats, or None.
        selected: Index of the candidate behind each answer.
        scores: One per candidate; they compare with each other only. None for one that was dropped
            early.
        weights: Probability of each candidate to be drawn first.
        kl: Estimate of the divergence from the base model, in nats; None if candidates voted, or
            were dropped early.
        sampled_tokens: Tokens generated for all candidates; None if a proxy's upstream does not
            say.
        candidates: All candidates, or None if the request did not ask for them.
        notice: Present when the request was read in a way that its sender may not expect.
        schedule: When candidates were to be dropped: (tokens, keep) of each checkpoint.
        num_tokens: With a schedule, generated for each candidate.
        rejected_at: With a schedule, the tokens of the checkpoint at which each candidate left.
        checkpoint_scores: With a schedule, each candidate's scores by the checkpoint's tokens.
        vote: How it came out, if the request asked for one.
        confidence: The reward to be expected of each candidate, None for one that was dropped
            early; None if the probe does not tell it. Of rewards 0 and 1 it is the probability of
            1, whatever the other candidates are.
    """

    probe: str | dict[str, float]
    version: str | dict[str, str]
    k: int
    beta: float
    target_kl: float | None
    selected: list[int]
    scores: list[float | None]
    weights: list[float]
    kl: float | None
    sampled_tokens: int | None
    candidates: list[Candidate] | None
    notice: str | None
    schedule: list[tuple[int, int]] = field(default_factory=list)
    num_tokens: list[int] | None = None
    rejected_at: list[int | None] | None = None
    checkpoint_scores: list[dict[int, float]] | None = None
    vote: Vote | None = None
    confidence: list[float | None] | None = None


@dataclass(frozen=True)
class ToolCall:
    """A call of a function that the model asks for; ``arguments`` is what it wrote as JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """One answer."""

    text: str
    finish_reason: str | None
    tool_calls: list[ToolCall] = field(default_factory=list)


@dataclass(frozen=True)
class Usage:
    """Tokens of the whole request; only returned answers count."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class PromptResult:
    """What came of one prompt.

    Attributes:
        answers: n of them, in the order in which they were drawn.
        rerank: None if the server sampled as the base model does.
    """

    answers: list[Answer]
    rerank: Rerank | None

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.answers[0].text


@dataclass(frozen=True)
class Completion:
    """What came of one request.

    Attributes:
        results: One per prompt, in order; a chat has one.
        usage: Tokens of the whole request.
        raw: The reply as the server sent it, for what is not shown here, such as logprobs. None if
            it was streamed.
    """

    results: list[PromptResult]
    usage: Usage
    raw: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def answers(self) -> list[Answer]:
        """The first prompt's answers."""
        return self.results[0].answers

    @property
    def rerank(self) -> Rerank | None:
        """How the first prompt's answers were chosen."""
        return self.results[0].rerank

    @property
    def text(self) -> str:
        """The first prompt's first answer."""
        return self.results[0].text


@dataclass(frozen=True)
class TextDelta:
    """The next piece of an answer in a stream; ``index`` counts the n answers."""

    text: str
    index: int


@dataclass(frozen=True)
class Probe:
    """A probe that the server has loaded.

    Attributes:
        name: What requests call it.
        version: SHA-256 of its file.
        created: When it was made or uploaded, in seconds since 1970.
        base_model: Id of the model that it was trained on.
        adapter: The LoRA adapter of that model that it may score alone; None: any.
        terms: What its score is the sum of, as the server tells it: each has a ``kind``, and a
            ``state`` also ``layer``, ``pooling`` and ``window``.
        confidence: Whether it tells how sure it is of answers.
        objective: What it was trained for: ``mse``, ``ce`` ...
        k: Recommended number of candidates.
        beta: Recommended temperature of the choice.
        checkpoints: Numbers of tokens after which it can compare candidates.
        schedule: The early rejection that it recommends: (tokens, keep) of each checkpoint.
        training: Summary of its training.
        licence: Of its data and weights, if it names one.
        num_requests: Requests that have used it since the server started.
    """

    name: str
    version: str
    created: int
    base_model: str
    adapter: str | None
    terms: list[dict[str, Any]]
    confidence: bool
    objective: str
    k: int
    beta: float
    checkpoints: list[int]
    schedule: list[tuple[int, int]]
    training: dict[str, Any]
    licence: str | None
    num_requests: int
