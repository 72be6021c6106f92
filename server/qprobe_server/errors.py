"""The errors of this package.

ServerError
├── StartupError   the server cannot start as asked: a flag, a probe's file, the model, the machine
├── RequestError   a request that is refused; becomes the reply's status and error object
├── ScoringError   the engine gave no usable scores; the request fails with status 500
└── ReadingError   what reads an upstream's completions gives no answer; the request fails with 502
"""

from http import HTTPStatus
from typing import Any

__all__ = ["ReadingError", "RequestError", "ScoringError", "ServerError", "StartupError"]


class ServerError(Exception):
    """Root of every error that this package raises on purpose."""


class StartupError(ServerError):
    """The server cannot start; the message is one line that says what to change."""


class ScoringError(ServerError):
    """The engine gave no usable scores for a request that it sampled."""


class ReadingError(ServerError):
    """The reader of an upstream's completions gives no answer; the message quotes no text."""


class RequestError(ServerError):
    """A request is refused before anything is sampled.

    Attributes:
        status: HTTP status, from 400 to 499; 503 where there is no room for it now.
        param: Path of the offending field, such as ``q_probe.k``.
        headers: Of the reply.
    """

    def __init__(
        self, message: str, *, param: str, status: int = 400, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}

    def body(self) -> dict[str, Any]:
        """Return the reply: OpenAI's error object, with what Anthropic's clients read beside it."""
        # vLLM's way: the status's phrase without spaces.
        kind = f"{HTTPStatus(self.status).phrase.replace(' ', '')}Error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.status}
        return {"type": "error", "error": error}
