"""Parity, law, early rejection and lifecycle on vLLM's V2 runner, in few and slow steps.

That it is right on this runner; tests/engine has the same on V1 in full.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY
from transformers import LlamaForCausalLM

from qprobe import Probe, Terms
from qprobe.probe.schedule import Step
from qprobe_server.library.registry import LoadedProbe, ServedProbe
from qprobe_server.vllm_backend.client.engine import RerankingLLM

# As in conftest.py.
VOCABULARY = 512
CHECKPOINT = 3


def make_prompt(number: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()


class Reference:
    """Plain transformers in float32."""

    def __init__(self, folder: Path) -> None:
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.inference_mode()
    def score(self, prompt: list[int], answer: list[int], probe: Probe) -> float:
        """Score an answer that was cut by max_tokens: its last token was never read."""
        (term,) = probe.terms.states
        reading = term.reading
        found = self._model(torch.tensor([prompt + answer]), output_hidden_states=True)
        states = found.hidden_states[-1 if reading.layer == "final" else int(reading.layer)][0]
        kept = states[len(prompt) : len(prompt) + len(answer) - 1]
        if reading.window is not None:
            kept = kept[: reading.window]
        read = kept[-1] if reading.pooling == "last" else kept.mean(0)
        return float(read.numpy() @ term.weight) + probe.terms.bias

    @torch.inference_mode()
    def score_sum(self, prompt: list[int], answer: list[int], terms: Terms, kept: int) -> float:
        """Score the first kept tokens of an answer that was cut by several terms.

        All of its tokens have log-probabilities, also the last, but in its beginning.
        """
        found = self._model(torch.tensor([prompt + answer]), output_hidden_states=True)
        score = terms.bias
        for state in terms.states:
            states = found.hidden_states[int(state.reading.layer)][0]
            score += float(states[len(prompt) + kept - 1].numpy() @ state.weight)
        for gate in terms.gates:
            states = found.hidden_states[int(gate.layer)][0, len(prompt) : len(prompt) + kept]
            opened = torch.sigmoid(states @ torch.from_numpy(gate.gate))
            values = states @ torch.from_numpy(gate.value)
            score += float((opened * values).sum() / opened.sum())
        length = len(answer) if kept == len(answer) - 1 else kept
        logs = torch.log_softmax(found.logits[0, len(prompt) - 1 : -1], -1)
        total = float(logs[torch.arange(length), answer[:length]].sum())
        numbers = {"total_logprob": total, "length": length, "cut": 1}
        return score + sum(weight * numbers[name] for name, weight in terms.numbers.items())

    @torch.inference_mode()
    def score_head(self, prompt: list[int], answer: list[int], probe: Probe) -> float:
        """Score the first CHECKPOINT tokens by a probe's head."""
        head = probe.heads[CHECKPOINT]
        found = self._model(torch.tensor([prompt + answer]), output_hidden_states=True)
        kept = found.hidden_states[-1][0, len(prompt) : len(prompt) + CHECKPOINT]
        return float(kept.mean(0).numpy() @ head.states[0].weight) + head.bias


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)


def read_preemptions() -> float:
    """Return vLLM's own count."""
    values = [
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:num_preemptions_total"
    ]
    return sum(values)


async def settle(engine: RerankingLLM) -> int:
    for _ in range(600):
        held = await engine.num_held_candidates()
        if not held:
            break
        await asyncio.sleep(0.1)
    return held


async def test_scores_are_those_of_transformers(
    ask: Any, probes: list[LoadedProbe], reference: Reference
) -> None:
    """Of every reading; two of the prompts are longer than what a step reads, one shares blocks.

    Scores are sums of 64 products of numbers around 1: float32 in another order rounds them by less
    than 1e-3, and a position too early or late changes them by some 1.
    """
    long = make_prompt(0, 50)
    prompts = [make_prompt(1, 9), long, long[:32] + make_prompt(2, 12), make_prompt(3, 1)]
    found = await asyncio.gather(
        *(ask(prompts[number], probe=number, k=2, n=2, max_tokens=6, seed=5) for number in range(4))
    )
    for number, (answers, result) in enumerate(found):
        by_candidate = dict(zip(result["selected"], answers, strict=True))
        assert len({tuple(each) for each in answers}) == 2
        for candidate, score in enumerate(result["scores"]):
            expected = reference.score(
                prompts[number], by_candidate[candidate], probes[number].probe
            )
            assert score == pytest.approx(expected, abs=1e-3)
        weights = torch.softmax(torch.tensor(result["scores"], dtype=torch.float64), 0)
        assert result["weights"] == pytest.approx(weights.tolist())


