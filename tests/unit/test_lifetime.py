"""What signals do to a server that starts, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

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


def start(program: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "child: ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_at_once(number: signal.Signals) -> None:
    """As a terminal sends it, to the whole group: the child neither hears of it nor stays."""
    process = start(STARTING)
    begun_s = time.monotonic()
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=10)
    assert time.monotonic() - begun_s < 2
    assert process.returncode == 128 + number
    assert said == "\nqprobe: stopped\n"


def test_afterwards_signals_are_as_before() -> None:
    process = start(STARTED)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in said
