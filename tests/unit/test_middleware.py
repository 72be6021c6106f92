"""The ASGI edge around an app of our own: what it passes on, and what it puts into replies."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from qprobe_server.choice.code_vote import CodeRunner
from qprobe_server.choice.rerank import current_rerank
from qprobe_server.choice.schemas import ResultReply
from qprobe_server.choice.vote import VoteReader
from qprobe_server.edge.access_log import AccessLogMiddleware
from qprobe_server.edge.middleware import AppState, RerankMiddleware
from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.settings import Settings

Handler = Callable[[Request], Awaitable[Any]]
RESULT = ResultReply(selected=[0], scores=[1.0], weights=[1.0], kl=0.0, beta=0.1, sampled_tokens=3)
SETTINGS = Settings()
VOTES = VoteReader()
CHUNK = {"id": "c", "object": "chunk", "created": 1, "model": "base", "choices": [{"x": 1}]}


def serve(
    registry: ProbeRegistry,
    handlers: dict[str, Handler],
    settings: Settings = SETTINGS,
    votes: VoteReader = VOTES,
) -> httpx.AsyncClient:
    app = FastAPI()
    for path, handler in handlers.items():
        app.add_route(path, handler, methods=["POST"])
    app.state.qprobe = AppState(
        settings=settings,
        registry=registry,
        is_model="base".__eq__,
        list_models=lambda: ["base"],
        votes=votes,
    )
    app.add_middleware(RerankMiddleware)
    app.add_middleware(AccessLogMiddleware)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def echo(request: Request) -> JSONResponse:
    """Answer with the body as it arrives, as if the engine had sampled one prompt."""
    rerank = current_rerank.get()
    if rerank is not None:
        rerank.add(rerank.next_prompt(), RESULT)
    return JSONResponse({"body": await request.json(), "reranked": rerank is not None})


def stream_of(*chunks: str, pause_s: float = 0) -> Handler:
    async def body() -> AsyncIterator[str]:
        await asyncio.sleep(pause_s)
        rerank = current_rerank.get()
        if rerank is not None:
            rerank.add(rerank.next_prompt(), RESULT)
        for chunk in chunks:
            yield chunk

    async def handler(request: Request) -> StreamingResponse:
        await request.json()
        return StreamingResponse(body(), media_type="text/event-stream")

    return handler


def data(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"


CHAT = "/v1/chat/completions"
SAGEMAKER = "x-amzn-sagemaker-adapter-identifier"
ALIASED = {"model": "base:good", "best_of": 3}


def make_reply(registry: ProbeRegistry) -> dict[str, Any]:
    good = registry.get("good")
    assert good is not None
    return {
        "probe": "good",
        "version": good.version,
        "k": 16,
        "beta": 0.1,
        "results": [RESULT.model_dump(exclude_unset=True)],
    }


async def test_a_json_reply_carries_the_result(registry: ProbeRegistry) -> None:
    async with serve(registry, {CHAT: echo}) as client:
        reply = await client.post(CHAT, json={"model": "base:good", "text": "é"})
    assert reply.json() == {
        "body": {"model": "base", "text": "é"},
        "reranked": True,
        "q_probe": make_reply(registry),
    }
    assert int(reply.headers["content-length"]) == len(reply.content)


async def test_a_reply_that_is_no_object_passes(registry: ProbeRegistry) -> None:
    """vLLM answers null to a client that left; some of its prompts may have results by then."""

    async def nothing(request: Request) -> JSONResponse:
        await echo(request)
        return JSONResponse(None)

    async with serve(registry, {CHAT: nothing}) as client:
        assert (await client.post(CHAT, json={"model": "base:good"})).text == "null"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/messages/count_tokens", CHAT])
async def test_plain_requests_pass_untouched(registry: ProbeRegistry, path: str) -> None:
    async with serve(registry, {path: echo}) as client:
        reply = await client.post(path, json={"model": "base", "x": 1})
    assert reply.json() == {"body": {"model": "base", "x": 1}, "reranked": False}


@pytest.mark.parametrize("path", ["/tokenize", "/cohere/v2/chat/render"])
async def test_an_alias_works_where_nothing_is_sampled(registry: ProbeRegistry, path: str) -> None:
    async with serve(registry, {path: echo}) as client:
        reply = await client.post(path, json={"model": "base:good"})
    assert reply.json() == {"body": {"model": "base"}, "reranked": False}


@pytest.mark.parametrize("model", ["base", "base:good"])
async def test_vllm_gets_the_id_of_the_header_else_that_of_the_body_else_a_new_one(
    registry: ProbeRegistry, model: str
) -> None:
    """Which of them it takes is vLLM's own rule; it has no header where its body has an id."""

    async def tell(request: Request) -> JSONResponse:
        return JSONResponse({"header": request.headers.get("x-request-id")})

    async def ask(header: str | None, **fields: Any) -> tuple[str | None, str]:
        headers = {} if header is None else {"x-request-id": header}
        reply = await client.post(CHAT, json={"model": model, **fields}, headers=headers)
        return reply.json()["header"], reply.headers["x-request-id"]

    async with serve(registry, {CHAT: tell}) as client:
        assert await ask("mine", request_id="other") == ("mine", "mine")
        assert await ask(None, request_id="other") == (None, "other")
        for odd in ("a b", 7):
            seen, logged = await ask(None, request_id=odd)
            assert (seen, len(logged)) == (None, 32)
        seen, logged = await ask(None)
        assert seen == logged
        assert len(logged) == 32


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions/render"])
async def test_q_probe_is_refused_where_nothing_is_sampled(
    registry: ProbeRegistry, path: str
) -> None:
    async with serve(registry, {path: echo}) as client:
        reply = await client.post(path, json={"model": "base", "q_probe": {"probe": "good"}})
        aliased = await client.post(path, json={"model": "base:good"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "q_probe")
    assert "samples nothing" in reply.json()["error"]["message"]
    assert aliased.json()["body"] == {"model": "base"}


@pytest.mark.parametrize("path", ["/inference/v1/generate", "/cohere/v2/chat"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [({"model": "base", "q_probe": {}}, "q_probe"), ({"model": "base:good"}, "model")],
)
async def test_a_probe_is_refused_where_answers_are_not_reranked(
    registry: ProbeRegistry, path: str, fields: dict[str, Any], param: str
) -> None:
    async with serve(registry, {path: echo}) as client:
        reply = await client.post(path, json=fields)
        bare = await client.post(path, json={"model": "base", "q_probe": None})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert f"answers of {path} are not reranked" in reply.json()["error"]["message"]
    assert bare.json() == {"body": {"model": "base", "q_probe": None}, "reranked": False}


async def test_invocations_may_name_their_model_in_a_header(registry: ProbeRegistry) -> None:
    """vLLM puts it over the body's, so that it must be no alias when it gets there."""

    async def echo_header(request: Request) -> JSONResponse:
        reply = json.loads(bytes((await echo(request)).body))
        return JSONResponse({**reply, "header": request.headers.get(SAGEMAKER)})

    async with serve(registry, {"/invocations": echo_header, CHAT: echo_header}) as client:

        async def post(path: str, header: str, model: str) -> Any:
            sent = {"model": model, "messages": []}
            return (await client.post(path, json=sent, headers={SAGEMAKER: header})).json()

        found = await post("/invocations", "base:good", "other")
        assert (found["header"], found["body"]["model"]) == ("base", "base")
        assert (found["reranked"], found["q_probe"]["probe"]) == (True, "good")
        plain = await post("/invocations", "base", "base:good")
        assert (plain["reranked"], plain["body"]["model"]) == (False, "base:good")
        missing = await post("/invocations", "none", "base")
        assert missing["error"]["param"] == "model"
        # Elsewhere it means nothing.
        assert (await post(CHAT, "none", "base:good"))["reranked"]


async def test_invocations_are_chats_or_completions(registry: ProbeRegistry) -> None:
    """Of completions best_of is k, of chats it stays vLLM's."""
    async with serve(registry, {"/invocations": echo}) as client:
        chat = (await client.post("/invocations", json={**ALIASED, "messages": []})).json()
        completion = (await client.post("/invocations", json={**ALIASED, "prompt": "x"})).json()
    assert [each["q_probe"]["k"] for each in (chat, completion)] == [16, 3]
    assert chat["body"]["best_of"] == 3
    assert "best_of" not in completion["body"]


async def test_a_model_that_does_not_exist_is_told_what_does(registry: ProbeRegistry) -> None:
    async with serve(registry, {CHAT: echo, "/tokenize": echo}) as client:
        for path in (CHAT, "/tokenize"):
            for model in ("basis", "basis:good"):
                reply = await client.post(path, json={"model": model})
                assert reply.status_code == 404
                assert reply.json()["error"]["param"] == "model"
                for name in (model, "models: base;", "good, kind"):
                    assert name in reply.json()["error"]["message"]
            for other in (None, "", 7):
                assert (await client.post(path, json={"model": other})).status_code == 200


async def test_refusals_are_openai_errors(registry: ProbeRegistry) -> None:
    async with serve(registry, {CHAT: echo}) as client:
        reply = await client.post(CHAT, json={"model": "base:nobody"})
    assert reply.status_code == 404
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["param"] == "model"


VOTING = {"model": "base:good", "q_probe": {"vote": {"by": "code", "inputs": ["f(3)"]}}}


async def test_requests_that_are_let_through_are_counted(registry: ProbeRegistry) -> None:
    """Not one that is refused, be it for want of room, which a client then tries again."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def wait(request: Request) -> JSONResponse:
        begun.set()
        await end.wait()
        return await echo(request)

    votes = VoteReader(CodeRunner(num_workers=1, max_prompts=1))
    async with serve(registry, {CHAT: wait}, votes=votes) as client:
        first = asyncio.create_task(client.post(CHAT, json=VOTING))
        await begun.wait()
        for refused, status in ((VOTING, 503), ({**VOTING, "q_probe": {"k": 0}}, 400)):
            assert (await client.post(CHAT, json=refused)).status_code == status
        end.set()
        assert (await first).status_code == 200
        mix = {"good": 1.0, "kind": 1.0}
        body = {"model": "base", "q_probe": {"probe": mix}}
        assert (await client.post(CHAT, json=body)).status_code == 200
    assert [registry.num_requests(each) for each in ("good", "kind")] == [2, 1]


async def test_a_votes_places_are_given_back_however_its_request_ends(
    registry: ProbeRegistry,
) -> None:
    """By a refusal of the app behind, by its failure, and when it is cancelled."""
    begun = asyncio.Event()

    async def answer(request: Request) -> JSONResponse:
        match (await request.json()).get("ending"):
            case "refusal":
                return JSONResponse({"error": {}}, status_code=400)
            case "failure":
                raise ZeroDivisionError
            case "cancelled":
                begun.set()
                await asyncio.sleep(60)
        return await echo(request)

    votes = VoteReader(CodeRunner(num_workers=1, max_prompts=1))
    async with serve(registry, {CHAT: answer}, votes=votes) as client:

        async def check_there_is_room() -> None:
            assert (await client.post(CHAT, json=VOTING)).status_code == 200

        refused = await client.post(CHAT, json={**VOTING, "ending": "refusal"})
        assert refused.status_code == 400
        await check_there_is_room()
        with pytest.raises(ZeroDivisionError):
            await client.post(CHAT, json={**VOTING, "ending": "failure"})
        await check_there_is_room()
        left = asyncio.create_task(client.post(CHAT, json={**VOTING, "ending": "cancelled"}))
        await begun.wait()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        await check_there_is_room()


async def test_a_silent_stream_is_kept_alive(registry: ProbeRegistry) -> None:
    """Silent for 0.3 s at 0.05 s a comment: 1 to 6 by the machine's speed, none afterwards."""
    handler = stream_of(data(CHUNK), "data: [DONE]\n\n", pause_s=0.3)
    settings = Settings(keep_alive_s=0.05, default_probe="good")
    async with serve(registry, {CHAT: handler}, settings=settings) as client:
        text = (await client.post(CHAT, json={"model": "base"})).text
    async with serve(registry, {CHAT: handler}) as client:
        bare = (await client.post(CHAT, json={"model": "base"})).text
    comments, last, rest = text.rpartition(": keep-alive\n\n")
    assert 1 <= (comments + last).count(": keep-alive\n\n") <= 6
    assert rest == data(CHUNK) + "data: [DONE]\n\n"
    assert bare == rest


async def test_requests_do_not_see_each_other(registry: ProbeRegistry) -> None:
    async def slow(request: Request) -> JSONResponse:
        await asyncio.sleep(0.01)
        rerank = current_rerank.get()
        await request.json()
        return JSONResponse(rerank.request.probes[0][0].name if rerank else "none")

    async with serve(registry, {CHAT: slow}) as client:
        models = ["base:good", "base", "base:kind"] * 10
        replies = await asyncio.gather(
            *(client.post(CHAT, json={"model": model}) for model in models)
        )
    assert [reply.json() for reply in replies] == ["good", "none", "kind"] * 10
