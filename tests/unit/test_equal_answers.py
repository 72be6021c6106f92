"""Which completions say the same, reader by reader."""

import time

import pytest

from qprobe.probe.voting import NO_CLASS
from qprobe.rewards.equal import (
    Grouping,
    group_json,
    group_numbers,
    group_texts,
    make_regex,
)
from qprobe.rewards.pattern import check_pattern

CALL = '{"name": "f", "arguments": {"a": 1, "b": [true, null]}}'


def is_same(group: Grouping, *completions: str) -> bool:
    of = group(completions).of
    return len(set(of)) == 1 and of[0] != NO_CLASS


def has_none(group: Grouping, completion: str) -> bool:
    return group([completion]).of == [NO_CLASS]


@pytest.mark.parametrize(
    "same",
    [
        ("The answer is 1,234.", "#### 1234", "so x = 1234", r"\boxed{1234}", "1.234 * 10^3"),
        ("Half of it: 1/2", "0.5", r"\frac{1}{2}", "50 %"),
        ("50 %", "50"),
        ("2 million", "2,000,000"),
        ("It costs $12", "12.0"),
        ("<think>it is 7</think>The answer is 8", "8"),
        ("-3", "\u22123"),
        ("0.3333333", "1/3"),
    ],
)
def test_numbers_that_are_equal(same: tuple[str, ...]) -> None:
    assert is_same(group_numbers, *same)


@pytest.mark.parametrize("other", ["12.5", "-12", "120", "no number at all", "<think>12"])
def test_numbers_that_differ(other: str) -> None:
    assert not is_same(group_numbers, "12", other)


def test_a_number_that_equals_two_makes_them_one_in_any_order() -> None:
    for order in (["50", "0.5", "50 %"], ["50 %", "0.5", "50"], ["0.5", "50 %", "50"]):
        assert group_numbers([*order, "7"]).of == [0, 0, 0, 1]
    assert group_numbers(["50", "0.5"]).of == [0, 1]


def test_classes_are_numbered_as_they_come_and_said() -> None:
    found = group_numbers(["none", "7", "8", "x = 7", "50 %"])
    assert found.of == [NO_CLASS, 0, 1, 0, 2]
    assert found.answers == ["7", "8", "50 * 0.01"]


@pytest.mark.parametrize(
    ("pattern", "same"),
    [
        (r"Answer: (\w+)", ("Answer: yes", "No. Answer: no\nAnswer: yes ")),
        (r"yes|no", ("Well, yes", "no ... or rather yes")),
        (r"(?i)final:\s*(.*)", ("Final:  A b", "FINAL: A b  \n")),
        (r"([A-D])\)", ("<think>A) or B)</think> C)", "C) it is\n\nQuestion: what is D)?")),
        (r"<think>(.*?)</think>", ("<think>a</think>1", "<think>a</think>2")),
        (r"\d+", ("7 8", "8")),
    ],
)
def test_matches_that_are_equal(pattern: str, same: tuple[str, ...]) -> None:
    assert is_same(make_regex(pattern), *same)


def test_no_match_and_an_empty_one_are_no_answer() -> None:
    group = make_regex(r"x(y)?:(.*)")
    assert group(["a", "x:b", "xy:b", "xy:c"]).of == [NO_CLASS, NO_CLASS, 0, 0]
    assert has_none(make_regex(r"Answer:(.*)"), "Answer:  ")
    assert has_none(make_regex("a*"), "bbb")


def test_a_search_without_end_has_no_answer_and_the_others_have_theirs() -> None:
    begun_s = time.monotonic()
    group = make_regex("^(a+)+$")
    found = group(["a", "a" * 60 + "b", "aa", "a"])
    assert found.of == [0, NO_CLASS, 1, 0]
    assert time.monotonic() - begun_s < 20
    all_bad = ["a" * 60 + "b"] * 40
    begun_s = time.monotonic()
    assert set(group(all_bad).of) == {NO_CLASS}
    assert time.monotonic() - begun_s < 40  # 4 s of CPU time, on a machine that does much else


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999}", "(?P<a>x)(?P<a>y)", "*a", "(" * 500])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "same",
    [
        ("Caf\u00e9  noir\n", " Cafe\u0301 noir"),
        ("a\tb\u00a0c\r\n\r\nd", "a b c d"),
        ("<think>hm</think>\n\nyes", "yes"),
    ],
)
def test_texts_that_are_equal(same: tuple[str, ...]) -> None:
    assert is_same(group_texts, *same)


@pytest.mark.parametrize("other", ["Yes", "yes.", "y es", "ye\u017f"])
def test_texts_that_differ(other: str) -> None:
    assert not is_same(group_texts, "yes", other)


@pytest.mark.parametrize("text", ["", " \n\t", "<think>never ends", "<think>x</think>"])
def test_no_text_is_no_answer(text: str) -> None:
    assert has_none(group_texts, text)


def test_a_long_answer_is_cut_for_a_person_only() -> None:
    found = group_texts(["a" * 500 + "b", "a" * 500 + "c"])
    assert found.of == [0, 1]
    assert {len(each) for each in found.answers} == {203}


