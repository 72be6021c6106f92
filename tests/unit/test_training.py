"""Fitted probes, against scikit-learn, closed forms and problems with a known answer."""

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from qprobe import Reading, Terms
from qprobe.errors import TrainingError
from qprobe.probe.probe import Probe, ProbeInfo
from qprobe.probe.values import OBJECTIVES
from qprobe.training import inputs as inputs_module
from qprobe.training.cross_validation import Problem, cross_validate
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_probe
from qprobe.training.inputs import prepare, prepare_each
from qprobe.training.objectives import make_loss
from qprobe.training.pooled import Axes, Part, Pooled

Vector = NDArray[np.float64]
Drawn = tuple[Tensor, Vector, NDArray[np.int64]]


def draw(seed: int, *, num_prompts: int = 40, n: int = 8, hidden: int = 12) -> Drawn:
    """Binary rewards; 2 features matter, one of them by a third; units and means are uneven."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_prompts), n)
    standard = rng.normal(size=(len(groups), hidden))
    difficulty = rng.normal(size=num_prompts)[groups]
    odds = np.exp(difficulty + 2 * standard[:, 0] - 0.7 * standard[:, 1])
    rewards = (rng.random(len(groups)) < odds / (1 + odds)).astype(np.float64)
    units = np.exp(np.linspace(-2, 2, hidden))
    features = torch.tensor(standard * units + 5 * np.arange(hidden) / hidden, dtype=torch.float32)
    return features, rewards, groups


def fit(problem: Drawn, **fields: Any) -> FittedProbe:
    features, rewards, groups = problem
    return fit_probe([features], rewards, groups, TrainingSettings(**{"num_folds": 2, **fields}))


def standardised(features: Tensor) -> Vector:
    raw = features.double().numpy()
    return np.asarray((raw - raw.mean(0)) / raw.std(0))


def within_std(scores: Tensor, groups: NDArray[np.int64]) -> float:
    parts = [scores.double().numpy()[groups == each] for each in np.unique(groups)]
    return math.sqrt(np.mean([part.var(ddof=1) for part in parts if len(part) > 1]))


def expected_reward(scores: Tensor, rewards: Vector, groups: NDArray[np.int64]) -> Vector:
    """Of softmax(score / 0.1) over each prompt's samples: shape (prompts,)."""
    found = []
    for each in np.unique(groups):
        logits = scores.double().numpy()[groups == each] / 0.1
        weights = np.exp(logits - logits.max())
        found.append(weights @ rewards[groups == each] / weights.sum())
    return np.array(found)


def assert_same_direction(scores: Tensor, reference: Vector, *, tolerance: float) -> None:
    """The scores, centred, are the reference centred, up to a positive factor."""
    ours, theirs = scores.double().numpy(), np.asarray(reference)
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    ours, theirs = ours / ours.std(), theirs / theirs.std()
    assert np.abs(ours - theirs).max() < tolerance


# A stop at a relative gain of 1e-7 leaves scores off by about its root, 3e-4 of their standard
# deviation, times the largest of 320 standardised scores, about 3: 1e-3, doubled for safety.
TOLERANCE = 2e-3


@pytest.mark.parametrize("decay", [10.0, 0.1])
def test_mse_is_ridge_regression(decay: float) -> None:
    """Mean of (z.w + b - r)^2 + decay / 2 |w|^2 has w = (Z'Z / n + decay / 2)^-1 Z'r / n."""
    problem = features, rewards, _ = draw(0)
    z = standardised(features)
    covariance = z.T @ z / len(z)
    weights = np.linalg.solve(covariance + decay / 2 * np.eye(z.shape[1]), z.T @ rewards / len(z))
    found = fit(problem, objective="mse", weight_decays=(decay,))
    assert_same_direction(found.score([features]), z @ weights, tolerance=TOLERANCE)


