"""What is not reranked passes through: bytes, headers, pace, and nothing that is not theirs."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from qprobe_server.edge import body as bodies

Json = dict[str, Any]


async def test_a_request_without_a_probe_passes_byte_for_byte(setting: Any, make: Any) -> None:
    raw = b'{ "model":"m",\t"messages" : [], "x":1e400, "n": 2, "\\u00e9": "\xc3\xa9" }'
    answer = b'{ "usage":1.10 }\n'
    setting.stub.answer = make.answer_with(Response(answer, 203, {"X-Own": "kept"}))
    async with setting.open() as proxy:
        for path in ("/v1/chat/completions?a=%2F&b", "/v1/embeddings", "/tokenize"):
            headers = {"content-type": "application/json"}
            reply = await proxy.post(path, content=raw, headers=headers)
            assert (reply.status_code, reply.content) == (203, answer)
            assert reply.headers["x-own"] == "kept"
    assert setting.stub.raw == [raw] * 3
    assert setting.stub.paths == ["/v1/chat/completions?a=%2F&b", "/v1/embeddings", "/tokenize"]


async def test_compressed_replies_stay_compressed_as_the_client_asks(
    setting: Any, make: Any
) -> None:
    packed = Response(b"\x1f\x8b whatever", headers={"content-encoding": "gzip"})
    setting.stub.answer = make.answer_with(packed)
    async with (
        setting.open() as proxy,
        proxy.stream("GET", "/v1/files/1/content", headers={"accept-encoding": "gzip"}) as reply,
    ):
        assert b"".join([chunk async for chunk in reply.aiter_raw()]) == packed.body
    assert setting.stub.headers[0]["accept-encoding"] == "gzip"
    async with setting.open() as proxy:
        request = httpx.Request("GET", proxy.base_url.join("/v1/models"))
        await (await proxy.send(request, stream=True)).aclose()
    assert "accept-encoding" not in setting.stub.headers[1]


async def test_streams_pass_as_they_come(setting: Any) -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await go_on.wait()
        yield b"data: 2\n\n"

    async def answer(request: Any, body: Json, number: int) -> Response:
        return StreamingResponse(parts(), media_type="text/event-stream")

    setting.stub.answer = answer
    body = {"model": "m", "stream": True}
    async with (
        setting.open() as proxy,
        proxy.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        received = reply.aiter_raw()
        assert await anext(received) == b"data: 1\n\n"
        go_on.set()
        assert [part async for part in received] == [b"data: 2\n\n"]


async def test_uploads_pass_as_they_come(setting: Any) -> None:
    """In chunks, and also of more bytes than a body may have that is read."""
    part = b"x" * (1 << 20)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield part

    async with setting.open() as proxy:
        reply = await proxy.post("/v1/files", content=parts())
    assert reply.status_code == 200
    assert setting.stub.raw == [part * 40]


async def test_a_client_that_leaves_in_an_upload_is_nobodys_failure(
    setting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with setting.open() as proxy:
        await setting.leave_in_upload(proxy)
        await asyncio.sleep(0.2)
        assert (await proxy.get("/v1/models")).status_code == 200
    assert caplog.text == ""


async def test_headers_of_one_connection_stay_there(setting: Any, make: Any) -> None:
    answer = JSONResponse({}, headers={"set-cookie": "a=b", "connection": "x-own", "x-own": "1"})
    setting.stub.answer = make.answer_with(answer)
    sent = {
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "te": "trailers",
        "cookie": "a=b",
        "authorization": "Bearer mine",
        "api-key": "mine",
        "x-api-key": "mine",
        "proxy-authorization": "mine",
        "x-kept": "1",
    }
    async with setting.open() as proxy:
        reply = await proxy.get("/v1/models", headers=sent)
        await proxy.get("/v1/models")
    got = setting.stub.headers[0]
    assert got["x-kept"] == "1"
    assert got["host"] == setting.stub.url.removeprefix("http://")
    assert not {*sent, "transfer-encoding"} & {*got} - {"x-kept", "connection"}
    assert not {"set-cookie", "x-own"} & {*reply.headers}
    assert "cookie" not in setting.stub.headers[1]


async def test_a_clients_own_key_passes_where_that_is_asked_for(setting: Any) -> None:
    sent = {"authorization": "Bearer mine", "x-api-key": "mine too"}
    body = {"model": "m:good", "messages": [{"role": "user", "content": "hi"}]}
    async with setting.open(passes_credentials=True) as proxy:
        await proxy.get("/v1/models", headers=sent)
        await proxy.post("/v1/chat/completions", json=body, headers=sent)
    for got in setting.stub.headers:
        assert {name: got[name] for name in sent} == sent


async def test_white_space_around_a_header_is_no_part_of_it(setting: Any) -> None:
    """uvicorn hands it on as it came."""
    raw = b'{"model": "m:good", "messages": [{"role": "user", "content": "hi"}]}'
    async with setting.open() as proxy:
        for path in (b"/v1/embeddings", b"/v1/chat/completions"):
            head = b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-kept: 1 2 \t\r\n" % path
            head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw)
            url = proxy.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(head + raw)
            assert b" 200 " in await reader.readline()
            writer.close()
    assert {each["x-kept"] for each in setting.stub.headers} == {"1 2"}


async def test_a_header_of_the_keys_name_is_not_sent_beside_the_key(setting: Any) -> None:
    keys = {None: (b"x-own-key", b"ours")}
    body = {"model": "m:good", "messages": [{"role": "user", "content": "hi"}]}
    async with setting.open(keys=keys) as proxy:
        await proxy.get("/v1/models", headers={"X-Own-Key": "theirs"})
        await proxy.post("/v1/chat/completions", json=body, headers={"X-Own-Key": "theirs"})
    for got in setting.stub.headers:
        assert got.getlist("x-own-key") == ["ours"]


async def close_while_idle(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: int
) -> int:
    """Answer so many requests of a connection, close it at the next; return how many came."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        for number in range(replies + 1):
            head = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(size[1]) if size else 0)
            if number == replies:
                writer.close()
                return number + 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    return 0


