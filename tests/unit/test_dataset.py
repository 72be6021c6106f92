"""A dataset's folder: what is written is read, and nothing half-written is ever taken for whole."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qprobe.data.dataset import GREEDY, Dataset, Reading, Sample
from qprobe.data.folder import hash_file
from qprobe.data.merging import merge_datasets
from qprobe.data.writer import DatasetWriter
from qprobe.errors import DatasetError, EvaluationError
from qprobe.probe.values import Layer

READINGS = ("15/last", "15/mean", "final/mean/8")
MANIFEST: dict[str, Any] = {
    "model": "org/model",
    "hidden_size": 4,
    "num_layers": 30,
    "readings": list(READINGS),
    "num_prompts": 3,
    "prompts_per_shard": 2,
    "reward": "tests",
    "versions": {"torch": "2"},
}
PROMPTS = [{"prompt": f"question {index} ä \u2028"} for index in range(3)]


def make_samples(prompts: range) -> list[Sample]:
    return [
        Sample(
            prompt=prompt,
            index=index,
            text=f"answer {prompt} {index} \u2028",
            token_ids=[prompt, index + 1],
            num_scored=1,
            logprob=-1.5,
            finish_reason="stop",
            seed=None if index == GREEDY else 10_000 * prompt + index,
            reward=float((prompt + index) % 2),
        )
        for prompt in prompts
        for index in (GREEDY, 0, 1)
    ]


def make_embeddings(prompts: range) -> dict[str, torch.Tensor]:
    rows = torch.tensor([[prompt, index, 0, 1] for prompt in prompts for index in (0, 1)])
    return {name: (rows + place).half() for place, name in enumerate(READINGS)}


def write(writer: DatasetWriter, shard: int) -> None:
    prompts = writer.prompts_of(shard)
    writer.write(shard, make_samples(prompts), make_embeddings(prompts))


def write_all(folder: Path) -> None:
    with DatasetWriter(folder, MANIFEST, PROMPTS) as writer:
        for shard in writer.missing():
            write(writer, shard)
        writer.finish()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_all(tmp_path / "data")
    dataset = Dataset.load(tmp_path / "data")
    assert dataset.prompts == PROMPTS
    assert dataset.samples == [each for each in make_samples(range(3)) if each.index != GREEDY]
    assert dataset.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.rewards.tolist() == [each.reward for each in dataset.samples]
    assert dataset.greedy_rewards.tolist() == [1.0, 0.0, 1.0]
    assert [str(reading) for reading in dataset.readings] == list(READINGS)
    expected = make_embeddings(range(3))["final/mean/8"].float()
    assert torch.equal(dataset.features(Reading("final", "mean", 8)), expected)
    assert dataset.manifest["model"] == "org/model"


def test_a_subset_renumbers_its_prompts(tmp_path: Path) -> None:
    write_all(tmp_path)
    dataset = Dataset.load(tmp_path).subset([2, 0])
    assert dataset.prompts == [PROMPTS[2], PROMPTS[0]]
    assert dataset.groups.tolist() == [0, 0, 1, 1]
    assert [each.text[:8] for each in dataset.samples] == ["answer 2"] * 2 + ["answer 0"] * 2
    assert dataset.features(Reading(15, "last"))[:, 0].tolist() == [2, 2, 0, 0]
    assert np.array_equal(dataset.greedy_rewards, [1.0, 1.0])


def test_samples_without_a_reward_are_left_out_with_their_embeddings(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, MANIFEST, PROMPTS) as writer:
        for shard in writer.missing():
            prompts = writer.prompts_of(shard)
            samples = [
                replace(each, reward=None, reason="no reward")
                if (each.prompt, each.index) in ((0, GREEDY), (0, 1), (2, 0))
                else each
                for each in make_samples(prompts)
            ]
            writer.write(shard, samples, make_embeddings(prompts))
        writer.finish()
    dataset = Dataset.load(tmp_path)
    left = [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert [(each.prompt, each.index) for each in dataset.samples] == left
    assert np.array_equal(dataset.greedy_rewards, [np.nan, 0.0, 1.0], equal_nan=True)
    features = dataset.features(Reading(15, "last"))
    assert features[:, :2].tolist() == [[*each] for each in left]
    assert torch.equal(dataset.subset([2, 0]).features(Reading(15, "last")), features[[3, 0]])


def test_an_interrupted_writer_goes_on(tmp_path: Path) -> None:
    """As after a kill in the second shard: its embeddings are there, its samples are torn."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_all(whole)
    with DatasetWriter(broken, MANIFEST, PROMPTS) as writer:
        write(writer, 0)
    (broken / "embeddings" / "00001").mkdir()
    (broken / "embeddings" / "00001" / "15-mean.safetensors").write_bytes(b"older")
    (broken / "embeddings" / "00001" / ".part-00002").write_bytes(b"torn")
    (broken / "samples" / ".part-00001").write_text('{"prompt": 2, "ind')
    with pytest.raises(DatasetError, match="not finished"):
        Dataset.load(broken)
    with DatasetWriter(broken, {**MANIFEST, "versions": {"torch": "3"}}, PROMPTS) as again:
        assert again.missing() == [1]
        write(again, 1)
        again.finish()
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    assert names == sorted(str(path.relative_to(broken)) for path in broken.rglob("*"))
    for name in names:
        if (whole / name).is_file():
            assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


