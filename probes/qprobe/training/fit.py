"""Fitting a probe to rewarded samples: which weight decay, and the weights.

Knows nothing of datasets or files: it takes features, rewards and groups.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.errors import TrainingError
from qprobe.probe.values import OBJECTIVES, is_beta
from qprobe.training.folds import make_folds
from qprobe.training.objectives import make_loss, segment_mean, segment_softmax
from qprobe.training.optimiser import Layers, fit_path, forward, prepare

__all__ = ["FittedProbe", "TrainingSettings", "fit_probe"]

Json = dict[str, Any]
# Strong to weak. At the strong end the weights are the loss's gradient at 0, up to their size, and
# a stronger decay changes nothing; the weak end nearly interpolates where samples are few.
_LINEAR_WEIGHT_DECAYS = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
# An MLP decays to 0 for good beyond some strength, near 0.3 to 1.
_MLP_WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03)
# Scores that vary within prompts by less than this share of the weights' norm are rounding.
_MIN_SPREAD = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train a probe.

    Attributes:
        objective: One of ``qprobe.probe.probe.OBJECTIVES``.
        beta: Temperature at which cross-validation judges, in units of the finished score, >= 0.
            It does not enter the loss: see ``fit_probe``.
        hidden: Widths of the hidden layers, each >= 1; at most 2 of them. None is a linear probe.
        weight_decays: Those to choose from, each >= 0: the loss plus half of it times the sum of
            squared weights on standardised features is minimised. As the loss is a mean, its
            meaning does not change with the number of samples. Empty takes a grid that suits
            ``hidden``.
        num_folds: Of cross-validation over prompts, >= 2.
        seed: Of the folds and of an MLP's first weights, >= 0.

    Raises:
        TrainingError: A setting is out of range; it is named.
    """

    objective: str = "ce"
    beta: float = 0.1
    hidden: tuple[int, ...] = ()
    weight_decays: tuple[float, ...] = ()
    num_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            allowed = ", ".join(OBJECTIVES)
            raise TrainingError("objective", f"must be one of {allowed}, got {self.objective!r}")
        if not is_beta(self.beta):
            raise TrainingError("beta", f"must be a finite number >= 0, got {self.beta!r}")
        for name, lowest in (("num_folds", 2), ("seed", 0)):
            _check_count(name, getattr(self, name), lowest=lowest)
        if len(self.hidden) > 2:
            raise TrainingError("hidden", f"must be at most 2 widths, got {self.hidden!r}")
        for width in self.hidden:
            _check_count("hidden", width, lowest=1)
        for decay in self.weight_decays:
            if not is_beta(decay):
                raise TrainingError("weight_decays", f"must be finite and >= 0, got {decay!r}")


@dataclass(frozen=True)
class FittedProbe:
    """A trained network, and how it came about.

    Attributes:
        layers: (weight, bias) of each layer, float32 on CPU, as ``Probe`` takes them: for raw
            features, with scores of standard deviation 1 within the prompts trained on.
        weight_decay: The one chosen.
        scale: That standard deviation before it was divided away. With ``pg`` and ``ppo``, trained
            as softmax(score), resampling at beta = 1 / scale is the policy that was trained.
        cross_validation: ``{"weight_decay", "reward"}`` for each tried, strongest first; the reward
            is the mean expected reward on held-out prompts.
    """

    layers: list[tuple[Tensor, Tensor]]
    weight_decay: float
    scale: float
    cross_validation: list[Json]

    def score(self, features: Tensor) -> Tensor:
        """Score raw features: (samples, hidden) of any float dtype to (samples,) float32."""
        return forward(features.to(torch.float32), self.layers)


@dataclass(frozen=True)
class _Samples:
    features: Tensor  # (samples, axes) float32
    rewards: Tensor  # (samples,) float64
    groups: Tensor  # (samples,) int64; all of them together have no gap from 0 up

    def where(self, mask: Tensor) -> "_Samples":
        return _Samples(self.features[mask], self.rewards[mask], self.groups[mask])


