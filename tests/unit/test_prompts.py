"""Files of prompts: what is read, and what is refused where."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from qprobe.data.layouts import Layout
from qprobe.data.prompts import GivenCompletion, PromptRow, read_prompts
from qprobe.errors import PromptFileError, RowError
from qprobe.rewards import make_reward

Json = dict[str, Any]
USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "yes"}
OTHER = {"role": "assistant", "content": "no"}
BIG = 10**400  # beyond every float
PAIR = (GivenCompletion("yes", 1.0), GivenCompletion("no", 0.0))


def write(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.jsonl"


def test_rows_keep_all_their_fields(file: Path) -> None:
    rows: list[Json] = [
        {"prompt": "é", "answer": 4, "deep": {"a": [None]}},
        {"messages": [{**USER, "name": "Al"}], "tests": ["assert 1"]},
    ]
    write(file, *rows)
    assert read_prompts(file) == [
        PromptRow("é", rows[0]),
        PromptRow(rows[1]["messages"], rows[1]),
    ]


def test_arrays_gzip_and_blank_lines(tmp_path: Path) -> None:
    row = {"prompt": "line\N{LINE SEPARATOR}separator"}
    text = json.dumps(row, ensure_ascii=False)
    plain, array, packed = (tmp_path / name for name in ("a.jsonl", "b.json", "c.jsonl.gz"))
    plain.write_text(f"\n{text}\r\n  \n{text}", encoding="utf-8")
    array.write_text(f" [{text}, {text}]", encoding="utf-8")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    want = [PromptRow(row["prompt"], row)] * 2
    assert read_prompts(plain) == read_prompts(array) == read_prompts(packed) == want


def test_completions(file: Path) -> None:
    given = ["a", {"text": "", "reward": 0.5}, {"text": "b", "reward": None}, {"text": "c"}]
    write(file, {"prompt": "p", "completions": given}, {"prompt": "p", "completions": ["z"]})
    rows = read_prompts(file, needs_completions=True)
    assert [(each.text, each.reward) for each in rows[0].completions] == [
        ("a", None), ("", 0.5), ("b", None), ("c", None),
    ]  # fmt: skip
    assert len(rows[1].completions) == 1


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "p", "chosen": "yes", "rejected": "no"}, "p"),
        ({"messages": [USER], "chosen": "yes", "rejected": "no"}, [USER]),
        ({"prompt": [USER], "chosen": [REPLY], "rejected": [OTHER]}, [USER]),
        ({"prompt": [USER], "chosen": [USER, REPLY], "rejected": [USER, OTHER]}, [USER]),
        ({"chosen": [USER, REPLY], "rejected": [USER, OTHER]}, [USER]),
        ({"prompt": "hi", "chosen": [USER, REPLY], "rejected": [USER, OTHER]}, [USER]),
        (
            {
                "prompt": "hi",
                "chosen": [{"role": "system", "content": "s"}, USER, REPLY],
                "rejected": [{"role": "system", "content": "s"}, USER, OTHER],
            },
            [{"role": "system", "content": "s"}, USER],
        ),
        ({"prompt": "hi", "chosen": [REPLY], "rejected": [OTHER]}, [USER]),
    ],
)
def test_preferences(file: Path, row: Json, prompt: object) -> None:
    (read,) = read_prompts(write(file, row), needs_completions=True)
    assert (read.prompt, read.completions, read.fields) == (prompt, PAIR, row)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "p", "messages": [USER]}, "messages"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "prompt[0].content"),
        ({"prompt": "half a pair: \ud800"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [USER, "hi"]}, "messages[1]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"prompt": "p", "completions": []}, "completions"),
        ({"prompt": "p", "completions": "a"}, "completions"),
        ({"prompt": "p", "completions": ["a", 5]}, "completions[1]"),
        ({"prompt": "p", "completions": [{"reward": 1}]}, "completions[0].text"),
        ({"prompt": "p", "completions": [{"text": 1}]}, "completions[0].text"),
        ({"prompt": "p", "completions": [{"text": "", "rewrd": 1}]}, "completions[0].rewrd"),
        ({"prompt": "p", "completions": [{"text": "", "reward": "1"}]}, "completions[0].reward"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "labels"),
        ({"prompt": "p", "system": "Be brief."}, "system"),
        ({"messages": [{"role": "user", "content": "p"}], "system": "Be brief."}, "system"),
        (
            {"prompt": "p", "completions": [{"text": "", "reward": 10**400}]},
            "completions[0].reward",
        ),
        ({"prompt": "p", "chosen": "a"}, "rejected"),
        ({"prompt": "p", "rejected": "a"}, "chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": 1}, "rejected"),
        ({"chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "completions": ["c"]}, "completions"),
        ({"prompt": "p", "chosen": [USER], "rejected": [OTHER]}, "chosen[0].role"),
        ({"prompt": "p", "chosen": "a", "rejected": [OTHER]}, "rejected"),
        ({"chosen": [USER, REPLY], "rejected": [OTHER]}, "rejected"),
        ({"chosen": [REPLY], "rejected": [OTHER]}, "prompt"),
        ({"prompt": "x", "chosen": [USER, REPLY], "rejected": [USER, OTHER]}, "chosen"),
        ({"messages": [REPLY], "chosen": [USER, REPLY], "rejected": [USER, OTHER]}, "chosen"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(file: Path, row: Json, field: str) -> None:
    write(file, {"prompt": "good"}, row)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(file)
    assert (caught.value.path, caught.value.line, caught.value.field) == (file, 2, field)
    assert str(caught.value).startswith(f"{file}:2: {field}: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_rewards_are_finite(file: Path, number: str) -> None:
    file.write_text(f'{{"prompt": "p", "completions": [{{"text": "a", "reward": {number}}}]}}')
    with pytest.raises(PromptFileError, match=r"reward|JSON number") as caught:
        read_prompts(file)
    assert caught.value.line == 1


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", None, "no rows"),
        (b" \n\n", None, "no rows"),
        (b"[]", None, "no rows"),
        (b'{"prompt": "p"}\n{"prompt": ', 2, "not JSON"),
        (b'{"prompt": "\xff"}', 1, "not UTF-8"),
        (b'{"prompt": "p"}\n5\n', 2, "must be a JSON object, got 5"),
        (b'[{"prompt": "p"}, 5]', 2, "must be a JSON object, got 5"),
        (b'[{"prompt": "p"}', None, "not JSON"),
        (b'{"a":' * 100_000, 1, "not JSON"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", 1, "not JSON"),
    ],
)
def test_files_that_are_no_rows(file: Path, data: bytes, line: int | None, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(PromptFileError, match=message) as caught:
        read_prompts(file)
    assert caught.value.line == line
    assert len(str(caught.value)) < 400 + len(str(file))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b'{"prompt": "p"}' * 100)[:-10])
    plain = tmp_path / "plain.gz"
    plain.write_bytes(b"text")
    for path in (tmp_path / "none", tmp_path, torn, plain):
        with pytest.raises(PromptFileError, match="cannot be read") as caught:
            read_prompts(path)
        assert (caught.value.line, caught.value.field) == (None, "file")


def test_long_values_are_shortened(file: Path) -> None:
    write(file, {"messages": "x" * 10_000})
    with pytest.raises(PromptFileError) as caught:
        read_prompts(file)
    assert len(str(caught.value)) < 300 + len(str(file))


def test_completions_may_be_demanded(file: Path) -> None:
    write(file, {"prompt": "p", "completions": ["a"]}, {"prompt": "p"})
    assert len(read_prompts(file)) == 2
    with pytest.raises(PromptFileError, match=":2: completions"):
        read_prompts(file, needs_completions=True)


def test_the_check_is_asked_about_every_row_before_any_is_returned(file: Path) -> None:
    seen: list[Json] = []

    def check(fields: Json) -> None:
        seen.append(fields)
        if fields["prompt"] == "bad":
            raise RowError("x[1]", "must be good, got 'bad'")

    write(file, {"prompt": "a"}, {"prompt": "bad"}, {"prompt": "b"})
    with pytest.raises(PromptFileError, match=r":2: x\[1\]: must be good") as caught:
        read_prompts(file, check=check)
    assert caught.value.field == "x[1]"
    assert seen == [{"prompt": "a"}, {"prompt": "bad"}]


def test_a_split_is_in_every_row_or_in_none(file: Path) -> None:
    write(file, {"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test"})
    assert [row.fields["split"] for row in read_prompts(file)] == ["train", "test"]
    for odd in ({}, {"split": "validation"}, {"split": ["test"]}):
        write(file, {"prompt": "a", "split": "train"}, {"prompt": "b", **odd})
        with pytest.raises(PromptFileError, match=":2: split: must be 'train' or 'test'") as caught:
            read_prompts(file)
        assert repr(odd.get("split")) in str(caught.value)


MBPP: Json = {
    "task_id": 1,
    "text": "Write a function to add two numbers.",
    "code": "def add(a, b):\n  return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(.1, .2), .3)"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
NODES: Json = {
    **MBPP,
    "code": "class Node:\n  def __init__(self, x): self.x = x\ndef value(node): return node.x",
    "test_list": ["assert value(root) == 7"],
    "test_setup_code": "root = Node(7)",
}
SUM: Json = {
    "task_id": 2,
    "prompt": "Write a function sum.",
    "code": "def sum(a, b):\n  return a + b",
    "test_list": ["assert sum(1, 2) == 3"],
    "test_imports": ["import math"],
}
HUMANEVAL: Json = {
    "task_id": "HumanEval/0",
    "prompt": (
        "from typing import List\n\n\ndef shift(x: int) -> int:\n    return x + 1\n\n\n"
        'def unshift(x: int) -> int:\n    """ Undo shift. """\n'
    ),
    "entry_point": "unshift",
    "canonical_solution": "    return x - 1\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(shift(3)) == 3\n",
}


@pytest.mark.parametrize(
    ("layout", "row", "solution", "wrong"),
    [
        ("mbpp", MBPP, MBPP["code"], "def add(a, b): return a - b"),
        ("mbpp", NODES, NODES["code"], NODES["code"].replace("7", "8").replace("node.x", "8")),
        ("mbpp", SUM, SUM["code"], "def sum(a, b): return 4"),
        (
            "humaneval",
            HUMANEVAL,
            HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"],
            "def unshift(x): return x\ndef shift(x): return x",
        ),
    ],
)
def test_published_rows_work_with_the_reward_tests(
    file: Path, layout: Layout, row: Json, solution: str, wrong: str
) -> None:
    reward = make_reward("tests")
    (read,) = read_prompts(write(file, row), layout=layout, check=reward.check)
    assert reward(read.fields, f"```python\n{solution}\n```") == 1.0
    assert reward(read.fields, f"```python\n{wrong}\n```") == 0.0
    # What was made is a row of ours: a collection may write it down and read it again.
    again = read_prompts(write(file, read.fields), check=reward.check)
    assert again == [read]
    assert read.fields["task_id"] == row["task_id"]


def test_what_is_null_in_mbpp_is_not_there(file: Path) -> None:
    row = {**SUM, "prompt": SUM.get("prompt") or SUM["text"], "text": None}
    (read,) = read_prompts(write(file, row), layout="mbpp")
    assert row["prompt"] in str(read.prompt)


def test_a_systems_message_that_the_chat_has_may_be_said_again(file: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "p"}]
    rows: list[Json] = [
        {"messages": chat, "system": "Be brief."},
        {"prompt": chat, "system": "Be brief."},
        {"prompt": "p", "system": None, "question": None, "labels": [1], "completions": ["a", "b"]},
        {"prompt": "p", "completions": ["a", "b"], "labels": ["easy", "short"]},
    ]
    assert [each.prompt for each in read_prompts(write(file, *rows))] == [chat, chat, "p", "p"]


def test_only_the_first_test_of_mbpp_is_shown(file: Path) -> None:
    (read,) = read_prompts(write(file, MBPP), layout="mbpp")
    assert isinstance(read.prompt, list)
    (message,) = read.prompt
    assert message["role"] == "user"
    assert MBPP["text"] in message["content"]
    assert MBPP["test_list"][0] in message["content"]
    assert MBPP["test_list"][1] not in message["content"]


def test_an_answers_own_module_does_not_serve_the_tests_of_mbpp(file: Path) -> None:
    (read,) = read_prompts(write(file, MBPP), layout="mbpp")
    code = "class math:\n  isclose = staticmethod(lambda *_: True)\ndef add(a, b): return 3"
    assert make_reward("tests")(read.fields, code) == 0.0


def test_files_as_they_are_published(tmp_path: Path) -> None:
    array = tmp_path / "sanitized-mbpp.json"
    array.write_text(json.dumps([SUM, MBPP], indent=2))
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode() + b"\n"))
    assert len(read_prompts(array, layout="mbpp")) == 2
    assert len(read_prompts(packed, layout="humaneval")) == 1


@pytest.mark.parametrize(
    ("layout", "changes", "field"),
    [
        ("mbpp", {"text": 5}, "text"),
        ("mbpp", {"test_list": []}, "test_list"),
        ("mbpp", {"test_list": ["assert 1", 2]}, "test_list[1]"),
        ("mbpp", {"test_imports": "import math"}, "test_imports"),
        ("mbpp", {"test_imports": [1]}, "test_imports[0]"),
        ("mbpp", {"test_setup_code": 1}, "test_setup_code"),
        ("mbpp", {"test_list": ["assert ("]}, "tests[0]"),
        ("humaneval", {"prompt": None}, "prompt"),
        ("humaneval", {"test": None}, "test"),
        ("humaneval", {"entry_point": None}, "entry_point"),
        ("humaneval", {"test": "def ("}, "tests[0]"),
    ],
)
def test_published_rows_are_checked(file: Path, layout: Layout, changes: Json, field: str) -> None:
    row = (MBPP if layout == "mbpp" else HUMANEVAL) | changes
    with pytest.raises(PromptFileError) as caught:
        read_prompts(write(file, row), layout=layout, check=make_reward("tests").check)
    assert (caught.value.line, caught.value.field) == (1, field)


def test_rows_that_are_laid_out_for_a_continuation(file: Path) -> None:
    (read,) = read_prompts(write(file, HUMANEVAL), layout="humaneval-raw")
    assert read.prompt == HUMANEVAL["prompt"]
    assert read.fields["join"] is True
    assert "setup" not in read.fields
    assert read.fields["tests"] == [HUMANEVAL["test"], "check(unshift)"]
    (read,) = read_prompts(write(file, MBPP), layout="mbpp-raw")
    assert read.prompt == (
        f'"""\nWrite a function to add two numbers.\n{MBPP["test_list"][0]}\n"""\n'
    )
    assert "join" not in read.fields


def test_the_tests_of_evalplus_are_run_beside_those_of_mbpp(file: Path) -> None:
    reward = make_reward("tests")
    row = SUM | {"test": "inputs = [[1, 2], [3, 4]]\nfor a, b in inputs:\n  assert sum(a, b) > 2"}
    layouts: tuple[Layout, ...] = ("mbpp", "mbpp-raw")
    for layout in layouts:
        (read,) = read_prompts(write(file, row), layout=layout, check=reward.check)
        assert reward(read.fields, SUM["code"]) == 1.0
        assert reward(read.fields, "def sum(a, b): return 3 if a == 1 else 0") == 0.0


def test_inputs_of_evalplus_are_compared_with_its_solution(file: Path) -> None:
    reward = make_reward("tests")
    row: Json = {name: value for name, value in HUMANEVAL.items() if name != "test"}
    row |= {"base_input": [[4]], "plus_input": [[0], [-7]], "atol": 0, "contract": ""}
    (read,) = read_prompts(write(file, row), layout="humaneval", check=reward.check)
    solution = HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    assert reward(read.fields, solution) == 1.0
    assert reward(read.fields, solution.replace("x - 1", "max(x, 1) - 1")) == 0.0
    halves = row | {
        "canonical_solution": "    return [x / 3, (1,)]\n",
        "atol": 1e-3,
    }
    (read,) = read_prompts(write(file, halves), layout="humaneval", check=reward.check)
    assert reward(read.fields, "def unshift(x): return [x / 3 + 1e-4, (1,)]") == 1.0
    assert reward(read.fields, "def unshift(x): return [x / 3 + 1e-2, (1,)]") == 0.0
    assert reward(read.fields, "def unshift(x): return [x / 3, (1, 2)]") == 0.0
    for odd in ({"base_input": [4]}, {"canonical_solution": None}, {"atol": "x"}):
        with pytest.raises(PromptFileError, match=next(iter(odd))):
            read_prompts(write(file, row | odd), layout="humaneval")
