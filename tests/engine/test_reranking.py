"""What a reranked request answers, on the real engine."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineGenerateError

from qprobe import Probe
from qprobe_server.choice.rerank import current_rerank
from qprobe_server.library.registry import LoadedProbe, ServedProbe
from qprobe_server.library.sums import ServedSum
from qprobe_server.vllm_backend.client.engine import RerankingLLM

ChatIds = Callable[[str], list[int]]
QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."


@pytest.fixture(scope="module")
def prompt(chat_ids: ChatIds) -> list[int]:
    return chat_ids(QUESTION)


async def sample_bare(engine: RerankingLLM, prompt: list[int], **fields: Any) -> RequestOutput:
    params = SamplingParams(
        output_kind=RequestOutputKind.FINAL_ONLY,
        **{"temperature": 0.8, "max_tokens": 24, **fields},
    )
    wrapped = {"type": "token", "prompt_token_ids": prompt}
    outputs = [each async for each in engine.generate(wrapped, params, "bare")]
    return outputs[-1]


async def test_one_candidate_is_the_base_model(
    ask: Any, engine: RerankingLLM, prompt: list[int]
) -> None:
    """Text, tokens, logprobs and finish reason of k = 1 are those of vLLM for the same seed."""
    for seed in range(4):
        fields = {"seed": seed, "logprobs": 2, "stop": ["return"], "max_tokens": 40, "top_p": 0.9}
        bare = (await sample_bare(engine, prompt, **fields)).outputs[0]
        ours = (await ask(prompt, k=1, **fields)).answers[0]
        assert (ours.text, list(ours.token_ids)) == (bare.text, list(bare.token_ids))
        assert (ours.finish_reason, ours.stop_reason) == (bare.finish_reason, bare.stop_reason)
        assert ours.logprobs == bare.logprobs


async def test_the_candidates_are_those_of_vllm_for_n(
    ask: Any, engine: RerankingLLM, prompt: list[int]
) -> None:
    """Candidate i is sampled as answer i of n = k is, with the same seed."""
    bare = await sample_bare(engine, prompt, n=4, seed=7)
    ours = await ask(prompt, k=4, n=4, seed=7)
    assert [each.text for each in ours.candidates] == [each.text for each in bare.outputs]


async def test_the_same_seed_gives_the_same_answer(ask: Any, prompt: list[int]) -> None:
    """The candidates come to the engine one by one, so that its batches may round another way."""
    first, second, other = [
        await ask(prompt, k=8, seed=seed, beta=0.5, temperature=1.2) for seed in (3, 3, 4)
    ]
    assert first.answers[0].text == second.answers[0].text
    for name, value in first.result.items():
        is_real = name in ("scores", "weights", "kl", "beta")
        assert second.result[name] == (pytest.approx(value, abs=1e-4) if is_real else value)
    assert first.result["scores"] != other.result["scores"]


async def test_beta_zero_is_always_the_argmax(ask: Any, prompt: list[int]) -> None:
    answers = await asyncio.gather(
        *(ask(prompt, k=4, beta=0.0, probe=index % 80, max_tokens=12) for index in range(20))
    )
    for answer in answers:
        scores = answer.result["scores"]
        assert scores[answer.result["selected"][0]] == max(scores)
        assert math.isclose(sum(answer.result["weights"]), 1)


async def test_the_answer_is_the_candidate_selected(ask: Any, prompt: list[int]) -> None:
    answer = await ask(prompt, k=6, n=2, return_candidates=True)
    shown = [answer.result["candidates"][index]["text"] for index in answer.result["selected"]]
    assert [each.text for each in answer.answers] == shown
    assert [each.index for each in answer.answers] == [0, 1]
    counts = [each["num_tokens"] for each in answer.result["candidates"]]
    assert answer.result["sampled_tokens"] == sum(counts)


async def test_a_stream_replays_the_winners_own_deltas(ask: Any, prompt: list[int]) -> None:
    whole = await ask(prompt, k=4, n=2, seed=11, logprobs=1)
    streamed = await ask(prompt, k=4, n=2, seed=11, logprobs=1, stream=True)
    assert streamed.result["selected"] == whole.result["selected"]
    for index, answer in enumerate(whole.answers):
        deltas = [
            output.outputs[0] for output in streamed.outputs if output.outputs[0].index == index
        ]
        assert len(deltas) > 3
        assert "".join(each.text for each in deltas) == answer.text
        assert [token for each in deltas for token in each.token_ids] == list(answer.token_ids)
        assert [entry for each in deltas for entry in each.logprobs or []] == answer.logprobs
        assert [each.finish_reason for each in deltas][-1] == answer.finish_reason
        assert {each.finish_reason for each in deltas[:-1]} == {None}
    assert [output.finished for output in streamed.outputs][-1]
    assert not any(output.finished for output in streamed.outputs[:-1])


async def test_temperature_zero_is_one_greedy_candidate(
    ask: Any, engine: RerankingLLM, prompt: list[int]
) -> None:
    answer = await ask(prompt, k=8, temperature=0.0)
    bare = await sample_bare(engine, prompt, temperature=0.0)
    assert answer.answers[0].text == bare.outputs[0].text
    reply = json.loads(answer.rerank.reply_json())
    assert (reply["k"], len(answer.result["scores"])) == (1, 1)
    assert "greedy" in reply["notice"]


async def test_structured_output_holds_for_every_candidate(ask: Any, prompt: list[int]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    answer = await ask(
        prompt, k=4, n=4, structured_outputs=StructuredOutputsParams(choice=["yes", "no"])
    )
    assert {each.text for each in answer.answers} <= {"yes", "no"}


async def test_more_answers_than_candidates_are_refused(ask: Any, prompt: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="n: 3 answers"):
        await ask(prompt, k=2, n=3)


async def test_the_workers_argument_is_reserved(engine: RerankingLLM, prompt: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="reserved"):
        await sample_bare(engine, prompt, extra_args={"qprobe": ["x", [99]]})


async def test_bare_requests_are_not_scored(engine: RerankingLLM, prompt: list[int]) -> None:
    assert current_rerank.get() is None
    running = asyncio.create_task(sample_bare(engine, prompt, n=4, max_tokens=60))
    held = []
    while not running.done():
        held.append(await engine.num_held_candidates())
    assert len(held) > 3
    assert set(held) == {0}


async def test_a_failing_candidate_fails_the_request_and_leaves_nothing(
    ask: Any, until_held: Any
) -> None:
    with pytest.raises((VLLMValidationError, EngineGenerateError, ValueError)):
        await ask([1] * 5000)  # longer than the model's context
    await until_held(0)


async def test_a_mix_is_the_weighted_sum_of_its_probes(ask: Any, prompt: list[int]) -> None:
    """Of other layers and poolings, from the same samples: rounding apart, which fp32 bounds.

    Batches are alike, so the states are: the scores differ by the order of a sum of two floats.
    """
    mix = {3: 0.5, 20: -2.0, 40: 1.0, 70: 1.0}
    whole = await ask(prompt, probe=mix, k=4, seed=5)
    parts = {index: (await ask(prompt, probe=index, k=4, seed=5)).result["scores"] for index in mix}
    for candidate, score in enumerate(whole.result["scores"]):
        expected = sum(weight * parts[index][candidate] for index, weight in mix.items())
        assert score == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in whole.result["scores"]}) > 1


async def test_a_target_kl_is_spent(ask: Any, prompt: list[int]) -> None:
    for target in (0.2, 1.0):
        result = (await ask(prompt, k=8, seed=6, temperature=1.2, target_kl=target)).result
        assert result["kl"] == pytest.approx(target, abs=1e-9)
        logits = [score / result["beta"] for score in result["scores"]]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        assert [each / sum(weights) for each in weights] == pytest.approx(result["weights"])
    result = (await ask(prompt, k=4, seed=6, target_kl=0.0)).result
    assert (result["beta"], result["kl"]) == (None, pytest.approx(0))


async def test_token_scores_make_the_score(ask: Any, prompt: list[int]) -> None:
    """By pooling: the mean, that of the first 8, the last."""
    for probe, pick in ((0, slice(None)), (40, slice(8)), (20, slice(-1, None))):
        answer = await ask(prompt, probe=probe, k=3, seed=4, return_token_scores=True)
        for score, shown in zip(answer.result["scores"], answer.result["candidates"], strict=True):
            each = shown["token_scores"][pick]
            assert score == pytest.approx(sum(each) / len(each), abs=1e-5)
            assert len(shown["token_scores"]) == len(shown["tokens"]) == shown["num_tokens"] - 1
            # Up to a character of several tokens, which shows as U+FFFD in each.
            begun = "".join(shown["tokens"]).split("�")[0].strip()
            assert shown["text"].strip().startswith(begun[:5])


async def test_a_probe_can_be_loaded_while_others_are_used(
    ask: Any, engine: RerankingLLM, probes: list[LoadedProbe], prompt: list[int]
) -> None:
    """A thousand more, one by one and in bulk: scores of running requests stay what they were."""
    before = await ask(prompt, k=4, seed=9, max_tokens=60)
    running = asyncio.create_task(ask(prompt, k=4, seed=9, max_tokens=60))

    def place(loaded: LoadedProbe, index: int) -> tuple[ServedProbe, Probe]:
        score = ServedSum.of(loaded.probe.terms, [index])
        served = ServedProbe(loaded.name, loaded.version, 0, loaded.probe.info, score, None, {})
        return served, loaded.probe

    first = 10_000  # beyond all that are there
    for index in range(first, first + 8):
        await engine.load_probes([place(probes[1], index)])
    await engine.load_probes([place(probes[2], first + 8 + i) for i in range(1000)])
    after = (await running).result
    assert after["selected"] == before.result["selected"]
    # Loading changes when steps come, hence their batches, and with these the rounding.
    assert after["scores"] == pytest.approx(before.result["scores"], abs=1e-3)


async def test_the_metrics_count_what_was_done(
    ask: Any, engine: RerankingLLM, prompt: list[int], probes: list[LoadedProbe], until_held: Any
) -> None:
    label = engine.metrics.label([probes[7].name])  # may be "other" by now

    def read(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"probe": label, **labels}) or 0.0

    names = ("qprobe_sampled_tokens_total", "qprobe_rejected_tokens_total")
    before = [read(name) for name in names]
    ok = read("qprobe_prompts_total", outcome="ok")
    answer = await ask(prompt, probe=7, k=4, n=2, max_tokens=8)
    returned = sum(len(each.token_ids) for each in answer.answers)
    sampled = answer.result["sampled_tokens"]
    assert [read(name) for name in names] == [before[0] + sampled, before[1] + sampled - returned]
    assert read("qprobe_prompts_total", outcome="ok") == ok + 1
    assert read("qprobe_candidates_bucket", le="4.0") >= 1
    cancelled = read("qprobe_prompts_total", outcome="cancelled")
    request = asyncio.create_task(ask(prompt, probe=7, k=2, max_tokens=500, ignore_eos=True))
    await until_held(2)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert read("qprobe_prompts_total", outcome="cancelled") == cancelled + 1
