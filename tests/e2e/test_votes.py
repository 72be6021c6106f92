"""Votes on a running server: the model writes one of a few texts, and these are known."""

import json
import threading
import time
from typing import Any

import httpx
import pytest

MODEL = "smollm2-135m:end"
LOOP = "def f(x):\n    while True: pass"
# So hot that each of the texts is written at times; what a test says holds whichever are.
HOT = {"temperature": 2.0, "top_p": 1.0, "top_k": -1}
CODES = ["def f(x): return x * x", "def f(x): return x ** 2", "def f(x): return x + x", "none"]


def ask(server: Any, vote: Any, *, choice: list[str], **fields: Any) -> httpx.Response:
    """Ask for 8 candidates, each one of some texts."""
    more = {name: fields.pop(name) for name in ("schedule", "target_kl") if name in fields}
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Write f."}],
        "structured_outputs": {"choice": choice},
        **HOT,
        "max_tokens": 60,
        "seed": 3,
        "q_probe": {"k": 8, "vote": vote, "return_candidates": True, "beta": 1.0, **more},
        **fields,
    }
    reply: httpx.Response = server.client().post("/v1/chat/completions", json=body)
    return reply


def voted(reply: httpx.Response) -> dict[str, Any]:
    """Return the result after the checks that hold for every vote."""
    assert reply.status_code == 200, reply.text
    (result,) = reply.json()["q_probe"]["results"]
    vote, selected = result["vote"], result["selected"]
    assert len(vote["classes"]) == 8
    assert result["kl"] is None
    assert sum(result["weights"]) == pytest.approx(1)
    for place, weight in enumerate(vote["weights"]):
        members = [i for i, each in enumerate(vote["classes"]) if each == place]
        best = max(result["scores"][i] for i in members)
        shares = [result["weights"][i] for i in members if result["scores"][i] == best]
        assert sum(shares) == pytest.approx(weight)
    assert [result["candidates"][i]["text"] for i in selected] == [
        each["message"]["content"] for each in reply.json()["choices"]
    ]
    made: dict[str, Any] = result
    return made


def by_class(result: dict[str, Any]) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = {}
    for each, candidate in zip(result["vote"]["classes"], result["candidates"], strict=True):
        found.setdefault(each, set()).add(candidate["text"])
    return found


def test_numbers_vote(server: Any) -> None:
    texts = ["It is 12.", "So x = 12.0", "7", "I do not know"]
    result = voted(ask(server, {"by": "numeric"}, choice=texts))
    classes = by_class(result)
    assert classes.pop(None, set()) <= {"I do not know"}
    for place, found in classes.items():
        says = result["vote"]["answers"][place or 0]
        assert found <= ({"7"} if says == "7" else {"It is 12.", "So x = 12.0"})


def test_a_vote_gives_two_answers_of_two_classes(server: Any) -> None:
    result = voted(ask(server, {"by": "text"}, choice=["yes", "no"], n=2))
    classes = [result["vote"]["classes"][i] for i in result["selected"]]
    assert len(set(classes)) == len(result["vote"]["weights"])


@pytest.mark.parametrize(
    "vote", [{"by": "json"}, {"by": "regex", "pattern": '"a": ([0-9.]+)'}], ids=["json", "regex"]
)
def test_json_and_patterns_vote(server: Any, vote: Any) -> None:
    result = voted(ask(server, vote, choice=['{"a": 1}', 'I say {"a": 1}', '{"a": 2}']))
    texts = by_class(result)
    assert not any({'{"a": 2}'} < found for found in texts.values())


def test_code_votes_by_what_it_does(server: Any) -> None:
    result = voted(ask(server, {"by": "code", "inputs": ["f(3)"]}, choice=CODES))
    classes = by_class(result)
    assert classes.pop(None, set()) <= {"none"}
    squares = set(CODES[:2])
    assert all(found <= squares or found == {CODES[2]} for found in classes.values())
    assert set(result["vote"]["answers"]) <= {"9", "6"}
    vote = {"by": "code", "tests": ["assert f(3) == 9"]}
    for seed in range(20):
        tested = voted(ask(server, vote, choice=CODES[1:3], seed=seed, n=2))
        written = {each["text"] for each in tested["candidates"]}
        if len(written) == 2:
            break
    else:
        raise AssertionError("the same is written always")
    assert tested["vote"]["answers"] == ["9"]
    assert by_class(tested) == {0: {CODES[1]}, None: {CODES[2]}}


