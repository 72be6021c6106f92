"""What reads answers that nothing here has sampled: a model on an engine here, or an endpoint."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from qprobe.data.prompts import PromptRow
from qprobe.data.source import Source
from qprobe.errors import PromptFileError, RowError
from qprobe.probe.reading import EMBEDDING
from qprobe_server.commands.answer_shards import Embedded
from qprobe_server.commands.collection import readings_of
from qprobe_server.errors import ReadingError, StartupError
from qprobe_server.proxy.embeddings import embed_answers, normalize
from qprobe_server.proxy.embeddings_endpoint import EmbeddingsEndpoint
from qprobe_server.proxy.reader import Prompt, Written

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.sampling import SamplingEngine

__all__ = ["EndpointEmbedder", "EngineEmbedder", "Run"]

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

    def embed(self, answers: Sequence[tuple[int, Written]]) -> list[Embedded]:
        """Embed answers, all in one go; see ``Embedder``.

        Raises:
            StartupError: One is too long for the model.
        """
        rendered = []
        for place, written in answers:
            answer = self._rendering.answer(_prompt(self._rows[place]), written)
            rendered.append(answer)
            length = len(self._prompts[place]) + answer.num_scored
            if length >= self._engine.context:
                raise StartupError(
                    f"--reader: an answer to the prompt of line {self._rows[place].line} has "
                    f"{length} tokens with it, and must have fewer than {self._engine.context}: "
                    "lower --max-tokens"
                )
        embeddings = self._engine.embed(
            [self._prompts[place] for place, _ in answers],
            [each.token_ids[: each.num_scored] for each in rendered],
            on_step=lambda: None,
        )
        return [
            Embedded(states.flatten(0, 1), each.token_ids, each.num_scored)
            for each, states in zip(rendered, embeddings, strict=True)
        ]


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
    ) -> list[Embedded]:
        """Embed answers, those of a prompt in one call; see ``Embedder``.

        Args:
            answers: In the order of their prompts.
            progress: Called on the event loop with the number of answers that have been read.

        Raises:
            ReadingError: The endpoint gives no embeddings, or does not take an answer.
        """
        return self._run(self._embed(answers, progress))

    async def _embed(
        self,
        answers: Sequence[tuple[int, Written]],
        progress: Callable[[int], object] | None,
    ) -> list[Embedded]:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def embed_prompt(place: int) -> list[Embedded]:
            prompt = _prompt(self._rows[place])
            of_it = [(prompt, written) for other, written in answers if other == place]
            async with turns:
                vectors = await embed_answers(self._endpoint, self._template, of_it)
            made = []
            for vector in vectors:
                if vector is None:
                    raise ReadingError(
                        f"the embeddings endpoint does not take an answer to the prompt of line "
                        f"{self._rows[place].line}: it may be too long"
                    )
                half = torch.from_numpy(normalize(vector)).to(torch.float16)
                made.append(Embedded(half[None]))  # (1, hidden)
            if progress is not None:
                progress(len(made))
            return made

        places = dict.fromkeys(place for place, _ in answers)
        found = await asyncio.gather(*(embed_prompt(place) for place in places))
        return [each for of_prompt in found for each in of_prompt]


def _prompt(row: PromptRow) -> Prompt:
    return Prompt(text=row.prompt) if isinstance(row.prompt, str) else Prompt(messages=row.prompt)
