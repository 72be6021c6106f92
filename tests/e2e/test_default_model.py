"""The server that ``make serve`` starts: the default model, the shipped probes, README's examples.

Quality counts here, so the default model answers. One server, started without a flag of ours.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from qprobe import Probe, ProbeInfo, Reading, Terms, load_probe, save_probe
from qprobe_server.default_model import MODEL_NAME

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BASE = "smollm2-135m"
CHAT = "/v1/chat/completions"
PYTHON_PROBE = ROOT / "probes" / "qprobe" / "shipped" / "python.safetensors"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def default(
    start_server: Callable[..., AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Serve as a user does who has read README's first lines."""
    with start_server(tmp_path_factory.mktemp("default") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def client(default: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{default.url}/v1", api_key=default.key, max_retries=0) as made:
        yield made


def test_the_curl_line_of_the_readme(default: Any) -> None:
    """The answer is a function that works, and most candidates were dropped by the schedule."""
    (sent,) = re.findall(r"^\$ curl .* -d '(\{.*?\})'$", README, re.DOTALL | re.MULTILINE)
    reply = default.client().post(CHAT, json=json.loads(sent, strict=False))
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    found = answer["q_probe"]
    steps = load_probe(PYTHON_PROBE).info.schedule
    assert found["schedule"] == [{"tokens": step.tokens, "keep": step.keep} for step in steps]
    (result,) = found["results"]
    assert result["rejected_at"].count(None) == steps[-1].keep
    text = answer["choices"][0]["message"]["content"]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None, text
    assert "double_all" in {
        node.name for node in ast.walk(ast.parse(code[1])) if isinstance(node, ast.FunctionDef)
    }


def test_the_python_example_of_the_readme(default: Any, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(from openai.*?)^```$", README, re.DOTALL | re.MULTILINE)
    code = code.replace("http://localhost:8000", default.url).replace('"none"', repr(default.key))
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".+\n\[\d+\] \[.+\] \d+\n", done.stdout, re.DOTALL), done.stdout


def test_the_shipped_probes_are_served(client: openai.OpenAI, default: Any) -> None:
    names = {path.stem for path in PYTHON_PROBE.parent.iterdir()}
    listed = {model.id for model in client.models.list()}
    assert listed == {BASE, *(f"{BASE}:{name}" for name in names)}
    for card in default.client().get("/v1/probes").json()["data"]:
        assert card["training"]["cross_validated_reward"] > card["training"]["train_base"] > 0


@pytest.mark.parametrize("model", [BASE, f"{BASE}:python"])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_work_without_a_flag(client: openai.OpenAI, model: str, *, stream: bool) -> None:
    forced: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: Any = {"model": model, "messages": QUESTION, "tools": [WEATHER], "max_tokens": 100}
    answer: Any = client.chat.completions.create(**asked, tool_choice=forced, stream=stream)
    if stream:
        calls = [
            call.function
            for chunk in answer
            for choice in chunk.choices
            for call in choice.delta.tool_calls or []
        ]
    else:
        calls = [call.function for call in answer.choices[0].message.tool_calls]
    assert [call.name for call in calls if call.name] == ["get_weather"]
    arguments = json.loads("".join(call.arguments or "" for call in calls))
    assert isinstance(arguments["city"], str)
    free = client.chat.completions.create(**asked, tool_choice="auto")
    assert free.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_json_schema(client: openai.OpenAI) -> None:
    properties: Any = {"name": {"type": "string", "maxLength": 12}, "old": {"type": "boolean"}}
    schema: Any = {"type": "object", "properties": properties, "required": ["name", "old"]}
    answer = client.chat.completions.create(
        model=f"{BASE}:python",
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": {**schema, "additionalProperties": False}},
        },
        max_tokens=80,
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"name", "old"}


@pytest.mark.parametrize("probe", ["even", pytest.param(None, marks=pytest.mark.heavy)])
def test_compatcanary_finds_nothing(default: Any, tmp_path: Path, probe: str | None) -> None:
    """Every check of the scanner passes, with a probe as without.

    The scanner samples without a seed and without a limit, and so small a model fills a tool's
    string until it is cut off in about one scan of four, with and without a probe. So a check has
    passed if it did in one of ten scans: all ten fail by chance once in a million. The probe has no
    preference: a random one may like what was cut off, and fails twice as often.
    """
    if shutil.which("npx") is None:
        pytest.skip("npx is not installed: the scanner is an npm package")
    path = tmp_path / "even.safetensors"
    info = ProbeInfo(
        base_model=MODEL_NAME,
        hidden_size=576,
        num_layers=30,
        objective="ce",
        k=4,
        beta=0.1,
    )
    save_probe(Probe(info, Terms.linear(Reading("final", "last"), torch.zeros(576))), path)
    admin = {"authorization": f"Bearer {default.admin_key}"}
    put = default.client().put("/v1/probes/even", content=path.read_bytes(), headers=admin)
    assert put.status_code in (200, 201), put.text
    checks: set[str] = set()
    passed: set[str] = set()
    for attempt in range(10):
        report = tmp_path / f"{attempt}.json"
        command = [
            *("npx", "--yes", "compatcanary@0.2.2", "scan", "--base-url", f"{default.url}/v1"),
            *("--model", f"{BASE}:{probe}" if probe else BASE, "--format", "json"),
            *("--output", str(report), "--fail-on", "never"),
        ]
        environment = {
            "OPENAI_API_KEY": default.key,
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
        }
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=400)
        results = json.loads(report.read_text())["results"]
        checks |= {check["id"] for check in results}
        passed |= {check["id"] for check in results if check["status"] == "pass"}
        if checks == passed:
            break
    assert passed == checks
    assert "chat.tool_call" in checks
    default.client().delete("/v1/probes/even", headers=admin)
