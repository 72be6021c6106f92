"""One real engine on vLLM's V2 runner, of a tiny random Llama, and plain transformers beside it.

A step takes a second or two, as Triton's kernels run in numpy (``site/sitecustomize.py``): few
steps, and many requests in each.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
import torch

sys.path.insert(0, str(Path(__file__).parent / "site"))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  # here too
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind

from qprobe import Probe, ProbeInfo, Reading, Terms
from qprobe.probe.schedule import Step
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe.probe.values import Layer, Pooling
from qprobe_server.choice.request import RerankRequest
from qprobe_server.choice.rerank import Rerank, current_rerank
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe
from qprobe_server.vllm_backend.checks import find_worker_cls
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.worker.hooks import ADDITIONAL_CONFIG

HIDDEN = 64
NUM_LAYERS = 4
VOCABULARY = 512
BLOCK_TOKENS = 32
NUM_BLOCKS = 18
READINGS: tuple[tuple[Layer, Pooling, int | None], ...] = (
    (1, "mean", None),
    (3, "last", None),
    (3, "mean", 4),
    ("final", "mean", None),
)
# A head of the last probe, at this many tokens.
CHECKPOINT = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/v2" in str(item.path):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random Llama, large weights so that its states differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def probes() -> list[LoadedProbe]:
    """Return a random probe of each reading, then one of several terms; the last two have heads."""
    torch.manual_seed(1)
    random = Random(1)
    made = []
    for number, (layer, pooling, window) in enumerate(READINGS):
        heads = {}
        if number == len(READINGS) - 1:
            beginning = Reading(layer, "mean", CHECKPOINT)
            heads = {
                CHECKPOINT: Terms.linear(beginning, torch.randn(HIDDEN).numpy(), random.gauss())
            }
        info = ProbeInfo(
            base_model="any",
            hidden_size=HIDDEN,
            num_layers=NUM_LAYERS,
            objective="ce",
            k=4,
            beta=1.0,
            checkpoints=tuple(heads),
        )
        terms = Terms.linear(
            Reading(layer, pooling, window), torch.randn(HIDDEN).numpy(), random.gauss()
        )
        name = f"probe-{number}"
        made.append(LoadedProbe(name, f"version of {name}", 0, Probe(info, terms, heads)))
    sums = [
        Terms(
            (StateTerm(Reading(1, "last"), torch.randn(HIDDEN).numpy()),),
            (GateTerm(3, (), *torch.randn(2, HIDDEN).numpy()),),
            {"total_logprob": 0.5, "length": 0.1, "cut": 2.0},
            bias=0.5,
        )
        for _ in range(2)
    ]
    made.append(LoadedProbe("sum", "version", 0, Probe(info, sums[0], {CHECKPOINT: sums[1]})))
    return made


@pytest.fixture(scope="session")
def served(probes: list[LoadedProbe]) -> list[ServedProbe]:
    """Return them as requests hold them."""
    registry = ProbeRegistry()
    return [registry.reserve(each) for each in probes]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(
    tiny_model: Path, probes: list[LoadedProbe], served: list[ServedProbe]
) -> AsyncIterator[RerankingLLM]:
    """Start the engine: prompts longer than 32 tokens are read in parts, and the cache is small."""
    args = AsyncEngineArgs(
        model=str(tiny_model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        worker_cls=find_worker_cls("ScoringWorker"),
        additional_config={ADDITIONAL_CONFIG: {"layers": [1, 3]}},
        max_model_len=256,
        max_num_batched_tokens=32,
        max_num_seqs=16,
        block_size=BLOCK_TOKENS,
        dtype="float32",
        # Keys and values of each layer, one head of 32, 4 bytes a number.
        kv_cache_memory_bytes=NUM_BLOCKS * BLOCK_TOKENS * NUM_LAYERS * 2 * 32 * 4,
    )
    config = args.create_engine_config()
    assert config.use_v2_model_runner
    started = RerankingLLM.from_vllm_config(config)
    try:
        await started.load_probes(
            [(one, each.probe) for one, each in zip(served, probes, strict=True)]
        )
        yield started
    finally:
        started.shutdown(timeout=5)
        started.inbox.close()


Answers = tuple[list[list[int]], dict[str, Any]]
Ask = Callable[..., Coroutine[Any, Any, Answers]]


@pytest.fixture(scope="session")
def ask(engine: RerankingLLM, served: list[ServedProbe]) -> Ask:
    """Return a function that reranks a prompt; it gives the answers' tokens and the result."""

    async def run(
        prompt_ids: list[int],
        *,
        probe: int,
        k: int,
        beta: float = 1.0,
        schedule: tuple[Step, ...] = (),
        **params: Any,
    ) -> Answers:
        request = RerankRequest(
            probes=((served[probe], 1.0),), k=k, beta=beta, schedule=schedule, explicit=True
        )
        rerank = Rerank(request)
        sampling = SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY, **{"ignore_eos": True, **params}
        )
        token = current_rerank.set(rerank)
        try:
            prompt = {"type": "token", "prompt_token_ids": prompt_ids}
            async for output in engine.generate(prompt, sampling, f"test-{id(rerank)}"):
                last = output
        finally:
            current_rerank.reset(token)
        answers = [list(each.token_ids) for each in last.outputs]
        return answers, rerank.results[0].model_dump(exclude_unset=True)

    return run
