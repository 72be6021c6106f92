"""What goes wrong between a client and a server, and what is tried again; with both clients."""

import asyncio
import email.utils
import inspect
import time
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from qprobe_client import (
    APIError,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    ConflictError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestTooLargeError,
    ServiceUnavailableError,
    TransportError,
    TransportTimeoutError,
    _retries,
)
from qprobe_client._calls import Call

SECRET = "secret-key-or-prompt"
CHAT = {
    "choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
}
MakeClient = Callable[..., Any]


async def settle(given: Any) -> Any:
    """Return what a call of either client gives."""
    return await given if inspect.isawaitable(given) else given


async def chat(client: Any) -> Any:
    return await settle(client.chat(SECRET, model="m"))


async def open_stream(client: Any) -> Any:
    context = client.stream_chat(SECRET, model="m")
    if isinstance(client, AsyncClient):
        async with context:
            return None
    with context:
        return None


async def list_probes(client: Any) -> Any:
    return await settle(client.probes())


async def upload(client: Any) -> Any:
    return await settle(client.upload_probe("kind", b"x"))


async def delete(client: Any) -> Any:
    return await settle(client.delete_probe("kind"))


@pytest.fixture(params=[Client, AsyncClient])
def make_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """Return a function that makes a client to which one outcome after another happens.

    An outcome is a reply or an error of httpx's; the last one happens for ever.
    ``client.tries`` holds what was tried.
    """
    monkeypatch.setattr(_retries, "FIRST_PAUSE_S", 0.001)

    def make(*outcomes: httpx.Response | type[httpx.HTTPError], **options: Any) -> Any:
        tries: list[httpx.Request] = []

        def handle(got: httpx.Request) -> httpx.Response:
            tries.append(got)
            outcome = outcomes[min(len(tries), len(outcomes)) - 1]
            if isinstance(outcome, type):
                raise outcome("said so")
            # A new one for each try: a body is read once.
            return httpx.Response(
                outcome.status_code, headers=outcome.headers, content=outcome.content
            )

        client = request.param(
            "http://test", api_key=SECRET, transport=httpx.MockTransport(handle), **options
        )
        client.tries = tries
        return client

    return make


@pytest.mark.parametrize(
    ("status", "body", "kind", "param", "said"),
    [
        (
            400,
            {"error": {"message": "bad", "type": "T", "param": "q_probe.k"}},
            BadRequestError,
            "q_probe.k",
            "400: bad",
        ),
        (401, {"error": "Unauthorized"}, AuthenticationError, None, "401: Unauthorized"),
        (
            404,
            {"error": {"message": "no", "param": None, "code": 404}},
            NotFoundError,
            None,
            "404: no",
        ),
        (409, {"error": {"message": "no"}}, ConflictError, None, "409: no"),
        (405, {"detail": "?"}, APIError, None, "405: Method Not Allowed"),
        (413, {"error": {"message": ""}}, RequestTooLargeError, None, "413: Request Entity"),
        (418, [], APIError, None, "418: I'm a teapot"),
        (429, None, RateLimitError, None, "429: Too Many Requests"),
        (500, {"error": 7}, InternalServerError, None, "500: Internal Server Error"),
        (502, "<html>", InternalServerError, None, "502: Bad Gateway"),
        (503, {"error": {"message": "full"}}, ServiceUnavailableError, None, "503: full"),
        (307, None, APIError, None, "307: Temporary Redirect"),
    ],
)
@pytest.mark.parametrize("ask", [chat, open_stream])
async def test_errors_of_the_server(
    make_client: MakeClient, ask: Any, status: int, body: Any, kind: Any, param: Any, said: str
) -> None:
    reply = (
        httpx.Response(status, text=body)
        if isinstance(body, str)
        else httpx.Response(status, json=body, headers={"x-request-id": "r1"})
    )
    with pytest.raises(APIError) as failed:
        await ask(make_client(reply))
    error = failed.value
    assert type(error) is kind
    assert (error.status, error.param) == (status, param)
    assert error.type == ("T" if status == 400 else None)
    assert error.request_id == (None if isinstance(body, str) else "r1")
    assert str(error).startswith(said)


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, text=f"<html>{SECRET}"),
        httpx.Response(200, content=b"\xff"),
        httpx.Response(200, json=[SECRET]),
        httpx.Response(200, json={**CHAT, "choices": []}),
        httpx.Response(200, json={**CHAT, "choices": {SECRET: 1}}),
        httpx.Response(200, json={**CHAT, "choices": [SECRET]}),
        httpx.Response(200, json={**CHAT, "choices": [{"index": True, "message": {}}]}),
        httpx.Response(200, json={**CHAT, "choices": [{"index": 0, "message": SECRET}]}),
        httpx.Response(200, json={"choices": CHAT["choices"]}),
        httpx.Response(200, json={**CHAT, "q_probe": {"results": []}}),
        httpx.Response(200, json={**CHAT, "q_probe": {"results": [{"beta": SECRET}]}}),
    ],
)
async def test_replies_that_are_none(make_client: MakeClient, reply: httpx.Response) -> None:
    with pytest.raises(ReplyError) as failed:
        await chat(make_client(reply))
    assert SECRET not in "".join(traceback.format_exception_only(failed.value))
    assert SECRET not in "".join(traceback.format_exception_only(failed.value.__cause__))


