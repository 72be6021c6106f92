"""A dataset's folder: prompts, rewarded samples and their embeddings; here it is read.

::

    manifest.json                    how it was made; checked when a collection goes on
    prompts.jsonl                    the rows, as given
    samples/00000.jsonl              the samples of the first prompts, one a line
    embeddings/00000/15-mean.safetensors
                                     an embedding of theirs: a tensor (samples, hidden) float16,
                                     named as the reading is
    embeddings/00000/15-tokens.safetensors
                                     if token states are kept: a tensor (tokens, hidden) float16,
                                     sample after sample, of each ``num_states``
    complete.json                    written last: the hash of every file above
    rewards/NAME/                    other rewards of the same samples: see ``named_rewards``

``writer`` writes it, shard by shard. In format 1 all embeddings of a shard are in one file,
``embeddings/00000.safetensors``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from qprobe.data.sample import FORMAT_VERSION, GREEDY, Sample
from qprobe.errors import DatasetError
from qprobe.probe.reading import Reading
from qprobe.probe.values import Source

__all__ = [
    "Stored",
    "StoredEmbeddings",
    "StoredTokens",
    "embeddings_file",
    "hash_file",
    "read_folder",
    "read_json",
    "read_lines",
    "tokens_name",
]

Json = dict[str, Any]
_READ_VERSIONS = (1, FORMAT_VERSION)
_EMBEDDINGS = "embeddings/"


@dataclass(frozen=True)
class Stored:
    """What a finished dataset's folder holds.

    Attributes:
        manifest: How it was made.
        prompts: The rows.
        shards: The samples, the greedy ones too, by the name of their shard, in order.
        embeddings: Of the samples but the greedy ones.
        tokens: Likewise, by layer.
        digest: Names all of it.
    """

    manifest: Json
    prompts: list[Json]
    shards: dict[str, list[Sample]]
    embeddings: "StoredEmbeddings"
    tokens: dict[Source, "StoredTokens"]
    digest: str


def read_folder(folder: Path) -> Stored:
    """Read a finished dataset, but for its embeddings, which are read when they are asked for.

    Raises:
        DatasetError: There is none, it is not finished, or a file is not the one written.
    """
    manifest = _read_manifest(folder)
    hashes = _read_hashes(folder)
    for name, digest in hashes.items():
        path = folder / name
        if not path.is_file():
            raise DatasetError("folder", f"{str(path)!r} is missing")
        if not name.startswith(_EMBEDDINGS):
            _check_hash(path, digest)
    names = sorted(name for name in hashes if name.startswith("samples/"))
    shards = {
        Path(name).stem: [Sample(**row) for row in read_lines(folder / name)] for name in names
    }
    embeddings = StoredEmbeddings(folder, manifest, list(shards), hashes)
    places = _place_tokens(shards)
    return Stored(
        manifest,
        read_lines(folder / "prompts.jsonl"),
        shards,
        embeddings,
        {
            each: StoredTokens(embeddings, places, each)
            for each in manifest.get("token_states") or ()
        },
        hash_file(folder / "complete.json"),
    )


def embeddings_file(shard: str, reading: str) -> str:
    """Return where in the folder an embedding of a shard's samples is."""
    return f"{_EMBEDDINGS}{shard}/{reading.replace('/', '-')}.safetensors"


