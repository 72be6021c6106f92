"""Which tokens of a candidate are scored, and the seeded choice."""

import itertools
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from qprobe_server.choice.candidates import Candidate, count_scored_tokens
from qprobe_server.choice.draw import check_finite, choose, combine
from qprobe_server.choice.result import dump_result, make_result, show_candidates
from qprobe_server.choice.schemas import CandidateReply, ResultReply
from qprobe_server.errors import ScoringError

# A vocabulary of bytes: token i decodes as byte i, so that UTF-8 is split between tokens.
TEXT = "häuser\nEND more"
TOKENS = list(TEXT.encode())


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode(errors="replace")


def candidate(
    token_ids: Sequence[int], finish: str, stop: int | str | None = None, text: str = ""
) -> Candidate:
    return Candidate(text=text, token_ids=token_ids, finish_reason=finish, stop_reason=stop)


@pytest.mark.parametrize(
    ("finished", "count"),
    [
        (candidate([5, 6, 7, 2], "stop"), 3),  # EOS
        (candidate([5, 6, 7, 9], "stop", 9), 3),  # stop_token_ids
        (candidate([5, 6, 7], "length"), 2),
        (candidate([2], "stop"), 0),
        (candidate([5], "length"), 0),
        (candidate([], "abort"), 0),
    ],
)
def test_the_last_token_generated_is_never_scored(finished: Candidate, count: int) -> None:
    assert count_scored_tokens(finished, decode) == count


@pytest.mark.parametrize(
    ("stop", "kept"),
    [("END", "häuser\n"), ("user", "hä"), ("äu", "h"), ("h", ""), ("more", "häuser\nEND ")],
)
def test_a_stop_string_keeps_the_tokens_of_the_kept_text(stop: str, kept: str) -> None:
    """Byte tokens make the expected count exact: the bytes of the kept text."""
    generated = TOKENS[: len(TEXT[: TEXT.index(stop) + len(stop)].encode())]
    finished = candidate(generated, "stop", stop, text=kept)
    expected = min(len(kept.encode()), len(generated) - 1)
    assert count_scored_tokens(finished, decode) == expected


def test_a_leading_space_that_decoding_drops_costs_no_token() -> None:
    """As Llama 2's tokenizer: the text begins with a space that decode() of the tokens lacks."""

    def strip(token_ids: Sequence[int]) -> str:
        return decode(token_ids).removeprefix(" ")

    finished = candidate(list(b" one END"), "stop", "END", text=" one ")
    assert count_scored_tokens(finished, strip) == len(b" one ")


def test_a_stop_string_that_is_kept_is_scored_one_token_early() -> None:
    generated = TOKENS[: len("häuser\nEND".encode())]
    finished = candidate(generated, "stop", "END", text="häuser\nEND")
    assert count_scored_tokens(finished, decode) == len(generated) - 1


def test_a_seed_repeats_the_choice_and_prompts_differ() -> None:
    scores = [0.0] * 64
    chosen = [
        choose(scores, beta=1.0, n=1, seed=seed, prompt_index=index).selected[0]
        for seed in (0, -5, 2**63 - 1)
        for index in range(3)
    ]
    again = [
        choose(scores, beta=1.0, n=1, seed=seed, prompt_index=index).selected[0]
        for seed in (0, -5, 2**63 - 1)
        for index in range(3)
    ]
    assert chosen == again
    assert len(set(chosen)) > 3
    free = {choose(scores, beta=1.0, n=1, seed=None, prompt_index=0).selected[0] for _ in range(50)}
    assert len(free) > 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_fail(bad: float) -> None:
    check_finite([0.0, 1.0])
    with pytest.raises(ScoringError, match="candidate 1 of 2"):
        check_finite([0.0, bad])


def test_a_mix_is_the_weighted_sum() -> None:
    assert combine([[1.0, 10.0], [2.0, -4.0]], [2.0, 0.5]) == [7.0, 2.0]
    # A sum in floats loses the 1.
    assert combine([[1e16, 1.0, -1e16]], [1.0, 1.0, 1.0]) == [1.0]


