"""The store of per-token scores, against a dictionary."""

import random

import numpy as np
import pytest

from qprobe_server.choice.scores import TokenScores, pool


def write(store: TokenScores, slot: int, offsets: list[int], values: list[float]) -> None:
    store.write(np.full(len(offsets), slot), np.array(offsets), np.array(values, dtype=np.float32))


def take(store: TokenScores, key: str, length: int) -> list[float]:
    taken = store.take(key, length)
    assert taken is not None
    return [float(value) for value in taken[1][0]]


def test_any_order_of_writes_reads_like_a_dictionary() -> None:
    """Random interleavings of 40 candidates: every position holds its own last value."""
    rng = random.Random(0)
    store = TokenScores(keep_finished_s=60)
    expected: dict[str, dict[int, float]] = {}
    slots: dict[str, int] = {}
    for step in range(4000):
        if len(slots) < 40 and rng.random() < 0.2:
            key = f"c{step}"
            (slots[key],) = store.start(key, [0])
            expected[key] = {}
        elif slots:
            key = rng.choice(list(slots))
            if rng.random() < 0.05:
                store.finish(key)
                del slots[key]
            else:
                offset, value = rng.randrange(700), float(np.float32(rng.random()))
                write(store, slots[key], [offset], [value])
                expected[key][offset] = value
    assert len(store) == len(expected)
    for key, written in expected.items():
        scores = take(store, key, 700)
        assert len(scores) == 701
        for offset, score in enumerate(scores):
            assert score == written[offset] if offset in written else np.isnan(score)
    assert len(store) == 0


def test_a_slot_is_clean_when_it_is_used_again() -> None:
    store = TokenScores(keep_finished_s=60)
    for _ in range(50):
        (slot,) = store.start("a", [0])
        write(store, slot, [5], [1.0])
        assert np.isnan(take(store, "a", 4)).all()


def test_a_running_candidate_can_be_taken_with_its_probe() -> None:
    store = TokenScores(keep_finished_s=60)
    (slot,) = store.start("a", [7])
    write(store, slot, [0, 1, 2], [1.0, 2.0, 3.0])
    taken = store.take("a", 1)
    assert taken is not None
    assert taken[0] == [7]
    assert taken[1].tolist() == [[1.0, 2.0]]
    assert store.take("a", 1) is None


def test_a_mix_has_a_row_for_each_of_its_probes() -> None:
    """Of 40 candidates by 3 probes each, more than the table's first rows."""
    store = TokenScores(keep_finished_s=60)
    slots = {number: store.start(f"c{number}", [5, 6, 7]) for number in range(40)}
    assert len({slot for given in slots.values() for slot in given}) == 120
    for number, given in slots.items():
        for row, slot in enumerate(given):
            write(store, slot, [0, 1], [number, row])
    for number in range(0, 40, 2):
        store.finish(f"c{number}")
    for number in range(40):
        taken = store.take(f"c{number}", 1)
        assert taken is not None
        assert taken[0] == [5, 6, 7]
        assert taken[1].tolist() == [[number, row] for row in range(3)]
    assert len(store) == 0


def test_finished_scores_that_nobody_takes_are_forgotten_in_time() -> None:
    """10 candidates that finish 10 s apart: those of the last 30 s are there, and the running."""
    now_s = 0.0
    store = TokenScores(keep_finished_s=30, clock=lambda: now_s)
    (running,) = store.start("running", [0])
    for number in range(10):
        now_s = 10.0 * number
        (slot,) = store.start(f"c{number}", [0])
        write(store, slot, list(range(10)), [float(number)] * 10)
        store.finish(f"c{number}")
    assert len(store) == 5
    assert store.take("c5", 9) is None
    assert take(store, "c6", 9) == [6.0] * 10
    write(store, running, [0], [1.0])
    assert take(store, "running", 0) == [1.0]


def test_the_memory_of_long_completions_is_given_back() -> None:
    """100 rows of 60,000 tokens: 23 MiB, while one of them runs; and the next starts afresh."""
    store = TokenScores(keep_finished_s=60)
    slots = {number: store.start(f"c{number}", [0])[0] for number in range(100)}
    write(store, slots[7], [59_999], [1.0])
    for number in range(99):
        store.finish(f"c{number}")
    assert store._table.nbytes > 20 << 20
    store.drop("c99")
    assert store._table.nbytes == 0
    assert take(store, "c7", 59_999)[-1] == 1.0
    (slot,) = store.start("next", [0])
    write(store, slot, [1], [2.0])
    assert take(store, "next", 1)[-1] == 2.0


def test_dropping_frees_and_unknown_keys_are_ignored() -> None:
    store = TokenScores(keep_finished_s=60)
    for _ in range(1000):
        (slot,) = store.start("a", [0])
        write(store, slot, [1], [1.0])
        store.finish("a")
        store.drop("a")
        store.start("b", [0])
        store.drop("b")
    store.drop("nobody")
    store.finish("nobody")
    assert len(store) == 0


def test_a_key_is_started_once() -> None:
    store = TokenScores(keep_finished_s=60)
    store.start("a", [0])
    with pytest.raises(KeyError):
        store.start("a", [0])


@pytest.mark.parametrize(
    ("scores", "pooling", "window", "expected"),
    [
        ([9.0, 1.0, 2.0, 6.0], "last", None, 6.0),
        ([9.0, 1.0, 2.0, 6.0], "mean", None, 3.0),
        ([9.0, 1.0, 2.0, 6.0], "mean", 2, 1.5),
        ([9.0, 1.0, 2.0, 6.0], "mean", 99, 3.0),
        ([9.0], "last", None, 9.0),
        ([9.0], "mean", 4, 9.0),
    ],
)
def test_pooling(scores: list[float], pooling: str, window: int | None, expected: float) -> None:
    assert pool(np.array(scores, np.float32), pooling=pooling, window=window) == expected
