"""Confidence: what it is fitted to, when there is none, and how it is measured."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from qprobe import Probe, Reading, TrainingSettings, train
from qprobe.data.dataset import Dataset, Sample
from qprobe.evaluation.bootstrap import average_by
from qprobe.evaluation.confidence import measure_confidence
from qprobe.evaluation.scoring import score
from qprobe.probe.confidence import Isotonic, Platt
from qprobe.training.confidence import find_confidence, fit_isotonic, fit_platt
from qprobe.training.cross_validation import Problem
from qprobe.training.design import Design
from qprobe.training.fit import FittedProbe, fit_inputs
from qprobe.training.inputs import prepare

Floats = NDArray[np.float64]
READING = Reading(3, "mean")
SETTINGS = TrainingSettings(weight_decays=(0.1, 0.01), num_folds=2)
COMPARING = TrainingSettings(objective="bt", weight_decays=(0.1, 0.01), num_folds=5)


def make_dataset(rewards: Floats, features: Floats, *, n: int) -> Dataset:
    samples = [
        Sample(
            prompt=i // n,
            index=i % n,
            text="",
            token_ids=[1, 2],
            num_scored=1,
            logprob=None,
            finish_reason="stop",
            seed=i,
            reward=float(reward),
        )
        for i, reward in enumerate(rewards)
    ]
    num = len(rewards) // n
    manifest = {"model": "org/model", "hidden_size": features.shape[1], "num_layers": 6}
    prompts: list[dict[str, Any]] = [{"prompt": f"p{i}"} for i in range(num)]
    embeddings = {READING: torch.tensor(features).half()}
    return Dataset(manifest, prompts, samples, embeddings, np.full(num, np.nan))


def plant(seed: int, *, num: int = 100, n: int = 8, scale: float = 1.0) -> Dataset:
    """One feature says how hard a prompt is, another how good an answer is among its prompt's."""
    rng = np.random.default_rng(seed)
    ease, quality = np.repeat(rng.normal(size=num), n), rng.normal(size=num * n)
    logits = 2 * ease + 2 * quality
    rewards = (rng.random(num * n) < 1 / (1 + np.exp(-logits))).astype(float)
    return make_dataset(scale * rewards, np.stack([ease, quality, ease * 0 + 1], axis=1), n=n)


def say(probe: Probe, dataset: Dataset) -> Floats:
    assert probe.confidence is not None
    scores = score(probe.confidence.terms or probe.terms, dataset)
    return probe.confidence.calibration.apply(scores)


def test_platt_finds_the_curve() -> None:
    """Of 20,000 draws: the slope's standard error is below 0.04, as the curve's weights are > 0.1.

    The information of the slope is about n times the mean of p (1 - p) (x - mean)^2, above 0.05 n.
    """
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000) * 3 + 5
    rewards = (rng.random(20_000) < 1 / (1 + np.exp(-(0.8 * scores - 4)))).astype(float)
    found = fit_platt(scores, rewards)
    assert found.slope == pytest.approx(0.8, abs=0.1)
    assert found.apply(5.0) == pytest.approx(0.5, abs=0.03)


def test_platt_of_scores_that_part_all_rewards_is_finite() -> None:
    """By Platt's targets, 4 good samples are worth 5 / 6 each."""
    found = fit_platt(np.array([-1.0, -1, -1, -1, 1, 1, 1, 1]), np.repeat([0.0, 1.0], 4))
    assert math.isfinite(found.slope)
    assert found.apply([-1.0, 1.0]) == pytest.approx([1 / 6, 5 / 6], abs=0.01)
    flat = fit_platt(np.ones(6), np.array([0.0, 0, 1, 1, 1, 1]))
    assert flat.apply(1.0) == pytest.approx((2 / 3 * 5 / 6 + 1 / 3 / 4), abs=0.01)


def test_isotonic_pools_what_falls() -> None:
    scores, rewards = np.array([1.0, 2, 2, 3, 4]), np.array([0.0, 4, 2, 1, 9])
    found = fit_isotonic(scores.repeat(10), rewards.repeat(10))
    assert found.scores == pytest.approx((1, 7 / 3, 4))
    assert found.rewards == pytest.approx((0, 7 / 3, 9))
    assert found.apply([0.0, 7 / 3, 99]) == pytest.approx([0, 7 / 3, 9])