async def test_a_connection_that_is_closed_while_it_idles_costs_no_request(setting: Any) -> None:
    """As by a server that closes it just when the next request is on its way."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await close_while_idle(reader, writer, replies=1)

    async with setting.open_before(handle) as proxy:
        for method in ("GET", "POST", "GET", "POST"):
            reply = await proxy.request(method, "/v1/x", content=b"x" * (method == "POST"))
            assert (reply.status_code, reply.content) == (200, b"{}")


async def test_a_new_connection_that_is_closed_is_a_failure(setting: Any) -> None:
    """What came of the request nobody knows; twice it may do something twice."""
    came: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await close_while_idle(reader, writer, replies=0))

    async with setting.open_before(handle) as proxy:
        assert (await proxy.post("/v1/x", content=b"x")).status_code == 502
    assert came == [1]


async def test_only_those_with_a_key_get_to_the_upstream(setting: Any) -> None:
    keys = {None: (b"authorization", b"Bearer theirs")}
    async with setting.open(api_keys=("one", "two"), keys=keys) as proxy:
        for path in ("/v1/models", "/v1/chat/completions", "/tokenize", "/v1/probes", "/docs"):
            for method in ("GET", "POST", "OPTIONS"):
                for sent in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic one"}):
                    reply = await proxy.request(method, path, headers=sent)
                    assert reply.status_code == 401
                    assert reply.json()["error"]["type"] == "UnauthorizedError"
        for path in ("/health", "/playground", "/playground/api.js", "/metrics"):
            assert (await proxy.get(path)).status_code == 200
        assert setting.stub.headers == []
        for sent in (
            {"authorization": "Bearer one"},
            {"authorization": "bearer two"},
            {"x-api-key": "one"},
            {"api-key": "two"},
        ):
            assert (await proxy.get("/v1/models", headers=sent)).status_code == 200
    for got in setting.stub.headers:
        assert got["authorization"] == "Bearer theirs"
        assert not {"x-api-key", "api-key"} & {*got}


ASKED_FIRST = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
MAY = "access-control-allow-origin"


async def test_pages_of_other_origins_may_ask_where_that_is_allowed(
    setting: Any, make: Any
) -> None:
    """Also before they show a key, as browsers do; also what is reranked, and what is refused."""
    body = {"model": "m:good", "messages": [{"role": "user", "content": "hi"}]}
    origin = {"origin": ASKED_FIRST["origin"]}
    origins = (ASKED_FIRST["origin"],)
    async with setting.open(api_keys=("one",), allowed_origins=origins) as proxy:
        asked = await proxy.options("/v1/chat/completions", headers=ASKED_FIRST)
        assert (asked.status_code, asked.headers[MAY]) == (200, *origins)
        assert "authorization" in asked.headers["access-control-allow-headers"]
        for key, status in (("one", 200), ("no", 401)):
            headers = {**origin, "authorization": f"Bearer {key}"}
            reply = await proxy.post("/v1/chat/completions", json=body, headers=headers)
            assert (reply.status_code, reply.headers[MAY]) == (status, *origins)
        other = {**ASKED_FIRST, "origin": "https://other.example"}
        assert (await proxy.options("/v1/models", headers=other)).status_code == 400


async def test_an_upstream_does_not_say_which_pages_may_ask_the_proxy(
    setting: Any, make: Any
) -> None:
    """As vLLM does, which lets all: they would ask with the key of the proxy's owner."""
    setting.stub.answer = make.answer_with(JSONResponse({}, headers={MAY: "*"}))
    async with setting.open() as proxy:
        for method in ("GET", "OPTIONS"):
            reply = await proxy.request(method, "/v1/models", headers=ASKED_FIRST)
            assert MAY not in reply.headers


