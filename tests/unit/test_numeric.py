r"""The reward ``numeric``: which number an answer gives, however it is written."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprobe.errors import RowError
from qprobe.rewards.answers import NumericReward, RegexReward

REWARD = NumericReward()
GSM8K = "She sold 48/2 = <<48/2=24>>24 clips in May.\nSo 48+24 = <<48+24=72>>72 in all.\n#### 72"


def reward_of(completion: str, answer: object) -> float:
    row = {"answer": answer}
    REWARD.check(row)
    return REWARD(row, completion)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        # Boxes: units, nested braces, equations, words.
        (r"\boxed{42\text{ cm}^2}", 42),
        (r"\boxed{42 \, \mathrm{cm}^{2}}", 42),
        (r"So $\boxed{\,42\,\text{m/s}^{2}}$.", 42),
        (r"\boxed{\text{42}}", 42),
        (r"\boxed{\textbf{42 apples}}", 42),
        (r"\boxed{{42}}", 42),
        (r"\boxed{\mathbf{\frac{1}{2}}}", 0.5),
        (r"\boxed{x = 5}", 5),
        (r"\boxed{3 \times 4 = 12}", 12),
        (r"\boxed{3 \times 4 = 12 \text{ cm}}", 12),
        (r"\boxed{\$18}", 18),
        (r"\boxed{18\%}", 18),
        (r"\boxed{90^\circ}", 90),
        (r"\boxed{90^{\circ}}", 90),
        (r"\fbox{7}", 7),
        (r"\boxed{5 m}", 5),
        (r"\boxed{5m/s}", 5),
        (r"\boxed{5 km/h}", 5),
        (r"\boxed{5kg}", 5),
        (r"\boxed{5 cm^2}", 5),
        (r"\boxed{5 apples per day}", 5),
        (r"\boxed{about 5 apples}", 5),
        (r"\boxed{5 \text{ hours (per day)}}", 5),
        (r"\boxed{5 (apples)}", 5),
        (r"\boxed{5 = x}", 5),
        (r"\boxed{[5]}", 5),
        (r"\boxed{1011_2}", r"\boxed{1011_2}"),
        (r"\boxed{20_{16}}", 20),
        (r"\boxed{\color{red}5}", 5),
        (r"\boxed{5 \, \Omega}", 5),
        (r"\boxed{5\,\mu m}", 5),
        ("vitamin C - 12 pills", 12),
        (r"\boxed{(C) 5}", 5),
        (r"\boxed{\text{(C)}\ 5}", 5),
        (r"\boxed{5.0\ \mathrm{m/s^2}}", 5),
        (r"\boxed{{\bf 5}}", 5),
        ("$5K", 5000),
        ("\\$1.2M in all", 1200000),
        ("It takes 30s.", 30),
        ("Twice 5 is 2x as much: 10", 10),
        (r"\boxed {7}", 7),
        (r"\boxed{\boxed{7}}", 7),
        (r"\boxed{42} and then \boxed{x}", 42),
        (r"\boxed{2 + 3}", 5),
        (r"\boxed{\left(2+3\right)\cdot 4}", 20),
        (r"\boxed{2\sqrt{3}}", 3.4641016),
        (r"\boxed{\sqrt[3]{27}}", 3),
        (r"\boxed{2\pi}", 6.2831853),
        (r"\boxed{\frac{\sqrt{3}}{2}}", 0.8660254),
        (r"It is \boxed{42", 42),
        # Fractions.
        (r"\boxed{\frac{1}{2}}", 0.5),
        (r"\boxed{-\dfrac{7}{4}}", -1.75),
        (r"\frac12", "1/2"),
        (r"$\tfrac{3}{4}$", r"\frac{3}{4}"),
        ("3/4", 0.75),
        ("-3/4 of it", "-0.75"),
        ("It is 3 / 4.", 0.75),
        ("1 1/2 cups", 1.5),
        (r"1\frac{1}{2}", 1.5),
        ("\N{VULGAR FRACTION ONE HALF}", 0.5),
        ("2\N{VULGAR FRACTION THREE QUARTERS} cups", 2.75),
        ("3\N{FRACTION SLASH}4", 0.75),
        ("5 km/h", 5),
        ("$3/kg", 3),
        # Powers.
        (r"3 \times 10^4", 30000),
        (r"$1.5\cdot10^{-3}$", 0.0015),
        ("3 x 10^4 m", 30000),
        ("3\N{MULTIPLICATION SIGN}10\N{SUPERSCRIPT FOUR}", 30000),
        ("10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT THREE}", 0.001),
        ("10^6", 1000000),
        ("2**10", 1024),
        (r"2^{10}", 1024),
        ("-2^2 + x_3", -4),
        ("25 cm^2", 25),
        ("25 cm\N{SUPERSCRIPT TWO}", 25),
        ("9.81 m/s^{2}", 9.81),
        # Thousands, and decimal commas where LaTeX says so.
        (r"$9\,500$", 9500),
        (r"9\,500\,000", 9500000),
        ("9\N{NARROW NO-BREAK SPACE}500", 9500),
        ("9\N{NO-BREAK SPACE}500 m", 9500),
        ("9\N{THIN SPACE}500", 9500),
        (r"9{,}500", 9500),
        (r"1,\!000", 1000),
        ("9'500", 9500),
        ("9_500", 9500),
        (r"\boxed{9 500}", 9500),
        (r"9\,500.25", 9500.25),
        (r"3{,}5", 3.5),
        ("1,234,567.5", "1234567.5"),
        # Signs, currencies, percent, words.
        ("-$5", -5),
        ("**42**", 42),
        ("`42`", 42),
        ("The answer is $42$.", 42),
        ("50%", 0.5),
        (r"50\%", 50),
        ("50 percent", "50%"),
        ("0.5", "50%"),
        ("1.5 million", 1500000),
        ("1.5 million", 1.5),
        # Behind ####, and what runs on.
        ("2 + 2\n#### 42\n\nQuestion: Tom has 7 apples.\nAnswer: 8\n#### 8", 42),
        ("#### 42\n\nTom has 7 apples. How many?\n#### 8", 42),
        ("#### $1,200", 1200),
        ("#### 42 apples", 42),
        ("#### 42 (7 * 6)", 42),
        ("#### The final answer is 42.", 42),
        ("#### x = 42", 42),
        ("#### 1. Count 3\n#### 2. Add 4\nIt makes 7.", 7),
        ("#### Step 2\nIt makes 7.", 7),
        (" 42\n\nQuestion: What is 3 + 4?\nAnswer: 7", 42),
        ("The answer is 42.\n\nQ: What is 3 + 4?\nA: 7.", 42),
        ("It is 42.\n**Question 2:** And 3 + 4?\n7", 42),
        (r"\boxed{42}" "\nProblem: What is 3 + 4?\n" r"\boxed{7}", 42),
        ("42<|im_end|>\n<|im_start|>user\nAnd 7?", 42),
        ("42\n\nHuman: And 7?", 42),
        ("42\n\n### Question 2\nAnd 7?", 42),
        ("42\n\n## Problem\n7", 42),
        ("42 is it.\nUsers have 7.", 7),
        ("Question: what is it?\n42", 42),
        ("<think>\\boxed{3}?</think>It is 42.", 42),
        ("It may be 7.</think>42", 42),
        # Stated, whatever number comes later.
        ("The answer is 12. I am 95% confident.", 12),
        ("**Final Answer**: 12 (see step 3)", 12),
        ("**Final Answer:** 12\n\nStep 3 gives it.", 12),
        ("<answer>12</answer> 5", 12),
        ("<answer>x = 12 apples</answer> of 5", 12),
        ("<answer>7</answer> no: <answer>12</answer> 5", 12),
        ("The answer is $12$.\n\n1. step\n2. step", 12),
        ("Answer: 12\n\nNote: this took 3 steps.", 12),
        ("Answer:\n12\n\nNote: this took 3 steps.", 12),
        ("The answer is $12,500.75. That took 3 steps.", 12500.75),
        ("The answer is 3 + 4 = 7 apples, in 2 bags.", 7),
        ("The answer is 3 + 4 = 7.", 7),
        ("The answer is 3 apples + 4 apples = 7 apples.", 7),
        ("The answer is 3 + 4, or 7 in 2 bags.", 7),
        ("The answer is 12 since n = 3.", 12),
        ("The answer is 12 (3 * 4 = 12, in 2 steps).", 12),
        ("The answer is x = 7, as 3 is not.", 7),
        (r"The answer is \(\frac{1}{2}\), of 3.", 0.5),
        ("The answer is 5. No, the answer is 12. In 3 steps.", 12),
        ("So the answer should be approximately 12. In 3 steps.", 12),
        ("Answer:\n1. Count 3\n2. Add 4\nIt makes 7.", 7),
        ("The answer is what 3 and 4 make: 7.", 7),
        ("The answer isn't 3 but 7.", 7),
        # Golds as data sets have them.
        ("It is 72.", GSM8K),
        ("#### 1,200", "x\n#### 1,200"),
        ("0.5", r"So we get $\boxed{\frac{1}{2}}$."),
        ("42", "$42"),
        ("42", r"42\text{ cm}^2"),
        ("9500", r"9\,500"),
    ],
)
def test_right_answers(completion: str, answer: object) -> None:
    assert reward_of(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("3/4", 4),
        ("3/4", 3),
        ("1/2", 2),
        (r"\frac{1}{2}", 2),
        (r"\boxed{\frac{1}{2}}", 2),
        (r"\boxed{42\text{ cm}^2}", 2),
        ("25 cm^2", 2),
        ("x^{2}", 2),
        ("x_2", 2),
        ("2^10", 10),
        ("3 x 10^4", 4),
        (r"9\,500", 500),
        ("9\N{NARROW NO-BREAK SPACE}500", 500),
        (r"\boxed{2+3}", 3),
        (r"\boxed{3, 5}", 5),
        (r"\boxed{5 \text{ and } 7}", 7),
        (r"\boxed{x=5 \text{ or } x=7}", 7),
        (r"\boxed{\pm 3}", 3),
        (r"\sqrt{16}", 16),
        ("at 3:45", 45),
        (r"3{,}5", 5),
        ("7%", 700),
        ("0.5%", "50%"),
        ("2 + 2\n#### 42\n\nQuestion: Tom has 7 apples.\n#### 8", 8),
        ("The answer is 42.\n\nQ: What is 3 + 4?\nA: 7.", 7),
        ("<think>42</think>I do not know.", 42),
        ("1/0", 1),
        ("1/0", 0),
        (r"\frac{x}{2}", 2),
        (r"\sqrt{x + 5}", 5),
        ("2^x", 2),
        (r"\frac{1}{0}", 0),
        ("9^9^9^9", 9),
        # A number of an expression is not its value.
        (r"\boxed{3x}", 3),
        (r"\boxed{3 x}", 3),
        (r"\boxed{x^2+3}", 3),
        (r"\boxed{x+3}", 3),
        (r"\boxed{3 + x}", 3),
        (r"\boxed{12!}", 12),
        (r"\boxed{\sin 30}", 30),
        (r"\boxed{\log 2}", 2),
        (r"\boxed{2i}", 2),
        (r"\boxed{x \le 5}", 5),
        (r"\boxed{>5}", 5),
        (r"\boxed{|5|x}", 5),
        (r"\boxed{y = 3x}", 3),
        (r"\boxed{x \in 5}", 5),
        ("2x - 7", 7),
        ("2x - 7", 2),
        ("x + 7", 7),
        ("$5K", 5),
        ("It costs \\$5K.", 5),
        ("The answer is 12. I am 95% confident.", 95),
        ("<answer>12</answer> 5", 5),
        ("12345679", 12345678),
        ("12345678", "12345679"),
        ("<think>It is 42", 42),
        ("<thinking>It is 42", 42),
        ("[THINK]It is 42[/THINK]I do not know.", 42),
        (r"\boxed{9^{9^{9^9}}}", 9),
        ("(-8)^0.5", 8),
        ("", 0),
    ],
)
def test_wrong_answers(completion: str, answer: object) -> None:
    assert reward_of(completion, answer) == 0.0


@pytest.mark.parametrize(
    "answer", ["#### x", r"\boxed{x}", r"\boxed{3, 5}", "3, 5", "1/0", "12:30"]
)
def test_golds_without_one_number_are_refused(answer: str) -> None:
    with pytest.raises(RowError, match="answer: must be a finite number"):
        REWARD.check({"answer": answer})


@pytest.mark.parametrize(
    "unit",
    [
        "\\frac{", "\\sqrt{", "\\boxed{", "(", "{", "1/", "1^", "9,", "#### ", "1 ", "\n", "*", "-",
        "\\boxed{1}", "1 1/2 ", "\\text{", "Q", "9\\,", "\\frac{1+", "^{", "2\\sqrt", "Question 1",
        "#### 1. a\n",
        "a" * 50 + " ", "x + 1 ", " a" * 30, "^2", "$1,", "$", "km/", "(a ",
        " (" + "ab" * 1_000, "ab" * 1_000 + ": ",
        "\nquestion" + " " * 10_000, "<answer>", "answer is ", "answer is 1 ", "answer" + " " * 99,
    ],
)  # fmt: skip
def test_reading_takes_linear_time(unit: str) -> None:
    """Whatever a model writes, 50 kB of it: quadratic time would be minutes."""
    start_s = time.monotonic()
    reward_of("7" + unit * (50_000 // len(unit)), 1)
    reward_of("\\boxed{7" + unit * (50_000 // len(unit)) + "}", 1)
    reward_of("\\boxed{" + unit * (50_000 // len(unit)) + "}", 1)
    assert time.monotonic() - start_s < 5


@pytest.mark.parametrize(
    ("completion", "want"),
    [
        ("The answer is B.\n\nQuestion: Next?\nThe answer is C.", 1.0),
        ("The answer is A. No: the answer is B.", 1.0),
        ("Question: It?\nThe answer is B.", 1.0),
        ("Q: One?\nThe answer is B.\nQ: Two?\nThe answer is B.\nThe answer is C.", 1.0),
        ("The answer is C.\n\nQuestion: Next?\nThe answer is B.", 0.0),
        ("Is it B?", 0.0),
    ],
)
def test_a_pattern_is_not_matched_in_the_models_own_next_question(
    completion: str, want: float
) -> None:
    row = {"pattern": r"answer is ([A-D])", "answer": " B"}
    RegexReward().check(row)
    assert RegexReward()(row, completion) == want


@pytest.mark.parametrize(
    ("completion", "pattern", "want"),
    [
        ("<think>B?</think>It is C.", "[B]", 0.0),
        ("<think>B?</think>It is C.", "[C]", 1.0),
        ("<think>It is B", "B", 0.0),
        ("[THINK]B[/THINK]C", "B", 0.0),
        ("<think>B?</think>It is C.", r"^<think>.*</think>", 1.0),
    ],
)
def test_a_pattern_is_matched_in_reasoning_only_if_it_names_it(
    completion: str, pattern: str, want: float
) -> None:
    assert RegexReward()({"pattern": pattern}, completion) == want


STYLES = (
    "{}", "${}$", r"\boxed{{{}}}", r"\boxed{{x = {}\text{{ cm}}^2}}", "It is **{}**.", "#### {}",
    r"#### {} apples", "{} m/s^2", r"\[ x = {} \]", "So 7 - 5 gives {}, as asked.",
    "{}\n\nQ: 1 + 1?\nA: 2", "<think>Is it 8?</think>\n{}", "The answer is {}. I am 95% sure.",
    r"\({}\,\mathrm{{kg}}\)",
)  # fmt: skip
SEPARATORS = (
    "", ",", "{,}", "\\,", "\\;", "\N{THIN SPACE}", "\N{NO-BREAK SPACE}",
    "\N{NARROW NO-BREAK SPACE}",
)  # fmt: skip


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 999),
    st.sampled_from(SEPARATORS),
    st.sampled_from(STYLES),
)
def test_any_number_in_any_style(whole: int, thousandths: int, separator: str, style: str) -> None:
    written = f"{whole:,}".replace(",", separator) + (f".{thousandths:03}" if thousandths else "")
    value = float(f"{whole}.{thousandths:03}")
    assert reward_of(style.format(written), value) == 1.0
    assert reward_of(style.format(written), value + 1 + abs(value) / 100) == 0.0


@given(
    st.integers(-999, 999), st.integers(2, 999), st.sampled_from(STYLES),
    st.sampled_from(("{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}")),
)  # fmt: skip
def test_any_fraction_in_any_style(above: int, below: int, style: str, fraction: str) -> None:
    written = style.format(fraction.format(above, below))
    assert reward_of(written, above / below) == 1.0
    if above % below:
        assert reward_of(written, below) == reward_of(written, abs(above)) == 0.0
