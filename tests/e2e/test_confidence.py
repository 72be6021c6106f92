"""How sure a probe is, and the log-probabilities that it reads and nobody asked to see."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

BASE = "smollm2-135m"
DOCUMENT = Path(__file__).parents[2] / "docs" / "confidence.md"
MESSAGES = [{"role": "user", "content": "Name three colours."}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 12},
    "/v1/completions": {"prompt": "Three colours:", "max_tokens": 12},
    "/v1/responses": {"input": "Name three colours.", "max_output_tokens": 12},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 12},
}


def ask(server: Any, route: str, **fields: Any) -> httpx.Response:
    headers = {"x-api-key": server.key} if route == "/v1/messages" else {}
    reply: httpx.Response = server.client().post(
        route, json={"model": BASE, "seed": 3, **BODIES[route], **fields}, headers=headers
    )
    assert reply.status_code == 200, reply.text
    return reply


def read_result(server: Any, route: str, q_probe: dict[str, Any], **fields: Any) -> Any:
    (result,) = ask(server, route, q_probe=q_probe, **fields).json()["q_probe"]["results"]
    return result


def find(value: Any, name: str) -> list[Any]:
    """Return all that stands under a name that is not null or empty, at any depth."""
    if isinstance(value, list):
        return [found for each in value for found in find(each, name)]
    if not isinstance(value, dict):
        return []
    below = [found for each in value.values() for found in find(each, name)]
    return below + ([value[name]] if value.get(name) else [])


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("k", [1, 4])
def test_each_candidate_has_a_confidence_and_no_logprobs_are_shown(
    server: Any, sure: str, route: str, k: int
) -> None:
    reply = ask(server, route, q_probe={"probe": sure, "k": k}).json()
    (result,) = reply["q_probe"]["results"]
    assert len(result["confidence"]) == k
    assert all(0 < each < 1 for each in result["confidence"])
    assert not find(reply, "logprobs")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_ends_with_it_and_shows_no_logprobs(server: Any, sure: str, route: str) -> None:
    reply = ask(server, route, q_probe={"probe": sure, "k": 2}, stream=True)
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in reply.text.splitlines()
        if line.startswith("data: {")
    ]
    assert not any(find(chunk, "logprobs") for chunk in chunks)
    whole = read_result(server, route, {"probe": sure, "k": 2})
    (result,) = chunks[-1]["q_probe"]["results"]
    assert result["confidence"] == pytest.approx(whole["confidence"], abs=0.02)


def test_a_greedy_answer_has_one(server: Any, sure: str) -> None:
    route = "/v1/chat/completions"
    result = read_result(server, route, {"probe": sure, "k": 4}, temperature=0)
    assert len(result["confidence"]) == 1


def test_it_is_what_the_answers_own_logprobs_make_of_it(server: Any, sure: str) -> None:
    """The probe's confidence is sigmoid(mean + 0.5) of the answer's mean log-probability.

    bfloat16 rounds a log-probability by a few hundredths.
    """
    body = {"q_probe": {"probe": sure, "k": 3}, "logprobs": True}
    reply = ask(server, "/v1/chat/completions", **body).json()
    (result,) = reply["q_probe"]["results"]
    shown = [each["logprob"] for each in reply["choices"][0]["logprobs"]["content"]]
    expected = 1 / (1 + math.exp(-(sum(shown) / len(shown) + 0.5)))
    assert result["confidence"][result["selected"][0]] == pytest.approx(expected, abs=0.02)


def test_other_probes_and_mixes_have_none(server: Any, sure: str) -> None:
    for probe in ("end", {"end": 1.0, sure: 1.0}, {sure: 1.0}):
        result = read_result(server, "/v1/chat/completions", {"probe": probe, "k": 2})
        assert "confidence" not in result


def test_the_metrics_count_the_answers(server: Any, sure: str) -> None:
    def read() -> float:
        text = server.client().get("/metrics").text
        found = re.search(
            rf'^qprobe_confidence_count\{{probe="{sure}"\}} (.+)$', text, re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    before = read()
    read_result(server, "/v1/chat/completions", {"probe": sure, "k": 4}, n=2)
    assert read() == before + 2


def test_the_schema_documents_it(server: Any) -> None:
    schemas = server.client().get("/openapi.json").json()["components"]["schemas"]
    assert "confidence" in schemas["ResultReply"]["properties"]
    assert {"terms", "confidence"} <= schemas["ProbeCard"]["properties"].keys()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_documents_example(server: Any, sure: str, threshold: float) -> None:
    """As it stands there, but for the addresses and names; the larger model is the same one."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    for old, new in (
        ("http://localhost:8000", server.url),
        ("http://localhost:9000", server.url),
        ('api_key="none"', f"api_key={server.key!r}"),
        ("THRESHOLD = 0.7", f"THRESHOLD = {threshold}"),
        ("smollm2-135m:python", f"{BASE}:{sure}"),
        ('model="large"', f'model="{BASE}"'),
    ):
        assert old in code
        code = code.replace(old, new)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"0\.\d\d (.|\n)+", done.stdout)
