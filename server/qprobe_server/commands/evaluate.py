"""``qprobe eval``: a report on a probe, by prompts that it was not trained on.

Needs no engine.
"""

import argparse
import os
import sys

from qprobe_server.commands.datasets import check_datasets, load_datasets
from qprobe_server.commands.paths import check_output_folder, check_probe
from qprobe_server.commands.printing import print_headline, suggest_vote, warn, warn_of_gain

__all__ = ["run"]

# In the dataset's folder: what its samples' code did.
_EXECUTIONS = "executions.jsonl"
_ORDER = "PROBE FOLDER..."


def run(args: argparse.Namespace) -> None:
    """Write the report and print its headline.

    Raises:
        QProbeError: The probe or the dataset is not valid, or they do not go together.
        StartupError: A path is not what it must be.
    """
    check_output_folder("--output", args.output)
    check_probe(args.probe, order=_ORDER)
    check_datasets(args.data, order=_ORDER)
    # Here, since torch takes seconds, which a wrong path should not.
    from tqdm import tqdm

    from qprobe import evaluate, load_probe
    from qprobe.evaluation.executions import Execution
    from qprobe.evaluation.votes import Vote
    from qprobe.reports.evaluation import write_report
    from qprobe.reports.examples import pick_examples

    votes = [Vote.parse(each, tests=args.vote_tests) for each in args.vote]
    probe = load_probe(args.probe)
    dataset = load_datasets(args)
    with (
        tqdm(desc="votes", unit=" samples", disable=not votes) as bar,
        tqdm(unit="probe", disable=None, leave=False) as curve_bar,
    ):

        def advance(total: int) -> None:
            curve_bar.total = total
            curve_bar.update()

        metrics = evaluate(
            probe,
            dataset,
            k=args.k,
            beta=args.beta,
            curve=not args.no_learning_curve,
            votes=votes,
            execution=Execution(
                kept=args.data[0] / _EXECUTIONS,
                num_workers=os.cpu_count() or 1,
                progress=bar.update,
            ),
            progress=advance,
        )
    examples = [] if args.no_texts else pick_examples(probe, dataset)
    write_report({**metrics, "title": args.probe.name}, args.output, examples=examples)
    print_headline(
        metrics,
        about=f"{metrics['num_prompts']} of {len(dataset.prompts)} prompts, not trained on",
    )
    if not any(each.by in ("code", "tests") for each in votes):
        suggest_vote(dataset.prompts)
    sys.stdout.write(f"{args.output / 'report.html'}\n")
    for note in metrics["notes"]:
        warn(note)
    warn_of_gain(metrics)
