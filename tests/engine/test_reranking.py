"""What a reranked request answers, on the real engine."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineGenerateError

from qprobe_server.rerank import current_rerank
from qprobe_server.vllm_backend.engine import RerankingLLM

ChatIds = Callable[[str], list[int]]
QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."


@pytest.fixture(scope="module")
def prompt(chat_ids: ChatIds) -> list[int]:
    return chat_ids(QUESTION)


async def sample_bare(engine: RerankingLLM, prompt: list[int], **fields: Any) -> RequestOutput:
    params = SamplingParams(
        output_kind=RequestOutputKind.FINAL_ONLY,
        **{"temperature": 0.8, "top_p": 0.95, "max_tokens": 24, **fields},
    )
    wrapped = {"type": "token", "prompt_token_ids": prompt}
    outputs = [each async for each in engine.generate(wrapped, params, "bare")]
    return outputs[-1]


async def test_one_candidate_is_the_base_model(
    ask: Any, engine: RerankingLLM, prompt: list[int]
) -> None:
    """Text, tokens, logprobs and finish reason of k = 1 are those of vLLM for the same seed."""
    for seed in range(4):
        fields = {"seed": seed, "logprobs": 2, "stop": ["return"], "max_tokens": 40}
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
    first, second, other = [
        await ask(prompt, k=8, seed=seed, beta=0.5, temperature=1.2) for seed in (3, 3, 4)
    ]
    assert first.answers[0].text == second.answers[0].text
    assert first.result == second.result
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
    reply = answer.rerank.reply()
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
        await sample_bare(engine, prompt, extra_args={"qprobe": ["x", 99]})


async def test_bare_requests_are_not_scored(engine: RerankingLLM, prompt: list[int]) -> None:
    assert current_rerank.get() is None
    running = asyncio.create_task(sample_bare(engine, prompt, n=4, max_tokens=60))
    held = []
    while not running.done():
        held.append(await engine.num_held_candidates())
    assert len(held) > 3
    assert set(held) == {0}


async def test_a_failing_candidate_fails_the_request_and_leaves_nothing(
    ask: Any, engine: RerankingLLM
) -> None:
    with pytest.raises((VLLMValidationError, EngineGenerateError, ValueError)):
        await ask([1] * 5000)  # longer than the model's context
    await asyncio.sleep(0.5)
    assert await engine.num_held_candidates() == 0
