"""The recipe that makes a servable probe of a dataset: split, training, heads and provenance."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import numpy as np

from qprobe.data.dataset import Dataset
from qprobe.data.provenance import SEEN, note_seen
from qprobe.data.split import split_prompts
from qprobe.errors import ProbeFileError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.probe.probe import Probe, ProbeInfo
from qprobe.probe.reading import Reading
from qprobe.probe.terms import Terms
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_probe

__all__ = ["DEFAULT_K", "make_probe", "read_settings", "train"]

DEFAULT_K = 16
DEFAULT_SETTINGS = TrainingSettings()


def train(
    dataset: Dataset,
    reading: Reading,
    settings: TrainingSettings = DEFAULT_SETTINGS,
    *,
    k: int | None = None,
    test_fraction: float | None = None,
    licence: str | None = None,
    checkpoints: Sequence[int] = (),
    progress: Callable[[], object] = lambda: None,
) -> Probe:
    """Train a probe on a dataset, less the prompts that are set aside; ``evaluate`` takes those.

    Args:
        dataset: Loaded whole.
        reading: Stored in it.
        settings: Of the training; the seed also of the split.
        k: How many candidates the probe will recommend, from 1 to the fewest samples of a prompt;
            None takes 16, or these if they are fewer. The training does not depend on it.
        test_fraction: Of the prompts, 0 <= test_fraction < 1; None as in ``split_prompts``.
        licence: SPDX expression for the weights.
        checkpoints: Numbers of tokens. The probe gets a linear head for each, trained in the same
            way on the mean over the first so many tokens of the same layer.
        progress: Called ``len(settings.decays) + 1`` times for the probe and for each head.

    Raises:
        QProbeError: The dataset cannot be split or trained on, lacks the reading, or k is too much.
    """
    k = dataset.settle_k(k, default=DEFAULT_K)
    kept: list[int] = list(range(len(dataset.prompts)))
    test: list[int] = []
    if test_fraction != 0:
        kept, test = split_prompts(
            dataset.prompts,
            test_fraction=test_fraction,
            seed=settings.seed,
            places=dataset.places,
        )
    known = dataset.subset(kept)
    questions = known.questions[known.groups]

    def fit(reading: Reading) -> FittedProbe:
        return fit_probe(
            [known.features(reading)],
            known.rewards,
            known.groups,
            settings,
            questions,
            progress=progress,
        )

    readings = {tokens: Reading(reading.layer, "mean", tokens) for tokens in sorted({*checkpoints})}
    known.require([reading, *readings.values()])
    fitted = fit(reading)
    heads = {tokens: to_terms(of_head, fit(of_head)) for tokens, of_head in readings.items()}
    return make_probe(
        dataset, reading, settings, fitted, k=k, test=test, licence=licence, heads=heads
    )


def make_probe(
    dataset: Dataset,
    reading: Reading,
    settings: TrainingSettings,
    fitted: FittedProbe,
    *,
    k: int,
    test: list[int],
    licence: str | None,
    heads: Mapping[int, Terms] | None = None,
) -> Probe:
    """Return a fitted network as a probe that says where it comes from.

    Args:
        dataset: Loaded whole.
        reading: What the network reads.
        settings: What it was trained with.
        fitted: The network.
        k: How many candidates it recommends.
        test: The prompts of the dataset that it was not trained on.
        licence: SPDX expression for the weights.
        heads: For each checkpoint.
    """
    manifest = dataset.manifest
    trained_on = ~np.isin(dataset.groups, test)  # (samples,)
    rewards, groups = dataset.rewards[trained_on], dataset.groups[trained_on]
    best = max(float(row["reward"]) for row in fitted.cross_validation)
    training = {
        "dataset": dataset.digest,
        "adapter": manifest.get("adapter"),
        "shots": manifest.get("shots"),
        "prompts": manifest.get("prompts"),
        "reward": manifest.get("reward"),
        "sampling": manifest.get("sampling"),
        "train_prompts": len(dataset.prompts) - len(test),
        "train_samples": len(groups),
        "train_base": float(expected_rewards(rewards, rewards, groups, k=1, beta=0).mean()),
        "cross_validated_reward": best,
        "weight_decay": fitted.weight_decay,
        "weight_decays": list(settings.weight_decays),
        "per_prompt": settings.per_prompt,
        "scale": fitted.scale,
        "seed": settings.seed,
        "k": k,
        "beta": settings.beta,
        "folds": settings.num_folds,
        "qprobe": version("qprobe"),
        SEEN: note_seen([dataset.prompts[i] for i in np.unique(groups)]),
    }
    info = ProbeInfo(
        base_model=manifest["model"],
        hidden_size=manifest["hidden_size"],
        num_layers=manifest["num_layers"],
        objective=settings.objective,
        k=k,
        beta=settings.beta,
        training=training,
        licence=licence,
        checkpoints=tuple(heads or ()),
        adapter=(manifest.get("adapter") or {}).get("name"),
    )
    return Probe(info, to_terms(reading, fitted), heads)


def to_terms(reading: Reading, fitted: FittedProbe) -> Terms:
    """Return a fitted network as the one term that it is."""
    (weight,) = fitted.weights
    return Terms.linear(reading, weight.numpy(), fitted.bias)


def read_settings(info: ProbeInfo) -> TrainingSettings:
    """Return the settings that ``train`` has made a probe with.

    Raises:
        ProbeFileError: It does not say one of them.
        TrainingError: One is out of range.
    """
    training = info.training
    for name in ("weight_decays", "folds", "seed"):
        if name not in training:
            raise ProbeFileError(
                f"training.{name}", "is missing, so that the probe cannot be trained anew"
            )
    return TrainingSettings(
        objective=info.objective,
        beta=training.get("beta", info.beta),  # the header's own may be that of a schedule
        per_prompt=training.get("per_prompt", False),  # which older versions did not know
        weight_decays=tuple(training["weight_decays"]),
        num_folds=training["folds"],
        seed=training["seed"],
    )
