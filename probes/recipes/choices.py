"""Compares ways of choosing among the same samples: numbers, states, both, votes.

Every prompt is held out once: what chooses for it was trained on the other folds, its weight decay
chosen within them. Ways are compared pairwise, prompt by prompt.

    python probes/recipes/choices.py build/mbpp --layers 20,final --gates 20/16,32,64 \
        --vote code --vote tests --vote passing
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from qprobe.data.dataset import Dataset
from qprobe.errors import QProbeError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.executions import Execution
from qprobe.evaluation.expectation import expected_rewards, expected_vote_rewards
from qprobe.evaluation.votes import VISIBLE_TESTS, Vote, find_answers
from qprobe.probe.reading import Reading
from qprobe.probe.values import NUMBERS
from qprobe.training.design import Design
from qprobe.training.gate import Gate
from qprobe.training.part import score_held_out
from qprobe.training.segments import segment_spread
from qprobe.training.settings import TrainingSettings

__all__ = ["main"]

Floats = NDArray[np.float64]
_NUM_FOLDS = 8
_HEAD = ("reward", "of the gap", "minus base", "minus greedy", "minus best log-probability")


def main(argv: Sequence[str]) -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("--layers", default="final", help="whose means are read; default: final")
    parser.add_argument(
        "--gates", nargs="*", default=[], metavar="LAYER/END,...", help="as in train"
    )
    parser.add_argument("--objectives", default="ce,bt", help="default: ce,bt")
    parser.add_argument("--vote", action="append", default=[], help="as in qprobe eval")
    parser.add_argument("--vote-tests", default=VISIBLE_TESTS, help="likewise")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--beta", type=float, default=0.1)
    args = parser.parse_args(argv)
    try:
        votes = [Vote.parse(each, tests=args.vote_tests) for each in args.vote]
        _compare(Dataset.load(args.data), args, votes)
    except QProbeError as error:
        sys.exit(f"choices: {error}")


def _compare(dataset: Dataset, args: argparse.Namespace, votes: Sequence[Vote]) -> None:
    rewards, groups, k = dataset.rewards, dataset.groups, args.k
    bootstrap = Bootstrap(len(dataset.prompts), dataset.questions)
    numbers = dataset.numbers()
    base = expected_rewards(rewards, rewards, groups, k=1, beta=0)
    ceiling = expected_rewards(rewards, rewards, groups, k=k, beta=0)
    free = numbers[:, NUMBERS.index("mean_logprob")]
    best = expected_rewards(free, rewards, groups, k=k, beta=0)
    greedy = dataset.greedy_rewards

    def show(name: str, values: Floats) -> None:
        mean = bootstrap.mean(values)
        cells = [f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"]
        cells.append(f"{(values - base).sum() / (ceiling - base).sum():.0%}")
        for other in (base, greedy, best):
            over = bootstrap.mean(values - other)
            cells.append(f"{over.value:+.3f} ({over.low:+.3f} to {over.high:+.3f})")
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()

    sys.stdout.write(
        f"{len(dataset.prompts)} prompts, k = {k}, beta = {args.beta:g}\n\n"
        f"| choice | {' | '.join(_HEAD)} |\n|{' --- |' * (1 + len(_HEAD))}\n"
    )
    show("base: one sample", base)
    show("greedy answer", greedy)
    show("best by mean log-probability", best)
    total = numbers[:, NUMBERS.index("total_logprob")]
    show("best by total log-probability", expected_rewards(total, rewards, groups, k=k, beta=0))
    # The weights of a vote are of scores that vary by 1 within prompts, as a probe's do.
    spread = segment_spread(torch.from_numpy(free), torch.from_numpy(groups))
    scores = {"mean log-probability": free / spread}
    for name, found in _score_ways(dataset, args):
        scores[name] = found
        show(name, expected_rewards(found, rewards, groups, k=k, beta=args.beta))
    for vote in votes:
        with tqdm(total=len(groups), desc=f"vote by {vote.by}", leave=False) as bar:
            kept = args.data / "executions.jsonl"
            workers = os.cpu_count() or 1
            execution = Execution(kept=kept, num_workers=workers, progress=bar.update)
            answers = find_answers(dataset, vote, execution)
        even = {"all alike": np.zeros(len(groups))}
        for name, each in (even | scores).items():
            values = expected_vote_rewards(
                each, answers.classes, rewards, groups, k=k, beta=0, ranks=answers.ranks
            )
            show(f"vote by {vote.by}, {name}", values)
    show("ceiling: best by reward", ceiling)


def _score_ways(dataset: Dataset, args: argparse.Namespace) -> Iterator[tuple[str, Floats]]:
    """Give each trained way's name and scores of prompts held out."""
    layers = tuple(Reading.parse(f"{each}/mean") for each in args.layers.split(","))
    designs = [Design((), NUMBERS)]
    for each in layers:
        designs += [Design((each,)), Design((each,), NUMBERS)]
    if len(layers) > 1:
        designs.append(Design(layers, NUMBERS))
    for gate in map(Gate.parse, args.gates):
        designs += [Design((), (), (gate,)), Design((), NUMBERS, (gate,))]
    for design in designs:
        design.require(dataset)
    questions = dataset.questions
    folds = np.random.default_rng(0).permutation(int(questions.max()) + 1)[questions] % _NUM_FOLDS
    of_samples = folds[dataset.groups]
    for design, objective in product(designs, args.objectives.split(",")):
        settings = TrainingSettings(objective=objective, beta=args.beta)
        with tqdm(total=_NUM_FOLDS, desc=str(design), leave=False) as bar:
            scores = score_held_out(dataset, design, settings, of_samples, progress=bar.update)
        yield f"{design}, {objective}", scores


if __name__ == "__main__":
    main(sys.argv[1:])
