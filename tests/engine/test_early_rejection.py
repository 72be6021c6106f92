"""Candidates that are dropped while they are written, on the real engine.

The heads of the probe HEADED have the weights of other loaded probes, which score whole candidates
in a request without a schedule: they are the reference for every checkpoint.

A step of the engine rounds by the batch that it computes, and an abort changes the batch: once in a
while a candidate samples another token than it did before. Such pairs of runs are told by their
texts and compare nothing; the tests bound how many there are.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from vllm.exceptions import VLLMValidationError

from qprobe.probe.schedule import Step
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.mail import Scores

# As in conftest.py.
HEADS = {4: 80, 8: 32, 16: 81}
HEADED = 82

ChatIds = Callable[[str], list[int]]
QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."
SCHEDULE = (Step(4, 6), Step(8, 4), Step(16, 2))
K = 8


@pytest.fixture(scope="module")
def prompt(chat_ids: ChatIds) -> list[int]:
    return chat_ids(QUESTION)


def follow(
    heads: dict[int, list[float]], schedule: tuple[Step, ...], num_candidates: int
) -> list[int | None]:
    """Return at which checkpoint each candidate leaves, from scores of whole candidates."""
    left = list(range(num_candidates))
    rejected_at: list[int | None] = [None] * num_candidates
    for step in schedule:
        best = sorted(left, key=lambda i: -heads[step.tokens][i])[: step.keep]
        for index in set(left) - set(best):
            rejected_at[index] = step.tokens
        left = [index for index in left if index in best]
    return rejected_at


def agree(one: Any, other: Any) -> bool:
    """Whether the candidates of two runs have the same texts, as far as both were written."""
    return all(
        a["text"].startswith(b["text"]) or b["text"].startswith(a["text"])
        for a, b in zip(one.result["candidates"], other.result["candidates"], strict=True)
    )


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 48},
        {"max_tokens": 3},
        {"max_tokens": 12, "min_tokens": 12},
        {"max_tokens": 48, "stop": [" a", "\n"]},
        {"max_tokens": 40, "temperature": 1.5, "top_p": 0.9},
    ],
)
async def test_who_leaves_is_told_by_the_heads_of_whole_candidates(
    ask: Any, prompt: list[int], params: dict[str, Any]
) -> None:
    num_compared = 0
    for seed in range(3):
        whole = {
            tokens: await ask(prompt, k=K, n=K, seed=seed, probe=index, **params)
            for tokens, index in HEADS.items()
        }
        heads = {tokens: answer.result["scores"] for tokens, answer in whole.items()}
        shown: dict[str, Any] = {"probe": HEADED, "return_candidates": True, **params}
        full = await ask(prompt, k=K, n=K, seed=seed, **shown)
        lengths = [len(each.token_ids) for each in full.candidates]
        found = await ask(prompt, k=K, seed=seed, schedule=SCHEDULE, **shown)
        if not agree(found, full):
            continue
        num_compared += 1
        result = found.result
        assert result["rejected_at"] == follow(heads, SCHEDULE, K)
        for index, (at, scores) in enumerate(
            zip(result["rejected_at"], result["checkpoint_scores"], strict=True)
        ):
            seen = [step.tokens for step in SCHEDULE if at is None or step.tokens <= at]
            assert list(scores) == seen
            for tokens, score in scores.items():
                assert score == pytest.approx(heads[tokens][index], abs=2e-3)
            if at is None:
                assert result["scores"][index] == pytest.approx(
                    full.result["scores"][index], abs=2e-3
                )
                assert result["num_tokens"][index] == lengths[index]
            else:
                assert result["scores"][index] is None
                assert result["weights"][index] == 0
                assert min(lengths[index], at + 1) <= result["num_tokens"][index]
                # One more where the engine was a step ahead of what it had told.
                assert result["num_tokens"][index] <= lengths[index] + 1
        (chosen,) = result["selected"]
        assert result["rejected_at"][chosen] is None
        assert found.answers[0].text == full.candidates[chosen].text
        assert result["kl"] is None
        assert sum(result["weights"]) == pytest.approx(1)
        assert result["sampled_tokens"] == sum(result["num_tokens"])
    assert num_compared > 0


async def test_dropped_candidates_stop_soon(ask: Any, prompt: list[int]) -> None:
    """They end within a few tokens of their checkpoint, and far before they would have."""
    params = {"max_tokens": 100, "min_tokens": 100}
    found = await ask(prompt, k=K, seed=1, probe=HEADED, schedule=SCHEDULE, **params)
    pairs = zip(found.result["rejected_at"], found.result["num_tokens"], strict=True)
    late = [length - at - 1 for at, length in pairs if at is not None]
    assert len(late) == K - 2
    assert all(0 <= each <= 8 for each in late), late


async def test_heads_are_scored_until_their_checkpoint(
    ask: Any, engine: RerankingLLM, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a few tokens more, which the engine reads before it hears of the decision."""
    expected: list[Scores] = []
    expect = engine.inbox.expect

    def note(key: str) -> Scores:
        expected.append(expect(key))
        return expected[-1]

    monkeypatch.setattr(engine.inbox, "expect", note)
    found = await ask(
        prompt,
        k=K,
        seed=1,
        probe=HEADED,
        schedule=SCHEDULE,
        return_candidates=True,
        return_token_scores=True,
        max_tokens=48,
        min_tokens=48,
    )
    left = [index for index, at in enumerate(found.result["rejected_at"]) if at is None]
    assert len(left) == 2
    for index in left:
        whole, *heads = expected[index].tokens or []
        assert np.isfinite(whole).all()
        assert whole.size == 48  # the prompt's end, and all but the last token, which is not read
        for tokens, scores in zip(HEADS, heads, strict=True):
            assert np.isfinite(scores).all()
            assert tokens < scores.size <= tokens + 8


