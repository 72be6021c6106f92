"""The Python client of a qprobe server: httpx only, typed results, with and without asyncio.

Any OpenAI client works as well; this one shows scores, candidates and probes as objects.
"""

from qprobe_client.client import AsyncClient, Client
from qprobe_client.errors import (
    APIError,
    ArgumentError,
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestTooLargeError,
    ServiceUnavailableError,
    TransportError,
    TransportTimeoutError,
)
from qprobe_client.results import (
    Answer,
    Candidate,
    Completion,
    Probe,
    PromptResult,
    Rerank,
    TextDelta,
    ToolCall,
    Usage,
    Vote,
)
from qprobe_client.streams import AsyncChatStream, ChatStream

__all__ = [
    "APIError",
    "Answer",
    "ArgumentError",
    "AsyncChatStream",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Candidate",
    "ChatStream",
    "Client",
    "ClientError",
    "Completion",
    "ConflictError",
    "InternalServerError",
    "NotFoundError",
    "Probe",
    "PromptResult",
    "RateLimitError",
    "ReplyError",
    "RequestTooLargeError",
    "Rerank",
    "ServiceUnavailableError",
    "TextDelta",
    "ToolCall",
    "TransportError",
    "TransportTimeoutError",
    "Usage",
    "Vote",
]
