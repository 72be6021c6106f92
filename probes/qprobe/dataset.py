"""A dataset's folder: prompts, rewarded samples and their embeddings, written shard by shard.

::

    manifest.json                    how it was made; checked when a collection goes on
    prompts.jsonl                    the rows, as given
    samples/00000.jsonl              the samples of the first prompts, one a line
    embeddings/00000.safetensors     their embeddings: a tensor (samples, hidden) float16 a reading
    complete.json                    written last: the hash of every file above

A shard exists once its samples do: the embeddings are written before them, and every file appears
whole under its name. So a collection that was killed goes on after its last whole shard.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from qprobe.errors import DatasetError
from qprobe.probe import Layer, Pooling

__all__ = ["GREEDY", "Dataset", "DatasetWriter", "Reading", "Sample", "check_output"]

Json = dict[str, Any]
FORMAT_VERSION = 1
# Index of the greedy answer among a prompt's samples; it is a baseline and has no embedding.
GREEDY = -1
_LOCK = ".lock"
# What another version of the software or another machine may change without spoiling the data.
_FREE_TO_DIFFER = ("versions", "engine")
# What a collection writes; other files in the folder are not its own.
_OWN_FILE = re.compile(
    r"manifest\.json|prompts\.jsonl|samples/\d{5}\.jsonl|embeddings/\d{5}\.safetensors"
)


@dataclass(frozen=True)
class Reading:
    """Which embedding of a completion: as in ProbeInfo. ``str`` gives ``15/mean/32``."""

    layer: Layer
    pooling: Pooling
    window: int | None = None

    def __str__(self) -> str:
        parts = [self.layer, self.pooling, *([] if self.window is None else [self.window])]
        return "/".join(map(str, parts))

    @classmethod
    def parse(cls, text: str) -> "Reading":
        """Read what ``str`` wrote.

        Raises:
            DatasetError: It is not LAYER/last, LAYER/mean or LAYER/mean/WINDOW.
        """
        found = re.fullmatch(r"(final|[1-9]\d*)/(?:(last)|mean(?:/([1-9]\d*))?)", text)
        if found is None:
            raise DatasetError(
                "reading", f"must be LAYER/last or LAYER/mean[/WINDOW], got {text!r}"
            )
        layer, last, window = found.groups()
        return cls(
            layer="final" if layer == "final" else int(layer),
            pooling="last" if last else "mean",
            window=int(window) if window else None,
        )


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt.

    Attributes:
        prompt: Index of its prompt.
        index: Of the sample among the prompt's; GREEDY for the greedy answer.
        text: What a client would get of it.
        token_ids: Everything generated, the stop token included.
        num_scored: How many leading tokens make its embedding.
        logprob: Sum over the generated tokens, in nats, under the sampling distribution's model
            (temperature 1).
        finish_reason: ``stop`` or ``length``; ``given`` if it was not sampled.
        seed: The one that it was sampled with; None if it was not sampled.
        reward: Finite.
    """

    prompt: int
    index: int
    text: str
    token_ids: list[int]
    num_scored: int
    logprob: float
    finish_reason: str
    seed: int | None
    reward: float


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
        self._lock = _lock(folder)
        try:
            self._begin(lines)
        except BaseException:
            self.close()
            raise

    def _begin(self, lines: str) -> None:
        folder = self.folder
        for torn in [*folder.glob(".*.part"), *folder.glob("*/.*.part")]:
            torn.unlink()
        path = folder / "manifest.json"
        if path.exists():
            _check_same(json.loads(path.read_text("utf-8")), self._manifest, folder)
            return
        for name in ("samples", "embeddings"):
            (folder / name).mkdir(exist_ok=True)
        _write_whole(folder / "prompts.jsonl", lines.encode())
        _write_whole(path, _pretty(self._manifest))

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

    def write(
        self, shard: int, samples: Sequence[Sample], embeddings: Mapping[str, Tensor]
    ) -> None:
        """Add a shard, whole or not at all.

        Args:
            shard: Its index.
            samples: In order of prompt and index; greedy answers among them.
            embeddings: By reading: shape (samples without the greedy ones, hidden), float16.

        Raises:
            DatasetError: An embedding is not finite in float16.
        """
        for reading, values in embeddings.items():
            if not bool(torch.isfinite(values).all()):
                raise DatasetError(
                    "embeddings", f"of reading {reading!r} go beyond what float16 holds (65504)"
                )
        path = self.folder / "embeddings" / f"{shard:05d}.safetensors"
        _write_whole(path, save({name: t.contiguous() for name, t in embeddings.items()}))
        lines = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in samples)
        _write_whole(self._samples_path(shard), lines.encode())

    def finish(self) -> None:
        """Record the hash of every file; the dataset can be loaded from now on."""
        names = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.*"))
        hashes = {name: _hash(self.folder / name) for name in names if _OWN_FILE.fullmatch(name)}
        _write_whole(self.folder / "complete.json", _pretty({"sha256": hashes}))

    def _samples_path(self, shard: int) -> Path:
        return self.folder / "samples" / f"{shard:05d}.jsonl"


