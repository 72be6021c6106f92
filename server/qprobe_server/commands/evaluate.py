"""``qprobe eval``: a report on a probe, by prompts that it was not trained on.

Needs no engine.
"""

import argparse
import sys
from typing import Any

from qprobe import load_probe
from qprobe.data.dataset import Dataset, Reading
from qprobe.data.provenance import SEEN, SEEN_BY_SCHEDULE
from qprobe.errors import DatasetError
from qprobe.evaluation.held_out import check_same_adapter, check_same_model, list_unseen
from qprobe.evaluation.metrics import evaluate
from qprobe.rejection.measures import judge_schedule
from qprobe.rejection.scores import score_samples
from qprobe.reports.evaluation import write_report
from qprobe.rewards.answers import read_number
from qprobe.training.fit import TrainingSettings
from qprobe.training.learning_curve import learning_curve
from qprobe_server.errors import StartupError

__all__ = ["print_headline", "run"]

Json = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Write the report and print its headline.

    Raises:
        QProbeError: The probe or the dataset is not valid, or they do not go together.
    """
    if args.output.exists() and not args.output.is_dir():
        raise StartupError(f"--output {str(args.output)!r} must be a folder")
    probe = load_probe(args.probe)
    dataset = Dataset.load(args.data)
    info = probe.info
    check_same_model(info, dataset)
    try:
        check_same_adapter(info, dataset)
    except DatasetError as error:  # what a probe is worth on another adapter may be the question
        sys.stderr.write(f"note: {error}\n")
    reading = Reading(info.layer, info.pooling, info.window)
    test = list_unseen(info, dataset)
    held_out = dataset.subset(test)
    k = info.k if args.k is None else args.k
    beta = info.beta if args.beta is None else args.beta
    scores = probe.score(held_out.features(reading)).double().numpy()
    read_answer = read_number if dataset.manifest.get("reward") == "numeric" else None
    metrics = evaluate(scores, held_out, k=k, beta=beta, read_answer=read_answer)
    if info.schedule:
        try:
            samples = score_samples(probe, held_out)
            metrics["schedule"] = judge_schedule(samples, info.schedule, k=k, beta=beta)
        except DatasetError as error:  # collected without what its checkpoints read
            sys.stderr.write(f"the probe's schedule is not measured: {error}\n")
    num_known = len(dataset.prompts) - len(test)
    # With others it would be the curve of another probe.
    if num_known == info.training.get("train_prompts") and not args.no_learning_curve:
        known = dataset.subset(sorted(set(range(len(dataset.prompts))) - set(test)))
        settings = TrainingSettings(
            objective=info.objective,
            beta=beta,
            k=k,
            hidden=tuple(info.training["hidden"]),
            weight_decays=tuple(info.training["weight_decays"]),
            num_folds=info.training["folds"],
            seed=info.training["seed"],
        )
        metrics["learning_curve"] = learning_curve(
            known, held_out, reading=reading, settings=settings
        )
    metrics["title"] = args.probe.name
    metrics["settings"] = {
        "model": info.base_model,
        "reading": str(reading),
        "objective": info.objective,
        **{
            name: value
            for name, value in info.training.items()
            if name not in (SEEN, SEEN_BY_SCHEDULE)
        },
    }
    write_report(metrics, args.output)
    sys.stdout.write(f"{len(test)} of {len(dataset.prompts)} prompts, not trained on\n")
    print_headline(metrics)
    sys.stdout.write(f"{args.output / 'report.html'}\n")


def print_headline(metrics: Json) -> None:
    """Print what ``evaluate`` returned, and the schedule's figures if they are there."""
    write = sys.stdout.write
    write(f"{metrics['num_prompts']} prompts, k={metrics['k']}, beta={metrics['beta']:g}\n")
    for name in ("base", "policy", "ceiling"):
        row = metrics[name]
        write(f"{name:9}{row['reward']:.4f}  ({row['low']:.4f} to {row['high']:.4f})\n")
    closed = metrics["gap_closed"]
    if closed:
        low, high = closed["low"], closed["high"]
        write(f"of the gap closed: {closed['share']:.0%}  ({low:.0%} to {high:.0%})\n")
    row = metrics.get("schedule")
    if row:
        write(f"schedule {row['schedule']}: {row['reward']:.4f}  ({row['low']:.4f} to ")
        write(f"{row['high']:.4f}) for {row['tokens_share']:.0%} of the tokens\n")
