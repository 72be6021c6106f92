"""The last test of the run: it kills the shared server's engine."""

import contextlib
import threading
import time
from typing import Any

import httpx
import psutil


def test_a_dead_engine_ends_every_request_and_turns_health_red(server: Any) -> None:
    """Plain and streaming requests, reranked and bare, that were open when the engine died."""
    ended: list[tuple[bool, str]] = []

    def ask(model: str, *, stream: bool) -> None:
        messages = [{"role": "user", "content": "Tell me a long story."}]
        body = {"model": model, "messages": messages, "max_tokens": 4000, "stream": stream}
        body["ignore_eos"] = True
        try:
            reply = server.client().post("/v1/chat/completions", json=body, timeout=60)
            ended.append((stream, f"{reply.status_code} {reply.text}"))
        except httpx.TransportError as error:
            ended.append((stream, f"lost {error}"))

    threads = [
        threading.Thread(target=ask, args=(model,), kwargs={"stream": stream})
        for model in ("smollm2-135m", "smollm2-135m:end", "smollm2-135m:early")
        for stream in (False, True)
    ]
    for thread in threads:
        thread.start()
    server.wait_until_running()
    assert not ended
    for child in psutil.Process(server.process.pid).children(recursive=True):
        if child.is_running():
            child.kill()
    killed_s = time.monotonic()
    for thread in threads:
        thread.join(timeout=30)
    assert time.monotonic() - killed_s < 30
    assert len(ended) == len(threads)
    for stream, text in ended:
        assert "error" in text or text.startswith("lost"), text
        assert stream or text.startswith(("500", "503", "lost")), text
    # The server may have ended itself already, which is vLLM's way after a dead engine.
    with contextlib.suppress(httpx.TransportError):
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 503
