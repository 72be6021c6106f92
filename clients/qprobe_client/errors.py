"""The errors of this package.

ClientError
├── ArgumentError                 what was asked for cannot be sent; nothing was
├── TransportError                the server could not be reached, or broke off
│   └── TransportTimeoutError       it took longer than the client waits
├── APIError                      the server answered with an error
│   ├── BadRequestError             400
│   ├── AuthenticationError         401
│   ├── NotFoundError               404
│   ├── ConflictError               409
│   ├── RequestTooLargeError        413
│   ├── RateLimitError              429
│   └── InternalServerError         5xx
│       └── ServiceUnavailableError   503
└── ReplyError                    the server answered, but not as a qprobe server does

No message holds a key or a prompt.
"""

__all__ = [
    "APIError",
    "ArgumentError",
    "AuthenticationError",
    "BadRequestError",
    "ClientError",
    "ConflictError",
    "InternalServerError",
    "NotFoundError",
    "RateLimitError",
    "ReplyError",
    "RequestTooLargeError",
    "ServiceUnavailableError",
    "TransportError",
    "TransportTimeoutError",
]


class ClientError(Exception):
    """Root of every error that this package raises on purpose."""


class ArgumentError(ClientError, ValueError):
    """An argument cannot be made into a request; nothing was sent."""


class TransportError(ClientError):
    """The server could not be reached, did not answer in time, or broke off."""


class TransportTimeoutError(TransportError):
    """The server was silent for longer than ``timeout_s``, or did not take the connection."""


class APIError(ClientError):
    """The server refused or failed the request.

    Attributes:
        status: HTTP status; in a stream that had begun, the one it would have been.
        param: Path of the offending field, such as ``q_probe.k``, if the server names one.
        type: The server's name for this kind of error, if it gives one.
        request_id: What the server's log calls the request, if it says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        param: str | None = None,
        type: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.type = type
        self.request_id = request_id


class BadRequestError(APIError):
    """400: a field has a wrong value; ``param`` names it."""


class AuthenticationError(APIError):
    """401: the key is missing or wrong."""


class NotFoundError(APIError):
    """404: there is no such model or probe."""


class ConflictError(APIError):
    """409: the probe is the server's default and cannot be deleted."""


class RequestTooLargeError(APIError):
    """413: the file is larger than a probe may be."""


class RateLimitError(APIError):
    """429: too many requests, after all retries."""


class InternalServerError(APIError):
    """5xx: the server failed."""


class ServiceUnavailableError(InternalServerError):
    """503: the queue is full or the engine is down, after all retries."""


class ReplyError(ClientError):
    """The reply is not what a qprobe server sends."""