class Dataset:
    """A finished dataset, or some prompts of one.

    Attributes:
        manifest: How it was made.
        prompts: The rows.
        samples: In order of prompt and index, the greedy ones left out.
        groups: Shape (samples,): the prompt of each.
        rewards: Shape (samples,), float64.
        greedy_rewards: Shape (prompts,): of the greedy answer, NaN where there is none.
        digest: Names the whole dataset's content; "" for one that was not loaded.
    """

    # The rows of the stored embeddings that are these samples; None: all.
    _rows: NDArray[np.int64] | None = None

    def __init__(
        self,
        manifest: Json,
        prompts: list[Json],
        samples: list[Sample],
        embeddings: Mapping[Reading, Tensor],
        greedy_rewards: NDArray[np.float64],
        *,
        digest: str = "",
    ) -> None:
        self.manifest = manifest
        self.prompts = prompts
        self.samples = samples
        self._embeddings = embeddings  # (stored samples, hidden) float16 each
        self.greedy_rewards = greedy_rewards
        self.digest = digest
        self.groups: NDArray[np.int64] = np.array([each.prompt for each in samples], dtype=np.int64)
        self.rewards: NDArray[np.float64] = np.array([each.reward for each in samples], np.float64)

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read a finished dataset.

        Raises:
            DatasetError: There is none, it is not finished, or a file is not the one written.
        """
        manifest = _read_manifest(folder)
        complete = json.loads((folder / "complete.json").read_text("utf-8"))
        hashes: dict[str, str] = complete["sha256"]
        for name, digest in hashes.items():
            path = folder / name
            if not path.is_file() or _hash(path) != digest:
                raise DatasetError("folder", f"{str(path)!r} is missing or was changed")
        prompts = _read_lines(folder / "prompts.jsonl")
        names = sorted(name for name in hashes if name.startswith("samples/"))
        rows = [Sample(**row) for name in names for row in _read_lines(folder / name)]
        greedy = np.full(len(prompts), np.nan)
        for each in rows:
            if each.index == GREEDY:
                greedy[each.prompt] = each.reward
        shards = [folder / "embeddings" / f"{Path(name).stem}.safetensors" for name in names]
        return cls(
            manifest,
            prompts,
            [each for each in rows if each.index != GREEDY],
            _Shards(shards, [Reading.parse(name) for name in manifest["readings"]]),
            greedy,
            digest=_hash(folder / "complete.json"),
        )

    @property
    def readings(self) -> list[Reading]:
        """The embeddings that are stored."""
        return list(self._embeddings)

    def features(self, reading: Reading) -> Tensor:
        """Return an embedding of all samples: (samples, hidden), float32. Reads it from disk.

        Raises:
            DatasetError: It is not stored; the message says which are.
        """
        if reading not in self._embeddings:
            stored = ", ".join(map(str, self._embeddings))
            raise DatasetError(
                "reading", f"{str(reading)!r} is not in the dataset, which has {stored}"
            )
        found = self._embeddings[reading]
        return (found if self._rows is None else found[torch.from_numpy(self._rows)]).float()

    def subset(self, prompts: Sequence[int]) -> "Dataset":
        """Return the dataset of some prompts, numbered anew in the order given."""
        places = {old: new for new, old in enumerate(prompts)}
        kept = np.concatenate(
            [np.zeros(0, np.int64), *(np.flatnonzero(self.groups == old) for old in prompts)]
        )
        samples = [replace(self.samples[i], prompt=places[self.samples[i].prompt]) for i in kept]
        made = Dataset(
            self.manifest,
            [self.prompts[old] for old in prompts],
            samples,
            self._embeddings,
            self.greedy_rewards[list(prompts)],
            digest=self.digest,
        )
        made._rows = kept if self._rows is None else self._rows[kept]
        return made


class _Shards(Mapping[Reading, Tensor]):
    """Embeddings on disk: one reading of a large dataset fits where all of them do not."""

    def __init__(self, paths: Sequence[Path], readings: Sequence[Reading]) -> None:
        self._paths = paths
        self._readings = readings

    def __getitem__(self, reading: Reading) -> Tensor:
        parts = []
        for path in self._paths:
            with safe_open(path, framework="pt", device="cpu") as file:
                parts.append(file.get_tensor(str(reading)))
        return torch.cat(parts)

    def __contains__(self, reading: object) -> bool:
        return reading in self._readings

    def __iter__(self) -> Iterator[Reading]:
        return iter(self._readings)

    def __len__(self) -> int:
        return len(self._readings)


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
        if not own and not path.name.endswith(".part"):
            raise DatasetError(
                "folder", f"{str(folder)!r} holds {path.name!r} but no manifest.json"
            )


def _lock(folder: Path) -> IO[bytes]:
    """Return a file whose lock keeps other writers out until it is closed or its process ends."""
    file = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DatasetError(
            "folder", f"{str(folder)!r} is being written by another process"
        ) from error
    return file


def _read_manifest(folder: Path) -> Json:
    path = folder / "manifest.json"
    if not path.is_file():
        raise DatasetError("folder", f"{str(folder)!r} is not a dataset: it has no manifest.json")
    manifest: Json = json.loads(path.read_text("utf-8"))
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DatasetError(
            "format_version", f"must be {FORMAT_VERSION}, got {manifest.get('format_version')!r}"
        )
    if not (folder / "complete.json").is_file():
        raise DatasetError(
            "folder", f"{str(folder)!r} is not finished: run the same `qprobe collect` again"
        )
    return manifest


def _check_same(stored: Json, wanted: Json, folder: Path) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if name not in _FREE_TO_DIFFER and stored.get(name) != wanted.get(name):
            raise DatasetError(
                name,
                f"is {wanted.get(name)!r}, but the dataset in {str(folder)!r} was begun with "
                f"{stored.get(name)!r}: collect into another folder",
            )


def _read_lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def _write_whole(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretty(value: Json) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
