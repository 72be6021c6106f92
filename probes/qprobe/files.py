"""Writing files so that each appears whole under its name, or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["TORN_PREFIX", "make_folder", "write_file", "write_files"]

# Of the name under which a file is written before it gets its own; what a crash leaves has it.
TORN_PREFIX = ".part-"
_MODE = 0o644


def make_folder(path: Path) -> None:
    """Make a folder, durably, in one that is there; it may be there already."""
    path.mkdir(exist_ok=True)
    _sync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write one file, durably; one that was there is replaced.

    Raises:
        OSError: The folder is not there or cannot be written. An older file is as it was.
    """
    write_files(path.parent, {path.name: data})


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of one folder, durably; they appear in the order given, once all are written.

    Raises:
        OSError: The folder is not there or cannot be written. Older files are as they were, or
            replaced by whole ones.
    """
    # Inside the folder, hence on the same file system, where a rename is atomic.
    torn: dict[str, Path] = {}
    try:
        for name, data in files.items():
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=TORN_PREFIX)
            torn[name] = Path(temporary)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), _MODE)
                os.fsync(file.fileno())
        for name, path in torn.items():
            path.replace(folder / name)
    except BaseException:  # an interrupt too must leave no temporary file behind
        for path in torn.values():
            path.unlink(missing_ok=True)
        raise
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
