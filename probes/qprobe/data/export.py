"""Writes a dataset as a Parquet table, a row a sample; needs ``qprobe[data]``."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qprobe.data.chats import flatten
from qprobe.data.prompts import read_row
from qprobe.errors import DatasetError
from qprobe.files import TORN_PREFIX

if TYPE_CHECKING:  # pyarrow is of an extra; a dataset needs torch, and takes seconds
    import pyarrow as pa

    from qprobe.data.dataset import Dataset
    from qprobe.probe.reading import Reading

__all__ = ["export_table"]

Json = dict[str, Any]
# Of a row, what the table has in other columns, or sample by sample.
_NOT_CARRIED = {"prompt", "messages", "completions", "chosen", "rejected"}
_ROWS_AT_ONCE = 4096


def export_table(dataset: "Dataset", path: Path, readings: Sequence["Reading"] = ()) -> None:
    """Write the samples of a dataset, the greedy answers left out.

    Columns: ``prompt`` or ``messages``, ``completion``, ``reward``, ``finish_reason``,
    ``num_tokens``, ``token_ids``, ``logprob`` (in nats), ``seed``, ``prompt_index``,
    ``sample_index``; the fields of the prompt's row, those with one of these names as
    ``row_NAME``; and for each reading ``embedding/READING``, of float32. Tokens are null where an
    embeddings endpoint has read, which tells of none.

    Args:
        dataset: Finished.
        path: Of the file; one that was there is replaced once the new one is whole.
        readings: Embeddings that are written too.

    Raises:
        DatasetError: pyarrow is not installed, or an embedding is not in the dataset.
        OSError: The file cannot be written.
    """
    arrow = _import("pyarrow")
    parquet = _import("pyarrow.parquet")
    dataset.require(readings)
    table = _make_table(arrow, dataset)
    for reading in readings:
        values = dataset.features(reading)  # (samples, hidden)
        flat = arrow.array(values.numpy().reshape(-1))
        column = arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
        table = table.append_column(f"embedding/{reading}", column)
    torn = path.with_name(f"{TORN_PREFIX}{path.name}")
    try:
        parquet.write_table(table, torn, row_group_size=_ROWS_AT_ONCE)
        torn.replace(path)
    finally:
        torn.unlink(missing_ok=True)


def _make_table(arrow: Any, dataset: "Dataset") -> "pa.Table":  # noqa: ANN401 a module without types
    samples = dataset.samples
    tokens: list[Any] = [each.token_ids for each in samples]
    if dataset.manifest.get("endpoint") is not None:
        tokens = [None] * len(samples)
    asked = [read_row(fields).prompt for fields in dataset.prompts]
    own: dict[str, list[Any]] = {
        "prompt": [each if isinstance(each, str) else None for each in asked],
        "messages": [None if isinstance(each, str) else flatten(each) for each in asked],
    }
    columns = {
        name: [values[each.prompt] for each in samples]
        for name, values in own.items()
        if any(value is not None for value in values)
    }
    columns |= {
        "completion": [each.text for each in samples],
        "reward": [each.reward for each in samples],
        "finish_reason": [each.finish_reason for each in samples],
        "num_tokens": [None if each is None else len(each) for each in tokens],
        "token_ids": tokens,
        "logprob": [each.logprob for each in samples],
        "seed": [each.seed for each in samples],
        "prompt_index": [each.prompt for each in samples],
        "sample_index": [each.index for each in samples],
    }
    for name in dict.fromkeys(name for fields in dataset.prompts for name in fields):
        if name not in _NOT_CARRIED:
            values = [fields.get(name) for fields in dataset.prompts]
            column = f"row_{name}" if name in columns else name
            columns[column] = [values[each.prompt] for each in samples]
    return arrow.table({name: _to_array(arrow, values) for name, values in columns.items()})


def _to_array(arrow: Any, values: list[Any]) -> "pa.Array":  # noqa: ANN401 as above
    """Return a column; of values that no single type holds it is their JSON."""
    try:
        made = arrow.array(values)
        if "struct<>" not in str(made.type):  # an empty object, which Parquet has no type for
            return made
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError):
        pass
    return arrow.array([None if each is None else json.dumps(each) for each in values])


def _import(name: str) -> Any:  # noqa: ANN401 a module without types
    try:
        return import_module(name)
    except ImportError as error:
        message = f"cannot be exported without pyarrow: pip install 'qprobe[data]' ({error})"
        raise DatasetError("folder", message) from error
