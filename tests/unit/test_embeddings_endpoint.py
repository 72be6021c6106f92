"""The client of embeddings endpoints against a real server that plays well, and every way badly."""

import asyncio
import base64
import time
from typing import Any

import numpy as np
import pytest

from qprobe_server.errors import ReadingError
from qprobe_server.proxy.address import read_address
from qprobe_server.proxy.embeddings_endpoint import EmbeddingsEndpoint

Json = dict[str, Any]
DIMENSIONS = 3
SECRET = "sk-very-secret"


def vector_of(text: str) -> list[float]:
    return [len(text), float(sum(text.encode())), 0.5]


def reply_to(request: Json) -> Json:
    """Answer as OpenAI does, last text first: the order is the client's to restore."""
    data = [
        {"object": "embedding", "index": index, "embedding": vector_of(text)}
        for index, text in enumerate(request["input"])
    ]
    return {"object": "list", "model": request["model"], "data": data[::-1]}


def embed(
    played: Any, texts: list[str], *, model: str = "e", total_s: float = 5.0, key: str = SECRET
) -> list[Any]:
    async def run() -> list[Any]:
        endpoint = EmbeddingsEndpoint(
            read_address("--embeddings", played.url), model=model, api_key=key, total_s=total_s
        )
        try:
            return await endpoint.embed(texts)
        finally:
            await endpoint.close()

    return asyncio.run(run())


def test_a_batch_is_one_call_and_comes_in_the_order_of_the_texts(playing: Any) -> None:
    played = playing(lambda request, _: reply_to(request))
    texts = ["a", "bcd", "ef", "a"]
    found = embed(played, texts)
    assert [each.tolist() for each in found] == [vector_of(text) for text in texts]
    assert played.requests == [{"model": "e", "input": texts, "encoding_format": "float"}]
    assert played.paths == ["/v1/embeddings"]
    assert played.headers[0]["authorization"] == f"Bearer {SECRET}"


def test_base64_is_understood(playing: Any) -> None:
    def play(request: Json, _: int) -> Json:
        reply = reply_to(request)
        for each in reply["data"]:
            raw = np.array(each["embedding"], "<f4").tobytes()
            each["embedding"] = base64.b64encode(raw).decode()
        return reply

    assert [each.tolist() for each in embed(playing(play), ["xy"])] == [vector_of("xy")]


@pytest.mark.parametrize(
    ("asked", "answered", "is_it"),
    [
        ("bge-small", "bge-small", True),
        ("BAAI/bge-small", "bge-small", True),
        ("bge-small", "baai/BGE-small", True),
        ("text-embedding-ada-002", "text-embedding-ada-002-v2", True),
        ("bge-small", None, True),
        ("bge-small", "bge-large", False),
        ("bge-small", "small", False),
    ],
)
def test_the_model_that_answers_is_the_one_asked(
    playing: Any, asked: str, answered: str | None, *, is_it: bool
) -> None:
    played = playing(lambda request, _: {**reply_to(request), "model": answered})
    if is_it:
        embed(played, ["a"], model=asked)
    else:
        with pytest.raises(
            ReadingError, match=f"'{asked}' was asked, and '{answered}' has answered"
        ):
            embed(played, ["a"], model=asked)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_refusal_for_now_is_asked_again_after_the_pause_it_wants(
    playing: Any, status: int
) -> None:
    times = []

    def play(request: Json, number: int) -> Any:
        times.append(time.monotonic())
        return (status, {"retry-after": "1"}, {}) if number == 1 else reply_to(request)

    assert embed(playing(play), ["a"])[0].tolist() == vector_of("a")
    assert times[1] - times[0] >= 1


def test_a_lost_connection_is_asked_again(playing: Any) -> None:
    def play(request: Json, number: int) -> Any:
        return (0, {}, b"") if number < 3 else reply_to(request)

    assert embed(playing(play), ["a"])[0].tolist() == vector_of("a")


def test_a_pause_beyond_the_time_is_not_waited_for(playing: Any) -> None:
    played = playing(lambda *_: (429, {"retry-after": "3600"}, {}))
    begun_s = time.monotonic()
    with pytest.raises(ReadingError, match="status 429"):
        embed(played, ["a"])
    assert time.monotonic() - begun_s < 3
    assert len(played.requests) == 1


