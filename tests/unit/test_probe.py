"""Probes and their files."""

import gzip
import json
import pickle
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qprobe import Probe, ProbeFileError, ProbeInfo, load_probe, parse_probe, save_probe
from qprobe.probe.schedule import Step

INFO = ProbeInfo(
    base_model="some/model",
    hidden_size=4,
    num_layers=6,
    layer=3,
    pooling="mean",
    window=8,
    objective="ce",
    k=16,
    beta=0.1,
    training={"num_tasks": 3},
    licence="Apache-2.0",
)
LINEAR = [(torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.tensor([0.25]))]


def test_linear_score_by_hand() -> None:
    features = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 2.0, -1.0]])
    assert Probe(INFO, LINEAR).score(features).tolist() == [2.75, -1.75]


def test_score_keeps_leading_shape_and_is_float32() -> None:
    scores = Probe(INFO, LINEAR).score(torch.zeros(2, 5, 4, dtype=torch.bfloat16))
    assert scores.shape == (2, 5)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("widths", [(4, 3, 1), (4, 3, 2, 1)])
def test_mlp_score_is_that_of_torch_modules(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    modules: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    network = torch.nn.Sequential(*modules[:-1])
    linears = [module for module in modules if isinstance(module, torch.nn.Linear)]
    probe = Probe(INFO, [(each.weight, each.bias) for each in linears])
    features = torch.randn(10, 4)
    assert torch.allclose(probe.score(features), network(features).squeeze(-1), atol=1e-6)
    assert not probe.is_linear


def test_mean_of_scores_is_score_of_mean() -> None:
    features = torch.randn(7, 4)
    probe = Probe(INFO, LINEAR)
    assert float(probe.score(features).mean()) == pytest.approx(
        float(probe.score(features.mean(0))), abs=1e-5
    )


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(INFO, LINEAR), path)
    loaded = load_probe(path)
    assert loaded.info == INFO
    assert torch.equal(loaded.layers[0][0], LINEAR[0][0])
    assert torch.equal(loaded.layers[0][1], LINEAR[0][1])
    assert [each.name for each in tmp_path.iterdir()] == ["p.safetensors"]


HEADS = {
    tokens: (torch.full((1, 4), float(tokens)), torch.tensor([float(tokens)]))
    for tokens in (16, 32)
}
WITH_HEADS = replace(
    INFO, checkpoints=(16, 32), schedule=(Step(tokens=16, keep=8), Step(tokens=32, keep=2))
)


def test_heads_and_schedule_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(WITH_HEADS, LINEAR, HEADS), path)
    loaded = load_probe(path)
    assert loaded.info == WITH_HEADS
    features = torch.ones(3, 4, dtype=torch.bfloat16)
    assert loaded.score_head(16, features).tolist() == [80.0] * 3
    assert loaded.score_head(32, features).tolist() == [160.0] * 3
    assert loaded.score(features).tolist() == [2.75] * 3


def test_the_first_format_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    header = {"format_version": 1, **asdict(INFO)}
    del header["checkpoints"], header["schedule"]
    tensors = {"0.weight": LINEAR[0][0], "0.bias": LINEAR[0][1]}
    save_file(tensors, path, metadata={"qprobe": json.dumps(header)})
    loaded = load_probe(path)
    assert loaded.info == INFO
    assert not loaded.heads


@pytest.mark.parametrize(
    ("heads", "field"),
    [
        ({16: HEADS[16]}, "checkpoints"),
        ({**HEADS, 64: HEADS[16]}, "checkpoints"),
        ({**HEADS, 32: (torch.ones(1, 5), torch.zeros(1))}, "tensors.checkpoint.32"),
        ({**HEADS, 32: (torch.ones(4), torch.zeros(1))}, "tensors.checkpoint.32"),
        ({**HEADS, 32: (torch.full((1, 4), torch.nan), torch.zeros(1))}, "tensors.checkpoint.32."),
    ],
)
def test_heads_that_do_not_fit_are_named(
    heads: dict[int, tuple[torch.Tensor, torch.Tensor]], field: str
) -> None:
    with pytest.raises(ProbeFileError) as refused:
        Probe(WITH_HEADS, LINEAR, heads)
    assert refused.value.field.startswith(field)


def test_a_file_without_a_head_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    header = json.dumps({"format_version": 2, **asdict(WITH_HEADS)})
    tensors = {"0.weight": LINEAR[0][0], "0.bias": LINEAR[0][1]}
    save_file(tensors, path, metadata={"qprobe": header})
    with pytest.raises(ProbeFileError) as refused:
        load_probe(path)
    assert refused.value.field == "tensors.checkpoint.16.weight"


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(INFO, LINEAR), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fchmod", fail)
    with pytest.raises(OSError, match="disk full"):
        save_probe(Probe(replace(INFO, k=2), LINEAR), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_model", ""),
        ("base_model", 3),
        ("hidden_size", 0),
        ("hidden_size", 4.0),
        ("num_layers", True),
        ("layer", 0),
        ("layer", 6),
        ("layer", "last"),
        ("layer", 2.5),
        ("pooling", "max"),
        ("window", 0),
        ("objective", "magic"),
        ("k", 0),
        ("beta", -1.0),
        ("beta", float("nan")),
        ("beta", "0.1"),
        ("beta", 10**400),
        ("training", []),
        ("licence", 5),
        ("format_version", 99),
        ("format_version", True),
        ("checkpoints", 16),
        ("checkpoints.0", [0]),
        ("checkpoints.1", [16, "32"]),
        ("checkpoints", [32, 16]),
        ("checkpoints", [16, 16]),
        ("schedule", {}),
        ("schedule.0", [16]),
        ("schedule.0", [{"tokens": 16}]),
        ("schedule.0", [{"tokens": 16, "keep": 4, "drop": 4}]),
        ("schedule.0.keep", [{"tokens": 16, "keep": 0}]),
        ("schedule.0.tokens", [{"tokens": 16, "keep": 4}]),
        ("surprise", 1),
    ],
)
def test_bad_header_fields_are_named(tmp_path: Path, field: str, value: Any) -> None:
    header: dict[str, Any] = {"format_version": 2, **asdict(INFO), field.split(".")[0]: value}
    assert_refused(tmp_path, {"qprobe": json.dumps(header)}, field)


