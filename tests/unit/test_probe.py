"""Probes and their files."""

import gzip
import json
import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qprobe import (
    Probe,
    ProbeFileError,
    ProbeInfo,
    Reading,
    Terms,
    load_probe,
    parse_probe,
    save_probe,
)
from qprobe.probe.confidence import Confidence, Isotonic, Platt
from qprobe.probe.probe import Endpoint
from qprobe.probe.reading import EMBEDDING
from qprobe.probe.schedule import Step
from qprobe.probe.terms import GateTerm, StateTerm

INFO = ProbeInfo(
    base_model="some/model",
    hidden_size=4,
    num_layers=6,
    objective="ce",
    k=16,
    beta=0.1,
    training={"num_tasks": 3},
    licence="Apache-2.0",
)
READING = Reading(3, "mean", 8)
WEIGHT = [1.0, -2.0, 0.5, 3.0]
LINEAR = Terms.linear(READING, WEIGHT, 0.25)
WITH_HEADS = replace(
    INFO, checkpoints=(16, 32), schedule=(Step(tokens=16, keep=8), Step(tokens=32, keep=2))
)
ONES = np.ones(4, np.float32)
EVERY = Terms(
    states=(
        StateTerm(READING, 2 * ONES),
        StateTerm(Reading("final", "last"), 3 * ONES),
        StateTerm(Reading(5, "max", 6), 4 * ONES),
    ),
    gates=(
        GateTerm(3, (), 5 * ONES, 6 * ONES, 0.5, 0.25),
        GateTerm(3, (8, 16), 7 * ONES, 8 * ONES),
    ),
    numbers={"cut": -1.0, "mean_logprob": 2.0},
    bias=-0.5,
)
HEADS = {
    tokens: Terms(
        states=(StateTerm(Reading(3, "mean", tokens), tokens * ONES),), numbers={"length": 0.5}
    )
    for tokens in (16, 32)
}


def same(one: Terms, other: Terms) -> bool:
    """Whether two are the same in everything."""

    def flat(terms: Terms) -> Any:
        return (
            [(each.reading, each.weight.tolist()) for each in terms.states],
            [
                (each.layer, each.segments, each.gate.tolist(), each.value.tolist())
                for each in terms.gates
            ],
            [(each.gate_bias, each.value_bias) for each in terms.gates],
            list(terms.numbers.items()),
            terms.bias,
        )

    return bool(flat(one) == flat(other))


def test_weights_are_copied_from_any_kind_of_array() -> None:
    """Without a warning, which is an error here: of numpy, of torch, of lists."""
    given = np.ones(4, np.float32)
    for each in (given, torch.ones(1, 4), torch.ones(4, dtype=torch.float64), [1.0] * 4):
        (term,) = Terms.linear(READING, each).states
        assert term.weight.dtype == np.float32
        assert term.weight.tolist() == [1.0] * 4
        term.weight[:] = 5
    assert given.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "confidence",
    [
        None,
        Confidence(Platt(1.5, -0.25)),
        Confidence(Isotonic((-1.0, 0.0, 2.0), (0.0, 0.5, 0.5)), EVERY),
    ],
)
def test_file_round_trip(tmp_path: Path, confidence: Confidence | None) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(WITH_HEADS, EVERY, HEADS, confidence), path)
    loaded = load_probe(path)
    assert loaded.info == WITH_HEADS
    assert same(loaded.terms, EVERY)
    assert all(same(loaded.heads[tokens], head) for tokens, head in HEADS.items())
    if confidence is None:
        assert loaded.confidence is None
    else:
        assert loaded.confidence is not None
        assert loaded.confidence.calibration == confidence.calibration
        assert (loaded.confidence.terms is None) == (confidence.terms is None)
        assert len(loaded.sums) == (4 if confidence.terms else 3)
    assert [each.name for each in tmp_path.iterdir()] == ["p.safetensors"]


def test_numbers_alone_and_an_endpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    numbers = Terms(numbers={"mean_logprob": 1.0})
    save_probe(Probe(INFO, numbers), path)
    assert same(load_probe(path).terms, numbers)
    assert load_probe(path).terms.reads_logprobs
    info = replace(
        INFO, num_layers=1, endpoint=Endpoint(template="{prompt}\n{completion}", normalize=True)
    )
    embedded = Terms.linear(EMBEDDING, WEIGHT)
    save_probe(Probe(info, embedded), path)
    assert load_probe(path).info == info
    assert same(load_probe(path).terms, embedded)


def former_header(version: int, **fields: Any) -> dict[str, Any]:
    """Return a header of format 1 or 2."""
    made = {
        name: value for name, value in asdict(INFO).items() if name not in ("adapter", "endpoint")
    }
    made |= {"format_version": version, "layer": 3, "pooling": "mean", "window": 8}
    if version == 1:
        del made["checkpoints"], made["schedule"]
    return made | fields