@pytest.mark.parametrize("decay", [1.0, 0.01])
def test_ce_is_logistic_regression(decay: float) -> None:
    """scikit-learn minimises C * sum of losses + |w|^2 / 2, so C = 1 / (n * decay)."""
    problem = features, rewards, _ = draw(1)
    z = standardised(features)
    reference = LogisticRegression(C=1 / (len(z) * decay), tol=1e-8, max_iter=1000).fit(z, rewards)
    found = fit(problem, objective="ce", weight_decays=(decay,))
    theirs = reference.decision_function(z)
    assert_same_direction(found.score([features]), theirs, tolerance=TOLERANCE)
    raw = found.scale * found.score([features]).double().numpy()
    assert np.abs(raw - theirs).max() < 1e-3 * theirs.std()


@pytest.mark.parametrize("objective", ["bt", "dpo"])
def test_bt_and_dpo_are_logistic_regression_on_differences(objective: str) -> None:
    """Both orders of each pair, with no intercept; a prompt's pairs weigh 1 together."""
    problem = features, rewards, groups = draw(2, num_prompts=20)
    z = standardised(features)
    rows, weights = [], []
    for each in np.unique(groups):
        mine = np.flatnonzero(groups == each)
        pairs = [z[i] - z[j] for i in mine for j in mine if rewards[i] > rewards[j]]
        rows += pairs
        weights += [1 / max(len(pairs), 1)] * len(pairs)
    differences, share = np.array(rows), np.array(weights) / sum(weights)
    reference = LogisticRegression(C=1 / 0.05, fit_intercept=False, tol=1e-8, max_iter=1000).fit(
        np.concatenate([differences, -differences]),
        np.repeat([1, 0], len(rows)),
        sample_weight=np.concatenate([share, share]) / 2,
    )
    found = fit(problem, objective=objective, weight_decays=(0.05,))
    assert_same_direction(found.score([features]), z @ reference.coef_[0], tolerance=TOLERANCE)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_features_in_other_units_give_the_same_scores(objective: str) -> None:
    """What folding the standardisation into the weights must achieve."""
    features, rewards, groups = draw(3)
    moved = features * torch.linspace(0.1, 30, 12) - 7
    plain = fit((features, rewards, groups), objective=objective, weight_decays=(1.0,))
    other = fit((moved, rewards, groups), objective=objective, weight_decays=(1.0,))
    # The kinks of ppo end a search where little is left to gain, here or there.
    tolerance = 6e-2 if objective == "ppo" else 2e-3
    assert torch.allclose(plain.score([features]), other.score([moved]), atol=tolerance)
    assert plain.weights[0].shape == (12,)


