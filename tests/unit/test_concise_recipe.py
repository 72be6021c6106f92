"""The recipe of short answers: what its reward prefers, and what its rows promise the reward."""

import importlib.util
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprobe.data.prompts import read_prompts
from qprobe.rewards import make_reward

Json = dict[str, Any]
RECIPE = Path(__file__).parents[2] / "probes" / "recipes" / "concise"
CATEGORIES = 8


def load_score() -> Callable[[Json, str], float]:
    spec = importlib.util.spec_from_file_location("concise_reward", RECIPE / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.score  # type: ignore[no-any-return]  # the recipes are no package


score = load_score()
ROWS: list[Json] = [
    json.loads(line) for line in (RECIPE / "prompts.jsonl").read_text("utf-8").splitlines()
]
BY_ID = {row["id"]: row for row in ROWS}
QUESTIONS = [row["messages"][0]["content"] for row in ROWS]
# At least one of each category, as a person would answer: 12 to 40 words.
ANSWERS = {
    "science-01": "A volcano is an opening in the Earth's crust where hot magma, ash and gases "
    "from deep below can erupt onto the surface.",
    "animals-13": "Camels have humps to store fat, which gives them energy when there is little "
    "food to be found in the desert.",
    "geography-07": "The capital is Canberra, a planned city that was chosen in 1908 and is now "
    "the home of the Australian Parliament.",
    "history-05": "The Titanic sank in 1912 because it hit an iceberg in the North Atlantic, and "
    "the ship slowly filled with water.",
    "tools-03": "A thermometer measures temperature, so that you can see how hot or cold the air, "
    "a liquid or your body is.",
    "food-18": "Salt brings out the flavor of food and balances other tastes, and it has long been "
    "used to preserve meat and fish.",
    "definitions-02": "Democracy is a government in which the people hold the power and vote to "
    "elect the leaders who represent them.",
    "advice-20": "Always wear a helmet, use lights at night, follow the traffic rules and watch "
    "out for cars at every crossing.",
}
# Whole sentences of prose that are on no topic; with them every answer exceeds 40 words.
RAMBLING = (
    " That is what most of us would say if they were asked.",
    " There are, however, many other ways in which one might put it.",
    " To see why, it is best to start with what was known long ago.",
    " Some of those who wrote on it did not agree with each other at all.",
    " And so the story goes on and on, with no clear end to it.",
)


def rows() -> st.SearchStrategy[Json]:
    return st.sampled_from(ROWS)


@st.composite
def scraps(draw: st.DrawFn) -> tuple[Json, str]:
    """Return a row and a text made of its topic words, small words and marks."""
    row = draw(rows())
    marks = ["the", "of", "is", "\n", "- ", "**", "`", ".", "..", "!", "Sure", "\r", "\0", "é"]
    pieces = draw(st.lists(st.sampled_from([*row["topic"], *marks]), max_size=80))
    return row, draw(st.sampled_from(["", " "])).join(pieces)


@given(rows(), st.text(st.characters()))
def test_any_text_gets_a_number_from_0_to_1(row: Json, text: str) -> None:
    value = score(row, text)
    assert math.isfinite(value)
    assert 0 <= value <= 1


@given(scraps(), st.text(" \t\r\n\u2028", max_size=5))
def test_texts_near_the_topic_get_one_too_and_white_space_around_is_nothing(
    made: tuple[Json, str], space: str
) -> None:
    row, text = made
    value = score(row, text)
    assert 0 <= value <= 1
    assert score(row, space + text + space) == value


@pytest.mark.parametrize(
    "text", ["", " \n\t", ".", "...", "**", "I do not know.", "Yes.", "你好。"]
)
def test_an_answer_that_says_nothing_scores_0(text: str) -> None:
    assert {score(row, text) for row in ROWS} == {0.0}


def test_the_question_said_again_scores_0() -> None:
    for row, question in zip(ROWS, QUESTIONS, strict=True):
        assert score(row, question) == score(row, f"{question} {question}") == 0


@pytest.mark.parametrize("name", ANSWERS)
def test_a_good_answer_scores_1_and_any_other_question_s_less(name: str) -> None:
    """One topic word of three gives at most 1/3, two at most 2/3."""
    row = BY_ID[name]
    assert score(row, ANSWERS[name]) == 1
    others = [score(row, text) for other, text in ANSWERS.items() if other != name]
    assert max(others) <= 2 / 3
    assert sum(others) / len(others) <= 1 / 6


@pytest.mark.parametrize("name", ANSWERS)
def test_concise_beats_long_and_long_beats_off_topic(name: str) -> None:
    row, text = BY_ID[name], ANSWERS[name]
    values = [score(row, text)]
    for sentence in RAMBLING:
        text += sentence
        values.append(score(row, text))
    assert len(text.split()) > 60
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[-2] < values[0]
    off_topic = "".join(RAMBLING[:2])
    assert values[-1] > score(row, off_topic) == 0


@pytest.mark.parametrize("count", [3, 6, 11, 12, 13, 26, 40, 41, 80, 400])
def test_length_counts_as_it_says(count: int) -> None:
    """All else being perfect: three topic words, every other word small, and no four ever again."""
    pairs = itertools.chain.from_iterable(("the", f"w{number}") for number in range(count))
    text = " ".join(["Lava", "is", "magma", *pairs][:count])
    topic = {"topic": ["lava", "is", "magma"]}
    want = count / 12 if count < 12 else 1 if count <= 40 else 40 / count
    assert score(topic, f"{text}.") == pytest.approx(want)


def test_each_topic_word_up_to_three_adds_a_third() -> None:
    topic = {"topic": ["plant", "red", "light", "sugar"]}
    frame = "It is {} {} {} that they have to do with, and it is {} as well."
    fill = [["", "", "", ""], ["plants", "plant"], ["plants", "light"], ["plants", "red", "light"]]
    texts = [frame.format(*[*words, "x", "y", "z", "w"][:4]) for words in fill]
    assert [score(topic, text) for text in texts] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert score(topic, frame.format("Sugar", "light", "red", "planted")) == 1


def test_a_short_stem_is_a_whole_word() -> None:
    text = "It is the {} one of them that we would like to have in the end."
    assert score({"topic": ["red"]}, text.format("red")) == pytest.approx(1 / 3)
    assert score({"topic": ["red"]}, text.format("reduced")) == 0
    assert score({"topic": ["lava"]}, text.format("LAVAS")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cut_answer_scores_at_most_half_of_the_whole(name: str) -> None:
    words = ANSWERS[name].split()
    whole = score(BY_ID[name], ANSWERS[name])
    cuts = [" ".join(words[:end]) for end in range(1, len(words))]
    unfinished = [cut for cut in cuts if not cut.endswith(".")]
    assert len(unfinished) >= 10
    for cut in (*unfinished, *(f"{cut}..." for cut in unfinished), ANSWERS[name].rstrip(".")):
        assert score(BY_ID[name], cut) <= whole / 2


@pytest.mark.parametrize(
    ("spoil", "factor"),
    [
        (lambda text: f"- {text}", 0.5),
        (lambda text: f"1. {text}", 0.5),
        (lambda text: f"# {text}", 0.5),
        (lambda text: f"**Safety**: {text}", 0.5),
        (lambda text: f"| {text} |.", 0.5),
        (lambda text: text.replace("helmet", "`helmet`"), 0.5),
        (lambda text: text.replace(", ", ",\n"), 0.7),
        (lambda text: text.replace(", ", ",\n- "), 0.5 * 0.7),
        (lambda text: text.replace(", ", ",\n  2) "), 0.5 * 0.7),
        (lambda text: f"Sure! {text}", 0.6),
        (lambda text: f"Of course: {text}", 0.6),
        (lambda text: f'"Certainly, {text}"', 0.6),
        (lambda text: f"As an AI, I think this: {text}", 0.6),
        (lambda text: f"Here's one. {text}", 0.6),
        (lambda text: text[0].lower() + text[1:], 0.8),
        (lambda text: text.rstrip("."), 0.5),
        (lambda text: text.rstrip(".") + ",", 0.5),
        (lambda text: f"sure, **{text.rstrip('.')}**", 0.5 * 0.5 * 0.6 * 0.8),
    ],
)
def test_a_fault_of_form_costs_its_factor(spoil: Callable[[str], str], factor: float) -> None:
    row, text = BY_ID["advice-20"], ANSWERS["advice-20"]
    assert score(row, spoil(text)) == pytest.approx(factor * score(row, text))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"({text})",
        lambda text: f"“{text[:-1]}!”",
        lambda text: f"  {text}\n",
        lambda text: f"In 2 of 3 cases, {text[0].lower()}{text[1:]}",
        lambda text: f"Surely you know this: {text}",
        lambda text: f"99.5 % of us know this. {text}",
    ],
)
def test_what_is_no_fault_costs_nothing(change: Callable[[str], str]) -> None:
    assert score(BY_ID["advice-20"], change(ANSWERS["advice-20"])) == 1