def test_the_former_formats_still_load(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    tensors = {"0.weight": torch.tensor([WEIGHT]), "0.bias": torch.tensor([0.25])}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        some = {name: each.to(dtype) for name, each in tensors.items()}
        save_file(some, path, metadata={"qprobe": json.dumps(former_header(1))})
        loaded = load_probe(path)
        assert loaded.info == INFO
        assert same(loaded.terms, LINEAR)
        assert not loaded.heads
    for tokens in (16, 32):
        tensors[f"checkpoint.{tokens}.weight"] = torch.full((1, 4), float(tokens))
        tensors[f"checkpoint.{tokens}.bias"] = torch.zeros(1)
    lists = {name: asdict(WITH_HEADS)[name] for name in ("checkpoints", "schedule")}
    save_file(tensors, path, metadata={"qprobe": json.dumps(former_header(2, **lists))})
    loaded = load_probe(path)
    assert loaded.info == WITH_HEADS
    for tokens, head in loaded.heads.items():
        assert same(head, Terms.linear(Reading(3, "mean", tokens), tokens * ONES))


@pytest.mark.parametrize(
    ("noted", "adapter"), [({"name": "sql-3", "sha256": "ab"}, "sql-3"), (None, None), (3, None)]
)
def test_a_former_probe_names_the_adapter_that_its_dataset_had(
    tmp_path: Path, noted: Any, adapter: str | None
) -> None:
    path = tmp_path / "p.safetensors"
    header = former_header(2, training={"adapter": noted})
    tensors = {"0.weight": torch.tensor([WEIGHT]), "0.bias": torch.tensor([0.25])}
    save_file(tensors, path, metadata={"qprobe": json.dumps(header)})
    assert load_probe(path).info.adapter == adapter
    save_probe(load_probe(path), path)
    assert load_probe(path).info.adapter == adapter


def test_an_mlp_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    tensors = {"0.weight": torch.ones(2, 4), "0.bias": torch.zeros(2)}
    tensors |= {"1.weight": torch.ones(1, 2), "1.bias": torch.zeros(1)}
    save_file(tensors, path, metadata={"qprobe": json.dumps(former_header(2))})
    with pytest.raises(ProbeFileError, match="MLP"):
        load_probe(path)


@pytest.mark.parametrize(
    ("heads", "field"),
    [
        ({16: HEADS[16]}, "checkpoints"),
        ({**HEADS, 64: HEADS[16]}, "checkpoints"),
        (
            {**HEADS, 32: Terms.linear(Reading(3, "mean", 32), np.ones(5))},
            "tensors.heads.32.terms",
        ),
        ({**HEADS, 32: Terms.linear(Reading(3, "mean", 33), ONES)}, "heads.32"),
        (
            {**HEADS, 32: Terms.linear(Reading(3, "mean", 32), np.nan * ONES)},
            "tensors.heads.32.terms",
        ),
    ],
)
def test_heads_that_do_not_fit_are_named(heads: dict[int, Terms], field: str) -> None:
    with pytest.raises(ProbeFileError) as refused:
        Probe(WITH_HEADS, LINEAR, heads)
    assert refused.value.field.startswith(field)


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        (Terms(), "terms"),
        (Terms(numbers={"size": 1.0}), "terms.0.names"),
        (Terms(LINEAR.states, numbers={"length": float("nan")}), "tensors.terms.1.weight"),
        (Terms.linear(Reading(0, "mean"), ONES), "terms.0.layer"),
        (Terms.linear(Reading(6, "mean"), ONES), "terms.0.layer"),
        (Terms.linear(Reading(3, "max"), ONES), "terms.0.window"),
        (Terms.linear(Reading(3, "last", 4), ONES), "terms.0.window"),
        (Terms.linear(Reading(3, "mean", 0), ONES), "terms.0.window"),
        (Terms.linear(Reading(3, "mean"), np.ones(3)), "tensors.terms.0.weight"),
        (Terms.linear(Reading(3, "mean"), ONES, float("inf")), "tensors.bias"),
        (Terms(states=LINEAR.states * 2), "terms"),
        (Terms(gates=(GateTerm(6, (), ONES, ONES),)), "terms.0.layer"),
        (Terms(gates=(GateTerm(3, (8, 8), ONES, ONES),)), "terms.0.segments"),
        (Terms(gates=(GateTerm(3, (0,), ONES, ONES),)), "terms.0.segments"),
        (Terms(gates=(GateTerm(3, (), ONES, ONES[:3]),)), "tensors.terms.0.value"),
        (Terms(gates=(GateTerm(3, (), ONES, ONES, float("nan")),)), "tensors.terms.0.biases"),
        (Terms.linear(EMBEDDING, ONES), "endpoint"),
        (Terms(states=(*LINEAR.states, StateTerm(EMBEDDING, ONES))), "terms"),
    ],
)
def test_terms_that_do_not_fit_are_named(terms: Terms, field: str) -> None:
    with pytest.raises(ProbeFileError) as refused:
        Probe(INFO, terms)
    assert refused.value.field == field
    with pytest.raises(ProbeFileError):
        Probe(INFO, LINEAR, confidence=Confidence(Platt(1.0, 0.0), terms))


