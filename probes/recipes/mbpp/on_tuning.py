"""Tables of other ways to better answers: shots and LoRA, alone and with a choice on top."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import Line, draw_lines
from markdown import Table, tell_difference, tell_mean
from numpy.typing import NDArray
from study import Judged, Study, pair_up
from ways import BOTH, CE, NUMBERS_ALONE, PG, Way, fit_ways

from qprobe.data.dataset import Dataset
from qprobe.evaluation.scoring import score
from qprobe.probe.terms import Terms

__all__ = ["tell_limited", "tell_others", "tell_reward_model"]

Floats = NDArray[np.float64]
# By the end of the folders' names.
_OTHERS = {
    "shots": "5-shot",
    "sft": "LoRA SFT",
    "sft-shots": "LoRA SFT, 5-shot",
    "dpo": "LoRA DPO",
}
_BOTH_WAYS = "LoRA SFT and probe"
_ABOVE = "probe minus LoRA SFT's one sample"
_SIZES = (10, 20, 50, 100, 200)
_LIMITED = (CE, PG, NUMBERS_ALONE, BOTH)
# Of fewer problems no probe of their own is trained.
_MIN_PROBLEMS = 20


@dataclass(frozen=True)
class _Choice:
    """What a choice earns: (prompts,); ``like`` is the zero-shot choice to compare it with."""

    name: str
    values: Floats
    like: str


def tell_others(study: Study, benchmark: str) -> str | None:
    """Other ways on the problems that judge, beside the zero-shot samples of the same problems.

    Args:
        study: Of the folders.
        benchmark: ``mbpp`` or ``humaneval``.
    """
    zero = study.judge(benchmark)
    if zero is None:
        return None
    probes = study.probes(benchmark)
    plain = {each.name: each.values for each in (*_choose(zero, probes), _find_ceiling(zero))}
    table = Table(
        "way",
        "choice",
        "reward",
        "minus zero-shot, same choice",
        "minus the way's one sample",
        "zero-shot, same choice, minus the way's one sample",
    )
    for name, values in plain.items():
        gain = "" if name == "one sample" else tell_difference(zero.bootstrap, values, zero.base)
        table.add("zero-shot", name, tell_mean(zero.bootstrap, values), "", gain, "")
    notes = []
    for end, way in _OTHERS.items():
        dataset = study.find(f"{benchmark}-{end}")
        if dataset is not None:
            notes.append(_add_way(table, way, dataset, zero, probes, study))
    about = f"{len(zero.dataset.prompts)} problems, k = {zero.k}."
    return "\n\n".join([" ".join([about, *notes]), str(table)])


def tell_reward_model(study: Study, benchmark: str) -> str | None:
    """Choices by a LoRA reward model, beside others among the same zero-shot samples."""
    zero = study.judge(benchmark)
    scores = study.reward_scores(benchmark)
    if zero is None or scores is None:
        return None
    best = zero.choose(scores, beta=0)
    choices = {
        "one sample": zero.base,
        "greedy": zero.greedy,
        "best by log-probability": zero.best_logprob(),
        **{
            str(way): zero.choose(score(terms, zero.dataset))
            for way, terms in study.probes(benchmark).items()
        },
        "best by LoRA reward model": best,
        "ceiling": zero.ceiling(),
    }
    table = Table("choice", "reward", "minus one sample", "minus the reward model's best")
    for name, values in choices.items():
        rivals = [
            "" if values is each else tell_difference(zero.bootstrap, values, each)
            for each in (zero.base, best)
        ]
        table.add(name, tell_mean(zero.bootstrap, values), *rivals)
    return f"{len(zero.dataset.prompts)} problems, k = {zero.k}.\n\n{table}"


def _add_way(
    table: Table,
    way: str,
    dataset: Dataset,
    zero: Judged,
    probes: dict[Way, Terms],
    study: Study,
) -> str:
    """Add a way's choices, on the problems that both have; returns what to know of it."""
    beside, judged = pair_up(zero.dataset, dataset, study.k)
    likes = {each.name: each.values for each in (*_choose(beside, probes), _find_ceiling(beside))}
    # With as many samples as there are: what the way's one sample is to be compared with.
    whole = Judged(beside.dataset, study.k)
    rivals = {each.name: each.values for each in _choose(whole, probes)}
    own = _choose_by_own(judged, study)
    for each in (*_choose(judged, probes), *own, _find_ceiling(judged)):
        like = likes.get(each.like)
        over = "" if like is None else tell_difference(judged.bootstrap, each.values, like)
        gain = tell_difference(judged.bootstrap, each.values, judged.base)
        gain = "" if each.name == "one sample" else gain
        rival = rivals.get(each.name)
        above = "" if rival is None else tell_difference(judged.bootstrap, rival, judged.base)
        table.add(way, each.name, tell_mean(judged.bootstrap, each.values), over, gain, above)
    return f"{way}: {len(judged.dataset.prompts)} problems, k = {judged.k}."


