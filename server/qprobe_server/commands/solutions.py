"""Whether rows that bring a solution are solved by it: else their rewards would say nothing."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qprobe.data.prompts import PromptRow
from qprobe.rewards import Reward
from qprobe.rewards.code import TestsReward
from qprobe_server.commands.printing import warn
from qprobe_server.errors import StartupError

__all__ = ["check_solutions"]

_MAX_NAMED = 10


def check_solutions(
    path: Path, rows: Sequence[PromptRow], reward: Reward, *, workers: int, keep: bool
) -> None:
    """Run the solutions that rows bring for the reward ``tests``; of others nothing is known.

    Args:
        path: The rows' file, to name it.
        rows: All of them.
        reward: Any.
        workers: How many are run at a time, >= 1.
        keep: Whether rows that are not solved are only told.

    Raises:
        StartupError: A row's own solution does not get 1, and ``keep`` is false.
        SandboxError: Code cannot be run.
    """
    if not isinstance(reward, TestsReward):
        return
    with ThreadPoolExecutor(workers) as pool:
        judged = list(pool.map(reward.judge_solution, [row.fields for row in rows]))
    unsolved = [
        f"line {row.line} ({each.reason})"
        for row, each in zip(rows, judged, strict=True)
        if each is not None and each.value < 1
    ]
    if not unsolved:
        return
    named = ", ".join(unsolved[:_MAX_NAMED])
    more = f" and {len(unsolved) - _MAX_NAMED} more" if len(unsolved) > _MAX_NAMED else ""
    said = (
        f"{len(unsolved)} of {len(rows)} rows of {str(path)!r} are not solved by the solution that "
        f"they bring: {named}{more}"
    )
    if not keep:
        raise StartupError(f"{said}. Mend or remove them, or go on with --keep-unsolved")
    warn(said)
