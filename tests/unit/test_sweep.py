"""Sweeps of planted data: the right cell wins, and the test prompts stay unseen."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe.data.dataset import Dataset, Reading, Sample
from qprobe.data.provenance import identify_prompts
from qprobe.data.split import split_prompts
from qprobe.errors import DatasetError, EvaluationError, TrainingError
from qprobe.training import cells, design
from qprobe.training import learning_curve as curves
from qprobe.training.cells import Cell, CellFile, TriedCell, choose_cell
from qprobe.training.cross_validation import Problem, cross_validate
from qprobe.training.design import Columns, Design
from qprobe.training.fit import TrainingSettings, fit_probe
from qprobe.training.inputs import prepare_each
from qprobe.training.learning_curve import learning_curve
from qprobe.training.part import fit_part
from qprobe.training.sweep import count_cells, drop_equal, format_table, run_sweep, write_sweep

NUM_PROMPTS, N, HIDDEN = 40, 6, 4
GOOD, BAD = Reading(3, "mean", 8), Reading("final", "last")
SETTINGS = TrainingSettings(beta=0.1, weight_decays=(1.0, 0.1), num_folds=2)


def make_dataset(*, scale: float = 1.0) -> Dataset:
    """Return rewards that the first feature of GOOD gives away, and nothing in BAD does."""
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=(2, NUM_PROMPTS * N, HIDDEN))
    rewards = scale * (good[:, 0] + 0.3 * rng.normal(size=len(good)) > 0.5)
    samples = [
        Sample(
            prompt=i // N,
            index=i % N,
            text="",
            token_ids=[1, 2],
            num_scored=1,
            logprob=-1.0,
            finish_reason="stop",
            seed=i,
            reward=float(rewards[i]),
        )
        for i in range(len(good))
    ]
    manifest = {
        "model": "org/model",
        "hidden_size": HIDDEN,
        "num_layers": 6,
        "reward": "tests",
        "readings": [str(GOOD), str(BAD)],
    }
    prompts: list[dict[str, Any]] = [{"prompt": f"p{i}"} for i in range(NUM_PROMPTS)]
    embeddings = {GOOD: torch.tensor(good).half(), BAD: torch.tensor(bad).half()}
    return Dataset(manifest, prompts, samples, embeddings, np.full(NUM_PROMPTS, np.nan))


DATASET = make_dataset()
RESULT = run_sweep(
    DATASET, readings=[BAD, GOOD], objectives=["mse", "pg"], settings=SETTINGS, numbers=()
)
A, B, BOTH = Design((BAD,)), Design((GOOD,)), Design((GOOD, BAD))


def test_the_planted_reading_wins() -> None:
    """Together with what says nothing it earns no more, so that it is tried, and loses."""
    assert [(cell.terms, cell.objective) for cell in RESULT.cells] == [
        (A, "mse"),
        (A, "pg"),
        (B, "mse"),
        (B, "pg"),
        (BOTH, "mse"),
        (BOTH, "pg"),
    ]
    rewards = {(cell.terms, cell.objective): cell.reward or 0.0 for cell in RESULT.cells}
    assert GOOD in RESULT.winner.terms.readings
    assert rewards[B, "mse"] > RESULT.base + 0.8 * (RESULT.ceiling - RESULT.base)
    assert RESULT.metrics["gain"]["low"] > 0


def test_test_prompts_meet_nothing_but_the_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array that is trained on holds development rows only; the halves are disjoint."""
    assert set(RESULT.development).isdisjoint(RESULT.test)
    assert sorted(RESULT.development + RESULT.test) == list(range(NUM_PROMPTS))
    assert len(RESULT.test) == NUM_PROMPTS // 4
    seen: set[bytes] = set()

    def record(blocks: Iterable[torch.Tensor], *rest: Any, **named: Any) -> Any:
        every = list(blocks)
        seen.update(row.numpy().tobytes() for block in every for row in block)
        return prepare_each(every, *rest, **named)

    monkeypatch.setattr(design, "prepare_each", record)
    run_sweep(DATASET, readings=[BAD, GOOD], objectives=["mse"], settings=SETTINGS, numbers=())
    for reading in (BAD, GOOD):
        for prompt in range(NUM_PROMPTS):
            rows = DATASET.features(reading)[DATASET.groups == prompt]
            found = {row.numpy().tobytes() in seen for row in rows}
            assert found == {prompt in RESULT.development}


