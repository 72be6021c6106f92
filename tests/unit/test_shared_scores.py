"""Of completions that begin alike one is scored where the others' tokens were in the cache."""

import numpy as np
import pytest

from qprobe_server.vllm_backend.client.score_client import fill_shared


@pytest.mark.parametrize("seed", range(20))
def test_every_token_that_any_completion_that_begins_alike_has_a_score_of_gets_it(
    seed: int,
) -> None:
    """A cache plays along: who comes first computes a block, all that come later find it."""
    rng = np.random.default_rng(seed)
    completions = [rng.integers(0, 2, rng.integers(0, 9)).tolist() for _ in range(9)]
    truth: dict[tuple[tuple[int, ...], int], float] = {}

    def score(prefix: list[int], row: int) -> float:
        return truth.setdefault((tuple(prefix), row), float(rng.normal()))

    seen: set[tuple[int, ...]] = set()
    rows = []
    for each in completions:
        known = np.full((2, len(each) + 1), np.nan, np.float32)
        for offset in range(len(each) + 1):
            # The last token is always computed.
            if tuple(each[:offset]) not in seen or offset == len(each):
                known[:, offset] = [score(each[:offset], row) for row in range(2)]
                seen.add(tuple(each[:offset]))
        rows.append(list(known))
    for each, found in zip(completions, fill_shared(completions, rows), strict=True):
        expected = [
            [score(each[:offset], row) for offset in range(len(each) + 1)] for row in range(2)
        ]
        np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_what_nobody_has_scored_stays_unknown() -> None:
    unknown = np.array([1, np.nan, 3], np.float32)
    other = np.array([1, 2, 4], np.float32)
    (found,), _ = fill_shared([[7, 8], [6, 8]], [[unknown], [other]])
    assert np.isnan(found).tolist() == [False, True, False]
