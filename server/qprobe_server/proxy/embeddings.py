"""An embeddings endpoint reads what an upstream wrote: one batched call a prompt. No torch here."""

import asyncio
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from qprobe import Probe, ProbeFileError, Terms
from qprobe_server.errors import ReadingError, RequestError, StartupError
from qprobe_server.library.registry import ServedProbe
from qprobe_server.proxy.address import read_address
from qprobe_server.proxy.chat_text import check_text_only, fill, write_answer, write_prompt
from qprobe_server.proxy.embeddings_endpoint import EmbeddingsEndpoint, shorten
from qprobe_server.proxy.reader import Prompt, Read, Reader, Written
from qprobe_server.proxy.upstream import explain

__all__ = ["EmbeddingsReader", "embed_answers", "normalize", "open_embeddings_reader"]

Floats = NDArray[np.float32]


async def open_embeddings_reader(
    url: str, *, model: str, api_key: str | None, key_header: str | None = None
) -> Reader:
    """Ask an endpoint for one embedding, to see what it gives.

    Args:
        url: Of its API, as ``--embeddings`` has it.
        model: As it calls it.
        api_key: Its, or None.
        key_header: Where that is put; None: a bearer token.

    Raises:
        StartupError: The URL is none, or the endpoint gives no embedding.
    """
    address = read_address("--embeddings", url)
    endpoint = EmbeddingsEndpoint(address, model=model, api_key=api_key, key_header=key_header)
    try:
        return EmbeddingsReader(endpoint, await endpoint.probe())
    except ReadingError as error:
        await endpoint.close()
        raise StartupError(explain(error)) from error


class EmbeddingsReader:
    """Scores embeddings; see ``Reader``.

    Args:
        endpoint: Closed by ``close``.
        dimensions: Of its embeddings.
    """

    gives_token_scores = False

    def __init__(self, endpoint: EmbeddingsEndpoint, dimensions: int) -> None:
        self._endpoint = endpoint
        self._dimensions = dimensions
        # As long as requests hold them.
        self._probes: WeakKeyDictionary[ServedProbe, Probe] = WeakKeyDictionary()

    def check(self, probe: Probe) -> None:
        """Check that a probe reads embeddings of this endpoint's.

        Raises:
            ProbeFileError: It does not.
        """
        info, model = probe.info, self._endpoint.model
        if info.endpoint is None:
            raise ProbeFileError(
                "endpoint",
                f"is none: the probe reads states of {info.base_model!r}, and an embeddings "
                "endpoint gives none; --reader does",
            )
        if shorten(info.base_model) != shorten(model):
            raise ProbeFileError(
                "base_model", f"is {info.base_model!r}, the endpoint's is {model!r}"
            )
        if info.hidden_size != self._dimensions:
            raise ProbeFileError(
                "hidden_size",
                f"is {info.hidden_size}, the embeddings of {model!r} have {self._dimensions} "
                "dimensions",
            )
        for terms in probe.sums:
            if terms.numbers:
                raise ProbeFileError(
                    "terms", f"read {', '.join(terms.numbers)}, which no endpoint tells"
                )

    async def load(self, probes: Sequence[tuple[ServedProbe, Probe]]) -> None:
        """Keep probes."""
        self._probes.update(probes)

    async def check_health(self) -> None:
        """Say that all is well: to ask the endpoint may cost, and a request will tell."""

    async def check_prompt(self, prompt: Prompt) -> None:
        """Check that a prompt is text. How long it may be only the endpoint knows.

        Raises:
            RequestError: 400, it is not.
        """
        check_text_only(prompt)
        try:
            write_prompt(prompt)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            param = "prompt" if prompt.messages is None else "messages"
            # Without its text, which may quote the chat.
            raise RequestError(
                f"{param}: cannot be written as text: {type(error).__name__}", param=param
            ) from error

    async def read(
        self,
        prompt: Prompt,
        completions: Sequence[Written],
        probes: Sequence[ServedProbe],
        *,
        with_tokens: bool,
    ) -> Sequence[Read | None]:
        """Score completions of a prompt; None for one that the endpoint does not take.

        Raises:
            ReadingError: The endpoint gives no embeddings.
        """
        loaded = [self._probes[each] for each in probes]
        how = [each.info.endpoint for each in loaded]
        # Mostly one. Probes of a mix may have been trained with several.
        templates = list(dict.fromkeys(each.template for each in how if each is not None))
        vectors = await asyncio.gather(
            *(
                embed_answers(self._endpoint, each, [(prompt, written) for written in completions])
                for each in templates
            )
        )
        by_template = dict(zip(templates, vectors, strict=True))
        return [
            _read(loaded, {name: each[place] for name, each in by_template.items()})
            for place in range(len(completions))
        ]

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


async def embed_answers(
    endpoint: EmbeddingsEndpoint, template: str, answers: Sequence[tuple[Prompt, Written]]
) -> list[Floats | None]:
    """Return the embeddings of prompts with an answer each, as ``EmbeddingsEndpoint.embed``.

    Args:
        endpoint: Whom to ask, in one call.
        template: What is embedded, as in ``ProbeInfo.endpoint``.
        answers: At least one.
    """
    return await endpoint.embed(
        [
            fill(template, prompt=write_prompt(prompt), completion=write_answer(written))
            for prompt, written in answers
        ]
    )


def normalize(vector: Floats) -> Floats:
    """Return a vector brought to length 1; one of zeros stays as it is."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0 else np.asarray(vector / length, np.float32)


def _read(probes: Sequence[Probe], vectors: Mapping[str, Floats | None]) -> Read | None:
    """Return the scores of a completion by its vectors, which are by template; None without one."""
    scores: list[float] = []
    own_score = None
    for probe in probes:
        how = probe.info.endpoint
        assert how is not None  # as ``check`` has seen
        vector = vectors[how.template]
        if vector is None:
            return None
        vector = normalize(vector) if how.normalize else vector
        scores.append(_score(probe.terms, vector))
        if len(probes) == 1 and probe.confidence is not None and probe.confidence.terms is not None:
            own_score = _score(probe.confidence.terms, vector)
    return Read(scores=scores, own_score=own_score)


def _score(terms: Terms, vector: Floats) -> float:
    wide = vector.astype(np.float64)
    return terms.bias + sum(
        float(wide @ np.asarray(each.weight, np.float64)) for each in terms.states
    )
