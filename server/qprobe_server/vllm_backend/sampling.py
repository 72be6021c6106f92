"""Samples completions, or reads given ones, with their embeddings, on vLLM's offline engine.

Relies on vLLM 0.32.0: ``LLM.enqueue, get_default_sampling_params, collective_rpc``
(entrypoints/llm.py), ``OfflineInferenceMixin._preprocess_chat_one, _preprocess_cmpl_one``
(entrypoints/common/offline.py), ``LLMEngine.step, has_unfinished_requests``
(v1/engine/llm_engine.py), and ``VLLM_ENABLE_V1_MULTIPROCESSING=0``: the scheduler then runs in this
process, so that the same requests are put into the same batches every time.
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
import vllm
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform

from qprobe.errors import RowError
from qprobe.probe.values import Layer
from qprobe_server import quiet
from qprobe_server.choice.candidates import Candidate, count_scored_tokens
from qprobe_server.edge.lifetime import ending_at_once
from qprobe_server.errors import StartupError
from qprobe_server.vllm_backend.arguments import claim_worker
from qprobe_server.vllm_backend.checks import check_installation, describe_model, find_worker_cls
from qprobe_server.vllm_backend.cpu import prepare_cpu
from qprobe_server.vllm_backend.rendering import Rendering
from qprobe_server.vllm_backend.worker.hooks import EXTRA_ARG

__all__ = ["Completion", "SamplingEngine", "SamplingParameters", "default_layers"]

Tokens = list[int]
# vLLM's, which the rest of the server passes on without looking into it.
SamplingParameters: TypeAlias = SamplingParams

# Where neither the caller nor the model's generation_config.json limits a completion: vLLM's own
# default is 16 tokens.
_MAX_TOKENS = 256
# What of SamplingParams a model's generation_config.json or a flag may set, and a manifest records.
_RECORDED = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
# Host memory for the states of running completions. A number, and not a share of what is free now:
# it decides which requests meet in a batch, and so the samples.
_MAX_STATE_BYTES = 8 << 30


@dataclass(frozen=True)
class Completion:
    """A completion as the engine gives it; ``request`` is the index of what was asked.

    Attributes:
        logprobs: Of each of ``token_ids``, in nats, under the model itself.
        embeddings: Shape (layers, 2 + windows, hidden), float16: for each layer the last token's
            state, the mean, and the means of the windows. None if it was not asked for.
        tokens: Shape (token layers, tokens, hidden), float16: the states of the tokens that make
            the embeddings. Likewise None.
    """

    request: int
    text: str
    token_ids: list[int]
    num_scored: int
    logprobs: list[float]
    finish_reason: str
    embeddings: Tensor | None
    tokens: Tensor | None


class SamplingEngine:
    """vLLM's offline engine with our embedding worker.

    Args:
        args: vLLM's engine arguments, parsed.
        layers: Layers to embed; None takes those at a third, a half, two thirds and five sixths of
            the depth, and the final one.
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
            _enable_lora(args, Path(adapter))
        claim_worker(args, find_worker_cls("EmbeddingWorker"), ())
        facts = describe_model(EngineArgs.from_cli_args(args).create_engine_config())
        if facts.logprobs_mode != "raw_logprobs":
            raise StartupError(
                "--logprobs-mode: a dataset holds the log-probabilities of the model itself, "
                f"'raw_logprobs', got {facts.logprobs_mode!r}"
            )
        if layers is None:
            layers = default_layers(facts.num_layers) if facts.has_inner_layers else ("final",)
        for layer in layers:
            if layer != "final" and not (facts.has_inner_layers and 1 <= layer < facts.num_layers):
                inner = f"1 to {facts.num_layers - 1} or " if facts.has_inner_layers else ""
                raise StartupError(
                    f"--layers: must be {inner}'final' for {facts.architecture}, got {layer!r}"
                )
        self.layers = tuple(sorted(set(layers), key=lambda each: (each == "final", each)))
        self.token_layers = tuple(each for each in self.layers if each in token_layers)
        for layer in token_layers:
            if layer not in self.layers:
                among = ", ".join(map(str, self.layers))
                raise StartupError(
                    f"--token-states: must be among the layers of --layers ({among}), got {layer!r}"
                )
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

    def sampling_params(self, given: Mapping[str, Any]) -> SamplingParams:
        """Return the model's default sampling parameters with some of them replaced.

        Raises:
            StartupError: A value is out of range.
        """
        defaults = self._llm.get_default_sampling_params()
        try:
            fields = {name: getattr(defaults, name) for name in _RECORDED} | dict(given)
            if "max_tokens" not in {*(self._llm.default_sampling_params or {}), *given}:
                fields["max_tokens"] = _MAX_TOKENS
            return SamplingParams(**fields, logprobs=0)
        except ValueError as error:
            raise StartupError(f"sampling parameters: {error}") from error

    @staticmethod
    def record(params: SamplingParams) -> dict[str, Any]:
        """Return the sampling parameters in JSON types."""
        return {name: getattr(params, name) for name in _RECORDED}

    def tokenize(self, prompt: str | list[dict[str, Any]], texts: Sequence[str] = ()) -> Tokens:
        """Return a prompt's tokens: raw text, or chat messages by the model's template.

        Args:
            prompt: Of a row.
            texts: Completions of it that are to be read.

        Raises:
            RowError: The template refuses the chat; or the prompt, or it and a completion, do not
                fit into the model's context.
        """
        is_text = isinstance(prompt, str)
        field = "prompt" if is_text else "messages"
        render = self._llm._preprocess_cmpl_one if is_text else self._llm._preprocess_chat_one
        try:
            tokens: Tokens = list(render(prompt)["prompt_token_ids"])
        except Exception as error:  # templates raise what they like
            raise RowError(field, f"cannot be read by the model: {error}") from error
        limit = self._llm.model_config.max_model_len
        if len(tokens) >= limit:
            raise RowError(
                field, f"must have fewer tokens than --max-model-len {limit}, got {len(tokens)}"
            )
        for index, text in enumerate(texts):
            length = len(self._tokenize_completion(text))
            if len(tokens) + length >= limit:
                raise RowError(
                    f"completions[{index}]",
                    f"and its prompt must have fewer tokens than --max-model-len {limit}, got "
                    f"{length} + {len(tokens)}",
                )
        return tokens

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
            prompts: As ``tokenize`` gives them.
            params: But for the seed.
            seeds: Of each; None asks for the greedy completion, which is not embedded.
            on_step: Called after each step of the engine: long before any completion ends.
        """
        keys = [None if seed is None else self._next_key() for seed in seeds]
        marked = [_mark(params, seed, key) for seed, key in zip(seeds, keys, strict=True)]
        for request, output in self._run(prompts, marked, on_step):
            part = output.outputs[0]
            candidate = Candidate(
                text=part.text,
                token_ids=list(part.token_ids),
                finish_reason=part.finish_reason,
                stop_reason=part.stop_reason,
            )
            num_scored = count_scored_tokens(candidate, self._decode)
            embeddings, tokens = self._take(keys[request], num_scored)
            yield Completion(
                request=request,
                text=part.text,
                token_ids=list(part.token_ids),
                num_scored=num_scored,
                logprobs=_list_logprobs(part.token_ids, part.logprobs or []),
                finish_reason=str(part.finish_reason),
                embeddings=embeddings,
                tokens=tokens,
            )

    def read(
        self, prompts: Sequence[Tokens], texts: Sequence[str], *, on_step: Callable[[], object]
    ) -> Iterator[Completion]:
        """Embed given completions of prompts by reading them; yield each as it is done.

        Every token of the text is read, so that all of them count, as those of a completion count
        that ended by itself. ``tokenize`` has checked that they fit.
        """
        keys = [self._next_key() for _ in prompts]
        given = [self._tokenize_completion(text) for text in texts]
        marked = []
        for prompt, key in zip(prompts, keys, strict=True):
            # Prompt log-probabilities also keep vLLM from skipping what its prefix cache holds.
            params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
            params.extra_args = {EXTRA_ARG: [key, len(prompt) - 1]}
            marked.append(params)
        whole = [before + after for before, after in zip(prompts, given, strict=True)]
        for request, output in self._run(whole, marked, on_step):
            token_ids = given[request]
            logprobs = (output.prompt_logprobs or [])[-len(token_ids) :] if token_ids else []
            embeddings, tokens = self._take(keys[request], len(token_ids))
            yield Completion(
                request=request,
                text=texts[request],
                token_ids=token_ids,
                num_scored=len(token_ids),
                logprobs=_list_logprobs(token_ids, logprobs),
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
        keys = [self._next_key() for _ in prompts]
        marked = []
        for prompt, key in zip(prompts, keys, strict=True):
            params = SamplingParams(max_tokens=1, temperature=0, skip_reading_prefix_cache=True)
            params.extra_args = {EXTRA_ARG: [key, len(prompt) - 1]}
            marked.append(params)
        whole = [before + after for before, after in zip(prompts, completions, strict=True)]
        found: dict[int, Tensor] = {}
        for request, _ in self._run(whole, marked, on_step):
            made, _ = self._take(keys[request], len(completions[request]))
            assert made is not None  # it has a key
            found[request] = made
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

    def _run(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[SamplingParams],
        on_step: Callable[[], object],
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Run requests until the engine is idle; yield each, when finished, with its index."""
        engine = self._llm.llm_engine
        waiting = deque(range(len(prompts)))
        places: dict[str, int] = {}
        num_running, most = 0, self._max_running(prompts, params)
        while waiting or engine.has_unfinished_requests():
            while waiting and num_running < most:
                index = waiting.popleft()
                (request_id,) = self._llm.enqueue(
                    {"prompt_token_ids": prompts[index]},
                    params[index],
                    use_tqdm=False,
                    lora_request=self._lora,
                )
                # That is vLLM's internal id: the one of the output and a random suffix.
                places[request_id.rsplit("-", 1)[0]] = index
                num_running += 1
            for output in engine.step():
                if output.finished:
                    num_running -= 1
                    yield places[output.request_id], output
            on_step()
        # The next batch begins as this one did.
        self._llm.reset_prefix_cache()

    def _max_running(self, prompts: Sequence[Tokens], params: Sequence[SamplingParams]) -> int:
        """Return how many requests' states fit into the memory set aside for them."""
        config = self._llm.model_config
        # Of a prompt only what a completion is read in counts: at most all of it.
        lengths = [
            len(prompt) if each.skip_reading_prefix_cache else each.max_tokens
            for prompt, each in zip(prompts, params, strict=True)
        ]
        most_tokens = min(config.max_model_len, max(n or config.max_model_len for n in lengths))
        state_bytes = (len(self.layers) + 1) * self.facts.hidden_size * config.dtype.itemsize
        # The store's capacity is up to twice what is in it.
        return max(1, _MAX_STATE_BYTES // (2 * most_tokens * state_bytes))

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a given completion has."""
        return len(self._tokenize_completion(text))

    def _tokenize_completion(self, text: str) -> Tokens:
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._llm.get_tokenizer().decode(list(token_ids), skip_special_tokens=True)
        return text

    def _next_key(self) -> str:
        self._num_requests += 1
        return str(self._num_requests)

    def _take(self, key: str | None, length: int) -> tuple[Tensor | None, Tensor | None]:
        """Return ``embeddings`` and ``tokens`` of a completion."""
        if key is None:
            return None, None
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


def default_layers(num_layers: int) -> tuple[Layer, ...]:
    """Return the layers at a third, a half, two thirds and five sixths of the depth, and final."""
    inner = {max(1, round(num_layers * share)) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)}
    return (*sorted(layer for layer in inner if layer < num_layers), "final")


def _mark(params: SamplingParams, seed: int | None, key: str | None) -> SamplingParams:
    mine = params.clone()
    mine.seed = seed
    if seed is None:
        mine.temperature, mine.top_p, mine.top_k, mine.min_p = 0.0, 1.0, 0, 0.0
    if key is not None:
        mine.extra_args = {EXTRA_ARG: [key]}
    return mine


def _enable_lora(args: argparse.Namespace, adapter: Path) -> None:
    """Have vLLM take an adapter of its rank.

    Raises:
        StartupError: It is no folder of a LoRA adapter, or of a higher rank than vLLM takes.
    """
    try:
        rank = int(json.loads((adapter / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(
            f"--adapter {str(adapter)!r} is no folder of a LoRA adapter: adapter_config.json: "
            f"{type(error).__name__}: {error}"
        ) from error
    ranks = sorted(get_args(MaxLoRARanks))
    fitting = [each for each in ranks if each >= max(rank, args.max_lora_rank)]
    if not fitting:
        raise StartupError(f"--adapter {str(adapter)!r}: rank must be <= {ranks[-1]}, got {rank}")
    args.enable_lora, args.max_lora_rank = True, fitting[0]


def _list_logprobs(token_ids: Sequence[int], found: Iterable[Any]) -> list[float]:
    """Return the log-probability of each token, from vLLM's of several a position.

    The first token of all, where there is no prompt, has none: it counts as sure.
    """
    return [
        0.0 if each is None else float(each[token].logprob)
        for each, token in zip(found, token_ids, strict=True)
    ]
