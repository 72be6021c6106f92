"""What early rejection would have earned and cost on the samples of a dataset.

Owns the replay of the server's rule on stored scores, with the subsets of ``expectation``. Knows
nothing of probes, files, or which schedule is a good one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import EvaluationError
from qprobe.evaluation.expectation import expect, list_subsets
from qprobe.probe.resampling import softmax
from qprobe.probe.schedule import Schedule, Step, rank

__all__ = ["Outcome", "ScoredSamples", "simulate"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSamples:
    """Samples as the server's race sees them. Every array but one has shape (samples,).

    Attributes:
        final: Scores of the whole completions, finite, comparable within one prompt only.
        heads: For each checkpoint, finite scores of the first so many tokens; of a completion that
            is shorter, of all it has.
        num_tokens: Length of each completion, >= 0.
        rewards: Finite.
        groups: The prompt of each, 0, 1, 2, ... without a gap.
        questions: Of each prompt, shape (prompts,), as ``Bootstrap`` takes them; None: each asks
            something else.

    Raises:
        EvaluationError: A head or the lengths do not go with the groups; it is named.
    """

    final: Floats
    heads: Mapping[int, Floats]
    num_tokens: Ints
    rewards: Floats
    groups: Ints
    questions: Ints | None = None

    def __post_init__(self) -> None:
        heads = {f"heads.{tokens}": head for tokens, head in self.heads.items()}
        for name, values in {**heads, "num_tokens": self.num_tokens}.items():
            if values.shape != self.groups.shape or not np.isfinite(values).all():
                raise EvaluationError(name, f"must be {len(self.groups)} finite numbers")


@dataclass(frozen=True)
class Outcome:
    """What a way of spending tokens comes to, by prompt. Both have shape (prompts,).

    Attributes:
        rewards: Expected reward.
        tokens: Expected number of generated tokens, of all candidates together.
    """

    rewards: Floats
    tokens: Floats


def simulate(
    samples: ScoredSamples, schedules: Sequence[Schedule], *, k: int, beta: float
) -> list[Outcome]:
    """Run early rejection among k of each prompt's samples, averaged over subsets as in ``expect``.

    At a step, the candidates that are still there are ranked by the head of its ``tokens``; the
    best ``keep`` go on, the former of equals first. Whoever leaves has generated one token more
    than was compared, as a token has a state only once the next one is sampled, or all that it has.
    Who had ended by then keeps its place by the same head. One of those left at the end is drawn by
    softmax(final / beta). Without a step it is ``expect``.

    Blocks for about 20 ms a schedule with 300 prompts and 512 subsets of 8.

    Args:
        samples: With a head for every checkpoint of the schedules.
        schedules: Valid ones, see ``check_schedule``.
        k: How many candidates start, from 1 to the fewest samples of a prompt.
        beta: In units of the final score, 0 <= beta.

    Returns:
        An outcome for each schedule.

    Raises:
        EvaluationError: k, beta, scores or rewards are not as said above.
        KeyError: There is no such head.
    """
    whole = expect(samples.final, samples.rewards, samples.groups, k=k, beta=beta)
    tokens = k * np.bincount(samples.groups, samples.num_tokens) / np.bincount(samples.groups)
    # What drops nobody is exact where ``expect`` is.
    found = {
        _rejecting(each, k): Outcome(whole.rewards.copy(), tokens.copy()) for each in schedules
    }
    # Neighbours in this order share their first steps.
    wanted = sorted((each for each in found if each), key=_sort_key)
    for prompts, picks, _ in list_subsets(samples.groups, k):
        for schedule, race in _race(samples, picks, wanted):
            weights = softmax(samples.final[race.picks], beta)  # (prompts, subsets, left)
            rewards = (weights * samples.rewards[race.picks]).sum(axis=-1)
            spent = race.spent + samples.num_tokens[race.picks].sum(axis=-1)
            found[schedule].rewards[prompts] = rewards.mean(axis=-1)
            found[schedule].tokens[prompts] = spent.mean(axis=-1)
    return [found[_rejecting(each, k)] for each in schedules]


def _rejecting(schedule: Schedule, k: int) -> Schedule:
    """Return the steps that drop anyone."""
    return tuple(step for step in schedule if step.keep < k)


def _sort_key(schedule: Schedule) -> list[tuple[int, int]]:
    return [(step.tokens, step.keep) for step in schedule]


@dataclass(frozen=True)
class _Race:
    """Candidates that are left after some steps.

    Attributes:
        picks: Shape (prompts, subsets, left): who, in the order in which they started.
        spent: Shape (prompts, subsets): tokens of those that have left.
        ranks: For each checkpoint asked for so far, places in ``picks`` from the best down, and
            what all of ``picks`` have generated there. Schedules that differ in ``keep`` share it.
    """

    picks: Ints
    spent: Ints
    ranks: dict[int, tuple[Ints, Ints]] = field(default_factory=dict)


def _race(
    samples: ScoredSamples, picks: Ints, schedules: Sequence[Schedule]
) -> Iterator[tuple[Schedule, _Race]]:
    """Yield who is left after each schedule; those with equal first steps must be neighbours."""
    path, before = [_Race(picks, np.zeros(picks.shape[:-1], np.int64))], Schedule()
    for schedule in schedules:
        pairs = zip(before, schedule, strict=False)
        shared = next((i for i, (one, other) in enumerate(pairs) if one != other), len(before))
        del path[shared + 1 :]
        for step in schedule[shared:]:
            path.append(_reject(samples, path[-1], step))
        before = schedule
        yield schedule, path[-1]


def _reject(samples: ScoredSamples, race: _Race, step: Step) -> _Race:
    costs = np.minimum(samples.num_tokens, step.tokens + 1)
    if step.tokens not in race.ranks:
        order = rank(samples.heads[step.tokens][race.picks])
        race.ranks[step.tokens] = order, costs[race.picks].sum(axis=-1)
    order, total = race.ranks[step.tokens]
    # In the order of the start again, so that the former of equals is before the latter.
    stay = np.take_along_axis(race.picks, np.sort(order[..., : step.keep], axis=-1), axis=-1)
    return _Race(stay, race.spent + total - costs[stay].sum(axis=-1))
