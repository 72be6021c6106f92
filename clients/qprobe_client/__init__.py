"""The Python client of a qprobe server: httpx only, typed results.

Any OpenAI client works as well; this one shows scores and candidates as objects.
"""

from qprobe_client.client import Client
from qprobe_client.errors import APIError, ClientError, TransportError
from qprobe_client.results import Answer, Candidate, Completion, Probe, Rerank

__all__ = [
    "APIError",
    "Answer",
    "Candidate",
    "Client",
    "ClientError",
    "Completion",
    "Probe",
    "Rerank",
    "TransportError",
]
