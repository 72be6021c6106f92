"""``qprobe schedule``: choose when a probe drops candidates, and write the probe that says so.

Needs no engine. The heads that score the prompts to choose on have not been trained on them.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qprobe import Probe, ProbeInfo, load_probe, save_probe
from qprobe.data.dataset import Dataset, Reading
from qprobe.data.provenance import SEEN_BY_SCHEDULE, note_seen
from qprobe.data.split import has_split, split_prompts
from qprobe.errors import DatasetError, EvaluationError, ProbeFileError
from qprobe.evaluation.held_out import check_same_adapter, check_same_model, list_unseen
from qprobe.probe.network import is_beta
from qprobe.rejection.choice import choose_schedule
from qprobe.rejection.measures import measure_schedule
from qprobe.rejection.scores import cross_fit, score_samples
from qprobe.rejection.simulation import ScoredSamples
from qprobe.reports.schedule import write_schedule_report
from qprobe.training.fit import TrainingSettings
from qprobe_server.errors import StartupError

__all__ = ["run"]

Json = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Choose a schedule, write the report and the probe that recommends it.

    Raises:
        QProbeError: The probe or the dataset is not valid, or they do not go together.
    """
    _check_arguments(args)
    probe = load_probe(args.probe)
    # What a former schedule was chosen on says nothing of this one.
    training = probe.info.training.items()
    info = replace(
        probe.info,
        training={name: value for name, value in training if name != SEEN_BY_SCHEDULE},
    )
    if not info.checkpoints:
        raise ProbeFileError(
            "checkpoints", f"{str(args.probe)!r} has none: train it with --checkpoints"
        )
    dataset = Dataset.load(args.data)
    check_same_model(info, dataset)
    check_same_adapter(info, dataset)
    heads = [Reading(info.layer, "mean", tokens) for tokens in info.checkpoints]
    dataset.require([Reading(info.layer, info.pooling, info.window), *heads])
    k = info.k if args.k is None else args.k
    beta = info.beta if args.beta is None else args.beta
    fewest = int(np.bincount(dataset.groups, minlength=len(dataset.prompts)).min())
    if not 1 <= k <= fewest:
        raise EvaluationError(
            "k", f"must be from 1 to {fewest}, the fewest samples of a prompt, got {k}"
        )
    chosen_on, unseen, held_out, seen_now = _score(probe, info, dataset)
    choice = choose_schedule(chosen_on, k=k, beta=beta, budget=args.budget, reward=args.reward)
    metrics = {
        **measure_schedule(choice, chosen_on, unseen, k=k, beta=beta),
        "title": f"Early rejection with {args.probe.name}",
        "goal": f"the best within {args.budget:.0%} of the tokens"
        if args.reward is None
        else f"the cheapest that earns {args.reward:g}",
        "held_out": held_out,
        "settings": {
            "model": info.base_model,
            "reading": str(Reading(info.layer, info.pooling, info.window)),
            "checkpoints": ", ".join(map(str, info.checkpoints)),
            "objective": info.objective,
            "dataset": dataset.digest,
        },
    }
    # ``eval`` may not judge the schedule by what it was chosen on.
    noted = {SEEN_BY_SCHEDULE: note_seen(seen_now)} if seen_now else {}
    made = replace(
        info, k=k, beta=beta, schedule=choice.chosen.schedule, training={**info.training, **noted}
    )
    write_schedule_report(metrics, args.report)
    save_probe(Probe(made, probe.layers, probe.heads), args.output)
    _print_headline(metrics)
    sys.stdout.write(f"{args.report / 'schedule.html'}\n{args.output}\n")


def _check_arguments(args: argparse.Namespace) -> None:
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise StartupError(
            f"--output {str(args.output)!r} must be a file in a folder that is there"
        )
    if args.report.exists() and not args.report.is_dir():
        raise StartupError(f"--report {str(args.report)!r} must be a folder")
    if not 0 < args.budget <= 1:
        raise StartupError(f"--budget must be above 0 and at most 1, got {args.budget!r}")
    if args.reward is not None and not math.isfinite(args.reward):
        raise StartupError(f"--reward must be a finite number, got {args.reward!r}")
    if args.beta is not None and not is_beta(args.beta):
        raise StartupError(f"--beta must be a finite number >= 0, got {args.beta!r}")


def _score(
    probe: Probe, info: ProbeInfo, dataset: Dataset
) -> tuple[ScoredSamples, ScoredSamples, str, Sequence[Json]]:
    """Return scores of the prompts to choose on and of others.

    Also how the former are held out, and those of them that the probe had not seen before.
    """
    unseen = list_unseen(info, dataset)
    known = sorted(set(range(len(dataset.prompts))) - set(unseen))
    if not known:
        fraction = None if has_split(dataset.prompts) else 0.5
        known, unseen = split_prompts(dataset.prompts, test_fraction=fraction)
        chosen_on = score_samples(probe, dataset.subset(known))
        held_out = "a part of the dataset, which the probe was not trained on"
        new = [dataset.prompts[index] for index in known]
        return chosen_on, score_samples(probe, dataset.subset(unseen)), held_out, new
    trained_on = info.training.get("train_prompts")
    if len(known) != trained_on:
        raise DatasetError(
            "folder",
            f"has {len(known)} of the {trained_on} prompts that the probe was trained on: choose "
            "on all of them, or on none",
        )
    settings = _training_settings(info)
    chosen_on = cross_fit(
        dataset.subset(known),
        info,
        settings,
        progress=lambda line: sys.stderr.write(f"{line}\n"),
    )
    held_out = (
        "those of its training, each scored by heads trained anew without it, in "
        f"{settings.num_folds} folds"
    )
    return chosen_on, score_samples(probe, dataset.subset(unseen)), held_out, []


def _training_settings(info: ProbeInfo) -> TrainingSettings:
    training = info.training
    for name in ("hidden", "weight_decays", "folds", "seed"):
        if name not in training:
            raise ProbeFileError(
                f"training.{name}", "is missing, and the probe must be trained anew on folds"
            )
    return TrainingSettings(
        objective=info.objective,
        # The header's own may be those of a schedule chosen before.
        beta=training.get("beta", info.beta),
        k=training.get("k", info.k),
        hidden=tuple(training["hidden"]),
        weight_decays=tuple(training["weight_decays"]),
        num_folds=training["folds"],
        seed=training["seed"],
    )


def _print_headline(metrics: Json) -> None:
    write = sys.stdout.write
    chosen, k = metrics["chosen"], metrics["k"]
    whole = next(row for row in metrics["best_of_k"] if row["k"] == k)
    counts = metrics["num_prompts"]
    write(
        f"schedule {chosen['schedule'] or '(none)'}, chosen on {counts['choice']} prompts; on "
        f"{counts['unseen']} others, k={k}, beta={metrics['beta']:g}:\n"
    )
    for name, row in ((f"best of {k}", whole), ("schedule", chosen["unseen"])):
        write(
            f"{name:11}{row['reward']:.4f}  ({row['low']:.4f} to {row['high']:.4f})  "
            f"{row['tokens']:.0f} tokens\n"
        )
    minus = chosen["unseen"]["minus_best_of_k"]
    write(
        f"difference {minus['difference']:+.4f}  ({minus['low']:+.4f} to {minus['high']:+.4f})  "
        f"{chosen['unseen']['tokens_share']:.0%} of the tokens\n"
    )
