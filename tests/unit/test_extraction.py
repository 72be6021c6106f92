"""From an answer to its code: which of its pieces count, and where a continuation ends."""

import time

import pytest

from qprobe.rewards.sandboxed.extraction import extract_code

CODE = "def f(x):\n    return x + 1\n"
DRAFT = "def f(x):\n    return x\n"


def same(code: str, want: str) -> bool:
    return code.strip() == want.strip()


@pytest.mark.parametrize(
    "mark",
    [
        *("python", "Python", "py", "py3", "python3", "python3.11", "ipython", "pycon", "code", ""),
        *("{python}", "{.python .numberLines}", "python:main.py", "main.py", "Python3 \r"),
        *('python title="a.py"', "python {linenos=true}", "  python"),
    ],
)
@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
def test_every_mark_of_python_opens_a_fence(mark: str, fence: str) -> None:
    answer = f"Sure:\n{fence}{mark}\n{CODE}{fence}\nIt adds one."
    assert same(extract_code(answer, names=["f"]), CODE)


FENCES_AND_PROSE = {
    "code alone": CODE,
    "behind words": f"Here it is: ```python\n{CODE}```",
    "behind a number": "1. So\n   ```python\n   def f(x):\n       return x + 1\n   ```\n",
    "not closed": f"```python\n{CODE}",
    "only closed": f"{CODE}```\nThis adds one.",
    "only closed, and another after": f"{CODE}```\nUse:\n```python\nprint(f(1))\n```",
    "closed by the next": f"```python\n{DRAFT}```python\n{CODE}```",
    "closed with words": f"```python\n{CODE}```This adds one.",
    "closed behind code": "```python\ndef f(x):\n    return x + 1```\nThis adds one.",
    "inline code before": f"Call `f` or ```f(1)```:\n```python\n{CODE}```",
    "a shell beside": f"```bash\npip install f\n```\n```python\n{CODE}```\n```sh\npython f.py\n```",
    "an output beside": f"```python\n{CODE}```\nwhich prints\n```\nf = 3\n```",
    "output marked": f"```python\n{CODE}```\n```output\nf = 3\n```",
    "only marked as text": f"```text\n{CODE}```",
    "quoted": "> So:\n> ```python\n> def f(x):\n>     return x + 1\n> ```",
    "quoted without a fence": "> def f(x):\n>     return x + 1\n\nThat is it.",
    "quoted twice": ">> ```\n>> def f(x):\n>>     return x + 1\n>> ```",
    "a session": "```pycon\n>>> def f(x):\n...     return x + 1\n...\n```",
    "between sentences": f"This is the function.\n\n{CODE}\nIt adds one, for example 2 to 3.",
    "after one sentence": f"The function is:\n{CODE}",
    "indented below a sentence": "So:\n\n    def f(x):\n        return x + 1\n\nThat is it.",
    "a name that is a word": f"Solution\n\n{CODE}\nNote: x is a number",
    "a word before": f"Solution\n\n{CODE}",
    "the language before": f"python\n{CODE}",
    "a word after": f"{CODE}\nDone",
    "words before and after": f"Solution\n\n{CODE}\nDone",
    "a note before": f"Note: recursion\n\n{CODE}",
    "an output after": f"{CODE}\nOutput: 2",
    "a note after": f"{CODE}\nComplexity: linear",
    "a formula after": f"{CODE}\nO(n) + O(1)",
    "a comparison after": f"{CODE}\nf(1) == 2",
    "tags": f"[PYTHON]\n{CODE}[/PYTHON]",
    "tags and more": f"[BEGIN]\n{CODE}[DONE]\n\nNext task.\n[BEGIN]\ndef g(y",
    "only the end of tags": f"{CODE}[DONE]\nNow for the next.",
    "tags around a fence": f"[PYTHON]\n```python\n{CODE}```\n[/PYTHON]",
    "tags as in HTML": f"<code>\n{CODE}</code>",
    "carriage returns": f"So:\n```python\n{CODE}```\n".replace("\n", "\r\n"),
    "the next function was cut": f"{CODE}\n\ndef g(x):\n    return (",
    "the next function was cut in a fence": f"```python\n{CODE}\n\ndef g(x):\n    return (x",
    "reasoning": f"<think>\n```python\n{DRAFT}```\nNo.</think>\n\n```python\n{CODE}```",
    "reasoning, only its end": f"Perhaps\n{DRAFT}\nno.\n</think>\n{CODE}",
    "reasoning in brackets": f"[THINK]{DRAFT}[/THINK]{CODE}",
    "another try": f"```python\n{DRAFT}```\nThat is wrong, so:\n```python\n{CODE}```",
    "another try, then its use": f"```\n{DRAFT}```\n```\n{CODE}```\n```python\nprint(f(1))\n```",
    "use first": f"```python\nassert f(1) == 2\n```\n```python\n{CODE}```",
    "outline last": f"```python\n{CODE}```\nin short\n```python\ndef f(x): ...\n```",
    "a last try that was cut": f"```python\n{CODE}```\nor\n```python\ndef f(x):\n    return (1 +",
}


