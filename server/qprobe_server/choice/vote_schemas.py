"""Our part of requests and replies about votes: checked on the way in, documented in OpenAPI."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

__all__ = ["VoteReply", "VoteRequest", "word_or_list"]

_MAX_PATTERN = 1_000
_MAX_SOURCES = 32


def word_or_list(value: object) -> str:
    """Return the tag of a field's value that is a word, or a list of something."""
    return "word" if isinstance(value, str) else "list"


class VoteRequest(BaseModel):
    """How candidates vote: those with equal answers support each other."""

    model_config = ConfigDict(extra="forbid", strict=True)

    by: Literal["numeric", "regex", "json", "text", "code"] = Field(
        description="What is compared: the number that an answer ends in, what a pattern finds, a "
        "JSON value or calls of tools, the whole text, or what the answer's code does."
    )
    pattern: str | None = Field(
        None,
        max_length=_MAX_PATTERN,
        description="With 'regex': its group 1, or the whole match, is the answer.",
    )
    inputs: list[str] | None = Field(
        None,
        min_length=1,
        max_length=_MAX_SOURCES,
        description="With 'code': calls in Python, such as f(2), whose results are compared.",
    )
    tests: list[str] | None = Field(
        None,
        min_length=1,
        max_length=_MAX_SOURCES,
        description="With 'code': statements in Python. What fails them is dropped, unless all do; "
        "without inputs the calls in them are compared.",
    )
    setup: str | None = Field(
        None, description="With 'code': Python that is run before the answer's code and the calls."
    )
    entry_point: (
        Annotated[
            Annotated[str, Tag("word")] | Annotated[list[str], Tag("list")],
            Discriminator(word_or_list),
        ]
        | None
    ) = Field(
        None, description="With 'code': what the answer must define, where the tests name more."
    )


class VoteReply(BaseModel):
    """How the candidates of a prompt voted."""

    classes: list[int | None] = Field(
        description="Of each candidate, equal for equal answers. Null without an answer, and if it "
        "was dropped early."
    )
    weights: list[float] = Field(description="Probability of each class to be drawn first.")
    answers: list[str] | None = Field(
        default=None, description="With return_candidates: what each class says, cut short."
    )
