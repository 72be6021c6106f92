"""Probes that are uploaded, replaced and deleted while a real server answers."""

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qprobe import Probe, ProbeInfo, Reading, Terms, save_probe

BASE = "smollm2-135m"
CHAT = "/v1/chat/completions"
CLIENTS = 8
REPLACEMENTS = 12
# No score of these probes' weights alone comes near it, so that a score tells its version.
SHIFT = 1000.0

Json = dict[str, Any]
MakeShifted = Callable[..., bytes]


@pytest.fixture
def make_shifted(tmp_path: Path, small_model: Path) -> MakeShifted:
    """Return a function that makes a probe whose scores lie around a bias."""

    def make(bias: float, *, layer: int | str = 4) -> bytes:
        info = ProbeInfo(
            base_model=small_model.name,
            hidden_size=576,
            num_layers=6,
            objective="ce",
            k=2,
            beta=0.1,
        )
        path = tmp_path / "made.safetensors"
        reading = Reading(layer, "mean")  # type: ignore[arg-type]  # checked when it is made
        save_probe(Probe(info, Terms.linear(reading, torch.full((576,), 1e-3), bias)), path)
        return path.read_bytes()

    return make


def body(probe: str, **fields: Any) -> Json:
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    return {"model": f"{BASE}:{probe}", "messages": messages, **fields}