def test_a_list_scores_less_than_the_same_words_as_prose() -> None:
    parts = ["Wear a helmet", "Use your lights", "Know the traffic rules", "Look out for the cars"]
    prose = ". ".join(parts) + "."
    for mark in ("- ", "* ", "• ", "{}. ", "{}) "):
        lines = [mark.format(number) + part for number, part in enumerate(parts, 1)]
        assert score(BY_ID["advice-20"], "\n".join(lines) + ".") < score(BY_ID["advice-20"], prose)


@pytest.mark.parametrize("name", ANSWERS)
def test_saying_it_again_costs(name: str) -> None:
    """Of the 2n - 3 runs of four words n are new, under 0.6 from 10 words on."""
    row, text = BY_ID[name], ANSWERS[name]
    for again in (f"{text} {text}", f"{text[:-1]}, {text}"):
        assert score(row, again) < 0.6
        assert score(row, f"{text} {again}") < score(row, again)


def test_short_sentences_said_again_cost() -> None:
    row = BY_ID["science-01"]
    once = "It is a mountain with lava in it, and a vent for the gas."
    assert score(row, once) == 1
    # Six words or fewer hold no run of four twice; one sentence of three is old.
    assert score(row, f"It is hot. {once} It is hot.") == pytest.approx(2 / 3)


