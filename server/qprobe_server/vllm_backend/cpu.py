"""What is better than vLLM's own defaults where a CPU is the device.

Relies on vLLM 0.32.0: ``EngineArgs.create_model_config`` (engine/arg_utils.py), ``ModelConfig``
(config/model.py), ``get_memory_node_info, get_visible_memory_node`` (utils/cpu_resource_utils.py;
the limits of containers count there), ``get_safetensors_params_metadata``
(transformers_utils/config.py), and that ``CpuPlatform.check_and_update_config`` (platforms/cpu.py)
takes ``VLLM_CPU_KVCACHE_SPACE``. vLLM is imported where it is asked: choosing needs none of it.
"""

import argparse
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

__all__ = ["CpuFacts", "choose", "choose_dtype", "describe", "measure_weights", "prepare_cpu"]

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# The candidates of a prompt share its whole blocks. With vLLM's blocks of 128 tokens each of them
# reads a shorter prompt anew; its attention on a CPU wants multiples of 32.
_BLOCK_TOKENS = 32
# Sixteen prompts of 16 candidates of 256 tokens. The cache is written when it is made, so that a
# share of all memory, as vLLM takes, costs its time at every start.
_CACHED_TOKENS = 65_536
# Of the engine's process and of each worker's, beside weights and cache.
_PROCESS_BYTES = 1 << 30
_LEAST_CACHE_BYTES = 256 << 20
_GIB = 1 << 30

_FLAGS = {
    "dtype": "--dtype",
    "block_size": "--block-size",
    "kv_cache_memory_bytes": "--kv-cache-memory-bytes",
    "enforce_eager": "--no-enforce-eager",
}


@dataclass(frozen=True, kw_only=True)
class CpuFacts:
    """What the choice depends on.

    Attributes:
        has_bf16: Whether the processor has instructions for bfloat16.
        available_bytes: Memory that is free; of one NUMA node, and within a container's limit.
        dtype: The model's, as vLLM would run it, such as ``bfloat16``.
        is_quantized: Whether its weights are; such kernels want the dtype that vLLM takes.
        has_plain_cache: Whether each layer caches keys and values, in blocks of any size.
        num_weights: Numbers that are floats in its checkpoint; 0 if that is not known.
        other_bytes: Size of all the others.
        token_numbers: Numbers that the cache holds of a token, in all layers.
        max_model_len: Tokens of the longest request.
        num_replicas: Data-parallel ranks on this machine.
        num_shards: Workers that share one replica's weights and cache.
    """

    has_bf16: bool
    available_bytes: int
    dtype: str
    is_quantized: bool
    has_plain_cache: bool
    num_weights: int
    other_bytes: int
    token_numbers: int
    max_model_len: int
    num_replicas: int = 1
    num_shards: int = 1


def choose(facts: CpuFacts, given: Collection[str]) -> dict[str, Any]:
    """Return values for vLLM's arguments, by their names in ``EngineArgs``.

    - ``float32`` where bfloat16 would be emulated: a product of matrices takes four times as long
      then (measured on a processor with AVX2 only).
    - Blocks that short prompts fill.
    - A cache for 65,536 tokens or the longest request, as far as it fits beside the weights.
    - No compilation: of a small model it takes minutes, and makes it 1.3 times as fast.

    Args:
        facts: Of machine and model.
        given: Names of the arguments that the user has set.
    """
    chosen: dict[str, Any] = {}
    emulates = facts.dtype == "bfloat16" and not facts.has_bf16
    if "dtype" not in given and emulates and not facts.is_quantized:
        chosen["dtype"] = "float32"
    if "block_size" not in given and facts.has_plain_cache:
        chosen["block_size"] = _BLOCK_TOKENS
    if not {"kv_cache_memory_bytes", "gpu_memory_utilization"}.intersection(given):
        chosen["kv_cache_memory_bytes"] = _fit_cache(facts, chosen.get("dtype", facts.dtype))
    if not {"enforce_eager", "compilation_config", "optimization_level"}.intersection(given):
        chosen["enforce_eager"] = True
    return chosen


