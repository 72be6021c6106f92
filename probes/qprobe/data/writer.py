"""Writes a dataset's folder, shard by shard, so that nothing half-written is taken for whole.

A shard exists once its samples do: the embeddings are written before them, and every file appears
whole under its name. So a collection that was killed goes on after its last whole shard.
"""

import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from qprobe.data.folder import embeddings_file, hash_file, read_json
from qprobe.data.sample import FORMAT_VERSION, Sample
from qprobe.errors import DatasetError
from qprobe.files import TORN_PREFIX, make_folder, write_file, write_files

__all__ = ["DatasetWriter", "check_output", "lock_folder"]

Json = dict[str, Any]
_LOCK = ".lock"
# What another version of the software or another machine may change without spoiling the data.
_FREE_TO_DIFFER = ("versions", "engine")
# What a collection writes; other files in the folder are not its own.
_OWN_FILE = re.compile(
    r"manifest\.json|prompts\.jsonl|samples/\d{5}\.jsonl|embeddings/\d{5}/[\w-]+\.safetensors"
)


class DatasetWriter:
    """Writes a dataset, or goes on with one that was begun with the same manifest.

    A context manager: while it is open no other process can write there.

    Args:
        folder: Made if it is not there.
        manifest: JSON-able; ``readings`` (list of str), ``num_prompts`` and ``prompts_per_shard``
            are relied on here. What ``versions`` and ``engine`` say may differ when going on.
        prompts: The rows.

    Raises:
        DatasetError: The folder holds other files, a dataset made in another way (the message names
            the first field that differs), or one that another process is writing.
    """

    def __init__(self, folder: Path, manifest: Json, prompts: Sequence[Json]) -> None:
        self.folder = folder
        self._manifest = json.loads(json.dumps({"format_version": FORMAT_VERSION, **manifest}))
        # ASCII: what JSON can say but UTF-8 cannot, half a surrogate pair, is kept too.
        lines = "".join(json.dumps(row) + "\n" for row in prompts)
        check_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(folder)
        try:
            self._begin(lines)
        except BaseException:  # an interrupt too must release the lock
            self.close()
            raise

    def _begin(self, lines: str) -> None:
        folder = self.folder
        for below in ("", "samples/", "embeddings/*/"):
            for torn in folder.glob(f"{below}{TORN_PREFIX}*"):
                torn.unlink()
        path = folder / "manifest.json"
        if path.exists():
            _check_same(read_json(path), self._manifest, folder)
            return
        for name in ("samples", "embeddings"):
            (folder / name).mkdir(exist_ok=True)
        write_file(folder / "prompts.jsonl", lines.encode())
        write_file(path, _pretty(self._manifest))

    def close(self) -> None:
        """Let others write there."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_shards(self) -> int:
        """How many shards the whole dataset has."""
        prompts: int = self._manifest["num_prompts"]
        size: int = self._manifest["prompts_per_shard"]
        return -(-prompts // size)

    def prompts_of(self, shard: int) -> range:
        """Return the indices of a shard's prompts."""
        size: int = self._manifest["prompts_per_shard"]
        return range(shard * size, min((shard + 1) * size, self._manifest["num_prompts"]))

    def missing(self) -> list[int]:
        """Return the shards that are not there yet, in order."""
        return [i for i in range(self.num_shards) if not self._samples_path(i).exists()]

    def find_sampled(self) -> int | None:
        """Return the index of a prompt that has samples; None if none has."""
        for path in sorted(self.folder.glob("samples/*.jsonl")):
            with path.open(encoding="utf-8") as file:
                if line := file.readline():
                    prompt: int = json.loads(line)["prompt"]
                    return prompt
        return None

    def write(
        self, shard: int, samples: Sequence[Sample], embeddings: Mapping[str, Tensor]
    ) -> None:
        """Add a shard, whole or not at all.

        Args:
            shard: Its index.
            samples: In order of prompt and index; greedy answers among them.
            embeddings: By reading: shape (samples without the greedy ones, hidden), float16; and by
                ``tokens_name`` the states of their tokens, (tokens of all, hidden).

        Raises:
            DatasetError: An embedding is not finite in float16.
        """
        for reading, values in embeddings.items():
            if not bool(torch.isfinite(values).all()):
                raise DatasetError(
                    "embeddings", f"of reading {reading!r} go beyond what float16 holds (65504)"
                )
        place = self.folder / "embeddings" / f"{shard:05d}"
        make_folder(place)
        files = {
            Path(embeddings_file(place.name, name)).name: save({name: t.contiguous()})
            for name, t in embeddings.items()
        }
        write_files(place, files)
        lines = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in samples)
        write_file(self._samples_path(shard), lines.encode())

    def finish(self) -> None:
        """Record the hash of every file; the dataset can be loaded from now on."""
        names = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.*"))
        hashes = {
            name: hash_file(self.folder / name) for name in names if _OWN_FILE.fullmatch(name)
        }
        write_file(self.folder / "complete.json", _pretty({"sha256": hashes}))

    def _samples_path(self, shard: int) -> Path:
        return self.folder / "samples" / f"{shard:05d}.jsonl"


def check_output(folder: Path) -> None:
    """Check that a dataset can be begun, or gone on with, in a folder.

    Raises:
        DatasetError: It is no folder, or holds what no collection has written.
    """
    if folder.exists() and not folder.is_dir():
        raise DatasetError("folder", f"{str(folder)!r} is not a folder")
    if not folder.exists() or (folder / "manifest.json").exists():
        return
    # A collection that was killed at once leaves these.
    for path in folder.iterdir():
        own = path.name in ("prompts.jsonl", "samples", "embeddings", _LOCK)
        if not own and not path.name.startswith(TORN_PREFIX):
            raise DatasetError(
                "folder", f"{str(folder)!r} holds {path.name!r} but no manifest.json"
            )


def lock_folder(folder: Path) -> IO[bytes]:
    """Return a file whose lock keeps other writers out until it is closed or its process ends.

    Raises:
        DatasetError: Another process has it.
    """
    file = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DatasetError(
            "folder", f"{str(folder)!r} is being written by another process"
        ) from error
    return file


def _check_same(stored: Json, wanted: Json, folder: Path) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if name not in _FREE_TO_DIFFER and stored.get(name) != wanted.get(name):
            raise DatasetError(
                name,
                f"is {wanted.get(name)!r}, but the dataset in {str(folder)!r} was begun with "
                f"{stored.get(name)!r}: collect into another folder",
            )


def _pretty(value: Json) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