class StoredEmbeddings(Mapping[Reading, Tensor]):
    """Embeddings on disk: one reading of a large dataset fits where all of them do not.

    Each is (samples, hidden) float16. Its files are checked when they are read.
    """

    def __init__(
        self, folder: Path, manifest: Json, shards: Sequence[str], hashes: Mapping[str, str]
    ) -> None:
        self._folder, self._shards, self._hashes = folder, shards, hashes
        self._readings = [Reading.parse(name) for name in manifest["readings"]]
        self._is_joint = manifest["format_version"] == 1
        self._checked: set[Path] = set()

    def __getitem__(self, reading: Reading) -> Tensor:
        parts = []
        for shard in self._shards:
            path = self.find(shard, str(reading))
            with safe_open(path, framework="pt", device="cpu") as file:
                parts.append(file.get_tensor(str(reading)))
        return torch.cat(parts)

    def find(self, shard: str, reading: str) -> Path:
        """Return the file of a shard that holds a reading.

        Raises:
            DatasetError: It is missing, or is not the one written.
        """
        name = embeddings_file(shard, reading)
        if self._is_joint:
            name = f"{_EMBEDDINGS}{shard}.safetensors"
        path = self._folder / name
        if name not in self._hashes:
            raise DatasetError("folder", f"{str(path)!r} is missing")
        if path not in self._checked:  # a joint file is asked for by every reading
            _check_hash(path, self._hashes[name])
            self._checked.add(path)
        return path

    def __contains__(self, reading: object) -> bool:
        return reading in self._readings

    def __iter__(self) -> Iterator[Reading]:
        return iter(self._readings)

    def __len__(self) -> int:
        return len(self._readings)


class StoredTokens:
    """States of single tokens of one layer on disk, read sample by sample.

    Args:
        embeddings: Of the same folder.
        places: Where in which shard's tensor those of each sample begin and end.
        layer: Which.
    """

    def __init__(
        self, embeddings: StoredEmbeddings, places: Sequence[tuple[str, int, int]], layer: Source
    ) -> None:
        self._embeddings, self._places, self._name = embeddings, places, tokens_name(layer)

    def __call__(self, row: int) -> Tensor:
        """Return those of one sample, counted without the greedy ones: (tokens, hidden) float16."""
        shard, start, end = self._places[row]
        path = self._embeddings.find(shard, self._name)
        with safe_open(path, framework="pt", device="cpu") as file:
            states: Tensor = file.get_slice(self._name)[start:end]
        return states


def tokens_name(layer: Source) -> str:
    """Return what the states of single tokens are called, beside the readings."""
    return f"{layer}/tokens"


def _place_tokens(shards: Mapping[str, Sequence[Sample]]) -> list[tuple[str, int, int]]:
    places = []
    for shard, samples in shards.items():
        end = 0
        for each in samples:
            if each.index != GREEDY:
                start, end = end, end + each.num_states
                places.append((shard, start, end))
    return places


def _read_manifest(folder: Path) -> Json:
    path = folder / "manifest.json"
    if folder.is_file():
        raise DatasetError("folder", f"{str(folder)!r} is a file, a dataset's folder is wanted")
    if not folder.exists():
        raise DatasetError("folder", f"{str(folder)!r} is not there")
    if not path.is_file():
        raise DatasetError("folder", f"{str(folder)!r} is not a dataset: it has no manifest.json")
    manifest = read_json(path)
    if manifest.get("format_version") not in _READ_VERSIONS:
        raise DatasetError(
            "format_version",
            f"must be {FORMAT_VERSION} or 1, got {manifest.get('format_version')!r} in "
            f"{str(path)!r}",
        )
    if not (folder / "complete.json").is_file():
        raise DatasetError(
            "folder", f"{str(folder)!r} is not finished: run the same `qprobe collect` again"
        )
    return manifest


def _read_hashes(folder: Path) -> dict[str, str]:
    path = folder / "complete.json"
    hashes = read_json(path).get("sha256")
    if not isinstance(hashes, dict) or not {"manifest.json", "prompts.jsonl"} <= hashes.keys():
        raise DatasetError(
            "folder",
            f"{str(path)!r} does not hold the hashes of the dataset's files: remove it and run the "
            "same `qprobe collect` again",
        )
    return hashes


def _check_hash(path: Path, digest: str) -> None:
    if not path.is_file():
        raise DatasetError("folder", f"{str(path)!r} is missing")
    if hash_file(path) != digest:
        raise DatasetError("folder", f"{str(path)!r} was changed since it was written")


def read_json(path: Path) -> Json:
    """Read a file that holds a JSON object.

    Raises:
        DatasetError: It does not.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError("folder", f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError("folder", f"{str(path)!r} is not of a dataset: it is no JSON object")
    return content


def read_lines(path: Path) -> list[Json]:
    """Read a file of JSON lines that was written whole."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
