"""An evaluation as a page that a person can read.

Owns the words. The figures come from ``evaluate``, the pictures from ``plots``, prompts and
completions from ``examples`` if the page is to show any: no other file does.
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qprobe.files import write_files
from qprobe.reports.page import INTERVAL, format_figure, make_plot, render_page
from qprobe.reports.plots import PLOTS
from qprobe.reports.verdict import BASELINES, judge_free, judge_gain

__all__ = ["write_report"]

Json = dict[str, Any]

_CAPTIONS = {
    "reward_by_k": "Higher is better: how far the line climbs above the dotted base says what more "
    "samples buy with this probe; the dashed line is what a perfect judge would get from them.",
    "reward_by_beta": "At the left the best score is always taken, at the right the base model is "
    "left as it is; a good beta sits before the fall.",
    "reward_by_kl": "Up and to the left is better: more reward for less change of the model. KL is "
    "log k - H(weights) on the line by beta and log k - (k - 1) / k for the best of k, both upper "
    "bounds.",
    "learning_curve": "If the line still climbs at the right, more training prompts should help. "
    "Dots are single random orders of the prompts.",
    "calibration": "A useful score climbs from lower left to upper right: samples that score above "
    "their prompt's mean earn more than its mean.",
    "correlation": "Prompts right of 0 are ranked the right way round; those where all rewards, or "
    "all scores, are the same say nothing and are left out.",
    "reliability": "On the dotted line the probe expects what comes. Each dot is a tenth of the "
    "samples, every one taken as the one answer to its prompt.",
    "kept": "The further the line climbs to the right, the more it is worth to answer only where "
    "the confidence is high, and to hand the rest over.",
    "sweep": "The further from the page's colour the better; the best is in bold. Rewards are "
    "cross-validated on the development prompts and, as the best of several, a little too high.",
}


def write_report(metrics: Json, folder: Path, *, examples: Sequence[Json] = ()) -> None:
    """Write ``report.html``, ``metrics.json`` and the plots as PNG files; older ones are replaced.

    Args:
        metrics: What ``evaluate`` or ``measure`` returned, with any of: ``title`` (text) and
            ``sweep`` (the ``cells`` of ``sweep.json``).
        examples: What ``pick_examples`` returned; for the page only.
        folder: Made if it is not there. Each file appears whole, the page last.

    Raises:
        ValueError: A figure is not finite, so that it has no JSON.
        OSError: The folder cannot be written.
    """
    content = (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode()
    drawn = {name: draw for name, (key, draw) in PLOTS.items() if metrics.get(key)}
    plots = [
        make_plot(name, partial(draw, metrics), caption=_CAPTIONS[name])
        for name, draw in drawn.items()
    ]
    files = {f"{plot['name']}.png": picture for plot, picture in plots}
    page = _render(metrics, [plot for plot, _ in plots], examples).encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, {**files, "metrics.json": content, "report.html": page})
    for name in PLOTS.keys() - drawn.keys():  # of an older report
        (folder / f"{name}.png").unlink(missing_ok=True)


def _render(metrics: Json, plots: list[dict[str, str]], examples: Sequence[Json]) -> str:
    model = metrics["dataset"].get("model")
    return render_page(
        {
            "title": metrics.get("title")
            or "Evaluation of a probe" + (f" on {model}" if model else ""),
            "about": _describe(metrics),
            "numbers": _list_numbers(metrics),
            "sentences": _summarise(metrics),
            "plots": plots,
            "tables": _list_tables(metrics),
            "examples": examples,
            "settings": list(_flatten({**metrics["dataset"], **metrics.get("settings", {})})),
            "monte_carlo": _describe_errors(metrics),
        }
    )


def _describe(metrics: Json) -> str:
    fewest, most = metrics["num_samples_per_prompt"]
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    reward = metrics["dataset"].get("reward")
    judged = f" Rewards come from {reward!r}." if isinstance(reward, str) else ""
    return (
        f"{metrics['num_prompts']} prompts with {each} samples each, {metrics['num_samples']} in "
        f"all. The probe chooses among k = {metrics['k']} at beta = {metrics['beta']:g}.{judged}"
    )


def _list_numbers(metrics: Json) -> list[Json]:
    shown = [
        ("base model, one sample", "base", "reward"),
        ("with the probe", "policy", "reward"),
        ("gain", "gain", "difference"),
        ("ceiling, best by reward", "ceiling", "reward"),
        ("of the gap closed", "gap_closed", "share"),
    ]
    numbers = []
    for name, key, field in shown:
        if metrics[key] is not None:
            value, interval = format_figure(metrics[key], field)
            chosen = key == "policy"
            numbers.append({"name": name, "value": value, "interval": interval, "chosen": chosen})
    return numbers


def _summarise(metrics: Json) -> list[str]:
    base, _ = format_figure(metrics["base"], "reward")
    policy, policy_interval = format_figure(metrics["policy"], "reward")
    gain, gain_interval = format_figure(metrics["gain"], "difference")
    sentences = [
        f"Choosing among {metrics['k']} samples by the probe's scores earns {policy} in "
        f"expectation (95 % interval {policy_interval}), against {base} for one "
        f"sample of the base model. The difference is {gain} ({gain_interval}). "
        f"{judge_gain(metrics)}"
    ]
    beaten = [
        f"{BASELINES[name]} {format_figure(row, 'reward')[0]} (the probe's difference "
        f"{' ['.join(format_figure(row['policy_minus_baseline'], 'difference'))}])"
        for name, row in metrics["baselines"].items()
    ]
    if beaten:
        text = f"Without a probe, on the same samples: {'; '.join(beaten)}."
        sentences.append(" ".join([text, *judge_free(metrics)]))
    auc = metrics["correlation"]["auc"]
    if auc is not None:
        value, interval = format_figure(auc, "mean")
        sentences.append(
            f"Of two samples of one prompt with different rewards, the better one has the higher "
            f"score {value} of the time ({interval}; 0.500 is chance)."
        )
    if "confidence" in metrics:
        sentences.append(_summarise_confidence(metrics["confidence"]))
    if "schedule" in metrics:
        row = metrics["schedule"]
        reward, interval = format_figure(row, "reward")
        difference = " [".join(format_figure(row["minus_best_of_k"], "difference"))
        sentences.append(
            f"With the probe's schedule {row['schedule']} it earns {reward} ({interval}) for "
            f"{row['tokens']:.0f} tokens a prompt, {row['tokens_share']:.0%} of those without; the "
            f"difference is {difference}]."
        )
    return sentences + [f"Note: {note}." for note in metrics.get("notes", [])]


def _summarise_confidence(found: Json) -> str:
    def show(name: str) -> str:
        return " (".join(format_figure(found[name], "value")) + ")"

    ranks = f" Its AUROC over all samples is {show('auroc')}." if found["auroc"] else ""
    ece = found["ece"]
    shares = ", ".join(f"{row['reward']:.3f} of {row['share']:.0%}" for row in found["kept"][::4])
    return (
        f"The confidence of single answers is off by {ece['value']:.3f} on average (expected "
        f"calibration error, 10 bins); by chance a perfect one would be off by "
        f"{ece['calibrated']:.3f} on as many, and 95 % of the time by at most "
        f"{ece['calibrated_most']:.3f}. Its Brier score is {show('brier')}, that of always saying "
        f"the mean {found['brier_constant']['value']:.3f}.{ranks} Keeping the most confident "
        f"answers only earns {shares}."
    )


def _list_tables(metrics: Json) -> list[Json]:
    names = {"pearson": "Pearson", "spearman": "Spearman", "auc": "better sample scores higher"}
    correlation = metrics["correlation"]
    return [
        {
            "name": "ways",
            "caption": f"Ways of choosing, k = {metrics['k']}",
            "head": ["way of choosing", "reward", INTERVAL, "probe minus this", INTERVAL],
            "rows": _compare_ways(metrics),
        },
        {
            "name": "resampled",
            "caption": "The probe at other k and beta",
            "head": ["k", "beta", "reward", INTERVAL, "KL, nats"],
            "rows": [
                [row["k"], f"{row['beta']:g}", *format_figure(row, "reward"), f"{row['kl']:.3f}"]
                for row in metrics["resampled"]
            ],
        },
        {
            "name": "correlations",
            "caption": f"Scores and rewards within the {correlation['num_prompts']} prompts where "
            "both vary",
            "head": ["measure", "mean", INTERVAL],
            "rows": [
                [label, *format_figure(correlation[name], "mean")]
                for name, label in names.items()
                if correlation[name] is not None
            ],
        },
    ]


def _compare_ways(metrics: Json) -> list[list[str]]:
    ways = [
        ("the probe", metrics["policy"], None),
        ("base model, one sample", metrics["base"], metrics["gain"]),
        *(
            (BASELINES[name], row, row["policy_minus_baseline"])
            for name, row in metrics["baselines"].items()
        ),
        *(
            (_name_vote(vote["by"], way), vote[way], vote[way]["policy_minus_vote"])
            for vote in metrics.get("votes", [])
            for way in ("majority", "weighted")
        ),
        ("ceiling: best by reward", metrics["ceiling"], None),
    ]
    return [
        [
            name,
            *format_figure(row, "reward"),
            *(format_figure(minus, "difference") if minus else ("", "")),
        ]
        for name, row, minus in ways
    ]


def _name_vote(by: str, way: str) -> str:
    if by == "passing":
        return {
            "majority": "any that passes the visible tests",
            "weighted": "passes the visible tests, best by the probe",
        }[way]
    weighed = {"majority": "majority", "weighted": "vote weighted by the probe's scores"}[way]
    return f"{weighed}, by {by}"


def _describe_errors(metrics: Json) -> str:
    error = max(row["monte_carlo_error"] for row in metrics["resampled"])
    if error == 0:
        return "Nothing here is estimated by simulation."
    return (
        "Where there are too many subsets of k samples to go through, a balanced random choice "
        f"stands for them; that adds a standard error of at most {error:.4f} to a reward."
    )


def _flatten(values: Json, prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{name}", text
