"""Votes among the samples of a dataset: who gives the same answer, and what voting is worth."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.data.dataset import Dataset
from qprobe.errors import DatasetError, EvaluationError, RowError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.executions import Execution, run_programs
from qprobe.evaluation.expectation import expect, expected_rewards, expected_vote_rewards
from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.behaviour import group_results, rank_outcomes, read_behaviour
from qprobe.rewards.equal import READERS, Grouping, make_regex
from qprobe.rewards.pattern import check_pattern
from qprobe.rewards.sandbox import Program

__all__ = ["VISIBLE_TESTS", "Answers", "Vote", "find_answers", "find_free_classes", "measure_vote"]

Json = dict[str, Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The field of a row whose tests its prompt shows.
VISIBLE_TESTS = "visible_tests"
_RUN = ("code", "tests", "passing")
_PLACE = re.compile(r"([^\[\]]+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Vote:
    """How samples vote.

    Attributes:
        by: ``numeric``, ``regex``, ``json``, ``text``; ``code``, what the calls in the visible
            tests return; ``tests``, the same of those that pass these tests, if any do; or
            ``passing``: all that pass them are one class.
        pattern: Of ``regex``.
        tests: Where code is run: the field of a row with its visible tests, a list of Python
            statements or one; ``NAME[0]`` is the first of a list.
    """

    by: str
    pattern: str = ""
    tests: str = VISIBLE_TESTS

    @classmethod
    def parse(cls, text: str, *, tests: str = VISIBLE_TESTS) -> "Vote":
        """Read ``numeric``, ``regex:PATTERN`` and so on.

        Raises:
            EvaluationError: It is none of them, or the pattern is none.
        """
        by, _, pattern = text.partition(":")
        if by == "regex" and pattern:
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise EvaluationError("vote", f"{error}, got {pattern!r}") from error
        elif text not in (*READERS, *_RUN):
            known = ", ".join((*READERS, *_RUN))
            raise EvaluationError("vote", f"must be {known} or regex:PATTERN, got {text!r}")
        return cls(by, pattern, tests)


@dataclass(frozen=True)
class Answers:
    """What the samples of a dataset say.

    Attributes:
        classes: Shape (samples,): equal numbers for equal answers to one prompt, or NO_CLASS.
        ranks: Shape (samples,): of those that vote only those of the highest rank are of a class.
    """

    classes: Ints
    ranks: Ints

    def of_whole_prompts(self, groups: Ints) -> Ints:
        """Return the classes where all samples of a prompt vote: (samples,)."""
        best = np.zeros(int(groups.max()) + 1, dtype=np.int64)
        np.maximum.at(best, groups, self.ranks)
        return np.where(self.ranks == best[groups], self.classes, NO_CLASS)


def find_answers(dataset: Dataset, vote: Vote, execution: Execution) -> Answers:
    """Return what each sample answers, compared with those of its prompt.

    Args:
        dataset: Of samples in order of their prompts.
        vote: What is compared.
        execution: How code is run.

    Raises:
        DatasetError: A row has no visible tests, or they cannot be run.
        SandboxError: This machine cannot run code safely.
    """
    if vote.by in _RUN:
        return _run(dataset, vote, execution)
    group = make_regex(vote.pattern) if vote.by == "regex" else READERS[vote.by]
    classes = _group(dataset, [group] * len(dataset.prompts), execution.progress)
    return Answers(classes, np.zeros_like(classes))


def find_free_classes(dataset: Dataset) -> Ints | None:
    """Return the classes of answers that the reward itself tells apart: (samples,), or NO_CLASS.

    By number for ``numeric``, by each row's own pattern for ``regex`` if rows have an ``answer`` to
    compare with; None for other rewards.
    """
    reward, rows = dataset.manifest.get("reward"), dataset.prompts
    if reward == "numeric":
        groupings = [READERS["numeric"]] * len(rows)
    elif reward == "regex" and all(isinstance(row.get("answer"), str) for row in rows):
        groupings = [make_regex(row["pattern"]) for row in rows]
    else:
        return None
    return _group(dataset, groupings)


def _group(
    dataset: Dataset,
    groupings: Sequence[Grouping],
    progress: Callable[[], object] = lambda: None,
) -> Ints:
    """Return the classes by one grouping for each prompt: (samples,)."""
    classes = np.full(len(dataset.samples), NO_CLASS, dtype=np.int64)
    for prompt, group in enumerate(groupings):
        rows = np.flatnonzero(dataset.groups == prompt)
        classes[rows] = group([dataset.samples[row].text for row in rows]).of
        for _ in rows:
            progress()
    return classes


def _run(dataset: Dataset, vote: Vote, execution: Execution) -> Answers:
    asked = [_read_row(dataset, prompt, vote.tests) for prompt in range(len(dataset.prompts))]
    programs = [replace(asked[each.prompt], answer=each.text) for each in dataset.samples]
    came = run_programs(programs, execution)
    # One run tells both: what the calls return, and whether the tests pass.
    left_out: Json = {"code": {"tests": ()}, "tests": {}, "passing": {"calls": ()}}[vote.by]
    classes, ranks = np.zeros((2, len(came)), dtype=np.int64)
    for prompt, each in enumerate(asked):
        rows = np.flatnonzero(dataset.groups == prompt)
        outcomes, program = [came[row] for row in rows], replace(each, **left_out)
        classes[rows] = group_results(outcomes, program).of
        ranks[rows] = rank_outcomes(outcomes, program)
    return Answers(classes, ranks)


def _read_row(dataset: Dataset, prompt: int, field: str) -> Program:
    row, place = dataset.prompts[prompt], dataset.places[prompt]
    found = _PLACE.fullmatch(field)
    tests = row.get(found[1]) if found is not None else None
    tests = [tests] if isinstance(tests, str) else tests
    if found is not None and found[2] is not None and isinstance(tests, list):
        tests = tests[int(found[2]) :][:1]
    if not isinstance(tests, list) or not tests:
        raise DatasetError(
            field,
            f"of {place} must be the tests that the prompt shows, got {tests!r:.60}: name the "
            "field that has them (--vote-tests FIELD, or FIELD[0])",
        )
    try:
        return read_behaviour({**row, "inputs": None, "tests": tests})
    except RowError as error:
        raise DatasetError(field, f"of {place}: {error}") from error


def measure_vote(
    scores: Floats, answers: Answers, dataset: Dataset, vote: Vote, *, k: int, beta: float
) -> Json:
    """Measure what a vote among k samples is worth, by the mean over subsets of them.

    Args:
        scores: Shape (samples,), of the dataset's samples, finite; on the scale of ``beta``.
        answers: As ``find_answers`` gives them.
        dataset: At least 2 prompts with at least k samples each.
        vote: What is compared.
        k: How many samples vote.
        beta: In units of score, finite, >= 0.

    Returns:
        In JSON types: ``by``, ``without_answer`` (share of the samples), and for ``majority`` (of
        equal scores) and ``weighted`` (by these scores) ``reward`` with its 95 % interval,
        ``policy_minus_vote``, what choosing by the scores alone earns more, and ``gap_closed``.
    """
    rewards, groups = dataset.rewards, dataset.groups
    bootstrap = Bootstrap(len(dataset.prompts), dataset.questions)
    policy = expect(scores, rewards, groups, k=k, beta=beta).rewards
    base = expected_rewards(scores, rewards, groups, k=1, beta=0)
    gaps = expected_rewards(rewards, rewards, groups, k=k, beta=0) - base
    found: Json = {
        "by": f"{vote.by} {vote.pattern}".strip(),
        "without_answer": float((answers.of_whole_prompts(groups) == NO_CLASS).mean()),
    }
    for name, values, at in (("majority", np.zeros_like(scores), 0.0), ("weighted", scores, beta)):
        votes = expected_vote_rewards(
            values, answers.classes, rewards, groups, k=k, beta=at, ranks=answers.ranks
        )
        found[name] = {
            **bootstrap.mean(votes).to_json("reward"),
            "policy_minus_vote": bootstrap.mean(policy - votes).to_json("difference"),
            "gap_closed": bootstrap.ratio(votes - base, gaps).to_json("share")
            if gaps.sum() > 0
            else None,
        }
    return found