@pytest.mark.parametrize("name", ["model", "readings", "num_prompts", "reward"])
def test_a_folder_of_another_collection_is_refused(tmp_path: Path, name: str) -> None:
    DatasetWriter(tmp_path, MANIFEST, PROMPTS).close()
    with pytest.raises(DatasetError) as refused:
        DatasetWriter(tmp_path, {**MANIFEST, name: "other"}, PROMPTS)
    assert refused.value.field == name
    assert "'other'" in str(refused.value)


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        DatasetWriter(tmp_path, MANIFEST, PROMPTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DatasetError, match="is not a folder"):
        DatasetWriter(tmp_path / "thesis.tex", MANIFEST, PROMPTS)


@pytest.mark.parametrize("left", [".part-prompts", "prompts.jsonl", ".part-manifest"])
def test_a_collection_killed_before_its_manifest_goes_on(tmp_path: Path, left: str) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / left).write_text('{"torn')
    write_all(tmp_path)
    assert Dataset.load(tmp_path).prompts == PROMPTS


def test_a_second_writer_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, MANIFEST, PROMPTS) as first:
        with pytest.raises(DatasetError, match="being written"):
            DatasetWriter(tmp_path, MANIFEST, PROMPTS)
        write(first, 0)
    DatasetWriter(tmp_path, MANIFEST, PROMPTS).close()


def test_the_digest_is_of_the_dataset_only(tmp_path: Path) -> None:
    """A report written into the folder, and a collection run again, leave it as it was."""
    write_all(tmp_path)
    digest = Dataset.load(tmp_path).digest
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text("{}")
    (tmp_path / ".part-complete").write_text("torn")
    write_all(tmp_path)
    (tmp_path / "report" / "metrics.json").unlink()
    assert Dataset.load(tmp_path).digest == digest


def test_what_json_can_say_and_utf8_cannot_is_kept(tmp_path: Path) -> None:
    prompts = [{**row, "x": "\ud83d"} for row in PROMPTS]
    DatasetWriter(tmp_path, MANIFEST, prompts).close()
    write_all(tmp_path)
    assert Dataset.load(tmp_path).prompts == prompts


EMBEDDINGS = "embeddings/00001/15-mean.safetensors"


@pytest.mark.parametrize("name", ["samples/00001.jsonl", "manifest.json", "prompts.jsonl"])
def test_changed_and_missing_files_are_found(tmp_path: Path, name: str) -> None:
    write_all(tmp_path)
    flip_last_byte(tmp_path / name)
    with pytest.raises(DatasetError, match=f"{Path(name).name}' (was changed|is not JSON)"):
        Dataset.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=Path(name).name):
        Dataset.load(tmp_path)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_embedding_is_checked_when_it_is_read_and_no_other(tmp_path: Path) -> None:
    write_all(tmp_path)
    flip_last_byte(tmp_path / EMBEDDINGS)
    dataset = Dataset.load(tmp_path)
    for reading in dataset.readings:
        if str(reading) == "15/mean":
            with pytest.raises(DatasetError, match=r"15-mean\.safetensors' was changed"):
                dataset.features(reading)
        else:
            assert dataset.features(reading).shape == (6, 4)
    (tmp_path / EMBEDDINGS).unlink()
    with pytest.raises(DatasetError, match=r"15-mean\.safetensors' is missing"):
        Dataset.load(tmp_path)


