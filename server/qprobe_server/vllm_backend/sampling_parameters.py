"""How completions are sampled or read: the model's defaults, the flags, and what each request adds.

Relies on vLLM 0.32.0: ``LLM.get_default_sampling_params, default_sampling_params``
(entrypoints/llm.py) and ``SamplingParams`` (sampling_params.py).
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from vllm import LLM, SamplingParams

from qprobe_server.errors import StartupError
from qprobe_server.vllm_backend.worker.hooks import EXTRA_ARG

__all__ = [
    "SamplingParameters",
    "for_reading",
    "for_sample",
    "record_parameters",
    "settle_parameters",
]

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


def settle_parameters(llm: LLM, given: Mapping[str, Any]) -> SamplingParams:
    """Return the model's default sampling parameters with some of them replaced.

    Raises:
        StartupError: A value is out of range.
    """
    defaults = llm.get_default_sampling_params()
    try:
        fields = {name: getattr(defaults, name) for name in _RECORDED} | dict(given)
        if "max_tokens" not in {*(llm.default_sampling_params or {}), *given}:
            fields["max_tokens"] = _MAX_TOKENS
        return SamplingParams(**fields, logprobs=0)
    except ValueError as error:
        raise StartupError(f"sampling parameters: {error}") from error


def record_parameters(params: SamplingParams) -> dict[str, Any]:
    """Return the sampling parameters in JSON types."""
    return {name: getattr(params, name) for name in _RECORDED}


def for_sample(params: SamplingParams, seed: int | None, key: str | None) -> SamplingParams:
    """Return the parameters of one sample.

    Args:
        params: As ``settle_parameters`` gives them.
        seed: None asks for the greedy completion.
        key: What the worker calls its states; None: they are not wanted.
    """
    mine = params.clone()
    mine.seed = seed
    if seed is None:
        mine.temperature, mine.top_p, mine.top_k, mine.min_p = 0.0, 1.0, 0, 0.0
    if key is not None:
        mine.extra_args = {EXTRA_ARG: [key]}
    return mine


def for_reading(key: str, prompt_length: int, *, with_logprobs: bool) -> SamplingParams:
    """Return the parameters of a request that reads a completion behind its prompt.

    vLLM is to compute all of it, and skip nothing that its prefix cache holds.

    Args:
        key: What the worker calls its states.
        prompt_length: Of the prompt alone, in tokens.
        with_logprobs: Whether its tokens' log-probabilities are wanted too.
    """
    params = SamplingParams(
        max_tokens=1,
        temperature=0,
        prompt_logprobs=0 if with_logprobs else None,
        skip_reading_prefix_cache=True,
    )
    params.extra_args = {EXTRA_ARG: [key, prompt_length - 1]}
    return params
