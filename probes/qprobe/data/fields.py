"""Reading a field of a row, and showing what is wrong with it."""

from qprobe.errors import RowError

__all__ = ["read_text", "show"]


def show(value: object) -> str:
    """Return a value, shortened, for an error message."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def read_text(field: str, value: object) -> str:
    """Return the value of a field that must be text, perhaps none.

    Raises:
        RowError: It is no string, or no Unicode text.
    """
    if not isinstance(value, str):
        raise RowError(field, f"must be a string, got {show(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can say half a surrogate pair, no tokenizer takes it
        raise RowError(field, f"is not Unicode text: {error.reason}, got {show(value)}") from error
    return value