def test_a_number_that_two_terms_read_is_refused(tmp_path: Path) -> None:
    """As two equal readings are: one of the weights would not count."""
    twice = [{"kind": "numbers", "names": names} for names in (["cut", "length"], ["length"])]
    tensors = {"bias": torch.zeros(1)}
    tensors |= {"terms.0.weight": torch.ones(2), "terms.1.weight": torch.ones(1)}
    path = tmp_path / "p.safetensors"
    save_file(tensors, path, metadata={"qprobe": json.dumps(new_header(terms=twice))})
    with pytest.raises(ProbeFileError, match=r"terms: must each read .* got 'length' twice"):
        load_probe(path)


def test_a_file_without_a_head_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    lists = {name: asdict(WITH_HEADS)[name] for name in ("checkpoints", "schedule")}
    tensors = {"0.weight": torch.tensor([WEIGHT]), "0.bias": torch.tensor([0.25])}
    save_file(tensors, path, metadata={"qprobe": json.dumps(former_header(2, **lists))})
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
@pytest.mark.parametrize("version", [2, 3])
def test_bad_header_fields_are_named(tmp_path: Path, version: int, field: str, value: Any) -> None:
    header = new_header() if version == 3 else former_header(2)
    assert_refused(tmp_path, {"qprobe": json.dumps({**header, field.split(".")[0]: value})}, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", 0),
        ("layer", 6),
        ("layer", "last"),
        ("layer", 2.5),
        ("pooling", "min"),
        ("window", 0),
    ],
)
def test_bad_readings_of_the_former_formats_are_named(
    tmp_path: Path, field: str, value: Any
) -> None:
    header = former_header(2, **{field: value})
    assert_refused(tmp_path, {"qprobe": json.dumps(header)}, f"terms.0.{field}")


def new_header(**fields: Any) -> dict[str, Any]:
    """Return a header of format 3 for one state term."""
    state = {"kind": "state", "layer": 3, "pooling": "mean", "window": 8}
    made = {**asdict(INFO), "terms": [state], "heads": {}, "confidence": None}
    return {"format_version": 3, **made, **fields}


STATE = {"kind": "state", "layer": 3, "pooling": "mean", "window": None}
STEEP = {"kind": "platt", "slope": -(10**400), "intercept": 0.0}
FAR = {"kind": "isotonic", "scores": [10**400], "rewards": [1.0]}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("terms", {"terms": {}}),
        ("terms.0.kind", {"terms": ["state"]}),
        ("terms.0.kind", {"terms": [{"kind": "magic"}]}),
        ("terms.0.kind", {"terms": [{"kind": []}]}),
        ("terms.0.window", {"terms": [{"kind": "state", "layer": 3, "pooling": "mean"}]}),
        ("terms.0.more", {"terms": [{**STATE, "more": 1}]}),
        ("terms.0.layer", {"terms": [{**STATE, "layer": [3]}]}),
        ("terms.0.pooling", {"terms": [{**STATE, "pooling": 3}]}),
        ("terms.0.segments", {"terms": [{"kind": "gate", "layer": 3, "segments": 8}]}),
        ("terms.0.names", {"terms": [{"kind": "numbers", "names": "length"}]}),
        ("terms.0.names", {"terms": [{"kind": "numbers", "names": ["cut", "cut"]}]}),
        ("heads", {"heads": []}),
        ("heads", {"heads": {"16": [STATE]}}),
        ("confidence", {"confidence": 3}),
        ("confidence.calibration", {"confidence": {"terms": None}}),
        ("calibration", {"confidence": {"terms": None, "calibration": 3}}),
        ("calibration.kind", {"confidence": {"terms": None, "calibration": {"kind": "x"}}}),
        (
            "calibration",
            {"confidence": {"terms": None, "calibration": {"kind": "platt", "slope": 1.0}}},
        ),
        ("calibration.kind", {"confidence": {"terms": None, "calibration": {"kind": []}}}),
        ("calibration.slope", {"confidence": {"terms": None, "calibration": STEEP}}),
        ("calibration.scores.0", {"confidence": {"terms": None, "calibration": FAR}}),
        ("adapter", {"adapter": 3}),
        ("endpoint", {"endpoint": "x"}),
        ("endpoint.template", {"endpoint": {"template": "x", "normalize": True}}),
        ("endpoint.normalize", {"endpoint": {"template": "{completion}", "normalize": 1}}),
    ],
)
def test_bad_fields_of_the_new_format_are_named(
    tmp_path: Path, field: str, fields: dict[str, Any]
) -> None:
    tensors = {"bias": torch.zeros(1), "terms.0.weight": torch.ones(4)}
    if "terms" in fields and "gate" in str(fields):
        tensors = {f"terms.0.{name}": torch.ones(4) for name in ("gate", "value")}
    assert_refused(tmp_path, {"qprobe": json.dumps(new_header(**fields))}, field, tensors)


