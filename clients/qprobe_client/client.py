"""The client: one request, one reply."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from qprobe_client.errors import APIError, ClientError, TransportError
from qprobe_client.results import Completion, Probe, parse_completion, parse_probes

__all__ = ["Client"]

Message = dict[str, Any]

_DEFAULT_TIMEOUT_S = 600.0


class Client:
    """Talks to a qprobe server.

    Args:
        base_url: Where it listens, without ``/v1``.
        api_key: The server's key, if it wants one.
        timeout_s: How long the server may be silent, in seconds. It is, while it samples.
        transport: Stands in for the network, in tests.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=timeout_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: str,
        probe: str | None = None,
        k: int | None = None,
        beta: float | None = None,
        return_candidates: bool = False,
        **parameters: Any,
    ) -> Completion:
        """Ask for answers to a chat.

        Args:
            messages: OpenAI's messages, or the text of one message of the user's.
            model: A model, or an alias ``model:probe``.
            probe: The probe to rerank by; None leaves it to the alias or the server's default.
            k: Candidates; None takes the server's or the probe's.
            beta: Temperature of the choice, likewise.
            return_candidates: Show every candidate.
            parameters: Any other field of a chat completion: ``max_tokens``, ``seed``, ``n`` ...

        Raises:
            APIError: The server refused or failed the request.
            TransportError: The server could not be reached or broke off.
        """
        asked = {"probe": probe, "k": k, "beta": beta}
        if return_candidates:
            asked["return_candidates"] = True
        body = _chat_body(messages, asked, {"model": model, **parameters})
        return parse_completion(self._request("POST", "/v1/chat/completions", body))

    def probes(self) -> list[Probe]:
        """List the loaded probes; raises as ``chat`` does."""
        return parse_probes(self._request("GET", "/v1/probes", None))

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            return _read(self._http.request(method, path, json=body))
        except httpx.HTTPError as error:
            raise TransportError(f"{method} {path}: {error!r}") from error


def _chat_body(
    messages: str | Sequence[Message], asked: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body: dict[str, Any] = {"messages": list(messages), **parameters}
    fields = {name: value for name, value in asked.items() if value is not None}
    return {**body, "q_probe": fields} if fields else body


def _read(reply: httpx.Response) -> Any:
    try:
        content = reply.json()
    except ValueError as error:
        if reply.is_success:
            raise ClientError(f"the server's reply is not JSON: {reply.text[:200]!r}") from error
        content = None
    if reply.is_success:
        return content
    said = content.get("error") if isinstance(content, dict) else None
    if not isinstance(said, dict):
        said = {"message": said or reply.reason_phrase}
    raise APIError(
        f"{reply.status_code}: {said.get('message')}",
        status=reply.status_code,
        param=said.get("param"),
    )
