"""The report: whole, on its own, and saying what the figures say."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe.data.dataset import Dataset, Reading, Sample
from qprobe.evaluation.confidence import measure_confidence
from qprobe.evaluation.metrics import measure
from qprobe.files import write_files
from qprobe.reports import evaluation as report
from qprobe.reports.evaluation import write_report
from qprobe.reports.plots import PLOTS

Json = dict[str, Any]
NUM_PROMPTS, N = 24, 6
# What HTML fetches from elsewhere, or runs.
FETCHING = {"src", "srcset", "href", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """Attributes, tags, text, and the cells of each table by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self._table = ""
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in FETCHING]
        if tag == "table":
            self._table = dict(attrs).get("id") or ""
            self.rows[self._table] = []
        elif tag == "tr":
            self.rows[self._table].append([])
        elif tag in ("td", "th"):
            self.rows[self._table][-1].append("")

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.rows.get(self._table) and self.rows[self._table][-1]:
            self.rows[self._table][-1][-1] += data.strip()


def make_metrics() -> Json:
    rng = np.random.default_rng(1)
    rewards = (rng.random(NUM_PROMPTS * N) < 0.4).astype(float)
    samples = [
        Sample(
            prompt=i // N,
            index=i % N,
            text="a completion nobody may see",
            token_ids=[1],
            num_scored=1,
            logprob=float(rng.normal()),
            finish_reason="stop",
            seed=i,
            reward=float(reward),
        )
        for i, reward in enumerate(rewards)
    ]
    manifest = {"model": "org/<b>model</b>", "reward": "tests", "sampling": {"n": N}}
    prompts: list[Json] = [{"prompt": f"a prompt nobody may see, {i}"} for i in range(NUM_PROMPTS)]
    embeddings = {Reading(3, "mean"): torch.zeros(len(rewards), 1).half()}
    dataset = Dataset(manifest, prompts, samples, embeddings, np.ones(NUM_PROMPTS))
    scores = rewards + rng.normal(size=len(rewards))
    cells = [
        {"terms": "3/mean", "objective": "ce", "reward": 0.5, "weight_decay": 1.0},
        {"terms": "3/mean", "objective": "bt", "reward": None, "weight_decay": None},
    ]
    curve = [
        {"num_prompts": size, "reward": 0.5, "low": 0.4, "high": 0.6, "runs": [0.4, 0.6]}
        for size in (5, 9)
    ]
    settings = {"objective": "ce", "note": "<script>alert(1)</script>", "hidden": ()}
    return {
        **measure(scores, dataset, k=4, beta=0.1, rivals={"numbers": -scores}),
        "confidence": measure_confidence(1 / (1 + np.exp(-scores)), dataset),
        "settings": settings,
        "sweep": cells,
        "learning_curve": curve,
    }


