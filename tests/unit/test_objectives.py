"""The losses, against values by hand, exact enumeration and scikit-learn."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from qprobe.errors import TrainingError
from qprobe.probe.values import OBJECTIVES
from qprobe.training.objectives import (
    bt,
    ce,
    dpo,
    make_loss,
    mse,
    pg,
    ppo,
)
from qprobe.training.segments import segment_mean, segment_softmax

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Objective] = {"mse": mse, "ce": ce, "pg": pg, "ppo": ppo, "bt": bt, "dpo": dpo}

# Three prompts of 3, 1 and 2 samples; their numbers have a gap.
GROUPS = torch.tensor([0, 0, 0, 2, 5, 5])
SCORES = torch.tensor([0.0, math.log(2), 0.0, 1.0, math.log(3), 0.0], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 1.0], dtype=torch.float64)
# Softmax by prompt: (1/4, 1/2, 1/4), (1), (3/4, 1/4).
WEIGHTS = [0.25, 0.5, 0.25, 1.0, 0.75, 0.25]


def test_softmax_and_mean_by_prompt_by_hand() -> None:
    assert segment_softmax(SCORES, GROUPS).tolist() == pytest.approx(WEIGHTS)
    assert segment_mean(REWARDS, GROUPS).tolist() == [0.5, 1.0, 0.5]
    huge = torch.tensor([1e6, 0.0, -1e6, 5.0, -1e6, -1e6])
    assert segment_softmax(huge, GROUPS).tolist() == [1, 0, 0, 1, 0.5, 0.5]


def test_mse_by_hand() -> None:
    parts = [0, (math.log(2) - 1) ** 2, 0.25, 0, math.log(3) ** 2, 1]
    assert float(mse(SCORES, REWARDS, GROUPS)) == pytest.approx(sum(parts) / 6)


def test_ce_by_hand() -> None:
    """sigmoid(log a) = a / (1 + a)."""
    right = [1 / 2, 2 / 3, 1 / 2, 1 / (1 + math.exp(-1)), 1 / 4, 1 / 2]
    assert float(ce(SCORES, REWARDS, GROUPS)) == pytest.approx(-np.log(right).mean())


def test_pg_by_hand() -> None:
    """Advantages are (-1/2, 1/2, 0), (0), (-1/2, 1/2); prompts give 1/8, 0 and -1/4."""
    assert float(pg(SCORES, REWARDS, GROUPS)) == pytest.approx(-(1 / 8 - 1 / 4) / 3)
    assert float(pg(SCORES / 5, REWARDS, GROUPS, beta=0.2)) == pytest.approx(1 / 24)


def test_ppo_by_hand() -> None:
    """Ratios are (3/4, 3/2, 3/4), (1), (3/2, 1/2), clipped to (0.8, 1.2, 0.8), (1), (1.2, 0.8).

    The lesser of the clipped and the plain gain: (-0.4, 0.6, 0), (0), (-0.75, 0.25).
    """
    expected = -((-0.4 + 0.6) / 3 + 0 + (-0.75 + 0.25) / 2) / 3
    assert float(ppo(SCORES, REWARDS, GROUPS)) == pytest.approx(expected)
    assert float(ppo(SCORES, REWARDS, GROUPS, clip=9.0)) == pytest.approx(
        float(pg(SCORES, REWARDS, GROUPS))
    )


def test_bt_by_hand() -> None:
    """Prompt 0 has pairs (1,0), (1,2), (2,0) with sigmoids 2/3, 2/3, 1/2; prompt 5 (5,4) with 1/4.

    Prompts count the same, and prompt 2 has no pair.
    """
    expected = (-(2 * math.log(2 / 3) + math.log(1 / 2)) / 3 - math.log(1 / 4)) / 2
    assert float(bt(SCORES, REWARDS, GROUPS)) == pytest.approx(expected)


def test_dpo_is_bt_of_the_implied_log_ratio() -> None:
    """With log pi / p0 = Q / beta - log mean exp(Q / beta) written out, normaliser and all."""
    beta, dpo_beta = 0.5, 0.2
    scores = SCORES[:3]
    ratio = scores / beta - (scores / beta).exp().mean().log()
    margins = torch.stack([ratio[1] - ratio[0], ratio[1] - ratio[2], ratio[2] - ratio[0]])
    expected = -torch.sigmoid(dpo_beta * margins).log().mean()
    found = dpo(scores, REWARDS[:3], GROUPS[:3], beta=beta, dpo_beta=dpo_beta)
    assert float(found) == pytest.approx(float(expected))
    scaled = bt(scores * dpo_beta / beta, REWARDS[:3], GROUPS[:3])
    assert float(found) == pytest.approx(float(scaled))
    assert float(dpo(scores, REWARDS[:3], GROUPS[:3], beta=0.3)) == pytest.approx(
        float(bt(scores, REWARDS[:3], GROUPS[:3]))
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, REWARDS, GROUPS), scores)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_make_loss_is_the_plain_function(name: str) -> None:
    assert float(make_loss(name, REWARDS, GROUPS)(SCORES)) == float(
        LOSSES[name](SCORES, REWARDS, GROUPS)
    )


@pytest.mark.parametrize("name", ["pg", "ppo", "bt", "dpo"])
def test_a_constant_added_to_a_prompt_changes_nothing(name: str) -> None:
    moved = SCORES + torch.tensor([7.0, -3.0, 0.5, 0.0, 0.0, 1.0])[GROUPS]
    assert float(LOSSES[name](moved, REWARDS, GROUPS)) == pytest.approx(
        float(LOSSES[name](SCORES, REWARDS, GROUPS))
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_samples_of_a_prompt_may_come_in_any_order(name: str) -> None:
    order = torch.tensor([2, 0, 1, 3, 5, 4])
    moved = LOSSES[name](SCORES[order], REWARDS[order], GROUPS)
    assert float(moved) == pytest.approx(float(LOSSES[name](SCORES, REWARDS, GROUPS)))


def exact_policy_gradient(q: Tensor, rewards: Tensor, p0: Tensor, beta: float) -> Tensor:
    """d E_pi[r] / dQ for pi ~ p0 exp(Q / beta), in closed form: pi (r - E_pi r) / beta."""
    policy = p0 * (q / beta).exp()
    policy = policy / policy.sum()
    return policy * (rewards - (policy * rewards).sum()) / beta


P0 = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
ACTION_REWARDS = torch.tensor([1.0, 0.2, 0.7, 0.0], dtype=torch.float64)
Q = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)


def sampled_gradient(actions: Tensor, beta: float) -> Tensor:
    q = Q.clone().requires_grad_()
    loss = pg(q[actions], ACTION_REWARDS[actions], torch.zeros_like(actions), beta=beta)
    (gradient,) = torch.autograd.grad(-loss, q)
    return gradient


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_pg_is_the_policy_gradient_where_samples_are_proportional(beta: float) -> None:
    """With 1, 2, 3 and 4 samples of the actions the empirical base model is p0, exactly."""
    actions = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 2, 3, 4]))
    exact = exact_policy_gradient(Q, ACTION_REWARDS, P0, beta)
    assert torch.allclose(sampled_gradient(actions, beta), exact, atol=1e-12)


@pytest.mark.parametrize("num", [100_000, 1_000_000])
def test_pg_converges_at_the_monte_carlo_rate(num: int) -> None:
    """N samples of p0 put each frequency within e = sqrt(ln(8 / 1e-9) / 2N) of it (Hoeffding).

    The gradient is that of the frequencies. With u = exp(Q) and Z = sum p0 u, the normaliser errs
    by a share of at most s = e sum(u) / Z, so pi_x by (e u_x / Z + pi_x s) / (1 - s) and all of pi
    by 2 s / (1 - s) in sum. With 0 <= r <= 1, pi_x (r_x - E r) errs by at most the first plus pi_x
    times the second. That is below the largest entry, so a wrong sign or factor 2 shows.
    """
    generator = torch.Generator().manual_seed(0)
    actions = torch.multinomial(P0, num, replacement=True, generator=generator)
    exact = exact_policy_gradient(Q, ACTION_REWARDS, P0, 1.0)
    e = math.sqrt(math.log(8 / 1e-9) / (2 * num))
    u = Q.exp()
    z = float((P0 * u).sum())
    s = e * float(u.sum()) / z
    bound = (e * u / z + 3 * (P0 * u / z) * s) / (1 - s)  # (actions,)
    assert bool(((sampled_gradient(actions, 1.0) - exact).abs() <= bound).all())
    assert float(bound.max()) < float(exact.abs().max())


def test_pairs_of_many_ragged_prompts_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, size=40)
    groups = np.repeat(np.arange(40), sizes)
    rewards = rng.integers(0, 4, size=len(groups)) / 3
    scores = rng.normal(size=len(groups))
    means = []
    for prompt in range(40):
        mine = np.flatnonzero(groups == prompt)
        losses = [
            np.log1p(np.exp(scores[j] - scores[i]))
            for i in mine
            for j in mine
            if rewards[i] > rewards[j]
        ]
        if losses:
            means.append(np.mean(losses))
    found = bt(torch.tensor(scores), torch.tensor(rewards), torch.tensor(groups))
    assert float(found) == pytest.approx(np.mean(means))


@pytest.mark.parametrize("bad", [-0.25, 1.5])
def test_ce_refuses_rewards_outside_its_range(bad: float) -> None:
    rewards = REWARDS.clone()
    rewards[2] = bad
    with pytest.raises(TrainingError, match=f"0 to 1.*{bad!r}") as refused:
        ce(SCORES, rewards, GROUPS)
    assert refused.value.field == "rewards"


@pytest.mark.parametrize("name", ["bt", "dpo"])
def test_pairwise_losses_need_a_pair(name: str) -> None:
    rewards = torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0, 1.0], dtype=torch.float64)
    with pytest.raises(TrainingError, match="no pair") as refused:
        LOSSES[name](SCORES, rewards, GROUPS)
    assert refused.value.field == "rewards"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shapes_must_agree(name: str) -> None:
    with pytest.raises(TrainingError, match=r"rewards.*\(6,\).*\(5,\)"):
        LOSSES[name](SCORES, REWARDS[:5], GROUPS)
    with pytest.raises(TrainingError, match=r"groups.*\(6,\).*\(4,\)"):
        LOSSES[name](SCORES, REWARDS, GROUPS[:4])
    with pytest.raises(TrainingError, match="scores"):
        LOSSES[name](SCORES[None], REWARDS, GROUPS)


def test_unknown_objectives_are_named() -> None:
    with pytest.raises(TrainingError, match="magic") as refused:
        make_loss("magic", REWARDS, GROUPS)
    assert refused.value.field == "objective"


@pytest.mark.parametrize("seed", range(5))
def test_intercepts_are_those_that_make_the_loss_least(seed: int) -> None:
    """Against intercepts as parameters; prompts of equal rewards cost nothing and teach nothing."""
    rng = np.random.default_rng(seed)
    groups = torch.from_numpy(np.repeat(np.arange(6), rng.integers(2, 9, 6)))
    scores = torch.from_numpy(6 * rng.normal(size=len(groups))).requires_grad_()
    rewards = torch.from_numpy(rng.choice([0.0, 0.3, 1.0], len(groups)))
    rewards[groups == 2] = 1.0
    rewards[groups == 4] = 0.0
    intercepts = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    telling = (groups != 2) & (groups != 4)
    optimiser = torch.optim.LBFGS(
        [intercepts],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def plain() -> Tensor:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            scores + intercepts[groups], rewards, reduction="none"
        )
        return losses[telling].sum() / len(groups)

    def step() -> float:
        value = plain()
        (intercepts.grad,) = torch.autograd.grad(value, intercepts)
        return value.item()

    optimiser.step(step)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    loss = make_loss("ce", rewards, groups, per_prompt=True)
    assert loss(scores).item() == pytest.approx(plain().item(), abs=1e-9)
    (found,) = torch.autograd.grad(loss(scores), scores)
    (expected,) = torch.autograd.grad(plain(), scores)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["mse", "ce"])
def test_with_intercepts_a_constant_added_to_a_prompt_changes_nothing(name: str) -> None:
    loss = make_loss(name, REWARDS, GROUPS, per_prompt=True)
    moved = SCORES + torch.tensor([7.0, -3.0, 0.5, 0.0, 0.0, 1.0])[GROUPS]
    assert float(loss(moved)) == pytest.approx(float(loss(SCORES)))


def test_of_many_pairs_some_stand_for_all() -> None:
    """Of 100 x 100 pairs 3,200, with every sample, weigh 1; their loss is near that of all."""
    rng = np.random.default_rng(0)
    rewards = torch.from_numpy(rng.permutation(np.repeat([0.0, 1.0], 100)))
    scores = torch.from_numpy(rng.normal(size=200)) + rewards
    scores.requires_grad_()
    loss = make_loss("bt", rewards, torch.zeros(200, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss(scores), scores)
    assert bool((gradient != 0).all())
    margins = scores[rewards == 1][:, None] - scores[rewards == 0]
    whole = torch.nn.functional.softplus(-margins).mean()
    assert loss(scores).item() == pytest.approx(whole.item(), rel=0.02)