def _fit_cache(facts: CpuFacts, dtype: str) -> int:
    """Return the bytes of each worker's cache."""
    number_bytes = 4 if dtype == "float32" else 2
    weight_bytes = facts.num_weights * number_bytes + facts.other_bytes
    num_workers = facts.num_replicas * facts.num_shards
    taken = facts.num_replicas * (weight_bytes + _PROCESS_BYTES) + num_workers * _PROCESS_BYTES
    tokens = max(_CACHED_TOKENS, facts.max_model_len)
    wanted = tokens * facts.token_numbers * number_bytes // facts.num_shards
    fitting = (facts.available_bytes - taken) * 4 // 5 // num_workers
    return max(_LEAST_CACHE_BYTES, min(wanted, fitting))


def describe(chosen: Mapping[str, Any]) -> str:
    """Return a line that says what was chosen, and by which flag each is overridden."""
    values = {
        "dtype": str(chosen.get("dtype")),
        "block_size": f"cache blocks of {chosen.get('block_size')} tokens",
        "kv_cache_memory_bytes": f"{chosen.get('kv_cache_memory_bytes', 0) / _GIB:.1f} GiB cache",
        "enforce_eager": "not compiled",
    }
    parts = [f"{values[name]} ({flag})" for name, flag in _FLAGS.items() if name in chosen]
    return "on this CPU: " + ", ".join(parts)


def prepare_cpu(args: argparse.Namespace) -> None:
    """Set in vLLM's parsed arguments what the user has left open, and say so; on CPUs only.

    ``args.given`` has the names of those that were set.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    given = set(args.given)
    if args.dtype == "auto":
        given.discard("dtype")
    if os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        given.add("kv_cache_memory_bytes")
    chosen = choose(_read_facts(args), given)
    for name, value in chosen.items():
        setattr(args, name, value)
    if chosen:
        sys.stderr.write(f"qprobe: {describe(chosen)}\n")


def choose_dtype() -> str:
    """Return the dtype for an unquantized bfloat16 model on this machine; ``auto`` is vLLM's."""
    from vllm.platforms import current_platform

    return "auto" if not current_platform.is_cpu() or _has_bf16() else "float32"


def _has_bf16() -> bool:
    return not _BF16_FLAGS.isdisjoint(Path("/proc/cpuinfo").read_text().split())


def _read_facts(args: argparse.Namespace) -> CpuFacts:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    model: Any = EngineArgs.from_cli_args(args).create_model_config()
    nodes = [get_memory_node_info(node) for node in get_visible_memory_node()]
    num_weights, other_bytes = measure_weights(args.model, args.revision)
    heads = model.get_total_num_kv_heads() * model.get_head_size()
    return CpuFacts(
        has_bf16=_has_bf16(),
        available_bytes=min(node.available_memory for node in nodes),
        dtype=str(model.dtype).removeprefix("torch."),
        is_quantized=model.quantization is not None,
        has_plain_cache=not (model.use_mla or model.is_hybrid or model.is_attention_free),
        num_weights=num_weights,
        other_bytes=other_bytes,
        token_numbers=2 * model.get_total_num_hidden_layers() * heads,
        max_model_len=model.max_model_len,
        num_replicas=args.data_parallel_size_local or args.data_parallel_size or 1,
        num_shards=args.tensor_parallel_size * args.pipeline_parallel_size,
    )


def measure_weights(model: str, revision: str | None) -> tuple[int, int]:
    """Return how many floats a safetensors checkpoint has, and the bytes of all else in it."""
    from vllm.transformers_utils.config import get_safetensors_params_metadata

    num_weights = other_bytes = 0
    for tensor in get_safetensors_params_metadata(model, revision=revision).values():
        if tensor.get("dtype") in ("BF16", "F16", "F32", "F64"):
            num_weights += prod(tensor["shape"])
        elif "data_offsets" in tensor:
            begin, end = tensor["data_offsets"]
            other_bytes += end - begin
    return num_weights, other_bytes