def test_held_out_scores_have_unit_spread_and_the_weights_suit_a_probe() -> None:
    problem = features, _, groups = draw(4)
    found = fit(problem, weight_decays=(0.01,))
    assert within_std(torch.tensor(found.held_out_scores), groups) == pytest.approx(1, abs=1e-6)
    info = ProbeInfo(
        base_model="m",
        hidden_size=12,
        num_layers=4,
        objective="ce",
        k=4,
        beta=0.1,
    )
    probe = Probe(info, Terms.linear(Reading(2, "mean"), found.weights[0].numpy(), found.bias))
    (state,) = probe.terms.states
    scores = features.double() @ torch.from_numpy(state.weight).double() + probe.terms.bias
    assert torch.allclose(scores, found.score([features]).double(), atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_unit_of_scores_is_their_spread_on_other_prompts(objective: str) -> None:
    """60 prompts x 8 of 300 features, mostly noise: on those trained on it is another.

    The spread of 400 fresh prompts is known to 1 / sqrt(2 * 400 * 7) = .013; that the folds train
    on 4 of 5 prompts, and see 60, leaves a few hundredths more.
    """
    problem = draw(10, num_prompts=60, hidden=300)
    features, _, groups = draw(11, num_prompts=400, hidden=300)
    found = fit(problem, objective=objective, num_folds=5, weight_decays=(0.1,))
    assert within_std(found.score([features]), groups) == pytest.approx(1, abs=0.15)


def test_held_out_scores_are_those_of_fits_without_the_prompt() -> None:
    """With 2 folds of 2 prompts, what a prompt gets does not hang on its own rewards.

    But for the bias, which is that of the fit to all.
    """
    features, rewards, groups = draw(14, num_prompts=4, n=20)
    settings = TrainingSettings(weight_decays=(1.0,), num_folds=2)
    found = fit_probe([features], rewards, groups, settings)
    flipped = np.where(groups == 0, 1 - rewards, rewards)
    other = fit_probe([features], flipped, groups, settings)
    mine = groups == 0
    raw, changed = (each.held_out_scores * each.scale for each in (found, other))
    assert np.ptp(raw[mine] - changed[mine]) < 1e-3
    assert np.ptp(raw[~mine] - changed[~mine]) > 0.1


def test_prompts_with_one_sample_do_not_count_in_the_scale() -> None:
    features, rewards, groups = draw(5)
    kept = np.flatnonzero((np.arange(len(groups)) % 8 == 0) | (groups > 5))
    problem = features[torch.from_numpy(kept)], rewards[kept], groups[kept]
    found = fit(problem, weight_decays=(1.0,))
    spread = within_std(torch.tensor(found.held_out_scores), problem[2])
    assert spread == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("objective", ["ce", "pg", "bt"])
def test_the_same_seed_gives_the_same_bits(objective: str) -> None:
    problem = draw(6, num_prompts=16)
    decays = (0.1, 0.03)
    first = fit(problem, objective=objective, weight_decays=decays, seed=3)
    again = fit(problem, objective=objective, weight_decays=decays, seed=3)
    assert torch.equal(first.weights[0], again.weights[0])
    assert first.bias == again.bias
    assert first.cross_validation == again.cross_validation
    assert first.held_out_scores.tolist() == again.held_out_scores.tolist()


def test_many_pairs_and_threads_give_the_same_bits() -> None:
    """400 prompts x 24 samples have about 50,000 pairs, where torch would use several threads."""
    problem = draw(7, num_prompts=400, n=24)
    threads = torch.get_num_threads()
    found = []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            found.append(fit(problem, objective="bt", weight_decays=(1.0,)))
            assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].weights[0], found[1].weights[0])


@pytest.mark.parametrize("objective", ["ce", "pg", "bt"])
def test_the_order_of_prompts_does_not_matter(objective: str) -> None:
    features, rewards, groups = draw(8)
    order = np.random.default_rng(0).permutation(40)
    rows = (order[:, None] * 8 + np.arange(8)).ravel()
    moved = features[torch.from_numpy(rows)], rewards[rows], groups
    plain = fit((features, rewards, groups), objective=objective, weight_decays=(1.0,))
    other = fit(moved, objective=objective, weight_decays=(1.0,))
    # Other prompts are held out together, so that the unit of scores is a little different.
    one, two = (each.scale * each.score([features]) for each in (plain, other))
    assert torch.allclose(one, two, atol=2e-2 * plain.scale)


def test_prompts_that_ask_the_same_are_held_out_together() -> None:
    """20 questions asked twice, each known by a feature of its own and its reward by nothing else.

    Held out alone, a prompt's reward is known from its twin; held out together, nothing is.
    """
    rng = np.random.default_rng(20)
    kinds = np.repeat(np.arange(20), 4)  # of a question each of 4 samples is of its own kind
    features = np.eye(80)[np.tile(np.arange(80), 2)]
    rewards = np.tile(rng.permuted(np.tile([0.0, 0.0, 1.0, 1.0], (20, 1)), axis=1).ravel(), 2)
    groups = np.repeat(np.arange(40), 4)
    questions = np.tile(kinds, 2)
    settings = TrainingSettings(objective="mse", beta=1.0, weight_decays=(0.1,), num_folds=4)
    problems = [Problem(rewards, groups, settings, asked) for asked in (None, questions)]
    alone, together = (
        cross_validate(each, prepare([torch.tensor(features)], order=each.order)).rewards.mean()
        for each in problems
    )
    assert alone > 0.75
    assert together == pytest.approx(0.5, abs=0.01)
    with pytest.raises(TrainingError, match="tell nothing of prompts held out"):
        fit_probe([torch.tensor(features)], rewards, groups, settings, questions)
    with pytest.raises(TrainingError, match=r"num_folds: must be at most 20, .* got 21"):
        Problem(rewards, groups, replace(settings, num_folds=21), questions)


