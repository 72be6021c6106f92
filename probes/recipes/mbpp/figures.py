"""Plots of the tables: lines over a number."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from qprobe.reports.axes import LIGHT, finish_plot, start_plot, tick_log, to_png

__all__ = ["Line", "draw_lines"]

# Places and values.
Line = tuple[Sequence[float], Sequence[float]]
_STYLES = ("o-", "s--", "^-.", "D:")


def draw_lines(
    path: Path, title: str, xlabel: str, lines: Mapping[str, Line], *, is_log: bool
) -> None:
    """Write a PNG of lines with their names; values that are not finite are left out.

    Args:
        path: Of the file.
        title: Above.
        xlabel: Below.
        lines: At most twelve.
        is_log: Whether the places are on a logarithmic axis, with ticks at those of all lines.
    """
    figure, axes = start_plot(LIGHT, title, xlabel)
    colours = (LIGHT.first, LIGHT.second, LIGHT.third)
    for number, (name, (places, values)) in enumerate(lines.items()):
        points = [pair for pair in zip(places, values, strict=True) if math.isfinite(pair[1])]
        style = _STYLES[number // len(colours)]
        axes.plot(
            [place for place, _ in points],
            [value for _, value in points],
            style,
            color=colours[number % len(colours)],
            ms=4,
            lw=1.6,
            label=name,
        )
    if is_log:
        ticks = sorted({place for places, _ in lines.values() for place in places})
        tick_log(axes, ticks, [f"{tick:g}" for tick in ticks])
    path.write_bytes(to_png(finish_plot(figure, axes, LIGHT)))
