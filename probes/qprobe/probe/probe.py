"""What a probe is: a sum of terms on a completion, and what one must know to use it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qprobe.errors import ProbeFileError
from qprobe.probe.confidence import Confidence
from qprobe.probe.reading import EMBEDDING
from qprobe.probe.schedule import Schedule, check_schedule
from qprobe.probe.terms import Terms, check_count
from qprobe.probe.values import OBJECTIVES, is_beta

__all__ = ["Endpoint", "Probe", "ProbeInfo"]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """How an embeddings endpoint reads a completion, where no model of ours does.

    Attributes:
        template: What is embedded: ``{prompt}`` and ``{completion}`` stand for the texts.
        normalize: Whether the vectors are brought to length 1.

    Raises:
        ProbeFileError: A field is not valid; it is named.
    """

    template: str
    normalize: bool

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or "{completion}" not in self.template:
            raise ProbeFileError(
                "endpoint.template", f"must be a text with {{completion}}, got {self.template!r}"
            )
        if not isinstance(self.normalize, bool):
            raise ProbeFileError(
                "endpoint.normalize", f"must be true or false, got {self.normalize!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeInfo:
    """What a probe expects of the model, and what its maker recommends.

    Attributes:
        base_model: Id of the model whose states the probe reads, such as a hub id; or of the model
            behind an embeddings endpoint.
        hidden_size: Width of that model's hidden states, or of the endpoint's vectors, >= 1.
        num_layers: Its number of blocks, >= 1; 1 of an endpoint's, which shows none.
        objective: What the probe was trained with.
        k: Recommended number of candidates, >= 1.
        beta: Recommended temperature of the choice, in units of score, >= 0.
        training: A summary in JSON types: data, numbers, date. Free form.
        licence: SPDX expression for the weights, or None.
        checkpoints: The probe has a head for the beginning of so many tokens, for each of these
            numbers; >= 1, rising.
        schedule: When it recommends to drop candidates, at some of its checkpoints; empty if never.
        adapter: The LoRA adapter whose states it was trained on, by the last part of its folder's
            path; None if there was none, or it is not known.
        endpoint: How the embeddings endpoint reads; None if a model of ours does.

    Raises:
        ProbeFileError: A field is out of range; it is named.
    """

    base_model: str
    hidden_size: int
    num_layers: int
    objective: str
    k: int
    beta: float
    training: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    checkpoints: tuple[int, ...] = ()
    schedule: Schedule = ()
    adapter: str | None = None
    endpoint: Endpoint | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.base_model, str) or not self.base_model:
            raise ProbeFileError("base_model", f"must name a model, got {self.base_model!r}")
        for name in ("hidden_size", "num_layers", "k"):
            check_count(name, getattr(self, name))
        if self.objective not in OBJECTIVES:
            allowed = ", ".join(OBJECTIVES)
            raise ProbeFileError("objective", f"must be one of {allowed}, got {self.objective!r}")
        if not is_beta(self.beta):
            raise ProbeFileError("beta", f"must be a finite number >= 0, got {self.beta!r}")
        if not isinstance(self.training, dict):
            raise ProbeFileError("training", f"must be an object, got {self.training!r}")
        for name in ("licence", "adapter"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ProbeFileError(name, f"must be a string or null, got {value!r}")
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        for index, tokens in enumerate(self.checkpoints):
            check_count(f"checkpoints.{index}", tokens)
        if list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise ProbeFileError("checkpoints", f"must rise, got {list(self.checkpoints)}")
        try:
            check_schedule(self.schedule)
        except ValueError as error:
            place, text = error.args
            raise ProbeFileError(f"schedule.{place}", text) from error
        for index, step in enumerate(self.schedule):
            if step.tokens not in self.checkpoints:
                raise ProbeFileError(
                    f"schedule.{index}.tokens",
                    f"must be one of the checkpoints {list(self.checkpoints)}, got {step.tokens}",
                )


class Probe:
    """Q(x, a): one score for prompt x and completion a. Compares candidates of one prompt only.

    The linear probe w . phi + b of Li et al. 2024 is one state term. The terms are what a server
    gives for nothing beyond a row of a product each.

    Args:
        info: What the probe expects and recommends.
        terms: What the score is the sum of.
        heads: Likewise of each of ``info.checkpoints``, read of the first so many tokens. They rank
            candidates, so that they need no common scale with the score. The windows of their
            state terms are at most the checkpoint; None stands for it.
        confidence: From the score to the expected reward, if it is known.

    Attributes:
        info, terms, heads, confidence: As given.

    Raises:
        ProbeFileError: A term does not fit ``info``, or the heads are not those of the checkpoints.
    """

    def __init__(
        self,
        info: ProbeInfo,
        terms: Terms,
        heads: Mapping[int, Terms] | None = None,
        confidence: Confidence | None = None,
    ) -> None:
        self.info = info
        self.terms = terms
        self.heads = dict(heads or {})
        self.confidence = confidence
        if sorted(self.heads) != list(info.checkpoints):
            raise ProbeFileError(
                "checkpoints", f"are {list(info.checkpoints)}, the heads' are {sorted(self.heads)}"
            )
        own = confidence.terms if confidence else None
        for place, each in (("terms", terms), ("confidence.terms", own)):
            if each is not None:
                self._check(place, each)
        for tokens, head in self.heads.items():
            self._check(f"heads.{tokens}.terms", head)
            for reading in head.readings:
                if (reading.window or 0) > tokens:
                    raise ProbeFileError(
                        f"heads.{tokens}", f"reads {reading}, more than the first {tokens} tokens"
                    )

    def _check(self, place: str, terms: Terms) -> None:
        info = self.info
        terms.check(place, hidden_size=info.hidden_size, num_layers=info.num_layers)
        if (EMBEDDING in terms.readings) != (info.endpoint is not None and bool(terms.layers)):
            raise ProbeFileError(
                "endpoint", f"and {place} must both be of an embeddings endpoint, or neither"
            )

    @property
    def sums(self) -> list[Terms]:
        """All that it computes: the score, the confidence's own if there is one, and the heads."""
        own = self.confidence.terms if self.confidence else None
        return [self.terms, *([own] if own else []), *self.heads.values()]
