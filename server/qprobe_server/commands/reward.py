"""``qprobe reward``: another reward for the samples of a dataset. Needs no engine."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from qprobe.data.sample import GREEDY
from qprobe.errors import PromptFileError, RowError
from qprobe.rewards import Reward
from qprobe_server.commands.manifest import name_reward
from qprobe_server.commands.paths import check_dataset
from qprobe_server.commands.reward_service import is_url
from qprobe_server.commands.rewarding import HowToReward, Rewarding, find_reward
from qprobe_server.commands.summary import print_summary

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from qprobe.data.folder import Stored

__all__ = ["run"]

Json = dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Reward all samples, and the greedy answers; goes on where an earlier run was stopped.

    Raises:
        QProbeError: The dataset, the reward or its name is not valid, or the reward failed.
        StartupError: The folder is none.
    """
    check_dataset(args.data)
    reward = find_reward(args)
    name = args.name or _choose_name(args.reward)
    # Not at the top: torch takes seconds, which no mistake above should cost.
    from tqdm import tqdm

    from qprobe.data.folder import read_folder
    from qprobe.data.named_rewards import NamedRewardWriter

    stored = read_folder(args.data)
    rows = args.data / "prompts.jsonl"
    _check_rows(rows, stored.prompts, reward)
    with NamedRewardWriter(args.data, stored, name, name_reward(args.reward)) as writer:
        missing = writer.missing()
        if not missing:
            sys.stdout.write(f"already rewarded, nothing done: {name!r} is there for all samples\n")
        total = sum(map(len, stored.shards.values()))
        done = total - sum(len(stored.shards[shard]) for shard in missing)
        with (
            tqdm(total=total, initial=done, unit="sample", disable=None) as bar,
            Rewarding(reward, HowToReward.of(args, reward)) as rewarding,
        ):
            for shard in missing:
                writer.write(shard, _rate_samples(rows, stored, shard, rewarding))
                bar.update(len(stored.shards[shard]))
        writer.finish()
    print_summary(args.data, name)


def _check_rows(path: Path, rows: list[Json], reward: Reward) -> None:
    for line, row in enumerate(rows, 1):
        try:
            reward.check(row)
        except RowError as error:
            raise PromptFileError(path, line, error.field, error.message) from error


def _rate_samples(
    path: Path, stored: "Stored", shard: str, rewarding: Rewarding
) -> list[tuple[float | None, str | None]]:
    """Return reward and reason of each sample of a shard."""
    waiting = []
    for each in stored.shards[shard]:
        which = "the greedy answer" if each.index == GREEDY else f"sample {each.index}"
        place = f"{path}:{each.prompt + 1}, {which}"
        waiting.append(rewarding.add(stored.prompts[each.prompt], each.text, place))
    rewarding.flush()
    rated = [each.result() for each in waiting]
    return [(each.reward, each.reason) for each in rated]


def _choose_name(reward: str) -> str:
    """Return ``tests`` for that, ``score`` for ``python:FILE.py:score``, a service's host."""
    name = httpx.URL(reward).host if is_url(reward) else reward.rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
