"""Gates: they find which segment tells, and are served as they were trained."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import Reading, TrainingSettings, evaluate, train
from qprobe.data.dataset import Dataset, Sample
from qprobe.errors import DatasetError, TrainingError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.scoring import score
from qprobe.probe.file import load_probe, save_probe
from qprobe.probe.pooling import pool_gated
from qprobe.probe.terms import Terms
from qprobe.training.design import Design
from qprobe.training.gate import Gate, _read_tokens, fit_gate
from qprobe.training.recipe import make_probe

NUM_PROMPTS, N, TOKENS, HIDDEN = 60, 8, 12, 4
SETTINGS = TrainingSettings(objective="bt", weight_decays=(0.1,), num_folds=3)
READINGS = [Reading(3, "mean"), Reading(3, "mean", 4), Reading(3, "mean", 8)]


def plant(seed: int) -> tuple[Dataset, torch.Tensor]:
    """One of three segments of 4 tokens is marked by feature 0; only its feature 1 is rewarded."""
    rng = np.random.default_rng(seed)
    num = NUM_PROMPTS * N
    states = rng.normal(size=(num, 3, HIDDEN))
    marked = rng.integers(0, 3, size=num)
    states[:, :, 0] = -2
    states[np.arange(num), marked, 0] = 2
    rewards = states[np.arange(num), marked, 1]
    tokens = torch.tensor(np.repeat(states, 4, axis=1))  # (samples, tokens, hidden)
    samples = [
        Sample(i // N, i % N, "", [1] * (TOKENS + 1), TOKENS, None, "stop", i, float(reward))
        for i, reward in enumerate(rewards)
    ]
    embeddings = {each: tokens[:, : each.window].mean(1).half() for each in READINGS}
    read = tokens.half().__getitem__
    manifest: dict[str, Any] = {"model": "org/model", "hidden_size": HIDDEN, "num_layers": 6}
    prompts: list[dict[str, Any]] = [{"prompt": f"p{i}"} for i in range(NUM_PROMPTS)]
    greedy = np.full(NUM_PROMPTS, np.nan)
    return Dataset(manifest, prompts, samples, embeddings, greedy, tokens={3: read}), tokens


@pytest.mark.parametrize("segments", [(4, 8), ()])
def test_a_gate_hears_what_tells(segments: tuple[int, ...], tmp_path: Any) -> None:
    """A mean mixes it with two others, so that it earns at most half as much above the mean.

    By segments and by single tokens, which are served as they are measured.
    """
    known, _ = plant(0)
    unseen, tokens = plant(1)
    ends = ",".join(map(str, segments))
    gate = f"3/{ends}" if ends else "3"
    totals: list[int] = []
    gated = train(known, (), SETTINGS, gates=[gate], test_fraction=0, progress=totals.append)
    assert totals == [2 + 2 + 4] * 8  # the fit, its confidence's own, and the gate's
    plain = train(known, READINGS, SETTINGS, test_fraction=0)
    assert gated.terms.describe() == ("3/gate/4,8" if segments else "3/gate")
    earned = [
        expected_rewards(
            score(each.terms, unseen), unseen.rewards, unseen.groups, k=N, beta=0
        ).mean()
        for each in (gated, plain)
    ]
    ceiling = expected_rewards(unseen.rewards, unseen.rewards, unseen.groups, k=N, beta=0).mean()
    assert earned[0] > 0.9 * ceiling
    assert earned[0] > earned[1] + 0.2
    save_probe(gated, tmp_path / "p.safetensors")
    (term,) = load_probe(tmp_path / "p.safetensors").terms.gates
    states = torch.cat([tokens[:, :1] * 0, tokens], dim=1).numpy()
    served = [
        pool_gated(
            each @ term.gate + term.gate_bias,
            each @ term.value + term.value_bias,
            segments=segments,
        )
        for each in states[:50]
    ]
    assert score(gated.terms, unseen)[:50] == pytest.approx(
        np.array(served) + gated.terms.bias, abs=0.02
    )


def test_tokens_of_answers_of_any_length_are_heard_alike() -> None:
    """What lies behind an answer's end weighs nothing: the scores are ``pool_gated``'s."""
    known, tokens = plant(0)
    lengths = np.random.default_rng(2).integers(0, TOKENS + 1, len(known.samples))
    known.samples = [
        replace(each, num_scored=int(length))
        for each, length in zip(known.samples, lengths, strict=True)
    ]
    cut = [states[: max(length, 1)].half() for states, length in zip(tokens, lengths, strict=True)]
    made = Dataset(
        known.manifest,
        known.prompts,
        known.samples,
        {},
        known.greedy_rewards,
        tokens={3: cut.__getitem__},
    )
    term = fit_gate(made, Gate(3, ()), SETTINGS).term
    held = _read_tokens(made, Gate(3, ()), lambda states: states)
    bare = torch.tensor([*term.gate, term.gate_bias, *term.value, term.value_bias]).double()
    assert held.score(bare).numpy() == pytest.approx(score(Terms(gates=(term,)), made), abs=1e-6)


def test_gates_stand_beside_numbers_and_are_not_in_heads() -> None:
    """Without the log-probability of every token the heads have the states alone."""
    known, _ = plant(0)
    known.samples = [
        replace(each, finish_reason="length" if each.index % 2 else "stop")
        for each in known.samples
    ]
    given: dict[str, Any] = {"numbers": ["cut"], "gates": ["3/4,8"], "checkpoints": [4]}
    probe = train(known, (), SETTINGS, **given)
    assert probe.terms.describe() == "3/gate/4,8 + numbers(cut)"
    assert probe.heads[4].describe() == "3/mean/4"
    with pytest.raises(TrainingError, match="not trained anew"):
        Design.of(probe.terms)
    told = [evaluate(probe, known, curve=curve)["notes"] for curve in (True, False)]
    assert told == [["there is no learning curve of a probe with a gate"], []]


def test_gates_beside_readings_are_refused() -> None:
    """Their held-out scores know the rewards of the folds that the readings are tried on."""
    known, _ = plant(0)
    with pytest.raises(TrainingError, match=r"gates: go with numbers .* would leak"):
        train(known, Reading(3, "mean"), SETTINGS, gates=["3/4,8"])


def test_held_out_scores_know_nothing_of_their_prompts_rewards() -> None:
    """Other rewards of one prompt leave its own scores as they are, but for the choice of decay."""
    known, _ = plant(0)
    first = fit_gate(known, Gate(3, (4, 8)), SETTINGS).held_out_scores
    inside = known.groups == 5
    known.rewards = np.where(inside, known.rewards[::-1], known.rewards)
    changed = fit_gate(known, Gate(3, (4, 8)), SETTINGS).held_out_scores
    assert changed[inside] == pytest.approx(first[inside], abs=1e-6)
    assert not np.allclose(changed[~inside], first[~inside], atol=1e-6)


@pytest.mark.parametrize("text", ["", "3/", "3/0", "3/8,4", "3/4,4", "x/4", "3/4,"])
def test_bad_gates_are_named(text: str) -> None:
    with pytest.raises(TrainingError, match=f"gate: must be LAYER.*{text!r}"):
        Gate.parse(text)


def test_what_a_gate_reads_must_be_stored() -> None:
    known, _ = plant(0)
    for text, missing in (("3/4,9", "3/mean/9"), ("final/4", "final/mean/4")):
        with pytest.raises(DatasetError, match=missing):
            train(known, (), SETTINGS, gates=[text])
    with pytest.raises(DatasetError, match=r"final/tokens: are not in .* has 3/tokens"):
        train(known, (), SETTINGS, gates=["final"])
    settings = replace(SETTINGS, objective="ce")
    with pytest.raises(TrainingError, match="from 0 to 1"):
        make_probe(known, Design(gates=(Gate(3, (4, 8)),)), settings, k=4, test=[], licence=None)