@pytest.mark.parametrize("name", FENCES_AND_PROSE)
def test_the_code_is_found(name: str) -> None:
    assert same(extract_code(FENCES_AND_PROSE[name], names=["f"]), CODE)


@pytest.mark.parametrize("answer", ["", "I cannot.", "```python\n```", "<think>\n" + CODE, "No\n:"])
def test_there_may_be_none(answer: str) -> None:
    assert extract_code(answer, names=["f"]) == ""


@pytest.mark.parametrize(
    "answer",
    [
        "```python\ndef f(x) return x\n```",
        "Here:\n\ndef f(x):\n    return (x\n\nThat is it.",
        f"```python\n{CODE}```\nBetter:\n```python\ndef f(x):\n    return x +\n```",
    ],
)
def test_wrong_code_is_not_hidden(answer: str) -> None:
    """A mistake in the piece that counts must be told from an answer without code."""
    found = extract_code(answer, names=["f"])
    assert "def f" in found
    with pytest.raises(SyntaxError):
        compile(found, "", "exec")


def test_a_fence_in_a_docstring_ends_nothing() -> None:
    code = 'def f(x):\n    """Add.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'
    assert same(extract_code(f"```python\n{code}```"), code)
    assert same(extract_code("````\nx = '''\n```\n'''\n````"), "x = '''\n```\n'''")


def test_brackets_that_look_like_tags_stay() -> None:
    code = "def f(answer):\n    both = [answer]\n    return both + [END]\n"
    assert same(extract_code(code + "\nIt is done.", names=["f"]), code)


def test_reasoning_is_not_ended_by_a_string() -> None:
    code = 'def f(x):\n    return x.split("</think>")[-1]\n'
    assert same(extract_code(f"```python\n{code}```", names=["f"]), code)


def run(answer: str, call: str, *, names: tuple[str, ...] = ("f",), head: str = "") -> object:
    namespace: dict[str, object] = {}
    exec(extract_code(answer, names=names, head=head), namespace)
    return eval(call, namespace)


@pytest.mark.parametrize(
    "after",
    ["return", "match f(1):\n    case 2:\n        g = 1", 'TEXT = """\n' + "a b\n" * 60 + '"""'],
)
def test_code_alone_is_taken_as_a_whole(after: str) -> None:
    """What is no sentence stays, wrong or long as it may be."""
    assert same(extract_code(f"{CODE}\n{after}", names=["f"]), f"{CODE}\n{after}")


PIECES = {
    "a helper before": "```python\ndef half(x):\n    return x / 2\n```\nThen\n"
    "```python\ndef f(x):\n    return half(x) + 1\n```",
    "a helper after": "```python\ndef f(x):\n    return half(x) + 1\n```\nwith\n"
    "```python\ndef half(x):\n    return x / 2\n```",
    "imports before": "```python\nimport math\n```\n```python\ndef f(x):\n"
    "    return math.floor(x / 2) + 1\n```",
    "a helper that needs a constant": "```\nN = 2\n```\n```\ndef half(x):\n"
    "    return x / N\n```\n"
    "```python\ndef f(x):\n    return half(x) + 1\n```",
    "a helper beside its wrong use": "```python\ndef half(x):\n    return x / 2\n\n"
    "print(f(2))\n```\n```python\ndef f(x):\n    return half(x) + 1\n```",
    "two helpers of one name": "```\ndef half(x):\n    return x\n```\n```\ndef half(x):\n"
    "    return x / 2\n```\n```python\ndef f(x):\n    return half(x) + 1\n```",
    "between sentences": "First we import.\nimport math\n\nThen:\n\ndef f(x):\n"
    "    return math.floor(x / 2) + 1\n\nThat is it.",
}


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_gets_what_it_needs_of_others(name: str) -> None:
    assert run(PIECES[name], "f(4)") == 3


