"""Further rewards of a dataset's samples, each under a name of its own, beside what is there.

::

    rewards/NAME/manifest.json       what the reward is, and of which samples
    rewards/NAME/00000.jsonl         a line for each of samples/00000.jsonl: reward, reason
    rewards/NAME/complete.json       written last: the hash of every file above

Nothing else of the folder is changed, and every file appears whole.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from qprobe.data.folder import Stored, hash_file, read_json, read_lines
from qprobe.data.sample import Sample
from qprobe.data.writer import lock_folder
from qprobe.errors import DatasetError
from qprobe.files import TORN_PREFIX, write_file

__all__ = ["NamedRewardWriter", "apply_rewards", "list_rewards"]

Json = dict[str, Any]
_NAME = re.compile(r"\w[\w.-]{0,63}", re.ASCII)


def list_rewards(folder: Path) -> list[str]:
    """Return the names of the rewards that a dataset has, sorted, but for the one collected."""
    return sorted(path.parent.name for path in folder.glob("rewards/*/complete.json"))


def apply_rewards(folder: Path, stored: Stored, name: str) -> tuple[Json, list[Sample], str]:
    """Return a dataset's manifest, samples and digest with a named reward instead of the collected.

    Raises:
        DatasetError: It has no such reward, or a file is not the one written.
    """
    names = list_rewards(folder)
    if name not in names:
        has = ", ".join(names) or "none besides the one collected"
        raise DatasetError("reward_name", f"{name!r} is not in {str(folder)!r}, which has {has}")
    place = folder / "rewards" / name
    hashes = read_json(place / "complete.json").get("sha256")
    wanted = {"manifest.json", *(f"{shard}.jsonl" for shard in stored.shards)}
    if not isinstance(hashes, dict) or not wanted <= hashes.keys():
        raise DatasetError("reward_name", f"{str(place)!r} is not whole: remove it")
    for each in sorted(wanted):
        path = place / each
        if not path.is_file() or hash_file(path) != hashes[each]:
            raise DatasetError("reward_name", f"{str(path)!r} is missing or was changed")
    about = read_json(place / "manifest.json")
    if about.pop("dataset", None) != stored.digest:
        raise DatasetError("reward_name", f"{name!r} is of other samples: remove {str(place)!r}")
    samples = [
        replace(each, **rated)
        for shard, those in stored.shards.items()
        for each, rated in zip(those, read_lines(place / f"{shard}.jsonl"), strict=True)
    ]
    manifest = {k: v for k, v in stored.manifest.items() if k != "reward_source"}
    return {**manifest, **about, "reward_name": name}, samples, hash_file(place / "complete.json")


class NamedRewardWriter:
    """Adds a reward to a finished dataset, or goes on with one that was begun.

    A context manager: while it is open no other process can write there.

    Args:
        folder: Of the dataset.
        stored: What it holds.
        name: Of the reward, fit for a folder's.
        about: What the reward is, JSON-able; ``reward`` at least.

    Raises:
        DatasetError: Another process writes there, the name cannot be one, or it is that of another
            reward.
    """

    def __init__(self, folder: Path, stored: Stored, name: str, about: Json) -> None:
        if not _NAME.fullmatch(name):
            raise DatasetError(
                "name", f"must be letters, digits, '_', '-' and '.', at most 64, got {name!r}"
            )
        self._shards = stored.shards
        self._place = folder / "rewards" / name
        self._lock = lock_folder(folder)
        try:
            self._begin({**about, "dataset": stored.digest})
        except BaseException:  # an interrupt too must release the lock
            self._lock.close()
            raise

    def _begin(self, manifest: Json) -> None:
        self._place.mkdir(parents=True, exist_ok=True)
        for torn in self._place.glob(f"{TORN_PREFIX}*"):
            torn.unlink()
        path = self._place / "manifest.json"
        if len(self.missing()) == len(self._shards):  # begun or not, there is nothing to spoil
            write_file(path, _dump(manifest))
        begun = read_json(path)
        if begun != json.loads(json.dumps(manifest)):
            raise DatasetError(
                "name",
                f"{self._place.name!r} is that of reward {begun.get('reward')!r}, as it was when "
                f"{str(self._place)!r} was begun: choose another name, or remove that folder",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def missing(self) -> list[str]:
        """Return the names of the shards that are not there yet, in order."""
        return [shard for shard in self._shards if not self._path(shard).exists()]

    def write(self, shard: str, rated: Sequence[tuple[float | None, str | None]]) -> None:
        """Add a shard, whole or not at all: reward and reason of each of its samples."""
        assert len(rated) == len(self._shards[shard])
        rows = ({"reward": reward, "reason": reason} for reward, reason in rated)
        write_file(self._path(shard), "".join(json.dumps(row) + "\n" for row in rows).encode())

    def finish(self) -> None:
        """Record the hash of every file; the reward can be used from now on."""
        paths = [self._place / "manifest.json", *map(self._path, self._shards)]
        hashes = {path.name: hash_file(path) for path in paths}
        write_file(self._place / "complete.json", _dump({"sha256": hashes}))

    def _path(self, shard: str) -> Path:
        return self._place / f"{shard}.jsonl"


def _dump(value: Json) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