def test_one_that_is_silent_is_given_up(playing: Any) -> None:
    def play(*_: object) -> Any:
        time.sleep(3)
        return {}

    played = playing(play)
    with pytest.raises(ReadingError, match="no answer in time"):
        embed(played, ["a"], total_s=0.5)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_is_not_taken_costs_no_other_its_embedding(playing: Any, status: int) -> None:
    def play(request: Json, _: int) -> Any:
        is_long = any(len(text) > 5 for text in request["input"])
        return (status, {}, {"error": "too long"}) if is_long else reply_to(request)

    found = embed(playing(play), ["a", "far too long", "bc"])
    assert [None if each is None else each.tolist() for each in found] == [
        vector_of("a"),
        None,
        vector_of("bc"),
    ]


@pytest.mark.parametrize("texts", [["my text"], ["my text", "another text"]])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_endpoint_that_takes_no_text_at_all_fails(
    playing: Any, status: int, texts: list[str]
) -> None:
    """But where it says that they are too large."""
    played = playing(lambda *_: (status, {}, {"error": "no such model"}))
    if status == 413:
        assert embed(played, texts) == [None] * len(texts)
        return
    with pytest.raises(ReadingError, match=f"status {status}: it takes none") as caught:
        embed(played, texts)
    assert "my text" not in str(caught.value)
    assert "no such model" not in str(caught.value)


def test_more_texts_than_it_takes_at_once_are_asked_for_one_by_one(playing: Any) -> None:
    def play(request: Json, _: int) -> Any:
        return (422, {}, {}) if len(request["input"]) > 2 else reply_to(request)

    texts = [f"text {number}" for number in range(20)]
    found = embed(playing(play), texts)
    assert [each.tolist() for each in found] == [vector_of(text) for text in texts]


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b"<html>", "not JSON"),
    "no data": ({"model": "e"}, 'without a list of objects "data"'),
    "data of strings": ({"data": ["x", "y"]}, 'without a list of objects "data"'),
    "a vector less": (
        {"data": [{"index": 0, "embedding": [1, 2]}]},
        "1 embeddings, or of others, where 2",
    ),
    "an index twice": (
        {"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]},
        "2 embeddings, or of others",
    ),
    "no index": ({"data": [{"embedding": [1]}, {"embedding": [1]}]}, "2 embeddings, or of others"),
    "two dimensions": (
        {"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]},
        "different dimensions",
    ),
    "not finite": (
        b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}',
        "finite numbers",
    ),
    "empty": (
        {"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]},
        "finite numbers",
    ),
    "words": (
        {"data": [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": ["y"]}]},
        "list of numbers",
    ),
    "bad base64": (
        {"data": [{"index": 0, "embedding": "?"}, {"index": 1, "embedding": "?"}]},
        "list of numbers",
    ),
    "a redirect": (
        (307, {"location": "http://example.com"}, {}),
        "a redirect, which is not followed",
    ),
    "a wrong key": ((401, {}, {"error": f"{SECRET} is wrong"}), "status 401"),
    "not found": ((404, {}, {}), "status 404"),
    "beyond the bound": (b" " * ((64 << 20) + 1), "more than 64 MiB"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_is_named_and_quotes_neither_text_nor_key(playing: Any, kind: str) -> None:
    answer, expected = BAD[kind]
    played = playing(lambda *_: answer)
    played.url += "?key=" + SECRET
    with pytest.raises(ReadingError, match="embeddings endpoint http://127") as caught:
        embed(played, ["my text", "another text"])
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "text" not in str(caught.value)
    assert len(played.requests) == 1


@pytest.mark.parametrize("status", [200, 400, 401])
def test_the_first_call_says_whether_it_embeds(playing: Any, status: int) -> None:
    played = playing(lambda request, _: (status, {}, reply_to(request)))

    async def run() -> int:
        endpoint = EmbeddingsEndpoint(read_address("--embeddings", played.url), model="e")
        try:
            return await endpoint.probe()
        finally:
            await endpoint.close()

    if status == 200:
        assert asyncio.run(run()) == DIMENSIONS
    else:
        with pytest.raises(
            ReadingError, match="status 400.*model 'e'" if status == 400 else "status 401"
        ):
            asyncio.run(run())


def test_who_waits_no_more_asks_no_more(playing: Any) -> None:
    played = playing(lambda *_: (503, {"retry-after": "1"}, {}))

    async def run() -> None:
        endpoint = EmbeddingsEndpoint(read_address("--embeddings", played.url), model="e")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(endpoint.embed(["a"]), 0.3)
        await asyncio.sleep(1.2)
        await endpoint.close()

    asyncio.run(run())
    assert len(played.requests) == 1
