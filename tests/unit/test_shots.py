"""Few-shot prompts: which answers stand before what is asked, how, and what is recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qprobe.data.dataset import Dataset, Sample
from qprobe.data.export import export_table
from qprobe.data.prompts import PromptRow, read_prompts, read_row
from qprobe.data.shots import SEPARATOR, Shot, add_shots, choose_shots
from qprobe.data.writer import DatasetWriter
from qprobe.errors import PromptFileError, RowError
from qprobe_server.commands import arguments
from qprobe_server.commands.manifest import check_same, describe_flags
from qprobe_server.commands.shots import put_shots
from qprobe_server.errors import StartupError

Json = dict[str, Any]
SYSTEM = {"role": "system", "content": "Be brief."}


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def answer(content: str) -> Json:
    return {"role": "assistant", "content": content}


def row(line: int, prompt: Any, *completions: Any) -> PromptRow:
    name = "prompt" if isinstance(prompt, str) else "messages"
    made = read_row({name: prompt, **({"completions": [*completions]} if completions else {})})
    return PromptRow(made.prompt, made.fields, made.completions, line=line)


def rewarded(text: str, reward: float | None) -> Json:
    return {"text": text, "reward": reward}


def choose(rows: list[PromptRow], num: int, *, seed: int = 0) -> list[tuple[Any, str]]:
    made = choose_shots(rows, [row(1, "asked")], num_shots=num, seed=seed)
    return [(each.prompt, each.answer) for each in made]


def test_the_best_answer_of_the_best_questions() -> None:
    """Whatever the seed; a failed reward is worth least."""
    rows = [
        row(1, "bad", rewarded("0", 0.0)),
        row(2, "good", rewarded("0.5", 0.5), rewarded("1", 1.0), rewarded("1 too", 1.0)),
        row(3, "failed", rewarded("none", None)),
        row(4, "fair", rewarded("none", None), rewarded("0.5", 0.5)),
    ]
    for seed in range(8):
        best = [("good", "1"), ("fair", "0.5"), ("bad", "0"), ("failed", "none")]
        assert choose(rows, 4, seed=seed) == best
        assert choose(rows, 2, seed=seed) == best[:2]


def test_the_seed_chooses_among_equals() -> None:
    """3 of 10 in order are 720 draws: that 20 of them are 10 or fewer different ones is p < 1e-13.

    There are C(720, 10) < 1e22 ways to name ten, and all are among them with (10 / 720)^20.
    """
    rows = [row(i, f"p{i}", f"a{i}") for i in range(10)]
    drawn = [choose(rows, 3, seed=seed) for seed in range(20)]
    assert drawn == [choose(rows, 3, seed=seed) for seed in range(20)]
    assert len({str(each) for each in drawn}) > 10
    for each in drawn:
        assert len({asked for asked, _ in each}) == 3
        assert all(text == f"a{asked[1:]}" for asked, text in each)


def test_no_prompt_is_its_own_shot() -> None:
    """Told by what is asked, whatever the form; and no question is a shot twice."""
    parts = [{"type": "text", "text": "b"}]
    rows = [row(1, [user("a")], "1"), row(2, [user("b")], "2"), row(3, [user("a")], "3")]
    left = choose_shots(rows, [row(1, [user(parts)])], num_shots=5, seed=0)
    assert [(each.prompt, each.answer, each.line) for each in left] == [([user("a")], "1", 1)]


def shots_of(*rows: PromptRow) -> list[Shot]:
    """Return the shots of rows in the rows' order."""
    chosen = choose_shots(rows, [], num_shots=len(rows), seed=0)
    return sorted(chosen, key=lambda each: each.line)


def test_a_chat_gets_turns_behind_its_systems_message() -> None:
    shots = shots_of(row(1, [user("a")], "1"), row(2, [SYSTEM, user("b")], "2"))
    asked = row(7, [SYSTEM, user("c")])
    made = add_shots(asked, shots)
    turns = [user("a"), answer("1"), user("b"), answer("2"), user("c")]
    assert made.prompt == [SYSTEM, *turns]
    assert (made.fields, made.line, made.shots) == (asked.fields, 7, tuple(shots))


def test_raw_text_is_joined_by_blank_lines() -> None:
    made = add_shots(row(1, "c"), shots_of(row(1, "a ", "1"), row(2, "b ", "2")))
    assert made.prompt == f"a 1{SEPARATOR}b 2{SEPARATOR}c"


@pytest.mark.parametrize(
    ("asked", "shot", "said"),
    [
        ("c", [user("a")], "prompt: is raw text, and the shot of line 3 is a chat"),
        ([user("c")], "a", "messages: is a chat, and the shot of line 3 is raw text"),
        ([user("c")], [SYSTEM, user("a")], "messages: lacks the system's message that the shot"),
    ],
)
def test_shots_that_do_not_go_with_a_prompt(asked: Any, shot: Any, said: str) -> None:
    with pytest.raises(RowError, match=f"^{said}"):
        add_shots(row(1, asked), shots_of(row(3, shot, "1")))