@pytest.mark.parametrize(("num", "least"), [(7, 7), (40, 10), (1000, 50)])
def test_no_level_is_the_mean_of_a_few(num: int, least: int) -> None:
    """Of rewards that rise each sample is a block of its own; blocks are of ``least`` then."""
    found = fit_isotonic(np.arange(num, dtype=float), np.arange(num, dtype=float))
    assert found.rewards == pytest.approx(found.scores)
    assert len(found.scores) == num // least
    assert found.rewards[0] == pytest.approx((least - 1) / 2)
    assert found.rewards[-1] == pytest.approx(num - (least + 1) / 2)


@pytest.mark.parametrize("objective", ["bt", "ce"])
def test_it_knows_which_prompts_are_hard(objective: str) -> None:
    """Whatever the probe was trained with: on new prompts it is right, and ranks all samples.

    2,400 samples in 10 bins: a bin's mean reward is off by at most sqrt(0.25 / 240) = 0.03, and the
    fit by about as much, so that a calibration error below 0.08 is what a right curve gives.
    """
    settings = TrainingSettings(objective=objective, weight_decays=(0.1, 0.01), num_folds=2)
    probe = train(plant(0), READING, settings, test_fraction=0)
    assert probe.confidence is not None
    assert isinstance(probe.confidence.calibration, Platt)
    assert (probe.confidence.terms is None) == (objective == "ce")
    unseen = plant(1, num=300)
    found = measure_confidence(say(probe, unseen), unseen)
    assert found["ece"]["value"] < 0.08
    assert found["auroc"]["value"] > 0.85
    assert found["brier"]["value"] < 0.8 * found["brier_constant"]["value"]
    rewards = [row["reward"] for row in found["kept"]]
    assert rewards[0] == pytest.approx(unseen.rewards.mean())
    assert rewards[-1] > 0.95


def test_it_may_know_nothing_but_which_prompts_are_hard() -> None:
    """Its own sum is the same for all answers to a prompt: no choice, but a confidence."""
    full = plant(0)
    ease = full.features(READING)[:, :1].numpy().reshape(-1, 8)[:, :1].repeat(8, axis=1)
    dataset = make_dataset(full.rewards, ease.reshape(-1, 1), n=8)
    design = Design((READING,))
    order = Problem(dataset.rewards, dataset.groups, COMPARING).order
    inputs = prepare([dataset.features(READING)], order=order)
    noise = np.random.default_rng(1).normal(size=len(full.rewards))
    fitted = FittedProbe([torch.ones(1)], torch.zeros(0), 0.0, 1.0, 1.0, [], noise, noise)
    found, reason = find_confidence(dataset, design.to_terms, inputs, fitted, COMPARING)
    assert reason is None
    assert found is not None
    assert found.terms is not None


def test_the_weight_decay_is_the_one_that_a_criterion_likes() -> None:
    """Scores differ less the stronger the decay, so that either end can be asked for."""
    dataset = plant(0)
    problem = Problem(dataset.rewards, dataset.groups, TrainingSettings())
    inputs = prepare([dataset.features(READING)], order=problem.order)
    for sign, place in ((-1.0, 0), (1.0, -1)):

        def like(scores: Floats, sign: float = sign) -> Floats:
            return average_by(dataset.groups, sign * np.abs(scores - scores.mean()))

        found = fit_inputs(problem, inputs, criterion=like)
        assert found.weight_decay == problem.settings.decays[place]
        assert found.held_out_scores.std(ddof=1) == pytest.approx(1)


def test_rewards_of_any_range_get_a_curve_that_never_falls() -> None:
    probe = train(plant(0, scale=5.0), READING, TrainingSettings(objective="mse", num_folds=2))
    assert probe.confidence is not None
    assert isinstance(probe.confidence.calibration, Isotonic)
    assert probe.confidence.calibration.rewards[-1] > 4
    found = measure_confidence(say(probe, plant(1, scale=5.0)), plant(1, scale=5.0))
    assert found["auroc"] is found["log_loss"] is None
    assert found["brier"]["value"] < 0.8 * found["brier_constant"]["value"]


def test_few_prompts_give_none() -> None:
    few = train(plant(0, num=19), READING, SETTINGS, test_fraction=0)
    assert few.confidence is None
    assert "19 prompts are too few" in few.info.training["notes"][-1]


@pytest.mark.parametrize(
    ("num", "settings", "announced"), [(40, COMPARING, 6), (40, SETTINGS, 3), (19, COMPARING, 3)]
)
def test_its_own_fit_is_announced(num: int, settings: TrainingSettings, announced: int) -> None:
    """Two weight decays and a last fit; there is none if the probe's is as good, or on few."""
    totals: list[int] = []
    train(plant(0, num=num), READING, settings, test_fraction=0, progress=totals.append)
    assert totals == [announced] * announced


