"""One real vLLM engine for the whole run, of the small model, and plain transformers beside it.

The engine is made tight on purpose: prompts longer than 256 tokens are read in chunks, prefixes are
cached, and few blocks of cache make many long candidates preempt each other.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from qprobe import Probe, ProbeInfo, Reading, Terms
from qprobe.probe.confidence import Confidence, Isotonic, Platt
from qprobe.probe.schedule import Step
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe.probe.values import NUMBERS, Layer, Pooling
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe
from qprobe_server.vllm_backend.checks import find_worker_cls
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.worker.hooks import ADDITIONAL_CONFIG

HIDDEN = 576
NUM_LAYERS = 6
BLOCK_TOKENS = 32
# Keys and values of each layer, 3 heads of 64.
TOKEN_NUMBERS = NUM_LAYERS * 2 * 3 * 64
NUM_BLOCKS = 80
MAX_QUEUED = 400

# What the probes of the tests read: several layers in one engine, both poolings, windows.
READINGS: tuple[tuple[Layer, Pooling, int | None], ...] = (
    (2, "mean", None),
    (4, "last", None),
    (4, "mean", 8),
    ("final", "mean", None),
    ("final", "last", None),
)
DIRECTIONS = 16
# After them: probes that read as the heads do of the one at HEADED, with the same weights.
HEADS = {4: 80, 8: 32, 16: 81}
HEADED = 82


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that run the same tests on another engine."""
    parser.addoption("--speculative", action="store_true", help="draft by n-gram lookup")
    parser.addoption("--engine-dtype", default="float32", help="the engine's; default: float32")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/engine" in str(item.path):
            item.add_marker(pytest.mark.engine)


def make_info(heads: dict[int, Terms]) -> ProbeInfo:
    """Return what a probe says that has these heads."""
    return ProbeInfo(
        base_model="any",
        hidden_size=HIDDEN,
        num_layers=NUM_LAYERS,
        objective="ce",
        k=4,
        beta=0.1,
        checkpoints=tuple(heads),
    )


def make_probes() -> list[LoadedProbe]:
    """Return random directions of every reading: index = reading * DIRECTIONS + direction.

    After them, by name, what ``make_sums`` gives.
    """
    torch.manual_seed(0)
    probes: list[LoadedProbe] = []

    def add(
        layer: Layer,
        pooling: Pooling,
        window: int | None,
        direction: int,
        heads: dict[int, Terms] | None = None,
    ) -> None:
        info = make_info(heads or {})
        weight = (torch.randn(HIDDEN) / HIDDEN**0.5).numpy()
        bias = float(torch.randn(()))
        terms = Terms.linear(Reading(layer, pooling, window), weight, bias)
        name = f"{layer}-{pooling}-{window}-{direction}"
        probes.append(LoadedProbe(name, f"version of {name}", 0, Probe(info, terms, heads)))

    for layer, pooling, window in READINGS:
        for direction in range(DIRECTIONS):
            add(layer, pooling, window, direction)
    add(4, "mean", 4, 0)
    add(4, "mean", 16, 0)
    heads = {tokens: probes[index].probe.terms for tokens, index in HEADS.items()}
    add(4, "mean", None, DIRECTIONS, heads)
    return [*probes, *make_sums()]


def make_sums() -> list[LoadedProbe]:
    """Return random probes of several terms: alone, together, with heads, with confidence."""
    rng = np.random.default_rng(0)

    def draw() -> Any:
        return (rng.standard_normal(HIDDEN) / HIDDEN**0.5).astype(np.float32)

    def states(*readings: tuple[Layer, Pooling, int | None]) -> tuple[StateTerm, ...]:
        return tuple(StateTerm(Reading(*each), draw()) for each in readings)

    def gate(layer: Layer, *segments: int) -> GateTerm:
        return GateTerm(layer, segments, 0.1 * draw(), draw(), *rng.standard_normal(2).tolist())

    def numbers(*names: str) -> dict[str, float]:
        return {name: float(rng.standard_normal()) for name in names}

    every = states((2, "mean", None), (4, "last", None), ("final", "mean", 8), (4, "max", 5))
    gates = (gate(2), gate("final", 4, 16))
    whole = Terms(every, gates, numbers(*NUMBERS), bias=0.7)
    heads = {
        tokens: Terms(
            states((2, "mean", None), (4, "mean", 3), ("final", "last", None), (4, "max", 3)),
            (gate(4), gate("final", 2, 6)),
            numbers(*NUMBERS),
            bias=-0.4,
        )
        for tokens in HEADS
    }
    own = Terms(states(("final", "mean", None)), numbers=numbers("mean_logprob"), bias=0.1)
    knots = Isotonic((-40.0, 0.0, 40.0), (0.0, 0.25, 3.0))
    made = {
        "states": (Terms(every, bias=0.3), {}, Confidence(knots)),
        "gates": (Terms(gates=gates, bias=-0.2), {}, None),
        "numbers": (Terms(numbers=numbers(*NUMBERS), bias=0.5), {}, None),
        "logprob": (Terms(numbers={"total_logprob": 1.0}), {}, None),
        "all": (whole, heads, Confidence(Platt(0.05, -0.1), own)),
        "length": (
            Terms(numbers=numbers("length", "log_length", "cut")),
            {4: Terms(numbers=numbers("total_logprob"))},
            None,
        ),
        "numbers-heads": (
            Terms(numbers=numbers(*NUMBERS)),
            {4: Terms(numbers=numbers(*NUMBERS))},
            None,
        ),
    }
    return [
        LoadedProbe(
            name, f"version of {name}", 0, Probe(make_info(heads), terms, heads, confidence)
        )
        for name, (terms, heads, confidence) in made.items()
    ]


