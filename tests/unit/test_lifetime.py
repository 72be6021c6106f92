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
from qprobe_server.edge.lifetime import ending_at_once
CHILD = '''
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("child: interrupted", flush=True))
print("child: ready", flush=True)
time.sleep(30)
print("child: alive", flush=True)
'''
with ending_at_once():
    resource_tracker.ensure_running()  # as multiprocessing does before it starts a process
    subprocess.Popen([sys.executable, "-c", CHILD])
    while True:
        time.sleep(60)
"""
# As psutil finds it in some sandboxes.
HIDDEN = """
import psutil
def deny(self):
    raise psutil.AccessDenied(self.pid)
psutil.Process.cmdline = deny
"""
# Starts, and is then as any program.
STARTED = """
import time
from qprobe_server.edge.lifetime import ending_at_once
with ending_at_once():
    pass
print("child: ready", flush=True)
time.sleep(30)
"""

# Forks while it starts, and ends its child there or later; the arguments are when and how. Says how
# the child ended, once a signal to itself would have been heard.
FORKING = """
import os, signal, sys, time
from qprobe_server.edge.lifetime import ending_at_once
_, when, handler = sys.argv
is_begun, says = os.pipe()

def end(child):
    os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    time.sleep(0.5)
    print("parent: child", code, flush=True)

with ending_at_once():
    child = os.fork()
    if not child:
        if handler == "own":
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
        os.write(says, b".")
        time.sleep(30)
        os._exit(0)
    os.read(is_begun, 1)
    if when == "meanwhile":
        end(child)
if when == "afterwards":
    end(child)
"""

# An app without an engine, served as vLLM serves its own; the time to end is the argument. Says how
# long an engine would have: what is left, at least 2 s, and 5 s more.
SERVING = """
import asyncio, socket, sys
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.middleware import Middleware
from qprobe_server.edge.stopping import OpenRequests, StoppingMiddleware
from qprobe_server.edge.lifetime import serve_until_signalled
from qprobe_server.vllm_backend.lifetime import stop_engine

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
    left_s = await serve_until_signalled(
        app, serve(app, sock), requests, let_end_s=float(sys.argv[1]),
        on_ready=lambda: print("child: ready", sock.getsockname()[1], flush=True),
    )
    await stop_engine(lambda s: print(f"engine: {s:.1f}", flush=True), let_end_s=left_s)
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
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun_s < 10
    assert process.returncode == 128 + number
    assert said == "\nqprobe: stopped\n"


def test_children_that_hide_their_command_are_ended_too() -> None:
    process = start(HIDDEN + STARTING)
    read_ready(process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "\nqprobe: stopped\n")


def test_afterwards_signals_are_as_before() -> None:
    process = start(STARTED)
    read_ready(process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in said


@pytest.mark.parametrize("when", ["meanwhile", "afterwards"])
@pytest.mark.parametrize(("handler", "code"), [("own", 3), ("none", -signal.SIGTERM)])
def test_a_signal_to_a_forked_child_is_its_own(when: str, handler: str, code: int) -> None:
    process = start(FORKING, when, handler)
    said, _ = process.communicate(timeout=60)
    assert said == f"parent: child {code}\n"
    assert process.returncode == 0


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
    assert said == "\nqprobe: stopping; once more to stop at once\nengine: 7.0\n"


@pytest.mark.parametrize(("is_open", "least", "most"), [(True, 7, 7), (False, 20, 25)])
def test_the_requests_and_the_engine_share_the_time(
    *, is_open: bool, least: float, most: float
) -> None:
    """What an open request took is not given to the engine again, but for a minimum of 2 s."""
    process = start(SERVING, "4" if is_open else "20")
    (port,) = read_ready(process)
    if is_open:
        with httpx.stream("POST", f"http://127.0.0.1:{port}/stream", timeout=30) as reply:
            parts = reply.iter_text()
            next(parts)
            process.send_signal(signal.SIGTERM)
            list(parts)
    else:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert least <= float(said.rpartition("engine: ")[2]) <= most


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