@pytest.mark.parametrize("scale", [1.0, 5.0], ids=["platt", "isotonic"])
def test_noise_gives_none(scale: float) -> None:
    """A gain of mean 0 is above the interval in 1 of 40 seeds; a fit to noise loses besides."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rewards, features = scale * rng.random(160).round(), rng.normal(size=(160, 8))
        probe = train(make_dataset(rewards, features, n=4), READING, COMPARING, test_fraction=0)
        found.append(probe.confidence)
        if probe.confidence is None:
            assert "no more of the reward" in probe.info.training["notes"][-1]
    assert found.count(None) >= 19


def test_scores_of_noise_give_none() -> None:
    """Of 300 seeds: three gain more than a standard error, none more than the interval allows."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        dataset = make_dataset(rng.random(160).round(), np.zeros((160, 1)), n=4)
        scores = rng.normal(size=160)
        fitted = FittedProbe([torch.ones(1)], torch.zeros(0), 0.0, 1.0, 1.0, [], scores, scores)
        design, inputs = Design((READING,)), prepare([torch.eye(160)])
        found, _ = find_confidence(dataset, design.to_terms, inputs, fitted, TrainingSettings())
        assert found is None


@pytest.mark.parametrize("scale", [1.0, 5.0], ids=["platt", "isotonic"])
def test_a_signal_always_gives_one(scale: float) -> None:
    for seed in range(20):
        probe = train(plant(seed, num=40, n=4, scale=scale), READING, COMPARING, test_fraction=0)
        assert probe.confidence is not None


def test_measures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(4)
    said, n = rng.random(200), 5
    rewards = (rng.random(200) < said**2).astype(float)
    found = measure_confidence(said, make_dataset(rewards, np.zeros((200, 1)), n=n))
    good, bad = said[rewards == 1], said[rewards == 0]
    wins = mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert found["auroc"]["value"] == pytest.approx(wins)
    assert found["brier"]["value"] == pytest.approx(((rewards - said) ** 2).mean())
    bins = np.array_split(np.argsort(said), 10)
    gaps = [abs(said[each].mean() - rewards[each].mean()) for each in bins]
    assert found["ece"]["value"] == pytest.approx(np.mean(gaps))
    half = next(row for row in found["kept"] if row["share"] == 0.4)
    best = np.argsort(said)[-80:]
    assert half["reward"] == pytest.approx(rewards[best].mean())
    assert said[best].min() >= half["threshold"]
    for row in [*found["kept"], *found["bins"]]:
        assert row["low"] <= row["reward"] <= row["high"]
    for name in ("auroc", "brier", "log_loss"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


def find_ece(said: Floats, truth: Floats, rng: np.random.Generator) -> dict[str, float]:
    """Of samples of 8 a prompt, good with probability ``truth``."""
    rewards = (rng.random(len(said)) < truth).astype(float)
    found: dict[str, float] = measure_confidence(
        said, make_dataset(rewards, np.zeros((len(said), 1)), n=8)
    )["ece"]
    return found


def test_a_calibrated_probe_is_shown_to_be_off_one_time_in_twenty() -> None:
    """Of 60 data sets 3 are due, with a standard deviation of 1.7: above 9 by 3.5 of these.

    Prompts are harder or easier than said, so that samples of one err together. An ECE is off by a
    third of itself, so that the mean of 60 is by a 23rd: 15 % is 3.5 of these.
    """
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        said = np.repeat(rng.uniform(0.2, 0.8, 40), 8)
        found.append(find_ece(said, said + np.repeat(rng.choice([-0.15, 0.15], 40), 8), rng))
    assert sum(each["value"] > each["calibrated_most"] for each in found) <= 9
    values, calibrated = ([each[name] for each in found] for name in ("value", "calibrated"))
    assert np.mean(calibrated) == pytest.approx(np.mean(values), rel=0.15)


def test_a_probe_that_says_too_much_is_shown_to_be_off() -> None:
    """By the 0.2 that it says too much; the mean reward of 800 is off by 0.018."""
    rng = np.random.default_rng(0)
    said = rng.uniform(0.3, 0.9, 800)
    found = find_ece(said, said - 0.2, rng)
    assert found["value"] == pytest.approx(0.2, abs=0.06)
    assert found["value"] > found["calibrated_most"]