async def test_health_and_metrics_can_be_asked_without_their_text(setting: Any) -> None:
    async with setting.open(api_keys=("one",)) as proxy:
        for path in ("/health", "/metrics"):
            reply = await proxy.head(path)
            assert (reply.status_code, reply.content) == (200, b"")
    assert setting.stub.paths == []


async def test_what_is_open_has_nothing_of_the_upstreams_below_it(setting: Any) -> None:
    paths = ("/health/x", "/metrics/x", "/openapi.json/x", "/openapi.json%2Fx", "/openapi.jsonx")
    async with setting.open(api_keys=("one",)) as proxy:
        for path in (*paths, "/playgroundx", "/healthz"):
            assert (await proxy.get(path)).status_code == 401
        assert (await proxy.get("/openapi.json")).status_code == 200
        assert (await proxy.get("/playground/../v1/models")).status_code in (401, 404)
        assert (await proxy.get("/playground/%2E%2E/v1/models")).status_code in (401, 404)
    assert setting.stub.paths == []


async def test_redirects_are_not_passed_on(setting: Any, make: Any) -> None:
    setting.stub.answer = make.answer_with(RedirectResponse("http://other.example/"))
    async with setting.open() as proxy:
        reply = await proxy.get("/v1/models")
    assert reply.status_code == 502
    assert "redirect" in reply.json()["error"]["message"]


async def test_a_reply_that_breaks_off_breaks_off(setting: Any) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await writer.drain()
        writer.close()

    async with setting.open_before(handle) as proxy:
        with pytest.raises(httpx.RemoteProtocolError):
            await proxy.get("/v1/models")


ELSEWHERE = ["/v1/../admin", "/v1/%2e%2e/admin", "/v1/x/..", "/..%2f"]
# Many servers take these for paths whose requests are read here.
OTHER_SPELLINGS = ["//v1/chat/completions", "/v1//chat/completions", "/v1/%2Fmessages", "//metrics"]


@pytest.mark.parametrize("path", [*ELSEWHERE, *OTHER_SPELLINGS])
async def test_paths_stay_below_the_upstreams_address(setting: Any, path: str) -> None:
    async with setting.open(upstreams=[f"{setting.stub.url}/team/v1"]) as proxy:
        raw = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        url = proxy.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(raw.encode())
        assert b" 404 " in await reader.readline()
        writer.close()
    assert setting.stub.paths == []


async def test_addresses_may_have_paths_and_queries(setting: Any) -> None:
    """As Azure's, which ends in no /v1: then there is nothing beside it."""
    address = f"{setting.stub.url}/openai/deployments/d?api-version=1"
    async with setting.open(upstreams=[address]) as proxy:
        await proxy.get("/v1/models?x=y")
        assert (await proxy.get("/tokenize")).status_code == 404
    assert setting.stub.paths == ["/openai/deployments/d/models?api-version=1&x=y"]


async def test_each_model_has_its_upstream(setting: Any, make: Any) -> None:
    other = type(setting.stub)()
    other.answer = make.answer_with(make.complete("other"))
    async with make.listen(other) as url:
        upstreams = [f"one={setting.stub.url}/v1", f"org/two={url}/v1"]
        async with setting.open(upstreams=upstreams) as proxy:
            body = {"messages": [{"role": "user", "content": "hi"}]}
            for model in ("org/two", "org/two:good"):
                for path in ("/v1/chat/completions", "/v1/embeddings"):
                    await proxy.post(path, json={**body, "model": model})
            await proxy.get("/v1/models/org/two")
            assert [each["model"] for each in other.bodies[:-1]] == ["org/two"] * 6
            assert setting.stub.paths == []
            listed = (await proxy.get("/v1/models")).json()["data"]
            assert [each["id"] for each in listed] == ["one", "org/two"]
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                reply = await proxy.post(path, json={**body, "model": "three"})
                assert reply.status_code == 404
                assert "org/two" in reply.json()["error"]["message"]
            await proxy.post("/v1/files", content=b"x")
            assert setting.stub.paths == ["/v1/files"]