@pytest.mark.parametrize("field", ["base_model", "layer", "pooling", "format_version"])
def test_missing_header_fields_are_named(tmp_path: Path, field: str) -> None:
    header = former_header(2)
    del header[field]
    assert_refused(tmp_path, {"qprobe": json.dumps(header)}, field)


@pytest.mark.parametrize("field", ["base_model", "terms", "heads", "confidence", "endpoint"])
def test_missing_fields_of_the_new_format_are_named(tmp_path: Path, field: str) -> None:
    header = new_header()
    del header[field]
    assert_refused(tmp_path, {"qprobe": json.dumps(header)}, field)


@pytest.mark.parametrize("calibration", [Platt(2.0, -1.0), Isotonic((-1.0, 1.0), (0.25, 0.75))])
def test_a_calibration_by_hand(calibration: Platt | Isotonic) -> None:
    found = calibration.apply([[-5.0, 0.0, 0.5, 5.0]])
    assert found.shape == (1, 4)
    if isinstance(calibration, Platt):
        expected = [1 / (1 + math.exp(1 - 2 * score)) for score in (-5.0, 0.0, 0.5, 5.0)]
    else:
        expected = [0.25, 0.5, 0.625, 0.75]
    assert found[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "rewards", "field"),
    [
        ((), (), "calibration.rewards"),
        ((1.0,), (1.0, 2.0), "calibration.rewards"),
        ((1.0, 1.0), (1.0, 2.0), "calibration.scores"),
        ((1.0, 2.0), (2.0, 1.0), "calibration.rewards"),
        ((1.0, math.nan), (2.0, 1.0), "calibration.scores.1"),
    ],
)
def test_knots_that_are_no_calibration(
    scores: tuple[float, ...], rewards: tuple[float, ...], field: str
) -> None:
    with pytest.raises(ProbeFileError) as refused:
        Isotonic(scores, rewards)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("metadata", "field"),
    [({}, "file"), ({"qprobe": "{"}, "header"), ({"qprobe": "[]"}, "header")],
)
def test_files_without_a_header_are_refused(
    tmp_path: Path, metadata: dict[str, str], field: str
) -> None:
    assert_refused(tmp_path, metadata, field)


def assert_refused(
    folder: Path,
    metadata: dict[str, str],
    field: str,
    tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    path = folder / "p.safetensors"
    former = {"0.weight": torch.tensor([WEIGHT]), "0.bias": torch.tensor([0.25])}
    save_file(tensors or former, path, metadata=metadata)
    with pytest.raises(ProbeFileError) as refused:
        load_probe(path)
    assert refused.value.field == field
    assert field in str(refused.value)


@pytest.mark.parametrize(
    ("tensors", "field"),
    [
        ({"0.weight": torch.ones(1, 5), "0.bias": torch.zeros(1)}, "tensors.terms.0.weight"),
        ({"0.weight": torch.ones(4), "0.bias": torch.zeros(1)}, "tensors.0.weight"),
        ({"0.weight": torch.ones(1, 4), "0.bias": torch.zeros(2)}, "tensors.0.bias"),
        ({"0.weight": torch.ones(2, 4), "0.bias": torch.zeros(2)}, "tensors.0.weight"),
        ({"0.weight": torch.ones(0, 4), "0.bias": torch.zeros(0)}, "tensors.0.weight"),
        ({"0.weight": torch.ones(1, 4).int(), "0.bias": torch.zeros(1)}, "tensors.0.weight"),
        (
            {"0.weight": torch.full((1, 4), torch.nan), "0.bias": torch.zeros(1)},
            "tensors.terms.0.weight",
        ),
        ({"0.weight": torch.ones(1, 4), "0.bias": torch.tensor([torch.inf])}, "tensors.bias"),
        ({"0.weight": torch.ones(1, 4)}, "tensors.0.bias"),
        ({"0.bias": torch.ones(1)}, "tensors.0.weight"),
        ({"other": torch.ones(1)}, "tensors.0.weight"),
    ],
)
def test_bad_tensors_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], field: str
) -> None:
    path = tmp_path / "p.safetensors"
    header = json.dumps(former_header(2))
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
    header = former_header(2, training=training)
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