def test_the_result_counts_every_sampled_token() -> None:
    candidates = [candidate([1, 2, 3], "stop", text="a"), candidate([4], "length", text="b")]
    draw = choose([1.0, 2.0], beta=0.0, n=1, seed=0, prompt_index=0)
    about: Any = {
        "num_tokens": [3, 1],
        "scores": [1.0, 2.0],
        "places": [0, 1],
        "draw": draw,
        "rejected_at": [None, None],
        "checkpoint_scores": None,
    }
    plain = make_result(**about, beta=0.0, shown=None)
    assert plain.model_dump(exclude_unset=True) == {
        "selected": [1],
        "scores": [1.0, 2.0],
        "weights": [0.0, 1.0],
        "kl": pytest.approx(math.log(2)),
        "beta": 0.0,
        "sampled_tokens": 4,
    }
    shown = show_candidates(
        candidates, num_tokens=[3, 1], token_scores=None, weights=[1.0], texts={}
    )
    full = make_result(**about, beta=math.inf, shown=shown)
    dumped = full.model_dump(exclude_unset=True)
    assert dumped["beta"] is None
    assert dumped["candidates"] == [
        {"text": "a", "num_tokens": 3, "finish_reason": "stop", "stop_reason": None},
        {"text": "b", "num_tokens": 1, "finish_reason": "length", "stop_reason": None},
    ]


def test_the_result_of_a_schedule_keeps_the_places_of_the_candidates() -> None:
    draw = choose([1.0, 2.0], beta=0.0, n=2, seed=0, prompt_index=0)
    result = make_result(
        num_tokens=[5, 30, 9, 40],
        scores=[1.0, 2.0],
        places=[1, 3],
        draw=draw,
        beta=0.0,
        shown=None,
        rejected_at=[4, None, 8, None],
        checkpoint_scores=[{4: -1.0}, {4: 1.0, 8: 1.0}, {4: 0.5, 8: 0.0}, {4: 2.0, 8: 0.1}],
    )
    assert result.model_dump(exclude_unset=True) == {
        "selected": [3, 1],
        "scores": [None, 1.0, None, 2.0],
        "weights": [0.0, 0.0, 0.0, 1.0],
        "kl": None,
        "beta": 0.0,
        "sampled_tokens": 84,
        "num_tokens": [5, 30, 9, 40],
        "rejected_at": [4, None, 8, None],
        "checkpoint_scores": [{4: -1.0}, {4: 1.0, 8: 1.0}, {4: 0.5, 8: 0.0}, {4: 2.0, 8: 0.1}],
    }


def test_the_confidence_keeps_the_places_of_the_candidates() -> None:
    about: Any = {
        "num_tokens": [5, 30, 9],
        "scores": [1.0, 2.0],
        "places": [0, 2],
        "draw": choose([1.0, 2.0], beta=0.0, n=1, seed=0, prompt_index=0),
        "beta": 0.0,
        "shown": None,
        "rejected_at": [None, 4, None],
        "checkpoint_scores": None,
    }
    assert "confidence" not in make_result(**about).model_dump(exclude_unset=True)
    result = make_result(**about, confidence=[0.25, 0.75])
    assert result.model_dump(exclude_unset=True)["confidence"] == [0.25, None, 0.75]


def test_token_scores_stand_beside_their_tokens() -> None:
    """Of a mix they are the weighted sums."""
    candidates = [candidate(list(b"abc"), "stop", text="ab"), candidate([], "stop")]
    first, second = show_candidates(
        candidates,
        num_tokens=[3, 0],
        token_scores=[[[0.5, -1.0], [1.0, 2.0]], [[], []]],
        weights=[1.0, 2.0],
        texts={token: chr(token) for token in b"abc"},
    )
    assert (first.tokens, first.token_scores) == (["a", "b"], [2.5, 3.0])
    assert (second.tokens, second.token_scores) == ([], [])


def test_a_result_is_the_json_of_its_fields() -> None:
    draw = choose([1.0, 2.0], beta=0.0, n=1, seed=0, prompt_index=0)
    about: Any = {
        "num_tokens": [1, 1],
        "scores": [1.0, 2.0],
        "places": [0, 1],
        "draw": draw,
        "beta": math.inf,
        "rejected_at": [None, None],
        "checkpoint_scores": None,
    }
    both = [candidate([1], "stop", text='"}],é'), candidate([1], "stop", 7)]
    shown = show_candidates(both, num_tokens=[1, 1], token_scores=None, weights=[1.0], texts={})
    for given in (None, [], shown):
        result = make_result(**about, shown=given)
        assert json.loads(dump_result(result)) == result.model_dump(exclude_unset=True)


