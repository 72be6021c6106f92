"""When a service that refuses for now wants to be asked again. No HTTP client in here."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["read_pause"]

# A year: nobody waits for longer.
_MAX_S = 365 * 24 * 3600.0


def read_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date, from 0 to those of a year.

    None without, or if it is bad.

    Args:
        headers: By name, in whatever case the mapping takes for ``retry-after``.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), _MAX_S)  # hundreds of digits are infinite
    try:
        until = parsedate_to_datetime(text)
        zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
        pause_s = (zoned - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):  # also of a year that no calendar has
        return None
    return min(max(0.0, pause_s), _MAX_S)
