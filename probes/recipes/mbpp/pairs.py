"""Makes what LoRA adapters are trained on of a dataset's training problems.

Writes solutions.jsonl (right samples; also the shots of `qprobe collect --shots`), pairs.jsonl (a
right and a wrong sample) and rewarded.jsonl (samples with their rewards). All hold the tokens that
were sampled, so that nothing is tokenized anew.

    python probes/recipes/mbpp/pairs.py build/coder/mbpp -o build/coder
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from prompts import NUM_TEST, write_rows
from splitting import split_problems

from qprobe.data.dataset import Dataset, Sample
from qprobe.errors import DatasetError, QProbeError

__all__ = ["Chosen", "choose", "main"]

Json = dict[str, Any]


@dataclass
class Chosen:
    """Rows to train on, in order of the problems; ``place`` counts the training problems.

    Attributes:
        solutions: Right samples.
        pairs: A right sample, ``chosen``, and a wrong one, ``rejected``.
        rewarded: Samples with ``reward``, right and wrong ones in turn.
    """

    solutions: list[Json] = field(default_factory=list)
    pairs: list[Json] = field(default_factory=list)
    rewarded: list[Json] = field(default_factory=list)


def choose(dataset: Dataset, problems: Sequence[int], *, per_prompt: int, seed: int) -> Chosen:
    """Choose samples of different texts at random, at most ``per_prompt`` rows a problem and kind.

    A sample is right if its reward is 1. Right ones that the limit of tokens has cut are left out:
    they would teach not to end.

    Args:
        dataset: Sampled by the model itself, without adapter and shots.
        problems: Those to train on.
        per_prompt: At least 1.
        seed: Any.

    Raises:
        DatasetError: Something else has sampled.
    """
    for name in ("adapter", "shots", "upstream"):
        if dataset.manifest.get(name) is not None:
            raise DatasetError(name, "must be none: the model's own samples are trained on")
    made = Chosen()
    rng = random.Random(seed)
    for place, problem in enumerate(problems):
        samples = [dataset.samples[row] for row in np.flatnonzero(dataset.groups == problem)]
        rng.shuffle(samples)
        unlike = list({each.text: each for each in samples}.values())
        right = [each for each in unlike if each.reward == 1 and each.finish_reason == "stop"]
        wrong = [each for each in unlike if each.reward != 1]
        row = dataset.prompts[problem]
        asked = {name: row[name] for name in ("messages", "prompt") if row.get(name) is not None}
        about = {"place": place, **asked}
        made.solutions += [_describe(about, each) for each in right[:per_prompt]]
        mixed = [each for each in chain(*zip_longest(right, wrong)) if each is not None]
        made.rewarded += [_describe(about, each) for each in mixed[:per_prompt]]
        if right and wrong:
            for turn in range(min(per_prompt, max(len(right), len(wrong)))):
                pair = right[turn % len(right)], wrong[turn % len(wrong)]
                sides = zip(("chosen", "rejected"), pair, strict=True)
                made.pairs.append(about | {name: _describe({}, each) for name, each in sides})
    return made


def _describe(about: Json, sample: Sample) -> Json:
    return {
        **about,
        "completion": sample.text,
        "reward": sample.reward,
        "token_ids": sample.token_ids,
        "logprob": sample.logprob,
    }


def main(argv: Sequence[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--per-prompt", type=int, default=4, help="rows a problem; default: 4")
    parser.add_argument(
        "--num-test", type=int, default=NUM_TEST, help="the last, if rows have no split"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        dataset = Dataset.load(args.data)
        train, _ = split_problems(dataset, args.num_test)
        made = choose(dataset, train, per_prompt=args.per_prompt, seed=args.seed)
    except QProbeError as error:
        sys.exit(f"pairs: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("solutions", "pairs", "rewarded"):
        rows = getattr(made, name)
        write_rows(args.output / f"{name}.jsonl", rows)
        asked = len({row["place"] for row in rows})
        sys.stderr.write(f"{name}: {len(rows)} rows of {asked} of {len(train)} problems\n")


if __name__ == "__main__":
    main(sys.argv[1:])
