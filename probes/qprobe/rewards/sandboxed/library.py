"""Imports the standard library without asking for any file's status by name.

seccomp cannot see a name, and Landlock does not mind ``stat``: so the calls that take one are
forbidden as a whole, and Python's import system gets a file's status from its descriptor, which
Landlock lets be had of what may be read. Leans on names of ``importlib._bootstrap_external``, of
Python 3.11 to 3.13; ``confinement`` proves that an import works before anything is run.
"""

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import PathFinder
from typing import Any

__all__ = ["import_by_descriptor", "readable"]

_FSTAT = {"x86_64": 5, "aarch64": 80}
# struct stat of the kernel: where st_mode, st_size and st_mtime are.
_OFFSETS = {"x86_64": (24, 48, 88), "aarch64": (16, 48, 88)}
_STAT_BYTES = 144
# Of no use here, or slow to load.
_UNUSED = ("_test", "xx", "_xx", "_tkinter", "_curses", "readline", "nis", "_ctypes_test", "_dbm",
           "_gdbm", "spwd", "ossaudiodev", "audioop")  # fmt: skip
# Packages of others; and what no answer needs of the library's own.
_LEFT_OUT = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3",
    "ensurepip", "turtledemo", "tkinter", "distutils", "pydoc_data", "venv",
}  # fmt: skip
_NOT_OF_THE_LIBRARY = ("site-packages", "dist-packages")


class _Status:
    """What the import system asks of a status."""

    def __init__(self, mode: int, size: int, modified_s: int) -> None:
        self.st_mode, self.st_size, self.st_mtime = mode, size, modified_s


def _folders() -> list[str]:
    """Return where the library's modules are; the first holds packages of others, too."""
    return [path for path in sys.path if os.path.isdir(path)]  # noqa: PTH112 pathlib costs 10 ms


def _with_packages(folders: list[str]) -> Iterator[str]:
    for folder in folders:
        yield folder
        with os.scandir(folder) as entries:
            inner = [each.path for each in entries if each.name not in _LEFT_OUT and each.is_dir()]
        yield from _with_packages(inner)


def import_by_descriptor() -> None:
    """Have all imports from now on need no status by name, nor files other than ``readable()``."""
    known: dict[str, Any] = {}
    for folder in _with_packages(_folders()):
        known[folder] = os.stat(folder)  # noqa: PTH116 likewise
        # It lists the folder now, and again only if its time of change is another.
        PathFinder.find_spec("no_such_module", [folder])
    _load_extensions()
    libc = ctypes.CDLL(None, use_errno=True)
    machine = os.uname().machine

    def status(path: str) -> Any:  # noqa: ANN401 of either kind
        if path in known:
            return known[path]
        descriptor = os.open(path or ".", os.O_RDONLY | os.O_CLOEXEC)
        try:
            buffer = ctypes.create_string_buffer(_STAT_BYTES)
            if libc.syscall(_FSTAT[machine], descriptor, buffer) < 0:
                raise OSError(ctypes.get_errno(), "fstat", path)
        finally:
            os.close(descriptor)
        mode, size, modified = _OFFSETS[machine]
        return _Status(
            int.from_bytes(buffer.raw[mode : mode + 4], "little"),
            int.from_bytes(buffer.raw[size : size + 8], "little"),
            int.from_bytes(buffer.raw[modified : modified + 8], "little"),
        )

    external: Any = importlib.import_module("importlib._bootstrap_external")
    external._path_stat = status


def _load_extensions() -> None:
    """Load the shared libraries of modules, as the loader asks for their status by name."""
    for folder in _folders():
        for name in os.listdir(folder):  # noqa: PTH208 likewise
            if name.endswith(".so") and not name.startswith(_UNUSED):
                with suppress(OSError):  # one whose own libraries are not there
                    ctypes.CDLL(f"{folder}/{name}")


def readable() -> list[str]:
    """Return the files and folders of the standard library, without other packages."""
    return [
        f"{folder}/{name}"
        for folder in _folders()
        for name in os.listdir(folder)  # noqa: PTH208 likewise
        if name not in _NOT_OF_THE_LIBRARY
    ]
