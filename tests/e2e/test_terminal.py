"""What a user sees on the terminal from start to Ctrl-C, which goes to every process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

START_TIMEOUT_S = 300


class Terminal:
    """A server in a process group of its own, and what it has printed."""

    def __init__(self, log: Path, *flags: str, url: str) -> None:
        self.url = url
        self._log = log
        command = [str(Path(sys.executable).with_name("qprobe")), "serve", *flags]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, process_group=0
            )

    @property
    def lines(self) -> list[str]:
        """What stands on the terminal."""
        return self._log.read_text().splitlines()

    def wait_for(self, text: str) -> None:
        """Wait until a line holds a text; fails if the process ends first."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(text in line for line in self.lines):
            assert self.process.poll() is None, "\n".join(self.lines[-50:])
            assert time.monotonic() < deadline, "\n".join(self.lines[-50:])
            time.sleep(0.1)

    def wait_for_engine(self) -> None:
        """Wait until a process besides the server's own has PyTorch: the engine's, which starts."""
        deadline = time.monotonic() + START_TIMEOUT_S
        server = psutil.Process(self.process.pid)
        while not any(_has_torch(each) for each in server.children(recursive=True)):
            assert self.process.poll() is None, "\n".join(self.lines[-50:])
            assert time.monotonic() < deadline, "\n".join(self.lines[-50:])
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout_s: float) -> int:
        """Wait for the end of the process, and check that no other of its group is left."""
        returncode = self.process.wait(timeout=timeout_s)
        time.sleep(0.5)  # helpers of multiprocessing end once their pipe is closed
        left = [each for each in psutil.process_iter() if _is_of(each, self.process.pid)]
        assert not left
        return returncode


def _is_of(process: psutil.Process, group: int) -> bool:
    """Whether a process of the group is alive; one whose parent does not look may stay a zombie."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _has_torch(process: psutil.Process) -> bool:
    try:
        return any("libtorch" in each.path for each in process.memory_maps())
    except psutil.Error:  # it has ended meanwhile
        return False


@contextmanager
def on_terminal(log: Path, *flags: str, port: int) -> Iterator[Terminal]:
    where = ("--host", "127.0.0.1", "--port", str(port))
    terminal = Terminal(log, *flags, *where, url=f"http://127.0.0.1:{port}")
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()


class Asking(threading.Thread):
    """A client that waits for an answer which takes longer than the server lives."""

    def __init__(self, url: str, *, stream: bool, model: str) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.status = 0
        self.text = ""
        self._url = f"{url}/v1/completions"
        self._body = {
            "model": model,
            "prompt": "Once upon a time",
            "max_tokens": 8000,
            "ignore_eos": True,
            "stream": stream,
        }

    def run(self) -> None:
        with (
            suppress(httpx.RemoteProtocolError),  # the server ended at once
            httpx.stream("POST", self._url, json=self._body, timeout=120) as reply,
        ):
            self.status = reply.status_code
            for part in reply.iter_text():
                self.text += part
                self.begun.set()


def wait_until_running(url: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        for line in httpx.get(f"{url}/metrics").text.splitlines():
            if line.startswith("vllm:num_requests_running{") and float(line.split()[-1]) >= count:
                return
        assert time.monotonic() < deadline, "the requests never ran"
        time.sleep(0.05)


def check_error(fields: dict[str, Any]) -> None:
    assert fields["error"]["code"] == 503
    assert "stopping" in fields["error"]["message"]


def check_is_quiet(lines: list[str], most: int) -> None:
    shown = "\n".join(lines)
    for noise in ("Traceback", "INFO", "WARNING", "Error", "leaked", "Loading", "core dumped"):
        assert noise not in shown, shown
    assert len(lines) <= most, shown


def test_from_start_to_ctrl_c(
    small_model: Path, make_probe: Callable[..., Path], tmp_path: Path, unused_tcp_port: int
) -> None:
    probe = f"mine={make_probe('mine')}"
    flags = (str(small_model), "--served-model-name", "small", "--probe", probe)
    with on_terminal(tmp_path / "log", *flags, port=unused_tcp_port) as terminal:
        terminal.wait_for("curl ")
        lines = terminal.lines
        check_is_quiet(lines, most=14)
        assert any(f"{terminal.url}/v1" in line for line in lines)
        assert any("small:mine" in line for line in lines)
        (curl,) = (line for line in lines if line.startswith("curl "))
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=120)
        assert json.loads(answer.stdout)["q_probe"]["probe"] == "mine"

        asking = [
            Asking(terminal.url, stream=stream, model=name)
            for stream in (False, True)
            for name in ("small", "small:mine")
        ]
        for each in asking:
            each.start()
        wait_until_running(terminal.url, 10)  # a probe has 4 candidates
        for each in asking[2:]:
            assert each.begun.wait(60)
        begun_s = time.monotonic()
        terminal.interrupt()
        assert terminal.end(timeout_s=15) == 0
        print(f"ended after {time.monotonic() - begun_s:.1f} s")  # noqa: T201
        for each in asking:
            each.join(5)
        for each in asking[:2]:
            assert each.status == 503
            check_error(json.loads(each.text))
        for each in asking[2:]:
            assert each.status == 200
            data = each.text.rstrip().rpartition("data: ")[2]
            check_error(json.loads(data))
        ended = [line for line in terminal.lines[len(lines) :] if '"POST /v1/' not in line]
        check_is_quiet([line for line in ended if '"GET /metrics' not in line], most=3)


def test_ctrl_c_before_it_is_ready(small_model: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    with on_terminal(tmp_path / "log", str(small_model), port=unused_tcp_port) as terminal:
        terminal.wait_for("loading")
        terminal.wait_for_engine()
        terminal.interrupt()
        assert terminal.end(timeout_s=5) == 130
        time.sleep(1)  # nothing comes when the prompt is back
        check_is_quiet(terminal.lines, most=5)


def test_a_second_ctrl_c_waits_for_nothing(
    small_model: Path, tmp_path: Path, unused_tcp_port: int
) -> None:
    flags = (str(small_model), "--served-model-name", "small", "--shutdown-timeout", "120")
    with on_terminal(tmp_path / "log", *flags, port=unused_tcp_port) as terminal:
        terminal.wait_for("curl ")
        asking = Asking(terminal.url, stream=True, model="small")
        asking.start()
        assert asking.begun.wait(60)
        terminal.interrupt()
        terminal.wait_for("once more")
        late = Asking(terminal.url, stream=False, model="small")
        late.run()
        assert late.status == 503
        check_error(json.loads(late.text))
        assert terminal.process.poll() is None
        before = len(terminal.lines)
        terminal.interrupt()
        assert terminal.end(timeout_s=5) == 130
        time.sleep(1)
        check_is_quiet(terminal.lines[before:], most=3)
