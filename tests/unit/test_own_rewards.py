"""A user's own reward: which forms it may have, and what is said when it fails."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qprobe.errors import RewardError, RowError, SandboxError
from qprobe.rewards import BatchReward, make_reward
from qprobe.rewards.custom import FunctionReward
from qprobe.rewards.judged import Judged
from qprobe.rewards.rating import NO_REWARD, Asked, rate

Json = dict[str, Any]
RAW = {"prompt": "1+1?", "answer": "2", "level": 1}
CHAT = {"messages": [{"role": "user", "content": "1+2?"}], "answer": "3"}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Return a file to write a function into; forgotten afterwards."""
    before = set(sys.modules)
    yield tmp_path / "mine.py"
    for name in set(sys.modules) - before:
        del sys.modules[name]


def make(source: Path, text: str, **settings: Any) -> FunctionReward:
    source.write_text(text)
    return FunctionReward(f"{source}:f", **settings)


def ask(*completions: str) -> list[Asked]:
    return [Asked(RAW, each, f"place {i}") for i, each in enumerate(completions)]


@pytest.mark.parametrize(
    ("signature", "size"),
    [
        ("row, completion", 1),
        ("fields, text", 1),
        ("*, completion, row", 1),
        ("row, completion, strict=True", 1),
        ("*args", 1),
        ("prompts, completions, **columns", 32),
        ("completions, **kwargs", 32),
        ("completions", 32),
        ("prompts, completions, answer", 32),
    ],
)
def test_the_signature_tells_the_form(source: Path, signature: str, size: int) -> None:
    reward = make(source, f"def f({signature}): pass")
    assert isinstance(reward, BatchReward)
    assert reward.batch_size == size


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "row",
        "row, completion, answer",
        "prompt, completion",
        "prompt, response",
        "completion, fields",
        "completion, row, /",
        "text, row",
        "prompts, completions, /",
        "columns, /, completions",
        "*completions",
        "prompt, completions",
    ],
)
def test_other_signatures_are_refused_before_a_row_is_there(source: Path, signature: str) -> None:
    with pytest.raises(RewardError) as refused:
        make(source, f"def f({signature}): pass")
    assert str(refused.value).endswith(f"it takes ({signature})")
    assert "(row, completion) or, as in TRL, (prompts, completions, **columns)" in str(
        refused.value
    )
    with pytest.raises(RewardError, match="must not be async"):
        make(source, "async def f(row, completion): return 1.0")
    with pytest.raises(RewardError, match="must not be async"):
        make(source, "class F:\n    async def __call__(self, row, completion): ...\nf = F()\n")


@pytest.mark.parametrize(
    "signature",
    ["completion, row", "*, completion, row", "row, completion", "text=1, *, row, completion"],
)
def test_parameters_that_are_named_so_may_stand_in_any_order(source: Path, signature: str) -> None:
    reward = make(source, f"def f({signature}): return row['answer'] == completion")
    assert reward(RAW, "2") == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nimport sys\nsys.exit(3)\n", "raised SystemExit: 3 at {file}:3"),
        (
            "import json\njson.loads('')\n",
            "raised JSONDecodeError: Expecting value: line 1 column 1 (char 0) at {file}:2",
        ),
        (
            "import no_such_module_x\n",
            "raised ModuleNotFoundError: No module named 'no_such_module_x' at {file}:1",
        ),
        ("x = \n", "raised SyntaxError: invalid syntax (mine.py, line 1)"),
    ],
)
def test_what_an_import_raises_is_told_with_the_line(source: Path, text: str, said: str) -> None:
    with pytest.raises(RewardError) as caught:
        make(source, text)
    assert str(caught.value).endswith(f"importing {str(source)!r} {said.format(file=source)}")


def test_the_size_of_batches_is_chosen_where_there_are_any(source: Path) -> None:
    assert make(source, "def f(completions): pass", batch_size=3).batch_size == 3
    with pytest.raises(RewardError, match="takes one completion a call"):
        make(source, "def f(row, completion): pass", batch_size=3)
    with pytest.raises(RewardError, match="'numeric' takes one completion a call"):
        make_reward("numeric", batch_size=2)


def test_a_function_of_trls_form_gets_what_trl_hands_over(source: Path) -> None:
    """Columns as lists, chats as messages; a column that a row lacks is None."""
    reward = make(
        source,
        "seen = []\n"
        "def f(prompts, completions, **columns):\n"
        "    seen.append((prompts, completions, columns))\n"
        "    return [0.5, True]\n",
    )
    assert reward.rate([(RAW, "two"), (CHAT, "three")]) == [0.5, 1.0]
    assert sys.modules["qprobe_reward_mine"].seen == [
        (
            ["1+1?", CHAT["messages"]],
            ["two", [{"role": "assistant", "content": "three"}]],
            {"answer": ["2", "3"], "level": [1, None]},
        )
    ]


