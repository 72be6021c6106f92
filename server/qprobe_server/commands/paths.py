"""Paths on a command line, checked before anything is read: what is there, what is wanted."""

from pathlib import Path

from qprobe_server.errors import StartupError

__all__ = ["check_dataset", "check_output_file", "check_output_folder", "check_probe"]


def check_probe(path: Path, *, order: str) -> None:
    """Check that a path can be a probe's file.

    Args:
        path: As it was given.
        order: The command's arguments in their order; a folder may have been given for another.

    Raises:
        StartupError: It is not there, or a folder.
    """
    if path.is_dir():
        raise StartupError(
            f"{str(path)!r} is a folder, a probe's file is wanted; the order is {order}"
        )
    if not path.exists():
        raise StartupError(f"{str(path)!r} is not there: a probe's file is wanted")


def check_dataset(path: Path, *, order: str | None = None) -> None:
    """Check that a path can be a dataset's folder; see ``check_probe``."""
    if path.is_file():
        hint = f"; the order is {order}" if order else ""
        raise StartupError(f"{str(path)!r} is a file, a dataset's folder is wanted{hint}")
    if not path.exists():
        raise StartupError(f"{str(path)!r} is not there: a dataset's folder is wanted")


def check_output_file(flag: str, path: Path) -> None:
    """Check that a file can be written.

    Raises:
        StartupError: It is a folder, or in none that is there.
    """
    if path.is_dir():
        raise StartupError(f"{flag} {str(path)!r} is a folder, it must be a file")
    if not path.parent.is_dir():
        raise StartupError(f"{flag} {str(path)!r} must be a file in a folder that is there")


def check_output_folder(flag: str, path: Path) -> None:
    """Check that files can be written into a folder, which may not be there yet.

    Raises:
        StartupError: It is something else.
    """
    if path.exists() and not path.is_dir():
        raise StartupError(f"{flag} {str(path)!r} is a file, it must be a folder")
