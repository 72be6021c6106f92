"""Reads rows from where people keep them: JSON lines, one JSON array, Parquet, a hub's data set.

Parquet and data sets need the libraries of ``qprobe[data]``, which are imported when they are met.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast

from qprobe.data.fields import show
from qprobe.errors import PromptFileError

__all__ = ["HUB", "Source", "read_objects"]

Json = dict[str, Any]
Splits = Mapping[str, Iterable[Any]]
# A path, or the address of a data set, which begins with HUB.
Source = Path | str
HUB = "hf://datasets/"
_ADDRESS = re.compile(
    rf"{HUB}(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.~-]+))?(?:/(?P<file>.+))?"
)
_PARQUET = b"PAR1"
# What ``save_to_disk`` leaves in a folder.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_objects(
    source: Source,
    *,
    subset: str | None = None,
    splits: Sequence[str] = (),
    needs_split: bool = False,
) -> Iterator[tuple[int, Json]]:
    """Yield the rows of a source with their numbers: of the line, or of the row, from 1.

    Args:
        source: A file of JSON lines or one JSON array, gzipped if it ends in ``.gz``; a Parquet
            file; a folder that ``datasets`` can read; or ``hf://datasets/ORG/NAME``, perhaps with
            ``@REVISION`` and a file's path behind it.
        subset: Of a data set that has several.
        splits: Those of a data set that are read; all of them if there are none named. Where it
            has several, each row gets the field ``split``.
        needs_split: Whether it gets that also where there is one.

    Raises:
        PromptFileError: It cannot be read, has no subsets and one is named, or a row is no object.
    """
    if isinstance(source, str):
        address = _ADDRESS.fullmatch(source)
        if address is None:
            message = f"must be {HUB}ORG/NAME[@REVISION][/FILE], got {source!r}"
            raise PromptFileError(source, None, "file", message)
        if address["file"]:
            _check_no_subset(source, subset)
            yield from _read_file(_download(source, address))
            return
        place, revision = address["name"], address["revision"]
    elif source.is_dir():
        place, revision = str(source), None
    else:
        _check_no_subset(source, subset)
        yield from _read_file(source)
        return
    loaded = _load_data_set(source, place, revision, subset)
    yield from _read_splits(source, loaded, splits, needs_split=needs_split)


def _check_no_subset(source: Source, subset: str | None) -> None:
    if subset is not None:
        message = f"is of a data set that has several, and this has none, got {subset!r}"
        raise PromptFileError(source, None, "subset", message)


def _read_file(path: Path) -> Iterator[tuple[int, Json]]:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise PromptFileError(path, None, "file", f"cannot be read: {error}") from error
    if data[:4] == _PARQUET:
        yield from _read_parquet(path)
        return
    data = data.removeprefix(_BYTE_ORDER_MARK)
    if data.lstrip()[:1] == b"[":
        for item, row in enumerate(_load(path, None, data), 1):
            yield item, _check_is_object(path, item, row)
        return
    for line, raw in enumerate(data.split(b"\n"), 1):
        if raw.strip():
            yield line, _check_is_object(path, line, _load(path, line, raw))


def _read_parquet(path: Path) -> Iterator[tuple[int, Json]]:
    parquet = _import("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(path)
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield number, _plain(path, number, row)
    except (OSError, ValueError) as error:  # pyarrow's errors are either
        raise PromptFileError(path, None, "file", f"cannot be read: {error}") from error


def _load_data_set(source: Source, place: str, revision: str | None, subset: str | None) -> Splits:
    """Return a data set's splits by their names."""
    datasets = _import("datasets", source)
    is_saved, has_splits = ((Path(place) / each).is_file() for each in (_SAVED, _SAVED_SPLITS))
    if is_saved or has_splits:
        _check_no_subset(source, subset)
    try:
        if is_saved:
            return {"train": datasets.load_from_disk(place)}
        if has_splits:
            return cast("Splits", datasets.load_from_disk(place))
        return cast("Splits", datasets.load_dataset(place, subset, revision=revision))
    except Exception as error:  # of the network, of the hub, of a file: whatever is beneath it
        raise _unreadable(source, error) from error


def _read_splits(
    source: Source,
    loaded: Splits,
    splits: Sequence[str],
    *,
    needs_split: bool,
) -> Iterator[tuple[int, Json]]:
    for name in splits:
        if name not in loaded:
            there = ", ".join(loaded)
            raise PromptFileError(source, None, "split", f"{name!r} is not there, but {there}")
    number = 0
    for name in splits or loaded:
        for row in loaded[name]:
            number += 1
            named = {"split": name} if needs_split or len(loaded) > 1 else {}
            yield number, named | _plain(source, number, row)


def _download(source: Source, address: re.Match[str]) -> Path:
    hub = _import("huggingface_hub", source)
    name, revision, file = address.groups()
    try:
        return Path(hub.hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except Exception as error:  # as above
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: Exception) -> PromptFileError:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return PromptFileError(source, None, "file", f"cannot be read: {said}")


def _import(name: str, source: Source) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        message = f"needs the libraries of qprobe[data]: pip install 'qprobe[data]' ({error})"
        raise PromptFileError(source, None, "file", message) from error


def _plain(source: Source, number: int, value: Any) -> Any:  # noqa: ANN401 of any kind
    """Return a value of a table as JSON would have it: NaN is null there, a date is text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(source, number, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(source, number, each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if value is None or isinstance(value, str | int):
        return value
    raise PromptFileError(source, number, "row", f"holds what JSON cannot, got {show(value)}")


def _load(path: Path, line: int | None, raw: bytes) -> Any:  # noqa: ANN401 JSON of any kind
    where = "file" if line is None else "row"
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise PromptFileError(path, line, where, f"is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise PromptFileError(
            path, line, where, f"is not JSON: {error}, got {show(raw.decode())}"
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_is_object(path: Path, line: int, row: object) -> Json:
    if not isinstance(row, dict):
        raise PromptFileError(path, line, "row", f"must be a JSON object, got {show(row)}")
    return row
