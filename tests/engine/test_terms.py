"""Probes of several terms on the real engine, against plain transformers (fp32) and plain loops.

An engine's state of a token differs from the reference's by a relative error of at most ``error``;
from that follows how far a term may be off, see ``Sum``.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from qprobe import Terms
from qprobe.probe.confidence import Platt
from qprobe.probe.schedule import Step
from qprobe_server.library.registry import LoadedProbe
from qprobe_server.vllm_backend.client.engine import RerankingLLM

ChatIds = Callable[[str], list[int]]
QUESTION = "Write a Python function `add(a, b)` that returns the sum of a and b."
CHECKPOINTS = (4, 8, 16)
# As in test_parity.py.
ERRORS = {"float32": 1e-4, "bfloat16": 0.02}


class Sum(NamedTuple):
    """A score, and how far an engine's may be off.

    By Cauchy and Schwarz a token's w . h is off by at most |w| |h| error, and a mean, a maximum of
    means and a sum of such by no more than the largest of a term. Weights sigmoid(g) are off by a
    factor from e^-d to e^d, d that bound of g, so that a gated mean is off by that of r and by
    (e^2d - 1) times the range of r. A log-probability is off by twice what a logit is. float32
    rounds what is added up by far less.
    """

    value: float
    bound: float


class Read(NamedTuple):
    """What a model makes of a completion: states of each layer (tokens + 1, hidden), the first of
    the prompt's last token; and each token's log-probability."""

    states: list[torch.Tensor]
    logprobs: list[float]
    logprob_bound: float


class Reference:
    """Plain transformers, and the terms by loops."""

    def __init__(self, model_path: Path, error: float) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self._error = error

    @torch.inference_mode()
    def read(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Read:
        found = self._model(
            torch.tensor([[*prompt_ids, *token_ids]]), output_hidden_states=True, use_cache=False
        )
        first = len(prompt_ids) - 1
        states = [each[0, first:].double() for each in found.hidden_states]
        logs = torch.log_softmax(found.logits[0, first:-1].double(), -1)
        logprobs = [float(row[token]) for row, token in zip(logs, token_ids, strict=True)]
        largest = self._model.get_output_embeddings().weight.norm(dim=1).max()
        bound = 2 * self._error * float(largest * states[-1].norm(dim=1).max())
        return Read(states, logprobs, bound)

    def score(
        self, terms: Terms, read: Read, *, num_scored: int, cut: bool, tokens: int | None = None
    ) -> Sum:
        """Score the first so many tokens of a completion, None: all that count."""
        length = len(read.logprobs)
        kept = num_scored
        if tokens is not None:
            cut = cut or length > tokens
            kept = tokens if length > tokens else num_scored
            length = min(length, tokens)
        value, bound = terms.bias, 1e-4
        for state in terms.states:
            layer = state.reading.layer
            states = read.states[-1 if layer == "final" else int(layer)][: kept + 1]
            scores = (states @ torch.from_numpy(state.weight).double()).tolist()
            value += pool_by_loops(scores, state.reading.pooling, state.reading.window)
            bound += self._bound(state.weight, states)
        for gate in terms.gates:
            layer = gate.layer
            states = read.states[-1 if layer == "final" else int(layer)][: kept + 1]
            opened = (states @ torch.from_numpy(gate.gate).double() + gate.gate_bias).tolist()
            values = (states @ torch.from_numpy(gate.value).double() + gate.value_bias).tolist()
            value += gate_by_loops(opened, values, gate.segments)
            off = self._bound(gate.gate, states)
            bound += self._bound(gate.value, states)
            bound += math.expm1(2 * off) * (max(values) - min(values))
        total = math.fsum(read.logprobs[:length])
        numbers = {
            "mean_logprob": total / max(length, 1),
            "total_logprob": total,
            "length": length,
            "log_length": math.log(max(length, 1)),
            "cut": 1 if cut else 0,
        }
        for name, weight in terms.numbers.items():
            value += weight * numbers[name]
            times = {"mean_logprob": 1, "total_logprob": length}.get(name, 0)
            bound += abs(weight) * times * read.logprob_bound
        return Sum(value, bound)

    def _bound(self, weight: Any, states: torch.Tensor) -> float:
        return self._error * float(np.linalg.norm(weight)) * float(states.norm(dim=1).max())


def pool_by_loops(scores: list[float], pooling: str, window: int | None) -> float:
    if len(scores) == 1:
        return scores[0]
    kept = scores[1:]
    if pooling == "last":
        return kept[-1]
    if pooling == "mean":
        kept = kept[:window]
        return sum(kept) / len(kept)
    assert window is not None
    width = min(window, len(kept))
    return max(sum(kept[i : i + width]) / width for i in range(len(kept) - width + 1))


def gate_by_loops(opened: list[float], values: list[float], segments: Sequence[int]) -> float:
    if len(opened) == 1:
        return values[0]
    pairs = list(zip(opened[1:], values[1:], strict=True))
    parts = [[pair] for pair in pairs]
    if segments:
        parts = [pairs[a:b] for a, b in zip([0, *segments], [*segments, len(pairs)], strict=True)]
    above = below = 0.0
    for part in parts:
        if part:
            g, r = (sum(each) / len(part) for each in zip(*part, strict=True))
            weight = len(part) / (1 + math.exp(-g))
            above, below = above + weight * r, below + weight
    return above / below


@pytest.fixture(scope="module")
def reference(small_model: Path, request: pytest.FixtureRequest) -> Reference:
    return Reference(small_model, ERRORS[request.config.getoption("--engine-dtype")])


@pytest.fixture(scope="module")
def by_name(probes: list[LoadedProbe]) -> dict[str, LoadedProbe]:
    return {each.name: each for each in probes}


@pytest.fixture(scope="module")
def prompt(chat_ids: ChatIds) -> list[int]:
    return chat_ids(QUESTION)


def count_scored(output: CompletionOutput, engine: RerankingLLM) -> int:
    """Count the tokens that count, by trying every length where a stop string ended it."""
    ids = list(output.token_ids)
    if not isinstance(output.stop_reason, str):
        return len(ids) - 1
    decode = engine.get_tokenizer().decode
    fits = (n for n in range(len(ids)) if len(decode(ids[:n])) >= len(output.text))
    return next(fits, len(ids) - 1)


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 24},
        {"max_tokens": 40, "stop": [",", "an", "on"]},
        {"max_tokens": 1},
        {"max_tokens": 9, "ignore_eos": True, "temperature": 1.5, "top_p": 0.8},
    ],
)
async def test_every_term_is_what_plain_transformers_make_of_it(
    ask: Any,
    engine: RerankingLLM,
    by_name: dict[str, LoadedProbe],
    reference: Reference,
    prompt: list[int],
    params: dict[str, Any],
) -> None:
    """All probes at once, four candidates each; and the confidence, by the slope of what it maps.

    Platt's slope is at most a quarter of its own, and the steepest line of the knots 2.75 / 40.
    """
    names = ["states", "gates", "numbers", "all", "numbers-heads"]
    answers = await asyncio.gather(
        *(ask(prompt, probe=name, k=4, n=4, seed=7, **params) for name in names)
    )
    for name, answer in zip(names, answers, strict=True):
        probe = by_name[name].probe
        assert ("confidence" in answer.result) == (probe.confidence is not None)
        for index, output in enumerate(answer.candidates):
            read = reference.read(prompt, output.token_ids)
            about: dict[str, Any] = {
                "num_scored": count_scored(output, engine),
                "cut": output.finish_reason == "length",
            }
            expected = reference.score(probe.terms, read, **about)
            score = answer.result["scores"][index]
            assert score == pytest.approx(expected.value, abs=expected.bound), (name, index)
            if probe.confidence is not None:
                own = reference.score(probe.confidence.terms or probe.terms, read, **about)
                calibration = probe.confidence.calibration
                slope = calibration.slope / 4 if isinstance(calibration, Platt) else 2.75 / 40
                told = answer.result["confidence"][index]
                wanted = float(calibration.apply(own.value))
                assert told == pytest.approx(wanted, abs=slope * own.bound)


async def test_a_term_that_is_left_out_would_be_seen(
    by_name: dict[str, LoadedProbe], reference: Reference, prompt: list[int], engine: RerankingLLM
) -> None:
    """The bound is far below each term's share, so that the test above tells them apart."""
    if reference._error > 0.01:
        pytest.skip("bfloat16 rounds as much as a term may add")
    token_ids = engine.get_tokenizer().encode("def add(a, b):\n    return a + b\n" * 3)
    read = reference.read(prompt, token_ids)
    terms = by_name["all"].probe.terms
    about: dict[str, Any] = {"num_scored": len(token_ids) - 1, "cut": True}
    alone = [Terms(states=(each,)) for each in terms.states]
    alone += [Terms(gates=(each,)) for each in terms.gates]
    alone += [Terms(numbers={name: weight}) for name, weight in terms.numbers.items()]
    shares = [abs(reference.score(each, read, **about).value) for each in alone]
    assert min(shares) > reference.score(terms, read, **about).bound


