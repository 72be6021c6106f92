"""A model on an engine here reads what an upstream wrote, and scores it as ``serve`` does.

Relies on vLLM 0.32.0: ``AsyncEngineArgs.create_engine_config`` (engine/arg_utils.py),
``AsyncLLM.renderer, model_config`` (v1/engine/async_llm.py), ``load_chat_template``
(renderers/chat_utils.py), ``GracefulHTTPError`` (exceptions.py) where its queue is full.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.exceptions import GracefulHTTPError
from vllm.renderers.chat_utils import load_chat_template
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from qprobe import Probe, ProbeFileError
from qprobe.probe.pooling import read_numbers
from qprobe_server import quiet
from qprobe_server.errors import ReadingError, RequestError, ScoringError, StartupError
from qprobe_server.library.fit import ModelFacts, check_exposed, check_fit, check_layers
from qprobe_server.library.flags import choose_layers
from qprobe_server.library.registry import LoadedProbe, ServedProbe
from qprobe_server.proxy.chat_text import check_text_only
from qprobe_server.proxy.reader import Prompt, Read, Reader, Written
from qprobe_server.vllm_backend.arguments import claim_worker
from qprobe_server.vllm_backend.checks import check_installation, describe_model, find_worker_cls
from qprobe_server.vllm_backend.client.reading import ReadingLLM, read_completions
from qprobe_server.vllm_backend.cpu import prepare_cpu
from qprobe_server.vllm_backend.lifetime import stop_engine
from qprobe_server.vllm_backend.rendering import RenderedAnswer, Rendering

__all__ = ["EngineReader", "open_engine_reader"]

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


async def open_engine_reader(args: argparse.Namespace, probes: Sequence[LoadedProbe]) -> Reader:
    """Start an engine that reads. Blocks the event loop until it is there.

    Args:
        args: vLLM's, parsed, with the reader as ``model``; ``probe_layers`` and
            ``allow_model_mismatch`` are ours, as ``serve`` has them; ``chat_template`` is a file or
            a template, or None.
        probes: Whose layers it exposes where ``probe_layers`` is None.

    Raises:
        StartupError: The flags, the model and the machine do not go together.
    """
    cli_env_setup()
    args.use_tqdm_on_load &= not quiet.is_quiet()
    check_installation()
    layers = choose_layers(args.probe_layers, probes)
    claim_worker(args, find_worker_cls("ScoringWorker"), layers)
    prepare_cpu(args)
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    facts = describe_model(config)
    check_layers(layers, facts)
    sys.stderr.write(f"qprobe: loading {Path(args.model).name} ...\n")
    try:
        engine = ReadingLLM.from_vllm_config(config, usage_context=UsageContext.ENGINE_CONTEXT)
    except RuntimeError as error:
        raise StartupError(f"the reader did not start, as it says above: {error}") from error
    template = load_chat_template(args.chat_template)
    return EngineReader(
        engine,
        facts,
        layers,
        Rendering(engine.renderer, template),
        allow_model_mismatch=args.allow_model_mismatch,
    )


class EngineReader:
    """Reads on an engine; see ``Reader``.

    Args:
        engine: Started; shut down by ``close``.
        facts: Of its model.
        layers: Inner ones that it exposes.
        rendering: Of its model.
        allow_model_mismatch: Whether probes of models of another name are taken.
    """

    gives_token_scores = True

    def __init__(
        self,
        engine: ReadingLLM,
        facts: ModelFacts,
        layers: Sequence[int],
        rendering: Rendering,
        *,
        allow_model_mismatch: bool,
    ) -> None:
        self._engine = engine
        self._facts = facts
        self._layers = layers
        self._rendering = rendering
        self._allow_model_mismatch = allow_model_mismatch
        self._most: int = engine.model_config.max_model_len - 1  # one is sampled
        # One: tokenizers are not for several at once.
        self._thread = ThreadPoolExecutor(1, "rendering")

    def check(self, probe: Probe) -> None:
        """Check that a probe fits the model, and reads layers that are exposed.

        Raises:
            ProbeFileError: It does not.
        """
        check_fit(probe, self._facts, allow_model_mismatch=self._allow_model_mismatch)
        check_exposed(probe, self._layers)
        if any(each.reads_logprobs for each in probe.sums):
            raise ProbeFileError(
                "terms",
                "read log-probabilities, which are of the model that samples and not of the "
                "reader's: train with --numbers none",
            )

    async def load(self, probes: Sequence[tuple[ServedProbe, Probe]]) -> None:
        """Give the workers probes by their indices."""
        await self._engine.load_probes(probes)

    async def check_health(self) -> None:
        """Check that the engine lives.

        Raises:
            ReadingError: It does not.
        """
        if self._engine.errored:
            raise ReadingError(f"the reader {self._facts.name!r} has died")

    async def check_prompt(self, prompt: Prompt) -> None:
        """Check that the template takes a prompt, and the context an answer to it.

        Raises:
            RequestError: 400, it does not, or the prompt is empty or not text alone.
        """
        check_text_only(prompt)
        param = "prompt" if prompt.messages is None else "messages"
        try:
            tokens = await self._render(self._rendering.prompt, prompt)
        except Exception as error:  # templates raise what they like
            # What it says may quote the chat.
            raise RequestError(
                f"{param}: cannot be read by {self._facts.name!r}: {type(error).__name__}",
                param=param,
            ) from error
        if not tokens:
            raise RequestError(f"{param}: must have at least one token", param=param)
        if len(tokens) > self._most:
            raise RequestError(
                f"{param}: must have at most {self._most} tokens for {self._facts.name!r}, which "
                f"reads the answers, got {len(tokens)}",
                param=param,
            )

    async def read(
        self,
        prompt: Prompt,
        completions: Sequence[Written],
        probes: Sequence[ServedProbe],
        *,
        with_tokens: bool,
    ) -> Sequence[Read | None]:
        """Score completions of a prompt.

        None for one that goes beyond the model's context, or that the tokenizer does not take.

        Raises:
            ReadingError: The engine gives no scores.
        """
        before = await self._render(self._rendering.prompt, prompt)
        found: list[Read | None] = [None] * len(completions)
        given = await self._render_answers(prompt, completions, self._most - len(before))
        if not given:
            return found
        tokens = [each.token_ids[: each.num_scored] for each in given.values()]
        # As a dataset has them that was collected with this reader.
        numbers = [
            read_numbers(
                logprob=0.0,
                length=len(answer.token_ids),
                cut=completions[place].finish_reason == "length",
            )
            for place, answer in given.items()
        ]
        sums = [each.score for each in probes]
        if len(probes) == 1 and probes[0].confidence is not None and probes[0].confidence.own:
            sums.append(probes[0].confidence.own)
        try:
            taken = await read_completions(
                self._engine, before, tokens, sums=sums, numbers=numbers, with_tokens=with_tokens
            )
        except (ScoringError, EngineDeadError, EngineGenerateError, GracefulHTTPError) as error:
            raise ReadingError(f"the reader {self._facts.name!r}: {error}") from error
        texts = await self._render(self._decode, tokens) if with_tokens else {}
        for place, ids, (scores, by_probe, _) in zip(given, tokens, taken, strict=True):
            shown: dict[str, Any] = {}
            if with_tokens:
                shown["tokens"] = [texts[each] for each in ids]
                shown["token_scores"] = list(zip(*by_probe[: len(probes)], strict=True))
            own = scores[len(probes)] if len(scores) > len(probes) else None
            found[place] = Read(scores=scores[: len(probes)], own_score=own, **shown)
        return found

    async def _render_answers(
        self, prompt: Prompt, completions: Sequence[Written], most: int
    ) -> dict[int, RenderedAnswer]:
        """Return by their places those that can be read, with at most so many scored tokens."""
        given = {}
        for place, each in enumerate(completions):
            try:
                answer = await self._render(self._rendering.answer, prompt, each)
            except Exception as error:  # noqa: BLE001 a model may write what no tokenizer takes
                # Without its text, which may quote the answer.
                name = type(error).__name__
                _logger.warning("%s: an answer cannot be rendered: %s", self._facts.name, name)
                continue
            if answer.num_scored <= most:
                given[place] = answer
        return given

    def _decode(self, tokens: Sequence[Sequence[int]]) -> dict[int, str]:
        """Return the texts of the tokens, each decoded alone, and once."""
        return {each: self._rendering.decode(each) for each in {*chain.from_iterable(tokens)}}

    async def close(self) -> None:
        """Stop the engine."""
        await stop_engine(self._engine.shutdown, let_end_s=0)
        self._engine.inbox.close()
        self._thread.shutdown(wait=False)

    async def _render(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
