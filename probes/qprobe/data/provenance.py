"""Which prompts a probe has met, as its file keeps them."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from qprobe.errors import ProbeFileError

__all__ = ["SEEN", "SEEN_BY_SCHEDULE", "identify_prompts", "note_seen", "prompt_of", "read_seen"]

Json = dict[str, Any]

# Fields of ``ProbeInfo.training``: the prompts that a probe was trained on, and others that its
# schedule was chosen on. One text each and not a list, since a server may hold thousands of probes.
SEEN = "seen_prompts"
SEEN_BY_SCHEDULE = "schedule_prompts"
_DIGITS = 12


def identify_prompts(prompts: Sequence[Json]) -> list[str]:
    """Return 12 hex digits for each row, by what it asks: its ``prompt`` or ``messages``.

    Any two of 100,000 different prompts come out the same with a probability of 2e-5.
    """
    # A message is the same in whatever order its fields are written.
    texts = (json.dumps(prompt_of(row), sort_keys=True) for row in prompts)
    return [hashlib.sha256(text.encode()).hexdigest()[:_DIGITS] for text in texts]


def prompt_of(row: Json) -> str | list[Json]:
    """Return what a row asks: raw text or messages."""
    # The last is of pairs of whole chats.
    asked: str | list[Json] = row.get("messages") or row.get("prompt") or row.get("chosen", [])[:-1]
    return asked


def note_seen(prompts: Sequence[Json]) -> str:
    """Return the value of either field for a probe made with these prompts."""
    return "".join(dict.fromkeys(identify_prompts(prompts)))


def read_seen(training: Json, field: str = SEEN) -> set[str]:
    """Return the prompts, as ``identify_prompts`` has them, that a field names; or none.

    Raises:
        ProbeFileError: The value is not one of ``note_seen``.
    """
    noted = training.get(field, "")
    if not isinstance(noted, str) or len(noted) % _DIGITS:
        raise ProbeFileError(f"training.{field}", f"must be {_DIGITS} digits for each prompt")
    return {noted[start : start + _DIGITS] for start in range(0, len(noted), _DIGITS)}
