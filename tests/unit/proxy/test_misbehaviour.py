"""An upstream that fails in every way: partly, for a while, for good, in the midst of a stream."""

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from qprobe_server.proxy.address import read_address
from qprobe_server.proxy.upstream import Bounds, Upstream
from qprobe_server.settings import Settings

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
ASK: Json = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "seed": 0,
    "q_probe": {"probe": "good"},
}
STREAM = {**ASK, "stream": True}
BUSY = Response(b'{"error": {"message": "slow down"}}', 429, {"retry-after": "1"})


def failing(make: Any, bad: Any, *, seeds: tuple[int, ...] = (1, 3)) -> Any:
    """Return what answers some seeds badly, and the others by ``good N``."""

    async def answer(request: Any, body: Json, number: int) -> Any:
        if body["seed"] in seeds:
            return await bad() if asyncio.iscoroutinefunction(bad) else bad()
        text = f"good {body['seed']}"
        if body.get("stream"):
            return make.stream(make.chunks(text))
        return JSONResponse(make.complete(text))

    return answer


async def sleep_long() -> Response:
    await asyncio.sleep(30)
    return Response()


def broken_sse() -> list[str]:
    return ["data: {not json\n\n", "data: [DONE]\n\n"]


BAD_REPLIES: dict[str, tuple[Any, str]] = {
    "refuses": (lambda: Response(b"no", 400), "status 400 (2)"),
    "is too large": (lambda: Response(b"x" * (10 << 20)), "a reply of more than 1 MiB (2)"),
    "is no JSON": (lambda: Response(b"<html>"), "a broken reply (JSONDecodeError) (2)"),
    "is a list": (lambda: JSONResponse([]), "a broken reply (AttributeError) (2)"),
    "is empty": (lambda: JSONResponse({"choices": []}), "a reply without a choice (2)"),
    "says an error": (lambda: JSONResponse({"error": {"message": "x"}}), "an error instead"),
    "redirects": (lambda: RedirectResponse("http://other.example/v1"), "a redirect"),
    "is compressed": (
        lambda: Response(b"x", headers={"content-encoding": "gzip"}),
        "a compressed reply (2)",
    ),
    "ends for an odd reason": (
        lambda: JSONResponse({"choices": [{"message": {}, "finish_reason": ["stop"]}]}),
        "a broken reply (TypeError) (2)",
    ),
    "is slow": (sleep_long, "no answer in time (2)"),
}


@pytest.mark.parametrize(("bad", "said"), BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
async def test_the_choice_is_among_the_candidates_that_came(
    setting: Any, make: Any, caplog: pytest.LogCaptureFixture, bad: Any, said: str
) -> None:
    """The client hears of it, and so does the log."""
    setting.stub.answer = failing(make, bad)
    bounds = Bounds(max_reply_mib=1, deadline_s=2)
    async with setting.open(bounds=bounds) as proxy:
        reply = (await proxy.post(CHAT, json=ASK)).json()
    assert reply["choices"][0]["message"]["content"] in ("good 0", "good 2")
    assert f"2 of 4 candidates are missing: {said}" in reply["q_probe"]["notice"]
    assert f"{setting.stub.url}: 2 of 4 candidates are missing: {said}" in caplog.text
    assert reply["q_probe"]["k"] == 4
    assert reply["q_probe"]["results"][0]["scores"] == [6, 6]


ODD_USAGES: list[Json] = [
    {"completion_tokens": -1},
    {"completion_tokens": {"all": 4}},
    {"completion_tokens": 10**400},
    {"completion_tokens": float("nan"), "prompt_tokens": {}},
    {"completion_tokens": True, "completion_tokens_details": 3},
    {"completion_tokens": 4, "completion_tokens_details": {"a": {"b": 1}}},
    {"completion_tokens": 4, "cost": float("inf")},
]


@pytest.mark.parametrize("num_choices", [1, 4])
@pytest.mark.parametrize("usage", ODD_USAGES, ids=lambda usage: str(usage)[:60])
async def test_a_count_that_none_can_be_costs_no_answer(
    setting: Any, make: Any, usage: Json, num_choices: int
) -> None:
    """Of one candidate, beside others that count as ever; with several answers, too."""

    async def answer(request: Any, body: Json, number: int) -> Response:
        reply = make.complete("four")
        if number == 1 or num_choices > 1:
            reply["usage"] = usage
            reply["choices"] *= num_choices
        return Response(json.dumps(reply), media_type="application/json")

    setting.stub.answer = answer
    async with setting.open(has_n=num_choices > 1) as proxy:
        for body in (ASK, {**ASK, "n": 2}):
            reply = await proxy.post(CHAT, json=body)
            assert reply.status_code == 200
            (result,) = reply.json()["q_probe"]["results"]
            assert result["scores"] == [4, 4, 4, 4]
            assert result["sampled_tokens"] in (None, 4, 12, 16)


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ("9" * 400, "31536000"),
        ("Wed, 21 Oct 9999 07:28:00 GMT", "31536000"),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2030 07:28:00 +9999999999999999", None),
    ],
)
async def test_a_pause_that_no_calendar_has_is_no_failure_of_ours(
    setting: Any, make: Any, monkeypatch: pytest.MonkeyPatch, told: str, given: str | None
) -> None:
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.004)
    setting.stub.answer = make.answer_with(Response(b"busy", 429, {"retry-after": told}))
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json=ASK)
    assert (reply.status_code, reply.text) == (429, "busy")
    assert reply.headers.get("retry-after") == given