HEAD = (
    'import math\n\n\ndef f(x):\n    """Return the half, and one.\n\n    >>> f(4)\n    3\n    """\n'
)
BODY = "    y = math.floor(x / 2)\n    if y < 0:\n        return 0\n    return y + 1\n"
CONTINUATIONS = {
    "the body": BODY,
    "stripped": BODY.strip(),
    "a line break first": "\n" + BODY,
    "blanks first": "    \n" + BODY,
    "the next function": BODY + "\n\ndef g(x):\n    return f(x)\n",
    "the next function, cut": BODY + "\n\ndef g(x):\n    return f(",
    "the next task, cut": BODY + '\n\n"""\nWrite a function that',
    "a test, cut": BODY + "\nassert f(4) ==",
    "main, cut": BODY + "\nif __name__ == '__main__':\n    print(f(",
    "its end in the function, cut": BODY + "\n    # For example:\n    print(f(",
    "prose": BODY + "\nThis function halves its argument, and adds one.",
    "the end of a fence": BODY + "```\nThis function halves.",
    "a tag": BODY + "[DONE]\n\nNext.",
    "a comment at the margin": BODY.replace("    if", "# below 0\n    if"),
    "the body in a fence": f"```python\n{BODY}```",
    "the body in a fence without indentation": "Here is it:\n```python\ny = math.floor(x / 2)\n"
    "if y < 0:\n    return 0\nreturn y + 1\n```",
    "all of it in a fence": f"```python\n{HEAD}{BODY}```\nThis halves.",
    "all of it": HEAD + BODY,
    "a string over lines": "    s = '''\na\n'''\n    return x // 2 + len(s.split())\n\ndef g(",
    "a helper after": "    return half(x) + 1\n\ndef half(x):\n    return x // 2\n\nprint(f(",
}


@pytest.mark.parametrize("name", CONTINUATIONS)
@pytest.mark.parametrize(
    "head",
    [HEAD, HEAD.rstrip(), "import math\ndef f(x):", "def g():\n  pass\nimport math\ndef f(x):\n"],
)
def test_a_function_is_gone_on_with(name: str, head: str) -> None:
    assert run(CONTINUATIONS[name], "f(4)", head=head) == 3


def test_what_leaves_the_function_is_not_run() -> None:
    found = extract_code(BODY + "\nraise SystemExit\n", names=["f"], head=HEAD)
    assert "SystemExit" not in found


def test_the_middle_of_a_line_is_gone_on_with() -> None:
    assert run("x + 1\n\ndef g(", "f(2)", head="def f(x):\n    return ") == 3


def test_a_method_is_gone_on_with() -> None:
    head = "class A:\n    def f(self, x):\n"
    answer = "        return x + self.g()\n\n    def g(self):\n        return 1\n\n    def h(self"
    assert run(answer, "A().f(2)", names=("A",), head=head) == 3


@pytest.mark.parametrize(
    "unit",
    [
        "`",
        "```",
        "``` ",
        "```python ",
        " ",
        "```\n",
        "```py\t\r",
        "x\n",
        "def f(:\n",
        '"""\n',
        "> def f\n",
        "[PYTHON]\n",
        "```python\ndef f(\n",
        "</think>",
        "@a\n",
        "    x\n",
        "# a\n",
    ],
)
def test_finding_the_code_takes_linear_time(unit: str) -> None:
    """Whatever a model writes, 40 kB of it: quadratic time would be minutes."""
    start_s = time.monotonic()
    extract_code(unit * (40_000 // len(unit)), names=["f"], head="def f(x):\n")
    extract_code("```" + unit * (40_000 // len(unit)) + "x", names=["f"])
    assert time.monotonic() - start_s < 10
