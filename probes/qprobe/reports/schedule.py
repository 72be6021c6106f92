"""The choice of a schedule as a page that a person can read; its frame is that of ``page``.

Owns the words. Holds no prompt and no completion.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from qprobe.evaluation.bootstrap import MIN_PROMPTS
from qprobe.files import write_files
from qprobe.reports.page import INTERVAL, format_figure, make_plot, render_page
from qprobe.reports.plots import draw_schedule
from qprobe.reports.verdict import has_enough

__all__ = ["write_schedule_report"]

Json = dict[str, Any]

_CAPTION = (
    "Up and to the left is better: more reward for fewer tokens. All of it is on prompts that no "
    "choice has seen, hence the best schedules of the other prompts need not lie on one line here. "
    "The vertical bars are intervals: of the chosen schedule and of k whole candidates."
)
_MONTE_CARLO = (
    "Where there are too many subsets of k samples to go through, a balanced random choice of at "
    "least 512 a prompt stands for them, the same one for all schedules."
)


def write_schedule_report(metrics: Json, folder: Path) -> None:
    """Write ``schedule.html``, ``schedule.json`` and ``schedule.png``; older ones are replaced.

    Args:
        metrics: What ``recommend_schedule`` returned, with ``title`` (text).
        folder: Made if it is not there. Each file appears whole, the page last.

    Raises:
        ValueError: A figure is not finite, so that it has no JSON.
        OSError: The folder cannot be written.
    """
    content = (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode()
    plot, picture = make_plot("schedule", partial(draw_schedule, metrics), caption=_CAPTION)
    page = render_page(
        {
            "title": metrics["title"],
            "about": _describe(metrics),
            "numbers": _list_numbers(metrics),
            "sentences": [
                _judge_schedule(metrics),
                _tell_choice(metrics),
                *(f"Note: {note}." for note in metrics.get("notes", [])),
            ],
            "plots": [plot],
            "tables": _list_tables(metrics),
            "examples": [],
            "settings": [(name, str(value)) for name, value in metrics["settings"].items()],
            "monte_carlo": _MONTE_CARLO,
        }
    )
    files = {"schedule.png": picture, "schedule.json": content, "schedule.html": page.encode()}
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, files)


def _describe(metrics: Json) -> str:
    count = metrics["num_prompts"]
    return (
        f"A schedule for k = {metrics['k']} candidates at beta = {metrics['beta']:g}: "
        f"{metrics['goal']}. It was chosen on {count['choice']} prompts ({metrics['held_out']}); "
        f"all below is on {count['unseen']} others, unless it says otherwise."
    )


def _full(metrics: Json) -> Json:
    row: Json = next(row for row in metrics["best_of_k"] if row["k"] == metrics["k"])
    return row


def _list_numbers(metrics: Json) -> list[Json]:
    chosen = metrics["chosen"]["unseen"]
    shown = [
        ("base model, one sample", metrics["base"], "reward"),
        (f"{metrics['k']} whole candidates", _full(metrics), "reward"),
        ("with the schedule", chosen, "reward"),
        ("schedule minus whole", chosen["minus_best_of_k"], "difference"),
    ]
    numbers = []
    for name, row, field in shown:
        value, interval = format_figure(row, field)
        numbers.append(
            {"name": name, "value": value, "interval": interval, "chosen": row is chosen}
        )
    tokens = f"{chosen['tokens']:.0f} of {_full(metrics)['tokens']:.0f}"
    share = {"name": "of the tokens", "value": f"{chosen['tokens_share']:.0%}", "interval": tokens}
    return [*numbers, {**share, "chosen": False}]


def _judge_schedule(metrics: Json) -> str:
    chosen, full = metrics["chosen"], _full(metrics)
    if not chosen["schedule"]:
        return "The best found drops nobody: here early rejection does not pay."
    row = chosen["unseen"]
    low, high = row["minus_best_of_k"]["low"], row["minus_best_of_k"]["high"]
    if not has_enough(metrics):
        verdict = f"These are fewer than {MIN_PROMPTS} prompts, too few for a verdict."
    elif low > 0:
        verdict = "The interval lies above 0: the schedule is also better."
    elif high < 0:
        verdict = "The interval lies below 0: the tokens saved cost reward."
    else:
        verdict = "The interval holds 0: these prompts do not show a difference in reward."
    reward, interval = format_figure(row, "reward")
    difference = " [".join(format_figure(row["minus_best_of_k"], "difference"))
    return (
        f"The schedule {chosen['schedule']} earns {reward} ({INTERVAL} {interval}) for "
        f"{row['tokens']:.0f} tokens a prompt; {metrics['k']} whole candidates earn "
        f"{format_figure(full, 'reward')[0]} for {full['tokens']:.0f}. The difference is "
        f"{difference}]. {verdict}"
    )


def _tell_choice(metrics: Json) -> str:
    chosen = metrics["chosen"]
    there = chosen["choice"]
    return (
        f"On the prompts that it was chosen on it earned {there['reward']:.3f} for "
        f"{there['tokens']:.0f} tokens, and {metrics['k']} whole candidates "
        f"{there['best_of_k']:.3f}. As the best of {chosen['num_tried']:,} schedules on the same "
        "prompts it looks a little too good there."
    )


def _list_tables(metrics: Json) -> list[Json]:
    return [
        {
            "name": "auc",
            "caption": "How often the better of two samples of a prompt scores higher by the head "
            "for the first so many tokens; 0.500 is chance",
            "head": ["first tokens", "mean", INTERVAL, "prompts"],
            "rows": [
                [row["tokens"] or "all", *format_figure(row, "mean"), row["num_prompts"]]
                for row in metrics["auc"]
            ],
        },
        {
            "name": "best_of_k",
            "caption": "Whole candidates",
            "head": ["k", "reward", INTERVAL, "tokens"],
            "rows": [
                [row["k"], *format_figure(row, "reward"), f"{row['tokens']:.0f}"]
                for row in metrics["best_of_k"]
            ],
        },
        {
            "name": "frontier",
            "caption": "Schedules that none beats in both reward and tokens, on the prompts that "
            "the choice was made on",
            "head": ["schedule", "reward there", "tokens there", "reward", "tokens"],
            "rows": [[row["schedule"] or "none", *_list_both(row)] for row in metrics["frontier"]],
        },
    ]


def _list_both(row: Json) -> list[str]:
    pairs = [(each["reward"], each["tokens"]) for each in (row, row["unseen"])]
    return [text for reward, tokens in pairs for text in (f"{reward:.3f}", f"{tokens:.0f}")]