async def test_a_reply_that_is_no_stream(make_client: MakeClient) -> None:
    with pytest.raises(ReplyError, match="not a stream"):
        await open_stream(make_client(httpx.Response(200, json=CHAT)))


async def test_what_vllm_repeats_of_a_request_is_not_shown(make_client: MakeClient) -> None:
    said = (
        "1 validation error:\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'should be "
        f"a list', 'input': '{SECRET}', 'ctx': {{}}}}\n  {{'type': 'x', 'input': '{SECRET}...[tr"
    )
    reply = httpx.Response(400, json={"error": {"message": said, "param": "body.messages"}})
    with pytest.raises(BadRequestError) as failed:
        await chat(make_client(reply))
    assert SECRET not in str(failed.value)
    assert "'msg': 'should be a list'}" in str(failed.value)


async def test_nothing_shows_a_key_or_a_prompt(make_client: MakeClient) -> None:
    client = make_client(httpx.ReadError)
    with pytest.raises(TransportError) as failed:
        await chat(client)
    assert SECRET not in "".join(traceback.format_exception(failed.value, limit=0))
    assert SECRET not in repr(client)
    assert all(
        SECRET not in repr(value) for value in vars(client).values() if value != client.tries
    )


REFUSED = [httpx.ConnectError, httpx.ConnectTimeout]
BROKEN = [httpx.ReadError, httpx.WriteError, httpx.ReadTimeout, httpx.RemoteProtocolError]
OWN_FAULT = [httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.ProxyError]
ALL = [chat, open_stream, list_probes, upload, delete]


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize("error", REFUSED)
async def test_a_call_that_was_not_sent_is_made_again(
    make_client: MakeClient, ask: Any, error: Any
) -> None:
    client = make_client(error)
    with pytest.raises(TransportError, match=f"{error.__name__}: said so") as failed:
        await ask(client)
    assert isinstance(failed.value, TransportTimeoutError) == (error is httpx.ConnectTimeout)
    assert len(client.tries) == 3


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize("error", [*BROKEN, *OWN_FAULT])
async def test_after_it_was_sent_only_what_is_idempotent_is_made_again(
    make_client: MakeClient, ask: Any, error: Any
) -> None:
    client = make_client(error)
    with pytest.raises(TransportError) as failed:
        await ask(client)
    assert isinstance(failed.value, TransportTimeoutError) == (error is httpx.ReadTimeout)
    is_safe = ask not in (chat, open_stream) and error in BROKEN
    assert len(client.tries) == (3 if is_safe else 1)


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 429, 500, 501, 502, 503, 504])
async def test_which_replies_are_tried_again(
    make_client: MakeClient, ask: Any, status: int
) -> None:
    client = make_client(httpx.Response(status))
    with pytest.raises(APIError):
        await ask(client)
    is_safe = status in (429, 503) or (status in (500, 502, 504) and ask not in (chat, open_stream))
    assert len(client.tries) == (3 if is_safe else 1)


@pytest.mark.parametrize("max_retries", [0, 1, 4])
async def test_the_cap_of_retries(make_client: MakeClient, max_retries: int) -> None:
    client = make_client(httpx.Response(503), max_retries=max_retries)
    with pytest.raises(ServiceUnavailableError):
        await chat(client)
    assert len(client.tries) == max_retries + 1


async def test_a_retry_sends_the_same_and_gives_the_reply(make_client: MakeClient) -> None:
    client = make_client(httpx.ConnectError, httpx.Response(429), httpx.Response(200, json=CHAT))
    assert (await chat(client)).text == "hello"
    bodies = {request.content for request in client.tries}
    assert len(client.tries) == 3
    assert len(bodies) == 1


async def test_pauses_are_waited_for(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_retries, "FIRST_PAUSE_S", 0.1)
    client = make_client(httpx.ConnectError, httpx.Response(429), httpx.Response(200, json=CHAT))
    start_s = time.monotonic()
    await chat(client)
    assert time.monotonic() - start_s >= 0.05 + 0.1


async def test_who_is_sent_away_for_long_does_not_wait(make_client: MakeClient) -> None:
    client = make_client(httpx.Response(503, headers={"retry-after": "61"}))
    with pytest.raises(ServiceUnavailableError):
        await chat(client)
    assert len(client.tries) == 1


def test_pauses_double_up_to_a_longest_and_keep_to_the_server() -> None:
    call = Call("POST", "/")
    unset = httpx.Headers()

    def pauses(headers: httpx.Headers) -> list[float]:
        retries = _retries.Retries(call, max_retries=8)
        return [retries.after_reply(503, headers) or 0 for _ in range(8)]

    for pause, most in zip(pauses(unset), [0.5, 1, 2, 4, 8, 8, 8, 8], strict=True):
        assert most / 2 <= pause <= most
    # Two clients that fail together do not come back together.
    assert pauses(unset) != pauses(unset)
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    past = email.utils.formatdate(time.time() - 30, usegmt=True)
    assert 28 < pauses(httpx.Headers({"retry-after": date}))[0] <= 30
    for value in (past, "soon", "-1", "0"):
        assert 0.25 <= pauses(httpx.Headers({"retry-after": value}))[0] <= 0.5


async def test_a_real_port_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retries, "FIRST_PAUSE_S", 0.001)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    for kind in (Client, AsyncClient):
        with pytest.raises(TransportError, match="ConnectError"):
            await list_probes(kind(f"http://127.0.0.1:{port}"))
