"""What stands on the terminal once a dataset is rewarded: its figures, and what to type next."""

import shlex
import sys
from pathlib import Path

from qprobe_server.commands.printing import warn

__all__ = ["print_summary"]


def print_summary(folder: Path, reward_name: str | None = None) -> None:
    """Print the figures of a dataset with the reward collected, or with a named one."""
    # Not at the top: they import torch.
    from qprobe import Dataset
    from qprobe.evaluation.summary import summarise

    found = summarise(Dataset.load(folder, reward_name=reward_name))
    if found is None:
        warn(f"no sample in {str(folder)!r} has a reward")
        return
    share = found.num_differing / found.num_prompts
    rows = [
        ("base", f"{found.base:.4f}", "one sample"),
        ("greedy", "" if found.greedy is None else f"{found.greedy:.4f}", "the greedy answer"),
        ("ceiling", f"{found.ceiling:.4f}", "the best of a prompt's samples"),
        ("spread", f"{found.spread:.4f}", "standard deviation within a prompt"),
        (
            "differ",
            f"{share:.0%}",
            f"of the prompts ({found.num_differing}): only these teach a choice",
        ),
        ("cut", f"{found.cut:.0%}" if found.cut else "", "of the samples, by --max-tokens"),
    ]
    write = sys.stdout.write
    write(f"{found.num_prompts} prompts, {found.num_samples} samples with a reward\n")
    for name, value, about in rows:
        if value:
            write(f"{name:9}{value:8}{about}\n")
    if found.num_unrewarded:
        write(f"{'without':9}{found.num_unrewarded:<8}samples, as the reward failed for them\n")
    if found.num_refused:
        write(f"{'refused':9}{found.num_refused:<8}prompts, by the API or by what reads answers: ")
        write("they have no samples\n")
    if found.reasons:
        counts = ", ".join(f"{reason} {count}" for reason, count in found.reasons.items())
        write(f"{'reasons':9}{counts}\n")
    if not found.num_differing:
        warn("no prompt's rewards differ, so that there is nothing to learn a choice from")
        return
    named = [] if reward_name is None else ["--reward-name", reward_name]
    write(f"next: {shlex.join(['qprobe', 'sweep', str(folder), *named, '-o', 'runs/'])}\n")