@pytest.fixture(scope="session")
def probes() -> list[LoadedProbe]:
    """Return the probes that the engine has loaded."""
    return make_probes()


@pytest.fixture(scope="session")
def served(probes: list[LoadedProbe]) -> list[ServedProbe]:
    """Return them as requests hold them; the first ones have one row each, probe i row i."""
    registry = ProbeRegistry()
    made = [registry.reserve(each) for each in probes]
    assert [each.score.rows for each in made[:HEADED]] == [(index,) for index in range(HEADED)]
    return made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(
    small_model: Path,
    probes: list[LoadedProbe],
    served: list[ServedProbe],
    request: pytest.FixtureRequest,
) -> AsyncIterator[RerankingLLM]:
    """Start the engine."""
    speculative = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    dtype = request.config.getoption("--engine-dtype")
    token_bytes = TOKEN_NUMBERS * (4 if dtype == "float32" else 2)
    layers = sorted({layer for layer, _, _ in READINGS if layer != "final"})
    args = AsyncEngineArgs(
        model=str(small_model),
        enforce_eager=True,
        worker_cls=find_worker_cls("ScoringWorker"),
        additional_config={ADDITIONAL_CONFIG: {"layers": layers}},
        max_model_len=2048,
        max_num_batched_tokens=256,
        max_num_seqs=64,
        enable_prefix_caching=True,
        block_size=BLOCK_TOKENS,
        dtype=dtype,
        kv_cache_memory_bytes=NUM_BLOCKS * BLOCK_TOKENS * token_bytes,
        max_num_queued_reqs=MAX_QUEUED,
        speculative_config=speculative if request.config.getoption("--speculative") else None,
    )
    started = RerankingLLM.from_vllm_config(args.create_engine_config())
    try:
        await started.load_probes(
            [(one, each.probe) for one, each in zip(served, probes, strict=True)]
        )
        yield started
    finally:
        started.shutdown(timeout=5)
        started.inbox.close()


@dataclass(frozen=True)
class Answer:
    """What one reranked prompt gave.

    ``outputs`` are what vLLM's serving code gets; ``candidates`` the answers by candidate index, if
    all were drawn (n = k).
    """

    prompt_ids: list[int]
    outputs: list[RequestOutput]
    rerank: Rerank
    result: dict[str, Any]

    @property
    def answers(self) -> list[CompletionOutput]:
        """The final answers, best first as drawn; of a request without streaming."""
        return list(self.outputs[-1].outputs)

    @property
    def candidates(self) -> list[CompletionOutput]:
        """The answers by candidate."""
        chosen: list[int] = self.result["selected"]
        return [self.answers[chosen.index(index)] for index in range(len(chosen))]


Ask = Callable[..., Coroutine[Any, Any, Answer]]
Hold = Callable[[int], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def until_held(engine: RerankingLLM) -> Hold:
    """Return a function that waits, at most 20 s, until the workers hold so many candidates."""

    async def wait(count: int) -> None:
        for _ in range(2000):
            held = await engine.num_held_candidates()
            if held == count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{held} candidates are held, not {count}")

    return wait


@pytest.fixture(scope="session")
def chat_ids(engine: RerankingLLM) -> Callable[[str], list[int]]:
    """Return a function that makes the prompt of a user's message."""
    tokenizer = engine.get_tokenizer()

    def make(message: str) -> list[int]:
        messages = [{"role": "user", "content": message}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text, add_special_tokens=False))

    return make


@pytest.fixture(scope="session")
def ask(engine: RerankingLLM, served: list[ServedProbe]) -> Ask:
    """Return a function that reranks one prompt as a request's handler does."""

    async def run(
        prompt_ids: list[int],
        *,
        probe: int | str | dict[int | str, float] = 0,
        k: int = 4,
        beta: float | None = 0.1,
        target_kl: float | None = None,
        schedule: tuple[Step, ...] = (),
        stream: bool = False,
        return_candidates: bool = False,
        return_token_scores: bool = False,
        request_id: str | None = None,
        **params: Any,
    ) -> Answer:
        mix = probe if isinstance(probe, dict) else {probe: 1.0}
        by_name: dict[int | str, ServedProbe] = {each.name: each for each in served}
        by_name.update(enumerate(served))
        request = RerankRequest(
            probes=tuple((by_name[name], weight) for name, weight in mix.items()),
            is_mix=isinstance(probe, dict),
            k=k,
            beta=beta if target_kl is None else None,
            target_kl=target_kl,
            schedule=schedule,
            return_candidates=return_candidates or return_token_scores,
            return_token_scores=return_token_scores,
            explicit=True,
        )
        rerank = Rerank(request)
        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        fields = {"temperature": 0.8, "max_tokens": 24, **params}
        sampling = SamplingParams(output_kind=kind, **fields)
        token = current_rerank.set(rerank)
        try:
            prompt = {"type": "token", "prompt_token_ids": prompt_ids}
            stream_of = engine.generate(prompt, sampling, request_id or f"test-{id(rerank)}")
            outputs = [output async for output in stream_of]
        finally:
            current_rerank.reset(token)
        result = rerank.results.get(0)
        shown = {} if result is None else result.model_dump(exclude_unset=True)
        return Answer(prompt_ids, outputs, rerank, shown)

    return run
