"""The plots of an evaluation: each turns figures of ``metrics.json`` into one picture.

Every function takes a theme, for light or dark pages, and returns a new Figure: pyplot and its
global state are not touched.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qprobe.reports.axes import Theme, finish_plot, plot_band, start_plot, tick_log
from qprobe.reports.verdict import BASELINES

__all__ = ["PLOTS", "draw_schedule", "draw_sweep"]

Json = dict[str, Any]


def draw_k(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward against k: the policy, the ceiling, the base model and the baselines."""
    figure, axes = start_plot(theme, "Reward by number of samples", "samples to choose among, k")
    rows = [row for row in metrics["resampled"] if row["beta"] == metrics["beta"]]
    rows.sort(key=lambda row: int(row["k"]))
    ks = [row["k"] for row in rows]
    ceilings = [row["reward"] for row in metrics["ceilings"]]
    axes.plot(ks, ceilings, color=theme.third, ls="--", lw=1.4, label="ceiling: best by reward")
    plot_band(axes, ks, rows, color=theme.first, label=f"probe, beta = {metrics['beta']:g}")
    _draw_base(axes, metrics, theme)
    markers = zip("Ds^Pv", BASELINES.items(), strict=True)
    for marker, (name, label) in markers:
        if name in metrics["baselines"]:
            row = metrics["baselines"][name]
            x = 1 if name == "greedy" else metrics["k"]
            axes.plot([x], [row["reward"]], marker, color=theme.second, ms=5, label=label)
    tick_log(axes, ks, [str(k) for k in ks])
    return finish_plot(figure, axes, theme)