async def test_heads_of_several_terms_are_those_of_the_beginning(
    ask: Any,
    engine: RerankingLLM,
    by_name: dict[str, LoadedProbe],
    reference: Reference,
    prompt: list[int],
) -> None:
    """Also of candidates that end before a checkpoint, by themselves or by a limit or stop string.

    Who is dropped is written in full in a run without a schedule, whose tokens are the same unless
    an abort has changed a batch's rounding; such candidates are passed over.
    """
    schedule = tuple(
        Step(tokens, keep) for tokens, keep in zip(CHECKPOINTS, (7, 6, 1), strict=True)
    )
    compared = dict.fromkeys(CHECKPOINTS, 0)
    ended = 0
    for params in ({"max_tokens": 24}, {"max_tokens": 7}, {"max_tokens": 30, "stop": [" a", ","]}):
        asked: dict[str, Any] = {"k": 8, "seed": 3, "probe": "all", "return_candidates": True}
        full = await ask(prompt, **asked, n=8, **params)
        found = await ask(prompt, **asked, schedule=schedule, **params)
        for index, output in enumerate(full.candidates):
            if not output.text.startswith(found.result["candidates"][index]["text"]):
                continue
            read = reference.read(prompt, output.token_ids)
            for tokens, score in found.result["checkpoint_scores"][index].items():
                expected = reference.score(
                    by_name["all"].probe.heads[tokens],
                    read,
                    num_scored=count_scored(output, engine),
                    cut=output.finish_reason == "length",
                    tokens=tokens,
                )
                assert score == pytest.approx(expected.value, abs=expected.bound), (index, tokens)
                compared[tokens] += 1
                ended += len(output.token_ids) <= tokens
        confidence = found.result["confidence"]
        rejected = [at is not None for at in found.result["rejected_at"]]
        assert [each is None for each in confidence] == rejected
    assert min(compared.values()) >= 8
    assert ended > 0


