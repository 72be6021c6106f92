"""Files that are no probe: what they are said to be, from a disk and by an upload."""

import gzip
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from qprobe import ProbeFileError, load_probe, parse_probe
from qprobe_server.library.registry import read_probe

WEIGHT = torch.ones(2, 4)
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def torch_file(*, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"0.weight": WEIGHT}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def numpy_file(*, archive: bool) -> bytes:
    file = io.BytesIO()
    (np.savez if archive else np.save)(file, np.ones(3))
    return file.getvalue()


FILES = [
    (b"", "it is empty"),
    (POINTER.encode(), "it is a Git LFS pointer .*git lfs pull"),
    (b"\n<!DOCTYPE html>\n<html><head>", "it is an HTML page"),
    (b"<html lang='en'>", "it is an HTML page"),
    (b"\xef\xbb\xbf<!doctype html>", "it is an HTML page"),
    (b"<?xml version='1.0'?><Error>", "it is XML"),
    (b'{"error": "Repository not found"}', "it is JSON text"),
    (torch_file(legacy=False), "it is a PyTorch file"),
    (torch_file(legacy=False)[:600], "it is a PyTorch file"),
    (torch_file(legacy=True), "it is a PyTorch file"),
    (pickle.dumps({"0.weight": [1.0]}), "it is a Python pickle"),
    (pickle.dumps([1], protocol=2), "it is a Python pickle"),
    (save({"base_model.model.layers.0.q_proj.lora_A.weight": WEIGHT}), "it is a LoRA adapter"),
    (save({"model.layers.0.mlp.weight": WEIGHT}), "it is a model's weights"),
    (save({"0.weight": WEIGHT, "0.bias": torch.ones(2)}), "it holds 2 tensors"),
    (numpy_file(archive=False), "it is a NumPy array"),
    (numpy_file(archive=True), r"it is NumPy arrays \(.npz\)"),
    (gzip.compress(b"x" * 100), "it is gzipped"),
    (b"GGUF\x03\0\0\0", "it is a model in GGUF"),
    (b"hello, world", "is not a readable probe: "),
]


@pytest.mark.parametrize(("data", "said"), FILES, ids=[said for _, said in FILES])
def test_a_file_is_said_to_be_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(data)
    with pytest.raises(ProbeFileError, match=f"^file: .*{said}.*p.safetensors'$") as caught:
        load_probe(path)
    assert "too large" not in str(caught.value) or data.startswith(b"hello")
    with pytest.raises(ProbeFileError, match=f"^file: .*{said}"):
        read_probe("name", data)


def test_an_adapters_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ProbeFileError, match="is a folder of a LoRA adapter"):
        load_probe(tmp_path)


@pytest.mark.parametrize("first", [0x280, 0x380, 0x480, 0x580, 0x8B1F])
def test_a_torn_probe_is_taken_for_nothing_else(first: int) -> None:
    with pytest.raises(ProbeFileError, match=r"is not a readable probe: (?!it is)"):
        parse_probe(first.to_bytes(8, "little") + b'{"__metadata__": {')