BROKEN_STREAMS: dict[str, tuple[Any, str]] = {
    "ends early": (lambda make: make.chunks("never whole")[:2], "a stream that was cut off (2)"),
    "holds no JSON": (lambda make: broken_sse(), "a broken reply (JSONDecodeError) (2)"),
    "holds an error": (
        lambda make: [make.chunks("abc")[0], {"error": {"message": "secret"}}],
        "an error instead of an answer (2)",
    ),
    "holds nothing": (lambda make: [": comment\n\n", "data: [DONE]\n\n"], "without a choice (2)"),
}


@pytest.mark.parametrize(("parts", "said"), BROKEN_STREAMS.values(), ids=BROKEN_STREAMS.keys())
async def test_broken_streams_are_left_out(setting: Any, make: Any, parts: Any, said: str) -> None:
    setting.stub.answer = failing(make, lambda: make.stream(parts(make)))
    async with setting.open() as proxy:
        text = (await proxy.post(CHAT, json=STREAM)).text
    assert said in text
    assert "secret" not in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages"])
async def test_a_stream_that_was_not_asked_for_is_no_answer(
    setting: Any, make: Any, path: str
) -> None:
    setting.stub.answer = make.answer_with(lambda: make.stream(make.chunks("good")))
    async with setting.open() as proxy:
        reply = await proxy.post(path, json={**ASK, "prompt": "hi", "max_tokens": 9})
    assert reply.status_code == 502
    assert reply.json()["error"]["message"] == "upstream: a stream that was not asked for"


async def test_a_connection_lost_in_mid_stream_is_left_out(setting: Any, make: Any) -> None:
    """By a server that closes it after half of what it has announced."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"
            b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
        )
        await writer.drain()
        writer.close()

    async with setting.open_before(handle) as proxy:
        reply = await proxy.post(CHAT, json=STREAM)
    assert reply.status_code == 502
    assert reply.json()["error"]["message"] == "upstream: the connection was lost"


@pytest.mark.parametrize("n", [1, 2])
async def test_half_a_surrogate_pair_is_shown_as_none_and_passed_as_it_came(
    setting: Any, make: Any, n: int
) -> None:
    """JSON can say it, and UTF-8 cannot."""
    raw = json.dumps(make.complete("good \ud83d"))
    setting.stub.answer = make.answer_with(lambda: Response(raw, media_type="application/json"))
    asked = {"probe": "good", "vote": {"by": "text"}, "return_candidates": True}
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "n": n, "q_probe": asked})).json()
    (result,) = reply["q_probe"]["results"]
    assert {each["text"] for each in result["candidates"]} == {"good \ufffd"}
    assert [each["message"]["content"] for each in reply["choices"]] == ["good \ud83d"] * n


async def test_half_a_surrogate_pair_in_a_call_is_shown_as_none(setting: Any, make: Any) -> None:
    """A call's arguments are JSON within JSON: the half comes to light where these are read."""
    answer = make.complete("")
    function = {"name": "f", "arguments": '{"x": "\\ud83d"}'}
    call = {"id": "1", "type": "function", "function": function}
    answer["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    setting.stub.answer = make.answer_with(answer)
    asked = {"probe": "good", "return_candidates": True}
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json={**ASK, "q_probe": asked})).json()
    (result,) = reply["q_probe"]["results"]
    shown = {each["text"] for each in result["candidates"]}
    assert shown == {'{"name": "f", "arguments": {"x": "\ufffd"}}'}
    (made,) = reply["choices"][0]["message"]["tool_calls"]
    assert made["function"] == function


