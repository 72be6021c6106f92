"""The errors of this package.

ClientError
├── TransportError   the server could not be reached, or broke off
└── APIError         the server answered with an error
"""

__all__ = ["APIError", "ClientError", "TransportError"]


class ClientError(Exception):
    """Root of every error that this package raises on purpose."""


class TransportError(ClientError):
    """The server could not be reached, did not answer in time, or broke off."""


class APIError(ClientError):
    """The server refused or failed the request.

    Attributes:
        status: HTTP status.
        param: Path of the offending field, such as ``q_probe.k``, if the server names one.
    """

    def __init__(self, message: str, *, status: int, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