def test_a_function_gets_the_columns_that_it_names(source: Path) -> None:
    reward = make(
        source,
        "import numpy\n"
        "def f(completions, answer, weight=(2,)):\n"
        "    right = [a == b for a, b in zip(completions, answer)]\n"
        "    return numpy.array(right) * weight[0]\n",
    )
    assert reward.rate([(RAW, "2"), (RAW, "3")]) == [2.0, 0.0]
    assert reward(RAW, "2") == 2.0
    reward.check(RAW)
    with pytest.raises(RowError) as refused:
        reward.check({"prompt": "p"})
    assert refused.value.field == "answer"


@pytest.mark.parametrize("result", ["[1.0]", "[1.0, 2.0, 3.0]", "1.0", "None", "[1.0, None]"])
def test_a_list_that_is_not_of_one_number_each_is_refused(source: Path, result: str) -> None:
    reward = make(source, f"def f(prompts, completions): return {result}")
    with pytest.raises(RewardError, match=r"must return a (list of 2 numbers|finite number)"):
        reward.rate([(RAW, "a"), (RAW, "b")])


def test_what_a_function_raises_is_told_with_its_text_and_the_users_own_line(source: Path) -> None:
    """The line is the user's, not that of the library which raised for it."""
    reward = make(
        source,
        "import json\ndef f(row, completion):\n    x = 1\n    return json.loads(completion)\n",
    )
    with pytest.raises(RewardError) as caught:
        reward({}, "no\njson")
    assert "raised JSONDecodeError: Expecting value: line 1" in str(caught.value)
    assert str(caught.value).endswith(f"at {source}:4")
    assert "\n" not in str(caught.value)
    ends = make(source, "import sys\ndef f(row, completion):\n    sys.exit('x' * 1000)\n")
    with pytest.raises(RewardError, match=r"SystemExit: x{300}\.\.\. at .*mine\.py:3"):
        ends({}, "")


def test_a_function_that_needs_the_main_thread_says_so(source: Path) -> None:
    """As math_verify does, whose limit of time is a signal."""
    reward = make(
        source,
        "import signal\ndef f(row, completion):\n"
        "    signal.signal(signal.SIGALRM, signal.SIG_DFL)\n    return 1.0\n",
    )
    errors: list[str] = []

    def call() -> None:
        try:
            reward({}, "")
        except RewardError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "rewards run in threads" in errors[0]
    assert "--reward-timeout" in errors[0]


COUNT = (
    "calls = []\n"
    "def f(completions):\n"
    "    calls.append(list(completions))\n"
    "    if 'bad' in completions: raise ValueError('why')\n"
    "    return [float(len(each)) for each in completions]\n"
)


def test_of_a_batch_that_fails_the_one_at_fault_is_named(source: Path) -> None:
    reward = make(source, COUNT)
    with pytest.raises(RewardError, match=r"ValueError: why at .*mine\.py:4 \(place 1\)"):
        rate(reward, ask("a", "bad", "ccc"))
    rated = rate(reward, ask("a", "bad", "ccc"), skip=True)
    assert [each.reward for each in rated] == [1.0, None, 3.0]
    assert [each.reason for each in rated] == [None, NO_REWARD, None]
    assert str(rated[1].error).endswith("(place 1)")


def test_a_batch_is_one_call(source: Path) -> None:
    reward = make(source, COUNT)
    assert [each.reward for each in rate(reward, ask("a", "bb"))] == [1.0, 2.0]
    assert sys.modules["qprobe_reward_mine"].calls == [["a", "bb"]]


def test_a_call_that_takes_too_long_is_left_alone(source: Path) -> None:
    reward = make(
        source,
        "import time\ndef f(row, completion):\n"
        "    time.sleep(60 if completion == 'slow' else 0)\n    return 1.0\n",
    )
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"longer than 0\.2 s \(place 0\)"):
        rate(reward, ask("slow"), timeout_s=0.2)
    assert rate(reward, ask("slow"), timeout_s=0.2, skip=True)[0].reward is None
    assert rate(reward, ask("fast"), timeout_s=30)[0].reward == 1.0
    assert time.monotonic() - began < 10


def test_a_reason_is_kept() -> None:
    class Judge:
        name = "judge"

        def check(self, fields: Json) -> None: ...

        def __call__(self, fields: Json, completion: str) -> float:
            raise AssertionError("it gives reasons")

        def judge(self, fields: Json, completion: str) -> Judged:
            return Judged(0.5, f"has {completion}")

    (rated,) = rate(Judge(), ask("words"))
    assert (rated.reward, rated.reason) == (0.5, "has words")


def test_a_machine_that_cannot_run_code_is_no_fault_of_a_completion() -> None:
    class Broken:
        name = "tests"

        def check(self, fields: Json) -> None: ...

        def __call__(self, fields: Json, completion: str) -> float:
            raise SandboxError("this machine cannot")

    with pytest.raises(SandboxError):
        rate(Broken(), ask("a"), skip=True)