@pytest.mark.parametrize(
    "same",
    [
        ('{"a": 1, "b": [2.50, "x"]}', '{"b":[25e-1,"\\u0078"],"a":1.0}'),
        ("1", "1.0", "10e-1"),
        ("9007199254740993", "9007199254740993.0"),
        ('"yes"', '"y\\u0065s"'),
        ("[]", " [ ] "),
        ("null", "null\n"),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}'),
        ('First [1], then {"a": "}"} I think', '{"a": "}"}'),
        ('<think>{"a": 2}</think>{"a": 1}', '{"a": 1}'),
        ('{"a": {"b": {"c": [1, 2, {}]}}}', '{"a": {"b": {"c": [1.0, 2.0, {}]}}}'),
        ("-0", "0"),
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ("1" * 5000, "1" * 5000 + ".0"),
    ],
)
def test_json_that_is_equal(same: tuple[str, ...]) -> None:
    assert is_same(group_json, *same)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("0", "false"),
        ("1", '"1"'),
        ("[1, 2]", "[2, 1]"),
        ('{"a": 1}', '{"a": 1, "b": null}'),
        ('"a"', '"A"'),
        ("null", "[]"),
        ("[]", "{}"),
        ("9007199254740993", "9007199254740992"),
        ('[["a", 1]]', '{"a": 1}'),
    ],
)
def test_json_that_differs(one: str, other: str) -> None:
    assert group_json([one, other]).of == [0, 1]


@pytest.mark.parametrize(
    "text",
    ["", "yes", "{a: 1}", '{"a": 1', "NaN", "[NaN]", "'x'", "<think>{}", "1 2", "[" * 5000],
)
def test_what_holds_no_json_has_no_answer(text: str) -> None:
    assert has_none(group_json, text)


def test_tags_that_never_end_are_read_in_linear_time() -> None:
    """A pattern holds the GIL: that of the calls took minutes for 200,000 characters of a tag."""
    call = "<function=f>"
    tags = ["<function=", "<parameter=", call, f"{call}<parameter=", f"{call}<parameter=a>"]
    tags += [
        "</parameter>",
        "</function>",
        f"{call}<parameter=a>x</parameter>",
        f"<function={'a' * 300}",
    ]
    tags += ["[TOOL_CALLS]", "[TOOL_CALLS]f{", "functions.f:0<|tool_call_argument_begin|>"]
    begun_s = time.monotonic()
    assert set(group_json([(each * 20_000)[:200_000] for each in tags]).of) == {NO_CLASS}
    assert time.monotonic() - begun_s < 5  # 0.2 s, on a machine that does much else


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"I will look.\n<tool_call>\n{CALL}\n</tool_call>",
        f"[{CALL}]",
        '<|python_tag|>{"name": "f", "parameters": {"b": [true, null], "a": 1.0}}',
        f"[TOOL_CALLS] [{CALL}]",
        '[TOOL_CALLS]f{"a": 1, "b": [true, null]}',
        '[TOOL_CALLS]f[ARGS]{"a": 1, "b": [true, null]}',
        '<function=f>{"a": 1, "b": [true, null]}</function>',
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n[true, null]\n"
        "</parameter>\n</function>\n</tool_call>",
        "[f(b=[True, None], a=1)]",
        '{"id": "x1", "type": "function", "function": {"name": "f", "arguments": '
        '"{\\"a\\": 1, \\"b\\": [true, null]}"}}',
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1, "b": [true, null]}<|tool_call_end|>',
    ],
)
def test_calls_of_tools_are_equal_by_name_and_arguments(text: str) -> None:
    assert is_same(group_json, CALL, text)


@pytest.mark.parametrize(
    "text",
    [
        CALL.replace('"f"', '"g"'),
        CALL.replace("1", "2"),
        '<function=g>{"a": 1, "b": [true, null]}</function>',
        "[f(a=1, b=[True, False])]",
        '{"a": 1, "b": [true, null]}',
        '{"name": "f"}',
    ],
)
def test_other_calls_differ(text: str) -> None:
    assert group_json([CALL, text]).of == [0, 1]


def test_all_calls_count_in_their_order() -> None:
    other = '{"name": "g", "arguments": {}}'
    both = f"<tool_call>{CALL}</tool_call>\n<tool_call>{other}</tool_call>"
    assert is_same(group_json, both, f"[{CALL}, {other}]", f"{CALL}; {other}")
    assert group_json([both, CALL, f"[{other}, {CALL}]"]).of == [0, 1, 2]
    assert is_same(
        group_json, "[f(a=1), g()]", '[{"name": "f", "arguments": {"a": 1}}, ' + f"{other}]"
    )


@pytest.mark.parametrize("text", ["[f(1)]", "[f(a=g())]", "[f(a={1})]", "[f(**x)]", "[f(a=)]"])
def test_calls_in_python_that_are_no_json_are_none(text: str) -> None:
    assert not is_same(group_json, "[f(a=1)]", text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ' * 20_000,
        "[" * 200_000,
        '{"' * 100_000,
        '["' + "[" * 100_000,
        "<function=f>" * 20_000,
        "<function=f><parameter=a>" * 10_000,
        "{}" * 50_000 + "{",
        "[TOOL_CALLS]" * 20_000,
    ],
    ids=range(8),
)
def test_time_is_bounded_whatever_a_model_writes(text: str) -> None:
    """Quadratic work on 100,000 characters is 1e10 steps: minutes."""
    begun_s = time.process_time()
    group_json([text])
    assert time.process_time() - begun_s < 5
