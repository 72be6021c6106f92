"""What is served of a probe: the workers' rows and what is added up, against terms and datasets."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qprobe import Dataset, Reading, Terms
from qprobe.data.sample import Sample
from qprobe.evaluation.scoring import list_readings, list_token_layers, score
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe.probe.values import NUMBERS
from qprobe_server.library.sums import ServedSum, count_rows, list_rows

HIDDEN = 6
LAYERS = (2, "final")
Floats = NDArray[np.float32]


def draw(rng: np.random.Generator) -> Any:
    return rng.standard_normal(HIDDEN).astype(np.float32)


def make_terms(rng: np.random.Generator) -> Terms:
    """Return random terms."""
    states = [Reading(2, "mean"), Reading("final", "mean", 3), Reading(2, "last")]
    states.append(Reading("final", "max", 2))
    segments: list[tuple[int, ...]] = [(2, 5), ()]
    chosen = rng.permutation(len(states))[: int(rng.integers(len(states) + 1))]
    gates = [GateTerm(2, each, draw(rng), draw(rng), *rng.normal(size=2)) for each in segments]
    some = rng.permutation(NUMBERS)[: int(rng.integers(1, 6))].tolist()
    return Terms(
        states=tuple(StateTerm(states[index], draw(rng)) for index in chosen),
        gates=tuple(gates[: int(rng.integers(len(gates) + 1))]),
        numbers={name: float(rng.normal()) for name in some},
        bias=float(np.float32(rng.normal())),
    )


def score_rows(terms: Terms, states: dict[Any, Floats]) -> list[Floats]:
    """Score tokens as a worker does: shape (tokens + 1,) by each row."""
    rows = []
    for layer, data in list_rows(terms):
        weight = np.frombuffer(data, np.float32)
        assert weight.size == HIDDEN + 1
        rows.append((states[layer] @ weight[:-1] + weight[-1]).astype(np.float32))
    assert len(rows) == count_rows(terms)
    return rows


def embed(states: dict[Any, Floats], reading: Reading) -> torch.Tensor:
    tokens = states[reading.layer]
    kept = tokens[1:] if len(tokens) > 1 else tokens
    made = kept[-1] if reading.pooling == "last" else kept[: reading.window].mean(0)
    return torch.from_numpy(made)


def read_tokens(states: list[dict[Any, Floats]], layer: Any, row: int) -> torch.Tensor:
    tokens = states[row][layer]
    return torch.from_numpy(tokens[1:] if len(tokens) > 1 else tokens).half()


@pytest.mark.parametrize("tokens", [None, 1, 3, 4, 9])
def test_what_is_served_is_what_is_measured_on_a_dataset(tokens: int | None) -> None:
    """Of whole completions, and of their first so many tokens as a head reads them.

    The states are whole numbers of at most 8, whose means in float32 are off by 1e-6.
    """
    rng = np.random.default_rng(1)
    samples, states = [], []
    for index in range(12):
        length = int(rng.integers(1, 12))
        samples.append(
            Sample(
                prompt=0,
                index=index,
                text="",
                token_ids=[1] * length,
                num_scored=length - 1,
                logprob=-0.5 * length,
                finish_reason=str(rng.choice(["stop", "length"])),
                seed=0,
                reward=0.0,
                logprobs=[-0.5] * length,
            )
        )
        made = {each: rng.integers(-8, 9, (length, HIDDEN)).astype(np.float32) for each in LAYERS}
        states.append(made)
    for _ in range(40):
        terms = make_terms(rng)
        stored = {
            each: torch.stack([embed(of, each) for of in states])
            for each in list_readings(terms, tokens=tokens)
        }
        kept = {
            layer: partial(read_tokens, states, layer)
            for layer in list_token_layers(terms, tokens=tokens)
        }
        dataset = Dataset({}, [{"prompt": "x"}], samples, stored, np.zeros(1), tokens=kept)
        expected = score(terms, dataset, tokens=tokens)
        numbers = dataset.numbers(tokens=tokens)
        served = ServedSum.of(terms, range(count_rows(terms)))
        for index, sample in enumerate(samples):
            length = sample.num_scored
            if tokens is not None:
                length = tokens if len(sample.token_ids) > tokens else length
            rows = [row[: length + 1] for row in score_rows(terms, states[index])]
            found = served.add_up(rows, dict(zip(NUMBERS, numbers[index].tolist(), strict=True)))
            assert found == pytest.approx(expected[index], abs=1e-4)


def test_the_mean_of_the_tokens_scores_is_the_score_of_a_mean() -> None:
    """Its bias with it."""
    rng = np.random.default_rng(2)
    terms = Terms.linear(Reading(2, "mean"), draw(rng), bias=3.5)
    served = ServedSum.of(terms, [7])
    rows = score_rows(terms, {2: rng.standard_normal((5, HIDDEN)).astype(np.float32)})
    shares = served.add_up_tokens(rows, 4)
    assert served.bias == 0
    assert served.add_up(rows, {}) == pytest.approx(float(shares.mean()), abs=1e-6)


def test_tokens_have_a_share_of_states_and_gates_and_none_of_numbers() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        terms = make_terms(rng)
        states = {each: rng.standard_normal((5, HIDDEN)).astype(np.float32) for each in LAYERS}
        served = ServedSum.of(terms, range(count_rows(terms)))
        shares = served.add_up_tokens(score_rows(terms, states), 4)
        for token, share in enumerate(shares.tolist(), 1):
            expected = terms.bias if terms.states else 0.0
            for state in terms.states:
                expected += float(states[state.reading.layer][token] @ state.weight)
            for gate in terms.gates:
                h = states[gate.layer][token]
                g = float(h @ gate.gate) + gate.gate_bias
                expected += (float(h @ gate.value) + gate.value_bias) / (1 + math.exp(-g))
            assert share == pytest.approx(expected, abs=1e-5)


def test_an_unknown_state_makes_no_score() -> None:
    """Whatever reads it; nobody warns, as a request fails by it later."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        terms = make_terms(rng)
        if not count_rows(terms):
            continue
        rows = [np.full(4, np.nan, np.float32)] * count_rows(terms)
        served = ServedSum.of(terms, range(count_rows(terms)))
        assert math.isnan(served.add_up(rows, dict.fromkeys(NUMBERS, 0.0)))
        assert np.isnan(served.add_up_tokens(rows, 3)).all()