async def test_numbers_alone_ask_nothing_of_the_worker(
    ask: Any, engine: RerankingLLM, prompt: list[int]
) -> None:
    running = asyncio.create_task(
        ask(prompt, probe="numbers", k=4, max_tokens=60, ignore_eos=True, seed=1)
    )
    held = []
    while not running.done():
        held.append(await engine.num_held_candidates())
        await asyncio.sleep(0.01)
    assert max(held) == 0
    dropped = await ask(prompt, probe="numbers-heads", k=4, schedule=(Step(4, 1),), max_tokens=20)
    assert dropped.result["rejected_at"].count(4) == 3


async def test_a_mix_of_sums_is_their_weighted_sum_and_has_no_confidence(
    ask: Any, prompt: list[int]
) -> None:
    params: dict[str, Any] = {"k": 3, "n": 3, "seed": 5, "max_tokens": 12}
    names = ("all", "numbers", "gates")
    alone = [await ask(prompt, probe=name, **params) for name in names]
    mixed = await ask(prompt, probe=dict(zip(names, (0.5, -1.0, 2.0), strict=True)), **params)
    texts = [[each.text for each in answer.candidates] for answer in (*alone, mixed)]
    assert texts[:-1] == [texts[-1]] * 3
    for index, score in enumerate(mixed.result["scores"]):
        one, two, three = (answer.result["scores"][index] for answer in alone)
        assert score == pytest.approx(0.5 * one - two + 2 * three, abs=0.05)
    assert "confidence" not in mixed.result


async def test_one_candidate_and_the_greedy_one_have_a_confidence(
    ask: Any, prompt: list[int]
) -> None:
    one = await ask(prompt, probe="all", k=1, seed=2, max_tokens=12)
    greedy = await ask(prompt, probe="all", k=4, temperature=0.0, max_tokens=12)
    again = await ask(prompt, probe="all", k=1, temperature=0.0, max_tokens=12, stream=True)
    for answer in (one, greedy, again):
        (confidence,) = answer.result["confidence"]
        assert 0 < confidence < 1
    assert again.result["confidence"] == pytest.approx(greedy.result["confidence"], abs=1e-3)


