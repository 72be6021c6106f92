"""Gates and rolling maxima find which part tells, and are served as they were trained."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import Reading, TrainingSettings, train
from qprobe.data.dataset import Dataset, Sample
from qprobe.errors import DatasetError, TrainingError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.scoring import score
from qprobe.probe.file import load_probe, save_probe
from qprobe.probe.pooling import pool, pool_gated
from qprobe.probe.probe import Probe
from qprobe.probe.terms import GateTerm, Terms
from qprobe.probe.values import NUMBERS, Source
from qprobe.rejection.scores import cross_fit
from qprobe.training.cross_validation import Problem, cross_validate
from qprobe.training.design import Design
from qprobe.training.fit import FittedProbe, fit_inputs
from qprobe.training.gate import Gate
from qprobe.training.learning_curve import learning_curve
from qprobe.training.recipe import make_probe

NUM_PROMPTS, N, TOKENS, HIDDEN = 60, 8, 12, 4
SETTINGS = TrainingSettings(objective="bt", weight_decays=(1.0, 0.1), num_folds=3)
READINGS = [Reading(3, "mean"), Reading(3, "mean", 4), Reading(3, "mean", 8)]
OTHER = Reading("final", "mean")
GATE, TOKEN_GATE = Gate(3, (4, 8)), Gate(3, ())
ROLLING = Reading(3, "max", 4)
EVERY = Design((OTHER, ROLLING), gates=(GATE,))
QUICK = replace(SETTINGS, weight_decays=(0.1,), num_folds=2)


def make(
    tokens: Any, rewards: Any, *, other: Any = None, lengths: Sequence[int] | None = None
) -> Dataset:
    """Return a dataset of states of tokens, (samples, tokens, hidden), and another layer's mean."""
    lengths = lengths or [TOKENS] * len(tokens)
    samples = [
        Sample(i // N, i % N, "", [1] * (length + 1), length, None, "stop", i, float(reward))
        for i, (reward, length) in enumerate(zip(rewards, lengths, strict=True))
    ]
    cut = [torch.tensor(each[: max(m, 1)]) for each, m in zip(tokens, lengths, strict=True)]
    embeddings = {
        each: torch.stack([states[: each.window].mean(0) for states in cut]).half()
        for each in READINGS
    }
    embeddings[OTHER] = torch.tensor(tokens[:, 0] * 0 if other is None else other).half()
    manifest: dict[str, Any] = {"model": "org/model", "hidden_size": HIDDEN, "num_layers": 6}
    prompts: list[dict[str, Any]] = [{"prompt": f"p{i}"} for i in range(len(tokens) // N)]
    greedy = np.full(len(prompts), np.nan)
    kept: dict[Source, Any] = {3: lambda row: cut[row].half()}
    return Dataset(manifest, prompts, samples, embeddings, greedy, tokens=kept)


def plant(
    seed: int, *, beside: float = 0.0, lengths: Sequence[int] | None = None
) -> tuple[Dataset, Any]:
    """One of three segments of 4 tokens is marked by feature 0; only its feature 1 is rewarded.

    And, so many times, feature 0 of another layer.
    """
    rng = np.random.default_rng(seed)
    num = NUM_PROMPTS * N
    states = rng.normal(size=(num, 3, HIDDEN))
    marked = rng.integers(0, 3, size=num)
    states[:, :, 0] = -2
    states[np.arange(num), marked, 0] = 2
    other = rng.normal(size=(num, HIDDEN))
    rewards = states[np.arange(num), marked, 1] + beside * other[:, 0]
    tokens = np.repeat(states, 4, axis=1)
    return make(tokens, rewards, other=other, lengths=lengths), tokens


def plant_peaks(seed: int) -> tuple[Dataset, Any]:
    """Feature 1 of the best of three segments of 4 tokens is the reward."""
    states = np.random.default_rng(seed).normal(size=(NUM_PROMPTS * N, 3, HIDDEN))
    tokens = np.repeat(states, 4, axis=1)
    return make(tokens, states[:, :, 1].max(1)), tokens


def earn(scores: Any, dataset: Dataset) -> float:
    """Return the mean reward of the best of each prompt by scores."""
    found = expected_rewards(scores, dataset.rewards, dataset.groups, k=N, beta=0)
    return float(found.mean())


@pytest.fixture(scope="module")
def probe_of_20() -> Probe:
    """Every kind of term, trained on the first 20 prompts of the first planted dataset."""
    known = plant(0)[0].subset(range(20))
    return make_probe(known, EVERY, QUICK, k=N, licence=None)


@pytest.mark.parametrize("segments", [(4, 8), ()])
def test_a_gate_hears_what_tells(segments: tuple[int, ...], tmp_path: Any) -> None:
    """A mean mixes it with two others, so that it earns at most half as much above the mean.

    By segments and by single tokens, which are served as they are measured.
    """
    known, _ = plant(0)
    unseen, tokens = plant(1)
    ends = ",".join(map(str, segments))
    gate = f"3/{ends}" if ends else "3"
    totals: list[int] = []
    gated = train(known, (), QUICK, gates=[gate], test_fraction=0, progress=totals.append)
    assert totals == [2 + 2] * 4  # the fit, and its confidence's own
    plain = train(known, READINGS, QUICK, test_fraction=0)
    assert gated.terms.describe() == ("3/gate/4,8" if segments else "3/gate")
    earned = [earn(score(each.terms, unseen), unseen) for each in (gated, plain)]
    assert earned[0] > 0.9 * earn(unseen.rewards, unseen)
    assert earned[0] > earned[1] + 0.2
    save_probe(gated, tmp_path / "p.safetensors")
    (term,) = load_probe(tmp_path / "p.safetensors").terms.gates
    states = np.concatenate([tokens[:, :1] * 0, tokens], axis=1)
    served = [
        pool_gated(
            each @ term.gate + term.gate_bias,
            each @ term.value + term.value_bias,
            segments=segments,
        )
        for each in states[:50]
    ]
    assert score(gated.terms, unseen)[:50] == pytest.approx(
        np.array(served) + gated.terms.bias, abs=0.02
    )


def test_a_gate_and_a_reading_beside_it_are_fitted_together() -> None:
    """Half of the reward is another layer's: both earn more than each, on other prompts too.

    The reward is the sum of two normals, of which each term alone knows one. Of 8 samples the best
    by it is 1.42 above the mean, by both 1.42 * sqrt(2) = 2.0. Means over 60 prompts have standard
    errors of about .15.
    """
    (known, _), (unseen, _) = plant(0, beside=1.0), plant(1, beside=1.0)
    earned = {}
    problem = Problem(known.rewards, known.groups, QUICK)
    for design in (Design(gates=(GATE,)), Design((OTHER,)), Design((OTHER,), gates=(GATE,))):
        fitted = fit_inputs(problem, design.prepare(known, problem.order))
        earned[str(design)] = earn(score(design.to_terms(fitted), unseen), unseen)
    assert earned["final/mean + 3/gate/4,8"] > 1.6
    assert max(earned["3/gate/4,8"], earned["final/mean"]) < 1.5


def test_what_noise_teaches_is_not_believed() -> None:
    """Of 4 datasets of noise the cross-validated rewards are 0, as those of linear probes are.

    At the one decay each is a mean of 60 prompts, of standard error 1 / sqrt(60) = .13; the mean of
    4 is within 4 of its own, save by chance of 1e-4. The fits themselves earn 0.6 of that noise.
    """
    found = []
    for seed in range(4):
        known, _ = plant(seed)
        known.rewards = np.random.default_rng(seed + 99).normal(size=len(known.rewards))
        problem = Problem(known.rewards, known.groups, QUICK)
        inputs = EVERY.prepare(known, problem.order)
        found.append(cross_validate(problem, inputs).rewards.mean())
    assert abs(np.mean(found)) < 4 / np.sqrt(4 * NUM_PROMPTS)


def test_a_rolling_maximum_is_trained_as_it_is_served() -> None:
    """A stretch of 4 tokens tells by how high its feature 1 is, wherever it stands.

    The mean over 12 tokens has it among two others, which are as likely to be as far below 0.
    """
    known, tokens = plant_peaks(0)
    unseen, _ = plant_peaks(1)
    probe = train(known, ROLLING, SETTINGS, test_fraction=0)
    plain = train(known, Reading(3, "mean"), SETTINGS, test_fraction=0)
    assert probe.terms.describe() == "3/max/4"
    earned = [earn(score(each.terms, unseen), unseen) for each in (probe, plain)]
    assert earned[0] > 0.9 * earn(unseen.rewards, unseen)
    assert earned[0] > earned[1] + 0.2
    (term,) = probe.terms.states
    served = [
        pool(np.append(0, states @ term.weight), pooling="max", window=4) for states in tokens[:50]
    ]
    expected = np.array(served) + probe.terms.bias
    assert score(probe.terms, known)[:50] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "design", [Design((ROLLING,)), Design(gates=(GATE,)), Design(gates=(TOKEN_GATE,))]
)
def test_answers_of_any_length_are_fitted_as_they_are_scored(design: Design) -> None:
    """What lies behind an answer's end weighs nothing: the fit's scores are the probe's."""
    lengths = np.random.default_rng(2).integers(0, TOKENS + 1, NUM_PROMPTS * N).tolist()
    known, _ = plant(0, lengths=lengths)
    (pooled,) = design.read(known).pooled
    parameters = torch.randn(len(pooled.decayed), generator=torch.Generator().manual_seed(0))
    weights, offset = pooled.undo(parameters.double() / 10, 1.0)
    nothing = np.zeros(0)
    terms = design.to_terms(
        FittedProbe([], torch.zeros(0), offset, 1.0, 1.0, [], nothing, nothing, pooled=(weights,))
    )
    found = pooled.score(parameters.double() / 10).numpy()
    assert found == pytest.approx(score(terms, known), abs=1e-4)
    assert found.std() > 0.1


def test_held_out_scores_know_nothing_of_their_prompts_rewards(probe_of_20: Probe) -> None:
    """Other rewards of one prompt leave its own scores as they are, up to what is one for all.

    In cross-validation and in what schedules are chosen by.
    """
    known = plant(0)[0].subset(range(20))
    inside = known.groups == 5

    def fit() -> list[Any]:
        problem = Problem(known.rewards, known.groups, QUICK, known.questions[known.groups])
        fitted = fit_inputs(problem, EVERY.prepare(known, problem.order))
        found = cross_fit(known, probe_of_20, QUICK, progress=lambda: None).final
        return [fitted.held_out_scores * fitted.scale, found]

    first = fit()
    known.rewards = np.where(inside, known.rewards[::-1], known.rewards)
    for one, other in zip(first, fit(), strict=True):
        moved = one - other
        assert np.ptp(moved[inside]) < 1e-6
        assert np.ptp(moved[~inside]) > 1e-3


def test_gates_stand_beside_numbers_and_are_not_in_heads() -> None:
    """Without the log-probability of every token the heads have the states alone."""
    known, _ = plant(0)
    known.samples = [
        replace(each, finish_reason="length" if each.index % 2 else "stop")
        for each in known.samples
    ]
    given: dict[str, Any] = {"numbers": ["cut"], "gates": ["3/4,8"], "checkpoints": [4]}
    probe = train(known, (), SETTINGS, **given)
    assert probe.terms.describe() == "3/gate/4,8 + numbers(cut)"
    assert probe.heads[4].describe() == "3/mean/4"


def test_a_learning_curve_ends_with_the_probe_of_all_prompts(probe_of_20: Probe) -> None:
    known, unseen = (plant(seed)[0].subset(range(20)) for seed in (0, 1))
    curve = learning_curve(known, unseen, design=EVERY, settings=QUICK, k=N, sizes=())
    assert [row["num_prompts"] for row in curve] == [20]
    expected = expected_rewards(
        score(probe_of_20.terms, unseen), unseen.rewards, unseen.groups, k=N, beta=QUICK.beta
    )
    assert curve[-1]["reward"] == pytest.approx(expected.mean())


@pytest.mark.parametrize(("shut", "least"), [(False, 0.0), (True, 0.1)])
def test_segments_are_as_exact_as_their_means_allow(*, shut: bool, least: float) -> None:
    """A stored mean is off by u = 2 ** -11 of its size M, a segment's by u M (a + b) / (b - a).

    It goes from token a to b. With gates as wide open as each other it weighs (b - a) / n, so that
    the score of S segments is off by no more than 2 u M S. Where all but the last one are shut, it
    is off by what that one is: here, of 1 token after 1,024, by up to u (1,024 + 1,025) = 1.0005 M,
    the size of the states.
    """
    length, ends, size = 1025, (512, 1024), 1.0
    rng = np.random.default_rng(0)
    states = rng.uniform(size / 2, size, size=(16, length, 2))
    states[:, :, 1] = 0
    states[:, -1, 1] = 1  # marks the last token
    readings = Gate(3, ends).readings
    embeddings = {each: torch.tensor(states[:, : each.window].mean(1)).half() for each in readings}
    samples = [Sample(0, i, "", [1], length, None, "stop", i, 0.0) for i in range(16)]
    made = Dataset({}, [{"prompt": "p"}], samples, embeddings, np.zeros(1))
    off = np.float32(1000 * shut)
    term = GateTerm(3, ends, np.array([0, 0], np.float32), np.array([1, 0], np.float32))
    if shut:  # the mark of the last segment is 1025 * float16(1 / 1025), and that of others 0
        term = replace(term, gate=np.array([0, off], np.float32), gate_bias=-float(off) / 2)
    gates = states @ term.gate + term.gate_bias
    values = states @ term.value
    exact = [
        pool_gated(np.append(0, gate), np.append(0, value), segments=ends)
        for gate, value in zip(gates, values, strict=True)
    ]
    error = np.abs(score(Terms(gates=(term,)), made) - exact).max()
    unit = 2.0**-11 * size
    bound = unit * (1024 + 1025) if shut else 2 * unit * (len(ends) + 1)
    assert least < error < bound


@pytest.mark.parametrize("text", ["", "3/", "3/0", "3/8,4", "3/4,4", "x/4", "3/4,"])
def test_bad_gates_are_named(text: str) -> None:
    with pytest.raises(TrainingError, match=f"gate: must be LAYER.*{text!r}"):
        Gate.parse(text)


@pytest.mark.parametrize(
    "design",
    [
        Design(gates=(TOKEN_GATE,)),
        Design((OTHER, ROLLING), NUMBERS, (GATE, TOKEN_GATE)),
        Design((), ("cut", "length"), (Gate("final", (16,)),)),
        Design((OTHER,)),
        Design((), NUMBERS),
    ],
)
def test_terms_are_read_as_they_are_written(design: Design) -> None:
    assert Design.parse(str(design)) == design


def test_what_a_gate_reads_must_be_stored() -> None:
    known, _ = plant(0)
    with pytest.raises(DatasetError, match="final/tokens: are not in the dataset"):
        train(known, Reading("final", "max", 4), SETTINGS)
    for text, missing in (("3/4,9", "3/mean/9"), ("final/4", "final/mean/4")):
        with pytest.raises(DatasetError, match=missing):
            train(known, (), SETTINGS, gates=[text])
    with pytest.raises(DatasetError, match=r"final/tokens: are not in .* has 3/tokens"):
        train(known, (), SETTINGS, gates=["final"])
    settings = replace(SETTINGS, objective="ce")
    with pytest.raises(TrainingError, match="from 0 to 1"):
        make_probe(known, Design(gates=(GATE,)), settings, k=4, licence=None)
