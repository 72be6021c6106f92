"""The recipe that gives a probe a schedule: which prompts choose it, which ones judge it.

The scores that it is chosen by are of prompts that did not train them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qprobe.data.dataset import Dataset
from qprobe.data.provenance import SEEN_BY_SCHEDULE, note_seen
from qprobe.data.split import has_split, split_prompts
from qprobe.errors import DatasetError, ProbeFileError
from qprobe.evaluation.held_out import (
    check_same_model,
    check_same_sampling,
    list_notes,
    list_unseen,
)
from qprobe.evaluation.scoring import list_readings, list_token_layers
from qprobe.probe.probe import Probe, ProbeInfo
from qprobe.rejection.choice import choose_schedule
from qprobe.rejection.measures import measure_schedule
from qprobe.rejection.scores import cross_fit, score_samples
from qprobe.rejection.simulation import ScoredSamples
from qprobe.training.recipe import read_settings

__all__ = ["recommend_schedule"]

Json = dict[str, Any]


@dataclass(frozen=True)
class _Sides:
    """Scores of the prompts to choose on and of others.

    Attributes:
        chosen_on: Of the former, by heads that were not trained on them.
        unseen: Of prompts that nothing was trained or chosen on.
        held_out: How the former are held out, in words.
        new: Those of the former that the probe had not seen before.
    """

    chosen_on: ScoredSamples
    unseen: ScoredSamples
    held_out: str
    new: Sequence[Json]


def recommend_schedule(
    probe: Probe,
    dataset: Dataset,
    *,
    k: int | None = None,
    beta: float | None = None,
    budget: float = 1.0,
    reward: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Probe, Json]:
    """Choose a schedule, and return the same probe with it, k and beta in the header.

    Args:
        probe: With checkpoints.
        dataset: Loaded whole; all that the probe was trained on, or nothing of that.
        k: How many candidates start; None takes what the probe recommends, as does ``beta``.
        beta: In units of score, >= 0.
        budget: As in ``choose_schedule``, as is ``reward``.
        reward: If given, the cheapest that reaches it.
        progress: Called after each reading that the probe is trained anew for.

    Returns:
        The probe, and what ``measure_schedule`` returns with ``goal``, ``held_out``, ``settings``
        and ``notes``, sentences that one must know to believe the figures.

    Raises:
        QProbeError: Probe and dataset do not go together, or an argument is out of range.
    """
    # What a former schedule was chosen on says nothing of this one.
    training = {
        name: value for name, value in probe.info.training.items() if name != SEEN_BY_SCHEDULE
    }
    info = replace(probe.info, training=training)
    _check(probe, info, dataset)
    k = dataset.settle_k(info.k if k is None else k, default=info.k)
    beta = info.beta if beta is None else beta
    sides = _score(probe, info, dataset, progress)
    choice = choose_schedule(sides.chosen_on, k=k, beta=beta, budget=budget, reward=reward)
    metrics = {
        **measure_schedule(choice, sides.chosen_on, sides.unseen, k=k, beta=beta),
        "goal": f"the best within {budget:.0%} of the tokens"
        if reward is None
        else f"the cheapest that earns {reward:g}",
        "held_out": sides.held_out,
        "notes": list_notes(info, dataset),
        "settings": {
            "model": info.base_model,
            "terms": probe.terms.describe(),
            "checkpoints": ", ".join(map(str, info.checkpoints)),
            "objective": info.objective,
            "dataset": dataset.digest,
        },
    }
    # ``evaluate`` may not judge the schedule by what it was chosen on.
    noted = {SEEN_BY_SCHEDULE: note_seen(sides.new)} if sides.new else {}
    made = replace(
        info, k=k, beta=beta, schedule=choice.chosen.schedule, training={**training, **noted}
    )
    return Probe(made, probe.terms, probe.heads, probe.confidence), metrics


def _check(probe: Probe, info: ProbeInfo, dataset: Dataset) -> None:
    if not info.checkpoints:
        raise ProbeFileError("checkpoints", "are none: train the probe with --checkpoints")
    check_same_model(info, dataset)
    check_same_sampling(info, dataset)
    dataset.require(list_readings(probe.terms), list_token_layers(probe.terms))
    for tokens, head in probe.heads.items():
        layers = list_token_layers(head, tokens=tokens)
        dataset.require(list_readings(head, tokens=tokens), layers)


def _score(
    probe: Probe, info: ProbeInfo, dataset: Dataset, progress: Callable[[], object]
) -> _Sides:
    unseen = list_unseen(info, dataset)
    known = sorted(set(range(len(dataset.prompts))) - set(unseen))
    if not known:
        fraction = None if has_split(dataset.prompts) else 0.5
        known, unseen = split_prompts(
            dataset.prompts, test_fraction=fraction, places=dataset.places
        )
        return _Sides(
            chosen_on=score_samples(probe, dataset.subset(known)),
            unseen=score_samples(probe, dataset.subset(unseen)),
            held_out="a part of the dataset, which the probe was not trained on",
            new=[dataset.prompts[index] for index in known],
        )
    trained_on = info.training.get("train_prompts")
    if len(known) != trained_on:
        raise DatasetError(
            "folder",
            f"has {len(known)} of the {trained_on} prompts that the probe was trained on: choose "
            "on all of them, or on none",
        )
    settings = read_settings(info)
    return _Sides(
        chosen_on=cross_fit(dataset.subset(known), probe, settings, progress=progress),
        unseen=score_samples(probe, dataset.subset(unseen)),
        held_out="those of its training, each scored by heads trained anew without it, in "
        f"{settings.num_folds} folds",
        new=[],
    )
