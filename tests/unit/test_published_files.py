"""Files as people have them: published preferences, logs, tables; and as what they are read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qprobe.data.columns import Columns
from qprobe.data.prompts import PromptRow, read_prompts
from qprobe.data.provenance import identify_prompts
from qprobe.errors import PromptFileError
from qprobe.rewards import make_reward

Json = dict[str, Any]
ASK = {"role": "user", "content": "Why is the sky blue?"}
GOOD = {"role": "assistant", "content": "Air scatters blue light more."}
BAD = {"role": "assistant", "content": "It is painted."}
MORE = {"role": "user", "content": "And red at night?"}
TEXTS = ("Air scatters blue light more.", "It is painted.")
TURNS = "\n\nHuman: Why is the sky blue?\n\nAssistant: Hm.\n\nHuman: Well?\n\nAssistant:"
ASKED = [ASK, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Well?"}]
TREE: Json = {
    "message_id": "a", "parent_id": None, "text": "Why?", "role": "prompter", "lang": "en",
    "replies": [
        {"message_id": "b", "parent_id": "a", "text": "Third.", "role": "assistant", "rank": 2},
        {"message_id": "c", "parent_id": "a", "text": "First.", "role": "assistant", "rank": 0,
         "replies": [{"message_id": "e", "parent_id": "c", "text": "So?", "role": "prompter",
                      "replies": [{"message_id": "f", "parent_id": "e", "text": "No rank.",
                                   "role": "assistant", "rank": None}]}]},
        {"message_id": "d", "parent_id": "a", "text": "Second.", "role": "assistant", "rank": 1},
    ],
}  # fmt: skip
RANKED = [("First.", 1.0), ("Second.", 0.5), ("Third.", 0.0)]


def write(path: Path, *rows: Json) -> Path:
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)  # every column in every row
        columns = {name: [row.get(name) for row in rows] for name in names}
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def completions(row: PromptRow) -> list[tuple[str, float | None]]:
    return [(each.text, each.reward) for each in row.completions]


def flatten(node: Json) -> list[Json]:
    own = {name: value for name, value in node.items() if name != "replies"}
    return (
        [{"rank": None, **own}, *(row for each in node["replies"] for row in flatten(each))]
        if ("replies" in node)
        else [own]
    )


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "prompt", "rewards"),
    [
        # TRL: explicit and implicit prompts, plain and conversational.
        (
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            "The sky is",
            [(" blue.", 1.0), (" green.", 0.0)],
        ),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            "The sky is",
            [(" blue.", 1.0), (" black.", 0.0)],
        ),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            "The sky is",
            [(" blue.", 1.0), (" green.", 0.0)],
        ),
        (
            {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
            [ASK],
            list(zip(TEXTS, (1, 0), strict=True)),
        ),
        (
            {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
            [ASK],
            list(zip(TEXTS, (1, 0), strict=True)),
        ),
        # HH-RLHF.
        (
            {"chosen": f"{TURNS} {TEXTS[0]}", "rejected": f"{TURNS} {TEXTS[1]}"},
            ASKED,
            list(zip(TEXTS, (1, 0), strict=True)),
        ),
        # UltraFeedback, binarised.
        (
            {
                "prompt": ASK["content"],
                "prompt_id": "x",
                "chosen": [ASK, GOOD],
                "rejected": [ASK, BAD],
                "messages": [ASK, GOOD],
                "score_chosen": 8.5,
                "score_rejected": 3.0,
            },
            [ASK],
            list(zip(TEXTS, (8.5, 3.0), strict=True)),
        ),
        # Stanford Human Preferences.
        (
            {
                "post_id": "x",
                "history": ASK["content"],
                "human_ref_A": TEXTS[1],
                "human_ref_B": TEXTS[0],
                "labels": 0,
                "score_A": 3,
                "score_B": 7,
            },
            [ASK],
            [(TEXTS[1], 0.0), (TEXTS[0], 1.0)],
        ),
        # RewardBench 2.
        (
            {
                "id": "1",
                "prompt": ASK["content"],
                "chosen": [TEXTS[0]],
                "rejected": [TEXTS[1], "No.", "Yes."],
                "num_correct": 1,
            },
            [ASK],
            [(TEXTS[0], 1.0), (TEXTS[1], 0.0), ("No.", 0.0), ("Yes.", 0.0)],
        ),
        # A question, perhaps with a system's message, as much else has it.
        (
            {"system": "", "question": ASK["content"], "chosen": "a", "rejected": "b"},
            [ASK],
            [("a", 1.0), ("b", 0.0)],
        ),
    ],
)
def test_preferences_as_they_are_published(
    tmp_path: Path, suffix: str, row: Json, prompt: object, rewards: object
) -> None:
    (read,) = read_prompts(write(tmp_path / f"p.{suffix}", row), needs_completions=True)
    assert read.prompt == prompt
    assert completions(read) == rewards
    # The same question in another row is known as the same, whatever its replies are.
    other = json.loads(json.dumps(row).replace("painted", "glued").replace("black", "gray"))
    (again,) = read_prompts(write(tmp_path / "q.jsonl", other), needs_completions=True)
    assert len(set(identify_prompts([read.fields, again.fields]))) == 1
    # What was made is a row of ours: a collection may write it down and read it again.
    written = write(tmp_path / "r.jsonl", read.fields)
    assert read_prompts(written, needs_completions=True) == [read]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "rejected"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "rejected"),
        ({"chosen": f"{TURNS} a", "rejected": f"{TURNS} a"}, "rejected"),
        ({"prompt": "p", "chosen": ["a", "b"], "rejected": ["b"]}, "rejected"),
        ({"history": "p", "human_ref_A": "a", "human_ref_B": "a", "labels": 1}, "human_ref_B"),
        ({"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, "labels"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            "score_chosen",
        ),
        ({"chosen": f"{TURNS} a", "rejected": "\n\nHuman: x\n\nAssistant: b"}, "rejected"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "chosen"),
        ({"chosen": "alpha", "rejected": "beta"}, "prompt"),
        ({"prompt": "p", "completion": "a", "label": "good"}, "label"),
        ({"prompt": [ASK], "completion": [ASK]}, "completion[0].role"),
        ({"prompt": [ASK], "completion": [GOOD, MORE, BAD]}, "completion"),
    ],
)
def test_what_is_no_preference_is_named(tmp_path: Path, row: Json, field: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "p", "completions": ["a"]}, row)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path, needs_completions=True)
    assert (caught.value.line, caught.value.field) == (2, field)


def test_conversations_of_openassistant(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree.jsonl", {"message_tree_id": "a", "prompt": TREE})
    flat = write(tmp_path / "flat.parquet", *flatten(TREE)[::-1])
    for path in (tree, flat):
        (read,) = read_prompts(path, needs_completions=True)
        assert read.prompt == [{"role": "user", "content": "Why?"}]
        assert completions(read) == RANKED
        assert read.fields["lang"] == "en"


def test_roots_without_a_parent_need_not_say_so(tmp_path: Path) -> None:
    rows = [
        {name: value for name, value in row.items() if value is not None} for row in flatten(TREE)
    ]
    (read,) = read_prompts(write(tmp_path / "flat.jsonl", *rows), needs_completions=True)
    assert completions(read) == RANKED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", "0"),
        ("rank", True),
        ("replies", ["x"]),
        ("replies", "x"),
        ("role", ["assistant"]),
        ("text", 5),
        ("parent_id", ["a"]),
        ("message_id", 5),
    ],
)
def test_what_is_no_message_of_a_tree_is_named(tmp_path: Path, field: str, value: Any) -> None:
    replies = [{**TREE["replies"][0], field: value}, *TREE["replies"][1:]]
    tree = {**TREE, "replies": replies}
    path = write(tmp_path / "tree.jsonl", {"message_tree_id": "a", "prompt": tree})
    if field in ("parent_id", "message_id"):  # a tree says who is whose reply by itself
        path = write(tmp_path / "flat.jsonl", *flatten(tree))
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path, needs_completions=True)
    assert caught.value.field == field


def test_unpaired_completions_are_joined_by_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "a", "label": True, "source": "x", "n": 1},
        {"prompt": "q", "completion": "b", "label": False, "source": "x", "n": 2},
        {"prompt": "p", "completion": "c", "label": False, "source": "x", "n": 3},
    ]
    first, second = read_prompts(write(tmp_path / "p.jsonl", *rows), needs_completions=True)
    assert (first.prompt, completions(first)) == ("p", [("a", 1.0), ("c", 0.0)])
    assert (second.prompt, completions(second)) == ("q", [("b", 0.0)])
    assert first.fields["source"] == "x"
    assert "n" not in first.fields
    # For sampling a completion is a field like any other.
    assert len(read_prompts(tmp_path / "p.jsonl")) == 3


def test_conversational_completions_are_joined(tmp_path: Path) -> None:
    rows = [{"prompt": [ASK], "completion": [each], "label": each is GOOD} for each in (GOOD, BAD)]
    (read,) = read_prompts(write(tmp_path / "p.parquet", *rows), needs_completions=True)
    assert (read.prompt, completions(read)) == ([ASK], [(TEXTS[0], 1.0), (TEXTS[1], 0.0)])


LOG = [
    {"step": step, "prompt": "p", "completion": f"{step}{each}", "advantage": 0.5}
    for step in (1, 2)
    for each in "ab"
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_logs_of_grpo(tmp_path: Path, suffix: str) -> None:
    rows = [{**row, "accuracy_reward": place / 4} for place, row in enumerate(LOG)]
    read = read_prompts(write(tmp_path / f"l.{suffix}", *rows), needs_completions=True)
    assert [each.prompt for each in read] == ["p", "p"]
    assert [completions(each) for each in read] == [
        [("1a", 0.0), ("1b", 0.25)],
        [("2a", 0.5), ("2b", 0.75)],
    ]


@pytest.mark.parametrize("name", ["reward", "correct"])
def test_true_and_false_are_rewards(tmp_path: Path, name: str) -> None:
    rows = [{**row, name: place % 2 == 0} for place, row in enumerate(LOG)]
    read = read_prompts(write(tmp_path / "l.parquet", *rows), needs_completions=True)
    assert [completions(each) for each in read] == [
        [("1a", 1.0), ("1b", 0.0)],
        [("2a", 1.0), ("2b", 0.0)],
    ]
    # Where there are numbers, they are meant.
    rows = [{"cut": True, **row, "accuracy": 0.5} for row in LOG]
    read = read_prompts(write(tmp_path / "m.parquet", *rows), needs_completions=True)
    assert completions(read[0]) == [("1a", 0.5), ("1b", 0.5)]


def test_of_several_rewards_of_a_log_one_is_named(tmp_path: Path) -> None:
    rows = [{**row, "accuracy": 1.0, "format": None if row["step"] == 1 else 0.5} for row in LOG]
    path = write(tmp_path / "l.parquet", *rows)
    with pytest.raises(PromptFileError, match="accuracy, format: name one by --columns"):
        read_prompts(path, needs_completions=True)
    columns = Columns({"reward": "accuracy"})
    read = read_prompts(path, columns=columns, needs_completions=True, needs_rewards=True)
    assert completions(read[0]) == [("1a", 1.0), ("1b", 1.0)]


def test_gsm8k(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    reward = make_reward("numeric")
    (read,) = read_prompts(write(tmp_path / "g.jsonl", row), check=reward.check)
    assert read.prompt == [{"role": "user", "content": "How many?"}]
    assert reward(read.fields, "It is 7.") == 1.0
    assert reward(read.fields, "It is 3.") == 0.0


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": ""},
    ],
)  # fmt: skip
def test_messages_as_openai_takes_them(tmp_path: Path, message: Json) -> None:
    (read,) = read_prompts(write(tmp_path / "p.jsonl", {"messages": [ASK, message]}))
    assert read.prompt == [ASK, {"content": None, **message}]


def test_null_columns_of_a_table_are_not_there(tmp_path: Path) -> None:
    rows: list[Json] = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "split": None},
        {"messages": [{**ASK, "name": "Al", "tool_calls": None}], "completions": [{"text": "c"}]},
    ]
    path = write(tmp_path / "p.parquet", *rows)
    first, second = read_prompts(path, needs_completions=True)
    assert (first.prompt, completions(first)) == ("p", [("a", 1.0), ("b", 0.0)])
    assert (second.prompt, completions(second)) == ([{**ASK, "name": "Al"}], [("c", None)])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": None},
        {"role": "user", "content": 5},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": ["f"]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": 5}}]},
        {"role": "assistant", "content": None, "tool_calls": "f"},
    ],
)
def test_other_messages_are_refused(tmp_path: Path, message: Json) -> None:
    with pytest.raises(PromptFileError) as caught:
        read_prompts(write(tmp_path / "p.jsonl", {"messages": [message]}))
    assert caught.value.field.startswith("messages[0].")


def test_a_reply_may_be_in_parts_but_not_a_tool_call(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row: Json = {"prompt": [ASK], "chosen": [{**GOOD, "content": parts}], "rejected": [BAD]}
    (read,) = read_prompts(write(tmp_path / "p.jsonl", row))
    assert completions(read)[0] == ("ab", 1.0)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    with pytest.raises(PromptFileError, match=r"chosen\[0\]\.content: must be text"):
        read_prompts(write(tmp_path / "p.jsonl", row | {"chosen": [call]}))


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n',
        b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
        b'\xef\xbb\xbf[{"prompt": "a"},\r\n {"prompt": "b"}]',
        b'[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n',
    ],
)
def test_marks_line_ends_and_arrays(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    assert [row.prompt for row in read_prompts(path)] == ["a", "b"]


def test_columns_and_splits(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{each}", "final": each, "part": part}
        for each, part in enumerate(["train_sft", "validation", "test", "other"])
    ]
    path = write(tmp_path / "p.parquet", *rows)
    columns = Columns(
        {"prompt": "query", "answer": "final"},
        split="part",
        splits=("train_sft", "validation", "test"),
        test_splits=("validation", "test"),
    )
    read = read_prompts(path, columns=columns)
    assert [row.fields for row in read] == [
        {"prompt": "q0", "answer": 0, "part": "train_sft", "split": "train"},
        {"prompt": "q1", "answer": 1, "part": "validation", "split": "test"},
        {"prompt": "q2", "answer": 2, "part": "test", "split": "test"},
    ]


def test_one_split_alone_is_for_training_and_for_the_test(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{each}", "split": part} for each, part in enumerate(["a", "b", "a"])]
    read = read_prompts(write(tmp_path / "p.jsonl", *rows), columns=Columns(splits=("a",)))
    assert [row.fields for row in read] == [{"prompt": "p0"}, {"prompt": "p2"}]
    with pytest.raises(PromptFileError, match=r"1: split: .*got 'a'; --splits names .*--test-sp"):
        read_prompts(tmp_path / "p.jsonl")


def test_completions_of_two_splits_stay_apart(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": text, "label": True, "split": split}
        for text, split in (("a", "train"), ("b", "test"), ("c", "train"))
    ]
    read = read_prompts(write(tmp_path / "p.jsonl", *rows), needs_completions=True)
    assert [(row.fields["split"], completions(row)) for row in read] == [
        ("train", [("a", 1.0), ("c", 1.0)]),
        ("test", [("b", 1.0)]),
    ]


def test_a_file_has_no_subsets(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="subset: is of a data set"):
        read_prompts(write(tmp_path / "p.jsonl", {"prompt": "p"}), subset="main")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns({"prompt": "query"}),
            "1: query: is to be 'prompt', but the row has 'prompt, part'",
        ),
        (Columns(split="part", test_splits=("tset",)), "part: is 'tset' in no row, but 'test, tr"),
        (Columns(split="part", splits=("dev",)), "part: is 'dev' in no row"),
        (Columns(test_splits=("test",)), "1: split: must name the row's split, got None"),
        (Columns(split="prompt"), "1: split: must be 'train' or 'test' in every row"),
    ],
)
def test_columns_that_are_not_there_are_named(
    tmp_path: Path, columns: Columns, message: str
) -> None:
    rows = [{"prompt": "p", "part": part} for part in ("train", "test")]
    with pytest.raises(PromptFileError, match=message):
        read_prompts(write(tmp_path / "p.jsonl", *rows), columns=columns)


def test_a_torn_table_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", {"prompt": "p"})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PromptFileError, match="file: cannot be read"):
        read_prompts(path)
    binary = write(tmp_path / "b.parquet", {"prompt": "p", "image": b"x"})
    with pytest.raises(PromptFileError, match="1: row: holds what JSON cannot"):
        read_prompts(binary)