async def test_token_scores_are_the_shares_of_states_and_gates(
    ask: Any,
    engine: RerankingLLM,
    by_name: dict[str, LoadedProbe],
    reference: Reference,
    prompt: list[int],
) -> None:
    answer = await ask(
        prompt, probe="all", k=2, n=2, seed=4, max_tokens=16, return_token_scores=True
    )
    terms = by_name["all"].probe.terms
    for output, shown in zip(answer.candidates, answer.result["candidates"], strict=True):
        read = reference.read(prompt, output.token_ids)
        assert len(shown["token_scores"]) == len(output.token_ids) - 1
        for token, score in enumerate(shown["token_scores"], 1):
            one = Read([each[token - 1 : token + 1] for each in read.states], [0.0], 0.0)
            # Of one token every pooling is its own score.
            plain = Terms(terms.states, bias=terms.bias)
            value, bound = reference.score(plain, one, num_scored=1, cut=False)
            for gate in terms.gates:
                states = one.states[-1 if gate.layer == "final" else int(gate.layer)][1]
                g = float(states @ torch.from_numpy(gate.gate).double()) + gate.gate_bias
                r = float(states @ torch.from_numpy(gate.value).double()) + gate.value_bias
                value += r / (1 + math.exp(-g))
                bound += reference._bound(gate.value, states[None])
                bound += reference._bound(gate.gate, states[None]) * abs(r)
            assert score == pytest.approx(value, abs=bound)


async def generate(engine: RerankingLLM, prompt: list[int], **params: Any) -> CompletionOutput:
    """Sample once as plain vLLM."""
    sampling = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **params)
    stream = engine.generate(
        {"type": "token", "prompt_token_ids": prompt}, sampling, f"plain-{params['seed']}"
    )
    outputs = [output async for output in stream]
    return outputs[-1].outputs[0]


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 24},
        {"max_tokens": 60, "stop": [" a", ","]},
        {"max_tokens": 10, "ignore_eos": True},
    ],
)
async def test_the_log_probability_is_the_one_that_vllm_sums(
    ask: Any, engine: RerankingLLM, prompt: list[int], params: dict[str, Any]
) -> None:
    """As ``collect`` stores it: of all tokens, the stop token among them, at temperature 1.

    A candidate's batch is another than that of the plain sample: float32 rounds each token's logits
    by some 1e-5.
    """
    fields = {"temperature": 0.7, "top_p": 0.9, **params}
    answer = await ask(prompt, probe="logprob", k=4, n=4, seed=11, **fields)
    for index, candidate in enumerate(answer.candidates):
        plain = await generate(engine, prompt, seed=11 + index, logprobs=0, **fields)
        assert list(plain.token_ids) == list(candidate.token_ids)
        score = answer.result["scores"][index]
        assert score == pytest.approx(plain.cumulative_logprob, abs=1e-2)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_log_probabilities_that_are_shown_are_those_that_were_asked_for(
    ask: Any, prompt: list[int], *, stream: bool
) -> None:
    params: dict[str, Any] = {"k": 3, "seed": 6, "max_tokens": 16, "stream": stream}
    bare = await ask(prompt, probe="logprob", **params)
    for output in bare.outputs:
        (part,) = output.outputs
        assert part.logprobs is None
        assert part.cumulative_logprob is None
    one = await ask(prompt, probe="logprob", logprobs=1, **params)
    other = await ask(prompt, probe={"logprob": 1.0, 0: 0.0}, logprobs=1, **params)
    assert one.result["scores"] == pytest.approx(bare.result["scores"], abs=1e-2)
    assert one.result["scores"] == pytest.approx(other.result["scores"], abs=1e-2)
    shown = [
        each.logprob
        for output in one.outputs
        for position in output.outputs[0].logprobs or []
        for token, each in list(position.items())[:1]
    ]
    (selected,) = one.result["selected"]
    assert math.fsum(shown) == pytest.approx(one.result["scores"][selected], abs=1e-4)
    assert all(
        1 <= len(position) <= 2
        for output in one.outputs
        for position in output.outputs[0].logprobs or []
    )
