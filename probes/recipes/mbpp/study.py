"""The datasets of a study by name, and what choosing among their samples earns."""

import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from splitting import split_problems
from tqdm import tqdm
from ways import BETA, NUM_FOLDS, WAYS, Way, fit_ways, score_held_out

from qprobe.data.dataset import Dataset, Reading
from qprobe.data.provenance import identify_prompts
from qprobe.errors import DatasetError, EvaluationError
from qprobe.evaluation.bootstrap import Bootstrap
from qprobe.evaluation.expectation import expected_rewards
from qprobe.probe.terms import Terms

__all__ = ["Judged", "Study", "pair_up"]

Floats = NDArray[np.float64]


class Judged:
    """What choosing among the samples of some prompts earns. Rewards are (prompts,) each.

    Attributes:
        dataset: Of these prompts.
        k: How many samples are chosen among.
        bootstrap: Over the prompts.
    """

    def __init__(self, dataset: Dataset, k: int) -> None:
        self.dataset = dataset
        self.k = min(k, int(dataset.num_samples.min()))
        self.bootstrap = Bootstrap(len(dataset.prompts), dataset.questions)

    def choose(self, scores: Floats, *, beta: float = BETA, k: int | None = None) -> Floats:
        """Return the expected reward of a choice by scores, (samples,)."""
        rewards, groups = self.dataset.rewards, self.dataset.groups
        return expected_rewards(scores, rewards, groups, k=k or self.k, beta=beta)

    @cached_property
    def base(self) -> Floats:
        """Return that of one sample."""
        return self.choose(self.dataset.rewards, beta=0, k=1)

    @cached_property
    def greedy(self) -> Floats:
        """Return that of the greedy answer, NaN where there is none."""
        return self.dataset.greedy_rewards

    @cached_property
    def logprobs(self) -> Floats:
        """The samples' mean log-probabilities: (samples,)."""
        return self.dataset.numbers(["mean_logprob"])[:, 0]

    def best_logprob(self, k: int | None = None) -> Floats:
        """Return that of the best by mean log-probability."""
        return self.choose(self.logprobs, beta=0, k=k)

    def ceiling(self, k: int | None = None) -> Floats:
        """Return that of the best by reward."""
        return self.choose(self.dataset.rewards, beta=0, k=k)


class Study:
    """The folders of a study, each under its fixed name; ``mbpp`` must be there.

    Args:
        folder: Of the folders.
        k: How many samples are chosen among.
        num_test: How many problems of MBPP are for the test, if its rows do not say it.
        readings: Those that one is chosen of; none: the mean and the last token of every layer.

    Attributes:
        mbpp: Zero-shot samples of the model's own.
        train: Its prompts that are trained on.
        test: Those that judge.
        missing: Names that were asked for and are not there, with the reason.

    Raises:
        QProbeError: ``mbpp`` is not there, or cannot be split.
    """

    def __init__(
        self, folder: Path, *, k: int, num_test: int, readings: Sequence[Reading] = ()
    ) -> None:
        self.folder, self.k = folder, k
        self._readings = tuple(readings)
        self.missing: dict[str, str] = {}
        self.find = cache(self._find)
        self.mbpp = Dataset.load(folder / "mbpp")
        self.train, self.test = split_problems(self.mbpp, num_test)

    def _find(self, name: str) -> Dataset | None:
        """Return a dataset; None if it is missing, which is noted."""
        try:
            return Dataset.load(self.folder / name)
        except DatasetError as error:
            self.missing[name] = str(error)
            return None

    def candidates(self, dataset: Dataset) -> list[Reading]:
        """Return the readings of a dataset that one is chosen of."""
        given = [each for each in self._readings if each in dataset.readings]
        return given or [each for each in dataset.readings if each.window is None]

    @cached_property
    def on_test(self) -> Judged:
        """What is earned on the test of ``mbpp``."""
        return Judged(self.mbpp.subset(self.test), self.k)

    def judge(self, name: str) -> Judged | None:
        """Return a benchmark's zero-shot samples: of ``mbpp`` the test, of ``humaneval`` all."""
        if name == "mbpp":
            return self.on_test
        dataset = self.find(name)
        return None if dataset is None else Judged(dataset, self.k)

    def probes(self, name: str) -> dict[Way, Terms]:
        """Return probes for a benchmark: trained on MBPP, for its own test on the other side."""
        return self._of_train if name == "mbpp" else self._of_all

    @cached_property
    def _of_train(self) -> dict[Way, Terms]:
        known = self.mbpp.subset(self.train)
        return fit_ways(known, WAYS, self.candidates(known))

    @cached_property
    def _of_all(self) -> dict[Way, Terms]:
        return fit_ways(self.mbpp, WAYS, self.candidates(self.mbpp))

    @cached_property
    def held_out(self) -> dict[Way, Floats]:
        """Scores of all samples of MBPP by probes that have not seen their problem."""
        return self._score_held_out(self.mbpp, WAYS)

    def score_held_out(self, dataset: Dataset, ways: Sequence[Way]) -> dict[Way, Floats]:
        """Return scores of each sample by probes of the same set that have not seen its problem.

        Args:
            dataset: Any; all of ``mbpp`` is scored once only.
            ways: What is trained; those that the dataset is too little for are left out.

        Returns:
            (samples,) of each way.
        """
        if (dataset.digest, dataset.places) == (self.mbpp.digest, self.mbpp.places):
            return {way: self.held_out[way] for way in ways if way in self.held_out}
        return self._score_held_out(dataset, ways)

    def _score_held_out(self, dataset: Dataset, ways: Sequence[Way]) -> dict[Way, Floats]:
        with tqdm(total=NUM_FOLDS, desc="folds", leave=False) as bar:
            return score_held_out(dataset, ways, self.candidates(dataset), progress=bar.update)

    def reward_scores(self, name: str) -> Floats | None:
        """Return the reward model's scores of a benchmark's samples, as score.py wrote them.

        Raises:
            EvaluationError: They are of other samples.
        """
        path = self.folder / "reward" / f"{name}.json"
        dataset = self.mbpp if name == "mbpp" else self.find(name)
        if dataset is None or not path.is_file():
            self.missing[f"reward/{name}.json"] = "is not there"
            return None
        stored = json.loads(path.read_text("utf-8"))
        if stored["dataset"] != dataset.digest:
            raise EvaluationError(
                "reward", f"{path} is of another dataset than {name}: run score.py again"
            )
        scores: Floats = np.array(stored["scores"], dtype=np.float64)  # null is NaN
        return scores[np.isin(dataset.groups, self.test)] if name == "mbpp" else scores


def pair_up(one: Dataset, other: Dataset, k: int) -> tuple[Judged, Judged]:
    """Return both on the prompts that they have in common, in the same order and with the same k.

    Raises:
        EvaluationError: There are fewer than two.
    """
    places = {asked: place for place, asked in enumerate(identify_prompts(other.prompts))}
    asked = identify_prompts(one.prompts)
    here = [place for place, each in enumerate(asked) if each in places]
    parts = one.subset(here), other.subset([places[asked[place]] for place in here])
    k = min(k, *(int(each.num_samples.min(initial=k)) for each in parts))
    return Judged(parts[0], k), Judged(parts[1], k)