async def test_a_body_is_parsed_once(
    setting: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it could ask for a probe, and its model's upstream is to be found besides."""
    parsed: list[bytes] = []
    parse = bodies.parse

    def note(raw: bytes) -> Json:
        parsed.append(raw)
        return parse(raw)

    monkeypatch.setattr(bodies, "parse", note)
    other = type(setting.stub)()
    raw = b'{"model": "two"}'
    async with (
        make.listen(other) as url,
        setting.open(upstreams=[f"one={setting.stub.url}/v1", f"two={url}/v1"]) as proxy,
    ):
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            await proxy.post(path, content=raw, headers={"content-type": "application/json"})
    assert other.raw == parsed == [raw] * 2


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
async def test_a_model_is_found_where_the_client_tells_no_type(
    setting: Any, make: Any, kind: str | None
) -> None:
    other = type(setting.stub)()
    headers = {} if kind is None else {"content-type": kind}
    async with (
        make.listen(other) as url,
        setting.open(upstreams=[f"one={setting.stub.url}/v1", f"two={url}/v1"]) as proxy,
    ):
        await proxy.post("/v1/embeddings", content=b'{"model": "two"}', headers=headers)
    assert (setting.stub.paths, other.raw) == ([], [b'{"model": "two"}'])


async def test_one_without_a_name_takes_what_no_other_does(setting: Any, make: Any) -> None:
    named = type(setting.stub)()
    rest = f"{setting.stub.url}/v1"
    async with (
        make.listen(named) as url,
        setting.open(upstreams=[f"one={url}/v1", rest]) as proxy,
    ):
        await proxy.post("/v1/embeddings", json={"model": "three", "input": "x"})
        await proxy.post("/v1/files", content=b"x")
    assert setting.stub.paths == ["/v1/embeddings", "/v1/files"]
    assert named.paths == []


async def test_own_routes_are_never_the_upstreams(setting: Any) -> None:
    async with setting.open() as proxy:
        listed = (await proxy.get("/v1/probes")).json()["data"]
        assert [each["id"] for each in listed] == ["good", "kind"]
        for method, path in (
            ("PUT", "/v1/probes/x"),
            ("DELETE", "/v1/probes/good"),
            ("GET", "/health/x"),
            ("POST", "/openapi.json"),
            ("GET", "/openapi.json/x"),
        ):
            assert (await proxy.request(method, path)).status_code == 404
        documented = (await proxy.get("/openapi.json")).json()["paths"]
        assert {"/v1/probes", "/health"} <= {*documented}
    assert setting.stub.paths == []


@pytest.mark.parametrize("path", ["/healthz", "/metrics-x", "/v1/probes-x", "/openapi.jsonx"])
async def test_paths_that_only_begin_like_own_ones_are_the_upstreams(
    setting: Any, path: str
) -> None:
    async with setting.open() as proxy:
        assert (await proxy.get(path)).status_code == 200
    assert setting.stub.paths == [path]


async def test_metrics_count_what_is_reranked(setting: Any) -> None:
    body = {"model": "m:good", "messages": [{"role": "user", "content": "hi"}]}
    async with setting.open() as proxy:
        await proxy.post("/v1/chat/completions", json=body)
        text = (await proxy.get("/metrics")).text
    assert 'qprobe_prompts_total{outcome="ok",probe="good"} 1.0' in text
    assert 'qprobe_sampled_tokens_total{probe="good"} 16.0' in text


async def test_no_text_and_no_key_gets_into_a_log(
    setting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    keys = {None: (b"authorization", b"Bearer upstreams-key")}
    body = {"model": "m:good", "messages": [{"role": "user", "content": "the-prompt"}]}
    headers = {"authorization": "Bearer clients-key"}
    async with setting.open(keys=keys, api_keys=("clients-key",)) as proxy:
        reply = await proxy.post("/v1/chat/completions", json=body, headers=headers)
    assert reply.status_code == 200
    for secret in ("upstreams-key", "clients-key", "the-prompt", "four"):
        assert secret not in caplog.text
