"""What the server answers, as objects."""

from dataclasses import dataclass
from typing import Any

from qprobe_client.errors import ClientError

__all__ = [
    "Answer",
    "Candidate",
    "Completion",
    "Probe",
    "Rerank",
    "parse_completion",
    "parse_probes",
]


@dataclass(frozen=True)
class Candidate:
    """One sampled completion, shown if the request asked for candidates."""

    text: str
    num_tokens: int
    finish_reason: str | None


@dataclass(frozen=True)
class Rerank:
    """How the answers were chosen.

    Attributes:
        probe: The probe's name.
        k: Candidates sampled.
        beta: Temperature of the choice, in units of score.
        selected: Index of the candidate behind each answer.
        scores: One per candidate; they compare with each other only.
        weights: Probability of each candidate to be drawn first.
        kl: Estimate of the divergence from the base model, in nats.
        sampled_tokens: Tokens generated for all candidates.
        candidates: All candidates, or None if the request did not ask for them.
    """

    probe: str
    k: int
    beta: float
    selected: list[int]
    scores: list[float]
    weights: list[float]
    kl: float
    sampled_tokens: int
    candidates: list[Candidate] | None


@dataclass(frozen=True)
class Answer:
    """One answer."""

    text: str
    finish_reason: str | None


@dataclass(frozen=True)
class Completion:
    """The answers to a chat.

    Attributes:
        answers: n of them, best first as drawn.
        rerank: None if the server sampled as the base model does.
        prompt_tokens: Length of the prompt.
        completion_tokens: Length of the answers.
    """

    answers: list[Answer]
    rerank: Rerank | None
    prompt_tokens: int
    completion_tokens: int

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.answers[0].text


@dataclass(frozen=True)
class Probe:
    """A probe that the server has loaded.

    Attributes:
        name: What requests call it.
        base_model: Id of the model that it was trained on.
        layer: Index of the layer that it reads, or ``final``.
        pooling: ``last`` or ``mean``.
        k: Recommended number of candidates.
        beta: Recommended temperature of the choice.
    """

    name: str
    base_model: str
    layer: int | str
    pooling: str
    k: int
    beta: float


def parse_completion(reply: Any) -> Completion:
    """Read the reply to a chat completion.

    Raises:
        ClientError: It is not one.
    """
    try:
        return Completion(
            answers=[
                Answer(choice["message"]["content"] or "", choice["finish_reason"])
                for choice in reply["choices"]
            ],
            rerank=_parse_rerank(reply["q_probe"]) if "q_probe" in reply else None,
            prompt_tokens=reply["usage"]["prompt_tokens"],
            completion_tokens=reply["usage"]["completion_tokens"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ClientError(f"the server's reply is not a chat completion: {error!r}") from error


def _parse_rerank(reply: dict[str, Any]) -> Rerank:
    result = reply["results"][0]
    shown = result.get("candidates")
    return Rerank(
        probe=reply["probe"],
        k=reply["k"],
        beta=reply["beta"],
        selected=result["selected"],
        scores=result["scores"],
        weights=result["weights"],
        kl=result["kl"],
        sampled_tokens=result["sampled_tokens"],
        candidates=None
        if shown is None
        else [Candidate(one["text"], one["num_tokens"], one["finish_reason"]) for one in shown],
    )


def parse_probes(reply: Any) -> list[Probe]:
    """Read the reply to ``GET /v1/probes``.

    Raises:
        ClientError: It is not one.
    """
    names = ("base_model", "layer", "pooling", "k", "beta")
    try:
        return [
            Probe(name=card["id"], **{name: card[name] for name in names}) for card in reply["data"]
        ]
    except (KeyError, TypeError) as error:
        raise ClientError(f"the server's reply is not a list of probes: {error!r}") from error
