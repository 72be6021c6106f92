"""The errors of this package.

ServerError
├── StartupError   the server cannot start as asked: a flag, a probe's file, the model, the machine
├── RequestError   a request that is refused; becomes the reply's status and error object
├── ScoringError   the engine gave no usable scores; the request fails with status 500
├── ReadingError   what reads an upstream's completions gives no answer; the request fails with 502
└── UpstreamError  an upstream gave no usable answer; the request fails with its status, or with 502
"""

from http import HTTPStatus
from typing import Any

__all__ = [
    "ReadingError",
    "RequestError",
    "ScoringError",
    "ServerError",
    "StartupError",
    "UpstreamError",
    "describe_error",
]


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
        """Return the reply."""
        return describe_error(str(self), status=self.status, param=self.param)


class UpstreamError(ServerError):
    """An upstream gave no usable answer. The message quotes nothing of what it said.

    Attributes:
        status: HTTP status of the reply to the client, from 400 to 599.
        own: The upstream's own error, if there is one: its content type and its body.
        retry_after_s: Seconds after which the upstream wants to be asked again, or None.
        may_pass: Whether another try may have more luck.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        own: tuple[str, bytes] | None = None,
        retry_after_s: float | None = None,
        may_pass: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.own = own
        self.retry_after_s = retry_after_s
        self.may_pass = may_pass


def describe_error(message: str, *, status: int, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error: OpenAI's object, with what Anthropic's clients read beside it.

    Args:
        message: For the client.
        status: HTTP status of the reply.
        param: Path of the offending field.
    """
    # vLLM's way: the status's phrase without spaces.
    kind = f"{HTTPStatus(status).phrase.replace(' ', '')}Error"
    error = {"message": message, "type": kind, "param": param, "code": status}
    return {"type": "error", "error": error}
