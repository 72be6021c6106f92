"""One dataset of several, as collections of parts of the prompts make them; and fewer prompts."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qprobe.data.dataset import Dataset
from qprobe.errors import DatasetError
from qprobe.probe.reading import Reading
from qprobe.probe.values import Source

__all__ = ["drop_few", "merge_datasets"]

Json = dict[str, Any]
# What makes the embeddings of one dataset comparable with those of another. Not the number format:
# parts that were collected on different machines differ in it, as they do from the server.
_MUST_AGREE = (
    "hidden_size",
    "num_layers",
    "model",
    "model_files",
    "revision",
    "adapter",
    "endpoint",
    "shots",
    "quantization",
)


def merge_datasets(datasets: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """Return one dataset with the prompts and samples of all, in the order given.

    Args:
        datasets: At least one, each loaded whole or a part.
        names: What to call each in an error, such as its folder.

    Returns:
        A dataset whose manifest says what all agree in, and a list where they do not. It has the
        states of single tokens of the layers that all have.

    Raises:
        DatasetError: They are not of the same model or have not the same readings, or one is there
            twice; the first difference is named.
    """
    first = datasets[0]
    for name, each in zip(names[1:], datasets[1:], strict=True):
        _check_agreement(first, each, names[0], name)
    for place, each in enumerate(datasets):
        for other in range(place):
            if each.digest and each.digest == datasets[other].digest:
                raise DatasetError("folder", f"{names[place]!r} holds what {names[other]!r} does")
    if len(datasets) == 1:
        return first
    starts = np.cumsum([0, *(len(each.prompts) for each in datasets)]).tolist()
    manifest = _merge_manifests([each.manifest for each in datasets], num_prompts=starts[-1])
    token_layers = _common(datasets)
    return Dataset(
        {**manifest, "token_states": token_layers or None},
        [row for each in datasets for row in each.prompts],
        [
            replace(sample, prompt=sample.prompt + start)
            for start, each in zip(starts, datasets, strict=False)
            for sample in each.samples
        ],
        _Joined(datasets),
        np.concatenate([each.greedy_rewards for each in datasets]),
        digest=hashlib.sha256(" ".join(each.digest for each in datasets).encode()).hexdigest(),
        places=[place for each in datasets for place in each.places],
        tokens={layer: partial(_read_tokens, datasets, layer) for layer in token_layers},
    )


def drop_few(dataset: Dataset, min_samples: int) -> Dataset:
    """Return the dataset without the prompts that have fewer samples.

    Raises:
        DatasetError: No prompt is left.
    """
    kept = np.flatnonzero(dataset.num_samples >= min_samples).tolist()
    if not kept:
        raise DatasetError(
            "min_samples",
            f"must be at most {int(dataset.num_samples.max())}, the most samples of a prompt, got "
            f"{min_samples!r}",
        )
    return dataset if len(kept) == len(dataset.prompts) else dataset.subset(kept)


def _check_agreement(first: Dataset, other: Dataset, first_name: str, other_name: str) -> None:
    for field in _MUST_AGREE:
        here, there = first.manifest.get(field), other.manifest.get(field)
        if not _is_same(field, first.manifest, other.manifest):
            raise DatasetError(
                field, f"is {here!r} in {first_name!r} and {there!r} in {other_name!r}"
            )
    for has, lacks, having, lacking in (
        (first, other, first_name, other_name),
        (other, first, other_name, first_name),
    ):
        extra = [str(each) for each in has.readings if each not in lacks.readings]
        if extra:
            raise DatasetError(
                "readings", f"{', '.join(extra)} are in {having!r} and not in {lacking!r}"
            )


def _is_same(field: str, first: Json, other: Json) -> bool:
    here, there = first.get(field), other.get(field)
    if field == "model" and not all("/" in str(each) for each in (here, there)):
        # A folder's name, and perhaps the hub's ORG/NAME of the same.
        return Path(str(here)).name == Path(str(there)).name
    if field == "model_files":  # only known of a folder
        return here == there or None in (here, there)
    if field == "revision":  # only of the hub, where this is the default
        is_folder = any(each.get("model_files") is not None for each in (first, other))
        return is_folder or (here or "main") == (there or "main")
    return bool(here == there)


def _merge_manifests(manifests: Sequence[Json], *, num_prompts: int) -> Json:
    merged: Json = {}
    for field in dict.fromkeys(field for each in manifests for field in each):
        values: list[object] = []
        for each in manifests:
            if each.get(field) not in values:
                values.append(each.get(field))
        merged[field] = values[0] if len(values) == 1 else values
    # Of these the first is as good as any.
    merged |= {name: manifests[0][name] for name in ("model", "readings")}
    return {**merged, "num_prompts": num_prompts}


def _common(datasets: Sequence[Dataset]) -> list[Source]:
    first, *others = (each.token_layers for each in datasets)
    return [layer for layer in first if all(layer in each for each in others)]


def _read_tokens(datasets: Sequence[Dataset], layer: Source, row: int) -> Tensor:
    for each in datasets:
        if row < len(each.samples):
            return next(each.token_states(layer, [row]))
        row -= len(each.samples)
    raise IndexError(row)


class _Joined(Mapping[Reading, Tensor]):
    """The embeddings of several datasets, read when they are asked for: (samples, hidden)."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets

    def __getitem__(self, reading: Reading) -> Tensor:
        return torch.cat([each.embeddings_of(reading) for each in self._datasets])

    def __contains__(self, reading: object) -> bool:
        return reading in self._datasets[0].readings

    def __iter__(self) -> Iterator[Reading]:
        return iter(self._datasets[0].readings)

    def __len__(self) -> int:
        return len(self._datasets[0].readings)
