"""Scores made in the engine against plain transformers (fp32) on the same tokens."""

import asyncio
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from vllm.outputs import CompletionOutput

from qprobe import Probe
from qprobe_server.library.registry import LoadedProbe
from qprobe_server.vllm_backend.client.engine import RerankingLLM

ChatIds = Callable[[str], list[int]]
READINGS = 5
DIRECTIONS = 16
HIDDEN = 576

# Relative error allowed in an embedding, by the engine's dtype; measured: docs/measurements.md.
EMBEDDING_ERRORS = {"float32": 1e-4, "bfloat16": 0.02}


def dot(probe: Probe, embedding: Tensor) -> float:
    """Return w . phi + b in plain numpy."""
    (term,) = probe.terms.states
    return float(np.dot(embedding.float().numpy(), term.weight) + probe.terms.bias)


class Reference:
    """Plain transformers: the states of every layer for a prompt and a completion."""

    def __init__(self, model_path: Path) -> None:
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(model_path, dtype=torch.float32)
        # Many completions share a prompt: its keys and values, and its last two tokens' states.
        self._prompts: dict[tuple[int, ...], tuple[Any, tuple[Tensor, ...]]] = {}

    @torch.inference_mode()
    def embed(
        self, prompt_ids: Sequence[int], kept_ids: Sequence[int], probe: LoadedProbe
    ) -> tuple[Tensor, Tensor]:
        """Return the embedding that a probe scores, and what it were one position too early."""
        (reading,) = probe.probe.terms.readings
        cache, states = self._read_prompt(tuple(prompt_ids))
        place = -1 if reading.layer == "final" else int(reading.layer)
        layer = states[place]  # (2 + tokens kept, hidden), the prompt's last two first
        if kept_ids:
            found = self._model(
                torch.tensor([list(kept_ids)]),
                past_key_values=copy.deepcopy(cache),
                output_hidden_states=True,
            )
            layer = torch.cat([layer, found.hidden_states[place][0]])
        first, end = 2, 2 + len(kept_ids)
        if reading.window is not None:
            end = min(end, first + reading.window)
        if reading.pooling == "last" or not kept_ids:
            first = end - 1
        return layer[first:end].mean(0), layer[first - 1 : end - 1].mean(0)

    def _read_prompt(self, prompt_ids: tuple[int, ...]) -> tuple[Any, tuple[Tensor, ...]]:
        if prompt_ids not in self._prompts:
            read = self._model(
                torch.tensor([prompt_ids]), use_cache=True, output_hidden_states=True
            )
            ends = tuple(states[0, -2:] for states in read.hidden_states)
            self._prompts[prompt_ids] = (read.past_key_values, ends)
        return self._prompts[prompt_ids]


@pytest.fixture(scope="module")
def reference(small_model: Path) -> Reference:
    return Reference(small_model)


@pytest.fixture(autouse=True)
def _judge_by_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = request.config.getoption("--engine-dtype")
    monkeypatch.setattr(Comparison, "error", EMBEDDING_ERRORS[dtype])