def test_other_test_rewards_change_no_choice() -> None:
    changed = make_dataset()
    inside = np.isin(changed.groups, RESULT.test)
    changed.samples = [
        replace(each, reward=1.0 - reward) if flip else each
        for each, reward, flip in zip(changed.samples, changed.rewards, inside, strict=True)
    ]
    changed.rewards = np.array([each.reward for each in changed.samples])
    again = run_sweep(
        changed, readings=[BAD, GOOD], objectives=["mse", "pg"], settings=SETTINGS, numbers=()
    )
    assert again.cells == RESULT.cells
    assert again.winner == RESULT.winner
    assert again.metrics["policy"] != RESULT.metrics["policy"]


def test_the_winner_can_be_trained_again() -> None:
    known = DATASET.subset(RESULT.development)
    again = fit_probe(
        RESULT.winner.terms.read(known).blocks, known.rewards, known.groups, RESULT.settings
    )
    assert RESULT.settings.objective == RESULT.winner.objective
    assert again.weight_decay == RESULT.probe.info.training["weight_decay"]
    assert again.weight_decay == RESULT.winner.weight_decay
    for mine, theirs in zip(again.weights, RESULT.probe.terms.states, strict=True):
        assert np.array_equal(mine.numpy(), theirs.weight)


def test_an_objective_that_refuses_the_data_leaves_an_empty_cell() -> None:
    """Also that rewards below 0 can win."""
    shifted = make_dataset(scale=4.0)
    shifted.samples = [
        replace(each, reward=float(reward) - 5)
        for each, reward in zip(shifted.samples, shifted.rewards, strict=True)
    ]
    shifted.rewards = np.array([each.reward for each in shifted.samples])
    found: list[Cell] = []
    result = run_sweep(
        shifted,
        readings=[GOOD],
        objectives=["ce", "mse"],
        settings=SETTINGS,
        progress=found.append,
        numbers=(),
    )
    assert found == result.cells
    assert result.cells[0].reward is None
    assert "from 0 to 1" in str(result.cells[0].refusal)
    assert result.winner.objective == "mse"
    assert "-" in format_table(result).split()
    with pytest.raises(TrainingError, match="none can be trained"):
        run_sweep(shifted, readings=[GOOD], objectives=["ce"], settings=SETTINGS, numbers=())


def test_what_states_and_numbers_tell_is_found_together() -> None:
    """Rewards that are half a feature of a layer, and half the log-probability: both win.

    The cells are each reading, the numbers, each reading with them, and both layers with them.
    """
    dataset = make_dataset()
    logprobs = np.random.default_rng(1).normal(size=len(dataset.samples))
    rewards = dataset.features(GOOD)[:, 0].numpy() + logprobs
    dataset.samples = [
        replace(each, logprob=float(logprob), reward=float(reward))
        for each, logprob, reward in zip(dataset.samples, logprobs, rewards, strict=True)
    ]
    dataset.rewards = rewards.astype(np.float64)
    result = run_sweep(dataset, readings=[BAD, GOOD], objectives=["mse"], settings=SETTINGS)
    earned = {str(each.terms): each.reward or 0.0 for each in result.cells}
    assert list(earned) == [
        "final/last",
        "3/mean/8",
        "numbers",
        "3/mean/8 + numbers",
        "final/last + numbers",
        "3/mean/8 + final/last + numbers",
    ]
    assert len(earned) == count_cells([BAD, GOOD], numbers=True, objectives=1)
    assert {"3/mean/8", "numbers"} <= set(str(result.winner.terms).split(" + "))
    best = earned["3/mean/8 + numbers"]
    assert best - result.base > 1.2 * (max(earned["3/mean/8"], earned["numbers"]) - result.base)
    again = [Design.parse(name) for name in earned]
    assert again == [each.terms for each in result.cells]


