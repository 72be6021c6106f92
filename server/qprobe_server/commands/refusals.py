"""Prompts that an API refuses for good, as its filter of contents does, and when to go on without.

What refuses a prompt may also refuse every request: a key that was withdrawn, a parameter. So an
API that has refused a prompt is asked once more what it has answered before.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus

from qprobe_server.commands.printing import warn
from qprobe_server.errors import ServerError, StartupError, UpstreamError
from qprobe_server.proxy.reader import Written
from qprobe_server.proxy.upstream import explain

__all__ = ["Refusals"]

_STATUSES = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
_GOES_ON = "started again, the collection goes on"


class Refusals:
    """Collects them over a collection, shard by shard.

    Args:
        ask: Asks for an answer to a prompt, by its index.
        lines: Of all prompts, for errors.
        answered: A prompt that was answered when the collection was begun; None if none was.
        skip: Whether such prompts are left out; else the first one is an error.

    Attributes:
        prompts: Indices of those that are left out, with what was said to one of their requests.
    """

    def __init__(
        self,
        ask: Callable[[int], Written | ServerError],
        lines: Sequence[int],
        *,
        answered: int | None,
        skip: bool,
    ) -> None:
        self._ask = ask
        self._lines = lines
        self._answered = answered
        self._skip = skip
        self.prompts: dict[int, ServerError] = {}

    def add(self, prompt: int, error: ServerError, *, is_first: bool, is_greedy: bool) -> None:
        """Leave a prompt out whose request has failed.

        Args:
            prompt: Its index.
            error: Why.
            is_first: Whether no other request of this shard was answered before.
            is_greedy: Whether it was asked for the greedy answer.

        Raises:
            StartupError: It may not be left out, or it is the very first of the collection.
        """
        is_refusal = isinstance(error, UpstreamError) and error.status in _STATUSES
        said = f"--upstream: {explain(error)} for the prompt of line {self._lines[prompt]}"
        if not self._skip or not is_refusal:
            hint = "; --on-refusal skip leaves out what the API refuses" if is_refusal else ""
            # Some models take no temperature of 0.
            greedy = "; --no-greedy asks for no greedy answers" if is_refusal and is_greedy else ""
            raise StartupError(f"{said}{greedy}; {_GOES_ON}{hint}") from error
        if prompt == 0 and is_first and self._answered is None:
            raise self._blame_request(prompt, error)
        self.prompts.setdefault(prompt, error)

    def check(self, answered: Sequence[int], refused: Sequence[int]) -> None:
        """Check at the end of a shard that the API still answers.

        Args:
            answered: Prompts of the shard with all of their answers.
            refused: Those that are left out.

        Raises:
            StartupError: It does not, or never has.
        """
        if answered:
            self._answered = answered[-1]
        if not refused:
            return
        if self._answered is None:
            raise self._blame_request(refused[0], self.prompts[refused[0]])
        came = self._ask(self._answered)
        if isinstance(came, ServerError):
            line = self._lines[self._answered]
            raise StartupError(
                f"--upstream: {explain(came)} for the prompt of line {line}, which it has answered "
                f"before: what it refuses now are not the prompts; {_GOES_ON}"
            ) from came

    def tell(self) -> None:
        """Print how many there are, if any."""
        if self.prompts:
            first = min(self.prompts)
            warn(
                f"the API refuses some prompts, which have no samples: {len(self.prompts)}; the "
                f"first: that of line {self._lines[first]}, {explain(self.prompts[first])}"
            )

    def _blame_request(self, prompt: int, error: ServerError) -> StartupError:
        made = StartupError(
            f"--upstream: {explain(error)} for the prompt of line {self._lines[prompt]}, and no "
            "other was answered: what it refuses may be the model's name, the key or a parameter, "
            "and not prompts, which --on-refusal skip leaves out"
        )
        made.__cause__ = error
        return made
