"""What both clients offer, written once: they differ in how they do I/O and in nothing else.

The type variables stand for what a call gives: itself from ``Client``, a coroutine that gives it
from ``AsyncClient``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from qprobe_client._calls import (
    Call,
    Message,
    Schedule,
    Vote,
    chat_call,
    probe_call,
    rerank_object,
    text_call,
)
from qprobe_client._replies import (
    parse_chat,
    parse_deleted,
    parse_models,
    parse_probe,
    parse_probes,
    parse_texts,
)

__all__ = ["Surface"]

GivesCompletion = TypeVar("GivesCompletion")
GivesStream = TypeVar("GivesStream")
GivesProbe = TypeVar("GivesProbe")
GivesProbes = TypeVar("GivesProbes")
GivesNames = TypeVar("GivesNames")
GivesNothing = TypeVar("GivesNothing")


class Surface(
    ABC,
    Generic[GivesCompletion, GivesStream, GivesProbe, GivesProbes, GivesNames, GivesNothing],
):
    """The calls of a client.

    Every call raises, when it is made or awaited:
        ArgumentError: It cannot be sent; nothing was.
        APIError: The server refused or failed it.
        TransportError: The server could not be reached, was silent too long, or broke off.
        ReplyError: The reply is not a qprobe server's.
    """

    @abstractmethod
    def _send(self, call: Call, parse: Callable[[Any], Any]) -> Any:
        """Give what ``parse`` makes of the reply's JSON."""

    @abstractmethod
    def _stream(self, call: Call) -> GivesStream:
        """Give a context in which the reply is read as it comes."""

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: str,
        probe: str | Mapping[str, float] | None = None,
        k: int | None = None,
        beta: float | None = None,
        target_kl: float | None = None,
        schedule: Schedule | None = None,
        vote: Vote | None = None,
        return_candidates: bool = False,
        return_token_scores: bool = False,
        **parameters: Any,
    ) -> GivesCompletion:
        """Ask for answers to a chat.

        Args:
            messages: OpenAI's messages, or the text of one message of the user's.
            model: A model, or an alias ``model:probe``.
            probe: The probe to rerank by, or a mix: the weight of each; None leaves it to the alias
                or the server's default.
            k: Candidates; None takes the server's or the probe's.
            beta: Temperature of the choice, >= 0, in units of score; None likewise.
            target_kl: Instead of beta: solve it so that the choice spends this KL, >= 0, in nats.
            schedule: When candidates that fall behind are dropped: (tokens, keep) of each
                checkpoint, ``default`` as the probe recommends, or ``off``.
            vote: How candidates with equal answers support each other: ``numeric``, ``json`` or
                ``text``, or an object such as ``{"by": "code", "inputs": ["f(3)"]}``.
            return_candidates: Show every candidate.
            return_token_scores: Show every candidate and the score of each of its tokens.
            parameters: Any other field of a chat completion: ``max_tokens``, ``seed``, ``n`` ...
        """
        asked = rerank_object(
            probe=probe,
            k=k,
            beta=beta,
            target_kl=target_kl,
            schedule=schedule,
            vote=vote,
            return_candidates=return_candidates,
            return_token_scores=return_token_scores,
        )
        call = chat_call(messages, asked=asked, parameters={"model": model, **parameters})
        given: GivesCompletion = self._send(call, parse_chat)
        return given

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: str,
        probe: str | Mapping[str, float] | None = None,
        k: int | None = None,
        beta: float | None = None,
        target_kl: float | None = None,
        schedule: Schedule | None = None,
        vote: Vote | None = None,
        return_candidates: bool = False,
        return_token_scores: bool = False,
        **parameters: Any,
    ) -> GivesStream:
        """Ask for a chat as ``chat`` does, and read the answers as they come.

        Gives a context manager: the request is made when it is entered, and leaving it closes the
        connection, so that the server stops sampling. Within it, iterate over the pieces of text,
        and call ``get_final_completion`` for the rest.

        The server must rerank: it refuses a stream for which neither the request nor a default
        names a probe. With k = 1 the answer is the base model's own.
        """
        asked = rerank_object(
            probe=probe,
            k=k,
            beta=beta,
            target_kl=target_kl,
            schedule=schedule,
            vote=vote,
            return_candidates=return_candidates,
            return_token_scores=return_token_scores,
        )
        parameters = {"model": model, **parameters}
        return self._stream(chat_call(messages, asked=asked, parameters=parameters, stream=True))

    def complete(
        self,
        prompt: str | Sequence[str],
        *,
        model: str,
        probe: str | Mapping[str, float] | None = None,
        k: int | None = None,
        beta: float | None = None,
        target_kl: float | None = None,
        schedule: Schedule | None = None,
        vote: Vote | None = None,
        return_candidates: bool = False,
        return_token_scores: bool = False,
        **parameters: Any,
    ) -> GivesCompletion:
        """Ask for continuations of one text or several; each is reranked alone.

        Args:
            prompt: What to continue.
            model: As in ``chat``, and so are the others.
            probe: As in ``chat``.
            k: As in ``chat``.
            beta: As in ``chat``.
            target_kl: As in ``chat``.
            schedule: As in ``chat``.
            vote: As in ``chat``.
            return_candidates: As in ``chat``.
            return_token_scores: As in ``chat``.
            parameters: Any other field of a completion: ``max_tokens``, ``n``, ``echo`` ...
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        asked = rerank_object(
            probe=probe,
            k=k,
            beta=beta,
            target_kl=target_kl,
            schedule=schedule,
            vote=vote,
            return_candidates=return_candidates,
            return_token_scores=return_token_scores,
        )
        call = text_call(prompts, asked=asked, parameters={"model": model, **parameters})
        given: GivesCompletion = self._send(call, partial(parse_texts, num_prompts=len(prompts)))
        return given

    def models(self) -> GivesNames:
        """List the names of the models, and an alias for every probe."""
        given: GivesNames = self._send(Call("GET", "/v1/models"), parse_models)
        return given

    def probes(self) -> GivesProbes:
        """List the loaded probes."""
        given: GivesProbes = self._send(Call("GET", "/v1/probes"), parse_probes)
        return given

    def probe(self, name: str) -> GivesProbe:
        """Look up a probe; NotFoundError if there is none of that name."""
        given: GivesProbe = self._send(probe_call("GET", name), parse_probe)
        return given

    def upload_probe(self, name: str, file: Path | str | bytes) -> GivesProbe:
        """Create a probe or replace it; needs a client made with the admin key as ``api_key``.

        Args:
            name: 1 to 64 letters, digits, ``.``, ``_`` and ``-``.
            file: A probe file, or its path; at most 4 MiB.

        Raises:
            OSError: The file cannot be read.
        """
        given: GivesProbe = self._send(probe_call("PUT", name, file=file), parse_probe)
        return given

    def delete_probe(self, name: str) -> GivesNothing:
        """Remove a probe; needs a client made with the admin key as ``api_key``.

        If a connection breaks off the call is made again, and then NotFoundError may mean that the
        first time had done it.
        """
        given: GivesNothing = self._send(probe_call("DELETE", name), parse_deleted)
        return given