PROMPTS: list[Json] = [{"prompt": f"{i} + 1 =", "answer": i + 1} for i in range(3)]


def write(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def parse(folder: Path, *flags: object) -> Any:
    prompts = write(folder / "prompts.jsonl", PROMPTS)
    given = ["collect", prompts, "--reward", "numeric", "-o", folder / "out", *flags]
    return arguments.parse([*map(str, given)])


def test_what_export_writes_becomes_shots(tmp_path: Path) -> None:
    """Two commands; the one row that is asked itself is left out, and the wrong answers too."""
    asked = [*PROMPTS[:1], *({"prompt": f"{i} - 1 =", "answer": i - 1} for i in range(4))]
    manifest = {
        "hidden_size": 2,
        "readings": ["final/last"],
        "num_prompts": len(asked),
        "prompts_per_shard": len(asked),
    }
    common = {"num_scored": 1, "logprob": -1.0, "finish_reason": "stop", "token_ids": [1]}
    samples = [
        Sample(prompt=i, index=j, text=text, seed=j, reward=float(text == right), **common)  # type: ignore[arg-type]
        for i, each in enumerate(asked)
        for right in [f" {each['answer']}"]
        for j, text in enumerate((" 99", right if i < 4 else " 98"))
    ]
    with DatasetWriter(tmp_path / "data", manifest, asked) as writer:
        writer.write(0, samples, {"final/last": torch.zeros(len(samples), 2).half()})
        writer.finish()
    export_table(Dataset.load(tmp_path / "data"), tmp_path / "good.parquet")
    args = parse(tmp_path, "--shots", tmp_path / "good.parquet", "--num-shots", 3)
    rows = put_shots(args, read_prompts(args.prompts))
    prefix = str(rows[0].prompt).removesuffix("0 + 1 =")
    texts = {"0 - 1 = -1", "1 - 1 = 0", "2 - 1 = 1"}
    assert set(prefix.removesuffix(SEPARATOR).split(SEPARATOR)) == texts
    assert [each.prompt for each in rows] == [prefix + each["prompt"] for each in PROMPTS]
    assert [each.fields for each in rows] == PROMPTS


def test_a_collection_with_other_shots_is_another(tmp_path: Path) -> None:
    given = [{"prompt": f"{i} - 1 =", "completion": f" {i - 1}"} for i in range(6)]
    file = write(tmp_path / "shots.jsonl", given)
    (tmp_path / "other").mkdir()
    changed = write(tmp_path / "other" / file.name, [{**row, "completion": " ?"} for row in given])
    flags = ["--shots", file, "--num-shots", 3]

    def describe(*flags: object) -> Json:
        args = parse(tmp_path, *flags)
        return describe_flags(args, put_shots(args, read_prompts(args.prompts)))

    begun = describe(*flags)
    assert begun["shots"]["name"] == "shots.jsonl"
    assert begun["shots"]["num_shots"] == len(set(begun["shots"]["lines"])) == 3
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(begun))
    check_same(folder, describe(*flags))
    for others, said in (
        ([], "--shots is False, but the dataset in .* was begun with True"),
        (["--shots", file, "--num-shots", 2], "--num-shots is 2, but .* with 3"),
        (["--shots", changed, "--num-shots", 3], "--shots: the files are not what they were"),
    ):
        with pytest.raises(StartupError, match=said):
            check_same(folder, describe(*others))
    (folder / "manifest.json").write_text(json.dumps(describe()))
    with pytest.raises(StartupError, match=r"--shots is True, but .* with False"):
        check_same(folder, begun)


def test_shots_that_cannot_be_had(tmp_path: Path) -> None:
    own = [{"prompt": each["prompt"], "completion": " 1"} for each in PROMPTS]
    given = write(tmp_path / "shots.jsonl", [*own, {"prompt": "9 - 1 =", "completion": " 8"}])
    rows = read_prompts(parse(tmp_path).prompts)
    with pytest.raises(StartupError, match="--num-shots goes with --shots"):
        put_shots(parse(tmp_path, "--num-shots", 2), rows)
    with pytest.raises(StartupError, match=r"--num-shots is 5, but .*shots.jsonl' has 1 different"):
        put_shots(parse(tmp_path, "--shots", given), rows)
    chat = write(tmp_path / "chat.jsonl", [{"messages": [user("a")], "completion": "b"}])
    with pytest.raises(
        PromptFileError, match=r"prompts.jsonl:1: prompt: is raw text, and the shot"
    ):
        put_shots(parse(tmp_path, "--shots", chat, "--num-shots", 1), rows)
    bare = write(tmp_path / "bare.jsonl", [{"prompt": "a"}])
    with pytest.raises(PromptFileError, match=r"bare.jsonl:1: completions: is missing"):
        put_shots(parse(tmp_path, "--shots", bare), rows)
