"""A dataset's folder: prompts, rewarded samples and their embeddings; here it is read.

::

    manifest.json                    how it was made; checked when a collection goes on
    prompts.jsonl                    the rows, as given
    samples/00000.jsonl              the samples of the first prompts, one a line
    embeddings/00000.safetensors     their embeddings: a tensor (samples, hidden) float16 a reading
    complete.json                    written last: the hash of every file above

``writer`` writes it, shard by shard.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from qprobe.data.provenance import identify_prompts
from qprobe.data.reading import Reading
from qprobe.errors import DatasetError, EvaluationError

__all__ = ["FORMAT_VERSION", "GREEDY", "Dataset", "Reading", "Sample", "hash_file"]

Json = dict[str, Any]
FORMAT_VERSION = 1
# Index of the greedy answer among a prompt's samples; it is a baseline and has no embedding.
GREEDY = -1


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
        reward: Finite; None if the reward failed. ``Dataset.load`` leaves such samples out.
        reason: Of the reward, in a word or two, or None.
    """

    prompt: int
    index: int
    text: str
    token_ids: list[int]
    num_scored: int
    logprob: float
    finish_reason: str
    seed: int | None
    reward: float | None
    reason: str | None = None


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
    def load(cls, folder: Path | str) -> "Dataset":
        """Read a finished dataset.

        Raises:
            DatasetError: There is none, it is not finished, or a file is not the one written.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        complete = _read_json(folder / "complete.json")
        hashes: dict[str, str] = complete.get("sha256", {})
        for name, digest in hashes.items():
            path = folder / name
            if not path.is_file() or hash_file(path) != digest:
                raise DatasetError("folder", f"{str(path)!r} is missing or was changed")
        prompts = _read_lines(folder / "prompts.jsonl")
        names = sorted(name for name in hashes if name.startswith("samples/"))
        samples = [Sample(**row) for name in names for row in _read_lines(folder / name)]
        greedy = np.full(len(prompts), np.nan)
        for each in samples:
            if each.index == GREEDY and each.reward is not None:
                greedy[each.prompt] = each.reward
        stored = [each for each in samples if each.index != GREEDY]
        rows = [row for row, each in enumerate(stored) if each.reward is not None]
        shards = [folder / "embeddings" / f"{Path(name).stem}.safetensors" for name in names]
        made = cls(
            manifest,
            prompts,
            [stored[row] for row in rows],
            _Shards(shards, [Reading.parse(name) for name in manifest["readings"]]),
            greedy,
            digest=hash_file(folder / "complete.json"),
        )
        if len(rows) < len(stored):
            made._rows = np.array(rows, dtype=np.int64)
        return made

    @property
    def readings(self) -> list[Reading]:
        """The embeddings that are stored."""
        return list(self._embeddings)

    @cached_property
    def questions(self) -> NDArray[np.int64]:
        """What each prompt asks, numbered from 0: (prompts,). Rows that ask the same share one."""
        asked = identify_prompts(self.prompts)
        numbers = {each: number for number, each in enumerate(dict.fromkeys(asked))}
        return np.array([numbers[each] for each in asked], dtype=np.int64)

    @property
    def fewest_samples(self) -> int:
        """How many samples the prompt with the fewest has."""
        return int(np.bincount(self.groups, minlength=len(self.prompts)).min())

    def settle_k(self, k: int | None, *, default: int) -> int:
        """Return how many samples of a prompt a choice is among, checked.

        Args:
            k: As it was asked for, or None.
            default: Taken then, if every prompt has so many samples; else as many as all have.

        Raises:
            EvaluationError: k is not from 1 to the fewest samples of a prompt.
        """
        settled = min(default, self.fewest_samples) if k is None else k
        if not 1 <= settled <= self.fewest_samples:
            raise EvaluationError(
                "k",
                f"must be from 1 to {self.fewest_samples}, the fewest samples of a prompt, got "
                f"{settled!r}",
            )
        return settled

    def require(self, readings: Iterable[Reading]) -> None:
        """Check that embeddings are stored, before minutes go into the first.

        Raises:
            DatasetError: One is not; the message says which are.
        """
        for reading in readings:
            if reading not in self._embeddings:
                stored = ", ".join(map(str, self._embeddings))
                raise DatasetError(
                    "reading", f"{str(reading)!r} is not in the dataset, which has {stored}"
                )

    def features(self, reading: Reading) -> Tensor:
        """Return an embedding of all samples: (samples, hidden), float32. Reads it from disk.

        Raises:
            DatasetError: It is not stored; the message says which are.
        """
        self.require([reading])
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


def _read_manifest(folder: Path) -> Json:
    path = folder / "manifest.json"
    if folder.is_file():
        raise DatasetError("folder", f"{str(folder)!r} is a file, a dataset's folder is wanted")
    if not folder.exists():
        raise DatasetError("folder", f"{str(folder)!r} is not there")
    if not path.is_file():
        raise DatasetError("folder", f"{str(folder)!r} is not a dataset: it has no manifest.json")
    manifest = _read_json(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DatasetError(
            "format_version",
            f"must be {FORMAT_VERSION}, got {manifest.get('format_version')!r} in {str(path)!r}",
        )
    if not (folder / "complete.json").is_file():
        raise DatasetError(
            "folder", f"{str(folder)!r} is not finished: run the same `qprobe collect` again"
        )
    return manifest


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DatasetError("folder", f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError("folder", f"{str(path)!r} is not of a dataset: it is no JSON object")
    return content


def _read_lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