@pytest.mark.parametrize("objective", ["mse", "pg", "ppo", "bt"])
def test_the_unit_of_the_reward_does_not_matter(objective: str) -> None:
    features, rewards, groups = draw(9)
    plain = fit((features, rewards, groups), objective=objective, weight_decays=(1.0,))
    other = fit((features, 50 * rewards - 8, groups), objective=objective, weight_decays=(1.0,))
    theirs = other.score([features]).numpy()
    assert_same_direction(plain.score([features]), theirs, tolerance=2 * TOLERANCE)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_chosen_decay_finds_the_signal_among_noise(objective: str) -> None:
    """60 prompts x 8 samples of 300 features, 298 of them noise; 400 fresh prompts.

    The mean gain over base on fresh prompts is near normal; were the true gain 0, it would pass 6
    of its standard errors with probability 1e-9.
    """
    problem = draw(10, num_prompts=60, hidden=300)
    features, rewards, groups = draw(11, num_prompts=400, hidden=300)
    found = fit(problem, objective=objective, weight_decays=(100.0, 1.0, 0.1))
    gained = expected_reward(found.score([features]), rewards, groups)
    base = np.array([rewards[groups == each].mean() for each in range(400)])
    differences = gained - base
    assert differences.mean() > 6 * differences.std() / math.sqrt(400)


def test_the_decay_is_the_best_of_cross_validation() -> None:
    found = fit(draw(12, hidden=100), weight_decays=(0.001, 1.0, 100.0, 1.0), num_folds=4)
    tried = found.cross_validation
    assert [each["weight_decay"] for each in tried] == [100.0, 1.0, 0.001]
    best = max(each["reward"] for each in tried)
    chosen = [each["reward"] for each in tried if each["weight_decay"] == found.weight_decay]
    assert chosen == [best]


def test_ties_go_to_the_stronger_decay() -> None:
    """One feature: all decays give the same order and, at beta 0, the same rewards."""
    features, rewards, groups = draw(13)
    found = fit((features[:, :1], rewards, groups), beta=0.0, weight_decays=(0.1, 5.0, 1.0))
    assert len({each["reward"] for each in found.cross_validation}) == 1
    assert found.weight_decay == 5.0


def test_held_out_reward_is_that_of_fits_without_those_prompts() -> None:
    """With 2 folds of 2 prompts, each fold's reward follows from a fit on the other two."""
    features, rewards, groups = draw(14, num_prompts=4, n=20)
    for seed in range(3):
        found = fit((features, rewards, groups), weight_decays=(1.0,), seed=seed)
        options = []
        for mate in (1, 2, 3):
            raw = torch.zeros(len(groups), dtype=torch.float64)
            for train in ([0, mate], [each for each in (1, 2, 3) if each != mate]):
                mask = np.isin(groups, train)
                # Standardised by all prompts, as cross-validation is: features carry no rewards.
                z = standardised(features)
                model = LogisticRegression(C=1 / mask.sum(), tol=1e-8).fit(z[mask], rewards[mask])
                raw[~mask] = torch.tensor(model.decision_function(z)[~mask])
            scores = raw / within_std(raw, groups)
            options.append(expected_reward(scores, rewards, groups).mean())
        reward = found.cross_validation[0]["reward"]
        assert min(abs(reward - each) for each in options) < TOLERANCE / 0.1


