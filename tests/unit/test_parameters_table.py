"""docs/parameters.md has every parameter of the official clients, and its tests exist."""

import ast
import re
import typing
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parameters.md").read_text()

# The heading of each table, and the type of what its client sends.
REQUESTS: dict[str, Any] = {
    "Chat completions": chat_create_params.CompletionCreateParams,
    "Completions": completion_create_params.CompletionCreateParams,
    "Responses": response_create_params.ResponseCreateParams,
    "Anthropic's Messages": message_create_params.MessageCreateParams,
}
BARE = {"works", "ignored", "refused", "depends"}
PROBED = {"chooses", "prompt", "candidates", "answer", "ignored", "refused"}
# A test as the page names it, of tests/e2e/test_parameters.py unless a file is named.
TEST = re.compile(r"`(?:(?P<file>[\w/]+)\.py::)?(?P<name>test_\w+)`")


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    parameters: list[str]
    bare: str
    probed: str
    tests: list[tuple[str, str]]


def read_rows(title: str) -> list[Row]:
    """Return the rows of the table under a heading."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [read_row(line) for line in lines]


def read_row(line: str) -> Row:
    parameters, bare, probed, _, tests = (cell.strip() for cell in line.strip("|").split(" |"))
    return Row(
        re.findall(r"`(\w+)`", parameters),
        bare,
        probed,
        [(found["file"] or "e2e/test_parameters", found["name"]) for found in TEST.finditer(tests)],
    )


def fields_of(request: Any) -> set[str]:
    """Return the fields of a TypedDict, or of the union of two."""
    kinds = typing.get_args(request)
    return {name for kind in kinds for name in kind.__required_keys__ | kind.__optional_keys__}


@pytest.mark.parametrize("title", REQUESTS)
def test_every_parameter_of_the_client_has_one_row(title: str) -> None:
    listed = Counter(name for row in read_rows(title) for name in row.parameters)
    expected = fields_of(REQUESTS[title])
    assert len(expected) > 10
    missing, unknown = expected - set(listed), set(listed) - expected
    assert not missing, f"docs/parameters.md says nothing of {sorted(missing)} of {title}"
    assert not unknown, f"{title} has no {sorted(unknown)}, which docs/parameters.md lists"
    assert set(listed.values()) == {1}


@pytest.mark.parametrize("title", REQUESTS)
def test_behaviours_are_of_the_vocabulary_that_the_page_explains(title: str) -> None:
    explained = set(re.findall(r"^\| (\w+) \|", PAGE.split("\n## ")[0], re.MULTILINE))
    assert explained == BARE | PROBED
    for row in read_rows(title):
        assert row.bare in BARE, row
        assert row.probed in PROBED, row
        # A probe takes nothing away, and refuses nothing that vLLM does not.
        assert (row.bare == "refused") == (row.probed == "refused"), row


@pytest.mark.parametrize("title", REQUESTS)
def test_every_test_named_exists_and_is_of_the_parameter(title: str) -> None:
    for row in read_rows(title):
        assert row.tests, row
        said: set[str] = set()
        for file, name in row.tests:
            words = words_of_tests(file)
            assert name in words, f"there is no {name} in tests/{file}.py"
            said |= words[name]
        assert set(row.parameters) <= said, f"{row.tests} do not use {row.parameters}"


def words_of_tests(file: str) -> dict[str, set[str]]:
    """Return every test of a file with the words in it, in what it is parametrised by, and in the
    constants of its module that either uses.
    """
    module = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    constants = {
        node.id: words_in(statement)
        for statement in module.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    tests = {}
    for each in module.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            names = {node.id for node in ast.walk(each) if isinstance(node, ast.Name)}
            used = (constants.get(name, set()) for name in names)
            tests[each.name] = words_in(each).union(*used)
    return tests


def words_in(tree: ast.AST) -> set[str]:
    """Return the strings and the names of arguments and attributes in a piece of code."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg is not None:
            words.add(node.arg)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
    return words