def admin(server: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {server.admin_key}"}


def put(server: Any, name: str, data: bytes) -> Any:
    return server.client().put(f"/v1/probes/{name}", content=data, headers=admin(server))


def test_replacing_a_probe_under_load(server: Any, make_shifted: MakeShifted) -> None:
    """No request fails, and the scores of each are those of the version that its reply names."""
    files = {sign: make_shifted(sign * SHIFT) for sign in (1, -1)}
    created = put(server, "shifting", files[1])
    assert created.status_code == 201, created.text
    signs = {created.json()["version"]: 1}
    replies: list[tuple[int, Json]] = []
    done = threading.Event()

    def ask() -> None:
        with server.client() as client:
            while not done.is_set():
                reply = client.post(CHAT, json=body("shifting", max_tokens=6))
                replies.append((reply.status_code, reply.json()))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for number in range(REPLACEMENTS):
        wanted, deadline = len(replies) + CLIENTS, time.monotonic() + 60
        while len(replies) < wanted:  # so that requests of each version end
            assert time.monotonic() < deadline
            time.sleep(0.02)
        sign = 1 if number % 2 else -1
        replaced = put(server, "shifting", files[sign])
        assert replaced.status_code == 200
        signs[replaced.json()["version"]] = sign
    done.set()
    for thread in threads:
        thread.join()
    assert len(replies) > CLIENTS
    used = set()
    for status, reply in replies:
        assert status == 200, reply
        found = reply["q_probe"]
        used.add(found["version"])
        for score in found["results"][0]["scores"]:
            assert abs(score - signs[found["version"]] * SHIFT) < SHIFT / 2
    assert used == set(signs)
    card = server.client().get("/v1/probes/shifting").json()
    assert card["num_requests"] == len(replies)
    server.client().delete("/v1/probes/shifting", headers=admin(server))


def test_a_request_ends_with_the_probe_that_it_began_with(
    server: Any, make_shifted: MakeShifted
) -> None:
    """Deleted in the middle, its place in the workers is not given to the next upload."""
    put(server, "leaving", make_shifted(SHIFT))
    answered: list[Any] = []

    def ask() -> None:
        asked = body("leaving", max_tokens=600, ignore_eos=True)
        answered.append(server.client().post(CHAT, json=asked))

    thread = threading.Thread(target=ask)
    thread.start()
    server.wait_until_running()
    deleted = server.client().delete("/v1/probes/leaving", headers=admin(server))
    assert deleted.status_code == 200
    assert not answered
    for number in range(3):
        assert put(server, f"next-{number}", make_shifted(-SHIFT)).status_code == 201
    assert server.client().post(CHAT, json=body("leaving")).status_code == 404
    thread.join()
    (reply,) = answered
    assert reply.status_code == 200
    for score in reply.json()["q_probe"]["results"][0]["scores"]:
        assert abs(score - SHIFT) < SHIFT / 2
    for number in range(3):
        server.client().delete(f"/v1/probes/next-{number}", headers=admin(server))


def test_a_layer_that_is_not_exposed_names_the_flag(server: Any, make_shifted: MakeShifted) -> None:
    reply = put(server, "deep", make_shifted(0.0, layer=3))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "terms"
    assert "--probe-layers 2,3,4,final" in reply.json()["error"]["message"]
    assert put(server, "end-2", make_shifted(0.0, layer="final")).status_code == 201
    server.client().delete("/v1/probes/end-2", headers=admin(server))


@pytest.mark.parametrize("num_uploads", [100, pytest.param(1000, marks=pytest.mark.heavy)])
def test_damaged_uploads(server: Any, make_shifted: MakeShifted, num_uploads: int) -> None:
    """Bytes changed, cut out and added at random: accepted or refused, never a server error."""
    rng = random.Random(0)
    good = make_shifted(1.0)
    before = server.client().get("/v1/probes").json()
    counts = {200: 0, 201: 0, 400: 0}
    with server.client() as client:
        for _ in range(num_uploads):
            data = bytearray(good)
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(600 if rng.random() < 0.9 else len(data))
                choice = rng.random()
                if choice < 0.6:
                    data[place] = rng.randrange(256)
                elif choice < 0.8:
                    del data[place : place + rng.randint(1, 50)]
                else:
                    data[place:place] = rng.randbytes(rng.randint(1, 50))
            reply = client.put("/v1/probes/damaged", content=bytes(data), headers=admin(server))
            assert reply.status_code in counts, reply.text
            counts[reply.status_code] += 1
            if reply.status_code == 400:
                assert reply.json()["error"]["param"]
        client.delete("/v1/probes/damaged", headers=admin(server))
    assert counts[400] > num_uploads / 2
    assert server.client().get("/v1/probes").json() == before


def test_changes_want_the_admin_key_which_is_an_api_key_too(
    server: Any, make_shifted: MakeShifted
) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        reply = server.client().put("/v1/probes/x", content=make_shifted(0.0), headers=headers)
        assert reply.status_code == 401
    assert server.client().delete("/v1/probes/end").status_code == 401
    assert server.client().get("/v1/models", headers=admin(server)).status_code == 200


def test_the_access_log_tells_of_a_request_by_its_id(server: Any) -> None:
    asked = body("end", max_tokens=4)
    reply = server.client().post(CHAT, json=asked, headers={"x-request-id": "look-for-me"})
    assert reply.headers["x-request-id"] == "look-for-me"
    assert reply.json()["id"] == "chatcmpl-look-for-me"
    entries: list[Json] = []
    deadline = time.monotonic() + 10  # the line is written once the reply has been sent
    while not entries and time.monotonic() < deadline:
        lines = server.log.read_text().splitlines()
        entries = [json.loads(each) for each in lines if "look-for-me" in each and each[0] == "{"]
        time.sleep(0.05)
    of_body = server.client().post(CHAT, json={**asked, "request_id": "of-the-body"})
    assert of_body.headers["x-request-id"] == "of-the-body"
    assert of_body.json()["id"] == "chatcmpl-of-the-body"
    (entry,) = entries
    assert (entry["status"], entry["path"], entry["probe"], entry["k"]) == (200, CHAT, "end", 4)


def test_the_document_shows_our_fields(server: Any) -> None:
    made = server.client().get("/openapi.json").json()
    schemas = made["components"]["schemas"]
    fields = {"probe", "k", "beta", "target_kl", "schedule"}
    fields |= {"vote", "return_candidates", "return_token_scores"}
    assert set(schemas["QProbeRequest"]["properties"]) == fields
    for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/messages"):
        operation = made["paths"][path]["post"]
        content = operation["requestBody"]["content"]["application/json"]["schema"]
        assert "QProbeRequest" in json.dumps(content)
        assert "QProbeReply" in json.dumps(operation["responses"]["200"]["content"])
    assert set(made["paths"]["/v1/probes/{name}"]) == {"get", "put", "delete"}
