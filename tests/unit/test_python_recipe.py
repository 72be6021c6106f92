"""The shipped Python tasks: enough, varied, and each one's own solution passes its tests."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qprobe.data.prompts import read_prompts
from qprobe.rewards import make_reward

RECIPE = Path(__file__).parents[2] / "probes" / "recipes" / "python"
PROMPTS, UNSEEN = RECIPE / "prompts.jsonl", RECIPE / "unseen.jsonl"


@pytest.mark.parametrize("path", [PROMPTS, UNSEEN])
def test_rows_are_enough_and_varied(path: Path) -> None:
    rows = [row.fields for row in read_prompts(path, check=make_reward("tests").check)]
    assert len(rows) >= 150
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows)
    assert min(len(row["tests"]) for row in rows) >= 3
    assert len(Counter(row["category"] for row in rows)) == 6
    assert len(set(Counter(row["category"] for row in rows).values())) == 1


def test_no_task_is_in_both_files() -> None:
    seen, unseen = ([row.fields for row in read_prompts(path)] for path in (PROMPTS, UNSEEN))
    assert not {row["id"] for row in seen} & {row["id"] for row in unseen}
    texts = {row["messages"][0]["content"] for row in seen}
    assert not texts & {row["messages"][0]["content"] for row in unseen}


@pytest.mark.parametrize("path", [PROMPTS, UNSEEN])
def test_solutions_pass_and_others_fail(path: Path) -> None:
    """Every seventh task, and so some of each category."""
    reward = make_reward("tests")
    rows = [row.fields for row in read_prompts(path)][::7]
    assert len({row["category"] for row in rows}) == 6
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda row: reward(row, f"```python\n{row['solution']}\n```"), rows))
        other = [rows[-1], *rows[:-1]]
        wrong = list(pool.map(lambda row, not_its: reward(row, not_its["solution"]), rows, other))
    assert right == [1.0] * len(rows)
    assert wrong == [0.0] * len(rows)
