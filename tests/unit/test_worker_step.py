"""What the worker does with a step, without an engine: which tokens, which scores, which are done.

Against loops over tokens, rows and probes.
"""

import random

import numpy as np
import pytest
import torch

from qprobe_server.vllm_backend.worker.pages import ScorePages
from qprobe_server.vllm_backend.worker.running import Candidate, RowTable
from qprobe_server.vllm_backend.worker.step import Step, select_tokens
from qprobe_server.vllm_backend.worker.weights import ProbeWeights, WantedScores

HIDDEN = 24
LAYERS = [3, 7]
CPU = torch.device("cpu")


def make_step(counts: list[int], computed: list[int], prompts: list[int]) -> Step:
    starts = np.cumsum([0, *counts]).astype(np.int32)
    positions = np.concatenate(
        [np.arange(done, done + count) for done, count in zip(computed, counts, strict=True)]
    )
    generator = torch.Generator().manual_seed(0)
    total = int(starts[-1])
    return Step(
        request_ids=[f"r{index}" for index in range(len(counts))],
        starts=starts,
        num_computed=np.array(computed, np.int32),
        prompt_lengths=np.array(prompts, np.int32),
        positions=torch.from_numpy(positions),
        states=[torch.randn(total, HIDDEN, generator=generator) for _ in range(3)],
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_tokens_of_completions_and_the_last_of_prompts_are_selected(seed: int) -> None:
    """Of prompts read in parts, decodes, drafts, prompts computed again, and requests of others."""
    rng = random.Random(seed)
    counts = [rng.choice([1, 1, 3, 40]) for _ in range(12)]
    prompts = [rng.randint(1, 50) for _ in counts]
    computed = [rng.choice([0, rng.randrange(60)]) for _ in counts]
    step = make_step(counts, computed, prompts)
    numbers = {f"r{each}": at for at, each in enumerate(rng.sample(range(12), 7))}
    given = np.array([rng.choice([-1, rng.randrange(20)]) for _ in numbers])
    expected = []
    for place, request_id in enumerate(step.request_ids):
        if request_id in numbers:
            number = numbers[request_id]
            end = prompts[place] - 1 if given[number] < 0 else int(given[number])
            for row in range(int(step.starts[place]), int(step.starts[place + 1])):
                if int(step.positions[row]) >= end:
                    expected.append((row, number, end))
    found = select_tokens(step, numbers, given)
    assert list(zip(found.rows, found.owners, found.prompt_ends, strict=True)) == expected


def make_weights(
    num_probes: int,
) -> tuple[ProbeWeights, torch.Tensor, torch.Tensor, list[int | str]]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(num_probes, HIDDEN, generator=generator)
    biases = torch.randn(num_probes, generator=generator)
    layers = [(3, 7, "final")[index % 3] for index in range(num_probes)]
    loaded = ProbeWeights(LAYERS, CPU)
    rows = [
        (
            index,
            layers[index],
            weights[index].numpy().tobytes() + biases[index].numpy().tobytes(),
        )
        for index in range(num_probes)
    ]
    for start in range(0, num_probes, 7):
        loaded.load(rows[start : start + 7])
    return loaded, weights, biases, layers


@pytest.mark.parametrize("num_probes", [1, 3, 40])
@pytest.mark.parametrize("num_tokens", [1, 50, 3000])
def test_scores_are_those_of_each_token_by_each_probe(num_probes: int, num_tokens: int) -> None:
    """By one product or by each: float32 rounds a sum of 24 products by under 1e-5 of its size."""
    loaded, weights, biases, layers = make_weights(50)
    rng = np.random.default_rng(num_probes)
    states = [torch.randn(num_tokens + 5, HIDDEN, dtype=torch.bfloat16) for _ in range(3)]
    rows = torch.from_numpy(rng.permutation(num_tokens + 5)[:num_tokens])
    wanted_probes = rng.choice(50, size=(num_tokens, 2)) % num_probes
    probes, columns = loaded.sort(wanted_probes.reshape(-1))
    assert sorted(probes.tolist()) == sorted(set(wanted_probes.reshape(-1).tolist()))
    wanted = WantedScores(np.repeat(np.arange(num_tokens), 2), columns, probes)
    found = wanted.pick(loaded.score(states, rows, wanted).numpy())
    place = {3: 0, 7: 1, "final": 2}
    pairs = [(token, probe) for token in range(num_tokens) for probe in wanted_probes[token]]
    for (token, probe), score in zip(pairs, found.tolist(), strict=True):
        state = states[place[layers[probe]]][rows[token]].double()
        expected = float(state @ weights[probe].double() + biases[probe].double())
        assert score == pytest.approx(expected, abs=1e-4)


def test_a_probe_that_is_replaced_scores_by_its_new_weights() -> None:
    loaded, *_ = make_weights(6)
    states = [torch.ones(1, HIDDEN)] * 3
    probes, columns = loaded.sort(np.array([4]))
    wanted = WantedScores(np.array([0]), columns, probes)
    loaded.score(states, torch.tensor([0]), wanted)
    loaded.load([(4, "final", np.full(HIDDEN + 1, 2, np.float32).tobytes())])
    probes, columns = loaded.sort(np.array([4]))
    wanted = WantedScores(np.array([0]), columns, probes)
    assert loaded.score(states, torch.tensor([0]), wanted).item() == 2 * (HIDDEN + 1)


def make_table(num_rows: list[int], num_whole: int = 1) -> tuple[RowTable, list[Candidate]]:
    loaded, *_ = make_weights(50)
    pages = ScorePages()
    rng = random.Random(3)
    made = {}
    for number, rows in enumerate(num_rows):
        made[f"r{number}"] = Candidate.begin(
            address="",
            key=str(number),
            probes=np.array([rng.randrange(50) for _ in range(rows)]),
            ends=np.array([0 if row < num_whole else rng.randint(1, 5) for row in range(rows)]),
            pages=pages,
        )
    return RowTable(made, loaded.sort), list(made.values())


def test_each_token_is_paired_with_each_row_of_its_candidate() -> None:
    table, candidates = make_table([3, 1, 2, 4])
    owners = np.array([2, 2, 0, 3, 3, 3, 1])
    tokens, rows = table.pair(owners)
    expected = [
        (token, int(slot), int(probe))
        for token, owner in enumerate(owners)
        for slot, probe in zip(candidates[owner].slots, candidates[owner].probes, strict=True)
    ]
    probes = table.probes[table.columns[rows]]
    assert list(zip(tokens.tolist(), table.slots[rows].tolist(), probes.tolist(), strict=True)) == (
        expected
    )


def test_rows_that_are_done_are_left_out() -> None:
    _, candidates = make_table([3, 1, 2])
    candidates[0].is_open[1] = False
    loaded, *_ = make_weights(50)
    again = RowTable({str(each.key): each for each in candidates}, loaded.sort)
    _, rows = again.pair(np.array([0]))
    assert again.slots[rows].tolist() == candidates[0].slots[[0, 2]].tolist()


@pytest.mark.parametrize("drafted", [False, True])
def test_heads_are_done_with_their_last_token_if_that_is_no_draft(*, drafted: bool) -> None:
    """Three tokens of each candidate; of drafts only the first is known to stay."""
    table, candidates = make_table([4, 4, 4, 4])
    owners = np.repeat(np.arange(4), 3)
    for first in range(7):
        offsets = np.tile(np.arange(first, first + 3), 4)
        known = first if drafted else first + 2
        expected = {
            (number, int(slot))
            for number, candidate in enumerate(candidates)
            for slot, end in zip(candidate.slots[1:], candidate.ends[1:], strict=True)
            if end <= known
        }
        assert set(table.find_done(owners, offsets, drafted=drafted)) == expected
