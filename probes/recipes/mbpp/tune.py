"""Trains a LoRA adapter: on right samples, on pairs, or as a reward model.

    python probes/recipes/mbpp/tune.py sft solutions.jsonl --model MODEL -o build/coder/sft
    python probes/recipes/mbpp/tune.py dpo pairs.jsonl --model MODEL -o build/coder/dpo
    python probes/recipes/mbpp/tune.py reward rewarded.jsonl --model MODEL -o build/coder/reward

The folder is one of peft's, which `qprobe collect --adapter` and vLLM take; of a reward model
`score.py` does, which also needs its head. training.json tells what it took.
"""

import argparse
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lora import (
    Text,
    add_adapter,
    add_dtype_flag,
    check_logprobs,
    find_device,
    load_model,
    make_batches,
    measure_logprobs,
    open_tokenizer,
    read_last_states,
    tokenize,
)
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from qprobe.errors import QProbeError, TrainingError
from qprobe.files import write_file

__all__ = ["HEAD_FILE", "Task", "main", "make_dpo", "make_reward", "make_sft", "train"]

Json = dict[str, Any]
HEAD_FILE = "head.safetensors"
# Of the steps, in which the learning rate rises; then it falls to 0.
_WARMUP = 0.05
_MAX_NORM = 1.0
_NUM_CHECKED = 8


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        model: With its adapter.
        batches: Places of rows.
        loss: Sum over the rows at some places, in nats.
        weights: Of each row: the loss of a batch is the sum over that of the weights.
        lengths: Of each row, in tokens.
        head: Trained too, and saved beside the adapter.
        about: Of the preparation, for training.json.
    """

    model: PeftModel
    batches: list[list[int]]
    loss: Callable[[Sequence[int]], Tensor]
    weights: list[int]
    lengths: list[int]
    head: nn.Linear | None = None
    about: Json = field(default_factory=dict)

    @property
    def parameters(self) -> list[Tensor]:
        """Those that are trained: float32."""
        parts = [*self.model.parameters(), *(self.head.parameters() if self.head else ())]
        return [each for each in parts if each.requires_grad]

    def divide(self, places: Sequence[int], num_tokens: int) -> list[Sequence[int]]:
        """Return a batch in parts of at most so many tokens with their padding, or of one row."""
        size = max(1, num_tokens // max(self.lengths[each] for each in places))
        return [places[start : start + size] for start in range(0, len(places), size)]

    def save(self, folder: Path) -> None:
        """Write adapter and head."""
        self.model.save_pretrained(folder)
        if self.head is not None:
            weights = {name: each.cpu() for name, each in self.head.state_dict().items()}
            save_file(weights, folder / HEAD_FILE)


def make_sft(rows: Sequence[Json], args: argparse.Namespace) -> Task:
    """Raise the log-probability of completions: the loss is the mean over their tokens."""
    model, (texts,) = _prepare(rows, args, has_head=True)
    apart = _check(model, rows, texts)

    def loss(places: Sequence[int]) -> Tensor:
        return -measure_logprobs(model, [texts[each] for each in places]).sum()

    weights = [len(each.completion) for each in texts]
    batches, lengths = make_batches(texts, args.batch), [len(each) for each in texts]
    return Task(model, batches, loss, weights, lengths, about={"apart": apart})


def make_dpo(rows: Sequence[Json], args: argparse.Namespace) -> Task:
    """Rafailov et al. 2023, equation 7.

    The reference, the model before it is tuned, was asked when it sampled: the engine's
    log-probabilities are taken, after the check, so that no pass is made for them.
    """
    model, (chosen, rejected) = _prepare(rows, args, "chosen", "rejected", has_head=True)
    sides = {"chosen": chosen, "rejected": rejected}
    apart = max(_check(model, [row[side] for row in rows], sides[side]) for side in sides)
    longer = [max(pair, key=len) for pair in zip(chosen, rejected, strict=True)]
    batches = make_batches(longer, args.batch)

    def compare(places: Sequence[int]) -> Tensor:
        """Return how far the chosen ones are above the rejected: (places,), in nats."""
        both = [side[each] for side in (chosen, rejected) for each in places]
        above, below = measure_logprobs(model, both).chunk(2)
        return above - below

    sampled_at = [row["chosen"]["logprob"] - row["rejected"]["logprob"] for row in rows]
    reference = torch.tensor(sampled_at, device=find_device())

    def loss(places: Sequence[int]) -> Tensor:
        margins = compare(places) - reference[list(places)]
        return -functional.logsigmoid(args.beta * margins).sum()

    lengths = [2 * len(each) for each in longer]
    about = {"apart": apart, "beta": args.beta}
    return Task(model, batches, loss, [1] * len(rows), lengths, about=about)


def make_reward(rows: Sequence[Json], args: argparse.Namespace) -> Task:
    """Predict the reward, from 0 to 1, from the final state of the last token."""
    model, (texts,) = _prepare(rows, args, has_head=False)
    rewards = torch.tensor([row["reward"] for row in rows], device=find_device())
    head = nn.Linear(model.config.hidden_size, 1, device=find_device())
    nn.init.zeros_(head.weight)

    def loss(places: Sequence[int]) -> Tensor:
        logits = head(read_last_states(model, [texts[each] for each in places]))[:, 0]
        wanted = rewards[list(places)]
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")

    batches, lengths = make_batches(texts, args.batch), [len(each) for each in texts]
    return Task(model, batches, loss, [1] * len(rows), lengths, head)


def _prepare(
    rows: Sequence[Json], args: argparse.Namespace, *sides: str, has_head: bool
) -> tuple[PeftModel, list[list[Text]]]:
    """Return the model with its adapter, and texts: one a row, or of each side one a row."""
    tokenizer = open_tokenizer(args.model)
    asked = [tokenize(tokenizer, row) for row in rows]
    answers: list[Sequence[Json]] = [[row[side] for row in rows] for side in sides] or [rows]
    texts = [
        [Text(prompt, each["token_ids"]) for prompt, each in zip(asked, given, strict=True)]
        for given in answers
    ]
    model = load_model(args.model, has_head=has_head, dtype=args.dtype)
    return add_adapter(model, seed=args.seed), texts


def _check(model: PeftModel, sampled: Sequence[Json], texts: Sequence[Text]) -> float:
    given = [each["logprob"] for each in sampled[:_NUM_CHECKED]]
    apart = check_logprobs(model, texts[:_NUM_CHECKED], given)
    sys.stderr.write(f"the engine's log-probabilities are {apart:.4f} nats a token from these\n")
    return apart


def train(task: Task, *, epochs: int, lr: float, num_tokens: int, seed: int) -> list[float]:
    """Train by AdamW without weight decay; returns the loss of every step.

    Args:
        task: What.
        epochs: At least 1.
        lr: The highest.
        num_tokens: As ``Task.divide`` takes it: bounds the memory, and changes nothing else.
        seed: Of the order of batches.

    Raises:
        TrainingError: A loss is not finite.
    """
    total = epochs * len(task.batches)
    rise = max(1, round(_WARMUP * total))
    optimiser = torch.optim.AdamW(task.parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / rise, (total - step) / max(total - rise, 1))
    )
    rng = random.Random(seed)
    order = [
        places for _ in range(epochs) for places in rng.sample(task.batches, len(task.batches))
    ]
    losses: list[float] = []
    task.model.train()
    with tqdm(order, desc="train") as bar:
        for places in bar:
            weight = sum(task.weights[each] for each in places)
            losses.append(0.0)
            for part in task.divide(places, num_tokens):
                loss = task.loss(part) / weight
                torch.autograd.backward(loss)
                losses[-1] += loss.item()
            if not math.isfinite(losses[-1]):
                raise TrainingError("loss", f"must be finite, got {losses[-1]} at {len(losses)}")
            nn.utils.clip_grad_norm_(task.parameters, _MAX_NORM)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


# What it takes, and the learning rate that it is known to take.
_METHODS: dict[str, tuple[Callable[[Sequence[Json], argparse.Namespace], Task], float]] = {
    "sft": (make_sft, 2e-4),
    "dpo": (make_dpo, 5e-5),
    "reward": (make_reward, 1e-4),
}


def main(argv: Sequence[str]) -> None:
    """Train and write the folder."""
    args = _parse(argv)
    make, usual_lr = _METHODS[args.method]
    lr = usual_lr if args.lr is None else args.lr
    try:
        rows = _read_rows(args.rows, args.prompts)
        task = make(rows, args)
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        losses = train(task, epochs=args.epochs, lr=lr, num_tokens=args.tokens, seed=args.seed)
    except QProbeError as error:
        sys.exit(f"tune: {error}")
    spent_s, spent_cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    args.output.mkdir(parents=True, exist_ok=True)
    task.save(args.output)
    about = {
        "method": args.method,
        "model": Path(args.model).name,
        "rows": args.rows.name,
        "num_rows": len(rows),
        "num_prompts": len({row["place"] for row in rows}),
        "first_prompts": args.prompts,
        **{name: getattr(args, name) for name in ("epochs", "batch", "seed", "dtype")},
        "lr": lr,
        "seconds": spent_s,
        "cpu_seconds": spent_cpu_s,
        "num_parameters": sum(each.numel() for each in task.parameters),
        **task.about,
        "machine": _describe_machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "losses": [round(each, 5) for each in losses],
    }
    write_file(args.output / "training.json", json.dumps(about, indent=2).encode())


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("method", choices=_METHODS)
    parser.add_argument("rows", type=Path, metavar="FILE", help="of pairs.py")
    parser.add_argument("--model", required=True, help="that sampled them: ORG/NAME or a folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--prompts", type=int, help="the first so many training problems only")
    parser.add_argument("--epochs", type=int, default=1, help="default: 1")
    parser.add_argument("--batch", type=int, default=8, help="rows, or pairs, a step; default: 8")
    parser.add_argument(
        "--tokens", type=int, default=1024, help="at a time, which bounds the memory; default: 1024"
    )
    defaults = ", ".join(f"{name} {lr:g}" for name, (_, lr) in _METHODS.items())
    parser.add_argument("--lr", type=float, help=f"default: {defaults}")
    parser.add_argument("--beta", type=float, default=0.1, help="of dpo; default: 0.1")
    parser.add_argument("--seed", type=int, default=0)
    add_dtype_flag(parser)
    return parser.parse_args(argv)


def _read_rows(path: Path, num_prompts: int | None) -> list[Json]:
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise TrainingError("rows", f"cannot be read: {path}: {error}") from error
    rows = [row for row in rows if num_prompts is None or row["place"] < num_prompts]
    if not rows:
        raise TrainingError("rows", f"are none in {path}")
    return rows


def _describe_machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


if __name__ == "__main__":
    main(sys.argv[1:])