@pytest.mark.parametrize("n", [1, 2])
async def test_a_surrogate_pair_that_a_stream_cuts_is_one_again(
    setting: Any, make: Any, n: int
) -> None:
    parts = make.chunks("go\ud83d\ude00")
    setting.stub.answer = make.answer_with(lambda: make.stream(parts))
    asked = {"probe": "good", "return_candidates": True}
    async with setting.open() as proxy:
        text = (await proxy.post(CHAT, json={**STREAM, "n": n, "q_probe": asked})).text
    assert {each.text for each in setting.reader.completions} == {"go\U0001f600"}
    assert text.count('"go\\ud83d"') == text.count('"\\ude00"') == n
    assert "\U0001f600" in text


async def test_an_upstream_that_is_busy_is_asked_again_when_it_says(
    setting: Any, make: Any
) -> None:
    setting.stub.answer = make.answer_with(*[BUSY] * 4, make.complete("now"))
    async with setting.open() as proxy:
        begun_s = time.monotonic()
        reply = (await proxy.post(CHAT, json=ASK)).json()
    assert 1 <= time.monotonic() - begun_s < 4, "four pauses of 1 s, one after the other"
    assert len(setting.stub.bodies) == 8
    assert "notice" not in reply["q_probe"]


@pytest.mark.parametrize("told", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_an_upstream_that_says_at_once_gets_pauses_and_an_end(
    setting: Any, make: Any, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.004)
    setting.stub.answer = make.answer_with(Response(b"busy", 429, {"retry-after": told}))
    async with setting.open(bounds=Bounds(deadline_s=20)) as proxy:
        begun_s = time.monotonic()
        reply = await proxy.post(CHAT, json={**ASK, "q_probe": {"probe": "good", "k": 1}})
    assert (reply.status_code, reply.text) == (429, "busy")
    assert len(setting.stub.bodies) == 12
    assert time.monotonic() - begun_s >= 0.004 * (1 + 2 + 4 + 8 + 16 + 6 * 32)


async def test_nobody_waits_beyond_the_deadline(setting: Any, make: Any) -> None:
    """The upstream's own error comes through, and says when to come again."""
    busy = Response(b'{"error": {"message": "later"}}', 429, {"retry-after": "60"})
    busy.headers["content-type"] = "application/json"
    setting.stub.answer = make.answer_with(busy)
    async with setting.open(bounds=Bounds(deadline_s=5)) as proxy:
        reply = await proxy.post(CHAT, json=ASK)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "60")
    assert reply.json() == {"error": {"message": "later"}}
    assert len(setting.stub.bodies) == 4


@pytest.mark.parametrize("status", [500, 503, 529])
async def test_a_failing_upstream_is_asked_again_a_few_times(
    setting: Any, make: Any, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.01)
    setting.stub.answer = make.answer_with(Response(b"broken", status))
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json={**ASK, "q_probe": {"probe": "good", "k": 1}})
    assert (reply.status_code, reply.text) == (status, "broken")
    assert len(setting.stub.bodies) == 4


UNREADABLE = [
    Response(b"packed", 429, {"retry-after": "0", "content-encoding": "gzip"}),
    Response(b"x" * (2 << 20), 429, {"retry-after": "0"}),
]


@pytest.mark.parametrize("refusal", UNREADABLE, ids=["compressed", "too long"])
async def test_an_error_that_cannot_be_read_has_its_status_all_the_same(
    setting: Any, make: Any, monkeypatch: pytest.MonkeyPatch, refusal: Response
) -> None:
    """It is tried again for it, and the client hears of it."""
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.004)
    setting.stub.answer = make.answer_with(*[refusal] * 4, make.complete("now"))
    async with setting.open(bounds=Bounds(max_reply_mib=1)) as proxy:
        assert (await proxy.post(CHAT, json=ASK)).status_code == 200
        setting.stub.answer = make.answer_with(refusal)
        reply = await proxy.post(CHAT, json=ASK)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "0")
    assert reply.json()["error"]["message"] == "upstream: status 429"


async def test_an_error_that_breaks_off_has_its_status_all_the_same(setting: Any) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        writer.close()

    async with setting.open_before(handle) as proxy:
        reply = await proxy.post(CHAT, json=ASK)
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == "upstream: status 404"


