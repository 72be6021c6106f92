"""What a probe is worth on a dataset: all that its report says, before it is put in words."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from qprobe.data.dataset import Dataset
from qprobe.data.provenance import SEEN, SEEN_BY_SCHEDULE
from qprobe.errors import DatasetError
from qprobe.evaluation.executions import Execution
from qprobe.evaluation.held_out import check_same_model, list_notes, list_unseen
from qprobe.evaluation.scoring import score
from qprobe.evaluation.votes import Vote, find_answers, measure_vote
from qprobe.probe.probe import Probe
from qprobe.rejection.measures import judge_schedule
from qprobe.rejection.scores import score_samples
from qprobe.training.design import Design
from qprobe.training.judgement import judge
from qprobe.training.learning_curve import learning_curve
from qprobe.training.recipe import read_settings

__all__ = ["evaluate"]

Json = dict[str, Any]
_ALONE = Execution()


def evaluate(
    probe: Probe,
    dataset: Dataset,
    *,
    k: int | None = None,
    beta: float | None = None,
    curve: bool = True,
    votes: Sequence[Vote] = (),
    execution: Execution = _ALONE,
    progress: Callable[[int], object] = lambda total: None,
) -> Json:
    """Measure a probe on the prompts of a dataset that nothing of it was trained or chosen on.

    Blocks for seconds; with the learning curve for some 30 trainings, 1 to 2 s each for 300 prompts
    of 16 samples.

    Args:
        probe: What its terms read must be stored in the dataset.
        dataset: Loaded whole: the one that it was trained on, or another of the same model.
        k: How many samples to choose among; None takes what the probe recommends, or the fewest
            samples of a prompt if they are fewer.
        beta: In units of score, finite, >= 0; None takes what the probe recommends.
        curve: Whether to train on fewer prompts too, if the dataset has all that it was trained on.
        votes: Ways of voting to measure too.
        execution: How these run code.
        progress: Called after each of these trainings with the number of all.

    Returns:
        What ``judge`` returns, in JSON types, with ``settings`` of the probe and ``notes``, a
        sentence for each thing that one must know to believe the figures. If they can be had:
        ``schedule`` (what ``judge_schedule`` returns of the probe's), ``learning_curve`` and
        ``votes`` (what ``measure_vote`` returns of each).

    Raises:
        QProbeError: Probe and dataset do not go together, there is no such prompt, or k or beta is
            out of range.
    """
    info = probe.info
    check_same_model(info, dataset)
    notes = list_notes(info, dataset)
    unseen = list_unseen(info, dataset)
    held_out = dataset.subset(unseen)
    wanted, k = k, held_out.settle_k(k, default=info.k)
    if wanted is None and k < info.k:
        notes.append(f"k is {k}, the fewest samples of a prompt; the probe recommends {info.k}")
    beta = info.beta if beta is None else beta
    known = sorted(set(range(len(dataset.prompts))) - set(unseen))
    # With other prompts the learning curve, and what was trained besides, would be another probe's.
    whole = len(known) == info.training.get("train_prompts")
    development = dataset.subset(known) if whole else None
    metrics = judge(probe, held_out, known=development, k=k, beta=beta)
    if votes:
        metrics["votes"] = _measure_votes(probe, held_out, votes, execution, k=k, beta=beta)
    if info.schedule:
        try:
            samples = score_samples(probe, held_out)
            metrics["schedule"] = judge_schedule(samples, info.schedule, k=k, beta=beta)
        except DatasetError as error:  # collected without what its checkpoints read
            notes.append(f"the probe's schedule is not measured: {error}")
    if curve and development is not None:
        settings = replace(read_settings(info), beta=beta)
        metrics["learning_curve"] = learning_curve(
            development,
            held_out,
            design=Design.of(probe.terms),
            settings=settings,
            k=k,
            progress=progress,
        )
    return {**metrics, "settings": _describe(probe), "notes": notes}


def _measure_votes(
    probe: Probe,
    dataset: Dataset,
    votes: Sequence[Vote],
    execution: Execution,
    *,
    k: int,
    beta: float,
) -> list[Json]:
    scores = score(probe.terms, dataset)
    found = []
    for each in votes:
        answers = find_answers(dataset, each, execution)
        found.append(measure_vote(scores, answers, dataset, each, k=k, beta=beta))
    return found


def _describe(probe: Probe) -> Json:
    info = probe.info
    # A line of digits for each prompt; and what these prompts say with figures of their own.
    hidden = (SEEN, SEEN_BY_SCHEDULE, "cross_validated")
    return {
        "model": info.base_model,
        "terms": probe.terms.describe(),
        "objective": info.objective,
        **{name: value for name, value in info.training.items() if name not in hidden},
    }