def test_gates_are_tried_alone_and_with_the_numbers() -> None:
    dataset = make_dataset()
    plain, other = dataset.embeddings_of(GOOD), Reading(4, "mean")
    embeddings = {Reading(3, "mean"): plain, GOOD: plain, other: dataset.embeddings_of(BAD)}
    made = Dataset(
        dataset.manifest,
        dataset.prompts,
        [replace(each, num_scored=9 + each.index, logprob=each.index) for each in dataset.samples],
        {**embeddings, Reading(3, "mean", 4): plain},
        dataset.greedy_rewards,
    )
    result = run_sweep(
        made, readings=made.readings, gates=["3/4,8"], objectives=["mse"], settings=SETTINGS
    )
    names = [str(each.terms) for each in result.cells]
    assert names[-2:] == ["3/gate/4,8", "3/gate/4,8 + numbers"]
    assert len(names) == count_cells(made.readings, numbers=True, objectives=1, gates=1)
    assert all(each.reward is not None for each in result.cells)


def test_files_say_what_was_found(tmp_path: Path) -> None:
    write_sweep(RESULT, tmp_path / "new")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["sweep.csv", "sweep.json"]
    stored = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert stored["winner"]["terms"] == str(RESULT.winner.terms)
    assert stored["test_prompts"] == RESULT.test
    assert stored["test"] == RESULT.metrics
    with (tmp_path / "new" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["reward"]) for row in rows] == [cell.reward for cell in RESULT.cells]


def test_table() -> None:
    lines = format_table(RESULT).splitlines()
    assert lines[0].split() == ["terms", "mse", "pg"]
    assert [re.split(r"\s{2,}", line)[0] for line in lines[1:]] == [
        "final/last",
        "3/mean/8",
        str(BOTH),
    ]
    assert format_table(RESULT).count("*") == 1
    starred = next(word for word in format_table(RESULT).split() if "*" in word)
    assert starred == f"{RESULT.winner.reward:.3f}*"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["3/mean", "3/mean/8", "3/mean/9", "4/mean/2"], ["3/mean", "4/mean/2"]),
        (["3/mean/9", "3/mean/1", "3/mean/8"], ["3/mean/1", "3/mean/8"]),
        (["final/last", "final/mean/2", "3/mean/2"], ["final/last", "final/mean/2", "3/mean/2"]),
        (["3/mean/1", "3/mean"], ["3/mean/1", "3/mean"]),
        (["3/mean", "3/max/2", "3/max/1"], ["3/mean", "3/max/1"]),
    ],
)
def test_windows_that_no_answer_outgrows_are_one_reading(given: list[str], kept: list[str]) -> None:
    """With answers of up to two tokens; of equal readings the shortest window stands for all."""
    dataset = make_dataset()
    dataset.samples = [replace(each, num_scored=1 + each.index % 2) for each in dataset.samples]
    readings = [Reading.parse(each) for each in given]
    found, equal = drop_equal(dataset, readings)
    assert list(map(str, found)) == kept
    assert set(found).isdisjoint(equal)
    assert set(found) | set(equal) == set(readings)


def test_splits() -> None:
    rows = DATASET.prompts
    assert split_prompts(rows) == split_prompts(rows)
    assert split_prompts(rows) != split_prompts(rows, seed=1)
    assert [len(side) for side in split_prompts(rows[:4], test_fraction=0.99)] == [2, 2]
    with pytest.raises(EvaluationError, match="at least 4"):
        split_prompts(DATASET.prompts[:3])
    with pytest.raises(EvaluationError, match=r"test_fraction.*1\.0"):
        split_prompts(DATASET.prompts, test_fraction=1.0)


