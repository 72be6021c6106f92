"""Scores the samples of a dataset by a reward model that tune.py made.

Of MBPP those of the test problems only (--num-test), of a dataset without any, all.

    python probes/recipes/mbpp/score.py build/coder/reward build/coder/mbpp --model MODEL
    python probes/recipes/mbpp/score.py build/coder/reward build/coder/humaneval --num-test 0 ...

writes build/coder/reward/mbpp.json and humaneval.json, one score a sample in the dataset's order,
null for those of other problems.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lora import (
    Text,
    add_dtype_flag,
    find_device,
    load_model,
    make_batches,
    open_tokenizer,
    read_last_states,
    tokenize,
)
from numpy.typing import NDArray
from peft import PeftModel
from prompts import NUM_TEST
from safetensors.torch import load_file
from splitting import split_problems
from tqdm import tqdm
from tune import HEAD_FILE

from qprobe.data.dataset import Dataset
from qprobe.errors import QProbeError
from qprobe.files import write_file

__all__ = ["main", "score_samples"]


def score_samples(
    dataset: Dataset,
    problems: Sequence[int],
    *,
    model: str,
    reward: Path,
    batch: int,
    dtype: str,
) -> NDArray[np.float64]:
    """Return the reward model's logit of each sample, NaN for those of other problems.

    Args:
        dataset: Sampled by the same model.
        problems: Whose samples are scored; equal ones are read once.
        model: A hub's ORG/NAME or a folder.
        reward: Folder of the adapter and its head.
        batch: Samples at a time.
        dtype: Of the frozen weights, as ``load_model`` takes it.

    Returns:
        Shape (samples,).
    """
    tokenizer = open_tokenizer(model)
    body = load_model(model, has_head=False, dtype=dtype)
    tuned = PeftModel.from_pretrained(body, str(reward)).eval()
    head = {name: each.to(find_device()) for name, each in load_file(reward / HEAD_FILE).items()}
    asked = {each: tokenize(tokenizer, dataset.prompts[each]) for each in problems}
    rows = np.flatnonzero(np.isin(dataset.groups, list(problems)))
    keys = [(dataset.samples[row].prompt, tuple(dataset.samples[row].token_ids)) for row in rows]
    unlike = list(dict.fromkeys(keys))
    texts = [Text(asked[prompt], list(tokens)) for prompt, tokens in unlike]
    found = torch.zeros(len(texts))
    with torch.no_grad():
        for places in tqdm(make_batches(texts, batch), desc="score"):
            states = read_last_states(tuned, [texts[each] for each in places])
            found[places] = (states @ head["weight"][0] + head["bias"]).cpu()
    by_key = dict(zip(unlike, found.tolist(), strict=True))
    scores = np.full(len(dataset.samples), np.nan)
    scores[rows] = [by_key[key] for key in keys]
    return scores


def main(argv: Sequence[str]) -> None:
    """Write the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("reward", type=Path, metavar="REWARD", help="folder of the reward model")
    parser.add_argument("data", type=Path, metavar="FOLDER", help="the dataset")
    parser.add_argument("--model", required=True, help="that was tuned: ORG/NAME or a folder")
    parser.add_argument("--batch", type=int, default=16, help="samples at a time; default: 16")
    parser.add_argument("--num-test", type=int, default=NUM_TEST, help="0: all are for the test")
    add_dtype_flag(parser)
    args = parser.parse_args(argv)
    try:
        dataset = Dataset.load(args.data)
        problems = list(range(len(dataset.prompts)))
        if args.num_test:
            problems = split_problems(dataset, args.num_test)[1]
        scores = score_samples(
            dataset,
            problems,
            model=args.model,
            reward=args.reward,
            batch=args.batch,
            dtype=args.dtype,
        )
    except QProbeError as error:
        sys.exit(f"score: {error}")
    values = [None if np.isnan(each) else each for each in scores.tolist()]
    content = json.dumps({"dataset": dataset.digest, "scores": values})
    write_file(args.reward / f"{args.data.name}.json", content.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
