r"""One way of writing for what numbers are written in: LaTeX, Unicode, markdown, thousands."""

import re

__all__ = ["tidy"]


def tidy(text: str) -> str:
    r"""Return a text with one way of writing for each thing, and without what only looks.

    ``9\,500`` becomes ``9500``, ``\dfrac`` and ``\tfrac`` become ``\frac``; Unicode's fractions and
    powers are spelled out. Time is linear, whatever a model writes.
    """
    text = _POWER.sub(lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = text.translate(_CHARACTERS).replace("\\!", "")
    text = _THOUSANDS.sub(lambda found: _BETWEEN.sub("", found[0]), text)
    text = text.replace("{,}", ".")  # what is left of them is decimal
    text = _SCALED.sub(lambda found: found[1] + _SCALES[found[2].lower()], text)
    for pattern, replacement in _SAME:
        text = pattern.sub(replacement, text)
    return text


_SUPERSCRIPTS = {
    **{0x2070 + digit: str(digit) for digit in (0, *range(4, 10))},
    ord("\N{SUPERSCRIPT ONE}"): "1",
    ord("\N{SUPERSCRIPT TWO}"): "2",
    ord("\N{SUPERSCRIPT THREE}"): "3",
    ord("\N{SUPERSCRIPT MINUS}"): "-",
}
_POWER = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_FRACTIONS = {
    "\N{VULGAR FRACTION ONE HALF}": "1/2",
    "\N{VULGAR FRACTION ONE QUARTER}": "1/4",
    "\N{VULGAR FRACTION THREE QUARTERS}": "3/4",
    "\N{VULGAR FRACTION ONE THIRD}": "1/3",
    "\N{VULGAR FRACTION TWO THIRDS}": "2/3",
    "\N{VULGAR FRACTION ONE FIFTH}": "1/5",
    "\N{VULGAR FRACTION TWO FIFTHS}": "2/5",
    "\N{VULGAR FRACTION THREE FIFTHS}": "3/5",
    "\N{VULGAR FRACTION FOUR FIFTHS}": "4/5",
    "\N{VULGAR FRACTION ONE SIXTH}": "1/6",
    "\N{VULGAR FRACTION FIVE SIXTHS}": "5/6",
    "\N{VULGAR FRACTION ONE EIGHTH}": "1/8",
    "\N{VULGAR FRACTION THREE EIGHTHS}": "3/8",
    "\N{VULGAR FRACTION FIVE EIGHTHS}": "5/8",
    "\N{VULGAR FRACTION SEVEN EIGHTHS}": "7/8",
}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{FULLWIDTH HYPHEN-MINUS}", "-"),
        **dict.fromkeys("\N{FRACTION SLASH}\N{DIVISION SLASH}\N{DIVISION SIGN}", "/"),
        **dict.fromkeys("\N{MULTIPLICATION SIGN}\N{MIDDLE DOT}\N{DOT OPERATOR}", "*"),
        **{sign: f" {spelled} " for sign, spelled in _FRACTIONS.items()},
        "\N{DEGREE SIGN}": "",
        "\N{SQUARE ROOT}": "\\sqrt ",
        "\N{GREEK SMALL LETTER PI}": "\\pi ",
        "\N{ALMOST EQUAL TO}": "=",
        "`": " ",
    }
)
# Between groups of three digits. A plain space is not among them: "in room 9 500 people".
_BETWEEN = re.compile(
    r"\\[,;: ]|\\thinspace\s?|\{,\}|[~'_\u2019\N{NO-BREAK SPACE}\N{THIN SPACE}"
    r"\N{NARROW NO-BREAK SPACE}\N{FIGURE SPACE}\N{SIX-PER-EM SPACE}]"
)
_THOUSANDS = re.compile(rf"(?<![\w.,])\d{{1,3}}(?:(?:{_BETWEEN.pattern})\d{{3}})+(?!\d)", re.ASCII)
_CURRENCY = r"\\?[$\u20ac\u00a3\u00a5]"
_SCALES = {"k": "e3", "m": "e6", "b": "e9"}
# $5K; but $5k$ is LaTeX.
_SCALED = re.compile(
    rf"({_CURRENCY}\s?\d[\d,]{{0,20}}(?:\.\d{{1,9}})?)([kKMB])(?![\w$])(?!\s?[-+*/=^<>])"
)
_SAME = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\approx(?![A-Za-z])", "="),
        (r"\\(?:left|right|displaystyle|thinspace|quad)(?![A-Za-z])|\\[,;: ]|~", " "),
        (r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})", ""),
        (r"\\%", "%"),
        (rf"(?<=[-+]){_CURRENCY}", ""),
        (rf"{_CURRENCY}|\\[()\[\]]", " "),
        (r"(?<=\d)\*\*(?=\d)", "^"),  # Python's power; else two are markdown's
        (r"\*\*+", " "),
    )
]
