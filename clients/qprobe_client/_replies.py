"""From the server's JSON to results and errors. Knows nothing of HTTP but the status."""

import math
import re
from typing import Any

from qprobe_client._fields import Fields
from qprobe_client.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestTooLargeError,
    ServiceUnavailableError,
)
from qprobe_client.results import (
    Answer,
    Candidate,
    Completion,
    Probe,
    PromptResult,
    Rerank,
    ToolCall,
    Usage,
    Vote,
)

__all__ = [
    "make_error",
    "pair_results",
    "parse_chat",
    "parse_deleted",
    "parse_models",
    "parse_probe",
    "parse_probes",
    "parse_reranks",
    "parse_texts",
    "parse_usage",
]

_ERRORS: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    413: RequestTooLargeError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}
# Of a malformed request vLLM 0.32's validation_exception_handler repeats what was sent.
_ECHO = re.compile(r", 'input': .*")


def parse_chat(reply: Any) -> Completion:
    """Read the reply to a chat completion.

    Raises:
        ReplyError: It is not one.
    """
    fields = Fields(reply)
    answers = [_parse_chat_answer(choice) for choice in _in_order(fields)]
    return Completion(
        pair_results(answers, parse_reranks(fields), num_prompts=1), parse_usage(fields), reply
    )


def parse_texts(reply: Any, *, num_prompts: int) -> Completion:
    """Read the reply to a text completion of one or several prompts; raises as ``parse_chat``."""
    fields = Fields(reply)
    answers = [
        Answer(choice.get("text", str), choice.find("finish_reason", str))
        for choice in _in_order(fields)
    ]
    return Completion(
        pair_results(answers, parse_reranks(fields), num_prompts=num_prompts),
        parse_usage(fields),
        reply,
    )


def _in_order(fields: Fields) -> list[Fields]:
    return sorted(fields.each("choices"), key=lambda choice: choice.get("index", int))


def _parse_chat_answer(choice: Fields) -> Answer:
    message = choice.below("message")
    calls = message.each("tool_calls") if "tool_calls" in message else []
    return Answer(
        text=message.find("content", str) or "",
        finish_reason=choice.find("finish_reason", str),
        tool_calls=[
            ToolCall(
                id=call.get("id", str),
                name=call.below("function").get("name", str),
                arguments=call.below("function").get("arguments", str),
            )
            for call in calls
        ],
    )


def pair_results(
    answers: list[Answer], reranks: list[Rerank | None] | None, *, num_prompts: int
) -> list[PromptResult]:
    """Divide the answers among the prompts: n each, one prompt's after another's.

    Raises:
        ReplyError: There are none, or they do not divide.
    """
    if reranks is None:
        reranks = [None] * num_prompts
    n, left = divmod(len(answers), num_prompts)
    if left or not n or len(reranks) != num_prompts:
        raise ReplyError(
            f"the reply's choices: {len(answers)} answers and {len(reranks)} results of reranking "
            f"to {num_prompts} prompts"
        )
    return [PromptResult(answers[i * n : (i + 1) * n], rerank) for i, rerank in enumerate(reranks)]


def parse_usage(reply: Fields) -> Usage:
    """Read ``usage``; raises as ``parse_chat`` does."""
    usage = reply.below("usage")
    return Usage(usage.get("prompt_tokens", int), usage.get("completion_tokens", int))


def parse_reranks(reply: Fields) -> list[Rerank | None] | None:
    """Read ``q_probe``: one per prompt, or None if there is none; raises as ``parse_chat``."""
    if "q_probe" not in reply:
        return None
    ours = reply.below("q_probe")
    return [
        _parse_rerank(ours, Fields(result, f"q_probe.results[{i}]")) if result is not None else None
        for i, result in enumerate(ours.get("results", list))
    ]


