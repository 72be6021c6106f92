"""Fields beside ``q_probe``: what vLLM will read in them, and names that are misplaced.

vLLM ignores a field that it does not know: a misspelt one of ours would be lost in silence.
"""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from qprobe_server.choice.schemas import QProbeRequest, show
from qprobe_server.errors import RequestError

__all__ = ["check_names", "count_prompts", "read_lax"]

_OURS = "q_probe"
_PROMPTS = ("prompt", "prompt_embeds", "messages")
# Its fields, none of which a request of OpenAI's, Anthropic's or vLLM's has beside it.
_INSIDE = tuple(QProbeRequest.model_fields)
_MAX_TYPING_ERRORS = 2

_T = TypeVar("_T", int, float, bool)
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (int, float, bool)}


def check_names(body: dict[str, Any]) -> None:
    """Check that no field of a request is meant to be ``q_probe``, or a field of it.

    Raises:
        RequestError: 400; names the field.
    """
    for name in body:
        if name == _OURS:
            continue
        if name in _INSIDE:
            raise RequestError(f"{name}: belongs into the object {_OURS}", param=name)
        if _is_near(name.lower(), _OURS):
            raise RequestError(
                f"{show(name)}: is not a field; is {_OURS} meant?", param=name[: 2 * len(_OURS)]
            )


def read_lax(value: object, kind: type[_T]) -> _T | None:
    """Return what vLLM will read in a value, whose models take ``"2"`` for 2.

    Returns:
        None for null, and for what is not of that kind: vLLM refuses it.
    """
    try:
        return None if value is None else _ADAPTERS[kind].validate_python(value)
    except ValidationError:
        return None


def count_prompts(body: dict[str, Any]) -> tuple[str, int]:
    """Return the field that has a request's prompts, and how many: at least 1.

    Several are there in completions, as a list of texts, of lists of token ids or of embeddings,
    and in batches of chats, as a list of lists of messages.
    """
    counts = {name: _count(name, body[name]) for name in _PROMPTS if body.get(name)}
    # vLLM takes prompts and embeddings in one request.
    return next(iter(counts), _PROMPTS[0]), max(1, sum(counts.values()))


def _count(name: str, value: object) -> int:
    if not isinstance(value, list):
        return 1
    is_one = not isinstance(value[0], list) if name == "messages" else isinstance(value[0], int)
    return 1 if is_one else len(value)


def _is_near(one: str, other: str) -> bool:
    """Return whether two letters inserted, dropped or changed make one name the other."""
    if abs(len(one) - len(other)) > _MAX_TYPING_ERRORS:
        return False
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        above, row = row, [i]
        for j, wanted in enumerate(other, start=1):
            changed = above[j - 1] + (letter != wanted)
            row.append(min(changed, above[j] + 1, row[j - 1] + 1))
    return row[-1] <= _MAX_TYPING_ERRORS
