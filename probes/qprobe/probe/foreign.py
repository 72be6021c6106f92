"""Says what a file is that is no probe, by how it begins. Nothing of it is run or unpickled."""

import re
from collections.abc import Collection

__all__ = ["name_content", "name_tensors"]

_MARKUP = re.compile(rb"<!doctype\s+html|<html[\s>]", re.IGNORECASE)
_SPACE = b" \t\r\n\xef\xbb\xbf"
# Legacy torch files begin with a pickled number of ten bytes, behind protocol and length.
_TORCH_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the file: run `git lfs pull`"),
    (b"GGUF", "a model in GGUF"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b\x08", "gzipped: unpack it"),
    (b"PAR1", "a Parquet table"),
    (b"%PDF", "a PDF"),
    (b"\x89HDF", "an HDF5 file"),
)
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_TORCH = "a PyTorch file (.pt, .bin); a probe is safetensors, written by `qprobe train`"


def name_content(data: bytes) -> str | None:
    """Return what a file is, for a sentence "it is ...", or None if that cannot be told."""
    if not data:
        return "empty"
    for start, kind in _KINDS:
        if data.startswith(start):
            return kind
    if data.startswith(b"PK\x03\x04"):
        return _name_archive(data)
    # The length of a torn safetensors file's header may look like a pickle's start.
    if data[0] == 0x80 and data[1:2] in _PROTOCOLS and data[8:9] != b"{":
        return _TORCH if data[2:].startswith(_TORCH_MAGIC) else "a Python pickle, never opened here"
    text = data[:512].lstrip(_SPACE)
    if _MARKUP.match(text):
        return "an HTML page: download the file itself and not the page that shows it"
    if text.startswith((b"<?xml", b"<Error")):
        return "XML, perhaps a store's error message"
    if text[:1] in (b"{", b"["):
        return "JSON text"
    return None


def name_tensors(names: Collection[str]) -> str:
    """Return what a safetensors file without a probe's header is, by its tensors."""
    if any(".lora_" in name or "lora_embedding" in name for name in names):
        return "it is a LoRA adapter: serve it by --lora-modules, sample with it by --adapter"
    if any(name.startswith(("model.", "transformer.", "lm_head.")) for name in names):
        return "it is a model's weights"
    return f"it holds {len(names)} tensors"


def _name_archive(data: bytes) -> str:
    # Not by the table of contents, which a torn archive lacks.
    if b"data.pkl" in data[:512]:
        return _TORCH
    if b".npy" in data[:512]:
        return "NumPy arrays (.npz)"
    return "a zip archive: unpack it"