def draw_beta(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward against beta at the probe's k, from the best by score to the base model."""
    figure, axes = start_plot(
        theme, f"Reward by temperature, k = {metrics['k']}", "beta, in score units"
    )
    rows = [row for row in metrics["resampled"] if row["k"] == metrics["k"]]
    rows.sort(key=lambda row: float(row["beta"]))
    betas = [row["beta"] for row in rows]
    smallest = min(beta for beta in betas if beta > 0)
    places = [beta or smallest / 2.5 for beta in betas]  # a log axis has no 0
    plot_band(axes, places, rows, color=theme.first, label="probe")
    chosen = betas.index(metrics["beta"])
    axes.plot(
        [places[chosen]],
        [rows[chosen]["reward"]],
        "o",
        color=theme.first,
        mfc=theme.page,
        ms=9,
        mew=1.8,
        label=f"the probe's beta, {metrics['beta']:g}",
    )
    _draw_base(axes, metrics, theme)
    axes.axhline(metrics["ceiling"]["reward"], color=theme.third, ls="--", lw=1.4, label="ceiling")
    tick_log(axes, places, [f"{beta:g}" for beta in betas])
    return finish_plot(figure, axes, theme)


def draw_kl(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward against the KL spent, by beta and by k."""
    figure, axes = start_plot(
        theme, "Reward by distance from the base model", "KL(policy || base model), nats"
    )
    best, frontier = metrics["kl"]["best_of_k"], metrics["kl"]["frontier"]
    _plot_line(axes, best, color=theme.second, marker="s", label="best of k, by k")
    label = f"k = {metrics['k']}, by beta"
    _plot_line(axes, frontier, color=theme.first, marker="o", label=label)
    used = next(row for row in frontier if row["beta"] == metrics["beta"])
    label = f"the probe's beta, {metrics['beta']:g}"
    _mark_used(axes, used["kl"], used["reward"], theme, label)
    _draw_base(axes, metrics, theme)
    return finish_plot(figure, axes, theme)


def draw_learning_curve(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward against the number of training prompts."""
    figure, axes = start_plot(theme, "Reward by size of the training set", "training prompts")
    rows = metrics["learning_curve"]
    sizes = [row["num_prompts"] for row in rows]
    for row in rows:
        runs = row["runs"]
        axes.plot([row["num_prompts"]] * len(runs), runs, ".", color=theme.first, alpha=0.45, ms=5)
    plot_band(axes, sizes, rows, color=theme.first, label="probe: mean of the orders (dots)")
    _draw_base(axes, metrics, theme)
    axes.axhline(metrics["ceiling"]["reward"], color=theme.third, ls="--", lw=1.4, label="ceiling")
    tick_log(axes, sizes, [str(size) for size in sizes])
    return finish_plot(figure, axes, theme)


def draw_calibration(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward above the prompt's mean against the score above the prompt's mean."""
    figure, axes = start_plot(theme, "What a score is worth", "score minus the prompt's mean score")
    axes.set_ylabel("reward minus the prompt's mean")
    rows = metrics["calibration"]
    axes.axhline(0, color=theme.muted, lw=1)
    axes.axvline(0, color=theme.muted, lw=1)
    scores = [row["score"] for row in rows]
    plot_band(axes, scores, rows, color=theme.first, label="mean of each tenth of the samples")
    return finish_plot(figure, axes, theme)


def draw_correlation(metrics: Json, theme: Theme) -> Figure:
    """Draw how the rank correlation of score and reward is spread over prompts."""
    figure, axes = start_plot(theme, "Score against reward, by prompt", "Spearman correlation")
    axes.set_ylabel("prompts")
    histogram = metrics["correlation"]["histogram"]
    edges = np.array(histogram["edges"])
    axes.bar(
        edges[:-1],
        histogram["counts"],
        width=np.diff(edges) * 0.92,
        align="edge",
        color=theme.first,
        alpha=0.75,
    )
    axes.axvline(0, color=theme.muted, lw=1)
    mean = metrics["correlation"]["spearman"]
    if mean is not None:
        label = f"mean {mean['mean']:.2f}, band: 95 % interval"
        axes.axvspan(mean["low"], mean["high"], color=theme.second, alpha=0.25, lw=0)
        axes.axvline(mean["mean"], color=theme.second, lw=1.8, label=label)
    axes.set_xlim(-1, 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return finish_plot(figure, axes, theme)


def draw_reliability(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward that came against the reward that the probe's confidence said."""
    figure, axes = start_plot(theme, "What a confidence is worth", "expected reward, as said")
    axes.set_ylabel("mean reward, as it came")
    rows = metrics["confidence"]["bins"]
    said = [row["said"] for row in rows]
    ends = [min(said), max(said)]
    axes.plot(ends, ends, color=theme.muted, ls=":", lw=1.6, label="as said")
    plot_band(axes, said, rows, color=theme.first, label="mean of each tenth of the samples")
    return finish_plot(figure, axes, theme)


def draw_kept(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward of single answers against the share of them that is kept."""
    figure, axes = start_plot(
        theme, "Reward of the most confident answers, k = 1", "share of the answers kept, %"
    )
    axes.set_ylabel("mean reward")
    rows = metrics["confidence"]["kept"]
    shares = [100 * row["share"] for row in rows]
    plot_band(axes, shares, rows, color=theme.first, label="those of the highest confidence")
    _draw_base(axes, metrics, theme)
    axes.invert_xaxis()
    return finish_plot(figure, axes, theme)


def draw_sweep(cells: Sequence[Json], theme: Theme) -> Figure:
    """Draw the cross-validated reward of all terms (rows) with every objective (columns)."""
    terms = list(dict.fromkeys(cell["terms"] for cell in cells))
    objectives = list(dict.fromkeys(cell["objective"] for cell in cells))
    values = np.full((len(terms), len(objectives)), np.nan)
    for cell in cells:
        if cell["reward"] is not None:
            place = terms.index(cell["terms"]), objectives.index(cell["objective"])
            values[place] = cell["reward"]
    figure, axes = start_plot(theme, "Cross-validated reward", "objective")
    labels = 0.1 * max(map(len, terms))
    figure.set_size_inches(1.5 + labels + 0.75 * len(objectives), 1.4 + 0.36 * len(terms))
    axes.set_ylabel("layer/pooling/window")
    axes.grid(visible=False)
    colours = LinearSegmentedColormap.from_list("reward", [theme.page, theme.first])
    axes.imshow(values, cmap=colours, aspect="auto", vmin=_floor(values))
    best = np.unravel_index(np.nanargmax(values), values.shape)
    span = max(np.nanmax(values) - _floor(values), 1e-12)
    for (row, column), value in np.ndenumerate(values):
        dark_cell = np.isfinite(value) and (value - _floor(values)) / span > 0.55
        axes.text(
            column,
            row,
            "n/a" if np.isnan(value) else f"{value:.3f}",
            ha="center",
            va="center",
            color=theme.page if dark_cell else theme.ink,
            weight="bold" if (row, column) == best else "normal",
        )
    axes.set_xticks(range(len(objectives)), objectives)
    axes.set_yticks(range(len(terms)), terms)
    return finish_plot(figure, axes, theme)


def draw_schedule(metrics: Json, theme: Theme) -> Figure:
    """Draw the reward against the tokens spent: schedules, and whole candidates.

    Args:
        metrics: What ``measure_schedule`` returned.
        theme: Of the page.
    """
    figure, axes = start_plot(theme, "Reward by tokens spent", "generated tokens per prompt")
    whole = metrics["best_of_k"]
    _plot_tokens(axes, whole, color=theme.second, style="s-", label="k whole candidates, by k")
    # Above, as inside they would cover what is drawn.
    top = axes.secondary_xaxis("top")
    named = [row for row in whole if row["k"] in (1, 2, 4, 8, 16, 32, 64)]
    labels = [f"k = {row['k']}" if row["k"] == 1 else f"{row['k']}" for row in named]
    top.set_xticks([row["tokens"] for row in named], labels)
    top.tick_params(colors=theme.second, labelsize=9, length=3)
    top.spines["top"].set_visible(False)
    frontier = [row["unseen"] for row in metrics["frontier"]]
    _plot_tokens(axes, frontier, color=theme.first, style="o", label="best schedules of the choice")
    chosen = metrics["chosen"]
    label = f"chosen: {chosen['schedule'] or 'none'}, 95 % interval"
    full = next(row for row in whole if row["k"] == metrics["k"])
    for row, colour in ((full, theme.second), (chosen["unseen"], theme.first)):
        axes.plot([row["tokens"]] * 2, [row["low"], row["high"]], color=colour, lw=1.4, alpha=0.6)
    _mark_used(axes, chosen["unseen"]["tokens"], chosen["unseen"]["reward"], theme, label)
    _draw_base(axes, metrics, theme)
    axes.set_xlim(left=0)
    return finish_plot(figure, axes, theme)


# What a report shows, by file name, with the key of the metrics that it needs.
PLOTS: dict[str, tuple[str, Callable[[Json, Theme], Figure]]] = {
    "reward_by_k": ("resampled", draw_k),
    "reward_by_beta": ("resampled", draw_beta),
    "reward_by_kl": ("kl", draw_kl),
    "learning_curve": ("learning_curve", draw_learning_curve),
    "calibration": ("calibration", draw_calibration),
    "correlation": ("correlation", draw_correlation),
    "reliability": ("confidence", draw_reliability),
    "kept": ("confidence", draw_kept),
    "sweep": ("sweep", lambda metrics, theme: draw_sweep(metrics["sweep"], theme)),
}


def _floor(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return where the colours start: below the worst, so that its cell is not blank."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return low - 0.15 * (high - low) - 1e-9


def _plot_line(axes: Axes, rows: Sequence[Json], *, color: str, marker: str, label: str) -> None:
    places, rewards = [row["kl"] for row in rows], [row["reward"] for row in rows]
    axes.plot(places, rewards, color=color, marker=marker, ms=4, lw=1.8, label=label)


def _plot_tokens(axes: Axes, rows: Sequence[Json], *, color: str, style: str, label: str) -> None:
    tokens, rewards = [row["tokens"] for row in rows], [row["reward"] for row in rows]
    axes.plot(tokens, rewards, style, color=color, ms=4, lw=1.6, label=label)


def _mark_used(axes: Axes, x: float, reward: float, theme: Theme, label: str) -> None:
    axes.plot([x], [reward], "o", color=theme.first, mfc=theme.page, ms=9, mew=1.8, label=label)


def _draw_base(axes: Axes, metrics: Json, theme: Theme) -> None:
    reward = metrics["base"]["reward"]
    axes.axhline(reward, color=theme.muted, ls=":", lw=1.6, label="base model: one sample")
