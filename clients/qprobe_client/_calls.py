"""What a client asks for, as what is sent. Does no I/O but to read a probe's file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qprobe_client.errors import ArgumentError

__all__ = [
    "Call",
    "Message",
    "Schedule",
    "Vote",
    "chat_call",
    "probe_call",
    "rerank_object",
    "text_call",
]

Message = Mapping[str, Any]
Schedule = Literal["default", "off"] | Sequence[tuple[int, int]]
Vote = Literal["numeric", "json", "text"] | Mapping[str, Any]

# What the server takes for a name; anything else could change the path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Call:
    """One HTTP request.

    Attributes:
        method: HTTP's.
        path: Under the server's root.
        content: The body, or None.
        content_type: Of the body.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    content: bytes | None = field(default=None, repr=False)  # it holds prompts
    content_type: str = "application/json"

    @property
    def is_idempotent(self) -> bool:
        """Whether to make it twice does what to make it once does."""
        return self.method != "POST"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def rerank_object(
    *,
    probe: str | Mapping[str, float] | None,
    k: int | None,
    beta: float | None,
    target_kl: float | None,
    schedule: Schedule | None,
    vote: Vote | None,
    return_candidates: bool,
    return_token_scores: bool,
) -> dict[str, Any]:
    """Return the ``q_probe`` object; empty if nothing is asked for.

    Raises:
        ArgumentError: The schedule is not one of pairs.
    """
    asked = {
        "probe": dict(probe) if isinstance(probe, Mapping) else probe,
        "k": k,
        "beta": beta,
        "target_kl": target_kl,
        "schedule": schedule
        if schedule is None or isinstance(schedule, str)
        else _list_steps(schedule),
        "vote": {"by": vote} if isinstance(vote, str) else None if vote is None else dict(vote),
        "return_candidates": return_candidates or None,
        "return_token_scores": return_token_scores or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _list_steps(schedule: Sequence[tuple[int, int]]) -> list[dict[str, int]]:
    for step in schedule:
        if not isinstance(step, Sequence) or len(step) != 2:
            raise ArgumentError(f"schedule: must be pairs (tokens, keep), got {step!r}")
    return [{"tokens": tokens, "keep": keep} for tokens, keep in schedule]


def chat_call(
    messages: str | Sequence[Message],
    *,
    asked: dict[str, Any],
    parameters: dict[str, Any],
    stream: bool = False,
) -> Call:
    """Return the call for a chat completion.

    Raises:
        ArgumentError: A parameter is not JSON, or not for ``parameters``.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
    ours: dict[str, Any] = {"q_probe": asked} if asked else {}
    if stream:
        # Without the object the server keeps the result of a stream to itself.
        options = {**(parameters.pop("stream_options", None) or {}), "include_usage": True}
        ours = {"stream": True, "stream_options": options, "q_probe": asked}
    return _post("/v1/chat/completions", body, parameters, ours)


def text_call(prompts: list[str], *, asked: dict[str, Any], parameters: dict[str, Any]) -> Call:
    """Return the call for text completions; raises as ``chat_call`` does."""
    if not prompts:
        raise ArgumentError("prompt: must be at least one")
    ours = {"q_probe": asked} if asked else {}
    return _post("/v1/completions", {"prompt": prompts}, parameters, ours)


def _post(
    path: str, body: dict[str, Any], parameters: dict[str, Any], ours: dict[str, Any]
) -> Call:
    for name, instead in (("stream", "stream_chat()"), ("q_probe", "probe, k, beta ...")):
        if name in parameters:
            raise ArgumentError(f"{name}: is not a parameter here; use {instead}")
    try:
        content = json.dumps({**body, **parameters, **ours}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{path}: a parameter is not JSON: {error}") from error
    return Call("POST", path, content)


def probe_call(
    method: Literal["GET", "PUT", "DELETE"], name: str, *, file: Path | str | bytes | None = None
) -> Call:
    """Return a call for one probe.

    Raises:
        ArgumentError: No probe can have this name.
        OSError: The file cannot be read.
    """
    if not _NAME.fullmatch(name):
        raise ArgumentError(
            f"name: {name!r} is not a probe's name: 1 to 64 letters, digits, '.', '_', '-', "
            "a letter or digit first"
        )
    content = Path(file).read_bytes() if isinstance(file, Path | str) else file
    return Call(method, f"/v1/probes/{name}", content, "application/octet-stream")