def _choose(judged: Judged, probes: dict[Way, Terms]) -> Iterator[_Choice]:
    yield _Choice("one sample", judged.base, "one sample")
    yield _Choice("greedy", judged.greedy, "greedy")
    best = "best by log-probability"
    yield _Choice(best, judged.best_logprob(), best)
    for way in (NUMBERS_ALONE, CE, PG, BOTH):
        if way in probes:
            values = judged.choose(score(probes[way], judged.dataset))
            name = f"probe of zero-shot samples: {way}"
            yield _Choice(name, values, name)


def _find_ceiling(judged: Judged) -> _Choice:
    return _Choice("ceiling", judged.ceiling(), "ceiling")


def _choose_by_own(judged: Judged, study: Study) -> Iterator[_Choice]:
    """Yield the choice by probes of the way's own samples, each problem held out."""
    if len(judged.dataset.prompts) < _MIN_PROBLEMS:
        return
    scores = study.score_held_out(judged.dataset, [BOTH])
    if BOTH in scores:
        values = judged.choose(scores[BOTH])
        yield _Choice(
            f"probe of its own, 8 folds: {BOTH}", values, f"probe of zero-shot samples: {BOTH}"
        )


def tell_limited(study: Study, figures: Path) -> str:
    """Probes and LoRA SFT by the number of training problems, always the first so many."""
    test = study.on_test
    sizes = [*(size for size in _SIZES if size < len(study.train)), len(study.train)]
    rows: dict[str, dict[int, tuple[Judged, Floats]]] = {}
    for size in sizes:
        for name, cell in _try_size(study, test, size, is_all=size == sizes[-1]):
            rows.setdefault(name, {})[size] = cell
    table = Table("training problems", *map(str, sizes))
    for name, cells in rows.items():
        told = [
            tell_mean(cells[size][0].bootstrap, cells[size][1]) if size in cells else ""
            for size in sizes
        ]
        table.add(name, *told)
    lines: dict[str, Line] = {
        name: ([*cells], [float(np.nanmean(values)) for _, values in cells.values()])
        for name, cells in rows.items()
        if not name.startswith((_BOTH_WAYS, _ABOVE))  # too many lines for one plot
    }
    free = {"greedy": test.greedy, "best by log-probability": test.best_logprob()}
    lines |= {name: (sizes, [float(np.nanmean(each))] * len(sizes)) for name, each in free.items()}
    title = "Reward by number of training problems"
    draw_lines(figures / "limited.png", title, "training problems", lines, is_log=True)
    beside = ", ".join(f"{name} {tell_mean(test.bootstrap, each)}" for name, each in free.items())
    return f"{len(study.test)} problems, k = {test.k}; without training: {beside}.\n\n{table}"


def _try_size(
    study: Study, test: Judged, size: int, *, is_all: bool
) -> Iterator[tuple[str, tuple[Judged, Floats]]]:
    """Yield the rows' cells: on whom, and what is earned."""
    known = study.mbpp.subset(study.train[:size])
    probes = fit_ways(known, _LIMITED, study.candidates(known))
    for way, terms in probes.items():
        yield f"probe: {way}", (test, test.choose(score(terms, test.dataset)))
    tuned = study.find("mbpp-sft" if is_all else f"mbpp-sft-{size}")
    if tuned is None:
        return
    beside, judged = pair_up(test.dataset, tuned, study.k)
    whole = Judged(beside.dataset, study.k)
    for way, terms in probes.items():
        above = whole.choose(score(terms, whole.dataset)) - judged.base
        yield f"{_ABOVE}: {way}", (judged, above)
    yield "LoRA SFT: one sample", (judged, judged.base)
    yield "LoRA SFT: greedy", (judged, judged.greedy)
    for way in (NUMBERS_ALONE, BOTH):
        if way in probes:
            values = judged.choose(score(probes[way], judged.dataset))
            yield f"{_BOTH_WAYS}: {way}", (judged, values)
