"""What a server does when its clients leave, and when its engine dies."""

import contextlib
import random
import threading
import time
from typing import Any

import httpx

BASE = "smollm2-135m"
MODEL = f"{BASE}:end"
CHAT = "/v1/chat/completions"


def running_requests(server: Any) -> float:
    """Return vLLM's own count of requests that run or wait."""
    total = 0.0
    for line in server.client().get("/metrics").text.splitlines():
        if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{")):
            total += float(line.rpartition(" ")[2])
    return total


def body(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me a long story about a fox."}]
    return {"model": MODEL, "messages": messages, **fields}


def test_fifty_clients_that_leave(server: Any) -> None:
    rng = random.Random(2)
    waits = [rng.random() * 2 for _ in range(50)]

    def leave(wait_s: float, *, stream: bool) -> None:
        asked = body(max_tokens=1000, ignore_eos=True, stream=stream)
        with (
            contextlib.suppress(httpx.TransportError),
            server.client() as client,
            client.stream("POST", CHAT, json=asked, timeout=0.1 + wait_s) as reply,
        ):
            for _ in reply.iter_raw():
                if time.monotonic() - begun_s > wait_s:
                    return  # in the middle of the reply

    begun_s = time.monotonic()
    threads = [
        threading.Thread(target=leave, args=(wait,), kwargs={"stream": bool(index % 2)})
        for index, wait in enumerate(waits)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 20
    while running_requests(server) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert running_requests(server) == 0
    reply = server.client().post(CHAT, json=body(max_tokens=4))
    assert reply.status_code == 200


def test_a_silent_stream_is_kept_alive(server: Any) -> None:
    """The server's flag asks for a comment a second; the longest of 32 samples takes longer.

    A third of the completions end within 50 tokens, and /v1/messages knows no ``ignore_eos``.
    """
    for path in (CHAT, "/v1/messages"):
        asked = body(max_tokens=400, ignore_eos=True, stream=True, q_probe={"k": 32})
        reply = server.client().post(path, json=asked)
        assert ": keep-alive" in reply.text
        assert reply.status_code == 200


def test_no_texts_in_the_log(server: Any) -> None:
    secret = "an-otter-named-Zebulon"
    messages = [{"role": "user", "content": f"Repeat: {secret}"}]
    server.client().post(CHAT, json={"model": MODEL, "messages": messages, "max_tokens": 8})
    server.client().post(CHAT, json={"model": f"{BASE}:x", "messages": messages})
    log = server.log.read_text()
    assert CHAT in log
    assert secret not in log
    assert server.key not in log
    assert server.admin_key not in log
