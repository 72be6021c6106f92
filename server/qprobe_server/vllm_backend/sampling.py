"""Samples completions, or reads given ones, with their embeddings, on vLLM's offline engine.

Relies on vLLM 0.32.0: ``LLM.collective_rpc`` (entrypoints/llm.py).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import Tensor
from vllm import LLM
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform

from qprobe.probe.values import Layer
from qprobe_server import quiet
from qprobe_server.choice.candidates import Candidate, count_scored_tokens
from qprobe_server.edge.lifetime import ending_at_once
from qprobe_server.errors import StartupError
from qprobe_server.vllm_backend.adapter import enable_adapter
from qprobe_server.vllm_backend.arguments import claim_worker
from qprobe_server.vllm_backend.batches import run_requests
from qprobe_server.vllm_backend.checks import check_installation, describe_model, find_worker_cls
from qprobe_server.vllm_backend.completion import Completion, list_logprobs
from qprobe_server.vllm_backend.cpu import prepare_cpu
from qprobe_server.vllm_backend.embedded_layers import choose_embedded_layers, choose_token_layers
from qprobe_server.vllm_backend.rendering import Rendering
from qprobe_server.vllm_backend.sampling_parameters import (
    SamplingParameters,
    for_reading,
    for_sample,
    record_parameters,
    settle_parameters,
)
from qprobe_server.vllm_backend.tokenizing import RowTokenizer

__all__ = ["SamplingEngine"]

Tokens = list[int]


class SamplingEngine:
    """vLLM's offline engine with our embedding worker.

    Args:
        args: vLLM's engine arguments, parsed.
        layers: Layers to embed; None takes some of them.
        windows: Numbers of tokens for the means of the first so many.
        adapter: Folder of a LoRA adapter to sample with.
        token_layers: Those of the layers that the states of single tokens are wanted of.

    Raises:
        StartupError: The model does not have such a layer, or vLLM does not expose it; or the
            adapter is none.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        layers: Sequence[Layer] | None,
        windows: Sequence[int],
        adapter: str | None,
        token_layers: Sequence[Layer] = (),
    ) -> None:
        check_installation()
        prepare_cpu(args)
        args.use_tqdm_on_load &= not quiet.is_quiet()
        if adapter is not None:
            enable_adapter(args, Path(adapter))
        claim_worker(args, find_worker_cls("EmbeddingWorker"), ())
        facts = describe_model(EngineArgs.from_cli_args(args).create_engine_config())
        if facts.logprobs_mode != "raw_logprobs":
            raise StartupError(
                "--logprobs-mode: a dataset holds the log-probabilities of the model itself, "
                f"'raw_logprobs', got {facts.logprobs_mode!r}"
            )
        self.layers = choose_embedded_layers(layers, facts)
        self.token_layers = choose_token_layers(token_layers, self.layers)
        self.windows = tuple(windows)
        self.facts = facts
        claim_worker(
            args,
            find_worker_cls("EmbeddingWorker"),
            [layer for layer in self.layers if layer != "final"],
        )
        sys.stderr.write(f"qprobe: loading {Path(args.model).name} ...\n")
        with ending_at_once():
            self._llm = LLM(**vars(EngineArgs.from_cli_args(args)))
        self.tokenizer = RowTokenizer(self._llm)
        self._lora = LoRARequest("adapter", 1, adapter) if adapter else None
        self._num_requests = 0

    def describe(self) -> dict[str, Any]:
        """Return what engine this is, for the record."""
        config = self._llm.llm_engine.vllm_config
        return {
            "device": current_platform.device_name,
            "vllm": vllm.__version__,
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            "pipeline_parallel_size": config.parallel_config.pipeline_parallel_size,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        }

    @property
    def dtype(self) -> str:
        """The model's dtype, such as ``bfloat16``."""
        return str(self._llm.model_config.dtype).removeprefix("torch.")

    @property
    def quantization(self) -> str | None:
        """The model's quantization, as vLLM names it."""
        return self._llm.model_config.quantization

    def sampling_params(self, given: Mapping[str, Any]) -> SamplingParameters:
        """Return the model's own parameters with some of them replaced.

        Raises:
            StartupError: A value is out of range.
        """
        return settle_parameters(self._llm, given)

    record = staticmethod(record_parameters)

    def sample(
        self,
        prompts: Sequence[Tokens],
        params: SamplingParameters,
        *,
        seeds: Sequence[int | None],
        on_step: Callable[[], object],
    ) -> Iterator[Completion]:
        """Sample one completion of every prompt, all in one go; yield each as it ends.

        Args:
            prompts: As ``tokenizer.prompt`` gives them.
            params: But for the seed.
            seeds: Of each; None asks for the greedy completion, which is not embedded.
            on_step: Called after each step of the engine: long before any completion ends.
        """
        keys = [None if seed is None else self._next_key() for seed in seeds]
        marked = [for_sample(params, seed, key) for seed, key in zip(seeds, keys, strict=True)]
        for request, output in self._run(prompts, marked, on_step):
            part = output.outputs[0]
            candidate = Candidate(
                text=part.text,
                token_ids=list(part.token_ids),
                finish_reason=part.finish_reason,
                stop_reason=part.stop_reason,
            )
            num_scored = count_scored_tokens(candidate, self.tokenizer.decode)
            key = keys[request]
            embeddings, tokens = (None, None) if key is None else self._take(key, num_scored)
            yield Completion(
                request=request,
                text=part.text,
                token_ids=list(part.token_ids),
                num_scored=num_scored,
                logprobs=list_logprobs(part.token_ids, part.logprobs or []),
                finish_reason=str(part.finish_reason),
                embeddings=embeddings,
                tokens=tokens,
            )

    def read(
        self, prompts: Sequence[Tokens], texts: Sequence[str], *, on_step: Callable[[], object]
    ) -> Iterator[Completion]:
        """Embed given completions of prompts by reading them; yield each as it is done.

        Every token of the text is read, so that all of them count, as those of a completion count
        that ended by itself. ``tokenizer.prompt`` has checked that they fit.
        """
        given = [self.tokenizer.completion(text) for text in texts]
        read = self._read(prompts, given, with_logprobs=True, on_step=on_step)
        for request, output, embeddings, tokens in read:
            token_ids = given[request]
            logprobs = (output.prompt_logprobs or [])[-len(token_ids) :] if token_ids else []
            yield Completion(
                request=request,
                text=texts[request],
                token_ids=token_ids,
                num_scored=len(token_ids),
                logprobs=list_logprobs(token_ids, logprobs),
                finish_reason="given",
                embeddings=embeddings,
                tokens=tokens,
            )

    def embed(
        self,
        prompts: Sequence[Tokens],
        completions: Sequence[Tokens],
        *,
        on_step: Callable[[], object],
    ) -> list[Tensor]:
        """Embed completions that another model wrote, by reading them.

        Args:
            prompts: Of each completion.
            completions: The tokens of each that count; with its prompt less than the context.
            on_step: As in ``sample``.

        Returns:
            Of each, as ``Completion.embeddings``.
        """
        read = self._read(prompts, completions, with_logprobs=False, on_step=on_step)
        found = {request: embeddings for request, _, embeddings, _ in read}
        return [found[request] for request in range(len(prompts))]

    @property
    def rendering(self) -> Rendering:
        """The model's template and tokenizer."""
        return Rendering(self._llm.renderer, None)

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its answer."""
        length: int = self._llm.model_config.max_model_len
        return length

    def _read(
        self,
        prompts: Sequence[Tokens],
        completions: Sequence[Tokens],
        *,
        with_logprobs: bool,
        on_step: Callable[[], object],
    ) -> Iterator[tuple[int, RequestOutput, Tensor, Tensor]]:
        """Read completions; yield of each its index, vLLM's output, ``embeddings``, ``tokens``."""
        keys = [self._next_key() for _ in prompts]
        marked = [
            for_reading(key, len(prompt), with_logprobs=with_logprobs)
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        whole = [before + after for before, after in zip(prompts, completions, strict=True)]
        for request, output in self._run(whole, marked, on_step):
            yield request, output, *self._take(keys[request], len(completions[request]))

    def _run(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[SamplingParameters],
        on_step: Callable[[], object],
    ) -> Iterator[tuple[int, RequestOutput]]:
        # The worker keeps the states of the final layer always.
        state_bytes = (
            (len(self.layers) + 1) * self.facts.hidden_size * self._llm.model_config.dtype.itemsize
        )
        return run_requests(
            self._llm,
            prompts,
            params,
            lora=self._lora,
            state_bytes=state_bytes,
            on_step=on_step,
        )

    def _next_key(self) -> str:
        self._num_requests += 1
        return str(self._num_requests)

    def _take(self, key: str, length: int) -> tuple[Tensor, Tensor]:
        """Return ``embeddings`` and ``tokens`` of a completion."""
        places = [self.layers.index(each) for each in self.token_layers]
        wanted = (key, length, list(self.windows), places)
        answers = self._llm.collective_rpc("qprobe_embed", args=wanted)
        (data,) = (answer for answer in answers if answer is not None)
        made = torch.frombuffer(bytearray(data), dtype=torch.float16)
        rows = made.view(-1, self.facts.hidden_size)
        num_tokens = max(length, 1)
        end = len(rows) - len(places) * num_tokens
        tokens = rows[end:].view(len(places), num_tokens, self.facts.hidden_size)
        every = rows[:end].view(-1, 2 + len(self.windows), self.facts.hidden_size)
        # The worker sends the embeddings of the final layer always.
        return every if "final" in self.layers else every[:-1], tokens