async def test_preempted_candidates_are_scored_as_if_they_had_never_stopped(
    ask: Any, probes: list[LoadedProbe], reference: Reference
) -> None:
    """Twelve that grow from one to two blocks of 32 tokens each in a cache of 18.

    V2 is told of a preempted request as of a new one.
    """
    before = read_preemptions()
    prompt = make_prompt(4, 17)
    running = asyncio.gather(
        *(
            ask([*prompt, number + 2], probe=3, k=1, max_tokens=30, seed=number)
            for number in range(12)
        )
    )
    found = await running
    for number, ((answer,), result) in enumerate(found):
        expected = reference.score([*prompt, number + 2], answer, probes[3].probe)
        assert result["scores"][0] == pytest.approx(expected, abs=1e-3)
    assert read_preemptions() > before


async def test_who_leaves_is_told_by_the_heads(
    ask: Any, probes: list[LoadedProbe], reference: Reference
) -> None:
    prompt = make_prompt(5, 8)
    _, whole = await ask(prompt, probe=3, k=6, max_tokens=8, seed=2, n=1)
    answers, result = await ask(
        prompt, probe=3, k=6, n=2, max_tokens=8, seed=2, schedule=(Step(CHECKPOINT, 2),)
    )
    assert whole["scores"]
    left = [index for index, at in enumerate(result["rejected_at"]) if at is None]
    assert sorted(left) == sorted(result["selected"])
    heads = [scores[CHECKPOINT] for scores in result["checkpoint_scores"]]
    assert sorted(left) == sorted(sorted(range(6), key=lambda index: -heads[index])[:2])
    for index, answer in zip(result["selected"], answers, strict=True):
        expected = reference.score_head(prompt, answer, probes[3].probe)
        assert heads[index] == pytest.approx(expected, abs=1e-3)


async def test_several_terms_are_added_up(
    ask: Any, probes: list[LoadedProbe], reference: Reference
) -> None:
    """A state, a gate and numbers with log-probabilities, of whole answers and at a checkpoint."""
    prompt = make_prompt(7, 9)
    probe = probes[4].probe
    answers, result = await ask(
        prompt, probe=4, k=4, n=2, max_tokens=6, seed=3, schedule=(Step(CHECKPOINT, 2),)
    )
    for index, answer in zip(result["selected"], answers, strict=True):
        expected = reference.score_sum(prompt, answer, probe.terms, len(answer) - 1)
        assert result["scores"][index] == pytest.approx(expected, abs=5e-3)
        expected = reference.score_sum(prompt, answer, probe.heads[CHECKPOINT], CHECKPOINT)
        scores = result["checkpoint_scores"][index]
        assert scores[CHECKPOINT] == pytest.approx(expected, abs=5e-3)


async def test_a_replaced_probe_and_requests_that_leave(
    ask: Any, engine: RerankingLLM, served: list[ServedProbe], probes: list[LoadedProbe]
) -> None:
    prompt = make_prompt(6, 8)
    leaving = [asyncio.create_task(ask(prompt, probe=0, k=4, max_tokens=200)) for _ in range(3)]
    await asyncio.sleep(4)
    for each in leaving:
        each.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    probe = probes[0].probe
    shifted = Probe(probe.info, replace(probe.terms, bias=probe.terms.bias + 1000))
    await engine.load_probes([(served[0], shifted)])
    _, result = await ask(prompt, probe=0, k=2, max_tokens=2, seed=1)
    await engine.load_probes([(served[0], probes[0].probe)])
    _, before = await ask(prompt, probe=0, k=2, max_tokens=2, seed=1)
    for new, old in zip(result["scores"], before["scores"], strict=True):
        assert new - old == pytest.approx(1000, abs=0.01)
    assert await settle(engine) == 0