class Comparison:
    """Collects the engine's scores by reading, and judges each reading's together.

    With w random of independent Gaussian entries, (w.d)^2 * hidden / |w|^2 averaged over m pairs of
    a direction and an embedding's error d estimates the mean of |d|^2 (relative to |phi|^2). If the
    true relative error is at most ``error``, the estimate of its square exceeds error^2 * (1 + 2
    sqrt(x/m) + 2x/m) with probability below exp(-x) (Laurent and Massart 2000, lemma 1); x = 20. As
    that bound is wide for m = 16, the scores must also tell the right embedding from the one of a
    position earlier, by a factor of 2 in the root mean square: also what bfloat16 rounds away in a
    mean over a hundred tokens, so in float32 only.
    """

    error = EMBEDDING_ERRORS["float32"]

    def __init__(self, probes: list[LoadedProbe]) -> None:
        self._probes = probes
        self._rows: dict[int, list[tuple[float, float]]] = {}

    def add(self, probe_index: int, score: float, right: Tensor, early: Tensor) -> None:
        probe = self._probes[probe_index].probe
        (term,) = probe.terms.states
        scale = HIDDEN**0.5 / float(np.linalg.norm(term.weight) * right.norm())
        errors = [(score - dot(probe, each)) * scale for each in (right, early)]
        self._rows.setdefault(probe_index // DIRECTIONS, []).append((errors[0], errors[1]))

    def check(self) -> None:
        assert len(self._rows) == READINGS
        for reading, rows in self._rows.items():
            m = len(rows)
            right, early = torch.tensor(rows).square().mean(0).sqrt().tolist()
            bound = self.error * (1 + 2 * (20 / m) ** 0.5 + 2 * 20 / m) ** 0.5
            sys.stdout.write(f"reading {reading}: error {right:.4f}, if early {early:.4f}, m={m}\n")
            assert right <= bound, (reading, right)
            if self.error < 0.01:
                assert early >= 2 * right, (reading, right, early)


async def compare(
    ask: Any,
    probes: list[LoadedProbe],
    reference: Reference,
    prompts: Sequence[list[int]],
    *,
    keep: Callable[[CompletionOutput], Sequence[int]] = lambda output: output.token_ids[:-1],
    **params: Any,
) -> Comparison:
    """Sample one completion with every probe of a reading at once, and compare their scores."""
    answers = await asyncio.gather(
        *(
            ask(prompts[index % len(prompts)], probe=index, k=1, seed=index, **params)
            for index in range(READINGS * DIRECTIONS)
        )
    )
    comparison = Comparison(probes)
    for index, answer in enumerate(answers):
        kept = keep(answer.answers[0])
        right, early = reference.embed(answer.prompt_ids, kept, probes[index])
        comparison.add(index, answer.result["scores"][0], right, early)
    return comparison


QUESTIONS = (
    "Write a Python function `add(a, b)` that returns the sum of a and b.",
    "What is the capital of France?",
    "Name three colours.",
)


async def test_short_prompts_in_one_batch(
    ask: Any, probes: list[LoadedProbe], reference: Reference, chat_ids: ChatIds
) -> None:
    """80 requests at once, each with its own probe: 5 readings of 3 layers in one batch."""
    prompts = [chat_ids(question) for question in QUESTIONS]
    (await compare(ask, probes, reference, prompts, max_tokens=20)).check()


async def test_prompts_read_in_chunks_and_from_the_cache(
    ask: Any, probes: list[LoadedProbe], reference: Reference, chat_ids: ChatIds
) -> None:
    """A prompt of over twice the 256 tokens of a step, by 80 requests that share its prefix."""
    prompt = chat_ids("Summarise: " + "The quick brown fox jumps over the lazy dog. " * 60)
    assert len(prompt) > 2 * 256
    (await compare(ask, probes, reference, [prompt], max_tokens=12)).check()


async def test_text_that_repeats_itself(
    ask: Any,
    probes: list[LoadedProbe],
    reference: Reference,
    chat_ids: ChatIds,
    request: pytest.FixtureRequest,
) -> None:
    """With --speculative drafts are accepted and rejected here: positions are computed twice."""
    name = "vllm:spec_decode_num_accepted_tokens_total"
    drafted = "vllm:spec_decode_num_draft_tokens_total"
    before = (read_counter(name), read_counter(drafted))
    prompts = [chat_ids("Repeat these words: red green blue red green blue red green blue red")]
    (await compare(ask, probes, reference, prompts, max_tokens=32, temperature=0.2)).check()
    if request.config.getoption("--speculative"):
        accepted = read_counter(name) - before[0]
        assert 0 < accepted < read_counter(drafted) - before[1]


async def test_stop_strings_score_the_kept_text(
    ask: Any,
    engine: RerankingLLM,
    probes: list[LoadedProbe],
    reference: Reference,
    chat_ids: ChatIds,
) -> None:
    """The kept tokens are found anew here, by trying every length."""
    tokenizer = engine.get_tokenizer()
    stopped = 0

    def keep(output: CompletionOutput) -> Sequence[int]:
        nonlocal stopped
        ids = list(output.token_ids)
        if not isinstance(output.stop_reason, str):
            return ids[:-1]
        stopped += 1
        fits = (n for n in range(len(ids)) if len(tokenizer.decode(ids[:n])) >= len(output.text))
        return ids[: next(fits, len(ids) - 1)]

    prompts = [chat_ids(question) for question in QUESTIONS]
    found = await compare(
        ask, probes, reference, prompts, keep=keep, max_tokens=40, stop=[",", "an", "on"]
    )
    found.check()
    assert stopped > 40


async def test_length_cuts_and_empty_completions(
    ask: Any, probes: list[LoadedProbe], reference: Reference, chat_ids: ChatIds
) -> None:
    """One token: its state is never computed, so the prompt's last token is what is scored."""
    prompts = [chat_ids(question) for question in QUESTIONS]
    (await compare(ask, probes, reference, prompts, max_tokens=1)).check()
    (await compare(ask, probes, reference, prompts, max_tokens=9, ignore_eos=True)).check()


async def test_preempted_candidates(
    ask: Any,
    engine: RerankingLLM,
    probes: list[LoadedProbe],
    reference: Reference,
    chat_ids: ChatIds,
) -> None:
    """80 candidates of 4 blocks each fight for 80 blocks, and are computed again."""
    before = read_counter("vllm:num_preemptions_total")
    prompts = [chat_ids(question) for question in QUESTIONS]
    found = await compare(
        ask, probes, reference, prompts, max_tokens=80, min_tokens=60, temperature=1.0
    )
    found.check()
    assert read_counter("vllm:num_preemptions_total") > before


def read_counter(name: str) -> float:
    """Return the value of one of vLLM's Prometheus counters."""
    from prometheus_client import REGISTRY

    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    )


@pytest.mark.parametrize("reading", range(READINGS))
async def test_rank_correlation_within_prompts(
    ask: Any, probes: list[LoadedProbe], reference: Reference, chat_ids: ChatIds, reading: int
) -> None:
    """16 concurrent candidates of each of 3 prompts, all of them returned, by one probe."""
    probe = reading * DIRECTIONS
    answers = await asyncio.gather(
        *(
            ask(chat_ids(question), probe=probe, k=16, n=16, temperature=1.2, max_tokens=30)
            for question in QUESTIONS
        )
    )
    ours: list[float] = []
    theirs: list[float] = []
    for answer in answers:
        expected = [
            dot(
                probes[probe].probe,
                reference.embed(answer.prompt_ids, output.token_ids[:-1], probes[probe])[0],
            )
            for output in answer.candidates
        ]
        mean = sum(expected) / len(expected)
        ours += [score - mean for score in answer.result["scores"]]
        theirs += [score - mean for score in expected]
    assert spearmanr(ours, theirs).statistic >= 0.99