async def test_a_stream_is_the_winners(ask: Any, prompt: list[int]) -> None:
    asked: dict[str, Any] = {
        "k": K,
        "seed": 5,
        "probe": HEADED,
        "schedule": SCHEDULE,
        "return_candidates": True,
    }
    whole = await ask(prompt, **asked, max_tokens=40)
    parts = await ask(prompt, **asked, max_tokens=40, stream=True)
    (chosen,) = parts.result["selected"]
    assert parts.result["rejected_at"][chosen] is None
    text = "".join(output.outputs[0].text for output in parts.outputs)
    assert text == parts.result["candidates"][chosen]["text"]
    assert [output.finished for output in parts.outputs] == [False] * (len(parts.outputs) - 1) + [
        True
    ]
    if agree(parts, whole):
        assert parts.result["rejected_at"] == whole.result["rejected_at"]
        assert parts.result["selected"] == whole.result["selected"]


async def test_as_many_are_kept_as_are_asked_for(ask: Any, prompt: list[int]) -> None:
    found = await ask(prompt, k=K, n=3, seed=2, probe=HEADED, schedule=(Step(4, 5), Step(8, 1)))
    assert found.result["rejected_at"].count(None) == 3
    assert sorted(found.result["selected"]) == [
        index for index, at in enumerate(found.result["rejected_at"]) if at is None
    ]
    with pytest.raises(VLLMValidationError, match="n: 9"):
        await ask(prompt, k=K, n=9, probe=HEADED, schedule=SCHEDULE)


async def test_a_step_that_nobody_leaves_at_costs_nothing(ask: Any, prompt: list[int]) -> None:
    found = await ask(prompt, k=4, seed=2, probe=HEADED, schedule=(Step(4, 6), Step(8, 4)))
    assert found.result["rejected_at"] == [None] * 4
    assert found.result["checkpoint_scores"] == [{}] * 4
    assert found.result["kl"] is not None
    greedy = await ask(prompt, k=K, temperature=0.0, probe=HEADED, schedule=SCHEDULE)
    assert greedy.result["rejected_at"] == [None]


async def test_a_mix_leaves_by_the_weighted_heads(ask: Any, prompt: list[int]) -> None:
    """A mix of one probe with weight -2 scores by -2 times its head."""
    asked: dict[str, Any] = {"k": K, "seed": 4, "return_candidates": True}
    one = await ask(prompt, **asked, probe=HEADED, schedule=SCHEDULE)
    same = await ask(prompt, **asked, probe={HEADED: -2.0}, schedule=(Step(8, 1),))
    scores = [each[8] for each in same.result["checkpoint_scores"]]
    for index, each in enumerate(one.result["checkpoint_scores"]):
        if 8 in each and agree(one, same):
            assert scores[index] == pytest.approx(-2 * each[8], abs=2e-3)
    assert same.result["rejected_at"][scores.index(max(scores))] is None


