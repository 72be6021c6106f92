"""What an API does not take of what ``collect`` says by itself, learnt from what it refuses.

Mistral's refuses ``seed``; OpenAI's reasoning models want ``max_completion_tokens``. The message of
a refusal is in each API's own words, and so is not read: another form that is taken says as much.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

__all__ = ["REFUSALS", "Dialect"]

Body = dict[str, Any]

# The statuses of a request that has a field too many.
REFUSALS = (400, 422)
_SEED = "seed"
_LIMIT = "max_tokens"
_OTHER_LIMIT = "max_completion_tokens"


class Dialect:
    """Of one API; starts with what most take."""

    def __init__(self) -> None:
        self._is_changed: dict[str, bool] = {}  # by field, as soon as a form with it was taken

    @property
    def takes_seeds(self) -> bool:
        """Whether requests have one, as far as is known."""
        return not self._is_changed.get(_SEED, False)

    def forms(self, body: Body) -> Iterator[tuple[Mapping[str, bool], Body]]:
        """Give the forms of a request to be tried one after the other, as far as none is known.

        Args:
            body: As most APIs take it; stays as it is.

        Returns:
            Gives which fields are changed, for ``learn``, and the body.
        """
        # A text's completion has one limit only.
        fields = [each for each in (_LIMIT, _SEED) if each in body]
        fields = fields if "messages" in body else [each for each in fields if each != _LIMIT]
        for flags in product((False, True), repeat=len(fields)):
            changes = dict(zip(fields, flags, strict=True))
            if all(self._is_changed.get(name, flag) == flag for name, flag in changes.items()):
                yield changes, _change(body, changes)

    def learn(self, changes: Mapping[str, bool]) -> None:
        """Note that a form was taken: it is that of all further requests."""
        for name, flag in changes.items():
            self._is_changed.setdefault(name, flag)


def _change(body: Body, changes: Mapping[str, bool]) -> Body:
    changed = {name: value for name, value in body.items() if not changes.get(name, False)}
    if changes.get(_LIMIT, False):
        changed[_OTHER_LIMIT] = body[_LIMIT]
    return changed
