"""Compares ways of training on one dataset, by prompts that each probe has not seen.

Prompts that the rows set aside as ``test`` are left out. Every other one is held out once: a probe
is trained on the other folds, its weight decay chosen by cross-validation within them. So all of
these prompts count, and the ways are compared pairwise on them.

    python probes/recipes/compare.py build/python --reading 15/mean/48
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.data.dataset import Dataset
from qprobe.data.split import has_split, split_prompts
from qprobe.errors import QProbeError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expected_rewards
from qprobe.probe.reading import Reading
from qprobe.probe.values import OBJECTIVES
from qprobe.training.fit import TrainingSettings, fit_probe

__all__ = ["held_out_rewards", "main"]

Floats = NDArray[np.float64]
_NUM_FOLDS = 5


def held_out_rewards(
    dataset: Dataset,
    features: Tensor,
    settings: TrainingSettings,
    *,
    k: int,
    train_prompts: int = 0,
) -> Floats:
    """Return each prompt's expected reward with the probe of the folds that it is not in.

    Args:
        dataset: At least k samples a prompt.
        features: Shape (samples, any width), of its samples.
        settings: Of the training; seed also of the folds, beta also of the choice.
        k: How many samples a choice is among.
        train_prompts: Train on so many of the other folds' prompts only; 0 takes all.

    Returns:
        Shape (prompts,).
    """
    num_prompts = len(dataset.prompts)
    rng = np.random.default_rng(settings.seed)
    folds = rng.permutation(num_prompts) % _NUM_FOLDS
    scores = np.zeros(len(dataset.samples))
    for fold in range(_NUM_FOLDS):
        known = rng.permutation(np.flatnonzero(folds != fold))[: train_prompts or None]
        train, test = np.isin(dataset.groups, known), folds[dataset.groups] == fold
        fitted = fit_probe(
            [features[train]],
            dataset.rewards[train],
            dataset.groups[train],
            settings,
            dataset.questions[dataset.groups[train]],
        )
        scores[test] = fitted.score([features[test]]).double().numpy()
    return expected_rewards(scores, dataset.rewards, dataset.groups, k=k, beta=settings.beta)


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("--reading", required=True, metavar="15/mean/48", help="of the reference")
    parser.add_argument("--objective", default="ce", help="of the reference; default ce")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--beta", type=float, default=0.1)
    args = parser.parse_args(argv)
    try:
        _compare(args)
    except QProbeError as error:
        sys.exit(f"compare: {error}")


def _compare(args: argparse.Namespace) -> None:
    dataset = Dataset.load(args.data)
    if has_split(dataset.prompts):  # what is chosen here must not have looked at the test prompts
        dataset = dataset.subset(split_prompts(dataset.prompts)[0])
    reading = Reading.parse(args.reading)
    settings = TrainingSettings(objective=args.objective, beta=args.beta)
    groups, rewards = dataset.groups, dataset.rewards
    bootstrap = Bootstrap(len(dataset.prompts))
    base = expected_rewards(rewards, rewards, groups, k=1, beta=0)
    ceiling = expected_rewards(rewards, rewards, groups, k=args.k, beta=0)
    reference = held_out_rewards(dataset, dataset.features(reading), settings, k=args.k)

    def show(name: str, values: Floats) -> None:
        mean, over = bootstrap.mean(values), bootstrap.mean(values - reference)
        closed = (values - base).sum() / (ceiling - base).sum()
        sys.stdout.write(
            f"{name:34} {mean.value:.3f}  {closed:4.0%}   "
            f"{over.value:+.3f} ({over.low:+.3f} to {over.high:+.3f})\n"
        )
        sys.stdout.flush()

    sys.stdout.write(
        f"{len(dataset.prompts)} prompts, k={args.k}, beta={args.beta:g}\n"
        f"{'':34} reward  gap   minus the reference (95 % interval)\n"
    )
    show("base", base)
    show("ceiling", ceiling)
    show(f"{reading} {args.objective}: the reference", reference)
    for name, readings, train_prompts, changes in _list_variants(dataset, reading, args.objective):
        # A linear probe over several layers is a sum of probes, each with its own layer.
        features = torch.cat([dataset.features(each) for each in readings], dim=1)
        try:
            show(
                name,
                held_out_rewards(
                    dataset,
                    features,
                    replace(settings, **changes),
                    k=args.k,
                    train_prompts=train_prompts,
                ),
            )
        except QProbeError as error:
            sys.stdout.write(f"{name:34} -       {error}\n")


def _list_variants(
    dataset: Dataset, reading: Reading, objective: str
) -> list[tuple[str, list[Reading], int, dict[str, Any]]]:
    """Return what to try: its name, what is read, on how many prompts, and other settings."""
    layers = list(dict.fromkeys(each.layer for each in dataset.readings))
    same_pooling = [replace(reading, layer=layer) for layer in layers]
    same_layer = [each for each in dataset.readings if each.layer == reading.layer]
    total = len(dataset.prompts) * (_NUM_FOLDS - 1) // _NUM_FOLDS
    sizes = [size for size in (10, 20, 40, 80) if size < total]
    return [
        *((f"trained on {size} prompts, not {total}", [reading], size, {}) for size in sizes),
        *(
            (f"objective {name}", [reading], 0, {"objective": name})
            for name in OBJECTIVES
            if name not in (objective, "dpo")  # which is bt by another name
        ),
        *((str(each), [each], 0, {}) for each in [*same_pooling, *same_layer] if each != reading),
        (f"{len(layers)} layers concatenated", same_pooling, 0, {}),
        (f"{len(same_layer)} poolings concatenated", same_layer, 0, {}),
        ("an intercept for each prompt", [reading], 0, {"per_prompt": True}),
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
