"""The recipe that makes a servable probe of a dataset: split, training, heads and provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from torch import Tensor

from qprobe.data.dataset import Dataset, Reading
from qprobe.data.provenance import SEEN, note_seen
from qprobe.data.split import split_prompts
from qprobe.probe.network import Probe, ProbeInfo
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_probe

__all__ = ["make_probe", "train"]


def train(
    dataset: Dataset,
    reading: Reading,
    settings: TrainingSettings,
    *,
    test_fraction: float | None,
    licence: str | None = None,
    checkpoints: Sequence[int] = (),
) -> Probe:
    """Train a probe on a dataset, less the prompts that are set aside.

    Args:
        dataset: Loaded whole.
        reading: Stored in it.
        settings: Of the training; the seed also of the split.
        test_fraction: Of the prompts, 0 <= test_fraction < 1; None as in ``split_prompts``.
        licence: SPDX expression for the weights.
        checkpoints: Numbers of tokens. The probe gets a linear head for each, trained in the same
            way on the mean over the first so many tokens of the same layer.

    Raises:
        QProbeError: The dataset cannot be split or trained on, or lacks the reading.
    """
    kept: list[int] = list(range(len(dataset.prompts)))
    test: list[int] = []
    if test_fraction != 0:
        kept, test = split_prompts(dataset.prompts, test_fraction=test_fraction, seed=settings.seed)
    known = dataset.subset(kept)
    questions = known.questions[known.groups]

    def fit(reading: Reading, settings: TrainingSettings) -> FittedProbe:
        features = known.features(reading)
        return fit_probe(features, known.rewards, known.groups, settings, questions)

    readings = {tokens: Reading(reading.layer, "mean", tokens) for tokens in sorted({*checkpoints})}
    known.require([reading, *readings.values()])
    fitted = fit(reading, settings)
    linear = replace(settings, hidden=())
    heads = {tokens: fit(of_head, linear).layers[0] for tokens, of_head in readings.items()}
    return make_probe(dataset, reading, settings, fitted, test=test, licence=licence, heads=heads)


def make_probe(
    dataset: Dataset,
    reading: Reading,
    settings: TrainingSettings,
    fitted: FittedProbe,
    *,
    test: list[int],
    licence: str | None,
    heads: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Probe:
    """Return a fitted network as a probe that says where it comes from.

    Args:
        dataset: Loaded whole.
        reading: What the network reads.
        settings: What it was trained with.
        fitted: The network.
        test: The prompts of the dataset that it was not trained on.
        licence: SPDX expression for the weights.
        heads: (weight, bias) for each checkpoint.
    """
    manifest = dataset.manifest
    trained_on = ~np.isin(dataset.groups, test)  # (samples,)
    best = max(float(row["reward"]) for row in fitted.cross_validation)
    training = {
        "dataset": dataset.digest,
        "adapter": manifest.get("adapter"),
        "prompts": manifest.get("prompts"),
        "reward": manifest.get("reward"),
        "sampling": manifest.get("sampling"),
        "train_prompts": len(dataset.prompts) - len(test),
        "train_samples": int(trained_on.sum()),
        "train_base": float(dataset.rewards[trained_on].mean()),
        "cross_validated_reward": best,
        "weight_decay": fitted.weight_decay,
        "weight_decays": list(settings.weight_decays),
        "hidden": list(settings.hidden),
        "scale": fitted.scale,
        "seed": settings.seed,
        "k": settings.k,
        "beta": settings.beta,
        "folds": settings.num_folds,
        "qprobe": version("qprobe"),
        SEEN: note_seen([dataset.prompts[i] for i in np.unique(dataset.groups[trained_on])]),
    }
    info = ProbeInfo(
        base_model=manifest["model"],
        hidden_size=manifest["hidden_size"],
        num_layers=manifest["num_layers"],
        layer=reading.layer,
        pooling=reading.pooling,
        window=reading.window,
        objective=settings.objective,
        k=settings.k,
        beta=settings.beta,
        training=training,
        licence=licence,
        checkpoints=tuple(heads or ()),
    )
    return Probe(info, fitted.layers, heads)