@pytest.mark.parametrize("field", ["base_model", "layer", "pooling", "format_version"])
def test_missing_header_fields_are_named(tmp_path: Path, field: str) -> None:
    header: dict[str, Any] = {"format_version": 2, **asdict(INFO)}
    del header[field]
    assert_refused(tmp_path, {"qprobe": json.dumps(header)}, field)


def test_window_goes_with_mean_only() -> None:
    with pytest.raises(ProbeFileError) as refused:
        replace(INFO, pooling="last")
    assert refused.value.field == "window"


@pytest.mark.parametrize(
    ("metadata", "field"),
    [({}, "file"), ({"qprobe": "{"}, "header"), ({"qprobe": "[]"}, "header")],
)
def test_files_without_a_header_are_refused(
    tmp_path: Path, metadata: dict[str, str], field: str
) -> None:
    assert_refused(tmp_path, metadata, field)


def assert_refused(folder: Path, metadata: dict[str, str], field: str) -> None:
    path = folder / "p.safetensors"
    save_file({"0.weight": LINEAR[0][0], "0.bias": LINEAR[0][1]}, path, metadata=metadata)
    with pytest.raises(ProbeFileError) as refused:
        load_probe(path)
    assert refused.value.field == field
    assert field in str(refused.value)


@pytest.mark.parametrize(
    ("tensors", "field"),
    [
        ({"0.weight": torch.ones(1, 5), "0.bias": torch.zeros(1)}, "tensors.0.weight"),
        ({"0.weight": torch.ones(4), "0.bias": torch.zeros(1)}, "tensors.0.weight"),
        ({"0.weight": torch.ones(1, 4), "0.bias": torch.zeros(2)}, "tensors.0.bias"),
        ({"0.weight": torch.ones(2, 4), "0.bias": torch.zeros(2)}, "tensors"),
        ({"0.weight": torch.ones(0, 4), "0.bias": torch.zeros(0)}, "tensors"),
        ({"0.weight": torch.ones(1, 4).int(), "0.bias": torch.zeros(1)}, "tensors.0.weight"),
        ({"0.weight": torch.full((1, 4), torch.nan), "0.bias": torch.zeros(1)}, "tensors.0.weight"),
        ({"0.weight": torch.ones(1, 4), "0.bias": torch.tensor([torch.inf])}, "tensors.0.bias"),
        ({"0.weight": torch.ones(1, 4)}, "tensors.0.bias"),
        ({"0.bias": torch.ones(1)}, "tensors.0.bias"),
        ({"other": torch.ones(1)}, "tensors.other"),
    ],
)
def test_bad_tensors_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], field: str
) -> None:
    path = tmp_path / "p.safetensors"
    header = json.dumps({"format_version": 2, **asdict(INFO)})
    save_file(tensors, path, metadata={"qprobe": header})
    with pytest.raises(ProbeFileError) as refused:
        load_probe(path)
    assert refused.value.field == field


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff" * 64, b"\x80\x04K\x01."])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(data)
    with pytest.raises(ProbeFileError) as refused:
        load_probe(path)
    assert refused.value.field == "file"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(INFO, LINEAR), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ProbeFileError):
            load_probe(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeFileError, match=r"nowhere\.safetensors"):
        load_probe(tmp_path / "nowhere.safetensors")


def torn(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def tensor(dtype: str, shape: list[int], size: int) -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return torn(json.dumps({"0.weight": entry}).encode(), bytes(size))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        pickle.dumps({"0.weight": [1.0]}),
        b"PK\x03\x04" + bytes(1000),
        gzip.compress(bytes(10**6)),
        (10**15).to_bytes(8, "little") + b"{}",
        torn(b"[" * 100_000),
        torn(b'{"a":' * 100_000),
        torn(b'{"__metadata__": {"qprobe": 5}}'),
        tensor("F32", [2**62, 4], 16),
        tensor("F32", [4], 8),
        tensor("F4", [2], 1),
        tensor("F8_E8M0", [2], 2),
        tensor("NONE", [2], 2),
    ],
)
def test_bytes_that_are_no_probe(data: bytes) -> None:
    with pytest.raises(ProbeFileError) as refused:
        parse_probe(data)
    assert refused.value.field == "file"


def test_every_torn_prefix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(INFO, LINEAR), path)
    data = path.read_bytes()
    assert parse_probe(data).info == INFO
    for length in range(len(data)):
        with pytest.raises(ProbeFileError):
            parse_probe(data[:length])


@pytest.mark.parametrize("training", [{"loss": float("nan")}, {"note": "\ud800"}])
def test_a_header_that_a_server_could_not_list(tmp_path: Path, training: dict[str, Any]) -> None:
    header = {"format_version": 2, **asdict(INFO), "training": training}
    assert_refused(tmp_path, {"qprobe": json.dumps(header)}, "header")


def test_a_file_that_is_no_probe_is_named(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text("[]")
    for name, said in (
        ("", "is a folder, a probe's file is wanted"),
        ("nowhere", "nowhere' cannot be read: No such file or directory"),
        ("foreign", "is not a readable probe: .*foreign'"),
    ):
        with pytest.raises(ProbeFileError, match=said):
            load_probe(str(tmp_path / name))