def reference(problem: Drawn, objective: str, decay: float, *, per_prompt: bool = False) -> Vector:
    """Minimise the loss over all weights by torch's L-BFGS, in float64; return raw scores."""
    features, rewards, groups = problem
    z, places = torch.from_numpy(standardised(features)), torch.from_numpy(groups)
    told = torch.from_numpy(rewards)
    if objective != "ce":
        told = told / within_std(told, groups)
    loss = make_loss(objective, told, places, per_prompt=per_prompt)
    parameters = torch.zeros(z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [parameters],
        max_iter=3000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def step() -> float:
        value = loss(z @ parameters[:-1] + parameters[-1])
        value = value + decay / 2 * parameters[:-1].square().sum()
        (parameters.grad,) = torch.autograd.grad(value, parameters)
        return value.item()

    optimiser.step(step)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return np.asarray((z @ parameters[:-1]).detach())


def assert_same_raw_scores(found: FittedProbe, problem: Drawn, theirs: Vector) -> None:
    """Up to a bias, to 1e-4 of their standard deviation in the mean, and 1e-3 at most."""
    ours = found.scale * found.score([problem[0]]).double().numpy()
    errors = ((ours - ours.mean()) - (theirs - theirs.mean())) / theirs.std()
    assert np.sqrt(np.mean(errors**2)) < 1e-4
    assert np.abs(errors).max() < 1e-3


@pytest.mark.parametrize("shape", ["long", "wide"])
@pytest.mark.parametrize("objective", ["mse", "ce", "pg", "bt"])
@pytest.mark.parametrize("per_prompt", [False, True])
def test_weights_are_those_of_a_plain_optimiser(
    objective: str, shape: str, *, per_prompt: bool
) -> None:
    """Also with more features than samples, where the axes are those of the Gram matrix.

    ``pg`` has several optima where it is decayed little.
    """
    problem = draw(30, num_prompts=20, hidden=30 if shape == "long" else 400)
    decay = 10.0 if objective == "pg" else 0.3
    theirs = reference(problem, objective, decay, per_prompt=per_prompt)
    found = fit(problem, objective=objective, per_prompt=per_prompt, weight_decays=(decay,))
    assert_same_raw_scores(found, problem, theirs)


def test_many_samples_of_wide_features_are_fitted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decays are chosen along 8 axes of 50; the weights are those of all 50."""
    monkeypatch.setattr(inputs_module, "_MAX_FEATURES", 8)
    monkeypatch.setattr(inputs_module, "_MAX_SAMPLES", 100)
    problem = draw(31, hidden=50)
    prepared = prepare([problem[0]])
    assert prepared.reduced.shape == (320, 8)
    assert prepared.whole is not None
    theirs = reference(problem, "ce", 0.3)
    assert_same_raw_scores(fit(problem, weight_decays=(0.3,)), problem, theirs)


def test_blocks_are_dropped_one_by_one_and_folds_are_not_copied() -> None:
    """When a block is asked for, those before it are gone; a fold is a part of the same memory."""
    features, rewards, groups = draw(33, hidden=6)
    problem = Problem(rewards, groups, TrainingSettings(num_folds=4))
    alive: list[weakref.ref[torch.Tensor]] = []

    def read() -> Iterator[torch.Tensor]:
        for part in torch.split(features, 2, dim=1):
            assert all(each() is None for each in alive)
            block = part.clone()
            alive.append(weakref.ref(block))
            yield block
            del block

    found = prepare_each(read(), widths=[2, 2, 2], order=problem.order)
    assert len(alive) == 3
    assert torch.equal(found.reduced, prepare([features], order=problem.order).reduced)
    heard = features[problem.order, None]
    axes = Axes(torch.zeros(6), torch.eye(6))
    pooled = Pooled(axes, heard, torch.ones(len(heard), 1), gated=True)
    parts = problem.split(Part(found.reduced, (pooled,)))
    sizes = [len(each) for each in problem.places]
    for whole, some in (
        (found.reduced, [each.features for each in parts]),
        (heard, [each.pooled[0].means for each in parts]),
    ):
        assert [len(each) for each in some] == sizes
        assert all(each.untyped_storage().data_ptr() == whole.data_ptr() for each in some)


def test_the_axes_hold_all_that_varies() -> None:
    """The Gram matrix and the covariance give the same variances and the same products."""
    features, _, _ = draw(32, num_prompts=10, hidden=100)  # 80 samples
    wide = prepare([features])
    whole = torch.from_numpy(standardised(features))
    assert wide.whole is None
    assert torch.allclose(
        (wide.reduced @ wide.reduced.T).double(), whole @ whole.T, atol=1e-3, rtol=1e-4
    )
    long = prepare([features[:, :40]])
    assert torch.allclose(long.axes.T @ long.axes, torch.eye(40), atol=1e-5)
    assert float(long.variances.sum()) == pytest.approx(40, rel=1e-4)


def draw_planted(seed: int) -> tuple[Drawn, Vector]:
    """200 prompts x 16 of 40 features; difficulty lies along others than the reward's direction."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(200), 16)
    of_prompt, of_sample = rng.normal(size=(200, 40))[groups], rng.normal(size=(3200, 40))
    direction, hard = np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    features = of_prompt + of_sample
    logits = 2 * of_sample @ direction + 4 * of_prompt @ hard - 2 * of_prompt @ direction
    rewards = (rng.random(3200) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    return (torch.tensor(features, dtype=torch.float32), rewards, groups), direction


@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_an_intercept_for_each_prompt_finds_what_tells_its_samples_apart(objective: str) -> None:
    problem, direction = draw_planted(0)
    cosines = []
    for per_prompt in (True, False):
        found = fit(problem, objective=objective, per_prompt=per_prompt, num_folds=5)
        weights = found.weights[0].double().numpy()
        cosines.append(weights @ direction / np.linalg.norm(weights))
    assert cosines[0] > 0.95
    assert cosines[1] < 0.8


def test_blocks_are_fitted_as_one() -> None:
    features, rewards, groups = draw(33)
    settings = TrainingSettings(num_folds=2)
    whole = fit_probe([features], rewards, groups, settings)
    parts = fit_probe([features[:, :5], features[:, 5:]], rewards, groups, settings)
    assert [len(each) for each in parts.weights] == [5, 7]
    assert torch.allclose(torch.cat(parts.weights), whole.weights[0], rtol=1e-3, atol=1e-4)
    scores = parts.score([features[:, :5], features[:, 5:]])
    assert torch.allclose(scores, whole.score([features]), atol=1e-3)


def test_numbers_alone_and_beside_features() -> None:
    """What a number tells outweighs 200 features of noise; a hundredth of the decay is theirs."""
    features, rewards, groups = draw(34, hidden=200)
    rng = np.random.default_rng(0)
    number = torch.from_numpy(np.stack([3 * rewards + rng.normal(size=320), 1e3 * rewards * 0], 1))
    settings = TrainingSettings(num_folds=2, weight_decays=(1.0,))
    alone = fit_probe([], rewards, groups, settings, numbers=number)
    assert alone.weights == []
    assert alone.number_weights[1] == 0
    both = fit_probe([features], rewards, groups, settings, numbers=number)
    assert both.score([features], number).shape == (320,)
    held_out = [
        expected_reward(torch.from_numpy(each.held_out_scores), rewards, groups).mean()
        for each in (both, fit((features, rewards, groups), weight_decays=(1.0,)))
    ]
    assert held_out[0] > held_out[1] + 0.1
    scaled = features[:, :1] * 0.1  # a feature's decay is a hundred times a number's
    decayed = TrainingSettings(num_folds=2, weight_decays=(0.01,))
    one = fit_probe([], rewards, groups, settings, numbers=features[:, :1])
    other = fit_probe([scaled], rewards, groups, decayed)
    assert torch.allclose(one.number_weights * 10, other.weights[0], rtol=1e-3)


def test_a_decay_at_the_edge_is_told() -> None:
    problem = draw(12, hidden=100)
    best = fit(problem, num_folds=4).weight_decay
    for decays, side in [((best, 1e9), "weakest"), ((best, 0.0), "strongest"), ((best,), None)]:
        (*notes,) = fit(problem, num_folds=4, weight_decays=decays).notes
        assert [side in note for note in notes if side] == [True] * bool(side), notes
    assert fit(problem, num_folds=4).notes == ()


def test_progress_is_told_as_often_as_announced() -> None:
    features, rewards, groups = draw(35)
    calls: list[int] = []
    settings = TrainingSettings(num_folds=2)
    fit_probe([features], rewards, groups, settings, progress=lambda: calls.append(1))
    assert len(calls) == len(settings.decays) + 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda features: features * 0 + 3, "do not vary"),
        (lambda features: features * 1e25, "vary by more than float32 can square, in column 0"),
        (lambda features: features * math.inf, "must be finite, but row 0 is not"),
    ],
)
def test_features_that_nothing_can_be_fitted_to(
    spoil: Callable[[Tensor], Tensor], said: str
) -> None:
    features, rewards, groups = draw(36)
    with pytest.raises(TrainingError, match=said) as refused:
        fit((spoil(features), rewards, groups))
    assert refused.value.field == "features"
    with pytest.raises(TrainingError, match=said) as refused:
        fit_probe([features, spoil(features)], rewards, groups, TrainingSettings(num_folds=2))
    assert refused.value.field == "features.1"


