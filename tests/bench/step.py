"""What scoring adds to a step of the engine, without an engine: python tests/bench/step.py.

One token of each of so many candidates, each scored by so many rows. The first columns are of one
prompt's mix, which all candidates share; ``own``: each group of 16 candidates has probes of its
own. ``host``: all but the product, on this thread. Medians of 200 steps after 20; 10,000 probes are
loaded, and once but 100, as a step does not depend on them.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import torch

from qprobe_server.vllm_backend.worker.copies import CopyQueue
from qprobe_server.vllm_backend.worker.scorer import Scorer
from qprobe_server.vllm_backend.worker.step import Step
from qprobe_server.vllm_backend.worker.weights import ProbeWeights, WantedScores

PROMPT = 50
SIZES = [(16, 1), (64, 4), (256, 1), (256, 4), (256, 16), (256, 64)]


def make_scorer(
    num_probes: int, hidden: int, num_candidates: int, num_rows: int, *, own: bool
) -> Scorer:
    device = torch.device("cpu")
    scorer = Scorer([10, 20], device, CopyQueue(), None, drafted=False)
    weights = np.random.default_rng(0).standard_normal((num_probes, hidden + 1), np.float32)
    scorer.load([(index, 20, weights[index].tobytes()) for index in range(num_probes)])
    for number in range(num_candidates):
        first = number // 16 * num_rows if own else 0
        rows = [(first + row) % num_probes for row in range(num_rows)]
        scorer.begin(f"r{number}", "", str(number), rows, [0] * num_rows)
    return scorer


def make_step(hidden: int, num_candidates: int, done: int) -> Step:
    return Step(
        request_ids=[f"r{number}" for number in range(num_candidates)],
        starts=np.arange(num_candidates + 1, dtype=np.int32),
        num_computed=np.full(num_candidates, PROMPT + done, np.int32),
        prompt_lengths=np.full(num_candidates, PROMPT, np.int32),
        positions=torch.full((num_candidates,), PROMPT + done),
        states=[torch.randn(num_candidates, hidden, dtype=torch.bfloat16)] * 3,
    )


@torch.inference_mode()
def measure(scorer: Scorer, hidden: int, num_candidates: int) -> float:
    """Return the median milliseconds of a step."""
    steps = [make_step(hidden, num_candidates, done) for done in range(220)]
    times = []
    for step in steps:
        begun_s = time.perf_counter()
        scorer.read(step)
        scorer._copies.run(wait=True)
        times.append(1000 * (time.perf_counter() - begun_s))
    return statistics.median(times[20:])


def no_product(
    self: ProbeWeights, states: Sequence[torch.Tensor], rows: torch.Tensor, wanted: WantedScores
) -> torch.Tensor:
    return torch.zeros(rows.shape[0], wanted.probes.size)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    say = sys.stdout.write
    say(f"{platform.processor() or platform.machine()}, hidden size {args.hidden}, bfloat16, ")
    say(f"{args.threads} thread(s); ms a step\n")
    say("| candidates x rows | host | all | own | 100 loaded |\n| --- | --- | --- | --- | --- |\n")
    for candidates, rows in SIZES:
        cells = []
        with patch.object(ProbeWeights, "score", no_product):
            scorer = make_scorer(10_000, args.hidden, candidates, rows, own=False)
            cells.append(measure(scorer, args.hidden, candidates))
        for loaded, own in ((10_000, False), (10_000, True), (100, False)):
            scorer = make_scorer(loaded, args.hidden, candidates, rows, own=own)
            cells.append(measure(scorer, args.hidden, candidates))
        say(f"| {candidates} x {rows} | " + " | ".join(f"{each:.2f}" for each in cells) + " |\n")


if __name__ == "__main__":
    main()
