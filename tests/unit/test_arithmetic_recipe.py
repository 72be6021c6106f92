"""The recipe of sums: its rows ask for what their answers are."""

import operator
import re
from pathlib import Path

from qprobe.data.prompts import read_prompts
from qprobe.rewards import make_reward

RECIPE = Path(__file__).parents[2] / "probes" / "recipes" / "arithmetic" / "prompts.jsonl"
OPERATIONS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}


def test_every_answer_is_that_of_its_question() -> None:
    reward = make_reward("numeric")
    rows = read_prompts(RECIPE)
    asked = set()
    for row in rows:
        (message,) = row.fields["messages"]
        found = re.match(r"What is (\d+) (plus|minus|times) (\d+)\? ", message["content"])
        assert found is not None
        asked.add(found.groups())
        right = OPERATIONS[found[2]](int(found[1]), int(found[3]))
        reward.check(row.fields)
        assert reward(row.fields, f"I count. The result is {right}.") == 1.0
        assert reward(row.fields, f"I count. The result is {right + 1}.") == 0.0
    assert len(asked) == len(rows) == 96
