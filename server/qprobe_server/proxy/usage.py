"""What an upstream counts for a reply: read with care, as it may be anything, and added up."""

from collections.abc import Mapping, Sequence

__all__ = ["Usage", "add_usages", "count_of", "read_usage"]

Number = int | float
Usage = dict[str, Number | dict[str, Number]]

# Beyond it floats, such as those of metrics, do not know every integer.
_MAX = 2**53


def read_usage(value: object) -> Usage | None:
    """Return what is counted: numbers, and objects of numbers; None if nothing is said.

    What no count can be is left out: a candidate is none the worse for it.
    """
    if not isinstance(value, Mapping):
        return None
    usage: Usage = {}
    for name, each in value.items():
        if _is_number(each):
            usage[name] = each
        elif isinstance(each, Mapping):
            usage[name] = {inner: number for inner, number in each.items() if _is_number(number)}
    return usage


def count_of(usage: Usage | None, *names: str) -> int | None:
    """Return the first of these counts that is there; None without one."""
    found = (usage.get(name) for name in names) if usage else ()
    return next((each for each in found if isinstance(each, int)), None)


def add_usages(usages: Sequence[Usage]) -> Usage | None:
    """Add up field by field, also within objects; None of nothing.

    Of a field that is a number here and an object there, the first counts.
    """
    total: Usage = {}
    for usage in usages:
        for name, value in usage.items():
            former = total.get(name)
            if isinstance(value, dict):
                if former is None or isinstance(former, dict):
                    total[name] = _add(former or {}, value)
            elif former is None or not isinstance(former, dict):
                total[name] = (former or 0) + value
    return total if usages else None


def _add(one: Mapping[str, Number], other: Mapping[str, Number]) -> dict[str, Number]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX
