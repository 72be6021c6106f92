"""Our part of requests and replies: checked on the way in, documented in OpenAPI."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from qprobe_server.choice.vote_schemas import VoteReply, VoteRequest, word_or_list
from qprobe_server.errors import RequestError

__all__ = [
    "CandidateReply",
    "ErrorReply",
    "QProbeReply",
    "QProbeRequest",
    "ResultReply",
    "ScheduleStep",
    "read_request",
    "show",
]

MAX_MIX = 16
MAX_STEPS = 16
# Characters of a value that an error message repeats.
_SHOWN = 60

# Far beyond use, and far from where a sum of scores would overflow.
_Weight = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


_Count = Annotated[int, Field(ge=1)]


def _name_or_mix(value: object) -> str:
    return "name" if isinstance(value, str) else "mix"


class ScheduleStep(BaseModel):
    """One checkpoint of early rejection."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: _Count = Field(description="Compares candidates by their first so many tokens.")
    keep: _Count = Field(description="So many go on, but at least n.")


class QProbeRequest(BaseModel):
    """How a request is to be reranked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    probe: (
        Annotated[
            Annotated[str, Tag("name")]
            | Annotated[dict[str, _Weight], Field(min_length=1, max_length=MAX_MIX), Tag("mix")],
            Discriminator(_name_or_mix),
        ]
        | None
    ) = Field(None, description="Name of a loaded probe, or a mix: the weight of each probe.")
    k: int | None = Field(None, ge=1, description="Candidates per prompt.")
    beta: _NotNegative | None = Field(
        None, description="Temperature of the choice, in units of score; 0 takes the best."
    )
    target_kl: _NotNegative | None = Field(
        None, description="Instead of beta: the KL in nats that the choice may spend."
    )
    schedule: (
        Annotated[
            Annotated[Literal["default", "off"], Tag("word")]
            | Annotated[list[ScheduleStep], Field(max_length=MAX_STEPS), Tag("list")],
            Discriminator(word_or_list),
        ]
        | None
    ) = Field(
        None,
        description="Early rejection: when candidates that fall behind are dropped; 'default' is "
        "what the probe recommends.",
    )
    vote: VoteRequest | None = Field(
        None, description="Draw among classes of candidates with equal answers."
    )
    return_candidates: bool | None = Field(None, description="Show all candidates.")
    return_token_scores: bool | None = Field(
        None, description="Show all candidates, with the score of each token."
    )


class CandidateReply(BaseModel):
    """One candidate."""

    text: str
    num_tokens: int | None = Field(description="Null if a proxy's upstream does not say.")
    finish_reason: str | None
    stop_reason: int | str | None
    tokens: list[str] | None = None
    token_scores: list[float] | None = None


class ResultReply(BaseModel):
    """What came of one prompt."""

    selected: list[int] = Field(description="The candidates that are the answers, in order.")
    scores: list[float | None] = Field(
        description="One per candidate; compare within a prompt only. Null if it was dropped early."
    )
    weights: list[float] = Field(description="Probability of each to be drawn first.")
    kl: float | None = Field(
        description="log k - H(weights), in nats. Null if candidates voted, or were dropped early."
    )
    beta: float | None = Field(description="Used for this prompt; null is infinite.")
    sampled_tokens: int | None = Field(
        description="Generated for all candidates; null if a proxy's upstream does not say."
    )
    confidence: list[float | None] | None = Field(
        default=None,
        description="If the probe has it: the reward to be expected of each candidate, from 0 to 1 "
        "the probability that it is right. Null if it was dropped early.",
    )
    sampled_usage: dict[str, Any] | None = Field(
        default=None,
        description="Of a proxy: the sum of what its upstream counts for all candidates; null if "
        "it does not say.",
    )
    num_tokens: list[int] | None = Field(
        default=None, description="With a schedule: generated for each candidate."
    )
    rejected_at: list[int | None] | None = Field(
        default=None,
        description="With a schedule: the tokens of the checkpoint at which each candidate left.",
    )
    checkpoint_scores: list[dict[int, float]] | None = Field(
        default=None,
        description="With a schedule: each candidate's scores, by the checkpoint's tokens.",
    )
    vote: VoteReply | None = Field(default=None, description="With a vote: how it came out.")
    candidates: list[CandidateReply] | None = None


class QProbeReply(BaseModel):
    """How a reply was reranked."""

    probe: str | dict[str, float]
    version: str | dict[str, str] = Field(description="SHA-256 of the probe's file.")
    k: int
    beta: float | None = None
    target_kl: float | None = None
    schedule: list[ScheduleStep] | None = None
    notice: str | None = None
    results: list[ResultReply | None]


class ErrorDetail(BaseModel):
    """What is wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(BaseModel):
    """A refusal, in the shape that OpenAI's and Anthropic's clients read."""

    type: Literal["error"]
    error: ErrorDetail


_OWNERS: dict[str, type[BaseModel]] = {"schedule": ScheduleStep, "vote": VoteRequest}


def read_request(asked: object) -> QProbeRequest:
    """Check a request's ``q_probe``.

    Raises:
        RequestError: 400; names the field and shows the value, cut short.
    """
    if not isinstance(asked, dict):
        raise RequestError(f"q_probe: must be an object, got {show(asked)}", param="q_probe")
    try:
        return QProbeRequest.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    place = [str(part)[:_SHOWN] for part in first["loc"]]
    if place[:2] in (["probe", "mix"], ["schedule", "list"], ["schedule", "word"]):
        del place[1]  # pydantic's name for that side of the union
    if place[:2] == ["vote", "entry_point"]:
        del place[2:]
    path = ".".join(["q_probe", *place])
    if first["type"] == "extra_forbidden":
        owner = _OWNERS[place[0]] if len(place) > 1 else QProbeRequest
        allowed = ", ".join(owner.model_fields)
        raise RequestError(f"{path}: is not a field; the fields are {allowed}", param=path)
    if first["type"] == "dict_type" and place == ["probe"]:
        said = "must be a probe's name, or an object of names and weights"
    elif place == ["schedule"] and first["type"] in ("list_type", "literal_error"):
        said = "must be 'default', 'off' or a list of objects of tokens and keep"
    elif place == ["vote"]:
        said = "must be an object with the field by"
    else:
        said = first["msg"][0].lower() + first["msg"][1:]
    raise RequestError(f"{path}: {said}, got {show(first['input'])}", param=path)


def show(value: object) -> str:
    """Return a value of the request for an error message, cut short: it may be a misplaced text."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
