"""Rows shaped like HumanEval's, MBPP's and EvalPlus': their own solutions get 1, others 0."""

from typing import Any

import pytest

from qprobe.data.layouts import LAYOUTS
from qprobe.rewards.code import TestsReward
from qprobe.rewards.sandbox import FAILED

Json = dict[str, Any]
EVALPLUS = """
import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp
"""
HUMANEVAL: Json = {
    "task_id": "Own/0",
    "prompt": "from typing import List\n\n\ndef twice(n: int) -> int:\n"
    '    """ Double a number. """\n    return n * 2\n\n\n'
    "def spread(values: List[int]) -> int:\n"
    '    """ Return twice the distance between largest and smallest.\n'
    "    >>> spread([1, 4])\n    6\n    >>> spread([])\n    0\n" + '    """\n',
    "entry_point": "spread",
    "canonical_solution": "    if not values:\n        return 0\n\n"
    "    width = max(values) - min(values)\n    return twice(width)\n",
    "test": "\n\nMETADATA = {\n    'author': 'us'\n}\n\n\ndef check(candidate):\n"
    "    assert candidate([1, 4]) == 6\n    assert candidate([]) == 0\n"
    "    assert candidate([2]) == twice(0)\n\n",
}
HUMANEVAL_PLUS = HUMANEVAL | {
    "test": EVALPLUS + "\ndef check(candidate):\n    inputs = [[[1, 4]], [[]]]\n"
    "    results = [6, 0]\n    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    "        assertion(candidate(*inp), exp, 0)\n",
}
MBPP: Json = {
    "task_id": 1,
    "text": "Write a function to find the mean of a list.",
    "code": "def mean(xs):\r\n  return sum(xs) / len(xs)",
    "test_list": [
        "assert mean([1, 2]) == 1.5",
        "assert math.isclose(mean([0.1] * 3), 0.1, rel_tol=0.001)",
    ],
    "test_setup_code": "",
}
MBPP_OF_A_CLASS: Json = {
    "task_id": 2,
    "text": "Write a function to count the nodes below a root.",
    "code": "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
    "def count(n):\n    return 0 if n is None else 1 + count(n.left)",
    "test_list": ["assert count(root) == 2", "assert count(root.left) == 1"],
    "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
}
MBPP_PLUS: Json = MBPP | {
    "test_list": MBPP["test_list"],
    "test_imports": [],
    "test": EVALPLUS + "\ninputs = [[[1, 2]], [[0.1, 0.2]]]\nresults = [1.5, 0.15]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(mean(*inp), exp, 0)\n",
}


ROWS = {
    "HumanEval, a chat": LAYOUTS["humaneval"](HUMANEVAL),
    "HumanEval, raw": LAYOUTS["humaneval-raw"](HUMANEVAL),
    "HumanEval+, a chat": LAYOUTS["humaneval"](HUMANEVAL_PLUS),
    "HumanEval+, raw": LAYOUTS["humaneval-raw"](HUMANEVAL_PLUS),
    "MBPP": LAYOUTS["mbpp"](MBPP),
    "MBPP, raw": LAYOUTS["mbpp-raw"](MBPP),
    "MBPP of a class, raw": LAYOUTS["mbpp-raw"](MBPP_OF_A_CLASS),
    "MBPP of a class": LAYOUTS["mbpp"](MBPP_OF_A_CLASS),
    "MBPP+": LAYOUTS["mbpp"](MBPP_PLUS),
    "MBPP+ as it is": MBPP_PLUS | {"tests": [MBPP_PLUS["test"]], "prompt": "Write mean."},
}
WHOLE = HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]


def answers(name: str) -> list[str]:
    """Return right answers as models give them."""
    if name.startswith("HumanEval"):
        body = HUMANEVAL["canonical_solution"]
        return [
            body,
            body.strip(),
            f"{body}\n\ndef next_one(x):\n    return (x",
            f"```python\n{body}```",
            f"Here:\n```python\n{WHOLE}```\nIt doubles.",
            f"{body}\n\nif __name__ == '__main__':\n    print(",
        ]
    code = MBPP_OF_A_CLASS["code"] if "class" in name else MBPP["code"]
    return [
        code,
        f"```python\n{code}\n```",
        f"[BEGIN]\n{code}\n[DONE]\n\nYou are next",
        f"The function:\n\n{code}\n\nThat is it.",
    ]


@pytest.mark.parametrize("name", ROWS)
def test_right_answers_get_one_and_wrong_ones_a_reason(name: str) -> None:
    row, reward = ROWS[name], TestsReward()
    reward.check(row)
    assert reward.judge_solution(row) == (1.0, None)
    for answer in answers(name):
        assert reward.judge(row, answer) == (1.0, None), answer
    wrong = "    return None\n" if name.startswith("HumanEval") else "def mean(xs): return 0"
    assert reward.judge(row, wrong) == (0.0, FAILED)
