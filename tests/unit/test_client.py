"""The client against a stand-in for the network."""

import json
from typing import Any

import httpx
import pytest

import qprobe_client
from qprobe_client import APIError, Candidate, Client, ClientError, TransportError

REPLY: dict[str, Any] = {
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    "q_probe": {
        "probe": "kind",
        "k": 2,
        "beta": 0.5,
        "results": [
            {
                "selected": [1],
                "scores": [0.0, 1.0],
                "weights": [0.1, 0.9],
                "kl": 0.3,
                "sampled_tokens": 6,
                "candidates": [
                    {"text": "hi", "num_tokens": 4, "finish_reason": "length"},
                    {"text": "hello", "num_tokens": 2, "finish_reason": "stop"},
                ],
            }
        ],
    },
}


def make_client(reply: httpx.Response, seen: list[httpx.Request] | None = None) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return reply

    return Client("http://test", api_key="key", transport=httpx.MockTransport(answer))


def test_chat_sends_what_is_asked_and_reads_the_reply() -> None:
    seen: list[httpx.Request] = []
    with make_client(httpx.Response(200, json=REPLY), seen) as client:
        got = client.chat("hey", model="m", probe="kind", beta=0.5, return_candidates=True, seed=1)
    assert seen[0].headers["authorization"] == "Bearer key"
    assert json.loads(seen[0].content) == {
        "model": "m",
        "seed": 1,
        "messages": [{"role": "user", "content": "hey"}],
        "q_probe": {"probe": "kind", "beta": 0.5, "return_candidates": True},
    }
    assert got.text == "hello"
    assert got.rerank
    assert got.rerank.selected == [1]
    assert got.rerank.candidates
    assert got.rerank.candidates[0] == Candidate("hi", 4, "length")


def test_plain_chat_has_no_object_of_ours() -> None:
    seen: list[httpx.Request] = []
    plain = {name: REPLY[name] for name in ("choices", "usage")}
    messages = [{"role": "user", "content": "hey"}]
    got = make_client(httpx.Response(200, json=plain), seen).chat(messages, model="m:kind")
    assert json.loads(seen[0].content) == {"model": "m:kind", "messages": messages}
    assert got.rerank is None


def test_probes() -> None:
    fields = {"base_model": "b", "layer": "final", "pooling": "mean", "k": 4, "beta": 0.1}
    reply = httpx.Response(200, json={"data": [{"id": "kind", "more": 1, **fields}]})
    (probe,) = make_client(reply).probes()
    assert (probe.name, probe.layer, probe.k) == ("kind", "final", 4)


@pytest.mark.parametrize(
    ("reply", "status", "param"),
    [
        (
            httpx.Response(400, json={"error": {"message": "bad", "param": "q_probe.k"}}),
            400,
            "q_probe.k",
        ),
        (httpx.Response(401, json={"error": "Unauthorized"}), 401, None),
        (httpx.Response(502, text="<html>"), 502, None),
        (httpx.Response(500, json=[]), 500, None),
    ],
)
def test_errors_of_the_server(reply: httpx.Response, status: int, param: str | None) -> None:
    with pytest.raises(APIError) as failed:
        make_client(reply).chat("hey", model="m")
    assert (failed.value.status, failed.value.param) == (status, param)


@pytest.mark.parametrize(
    "reply", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"choices": []})]
)
def test_replies_that_are_none(reply: httpx.Response) -> None:
    with pytest.raises(ClientError):
        make_client(reply).chat("hey", model="m")


def test_a_broken_connection() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(TransportError, match="ReadTimeout"):
        Client("http://test", transport=httpx.MockTransport(fail)).chat("hey", model="m")


def test_public_names() -> None:
    assert qprobe_client.__all__ == sorted(qprobe_client.__all__)
    assert all(hasattr(qprobe_client, name) for name in qprobe_client.__all__)