def fit_probe(
    features: Tensor,
    rewards: NDArray[np.float64],
    groups: NDArray[np.int64],
    settings: TrainingSettings,
    questions: NDArray[np.int64] | None = None,
) -> FittedProbe:
    """Train a probe.

    Features are standardised by the training samples, and that is folded into the weights. The
    weight decay is the one with the highest expected reward of resampling on held-out prompts, all
    samples of a prompt being the candidates.

    Temperature: losses are taken at beta = 1. With any other the weights would only come out in
    another unit (and the decays mean something else), and units are divided away in the end. For
    the same reason ``dpo`` has the same optimum as ``bt``. Rewards count in units of their standard
    deviation within prompts, except for ``ce``, so that decays do not depend on the reward's unit.

    It runs on one thread: with two, a step on 2,500 x 576 took up to 5 times as long on a busy
    machine, and the last bits may depend on their number. The same arguments give the same bits.

    Args:
        features: Shape (samples, hidden), any float dtype, finite.
        rewards: Shape (samples,), finite; from 0 to 1 for ``ce``.
        groups: Shape (samples,): the prompt of each, never decreasing.
        settings: How.
        questions: Shape (samples,): what the prompt of each asks. Prompts that ask the same, as
            pairs of preferences do, are held out together. None: each asks something else.

    Raises:
        TrainingError: Data are not as above, fewer than ``num_folds`` questions have differing
            rewards, or the network learnt nothing (its weights decayed to 0).
    """
    _check_data(features, rewards, groups)
    folds = make_folds(
        rewards,
        groups,
        groups if questions is None else questions,
        num_folds=settings.num_folds,
        seed=settings.seed,
    )
    decays = settings.weight_decays or (
        _MLP_WEIGHT_DECAYS if settings.hidden else _LINEAR_WEIGHT_DECAYS
    )
    decays = tuple(sorted(set(decays), reverse=True))
    with _one_thread():
        inputs = prepare(features)
        samples = _Samples(
            inputs.features,
            torch.as_tensor(rewards, dtype=torch.float64),
            torch.from_numpy(np.unique(groups, return_inverse=True)[1]),
        )
        held_out = _cross_validate(samples, folds, inputs.variances, decays, settings)
        chosen = int(held_out.mean(1).argmax())  # the first of equals, thus the strongest
        *_, (layers, scale) = _fit(samples, inputs.variances, decays[: chosen + 1], settings)
        layers = inputs.undo(layers)
    if scale is None:
        raise TrainingError(
            "weight_decays", f"leave nothing of the network at the best, {decays[chosen]!r}"
        )
    return FittedProbe(
        layers=[(weight.contiguous(), bias.contiguous()) for weight, bias in layers],
        weight_decay=decays[chosen],
        scale=scale,
        cross_validation=[
            {"weight_decay": decay, "reward": float(reward)}
            for decay, reward in zip(decays, held_out.mean(1), strict=True)
        ],
    )


def _cross_validate(
    samples: _Samples,
    folds: Tensor,
    variances: Tensor,
    decays: tuple[float, ...],
    settings: TrainingSettings,
) -> NDArray[np.float64]:
    """Return the expected reward of each held-out prompt: shape (decays, prompts)."""
    rewards = np.empty((len(decays), len(folds)))
    sample_folds = folds[samples.groups]
    for fold in range(settings.num_folds):
        train, test = samples.where(sample_folds != fold), samples.where(sample_folds == fold)
        for row, (layers, scale) in enumerate(_fit(train, variances, decays, settings)):
            scores = forward(test.features, layers).double()
            # A probe that learnt nothing chooses evenly. A tiny beta is the limit beta = 0.
            logits = scores * 0 if scale is None else scores / max(settings.beta, 1e-12)
            weights = segment_softmax(logits, test.groups)
            _, sizes = torch.unique_consecutive(test.groups, return_counts=True)
            gained = segment_mean(weights * test.rewards, test.groups) * sizes  # (prompts,)
            rewards[row, (folds == fold).numpy()] = gained.numpy()
    return rewards


def _fit(
    samples: _Samples, variances: Tensor, decays: tuple[float, ...], settings: TrainingSettings
) -> Iterator[tuple[Layers, float | None]]:
    """Yield, for each decay, the network with scores of spread 1 and the spread before; or None."""
    rewards = samples.rewards
    if settings.objective != "ce":
        rewards = rewards / _spread(rewards, samples.groups)
    fits = fit_path(
        samples.features,
        make_loss(settings.objective, rewards, samples.groups),
        variances=variances,
        # That of a square, or the most that a logistic loss has; the others come close enough.
        curvature=2.0 if settings.objective == "mse" else 0.25,
        weight_decays=decays,
        hidden=settings.hidden,
        seed=settings.seed,
    )
    for layers in fits:
        scale = _spread(forward(samples.features, layers).double(), samples.groups)
        size = math.sqrt(sum(float(weight.double().square().sum()) for weight, _ in layers))
        if not scale > _MIN_SPREAD * size:
            yield layers, None
            continue
        *rest, (weight, bias) = layers
        yield [*rest, (weight / scale, bias / scale)], scale


def _spread(values: Tensor, groups: Tensor) -> float:
    """Standard deviation within prompts: root of the mean over prompts of the unbiased variance.

    Prompts with one sample say nothing of it. Unbiased, so that it means the same for 2 samples a
    prompt as for 200.
    """
    _, segments, sizes = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    deviations = values - segment_mean(values, groups)[segments]
    variances = segment_mean(deviations.square(), groups)[sizes > 1]
    sizes = sizes[sizes > 1]
    return float((variances * sizes / (sizes - 1)).mean().sqrt())


def _check_data(features: Tensor, rewards: NDArray[np.float64], groups: NDArray[np.int64]) -> None:
    if features.ndim != 2 or 0 in features.shape:
        raise TrainingError("features", f"must be (samples, hidden), got {tuple(features.shape)!r}")
    for name, array in (("rewards", rewards), ("groups", groups)):
        if array.shape != (len(features),):
            raise TrainingError(name, f"must be ({len(features)!r},), got {array.shape!r}")
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise TrainingError("features", f"must be finite, but row {row!r} is not")
    if not np.isfinite(rewards).all():
        raise TrainingError("rewards", f"must be finite, got {rewards[~np.isfinite(rewards)][0]!r}")
    if (np.diff(groups) < 0).any():
        place = int((np.diff(groups) < 0).argmax()) + 1
        raise TrainingError("groups", f"must not decrease, but does at sample {place!r}")


def _check_count(name: str, value: object, *, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise TrainingError(name, f"must be an integer >= {lowest}, got {value!r}")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
