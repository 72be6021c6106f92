"""When a service that refuses for now wants to be asked again. No HTTP client in here."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["read_pause"]


def read_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date; None without, or if it is bad.

    Args:
        headers: By name, in whatever case the mapping takes for ``retry-after``.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (zoned - datetime.now(UTC)).total_seconds())
