"""Compares ways of choosing among the same samples: numbers, states, both, votes.

Every prompt is held out once: what chooses for it was trained on the other folds, its weight decay
chosen within them. Ways are compared pairwise, prompt by prompt.

    python probes/recipes/choices.py build/mbpp --layers 20,final --gates 20/16,32,64 \
        --vote code --vote tests --vote passing
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from qprobe.data.dataset import Dataset
from qprobe.errors import QProbeError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.executions import Execution
from qprobe.evaluation.expectation import expected_rewards, expected_vote_rewards
from qprobe.evaluation.scoring import score
from qprobe.evaluation.votes import VISIBLE_TESTS, Vote, find_answers
from qprobe.probe.reading import Reading
from qprobe.probe.terms import Terms
from qprobe.probe.values import NUMBERS
from qprobe.training.fit import TrainingSettings, fit_probe
from qprobe.training.gate import Gate, fit_gate

__all__ = ["main", "score_held_out"]

Floats = NDArray[np.float64]
_NUM_FOLDS = 8
_HEAD = ("reward", "of the gap", "minus base", "minus greedy", "minus best log-probability")


@dataclass(frozen=True)
class _Way:
    """A way of scoring that is trained: by embeddings, by numbers, or by both."""

    name: str
    readings: tuple[Reading, ...]
    has_numbers: bool
    objective: str


def score_held_out(
    dataset: Dataset, blocks: Sequence[Tensor], numbers: Tensor | None, settings: TrainingSettings
) -> Floats:
    """Score each prompt's samples by a probe of the folds that it is not in: (samples,).

    Args:
        dataset: The samples.
        blocks: Their embeddings, shape (samples, hidden) each.
        numbers: Their numbers, shape (samples, numbers), or None.
        settings: Of the training; seed also of the folds.
    """
    questions = dataset.questions
    of_samples = _split(dataset, settings)[dataset.groups]
    scores = np.zeros(len(dataset.samples))
    for fold in range(_NUM_FOLDS):
        rest, known = np.flatnonzero(of_samples == fold), np.flatnonzero(of_samples != fold)
        fitted = fit_probe(
            [each[known] for each in blocks],
            dataset.rewards[known],
            dataset.groups[known],
            settings,
            questions[dataset.groups[known]],
            numbers=None if numbers is None else numbers[known],
        )
        some = None if numbers is None else numbers[rest]
        scores[rest] = fitted.score([each[rest] for each in blocks], some).double().numpy()
    return scores


def score_gate_held_out(
    dataset: Dataset, gate: Gate, numbers: Tensor | None, settings: TrainingSettings
) -> Floats:
    """Score each prompt's samples by a gate of the folds that it is not in: (samples,).

    Args:
        dataset: The samples.
        gate: Which.
        numbers: To be weighed with it, shape (samples, numbers), or None.
        settings: As in ``score_held_out``.
    """
    folds = _split(dataset, settings)
    scores = np.zeros(len(dataset.samples))
    for fold in tqdm(range(_NUM_FOLDS), desc="gate", leave=False):
        known = dataset.subset(np.flatnonzero(folds != fold).tolist())
        rest = dataset.subset(np.flatnonzero(folds == fold).tolist())
        fitted = fit_gate(known, gate, settings)
        found = score(Terms(gates=(fitted.term,)), rest)
        inside = folds[dataset.groups] == fold
        if numbers is not None:
            seen = torch.from_numpy(fitted.held_out_scores)[:, None]
            weighed = fit_probe(
                [],
                known.rewards,
                known.groups,
                settings,
                known.questions[known.groups],
                numbers=torch.cat([numbers[~inside], seen], 1),
            )
            column = torch.from_numpy(found)[:, None]
            some = torch.cat([numbers[inside], column], 1)
            found = weighed.score([], some).double().numpy()
        scores[inside] = found
    return scores


def _split(dataset: Dataset, settings: TrainingSettings) -> NDArray[np.int64]:
    """Return each prompt's fold, the same for equal questions: (prompts,)."""
    questions = dataset.questions
    folds = np.random.default_rng(settings.seed).permutation(int(questions.max()) + 1) % _NUM_FOLDS
    return np.asarray(folds[questions], np.int64)


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
    scores = {"mean log-probability": _standardise(free, groups)}
    for name, found in _score_ways(dataset, args):
        scores[name] = found
        show(name, expected_rewards(found, rewards, groups, k=k, beta=args.beta))
    for vote in votes:
        with tqdm(total=len(groups), desc=f"vote by {vote.by}", leave=False) as bar:
            kept = args.data / "executions.jsonl"
            execution = Execution(kept=kept, num_workers=2, progress=bar.update)
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
    numbers = torch.from_numpy(dataset.numbers())
    for way in _list_ways(dataset, args):
        settings = TrainingSettings(objective=way.objective, beta=args.beta)
        blocks = [dataset.features(each) for each in way.readings]
        some = numbers if way.has_numbers else None
        yield f"{way.name}, {way.objective}", score_held_out(dataset, blocks, some, settings)
    for text in args.gates:
        gate = Gate.parse(text)
        dataset.require(gate.readings, gate.token_layers)
        for objective in args.objectives.split(","):
            settings = TrainingSettings(objective=objective, beta=args.beta)
            alone = score_gate_held_out(dataset, gate, None, settings)
            yield f"gate {text}, {objective}", _standardise(alone, dataset.groups)
            both = score_gate_held_out(dataset, gate, numbers, settings)
            yield f"gate {text} + numbers, {objective}", both


def _standardise(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return values in units of their standard deviation within prompts."""
    counts = np.bincount(groups)
    deviations = values - (np.bincount(groups, values) / counts)[groups]
    return deviations / float(np.sqrt((deviations**2).sum() / (counts - 1).sum()))


def _list_ways(dataset: Dataset, args: argparse.Namespace) -> Iterator[_Way]:
    layers = [Reading.parse(f"{each}/mean") for each in args.layers.split(",")]
    dataset.require(layers)
    for objective in args.objectives.split(","):
        yield _Way("five numbers", (), has_numbers=True, objective=objective)
        for each in layers:
            yield _Way(f"states {each}", (each,), has_numbers=False, objective=objective)
            yield _Way(f"{each} + numbers", (each,), has_numbers=True, objective=objective)
        if len(layers) > 1:
            name = f"{len(layers)} layers + numbers"
            yield _Way(name, tuple(layers), has_numbers=True, objective=objective)


if __name__ == "__main__":
    main(sys.argv[1:])
