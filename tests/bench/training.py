"""How long a sweep takes, and how much memory, from one of its readings and from several together.

Draws states that look like a model's: a few directions hold most of the variance, prompts differ
more than their samples do. Rewards are 0 or 1, from some directions that vary within prompts.
Trains every objective on one reading and on several layers together, as ``sweep`` does, and the
first one whole, as it trains its winner. Layers are drawn one by one, as a dataset gives them.

    .venv/bin/python tests/bench/training.py --prompts 464 --samples 200 --width 4096 --layers 3
"""

import argparse
import resource
import sys
import time

import numpy as np
import torch
from torch import Tensor

from qprobe.training.cross_validation import Problem, cross_validate
from qprobe.training.fit import fit_inputs
from qprobe.training.inputs import prepare_each
from qprobe.training.settings import TrainingSettings

FACTORS = 512
NUM_READINGS = 45


class Drawn:
    """Rewards, (prompts * samples,), and the states of as many layers as are asked for."""

    def __init__(self, prompts: int, samples: int, width: int) -> None:
        self.width = width
        generator = torch.Generator().manual_seed(0)
        of_prompt = torch.randn(prompts, FACTORS, generator=generator).repeat_interleave(samples, 0)
        of_sample = torch.randn(prompts * samples, FACTORS, generator=generator)
        noise = torch.randn(len(of_sample), generator=generator)
        told = of_sample[:, 10:60].sum(1) / 5 + 1.5 * of_prompt[:, 0] + noise
        self.rewards = (told > 0).double().numpy()
        self.groups = np.repeat(np.arange(prompts), samples)
        self._factors = (of_prompt + 0.7 * of_sample).half()
        self.spent = 0.0, 0.0  # on drawing layers: seconds of wall and CPU time

    def layer(self, seed: int) -> Tensor:
        """Return states, (prompts * samples, width) float32, that float16 could hold."""
        begun = time.perf_counter(), time.process_time()
        generator = torch.Generator().manual_seed(seed + 1)
        sizes = torch.arange(1, FACTORS + 1) ** -0.5
        loadings = sizes[:, None] * torch.randn(FACTORS, self.width, generator=generator)
        states = torch.empty(len(self.rewards), self.width)
        for rows in torch.split(torch.arange(len(states)), 8192):
            noise = torch.randn(len(rows), self.width, generator=generator)
            states[rows] = (self._factors[rows].float() @ loadings + 0.5 * noise).half().float()
        wall, busy = self.spent
        self.spent = wall + time.perf_counter() - begun[0], busy + time.process_time() - begun[1]
        return states


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=464)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3, help="together; 1: no such cells")
    parser.add_argument("--objectives", default="ce,bt,pg")
    args = parser.parse_args()
    drawn = Drawn(args.prompts, args.samples, args.width)
    objectives = args.objectives.split(",")
    say(f"{len(drawn.rewards):,} samples x {args.width:,}, {torch.get_num_threads()} threads")
    wall, busy = try_cells(drawn, 1, objectives)
    say(f"{NUM_READINGS} readings: {NUM_READINGS * wall / 60:.0f} min, ", end="")
    say(f"{NUM_READINGS * busy / 60:.0f} min of CPU")
    if args.layers > 1:
        try_cells(drawn, args.layers, objectives)


def try_cells(drawn: Drawn, num_layers: int, objectives: list[str]) -> tuple[float, float]:
    """Try the objectives on so many layers; return the seconds of wall and CPU time for them.

    The drawing of the layers is not counted.
    """
    say(f"{num_layers} together:" if num_layers > 1 else "a reading:")
    rewards, groups = drawn.rewards, drawn.groups
    whole = Problem(rewards, groups, TrainingSettings())
    drawn.spent = 0.0, 0.0
    started = time.perf_counter(), time.process_time()
    inputs = prepare_each(
        map(drawn.layer, range(num_layers)),
        widths=[drawn.width] * num_layers,
        order=whole.order,
    )
    started = started[0] + drawn.spent[0], started[1] + drawn.spent[1]
    lap("prepare", started)
    for objective in objectives:
        begun = time.perf_counter(), time.process_time()
        problem = Problem(rewards, groups, TrainingSettings(objective=objective))
        found = cross_validate(problem, inputs)
        reward = found.rewards[found.best].mean()
        about = f"reward {reward:.3f}, decay {found.weight_decays[found.best]:g}"
        lap(f"{objective}: {about}, {len(found.weight_decays)} decays", begun)
    wall, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    say(f"  all: {wall:.0f} s, {busy:.0f} s of CPU")
    begun = time.perf_counter(), time.process_time()
    fit_inputs(whole, inputs)
    lap("the winner, trained whole", begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"  peak memory so far {peak:.1f} GiB")
    return wall, busy


def lap(name: str, started: tuple[float, float]) -> None:
    wall, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    say(f"  {name}: {wall:.1f} s, {busy:.1f} s of CPU")


def say(text: str, *, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
