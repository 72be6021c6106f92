"""What our routes tell of the probes that are served."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from qprobe.data.provenance import SEEN, SEEN_BY_SCHEDULE
from qprobe.probe.values import Pooling, Source
from qprobe_server.choice.schemas import ScheduleStep
from qprobe_server.library.registry import ProbeRegistry, ServedProbe
from qprobe_server.library.sums import ServedSum

__all__ = [
    "GateCard",
    "NumbersCard",
    "ProbeCard",
    "ProbeDeleted",
    "ProbeList",
    "StateCard",
    "make_card",
]


class StateCard(BaseModel):
    """A term: a vector times an embedding of the completion."""

    kind: Literal["state"] = "state"
    layer: Source
    pooling: Pooling
    window: int | None


class GateCard(BaseModel):
    """A term: a mean over tokens, or over segments that end there, with weights of its own."""

    kind: Literal["gate"] = "gate"
    layer: Source
    segments: list[int]


class NumbersCard(BaseModel):
    """A term: numbers of the completion, weighted."""

    kind: Literal["numbers"] = "numbers"
    names: list[str]


_TermCard = Annotated[StateCard | GateCard | NumbersCard, Field(discriminator="kind")]


class ProbeCard(BaseModel):
    """A probe that is served."""

    id: str
    object: Literal["probe"] = "probe"
    version: str = Field(description="SHA-256 of the probe's file.")
    created: int
    base_model: str
    adapter: str | None = Field(description="The LoRA adapter that it may score alone; null: any.")
    terms: list[_TermCard] = Field(description="What its score is the sum of.")
    confidence: bool = Field(description="Whether replies tell the reward to be expected.")
    objective: str
    k: int
    beta: float
    checkpoints: list[int] = Field(description="Tokens after which it can compare candidates.")
    schedule: list[ScheduleStep] = Field(description="The early rejection that it recommends.")
    training: dict[str, Any]
    licence: str | None
    num_requests: int = Field(description="Requests that have used it since the server started.")


class ProbeList(BaseModel):
    """The probes that are served."""

    object: Literal["list"] = "list"
    data: list[ProbeCard]


class ProbeDeleted(BaseModel):
    """A probe is served no more."""

    id: str
    object: Literal["probe"] = "probe"
    deleted: Literal[True] = True


def make_card(probe: ServedProbe, registry: ProbeRegistry) -> ProbeCard:
    """Return the card of a probe."""
    info = probe.info
    return ProbeCard(
        id=probe.name,
        version=probe.version,
        created=probe.created,
        base_model=info.base_model,
        adapter=info.adapter,
        terms=_list_terms(probe.score),
        confidence=probe.confidence is not None,
        objective=info.objective,
        k=info.k,
        beta=info.beta,
        checkpoints=list(info.checkpoints),
        schedule=[ScheduleStep(**asdict(step)) for step in info.schedule],
        training={
            name: value
            for name, value in info.training.items()
            if name not in (SEEN, SEEN_BY_SCHEDULE)
        },
        licence=info.licence,
        num_requests=registry.num_requests(probe.name),
    )


def _list_terms(score: ServedSum) -> list[_TermCard]:
    terms: list[_TermCard] = [StateCard(**asdict(each)) for each in score.readings]
    terms += [GateCard(layer=each.layer, segments=list(each.segments)) for each in score.gates]
    if score.numbers:
        terms.append(NumbersCard(names=list(score.numbers)))
    return terms