METRICS = make_metrics()
PICTURES = {
    "calibration.png",
    "correlation.png",
    "kept.png",
    "learning_curve.png",
    "reliability.png",
    "reward_by_beta.png",
    "reward_by_k.png",
    "reward_by_kl.png",
    "sweep.png",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reports") / "deep" / "report"
    write_report(METRICS, path)
    return path


def test_all_files_are_there(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == PICTURES | {"metrics.json", "report.html"}
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(METRICS))


def test_the_page_fetches_and_runs_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(page.addresses) == 2 * len(PICTURES)
    assert all(each.startswith("data:image/png;base64,") for each in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    light = {base64.b64decode(each.partition(",")[2]) for each in page.addresses}
    assert {(folder / name).read_bytes() for name in PICTURES} < light


def test_text_is_escaped_and_nothing_private_is_told(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "<script>" not in text
    assert "org/&lt;b&gt;model" in text
    assert "<script>alert(1)</script>" in Page(text).words
    for path in (folder / "report.html", folder / "metrics.json"):
        assert "nobody may see" not in path.read_text()


def test_figures_of_the_page_are_those_of_the_json(folder: Path) -> None:
    stored = json.loads((folder / "metrics.json").read_text())
    page = Page((folder / "report.html").read_text())
    ways = {row[0]: row[1:] for row in page.rows["ways"][1:]}
    policy, base = stored["policy"], stored["base"]
    assert ways["the probe"][0] == f"{policy['reward']:.3f}"
    assert ways["the probe"][1] == f"{policy['low']:.3f} to {policy['high']:.3f}"
    assert ways["base model, one sample"][0] == f"{base['reward']:.3f}"
    assert ways["base model, one sample"][2] == f"{stored['gain']['difference']:+.3f}"
    assert ways["greedy answer"][0] == "1.000"
    rows = page.rows["resampled"][1:]
    assert len(rows) == len(stored["resampled"])
    for row, wanted in zip(rows, stored["resampled"], strict=True):
        assert row[0] == str(wanted["k"])
        assert float(row[1]) == wanted["beta"]
        assert row[2] == f"{wanted['reward']:.3f}"
    ece = stored["confidence"]["ece"]
    by_chance = f"would be off by {ece['calibrated']:.3f} on as many"
    for words in (by_chance, f"at most {ece['calibrated_most']:.3f}. Its Brier"):
        assert words in page.words
    for words in (f"earns {policy['reward']:.3f}", f"against {base['reward']:.3f}"):
        assert words in page.words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.2, "the probe helps"), (-0.2, -0.01, "does harm"), (-0.1, 0.1, "do not show")],
)
def test_the_verdict_is_that_of_the_interval(
    low: float, high: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PLOTS", {})  # they take the time
    gain = {"difference": (low + high) / 2, "low": low, "high": high}
    write_report({**METRICS, "gain": gain}, tmp_path)
    assert words in (tmp_path / "report.html").read_text()


def test_no_verdict_on_few_prompts_and_none_for_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 are enough; below neither the gain nor what needs no probe is judged."""
    monkeypatch.setattr(report, "PLOTS", {})
    gain = {"difference": 0.1, "low": 0.05, "high": 0.2}
    minus: Json = {
        "greedy": {"difference": -0.1, "low": -0.2, "high": -0.05},
        "best_by_logprob": {"difference": 0.1, "low": -0.1, "high": 0.2},
        "numbers": {"difference": 0.1, "low": 0.05, "high": 0.2},
    }
    row = METRICS["baselines"]["greedy"]
    ways = {name: {**row, "policy_minus_baseline": each} for name, each in minus.items()}
    for num, words, other in (
        (20, "the probe helps", "too few for a verdict"),
        (19, "These are 19 prompts, too few for a verdict: 20 are needed.", "the probe helps"),
    ):
        metrics = {**METRICS, "gain": gain, "num_questions": num, "baselines": ways}
        write_report(metrics, tmp_path)
        text = (tmp_path / "report.html").read_text()
        assert words in text
        assert other not in text
        enough = num == 20
        assert ("What needs no probe is better: greedy answer." in text) == enough
        said = "not shown to beat what needs no probe: best total log-probability."
        assert (said in text) == enough


def test_a_poorer_report_leaves_no_plot_of_a_richer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: PLOTS[name] for name in ("sweep", "correlation", "calibration")}
    monkeypatch.setattr(report, "PLOTS", few)
    (tmp_path / "sweep.png").write_bytes(b"old")
    (tmp_path / "mine.txt").write_text("kept")
    poor = {key: METRICS[key] for key in METRICS.keys() - {"sweep", "learning_curve", "confidence"}}
    poor |= {"gap_closed": None, "baselines": {}, "calibration": []}
    poor["correlation"] = {**METRICS["correlation"], "auc": None, "spearman": None}
    write_report(poor, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "sweep.png" not in names
    assert {"mine.txt", "report.html", "correlation.png"} <= names


def test_a_figure_that_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_report({**METRICS, "k": float("nan")}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"1", "b": b"2"})
    broken: Any = {"a": b"3", "b": None}
    with pytest.raises(TypeError):
        write_files(tmp_path, broken)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}