def test_mostly_constant_features_do_no_harm() -> None:
    """Their median spread is 0, and float32 cannot hold the mean of 0.1: still nothing blows up."""
    features, rewards, groups = draw(16)
    padded = torch.cat([features, torch.full((len(features), 50), 0.1)], dim=1)
    plain = fit((features, rewards, groups), weight_decays=(1.0,))
    other = fit((padded, rewards, groups), weight_decays=(1.0,))
    assert torch.allclose(plain.score([features]), other.score([padded]), atol=1e-3)


def test_constant_features_do_no_harm() -> None:
    features, rewards, groups = draw(16)
    padded = torch.cat([features, torch.full((len(features), 3), 1000.3)], dim=1)
    plain = fit((features, rewards, groups), weight_decays=(1.0,))
    other = fit((padded, rewards, groups), weight_decays=(1.0,))
    assert torch.allclose(plain.score([features]), other.score([padded]), atol=2e-2)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("objective", "magic", "'magic'"),
        ("beta", -0.1, "-0.1"),
        ("beta", math.nan, "nan"),
        ("per_prompt", 1, "1"),
        ("weight_decays", (1.0, -2.0), "-2.0"),
        ("weight_decays", (math.inf,), "inf"),
        ("num_folds", 1, "1"),
        ("seed", -1, "-1"),
        ("seed", True, "True"),
    ],
)
def test_bad_settings_are_named(field: str, value: Any, shown: str) -> None:
    with pytest.raises(TrainingError) as refused:
        TrainingSettings(**{field: value})
    assert refused.value.field == field
    assert str(refused.value).endswith(f"got {shown}")


def test_bad_data_are_named() -> None:
    features, rewards, groups = draw(17)
    broken = features.clone()
    broken[5, 2] = math.nan
    infinite = rewards.copy()
    infinite[3] = math.inf
    flat = (groups % 2).astype(np.float64)
    one = np.where(groups == 0, rewards, 0.0)
    one[0], one[1] = 1.0, 0.0
    for field, message, problem in [
        ("features", r"row 5", (broken, rewards, groups)),
        ("features", r"\(320,\)", (features[:, 0], rewards, groups)),
        ("rewards", "inf", (features, infinite, groups)),
        ("rewards", r"\(319,\)", (features, rewards[1:], groups)),
        ("rewards", r"\(319,\)", (features, rewards, groups[1:])),
        ("groups", "sample 8", (features, rewards, groups[::-1])),
        ("rewards", "differ within no prompt", (features, flat, groups)),
        ("num_folds", "at most 1", (features, one, groups)),
        ("rewards", "0 to 1", (features, 3 * rewards, groups)),
    ]:
        with pytest.raises(TrainingError, match=message) as refused:
            fit(problem)
        assert refused.value.field == field
