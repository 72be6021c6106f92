"""How long a sweep takes, and how much memory, from one of its readings.

Draws states that look like a model's: a few directions hold most of the variance, prompts differ
more than their samples do. Rewards are 0 or 1, from some directions that vary within prompts.
Trains every objective on one reading, as ``sweep`` does, and the first one whole, as it trains its
winner.

    .venv/bin/python tests/bench/training.py --prompts 464 --samples 200 --width 4096
"""

import argparse
import resource
import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.training.cross_validation import Problem, cross_validate
from qprobe.training.fit import fit_inputs
from qprobe.training.inputs import prepare
from qprobe.training.settings import TrainingSettings

FACTORS = 512
NUM_READINGS = 45


def draw(prompts: int, samples: int, width: int) -> tuple[Tensor, NDArray[np.float64]]:
    """Return states, (prompts * samples, width) float16, and rewards."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    of_prompt = normal(prompts, FACTORS).repeat_interleave(samples, 0)
    of_sample = normal(prompts * samples, FACTORS)
    sizes = torch.arange(1, FACTORS + 1) ** -0.5
    loadings = sizes[:, None] * normal(FACTORS, width)
    states = torch.empty(prompts * samples, width, dtype=torch.float16)
    for rows in torch.split(torch.arange(len(states)), 8192):
        factors = of_prompt[rows] + 0.7 * of_sample[rows]
        states[rows] = (factors @ loadings + 0.5 * normal(len(rows), width)).half()
    told = of_sample[:, 10:60].sum(1) / 5 + 1.5 * of_prompt[:, 0] + normal(len(states))
    return states, (told > 0).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=464)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--objectives", default="ce,bt,pg")
    args = parser.parse_args()
    states, rewards = draw(args.prompts, args.samples, args.width)
    groups = np.repeat(np.arange(args.prompts), args.samples)
    say(f"{len(states):,} samples x {args.width:,}, {torch.get_num_threads()} threads")
    started = time.perf_counter(), time.process_time()
    inputs = prepare([states.float()])
    lap("prepare", started)
    for objective in args.objectives.split(","):
        begun = time.perf_counter(), time.process_time()
        problem = Problem(rewards, groups, TrainingSettings(objective=objective))
        found = cross_validate(problem, inputs)
        reward = found.rewards[found.best].mean()
        about = f"reward {reward:.3f}, decay {found.weight_decays[found.best]:g}"
        lap(f"{objective}: {about}, {len(found.weight_decays)} decays", begun)
    wall, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    say(f"a reading: {wall:.0f} s, {busy:.0f} s of CPU")
    say(f"{NUM_READINGS} readings: {NUM_READINGS * wall / 60:.0f} min, ", end="")
    say(f"{NUM_READINGS * busy / 60:.0f} min of CPU")
    begun = time.perf_counter(), time.process_time()
    fit_inputs(Problem(rewards, groups, TrainingSettings()), inputs)
    lap("the winner, trained whole", begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"peak memory {peak:.1f} GiB, {states.numel() * 2 / 2**30:.1f} of them the states")


def lap(name: str, started: tuple[float, float]) -> None:
    wall, busy = time.perf_counter() - started[0], time.process_time() - started[1]
    say(f"  {name}: {wall:.1f} s, {busy:.1f} s of CPU")


def say(text: str, *, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
