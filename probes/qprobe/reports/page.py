"""The frame of every page: one HTML file with all inside, its plots and its figures as text."""

import base64
from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from qprobe.reports.axes import DARK, LIGHT, Theme, to_png

__all__ = ["INTERVAL", "format_figure", "make_plot", "render_page"]

Json = dict[str, Any]

INTERVAL = "95 % interval"
_TEMPLATE = "page.html.jinja"


def render_page(content: Json) -> str:
    """Return an HTML page that needs no other file.

    Args:
        content: All that the template names, but for the themes. Text is escaped.
    """
    text = (resources.files("qprobe.reports") / _TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
    return template.render(content, light=LIGHT, dark=DARK)


def make_plot(
    name: str, draw: Callable[[Theme], Figure], *, caption: str
) -> tuple[dict[str, str], bytes]:
    """Return a plot as ``render_page`` takes it, for light and dark pages, and the light PNG."""
    light = to_png(draw(LIGHT))
    plot = {
        "name": name,
        "light": _inline(light),
        "dark": _inline(to_png(draw(DARK))),
        "alt": f"Plot {name.replace('_', ' ')}; the figures are in the tables",
        "caption": caption,
    }
    return plot, light


def format_figure(row: Json, field: str) -> tuple[str, str]:
    """Return an estimate and its interval as text; a ``difference`` is signed, a ``share`` in %."""
    sign = "+" if field == "difference" else ""
    if field == "share":
        return f"{row[field]:.0%}", f"{row['low']:.0%} to {row['high']:.0%}"
    value, low, high = (f"{row[name]:{sign}.3f}" for name in (field, "low", "high"))
    return value, f"{low} to {high}"


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