def write_format_1(folder: Path) -> None:
    """Write a dataset as it was written before each reading had a file of its own."""
    write_all(folder)
    for shard in ("00000", "00001"):
        place = folder / "embeddings" / shard
        joint = {k: v for path in place.iterdir() for k, v in load_file(path).items()}
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        save_file(joint, place.with_suffix(".safetensors"))
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "format_version": 1}))
    paths = [path for path in folder.rglob("*.*") if path.name not in ("complete.json", ".lock")]
    hashes = {str(path.relative_to(folder)): hash_file(path) for path in paths}
    (folder / "complete.json").write_text(json.dumps({"sha256": hashes}))


def test_a_dataset_of_the_first_format_is_read(tmp_path: Path) -> None:
    write_format_1(tmp_path / "old")
    write_all(tmp_path / "new")
    old, new = (Dataset.load(tmp_path / name) for name in ("old", "new"))
    assert old.samples == new.samples
    for reading in new.readings:
        assert torch.equal(old.features(reading), new.features(reading))
    flip_last_byte(tmp_path / "old" / "embeddings" / "00001.safetensors")
    again = Dataset.load(tmp_path / "old")
    with pytest.raises(DatasetError, match=r"00001\.safetensors' was changed"):
        again.features(Reading(15, "last"))
    with pytest.raises(DatasetError, match=r"format_version: is 2, but .* begun with 1"):
        DatasetWriter(tmp_path / "old", MANIFEST, PROMPTS)


@pytest.mark.parametrize("content", ["{}", '{"sha256": {}}', '{"sha256": 5}', "", "[", "\x00"])
@pytest.mark.parametrize("name", ["complete.json", "manifest.json"])
def test_torn_and_edited_files_are_one_clear_line(tmp_path: Path, name: str, content: str) -> None:
    write_all(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError) as refused:
        Dataset.load(tmp_path)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_embedding_that_is_not_finite_is_named_by_its_row(tmp_path: Path) -> None:
    write_all(tmp_path)
    path = tmp_path / EMBEDDINGS
    values = load_file(path)["15/mean"].clone()
    values[1, 2] = float("nan")
    save_file({"15/mean": values}, path)
    complete = json.loads((tmp_path / "complete.json").read_text())
    complete["sha256"][EMBEDDINGS] = hash_file(path)
    (tmp_path / "complete.json").write_text(json.dumps(complete))
    subset = Dataset.load(tmp_path).subset([2, 0])
    with pytest.raises(DatasetError, match=r"sample 1 of .*prompts\.jsonl:3"):
        subset.features(Reading(15, "mean"))


def test_an_overflow_of_float16_is_refused(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, MANIFEST, PROMPTS)
    prompts = writer.prompts_of(0)
    embeddings = make_embeddings(prompts)
    embeddings["15/mean"] = torch.full((4, 4), 70_000.0).half()
    with pytest.raises(DatasetError, match="15/mean"):
        writer.write(0, make_samples(prompts), embeddings)
    assert writer.missing() == [0, 1]


@pytest.mark.parametrize("version", [None, 3, "2"])
def test_another_format_is_refused(tmp_path: Path, version: object) -> None:
    write_all(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "format_version": version}))
    with pytest.raises(DatasetError, match="format_version"):
        Dataset.load(tmp_path)
    with pytest.raises(DatasetError, match="nowhere' is not there"):
        Dataset.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["15/mean", "final/last", "1/mean/32"])
def test_readings_are_read_as_written(text: str) -> None:
    assert str(Reading.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "15", "15/max", "x/mean", "15/last/8", "15/mean/x", "-1/mean", "1/mean/0"]
)
def test_bad_readings(text: str) -> None:
    with pytest.raises(DatasetError) as refused:
        Reading.parse(text)
    assert refused.value.field == "reading"
    assert repr(text) in str(refused.value)


def test_an_unknown_reading_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write_all(tmp_path)
    with pytest.raises(DatasetError, match="15/last, 15/mean, final/mean/8"):
        Dataset.load(tmp_path).features(replace(Reading(15, "mean"), window=99))


