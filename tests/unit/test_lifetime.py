"""What signals do to a server, in processes of their own, without an engine."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

# Waits, beside a child that says so when it gets Ctrl-C, or when it outlives its parent.
STARTING = """
import os, subprocess, sys, time
from multiprocessing import resource_tracker
from qprobe_server.vllm_backend.lifetime import ending_at_once
CHILD = '''
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("child: interrupted", flush=True))
print("child: ready", flush=True)
time.sleep(3)
print("child: alive", flush=True)
'''
with ending_at_once():
    resource_tracker.ensure_running()  # as multiprocessing does before it starts a process
    subprocess.Popen([sys.executable, "-c", CHILD])
    while True:
        time.sleep(60)
"""
# Starts, and is then as any program.
STARTED = """
import time
from qprobe_server.vllm_backend.lifetime import ending_at_once
with ending_at_once():
    pass
print("child: ready", flush=True)
time.sleep(30)
"""

# An app without an engine, served as vLLM serves its own; the time to end is the argument.
SERVING = """
import asyncio, socket, sys
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.middleware import Middleware
from qprobe_server.edge.stopping import OpenRequests, StoppingMiddleware
from qprobe_server.vllm_backend.lifetime import serve_until_signalled

class Server(uvicorn.Server):
    def capture_signals(self):
        import contextlib
        return contextlib.nullcontext()

async def events():
    yield "data: first\\n\\n"
    await asyncio.sleep(60)

async def stream():
    return StreamingResponse(events(), media_type="text/event-stream")

async def serve(app, sock):
    app.state.server = Server(uvicorn.Config(app, log_level="error"))
    await app.state.server.serve(sockets=[sock])
    return asyncio.sleep(0)

async def main():
    requests = OpenRequests()
    app = FastAPI(middleware=[Middleware(StoppingMiddleware, requests=requests)])
    app.post("/stream")(stream)
    sock = socket.create_server(("127.0.0.1", 0))
    await serve_until_signalled(
        app, serve(app, sock), requests, let_end_s=float(sys.argv[1]),
        on_ready=lambda: print("child: ready", sock.getsockname()[1], flush=True),
    )
asyncio.run(main())
"""


def start(program: str, *args: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    return process


def read_ready(process: "subprocess.Popen[str]") -> list[str]:
    """Wait until a program says that it is ready; return what it says besides."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("child: ready"), line
    return line.split()[2:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_at_once(number: signal.Signals) -> None:
    """As a terminal sends it, to the whole group: the child neither hears of it nor stays."""
    process = start(STARTING)
    read_ready(process)
    begun_s = time.monotonic()
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=10)
    assert time.monotonic() - begun_s < 2
    assert process.returncode == 128 + number
    assert said == "\nqprobe: stopped\n"


def test_afterwards_signals_are_as_before() -> None:
    process = start(STARTED)
    read_ready(process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stream_with_an_error_and_then_the_server(number: signal.Signals) -> None:
    process = start(SERVING, "0")
    (port,) = read_ready(process)
    with httpx.stream("POST", f"http://127.0.0.1:{port}/stream", timeout=10) as reply:
        parts = reply.iter_text()
        assert next(parts) == "data: first\n\n"
        process.send_signal(number)
        assert "".join(parts).startswith("event: error\ndata: {")
    said, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert said == "\nqprobe: stopping; once more to stop at once\n"


def test_a_second_signal_waits_for_nothing() -> None:
    process = start(SERVING, "60")
    (port,) = read_ready(process)
    url = f"http://127.0.0.1:{port}/stream"
    with httpx.stream("POST", url, timeout=10) as reply:
        parts = reply.iter_text()
        assert next(parts) == "data: first\n\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        assert "once more" in process.stdout.readline()
        assert httpx.post(url).status_code == 503
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):
            next(parts)
    assert process.wait(timeout=10) == 130