def test_a_string_of_topic_words_is_no_answer() -> None:
    """With one small word among n: 5 / n for the prose, times n / 12 for the length up to 12."""
    for row in ROWS:
        salad = ", ".join(row["topic"]).capitalize()
        assert score(row, f"{salad}.") == 0
        assert score(row, f"Of {salad}.") <= 5 / 12 + 1e-12


@pytest.mark.parametrize("num_small", range(1, 6))
def test_prose_has_small_words(num_small: int) -> None:
    others = " ".join(f"w{number}" for number in range(13 - num_small))
    text = f"Magma lava vent {others} {' '.join(['the', 'of', 'is', 'in', 'on'][:num_small])}."
    assert score(BY_ID["science-01"], text) == pytest.approx(min(1, num_small / 16 * 5))


def test_a_huge_answer_takes_no_longer_than_reading_it() -> None:
    """Each of these would take a quadratic pattern hours."""
    row = BY_ID["science-01"]
    for piece in ("lava ", "\n \t", "1", "'", "a'", "* ", "- ", ". ", '"', "\n"):
        assert 0 <= score(row, "lava " + piece * 200_000 + "lava") < 1e-3


def test_the_file_is_as_qprobe_reads_it() -> None:
    reward = make_reward(f"python:{RECIPE / 'reward.py'}:score")
    read = read_prompts(RECIPE / "prompts.jsonl", check=reward.check)
    assert [each.fields for each in read] == ROWS
    assert reward(BY_ID["science-01"], ANSWERS["science-01"]) == 1


def test_rows_are_valid() -> None:
    assert len(ROWS) >= 150
    assert len(BY_ID) == len(set(QUESTIONS)) == len(ROWS)
    for row in ROWS:
        assert set(row) == {"id", "category", "messages", "topic"}
        assert row["messages"] == [{"role": "user", "content": row["messages"][0]["content"]}]
        assert row["id"].startswith(row["category"] + "-")
        assert all(re.fullmatch(r"[a-z]{3,}|\d{2,4}(th)?", stem) for stem in row["topic"])


def test_every_prefix_of_the_file_has_as_many_of_each_category() -> None:
    names = [row["category"] for row in ROWS]
    assert len(set(names)) == CATEGORIES
    for end in range(CATEGORIES, len(names) + 1):
        counts = Counter(names[:end]).values()
        assert len(counts) == CATEGORIES
        assert max(counts) - min(counts) <= 1


def uses(word: str, stem: str) -> bool:
    """Return whether the reward sees the stem in the word."""
    return score({"topic": [stem]}, f"the {word} of it") > 0


def test_topic_words_count_once_and_are_not_the_question_s() -> None:
    """So that one word of an answer is one topic word, and an echo of the question is none."""
    for row, question in zip(ROWS, QUESTIONS, strict=True):
        assert len(row["topic"]) >= 8
        assert score(row, f"{question} and it is so") == 0
        for word, stem in itertools.permutations(row["topic"], 2):
            assert not uses(word, stem), (row["id"], word, stem)


def test_every_question_asks_for_a_short_answer() -> None:
    asked = re.compile(r"sentence|brief|short|quick|nutshell|\d+ words|one line", re.IGNORECASE)
    assert [question for question in QUESTIONS if not asked.search(question)] == []


def test_no_two_questions_are_alike() -> None:
    """Of the words that three questions or fewer use, and of topic words, no pair shares half."""
    words = [set(re.findall(r"[^\W_]+", question.lower())) for question in QUESTIONS]
    counts = Counter(word for each in words for word in each)
    rare = [{word for word in each if counts[word] <= 3} for each in words]
    topics = [set(row["topic"]) for row in ROWS]
    for one, other in itertools.combinations(range(len(ROWS)), 2):
        for sets in (rare, topics):
            shared, both = sets[one] & sets[other], sets[one] | sets[other]
            assert len(shared) <= len(both) / 2, (QUESTIONS[one], QUESTIONS[other])