def test_candidates_become_json_one_by_one() -> None:
    """So that other threads get their turns between them; none does within one call to pydantic."""
    shown = CandidateReply(
        text="a" * 2048,
        num_tokens=2048,
        finish_reason="stop",
        stop_reason=None,
        tokens=["é"] * 2048,
        token_scores=[0.123456789] * 2048,
    )
    result = ResultReply(
        selected=[0],
        scores=[1.0] * 16,
        weights=[0.0625] * 16,
        kl=0.0,
        beta=0.1,
        sampled_tokens=16 * 2048,
        candidates=[shown] * 16,
    )
    longest_s, total_s = measure_calls(lambda: dump_result(result))
    assert longest_s < total_s / 4


def measure_calls(function: Callable[[], object]) -> tuple[float, float]:
    """Return the most time that passes from one call or return to the next, and the time of all.

    In seconds of this thread on a processor.
    """
    times_s: list[float] = []
    sys.setprofile(lambda *_: times_s.append(time.thread_time()))
    try:
        function()
    finally:
        sys.setprofile(None)
    longest_s = max(after - before for before, after in itertools.pairwise(times_s))
    return longest_s, times_s[-1] - times_s[0]


def count_by_whole_decodes(finished: Candidate, decode: Callable[[Sequence[int]], str]) -> int:
    """Return the smallest number of leading tokens whose text holds all that is kept."""
    readable = max(len(finished.token_ids) - 1, 0)
    needed = len(finished.text.lstrip(" "))
    low, high = 0, readable
    while low < high:
        middle = (low + high) // 2
        if len(decode(finished.token_ids[:middle]).rstrip("\ufffd").lstrip(" ")) >= needed:
            high = middle
        else:
            low = middle + 1
    return low


PIECES = [bytes([byte]) for byte in range(256)]
PIECES += [
    piece.encode()
    for piece in (" the", "ab", "aa", "aaaa", "\n\n", "häu", " ", "END", "日本", "語", "🦊")
]


def decode_pieces(token_ids: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in token_ids).decode(errors="replace")


def stop_as_vllm(rng: random.Random, stop: str, *, keep: bool, tidy: bool) -> Candidate:
    """Sample tokens until their text holds the stop string; the text ends there."""
    words = ["ab", "aa", "日本", "語", "🦊", "é", " ", "\n", "a", "the END ", "x"]
    text = "".join(rng.choices(words if tidy else ["a", "aa", "ab"], k=rng.randrange(600))) + stop
    text = text[: text.index(stop) + len(stop)] + rng.choice(["", "a", "aa"])
    data, tokens = text.encode(), []
    while data:
        fitting = [index for index, piece in enumerate(PIECES) if data.startswith(piece)]
        tokens.append(rng.choice(fitting))
        data = data[len(PIECES[tokens[-1]]) :]
    kept = text[: text.index(stop) + (len(stop) if keep else 0)]
    return candidate(tokens, "stop", stop, text=kept)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("tidy", [False, True])
def test_counting_from_the_end_finds_what_whole_decodes_find(*, keep: bool, tidy: bool) -> None:
    """Also where characters are split between tokens, and where the text repeats itself."""
    rng = random.Random(5)
    for stop in ("END", "\n\n", "aab", "b", "日本語", "🦊", "a" * 40):
        for _ in range(40):
            finished = stop_as_vllm(rng, stop, keep=keep, tidy=tidy)
            expected = count_by_whole_decodes(finished, decode_pieces)
            assert count_scored_tokens(finished, decode_pieces) == expected


def test_a_long_text_is_decoded_near_its_end_only() -> None:
    seen: list[int] = []

    def note(token_ids: Sequence[int]) -> str:
        seen.append(len(token_ids))
        return decode(token_ids)

    text = "".join(f"line {number}\n" for number in range(300))
    finished = candidate(list(f"{text}END".encode()), "stop", "END", text=text)
    assert count_scored_tokens(finished, note) == len(text)
    assert sum(seen) < 500
