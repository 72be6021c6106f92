"""The look that all plots share: colours of light and dark pages, axes, ticks, and the PNG."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

__all__ = ["DARK", "LIGHT", "Theme", "finish_plot", "plot_band", "start_plot", "tick_log", "to_png"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Theme:
    """Colours: of the page, text, secondary text, grid, and of up to three series."""

    page: str
    ink: str
    muted: str
    grid: str
    first: str
    second: str
    third: str


LIGHT = Theme("#ffffff", "#1d2630", "#66727f", "#e4e8ec", "#1f63b0", "#c05f22", "#3b8068")
DARK = Theme("#14181d", "#e7eaed", "#9ba6b2", "#2c343d", "#74b4f5", "#ef9f6b", "#7fcbab")

# Inches; small, so that 10 pt text can still be read where a phone shrinks the picture to 340 px.
_SIZE = (5.6, 3.7)
_DPI = 160


def to_png(figure: Figure) -> bytes:
    """Render a figure, 160 dots an inch, in 256 colours: a third of the bytes, and looks alike."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def start_plot(theme: Theme, title: str, xlabel: str) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; ``finish_plot`` takes them once all is drawn."""
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor=theme.page)
    axes = figure.add_subplot(facecolor=theme.page)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=12, fontweight="bold", pad=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("expected reward")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)
    axes.grid(axis="y", color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def finish_plot(figure: Figure, axes: Axes, theme: Theme) -> Figure:
    """Return the figure with its labels coloured and its legend, if there is any, below."""
    axes.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=9.5, length=3)
    axes.tick_params(axis="y", length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme.muted, fontsize=10)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(
            loc="outside lower left", ncols=2, frameon=False, labelcolor=theme.ink, fontsize=9
        )
    return figure


def plot_band(
    axes: Axes, places: Sequence[float], rows: Sequence[Json], *, color: str, label: str
) -> None:
    """Draw the ``reward`` of rows as a line, between their ``low`` and ``high`` as a band."""
    lows, highs = [row["low"] for row in rows], [row["high"] for row in rows]
    axes.fill_between(places, lows, highs, color=color, alpha=0.18, lw=0, label="95 % interval")
    rewards = [row["reward"] for row in rows]
    axes.plot(places, rewards, color=color, marker="o", ms=4, lw=1.8, label=label)


def tick_log(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """Make the axis logarithmic with a tick at each place, unlabelled if the next is too near."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    nearest = (places[-1] / places[0]) ** 0.05 if len(places) > 1 else 1.0
    texts: list[str] = []
    right = math.inf
    for place, label in zip(reversed(places), reversed(labels), strict=True):
        fits = place * nearest <= right
        texts.insert(0, label if fits else "")
        right = place if fits else right
    axes.set_xticklabels(texts)