def _parse_rerank(ours: Fields, result: Fields) -> Rerank:
    beta = result.find("beta", float)
    probe, version = ours.one_of("probe", str, dict), ours.one_of("version", str, dict)
    return Rerank(
        probe=probe,
        version=version,
        k=ours.get("k", int),
        beta=math.inf if beta is None else beta,
        target_kl=ours.find("target_kl", float),
        selected=result.list_of("selected", int),
        scores=result.list_with_nulls("scores", float),
        weights=result.list_of("weights", float),
        kl=result.find("kl", float),
        sampled_tokens=result.find("sampled_tokens", int),
        candidates=[_parse_candidate(one) for one in result.each("candidates")]
        if "candidates" in result
        else None,
        notice=ours.find("notice", str),
        schedule=_parse_schedule(ours) if "schedule" in ours else [],
        num_tokens=result.find_list("num_tokens", int),
        rejected_at=result.list_with_nulls("rejected_at", int) if "rejected_at" in result else None,
        checkpoint_scores=[
            {int(tokens): score for tokens, score in each.numbers().items()}
            for each in result.each("checkpoint_scores")
        ]
        if "checkpoint_scores" in result
        else None,
        vote=_parse_vote(result.below("vote")) if "vote" in result else None,
        confidence=result.list_with_nulls("confidence", float) if "confidence" in result else None,
    )


def _parse_vote(told: Fields) -> Vote:
    return Vote(
        classes=told.list_with_nulls("classes", int),
        weights=told.list_of("weights", float),
        answers=told.find_list("answers", str),
    )


def _parse_schedule(owner: Fields) -> list[tuple[int, int]]:
    return [(step.get("tokens", int), step.get("keep", int)) for step in owner.each("schedule")]


def _parse_candidate(shown: Fields) -> Candidate:
    return Candidate(
        text=shown.get("text", str),
        num_tokens=shown.find("num_tokens", int),
        finish_reason=shown.find("finish_reason", str),
        stop_reason=shown.one_of("stop_reason", int, str) if "stop_reason" in shown else None,
        tokens=shown.find_list("tokens", str),
        token_scores=shown.find_list("token_scores", float),
    )


def parse_probes(reply: Any) -> list[Probe]:
    """Read the list of probes; raises as ``parse_chat`` does."""
    return [_parse_card(card) for card in Fields(reply).each("data")]


def parse_probe(reply: Any) -> Probe:
    """Read a probe's card; raises as ``parse_chat`` does."""
    return _parse_card(Fields(reply))


def _parse_card(card: Fields) -> Probe:
    return Probe(
        name=card.get("id", str),
        version=card.get("version", str),
        created=card.get("created", int),
        base_model=card.get("base_model", str),
        adapter=card.find("adapter", str),
        terms=card.list_of("terms", dict),
        confidence=card.get("confidence", bool),
        objective=card.get("objective", str),
        k=card.get("k", int),
        beta=card.get("beta", float),
        checkpoints=card.list_of("checkpoints", int),
        schedule=_parse_schedule(card),
        training=card.get("training", dict),
        licence=card.find("licence", str),
        num_requests=card.get("num_requests", int),
    )


def parse_deleted(reply: Any) -> None:
    """Check that a probe is gone; raises as ``parse_chat`` does."""
    if not Fields(reply).get("deleted", bool):
        raise ReplyError("the reply's deleted is false")


def parse_models(reply: Any) -> list[str]:
    """Read the names of the models; raises as ``parse_chat`` does."""
    return [model.get("id", str) for model in Fields(reply).each("data")]


def make_error(content: Any, *, status: int, reason: str, request_id: str | None) -> APIError:
    """Make the error that a body tells of.

    Args:
        content: The body; OpenAI's shape, vLLM's ``{"error": "Unauthorized"}``, or anything.
        status: HTTP status.
        reason: What to say if the body says nothing.
        request_id: The server's name for the request.
    """
    said = content.get("error") if isinstance(content, dict) else None
    if not isinstance(said, dict):
        said = {"message": said}
    texts = {name: said.get(name) for name in ("message", "param", "type")}
    message, param, kind = (
        value if isinstance(value, str) and value else None for value in texts.values()
    )
    made = _ERRORS.get(status, InternalServerError if status >= 500 else APIError)
    return made(
        f"{status}: {_ECHO.sub('}', message or reason)}",
        status=status,
        param=param,
        type=kind,
        request_id=request_id,
    )