def test_rows_may_say_their_split() -> None:
    """A fraction that is asked for goes before it."""
    rows = [{"prompt": f"q{i}", "split": "test" if i in (1, 4) else "train"} for i in range(6)]
    assert split_prompts(rows) == split_prompts(rows, seed=1) == ([0, 2, 3, 5], [1, 4])
    assert len(split_prompts(rows, test_fraction=0.5)[1]) == 3


def test_what_a_row_asks_does_not_hang_on_the_order_of_fields() -> None:
    one = {"messages": [{"role": "user", "content": "q"}], "tests": ["a"]}
    same = {"tests": ["b"], "messages": [{"content": "q", "role": "user"}]}
    other = {"messages": [{"role": "user", "content": "Q"}]}
    found = identify_prompts([one, same, other])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({3: {"split": "validation"}}, "of row 4 must be .*'validation'"),
        ({3: {}}, "of row 4 must be .*None"),
        ({1: {"split": "train"}}, "must be 'test' in 2 different"),
        ({5: {"split": "test", "prompt": "q0"}}, "of row 6 is 'test', and a row"),
    ],
)
def test_a_split_that_is_none(changed: dict[int, dict[str, Any]], said: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"q{i}", **changed.get(i, {"split": "test" if i in (1, 4) else "train"})}
        for i in range(6)
    ]
    with pytest.raises(EvaluationError, match=f"split: {said}"):
        split_prompts(rows)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_ask_the_same_are_on_one_side(seed: int) -> None:
    """As data of preferences have them: many pairs of a prompt, in each form of a row."""
    rows: list[dict[str, Any]] = []
    for i in range(20):
        chat = [{"role": "user", "content": f"q{i % 5}"}]
        answer = {"role": "assistant", "content": f"a{i}"}
        forms: list[dict[str, Any]] = [
            {"prompt": f"q{i % 5}", "chosen": f"a{i}"},
            {"messages": chat, "completions": [f"a{i}"]},
            {"chosen": [*chat, answer], "rejected": [*chat, answer]},
        ]
        rows.append(forms[i // 7])
    known, test = split_prompts(rows, test_fraction=0.4, seed=seed)
    assert sorted(known + test) == list(range(20))
    for first, other in ((0, 5), (7, 12), (14, 19)):
        assert (first in test) == (other in test)


def test_settings_that_cannot_be_are_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(design, "prepare_each", None)
    with pytest.raises(EvaluationError, match=r"k: must be from 1 to 6, .* got 7"):
        run_sweep(
            DATASET, readings=[GOOD], objectives=["mse"], settings=SETTINGS, k=N + 1, numbers=()
        )
    with pytest.raises(EvaluationError, match="objectives: must not hold both 'bt' and 'dpo'"):
        run_sweep(DATASET, readings=[GOOD], objectives=["dpo", "bt"], settings=SETTINGS, numbers=())
    with pytest.raises(EvaluationError, match="objectives: must be different, got 'mse' twice"):
        run_sweep(
            DATASET, readings=[GOOD], objectives=["mse", "pg", "mse"], settings=SETTINGS, numbers=()
        )
    with pytest.raises(EvaluationError, match="readings: must be different, got '3/mean/8' twice"):
        run_sweep(
            DATASET, readings=[GOOD, BAD, GOOD], objectives=["mse"], settings=SETTINGS, numbers=()
        )
    with pytest.raises(TrainingError, match="'pgg'"):
        run_sweep(
            DATASET, readings=[GOOD], objectives=["mse", "pgg"], settings=SETTINGS, numbers=()
        )


def test_what_cannot_be_swept_is_refused() -> None:
    with pytest.raises(EvaluationError, match="at least one"):
        run_sweep(DATASET, readings=[], objectives=["mse"], settings=SETTINGS, numbers=())
    with pytest.raises(DatasetError, match="7/last"):
        run_sweep(
            DATASET,
            readings=[GOOD, Reading(7, "last")],
            objectives=["mse"],
            settings=SETTINGS,
            progress=lambda cell: pytest.fail(f"{cell} was tried first"),
            numbers=(),
        )


def test_a_learning_curve_climbs_to_the_probe_of_all_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every size trains on that many prompts, on 5 different choices of them."""
    sets: list[bytes] = []

    def record(dataset: Dataset, columns: Columns, rows: Any, *rest: Any) -> Any:
        sets.append(columns[rows].blocks[0].numpy().tobytes())
        return fit_part(dataset, columns, rows, *rest)

    monkeypatch.setattr(curves, "fit_part", record)
    known, unseen = DATASET.subset(RESULT.development), DATASET.subset(RESULT.test)
    settings = RESULT.settings
    terms = RESULT.winner.terms
    rows = learning_curve(known, unseen, design=terms, settings=settings, k=N, sizes=(2, 8, 99))
    assert [row["num_prompts"] for row in rows] == [2, 8, 30]
    assert [len(row["runs"]) for row in rows] == [5, 5, 1]
    assert rows[-1]["reward"] == pytest.approx(RESULT.metrics["policy"]["reward"])
    assert rows[0]["reward"] < rows[-1]["reward"]
    assert all(row["low"] <= row["reward"] <= row["high"] for row in rows)
    assert rows[1]["reward"] == pytest.approx(np.mean(rows[1]["runs"]))
    sizes = [len(each) // (N * HIDDEN * 4) for each in sets]  # float32
    assert sizes == [30] + [2] * 5 + [8] * 5
    assert len(set(sets)) == len(sets)


def test_a_training_set_without_a_signal_counts_as_the_base_model() -> None:
    """With equal rewards in all prompts but 8, some orders begin with 2 equal ones."""
    known, unseen = DATASET.subset(RESULT.development), DATASET.subset(RESULT.test)
    known.rewards = np.where(known.groups < 8, known.rewards, 1.0)
    (first, *_) = learning_curve(known, unseen, design=B, settings=SETTINGS, k=N, sizes=(2,))
    assert min(first["runs"]) == pytest.approx(unseen.rewards.mean())
    known.rewards = np.ones(len(known.rewards))
    with pytest.raises(TrainingError, match="nothing to learn"):
        learning_curve(known, unseen, design=B, settings=SETTINGS, k=N)


def test_prompts_that_ask_the_same_leave_fewer_folds_and_no_base_model() -> None:
    """As pairs of preferences do: of 12 prompts that ask fewer things there cannot be 12 folds."""
    known, unseen = DATASET.subset(RESULT.development), DATASET.subset(RESULT.test)
    known.prompts = [{"prompt": f"p{index // 2}"} for index in range(len(known.prompts))]
    settings = replace(SETTINGS, num_folds=12)
    (first, *_) = learning_curve(known, unseen, design=B, settings=settings, k=N, sizes=(12,))
    assert min(first["runs"]) > unseen.rewards.mean() + 0.1


def test_a_sweep_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that are there are not computed again, and the result is the same, bit by bit."""

    def stop(cell: Cell) -> None:
        if (cell.terms, cell.objective) == (B, "mse"):
            raise KeyboardInterrupt

    def sweep_all(**fields: Any) -> Any:
        return run_sweep(
            DATASET,
            readings=[BAD, GOOD],
            objectives=["mse", "pg"],
            numbers=(),
            folder=tmp_path,
            **fields,
        )

    with pytest.raises(KeyboardInterrupt):
        sweep_all(settings=SETTINGS, progress=stop)
    tried: list[str] = []

    def count(problem: Problem, *rest: Any) -> Any:
        tried.append(problem.settings.objective)
        return cross_validate(problem, *rest)

    monkeypatch.setattr(cells, "cross_validate", count)
    told: list[Cell] = []
    again = sweep_all(settings=SETTINGS, progress=told.append)
    assert tried == ["pg", "mse", "pg"]
    assert told == again.cells == RESULT.cells
    assert again.winner == RESULT.winner
    mine, theirs = (each.probe.terms.states[0].weight for each in (again, RESULT))
    assert np.array_equal(mine, theirs)
    changed = r"output: .*sweep-cells.json.* beta 0.1 and not 0.5: .* remove the file"
    with pytest.raises(EvaluationError, match=changed):
        sweep_all(settings=replace(SETTINGS, beta=0.5))
    write_sweep(again, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.json"]
    tried.clear()
    sweep_all(settings=SETTINGS)
    assert tried == ["mse", "pg"] * 3


@pytest.mark.parametrize(
    ("prompts", "samples"), [([*range(38)], N), ([*range(38), 39], N), ([*range(39)], N - 1)]
)
def test_a_sweep_goes_on_with_the_same_prompts_and_samples_only(
    tmp_path: Path, prompts: list[int], samples: int
) -> None:
    """As with another ``--min-samples``, whose dataset has the same digest and test prompts."""
    dataset = make_dataset()
    for i, row in enumerate(dataset.prompts):
        row["split"] = "test" if i < 10 else "train"

    def sweep_all(of: Dataset, **fields: Any) -> Any:
        given: dict[str, Any] = {"readings": [GOOD], "objectives": ["mse"], "numbers": ()}
        return run_sweep(of, settings=SETTINGS, folder=tmp_path, k=2, **given, **fields)

    sweep_all(dataset.subset([*range(39)]))
    other = dataset.subset(prompts)
    other.samples = [each for each in other.samples if each.index < samples]
    other.groups = np.array([each.prompt for each in other.samples])
    said = r"with development_prompts 29, of 174 samples \(\w{12}\) and not \d+, of \d+ samples"
    with pytest.raises(EvaluationError, match=said):
        sweep_all(other)


def test_a_file_of_cells_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep-cells.json"
    for text in ("{", "[]", '{"about": {}, "cells": [{"terms": "x"}]}'):
        path.write_text(text)
        with pytest.raises(EvaluationError, match="is no sweep's: remove it"):
            CellFile(path, {})


def tried_cell(terms: Design, objective: str, rewards: list[float]) -> TriedCell:
    cell = Cell(terms, objective, float(np.mean(rewards)), 1.0, None)
    return TriedCell(cell, np.array(rewards))


def test_the_steadier_objective_wins_where_the_difference_is_noise() -> None:
    """Of the best terms; a difference in every prompt is none."""
    noisy, sure = [0.5, 0.9, 0.1, 0.7], [0.6, 0.65, 0.62, 0.63]
    other = tried_cell(A, "ce", [0.5] * 4)
    ce, pg = tried_cell(B, "ce", [0.5, 0.5, 0.6, 0.5]), tried_cell(B, "pg", noisy)
    each = np.arange(4)
    assert choose_cell([other, pg, ce], each) == ce.cell
    assert choose_cell([other, tried_cell(B, "pg", sure), ce], each).objective == "pg"
    assert choose_cell([tried_cell(B, "pg", sure), tried_cell(B, "bt", sure)], each) == (
        tried_cell(B, "bt", sure).cell
    )


def test_equal_questions_count_once_in_the_error_of_a_difference() -> None:
    """A mean difference of 0.1: its error is 0.07 over 4 questions, 0.12 if these are 2 twice."""
    ce = tried_cell(A, "ce", [0.5] * 4)
    pg = tried_cell(A, "pg", [0.72, 0.72, 0.48, 0.48])
    assert choose_cell([ce, pg], np.arange(4)).objective == "pg"
    assert choose_cell([ce, pg], np.array([0, 0, 1, 1])).objective == "ce"
