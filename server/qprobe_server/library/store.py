"""Uploaded probes on disk, so that a server that starts again has them.

::

    lock                           held by the server that uses the folder
    <SHA-256 of a name>.json       {"name", "version", "created"}: what the name means
    <SHA-256 of a file>.safetensors

No part of a path comes from a request. Each file is written whole under another name, made durable
and renamed, the probe's before the one that refers to it.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from qprobe import ProbeFileError
from qprobe.files import TORN_PREFIX, write_file
from qprobe_server.errors import StartupError
from qprobe_server.library.registry import LoadedProbe, read_probe

__all__ = ["ProbeStore"]


class ProbeStore:
    """One folder of uploaded probes; blocks on the disk.

    Args:
        folder: Made if it does not exist.

    Raises:
        StartupError: It cannot be used, or another server uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._versions: dict[str, str] = {}  # by name
        self._num_names: Counter[str] = Counter()  # by version
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise StartupError(f"--probe-dir {str(folder)!r} cannot be used: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StartupError(f"--probe-dir {str(folder)!r} is used by another server") from error

    def close(self) -> None:
        """Let another server use the folder."""
        self._lock.close()

    def restore(self) -> list[LoadedProbe]:
        """Read all probes, in the order of their first upload, and remove what is left of a crash.

        Raises:
            StartupError: A file is missing or was changed; it is named.
        """
        loaded = []
        for path in self._folder.glob("*.json"):
            try:
                entry = json.loads(path.read_text("utf-8"))
                name, version, created = entry["name"], entry["version"], int(entry["created"])
                probe = read_probe(name, self._blob(version).read_bytes(), created=created)
            except (OSError, ValueError, KeyError, TypeError, ProbeFileError) as error:
                raise StartupError(f"--probe-dir: {str(path)!r}: {error}") from error
            if probe.version != version or path != self._entry(name):
                raise StartupError(
                    f"--probe-dir: {str(self._blob(version))!r} is not what was uploaded"
                )
            self._versions[name] = version
            self._num_names[version] += 1
            loaded.append(probe)
        for path in self._folder.iterdir():
            unused = path.suffix == ".safetensors" and not self._num_names[path.stem]
            if unused or path.name.startswith(TORN_PREFIX):
                path.unlink()
        return sorted(loaded, key=lambda each: (each.created, each.name))

    def save(self, probe: LoadedProbe, data: bytes) -> None:
        """Write a probe; a former one of its name is replaced.

        Raises:
            OSError: It cannot be written; the former one is still there.
        """
        write_file(self._blob(probe.version), data)
        entry = {"name": probe.name, "version": probe.version, "created": probe.created}
        write_file(self._entry(probe.name), json.dumps(entry).encode())
        former = self._versions.get(probe.name)
        self._versions[probe.name] = probe.version
        self._num_names[probe.version] += 1
        if former is not None:
            self._release(former)

    def delete(self, name: str) -> None:
        """Remove the probe of that name; there need be none.

        Raises:
            OSError: It cannot be removed.
        """
        self._entry(name).unlink(missing_ok=True)
        self._sync_folder()
        former = self._versions.pop(name, None)
        if former is not None:
            self._release(former)

    def _release(self, version: str) -> None:
        self._num_names[version] -= 1
        if not self._num_names[version]:
            del self._num_names[version]
            self._blob(version).unlink(missing_ok=True)

    def _entry(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

    def _blob(self, version: str) -> Path:
        return self._folder / f"{version}.safetensors"

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