async def test_an_upstreams_own_refusal_comes_through(setting: Any, make: Any) -> None:
    refusal = JSONResponse({"error": {"message": "no such model", "code": "model_not_found"}}, 404)
    setting.stub.answer = make.answer_with(refusal)
    async with setting.open() as proxy:
        for body in (ASK, STREAM):
            reply = await proxy.post(CHAT, json=body)
            assert (reply.status_code, reply.content) == (404, refusal.body)


async def test_an_upstream_that_is_not_there_is_told(
    setting: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why: clients are not to know what is behind the proxy."""
    monkeypatch.setattr("qprobe_server.proxy.upstream._FIRST_PAUSE_S", 0.01)
    async with setting.open(upstreams=["http://127.0.0.1:9/v1"]) as proxy:
        for path, body in ((CHAT, ASK), ("/v1/embeddings", {})):
            reply = await proxy.post(path, json=body)
            assert reply.status_code == 502
            assert reply.json()["error"]["message"] == "upstream: it cannot be reached"
    why = "it cannot be reached (All connection attempts failed)"
    assert caplog.text.count(f"a request failed: {why}") == 2


async def test_a_deadline_without_an_answer_is_a_timeout(setting: Any) -> None:
    async def answer(request: Any, body: Json, number: int) -> Response:
        return await sleep_long()

    setting.stub.answer = answer
    async with setting.open(bounds=Bounds(deadline_s=0.3)) as proxy:
        assert (await proxy.post(CHAT, json=ASK)).status_code == 504
    await until_idle(setting)


async def test_fewer_choices_than_asked_for_are_told(setting: Any, make: Any) -> None:
    setting.stub.answer = make.answer_with(make.complete("only"))
    async with setting.open(has_n=True) as proxy:
        reply = (await proxy.post(CHAT, json=ASK)).json()
        assert "3 of 4 candidates are missing" in reply["q_probe"]["notice"]
        assert reply["q_probe"]["results"][0]["scores"] == [4]
        assert (await proxy.post(CHAT, json={**ASK, "n": 2})).status_code == 502


@pytest.mark.parametrize("status", [400, 422])
async def test_an_upstream_may_not_know_how_to_say_a_streams_usage(
    setting: Any, make: Any, status: int
) -> None:
    """As Mistral's, which refuses fields that it does not know: asked again without ours."""

    async def answer(request: Any, body: Json, number: int) -> Response:
        if "stream_options" in body:
            return JSONResponse({"message": "extra inputs are not permitted"}, status)
        parts = [part for part in make.chunks("good") if "usage" not in part]
        return Response(b"".join(map(make.dump, parts)), media_type="text/event-stream")

    setting.stub.answer = answer
    async with setting.open() as proxy:
        reply = await proxy.post(CHAT, json=STREAM, headers={"idempotency-key": "one"})
        text = reply.text
        keys = [each["idempotency-key"] for each in setting.stub.headers]
        assert len(set(keys)) == 8  # of one that knows the key, another body would be a mistake
        assert '"sampled_usage":null' in text
        assert text.endswith("data: [DONE]\n\n")
        asked = {**STREAM, "stream_options": {"include_usage": True}}
        assert (await proxy.post(CHAT, json=asked)).status_code == status


async def test_another_models_id_stays_what_it_is(setting: Any, make: Any) -> None:
    """As of an upstream that names the version; an alias is repeated as it was asked for."""
    setting.stub.answer = make.answer_with(make.complete("x"))
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json=ASK)).json()
        assert reply["model"] == "upstream-model-2026"
        alias = {**ASK, "model": "m:good", "q_probe": {}}
        assert (await proxy.post(CHAT, json=alias)).json()["model"] == "m:good"


async def test_candidates_that_the_reader_does_not_take_are_left_out(
    setting: Any, make: Any
) -> None:
    setting.stub.answer = make.by_seed("a", "bb", "cccc", "ddddd")
    setting.reader.too_long = 3
    async with setting.open() as proxy:
        reply = (await proxy.post(CHAT, json=ASK)).json()
        assert reply["choices"][0]["message"]["content"] == "bb"
        said = "2 candidates are left out: the reader does not take them"
        assert reply["q_probe"]["notice"] == said
        assert reply["q_probe"]["results"][0]["sampled_usage"]["completion_tokens"] == 12
        setting.reader.too_long = 0
        failed = await proxy.post(CHAT, json=ASK)
        assert failed.status_code == 502
        assert "the reader does not take them" in failed.text


