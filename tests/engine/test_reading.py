"""Completions that are read, instead of sampled, get the scores that they got when sampled."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from qprobe_server.library.registry import LoadedProbe, ServedProbe
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.client.reading import read_completions

ChatIds = Callable[[str], list[int]]
READINGS, DIRECTIONS, BLOCK_TOKENS = 5, 16, 32
# Of an embedding, relative, by the engine's dtype: twice what parity allows one of the two.
ERRORS = {"float32": 2e-4, "bfloat16": 0.04}
QUESTIONS = (
    "Write a Python function `add(a, b)` that returns the sum of a and b.",
    "What is the capital of France?",
    "Summarise: " + "The quick brown fox jumps over the lazy dog. " * 60,
)


@pytest.fixture
def error(request: pytest.FixtureRequest) -> float:
    return ERRORS[request.config.getoption("--engine-dtype")]


async def read(
    engine: RerankingLLM,
    served: list[ServedProbe],
    prompt: list[int],
    completions: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Return the scores by the probes of all readings: (completions, READINGS * DIRECTIONS)."""
    scores = []
    for first in range(0, READINGS * DIRECTIONS, DIRECTIONS):
        sums = [each.score for each in served[first : first + DIRECTIONS]]
        numbers: list[dict[str, float]] = [{} for _ in completions]
        taken = await read_completions(engine, prompt, completions, sums=sums, numbers=numbers)
        scores.append([each.scores for each in taken])
    return torch.tensor(scores, dtype=torch.float64).transpose(0, 1).flatten(1)


def bias_of(probe: LoadedProbe) -> torch.Tensor:
    return torch.tensor([probe.probe.terms.bias], dtype=torch.float64)


def check_alike(
    probes: list[LoadedProbe], found: torch.Tensor, expected: torch.Tensor, error: float
) -> None:
    """Check scores of the same completions, (completions, READINGS * DIRECTIONS).

    A direction w being random, (w.d)^2 / (w.phi)^2, each averaged over m = directions x completions
    before they are divided, estimates the square of the relative error |d| / |phi|. Either average
    is within a factor of 1 +- 2 sqrt(x/m) + 2x/m of its mean but for a probability of exp(-x)
    (Laurent and Massart 2000, lemma 1); x = 5 for the lower one, which is of as many phi.
    """
    bias = torch.cat([bias_of(each) for each in probes[: found.shape[1]]])
    m = DIRECTIONS * len(found)
    bound = error**2 * (1 + 2 * (20 / m) ** 0.5 + 40 / m) / (1 - 2 * (5 / m) ** 0.5)
    square = (found - expected).square().view(-1, READINGS, DIRECTIONS).mean((0, 2))
    size = (expected - bias).square().view(-1, READINGS, DIRECTIONS).mean((0, 2))
    assert bool(torch.isfinite(found).all())
    assert (square / size <= bound).all(), (square / size).sqrt()


@pytest.mark.parametrize("question", range(len(QUESTIONS)))
async def test_what_was_sampled_is_scored_the_same_when_it_is_read(
    ask: Any,
    engine: RerankingLLM,
    probes: list[LoadedProbe],
    served: list[ServedProbe],
    chat_ids: ChatIds,
    error: float,
    question: int,
) -> None:
    """Four candidates a probe, of different lengths; the last prompt takes three steps."""
    prompt = chat_ids(QUESTIONS[question])
    indices = [each for each in range(READINGS * DIRECTIONS) if each % DIRECTIONS < 4]
    answers = await asyncio.gather(
        *(ask(prompt, probe=index, k=4, n=4, seed=index, max_tokens=40) for index in indices)
    )
    rows: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for index, answer in zip(indices, answers, strict=True):
        kept = [each.token_ids[:-1] for each in answer.candidates]
        scores = (await read(engine, served, prompt, kept))[:, index]
        rows.append((index, scores, torch.tensor(answer.result["scores"], dtype=torch.float64)))
    for reading in range(READINGS):
        of_it = [each for each in rows if each[0] // DIRECTIONS == reading]
        found = torch.cat([each[1] for each in of_it])
        expected = torch.cat([each[2] for each in of_it])
        bias = torch.cat([bias_of(probes[index]).repeat(len(row)) for index, row, _ in of_it])
        m = len(found)
        bound = error**2 * (1 + 2 * (20 / m) ** 0.5 + 40 / m) * 4
        ratio = (found - expected).square().mean() / (expected - bias).square().mean()
        assert ratio <= bound, (reading, float(ratio) ** 0.5)


async def test_completions_that_begin_alike_are_read_once_and_each_scored_in_full(
    ask: Any,
    engine: RerankingLLM,
    probes: list[LoadedProbe],
    served: list[ServedProbe],
    chat_ids: ChatIds,
    error: float,
) -> None:
    """One completion, its copies, its beginnings and others that go on from these; and none."""
    prompt = chat_ids(QUESTIONS[2])
    answer = await ask(prompt, k=3, n=3, seed=5, max_tokens=140, ignore_eos=True)
    one, other, third = (list(each.token_ids) for each in answer.candidates)
    completions = [
        *(one, one, one[:70], one[: 3 * BLOCK_TOKENS], one[:70] + other, one + third[:1]),
        *(other, [], third[:1], [*third, *third]),
    ]
    hits = read_counter("vllm:prefix_cache_hits_total")
    together = await read(engine, served, prompt, completions)
    saved = read_counter("vllm:prefix_cache_hits_total") - hits
    assert saved >= (len(completions) - 1) * (len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS)
    alone = torch.cat([await read(engine, served, prompt, [each]) for each in completions])
    check_alike(probes, together, alone, error)
    assert await engine.num_held_candidates() == 0


async def test_what_was_read_before_is_scored_again(
    engine: RerankingLLM, served: list[ServedProbe], chat_ids: ChatIds
) -> None:
    """The second time its keys and values are all in the cache, had it no salt."""
    prompt = chat_ids(QUESTIONS[2])
    completion = [*range(100, 200)]
    first = await read(engine, served, prompt, [completion])
    again = await read(engine, served, prompt, [completion])
    torch.testing.assert_close(first, again, rtol=0, atol=1e-3)


async def test_who_waits_no_more_leaves_nothing_behind(
    engine: RerankingLLM, served: list[ServedProbe], chat_ids: ChatIds, until_held: Any
) -> None:
    prompt = chat_ids(QUESTIONS[2])
    completions = [[*range(100 + each, 300 + each)] for each in range(8)]
    task = asyncio.create_task(read(engine, served, prompt, completions))
    while not await engine.num_held_candidates():
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_held(0)


def read_counter(name: str) -> float:
    """Return the value of one of vLLM's Prometheus counters."""
    from prometheus_client import REGISTRY

    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    )
