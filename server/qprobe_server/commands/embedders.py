"""What reads answers that nothing here has sampled: a model on an engine here, or an endpoint."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.data.prompts import PromptRow
from qprobe.data.source import Source
from qprobe.errors import PromptFileError, RowError
from qprobe.probe.reading import EMBEDDING
from qprobe_server.commands.answer_shards import Embedded
from qprobe_server.commands.collection import readings_of
from qprobe_server.errors import ReadingError
from qprobe_server.proxy.embeddings import embed_answers, normalize
from qprobe_server.proxy.embeddings_endpoint import EmbeddingsEndpoint, NoneTakenError
from qprobe_server.proxy.reader import Prompt, Written

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.rendering import RenderedAnswer
    from qprobe_server.vllm_backend.sampling import SamplingEngine

__all__ = ["EndpointEmbedder", "EngineEmbedder", "Run"]

Floats = NDArray[np.float32]

_AT_ONCE = 16  # calls of the endpoint
_T = TypeVar("_T")


class Run(Protocol):
    """Runs something on the event loop of an endpoint, and returns what it returns."""

    def __call__(self, coroutine: Coroutine[Any, Any, _T], /) -> _T:
        """Wait for it."""


class EngineEmbedder:
    """Reads on an engine.

    Args:
        engine: Idle.
        rows: All prompts.
        source: Where they are from, for errors.

    Raises:
        PromptFileError: A prompt cannot be read by the engine's model.
    """

    def __init__(self, engine: "SamplingEngine", rows: Sequence[PromptRow], source: Source) -> None:
        self._engine = engine
        self._rendering = engine.rendering
        self._rows = rows
        self._prompts = []
        for row in rows:
            try:
                self._prompts.append(engine.tokenizer.prompt(row.prompt))
            except RowError as error:
                raise PromptFileError(source, row.line, error.field, error.message) from error
        self.readings = [str(each) for each in readings_of(engine)]
        self.hidden_size = engine.facts.hidden_size

    def embed(self, answers: Sequence[tuple[int, Written]]) -> list[Embedded | ReadingError]:
        """Embed answers, all in one go; see ``Embedder``."""
        rendered = [self._render(place, written) for place, written in answers]
        fitting = [
            (self._prompts[place], each)
            for (place, _), each in zip(answers, rendered, strict=True)
            if not isinstance(each, ReadingError)
        ]
        embeddings: Iterator[Tensor] = iter(())
        if fitting:  # the engine wants at least one
            states = self._engine.embed(
                [prompt for prompt, _ in fitting],
                [each.token_ids[: each.num_scored] for _, each in fitting],
                on_step=lambda: None,
            )
            embeddings = iter(states)
        return [
            each
            if isinstance(each, ReadingError)
            else Embedded(next(embeddings).flatten(0, 1), each.token_ids, each.num_scored)
            for each in rendered
        ]

    def _render(self, place: int, written: Written) -> "RenderedAnswer | ReadingError":
        """Return an answer's tokens; the error if they are too many for the model."""
        answer = self._rendering.answer(_prompt(self._rows[place]), written)
        length, context = len(self._prompts[place]) + answer.num_scored, self._engine.context
        if length < context:
            return answer
        return ReadingError(
            f"--reader: an answer to the prompt of line {self._rows[place].line} has {length} "
            f"tokens with it, and must have fewer than {context}: lower --max-tokens"
        )


class EndpointEmbedder:
    """Reads by an embeddings endpoint; the vectors are brought to length 1.

    Args:
        endpoint: Open.
        run: Of its event loop.
        rows: All prompts.
        template: What is embedded.
        hidden_size: Dimensions of the endpoint's vectors.
    """

    def __init__(
        self,
        endpoint: EmbeddingsEndpoint,
        run: Run,
        rows: Sequence[PromptRow],
        *,
        template: str,
        hidden_size: int,
    ) -> None:
        self._endpoint = endpoint
        self._run = run
        self._rows = rows
        self._template = template
        self.readings = [str(EMBEDDING)]
        self.hidden_size = hidden_size

    def embed(
        self,
        answers: Sequence[tuple[int, Written]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[Embedded | ReadingError]:
        """Embed answers, those of a prompt in one call; see ``Embedder``.

        Args:
            answers: In the order of their prompts.
            progress: Called on the event loop with the number of answers that have been read.

        Raises:
            ReadingError: The endpoint gives no embeddings.
        """
        return self._run(self._embed(answers, progress))

    async def _embed(
        self,
        answers: Sequence[tuple[int, Written]],
        progress: Callable[[int], object] | None,
    ) -> list[Embedded | ReadingError]:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def embed_prompt(
            place: int, written: Sequence[Written]
        ) -> list[Embedded | ReadingError]:
            async with turns:
                made = await self._embed_prompt(place, written)
            if progress is not None:
                progress(len(made))
            return made

        by_prompt = [
            (place, [written for _, written in group])
            for place, group in groupby(answers, key=itemgetter(0))
        ]
        found = await asyncio.gather(*(embed_prompt(*each) for each in by_prompt))
        return [each for of_prompt in found for each in of_prompt]

    async def _embed_prompt(
        self, place: int, written: Sequence[Written]
    ) -> list[Embedded | ReadingError]:
        prompt = _prompt(self._rows[place])
        vectors: Sequence[Floats | None]
        try:
            vectors = await embed_answers(
                self._endpoint, self._template, [(prompt, each) for each in written]
            )
        except NoneTakenError:
            await self._endpoint.probe()  # where it takes no other text either, this says so
            vectors = [None] * len(written)
        refusal = ReadingError(
            "--embeddings: the embeddings endpoint does not take an answer to the prompt of line "
            f"{self._rows[place].line}: it may be too long"
        )
        return [refusal if each is None else _to_embedded(each) for each in vectors]


def _to_embedded(vector: Floats) -> Embedded:
    half = torch.from_numpy(normalize(vector)).to(torch.float16)
    return Embedded(half[None])  # (1, hidden)


def _prompt(row: PromptRow) -> Prompt:
    return Prompt(text=row.prompt) if isinstance(row.prompt, str) else Prompt(messages=row.prompt)
