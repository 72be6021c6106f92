"""Checks that the headers of all formats have in common."""

from collections.abc import Mapping
from typing import Any

from qprobe.errors import ProbeFileError
from qprobe.probe.schedule import Step

__all__ = ["check_fields", "read_lists"]

Json = dict[str, Any]


def check_fields(place: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Check that an object of a header has the fields that it must have, and no others.

    Args:
        place: What their names begin with in an error.
        given: The object.
        known: The fields.

    Raises:
        ProbeFileError: It has not.
    """
    for name in sorted(given.keys() - known):
        raise ProbeFileError(f"{place}{name}", "is not a field of a probe's header")
    for name in sorted(known - given.keys()):
        raise ProbeFileError(f"{place}{name}", "is missing from the probe's header")


def read_lists(header: Json) -> Json:
    """Return a header with its lists as ``ProbeInfo`` takes them; it checks what they hold.

    Raises:
        ProbeFileError: One is no list, or no list of steps.
    """
    for name in ("checkpoints", "schedule"):
        if not isinstance(header[name], list):
            raise ProbeFileError(name, f"must be a list, got {header[name]!r}")
    steps = []
    for index, step in enumerate(header["schedule"]):
        if not isinstance(step, dict) or step.keys() != {"tokens", "keep"}:
            raise ProbeFileError(
                f"schedule.{index}", f"must be an object of tokens and keep, got {step!r}"
            )
        steps.append(Step(**step))
    return {**header, "checkpoints": tuple(header["checkpoints"]), "schedule": tuple(steps)}