async def test_a_late_failure_ends_the_stream_with_an_error(setting: Any, make: Any) -> None:
    """The stream has begun, so that nothing on the way cuts it; comments keep it alive."""

    async def answer(request: Any, body: Json, number: int) -> Response:
        await asyncio.sleep(0.5)
        return JSONResponse({"error": {"message": "their words"}}, 400)

    setting.stub.answer = answer
    settings = Settings(keep_alive_s=0.1)
    async with setting.open(settings=settings) as proxy:
        reply = await proxy.post(CHAT, json=STREAM)
    assert reply.status_code == 200
    assert reply.text.startswith(": keep-alive\n\n")
    assert reply.text.endswith('event: error\ndata: {"error": {"message": "their words"}}\n\n')


LATE_ERRORS: list[tuple[bytes, str, Json]] = [
    (b'{"detail": "not so"}', "application/json", {"detail": "not so"}),
    (b'{"message": "not so", "error": null}', "application/json", {"message": "not so"}),
    (b'["not so"]', "application/json", {}),
    (b"[" * 100_000, "application/json", {}),
    (b"\xff", "text/plain", {}),
]


@pytest.mark.parametrize(("raw", "kind", "kept"), LATE_ERRORS, ids=range(len(LATE_ERRORS)))
async def test_a_late_failure_is_an_error_to_clients_whatever_its_words_are(
    setting: Any, make: Any, raw: bytes, kind: str, kept: Json
) -> None:
    """OpenAI's client takes what has no field ``error`` for a chunk."""

    async def answer(request: Any, body: Json, number: int) -> Response:
        await asyncio.sleep(0.3)
        return Response(raw, 400, media_type=kind)

    setting.stub.answer = answer
    async with setting.open(settings=Settings(keep_alive_s=0.1)) as proxy:
        text = (await proxy.post(CHAT, json=STREAM)).text
    event, data = text.removesuffix("\n\n").rsplit("\n\n", 1)[1].split("\n")
    said = json.loads(data.removeprefix("data: "))
    assert event == "event: error"
    assert said["error"]["message"] == "upstream: status 400"
    assert kept.items() <= said.items()


async def until_idle(setting: Any) -> None:
    async with asyncio.timeout(10):
        while setting.stub.num_open:  # noqa: ASYNC110  uvicorn tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", [ASK, STREAM, {**ASK, "q_probe": None}])
async def test_clients_that_leave_take_their_candidates_along(setting: Any, body: Json) -> None:
    """30 of them, at random moments; afterwards the upstream has nothing to do."""

    async def answer(request: Any, asked: Json, number: int) -> Response:
        return await sleep_long()

    setting.stub.answer = answer
    bounds = replace(Bounds(), concurrency=256)
    async with setting.open(bounds=bounds) as proxy:

        async def leave(after_s: float) -> None:
            with pytest.raises(httpx.ReadTimeout):
                await proxy.post(CHAT, json=body, timeout=after_s)

        await asyncio.gather(*(leave(0.2 + 0.03 * index) for index in range(30)))
        await until_idle(setting)
    assert setting.stub.bodies
    assert setting.reader.completions == []


async def test_requests_are_made_when_their_turn_comes(setting: Any) -> None:
    """Those that wait hold no body."""
    upstream = Upstream(read_address("--upstream", f"{setting.stub.url}/v1"), Bounds(concurrency=3))
    num_made = 0

    def make() -> httpx.Request:
        nonlocal num_made
        num_made += 1
        return httpx.Request("POST", f"{setting.stub.url}/v1/x", content=b"{}")

    async def answer(request: Any, body: Json, number: int) -> Response:
        return await sleep_long()

    setting.stub.answer = answer
    deadline_s = asyncio.get_running_loop().time() + 20
    asking = [asyncio.create_task(upstream.ask(make, deadline_s=deadline_s)) for _ in range(9)]
    async with asyncio.timeout(10):
        while setting.stub.num_open < 3:  # noqa: ASYNC110  uvicorn tells nobody
            await asyncio.sleep(0.01)
    assert num_made == 3
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await upstream.close()


async def test_an_upstream_is_asked_for_so_many_at_a_time(setting: Any, make: Any) -> None:
    most = 0

    async def answer(request: Any, body: Json, number: int) -> Response:
        nonlocal most
        most = max(most, setting.stub.num_open)
        await asyncio.sleep(0.05)
        return JSONResponse(make.complete("x"))

    setting.stub.answer = answer
    async with setting.open(bounds=Bounds(concurrency=3)) as proxy:
        await asyncio.gather(*(proxy.post(CHAT, json=ASK) for _ in range(4)))
    assert (most, len(setting.stub.bodies)) == (3, 16)
