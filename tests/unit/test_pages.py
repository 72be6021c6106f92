"""The pages of per-token scores, against dictionaries."""

import random

import numpy as np

from qprobe_server.vllm_backend.worker.pages import ScorePages


def write(pages: ScorePages, slot: int, offsets: list[int], values: list[float]) -> None:
    pages.write(np.full(len(offsets), slot), np.array(offsets), np.array(values, dtype=np.float32))


def test_any_order_of_writes_reads_like_a_dictionary() -> None:
    """Random interleavings of 40 rows, far longer than a page, ended and begun again."""
    rng = random.Random(0)
    pages = ScorePages()
    expected: dict[int, dict[int, float]] = {}
    for _ in range(6000):
        choice = rng.random()
        if len(expected) < 40 and choice < 0.2:
            (slot,) = pages.begin(1).tolist()
            assert slot not in expected
            expected[slot] = {}
        elif expected and choice < 0.23:
            slot = rng.choice(list(expected))
            pages.end(np.array([slot]))
            del expected[slot]
        elif expected:
            some = rng.sample(list(expected), min(3, len(expected)))
            slots = np.array([slot for slot in some for _ in range(2)])
            offsets = np.array([rng.randrange(1000) for _ in slots])
            values = np.array([rng.random() for _ in slots], np.float32)
            pages.write(slots, offsets, values)
            for slot, offset, value in zip(slots, offsets, values, strict=True):
                expected[int(slot)][int(offset)] = float(value)
    for slot, written in expected.items():
        row = pages.read(slot)
        assert row.size == max(written, default=-1) + 1
        for offset, score in enumerate(row.tolist()):
            assert score == written[offset] if offset in written else np.isnan(score)


def test_a_slot_is_clean_when_it_is_used_again() -> None:
    pages = ScorePages()
    for _ in range(50):
        slots = pages.begin(1)
        write(pages, int(slots[0]), [5], [1.0])
        row = pages.read(int(slots[0]))
        assert np.isnan(row[:5]).all()
        assert row[5] == 1.0
        pages.end(slots)


def test_a_long_row_costs_the_others_nothing() -> None:
    """One of 131,072 tokens beside 4,095 of 256: about 5 MiB, not 2 GiB."""
    pages = ScorePages()
    slots = pages.begin(4096)
    for offset in range(256):
        pages.write(slots, np.full(4096, offset), np.ones(4096, np.float32))
    write(pages, int(slots[0]), list(range(131_072)), [1.0] * 131_072)
    needed = 4 * (131_072 + 4095 * 256)
    assert needed < pages.num_bytes < 12 * needed
    assert pages.read(int(slots[0])).sum() == 131_072
    pages.end(slots)


def test_the_memory_of_many_rows_is_given_back() -> None:
    pages = ScorePages()
    slots = pages.begin(100)
    for slot in slots.tolist():
        write(pages, slot, list(range(60_000)), [1.0] * 60_000)
    assert pages.num_bytes > 20 << 20
    pages.end(slots[:99])
    assert pages.read(int(slots[99])).sum() == 60_000
    pages.end(slots[99:])
    assert pages.num_bytes < 1 << 20
    (slot,) = pages.begin(1).tolist()
    write(pages, slot, [1], [2.0])
    assert pages.read(slot)[1] == 2.0
