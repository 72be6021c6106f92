"""Tables of what choosing among the model's own samples earns, by every way and every k."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from figures import Line, draw_lines
from markdown import Table, tell_difference, tell_mean
from numpy.typing import NDArray
from study import Judged, Study
from tqdm import tqdm
from ways import BETA, BOTH, CE, MSE, NUMBERS_ALONE, PG, WAYS, Way

from qprobe.data.dataset import Dataset
from qprobe.evaluation.executions import Execution
from qprobe.evaluation.expectation import expected_vote_rewards
from qprobe.evaluation.scoring import score
from qprobe.evaluation.votes import Answers, Vote, find_answers
from qprobe.probe.terms import Terms
from qprobe.training.segments import segment_spread

__all__ = ["Votes", "tell_humaneval", "tell_mbpp"]

Floats = NDArray[np.float64]
_CURVE = (MSE, CE, PG, NUMBERS_ALONE, BOTH)
_KS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Votes:
    """Votes that tables have rows of; ``folder`` keeps what samples did when they were run."""

    given: Sequence[Vote]
    folder: Path

    def find(self, dataset: Dataset) -> dict[str, Answers]:
        """Return what a dataset's samples say to each vote; runs them the first time."""
        found = {}
        for vote in self.given:
            with tqdm(total=len(dataset.samples), desc=f"vote by {vote.by}", leave=False) as bar:
                execution = Execution(
                    kept=self.folder / "executions.jsonl",
                    num_workers=os.cpu_count() or 1,
                    progress=bar.update,
                )
                found[vote.by] = find_answers(dataset, vote, execution)
        return found


def tell_mbpp(study: Study, votes: Votes, figures: Path) -> str:
    """MBPP on the problems set aside, and all of it by folds; and both by k."""
    test = study.on_test
    whole = Judged(study.mbpp, study.k)
    of_test = _score(study.probes("mbpp"), test.dataset)
    answers = votes.find(study.mbpp)
    in_test = np.isin(study.mbpp.groups, study.test)
    of_these = {by: _take(each, in_test) for by, each in answers.items()}
    parts = [
        f"{len(study.train)} problems to train on, {len(study.test)} for the test. "
        f"{_tell_setting(study.probes('mbpp'), test)}\n",
        str(_compare(test, of_test, of_these)),
        f"\nAll {len(whole.dataset.prompts)} problems, each held out in one of eight folds.\n",
        str(_compare(whole, study.held_out, answers)),
        "\nReward by k, test problems.\n",
        str(_vary_k(test, of_test)),
        "\nReward by k, all problems in eight folds.\n",
        str(_vary_k(whole, study.held_out)),
    ]
    title = f"Reward by number of samples, {len(whole.dataset.prompts)} problems"
    _draw_k(whole, study.held_out, figures / "k.png", title)
    return "\n".join(parts)


def tell_humaneval(study: Study) -> str | None:
    """HumanEval by probes that were trained on all of MBPP."""
    judged = study.judge("humaneval")
    if judged is None:
        return None
    probes = study.probes("humaneval")
    scores = _score(probes, judged.dataset)
    parts = [
        f"{len(judged.dataset.prompts)} problems; probes trained on the {len(study.mbpp.prompts)} "
        f"of MBPP. {_tell_setting(probes, judged)}\n",
        str(_compare(judged, scores, {})),
        "\nReward by k.\n",
        str(_vary_k(judged, scores)),
    ]
    return "\n".join(parts)


def _score(probes: Mapping[Way, Terms], dataset: Dataset) -> dict[Way, Floats]:
    return {way: score(terms, dataset) for way, terms in probes.items()}


def _tell_setting(probes: Mapping[Way, Terms], judged: Judged) -> str:
    read = next((probes[way].describe() for way in probes if not way.has_numbers), "none")
    return f"States: {read}. k = {judged.k}, beta = {BETA:g} for what is trained, else 0."


def _compare(judged: Judged, scores: Mapping[Way, Floats], answers: Mapping[str, Answers]) -> Table:
    base, ceiling = judged.base, judged.ceiling()
    best = judged.best_logprob()
    chosen = {way: judged.choose(each) for way, each in scores.items()}
    rivals = {"base": base, "greedy": judged.greedy, "best by log-probability": best}
    if MSE in chosen:
        rivals[str(MSE)] = chosen[MSE]
    table = Table("choice", "reward", "of the gap", *(f"minus {name}" for name in rivals))

    def add(name: str, values: Floats) -> None:
        gap = f"{np.nansum(values - base) / (ceiling - base).sum():.0%}"
        differences = [
            "" if values is each else tell_difference(judged.bootstrap, values, each)
            for each in rivals.values()
        ]
        table.add(name, tell_mean(judged.bootstrap, values), gap, *differences)

    add("base: one sample", base)
    add("greedy answer", judged.greedy)
    add("best by mean log-probability", best)
    for way in WAYS:
        if way in chosen:
            add(str(way), chosen[way])
    for by, each in answers.items():
        voters = {"all alike": np.zeros(len(each.classes)), "by log-probability": judged.logprobs}
        if BOTH in scores:
            voters |= {f"by {BOTH}": scores[BOTH]}
        for name, weights in voters.items():
            add(f"vote by {by}, {name}", _vote(judged, weights, each))
    add("ceiling: best by reward", ceiling)
    return table


def _take(answers: Answers, rows: NDArray[np.bool_]) -> Answers:
    return Answers(answers.classes[rows], answers.ranks[rows])


def _vote(judged: Judged, scores: Floats, answers: Answers) -> Floats:
    rewards, groups = judged.dataset.rewards, judged.dataset.groups
    # The weights of a vote are of scores that vary by 1 within prompts, as a probe's do.
    spread = segment_spread(torch.from_numpy(scores), torch.from_numpy(groups))
    return expected_vote_rewards(
        scores / (spread or 1.0),
        answers.classes,
        rewards,
        groups,
        k=judged.k,
        beta=BETA,
        ranks=answers.ranks,
    )


def _list_choices(judged: Judged, scores: Mapping[Way, Floats], k: int) -> dict[str, Floats]:
    return {
        "best by log-probability": judged.best_logprob(k),
        **{str(way): judged.choose(scores[way], k=k) for way in _CURVE if way in scores},
        "ceiling": judged.ceiling(k),
    }


def _list_ks(judged: Judged) -> list[int]:
    return sorted({*(k for k in _KS if k < judged.k), judged.k})


def _vary_k(judged: Judged, scores: Mapping[Way, Floats]) -> Table:
    ks = _list_ks(judged)
    columns = {k: _list_choices(judged, scores, k) for k in ks}
    last, middle = ks[-1], ks[len(ks) // 2]
    table = Table("k", *map(str, ks), f"{last} minus {middle}")
    for name in columns[last]:
        table.add(
            name,
            *(f"{columns[k][name].mean():.3f}" for k in ks),
            tell_difference(judged.bootstrap, columns[last][name], columns[middle][name]),
        )
    return table


def _draw_k(judged: Judged, scores: Mapping[Way, Floats], path: Path, title: str) -> None:
    ks = _list_ks(judged)
    columns = [_list_choices(judged, scores, k) for k in ks]
    lines: dict[str, Line] = {
        name: (ks, [float(each[name].mean()) for each in columns]) for name in columns[-1]
    }
    draw_lines(path, title, "samples to choose among, k", lines, is_log=True)