def test_code_votes_in_a_stream(server: Any) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Write f."}],
        "structured_outputs": {"choice": CODES},
        **HOT,
        "max_tokens": 60,
        "seed": 3,
        "stream": True,
        "q_probe": {"k": 8, "vote": {"by": "code", "inputs": ["f(3)"]}, "beta": 1.0},
    }
    with server.client().stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line[:5] == "data:"]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    text = "".join(c["delta"].get("content") or "" for each in chunks for c in each["choices"])
    whole = voted(ask(server, body["q_probe"]["vote"], choice=CODES))
    (result,) = chunks[-1]["q_probe"]["results"]
    assert "answers" not in result["vote"]
    assert result["vote"]["classes"] == whole["vote"]["classes"]
    assert text == whole["candidates"][result["selected"][0]]["text"]


def test_a_loop_without_end_has_no_answer(server: Any) -> None:
    vote = {"by": "code", "inputs": ["f(3)"]}
    result = voted(ask(server, vote, choice=[LOOP, CODES[0]]))
    classes = by_class(result)
    assert classes.pop(None, set()) <= {LOOP}
    assert all(found == {CODES[0]} for found in classes.values())
    reply = ask(server, vote, choice=[LOOP])
    assert voted(reply)["vote"]["classes"] == [None] * 8
    assert (
        reply.json()["q_probe"]["notice"] == "no candidate has an answer by code: the scores decide"
    )


def test_what_cannot_be_voted_on_is_refused(server: Any) -> None:
    refused = ask(server, {"by": "text"}, choice=["a"], target_kl=1.0)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "q_probe.target_kl"
    for vote in ({"by": "regex"}, {"by": "regex", "pattern": "("}):
        unread = ask(server, vote, choice=["a"])
        assert unread.status_code == 400
        assert unread.json()["error"]["param"] == "q_probe.vote.pattern"
    deep = {"by": "code", "tests": ["assert f(1)" + "+1" * 400 + " == 3"]}
    assert ask(server, deep, choice=["a"]).json()["error"]["param"] == "q_probe.vote.tests"


def test_more_prompts_than_the_queue_has_places_are_refused(server: Any) -> None:
    vote = {"by": "code", "inputs": ["f(3)"]}
    body = {"model": MODEL, "max_tokens": 2, "q_probe": {"k": 2, "vote": vote}}
    refused = server.client().post("/v1/completions", json={**body, "prompt": ["a", "b", "c"]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
    reply = server.client().post("/v1/completions", json={**body, "prompt": ["a", "b"]})
    assert len(reply.json()["q_probe"]["results"]) == 2


def slow(server: Any, leave: threading.Event) -> None:
    """Ask for a long answer to be voted on by code, and leave when told to."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Write."}],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
        "q_probe": {"k": 16, "vote": {"by": "code", "inputs": ["f(3)"]}},
    }
    with server.client().stream("POST", "/v1/chat/completions", json=body) as reply:
        for _ in reply.iter_raw():
            if leave.is_set():
                return


def test_a_full_queue_is_refused_and_clients_that_leave_make_room(server: Any) -> None:
    leave = threading.Event()
    others = [threading.Thread(target=slow, args=(server, leave)) for _ in range(2)]
    for each in others:
        each.start()
    server.wait_until_running(2)
    vote = {"by": "code", "inputs": ["f(3)"]}
    deadline = time.monotonic() + 10
    while (refused := ask(server, vote, choice=CODES)).status_code == 200:
        assert time.monotonic() < deadline
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert refused.json()["error"]["param"] == "q_probe.vote"
    assert ask(server, {"by": "text"}, choice=["a"]).status_code == 200
    leave.set()
    for each in others:
        each.join(60)
    deadline = time.monotonic() + 30
    while (reply := ask(server, vote, choice=CODES)).status_code == 503:
        assert time.monotonic() < deadline, "the places were not given back"
        time.sleep(0.2)
    voted(reply)


def test_votes_are_counted_and_nothing_of_them_is_logged(server: Any) -> None:
    voted(ask(server, {"by": "code", "inputs": ["f(4321432143)"]}, choice=CODES))
    metrics = server.client().get("/metrics").text
    assert 'qprobe_votes_total{by="code"}' in metrics
    assert 'qprobe_vote_no_answer_candidates_total{by="code"}' in metrics
    assert 'qprobe_vote_seconds_sum{by="code"}' in metrics
    log = server.log.read_text()
    assert "4321432143" not in log
    assert "def f" not in log