def test_what_is_no_dataset_says_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(b"x")
    for content, said in (("[1]", "no JSON object"), ("{", "is not JSON"), ("{}", "got None in")):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DatasetError, match=said):
            Dataset.load(str(tmp_path))
    with pytest.raises(DatasetError, match="safetensors' is a file, a dataset's folder is"):
        Dataset.load(file)


def test_k_is_settled_by_the_prompt_with_the_fewest_samples(tmp_path: Path) -> None:
    write_all(tmp_path)
    dataset = Dataset.load(tmp_path)
    fewest = min(Counter(dataset.groups.tolist()).values())
    assert dataset.settle_k(None, default=100) == dataset.settle_k(fewest, default=1) == fewest
    assert dataset.settle_k(None, default=1) == 1
    for k in (0, fewest + 1):
        with pytest.raises(EvaluationError, match=f"from 1 to {fewest}, the fewest .*got {k}"):
            dataset.settle_k(k, default=1)


LENGTHS = {GREEDY: 3, 0: 0, 1: 2}  # tokens that count, by index


def write_with_tokens(folder: Path, layers: tuple[Layer, ...], *, offset: float = 0) -> None:
    """Write the dataset with states of single tokens: prompt, index, place, offset + layer."""
    prompts = [{"prompt": f"{row['prompt']} {offset}"} for row in PROMPTS]
    made = {**MANIFEST, "token_states": list(layers) or None}
    with DatasetWriter(folder, made, prompts) as writer:
        for shard in writer.missing():
            inside = writer.prompts_of(shard)
            samples = [
                replace(each, num_scored=LENGTHS[each.index]) for each in make_samples(inside)
            ]
            tokens = {
                f"{layer}/tokens": torch.cat(
                    [make_states(p, i, offset) for p in inside for i in (0, 1)]
                )
                for layer in layers
            }
            writer.write(shard, samples, {**make_embeddings(inside), **tokens})
        writer.finish()


def make_states(prompt: int, index: int, offset: float = 0) -> torch.Tensor:
    places = range(max(LENGTHS[index], 1))
    return torch.tensor([[prompt, index, place, offset] for place in places]).half()


def test_states_of_tokens_are_read_sample_by_sample(tmp_path: Path) -> None:
    """Whole, a part in another order, and of several datasets what all have."""
    write_with_tokens(tmp_path / "a", (15, "final"))
    write_with_tokens(tmp_path / "b", (15,), offset=7)
    first, second = (Dataset.load(tmp_path / name) for name in "ab")
    assert first.token_layers == [15, "final"]

    def read(dataset: Dataset) -> list[list[list[float]]]:
        return [each.tolist() for each in dataset.token_states(15)]

    def expect(prompts: Sequence[int], offset: float = 0) -> list[list[list[float]]]:
        return [make_states(p, i, offset).tolist() for p in prompts for i in (0, 1)]

    assert read(first) == expect(range(3))
    assert read(first.subset([2, 0])) == expect([2, 0])
    (one,) = first.subset([2, 0]).token_states("final", [1])
    assert one.tolist() == make_states(2, 1).tolist()
    merged = merge_datasets([first.subset([1]), second], ["a", "b"])
    assert merged.token_layers == merged.manifest["token_states"] == [15]
    assert read(merged) == expect([1]) + expect(range(3), 7)
    assert read(merged.subset([3, 0])) == expect([2], 7) + expect([1])


def test_states_of_tokens_that_are_not_kept_are_named(tmp_path: Path) -> None:
    write_with_tokens(tmp_path / "some", (15,))
    write_all(tmp_path / "none")
    with pytest.raises(
        DatasetError, match=r"final/tokens: are not in .* has 15/tokens: .*states f"
    ):
        next(Dataset.load(tmp_path / "some").token_states("final"))
    with pytest.raises(DatasetError, match="15/tokens: are not in the dataset, which has none"):
        Dataset.load(tmp_path / "none").require([], [15])
    flip_last_byte(tmp_path / "some" / "embeddings" / "00001" / "15-tokens.safetensors")
    with pytest.raises(DatasetError, match=r"15-tokens\.safetensors' was changed"):
        list(Dataset.load(tmp_path / "some").token_states(15))
