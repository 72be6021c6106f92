"""What is chosen on a CPU: by the facts, and only where the user has not chosen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprobe_server.vllm_backend.cpu import CpuFacts, choose, describe

GIB = 1 << 30
# Half a billion parameters, as Qwen2.5-0.5B: 24 layers of 2 heads of 64.
FACTS = CpuFacts(
    has_bf16=False,
    available_bytes=16 * GIB,
    dtype="bfloat16",
    is_quantized=False,
    has_plain_cache=True,
    num_weights=494_000_000,
    other_bytes=0,
    token_numbers=24 * 2 * 2 * 64,
    max_model_len=32_768,
)
ALL = {"dtype", "block_size", "kv_cache_memory_bytes", "enforce_eager"}


def test_what_a_small_model_gets_without_bfloat16() -> None:
    assert choose(FACTS, ()) == {
        "dtype": "float32",
        "block_size": 32,
        "kv_cache_memory_bytes": 65_536 * FACTS.token_numbers * 4,
        "enforce_eager": True,
    }


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, has_bf16=True),
        replace(FACTS, dtype="float16"),
        replace(FACTS, is_quantized=True),
    ],
)
def test_the_dtype_is_left_where_float32_helps_nothing(facts: CpuFacts) -> None:
    chosen = choose(facts, ())
    assert "dtype" not in chosen
    assert chosen["kv_cache_memory_bytes"] == 65_536 * FACTS.token_numbers * 2


def test_blocks_are_left_where_the_model_decides() -> None:
    assert "block_size" not in choose(replace(FACTS, has_plain_cache=False), ())


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("dtype", "dtype"),
        ("block_size", "block_size"),
        ("kv_cache_memory_bytes", "kv_cache_memory_bytes"),
        ("gpu_memory_utilization", "kv_cache_memory_bytes"),
        ("enforce_eager", "enforce_eager"),
        ("compilation_config", "enforce_eager"),
        ("optimization_level", "enforce_eager"),
    ],
)
def test_what_is_given_is_left(given: str, left: str) -> None:
    assert choose(FACTS, {given}).keys() == ALL - {left}


def test_the_longest_request_fits() -> None:
    longer = replace(FACTS, max_model_len=131_072)
    chosen = choose(longer, ())
    assert chosen["kv_cache_memory_bytes"] == 131_072 * FACTS.token_numbers * 4


@given(
    available_bytes=st.integers(3 * GIB, 1024 * GIB),
    num_weights=st.integers(10**7, 10**11),
    token_numbers=st.integers(10**3, 10**6),
    max_model_len=st.integers(2048, 200_000),
    num_replicas=st.integers(1, 4),
    num_shards=st.integers(1, 4),
)
def test_weights_and_caches_fit_into_what_is_free(
    available_bytes: int,
    num_weights: int,
    token_numbers: int,
    max_model_len: int,
    num_replicas: int,
    num_shards: int,
) -> None:
    facts = replace(
        FACTS,
        available_bytes=available_bytes,
        num_weights=num_weights,
        token_numbers=token_numbers,
        max_model_len=max_model_len,
        num_replicas=num_replicas,
        num_shards=num_shards,
    )
    cache = choose(facts, ())["kv_cache_memory_bytes"]
    least = 256 << 20
    assert cache >= least
    taken = num_replicas * num_weights * 4 + num_replicas * num_shards * cache
    # Where nothing fits vLLM's own error says so; a small cache is asked for all the same.
    assert taken < available_bytes or cache == least


def test_the_line_names_each_choice_and_its_flag() -> None:
    line = describe(choose(FACTS, ()))
    for part in (
        "float32 (--dtype)",
        "cache blocks of 32 tokens (--block-size)",
        "1.5 GiB cache (--kv-cache-memory-bytes)",
        "not compiled (--no-enforce-eager)",
    ):
        assert part in line
    assert "--dtype" not in describe(choose(FACTS, {"dtype"}))