async def test_dropped_candidates_can_be_shown(ask: Any, prompt: list[int]) -> None:
    asked: dict[str, Any] = {"k": K, "seed": 3, "probe": HEADED, "return_token_scores": True}
    found = await ask(prompt, **asked, schedule=SCHEDULE, max_tokens=40)
    full = await ask(prompt, **asked, max_tokens=40)
    assert len(found.result["candidates"]) == K
    num_compared = 0
    for index, shown in enumerate(found.result["candidates"]):
        whole = full.result["candidates"][index]
        at = found.result["rejected_at"][index]
        if not whole["text"].startswith(shown["text"]):
            continue
        num_compared += 1
        count = len(shown["token_scores"])
        assert count == (len(whole["token_scores"]) if at is None else min(at, whole["num_tokens"]))
        assert shown["token_scores"] == pytest.approx(whole["token_scores"][:count], abs=2e-2)
    assert num_compared > K / 2


async def test_structured_output_holds_for_the_survivors(ask: Any, prompt: list[int]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    params = StructuredOutputsParams(regex=r"[ab]{20}")
    found = await ask(
        prompt, k=K, n=2, probe=HEADED, schedule=SCHEDULE, structured_outputs=params, max_tokens=60
    )
    for answer in found.answers:
        assert set(answer.text) <= set("ab")
        assert len(answer.text) == 20


async def test_the_same_request_leaves_the_same_under_load(
    ask: Any, engine: RerankingLLM, chat_ids: ChatIds
) -> None:
    """Beside 16 others, who leaves and what is answered is what it was alone.

    Preemption is part of it: the engine's cache holds less than all of them together.
    """
    prompts = [chat_ids(f"{QUESTION} Then tell me about the number {i}.") for i in range(4)]
    asked: dict[str, Any] = {
        "k": K,
        "probe": HEADED,
        "schedule": SCHEDULE,
        "max_tokens": 40,
        "return_candidates": True,
    }
    alone = [await ask(prompt, **asked, seed=i) for i, prompt in enumerate(prompts)]
    others = [
        asyncio.create_task(ask(prompts[i % 4], **asked, seed=100 + i, stream=i % 2 == 0))
        for i in range(16)
    ]
    busy = await asyncio.gather(*(ask(prompt, **asked, seed=i) for i, prompt in enumerate(prompts)))
    await asyncio.gather(*others)
    same = [
        (before, after) for before, after in zip(alone, busy, strict=True) if agree(before, after)
    ]
    assert len(same) >= len(prompts) / 2
    for before, after in same:
        assert after.result["rejected_at"] == before.result["rejected_at"]
        assert after.answers[0].text == before.answers[0].text
    assert await engine.num_held_candidates() == 0


@pytest.mark.parametrize("num_requests", [240, pytest.param(1000, marks=pytest.mark.heavy)])
async def test_many_requests_that_end_in_every_way(
    ask: Any, engine: RerankingLLM, prompt: list[int], num_requests: int
) -> None:
    """Random schedules, lengths and moments of leaving: nothing hangs, and nothing is left."""
    chance = random.Random(0)
    ended = {"answered": 0, "left": 0}

    async def one(number: int) -> None:
        tokens = sorted(chance.sample(list(HEADS), chance.randint(1, 3)))
        keeps = sorted((chance.randint(1, 4) for _ in tokens), reverse=True)
        schedule = tuple(Step(*pair) for pair in zip(tokens, keeps, strict=True))
        task = asyncio.create_task(
            ask(
                prompt,
                k=chance.randint(1, 4),
                seed=number,
                probe=HEADED,
                schedule=schedule,
                stream=chance.random() < 0.5,
                max_tokens=chance.randint(1, 24),
            )
        )
        if chance.random() < 0.4:
            await asyncio.sleep(chance.random() * 0.2)
            task.cancel()
        try:
            await task
            ended["answered"] += 1
        except asyncio.CancelledError:
            ended["left"] += 1

    for start in range(0, num_requests, 20):
        await asyncio.wait_for(asyncio.gather(*(one(start + i) for i in range(20))), 120)
    assert ended["answered"] + ended["left"] == num_requests
    assert min(ended.values()) > num_requests / 20
    while engine._cleanups:
        await asyncio.wait_for(asyncio.gather(*engine._cleanups), 60)
    assert await engine.num_held_candidates() == 0
    assert not engine.output_processor.has_unfinished_requests()
