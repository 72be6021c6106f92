"""Runs code of unknown origin against tests, in processes that can do no harm. Linux only.

What is run stands in ``sandboxed``: ``confinement`` says what the processes may do, ``extraction``
what of an answer is its code, ``main`` and ``exchange`` how the verdict is kept from the code that
is judged. In short: the answer's code and the tests run in different processes, and the answer's
has no way to the verdict but to return the right values.

What the answer can still do: return a value that it did not compute, or find by other means (the
arguments of a call are known to it); change its arguments in place, as in any Python; do as it
likes with a test that executes what it returned (``eval(f(2))``), asks an object of the answer's
own (``f(2).startswith("a")``), or compares with a class of ``setup`` that equals many things, by an
attribute of its instances: such tests must not be written.
What an honest answer cannot do: start threads or processes, read input or files, write files, or
import anything but the standard library; ``setup`` and the tests may import numpy, too.
What a test cannot do with an object of the answer's own: compare it with a plain value (it is
compared with another of the answer's), take a plain value for what comes of counting with one
(``f(2) - 1``), inherit from its class, ask ``type`` of it, look into it or into a function
(``inspect``, ``__doc__``, ``dataclasses``), replace something in its module (``mock.patch``), or
give it an object of a class that ``setup`` does not define. So answers to such tests score 0, for
the reason ``unsupported by the sandbox``. Values cross by copy:
``f(a) is a`` is known where ``a`` is an argument, but not whether two parts of a value are one
object, and what is inside a tuple is not changed in place.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

import numpy

from qprobe.errors import SandboxError

__all__ = [
    "FAILED",
    "NO_CODE",
    "PASSED",
    "SYNTAX",
    "TIMEOUT",
    "UNSUPPORTED",
    "Limits",
    "Outcome",
    "Program",
    "Result",
    "run_program",
    "watch_program",
]

# -s -S -P: no site-packages and no current folder. Not -I: PYTHONHASHSEED must be heard, or answers
# that depend on the order of a set would be rewarded by chance.
_FLAGS = ("-s", "-S", "-P")
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandboxed.main import main; "
    "main(wall_s=float(sys.argv[2]), cpu_s=int(sys.argv[3]), memory_bytes=int(sys.argv[4]), "
    "numpy_folder=sys.argv[5])"
)
# The verdicts.
PASSED, FAILED, TIMEOUT = "passed", "failed", "timeout"
NO_CODE, SYNTAX, UNSUPPORTED = "no code", "syntax", "unsupported by the sandbox"
_READY, _REFUSED = b"R", b"E"
# What ``sandboxed.main`` writes after R; that time was up it writes last.
_VERDICTS = {b"P": PASSED, b"T": TIMEOUT, b"N": NO_CODE, b"S": SYNTAX, b"U": UNSUPPORTED}
# A call's result takes up to 2.5 kB: 200 characters, each escaped as 12. More is not carried.
_MAX_VERDICT_BYTES = 1 << 20
# Those of the libraries below numpy that would start threads, which must not be.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
_NUMPY = str(Path(numpy.__file__).parents[1])
# The started process ends the others in time by itself; if it does not, it is ended.
_GRACE_S = 5.0
# How often it is looked whether it is to be ended sooner.
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What each of the two processes may use.

    Attributes:
        cpu_s: CPU time, >= 1.
        wall_s: Time from the start until they are killed, > 0.
        memory_bytes: Address space, start-up included: 64 MiB is about the least.
    """

    cpu_s: int = 6  # MBPP's own solution of task 123 takes 4
    wall_s: float = 20.0
    memory_bytes: int = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is to be run.

    Attributes:
        answer: Of unknown origin; its code is found by ``sandboxed.extraction``.
        tests: Python statements of the tests' author.
        calls: Expressions of the tests' author, whose values are told, and statements that they
            need; run before the tests.
        setup: Python source of the tests' author, run before the code and before the tests.
        names: What the tests expect of the answer.
        may_replace: Those of them that may bear the name of a builtin or of something in ``setup``.
        modules: Of the standard library, which the tests use without an import.
        head: The beginning of a function that the answer may go on from, or "".
        needs_numpy: Whether ``setup`` or the tests import numpy; the answer may not.
        asks_type: Whether the tests ask for types. That is right of plain values only.
        looks_inside: Whether the tests look for what does not cross, such as a signature, replace
            what the answer uses, or use files.
    """

    answer: str
    tests: Sequence[str]
    calls: Sequence[str] = ()
    setup: str = ""
    names: Sequence[str] = ()
    may_replace: Sequence[str] = ()
    modules: Sequence[str] = ()
    head: str = ""
    needs_numpy: bool = False
    asks_type: bool = False
    looks_inside: bool = False


@dataclass(frozen=True)
class Result:
    """What a call gave.

    Attributes:
        key: Equal for values that are equal, and for errors of one type.
        text: For a person: the value, or the error's type; cut short.
        was_raised: Whether it is an error that the call ended with.
    """

    key: str
    text: str
    was_raised: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        verdict: PASSED if all tests pass, else why not.
        results: Of its calls, in order; None if they did not come to an end, or gave what cannot be
            compared: an object of the answer's own, or an iterator.
    """

    verdict: str
    results: tuple[Result, ...] | None


def run_program(program: Program, limits: Limits) -> str:
    """Return the verdict: PASSED if all tests pass, else why not; raises as ``watch_program``."""
    return watch_program(program, limits).verdict


def watch_program(program: Program, limits: Limits, *, stop: Event | None = None) -> Outcome:
    """Run a program and return what came of it.

    Blocks; may be called from several threads. Whatever the code does (ends its process, is
    killed, says anything) is a failure of the tests.

    Args:
        program: It.
        limits: Of each of its two processes.
        stop: When it is set the program is ended, within a tenth of a second.

    Raises:
        SandboxError: The kernel lacks what the sandbox needs, or it could not be started.
    """
    if sys.platform != "linux":
        raise SandboxError(f"code is run on Linux only, this is {sys.platform!r}")
    # A file in memory, so that nobody waits for a reader of the tests.
    descriptor = os.memfd_create("program")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(json.dumps(asdict(program)).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        said = _run(descriptor, limits, _NUMPY if program.needs_numpy else "", stop)
    except OSError as error:
        raise SandboxError(f"the sandbox's process could not be started: {error}") from error
    finally:
        os.close(descriptor)
    if said is None:
        return Outcome(TIMEOUT, None)
    if said.startswith(_REFUSED):
        reason = said.removeprefix(_REFUSED).decode(errors="replace")
        raise SandboxError(f"this machine cannot run code safely: {reason}")
    if not said.startswith(_READY):
        raise SandboxError(f"the sandbox was not ready within {limits.wall_s} s, or died before")
    told, is_told, verdicts = said.removeprefix(_READY).rpartition(b"\n")
    if len(said) >= _MAX_VERDICT_BYTES or verdicts.startswith(b"["):  # cut: they end in no verdict
        return Outcome(UNSUPPORTED, None)
    first, last = _VERDICTS.get(verdicts[:1], FAILED), _VERDICTS.get(verdicts[-1:], FAILED)
    results = tuple(Result(*each) for each in json.loads(told)) if is_told else None
    return Outcome(PASSED if first == PASSED else last, results)


def _run(program: int, limits: Limits, numpy_folder: str, stop: Event | None) -> bytes | None:
    """Return what the started process said; None if it was to stop."""
    process = subprocess.Popen(
        [
            *(sys.executable, *_FLAGS, "-c", _START),
            str(Path(__file__).parent),
            *(str(limits.wall_s), str(limits.cpu_s), str(limits.memory_bytes), numpy_folder),
        ],
        stdin=program,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + limits.wall_s + _GRACE_S
    try:
        with process.stdout:
            verdict = _read_until(process.stdout.fileno(), deadline, stop)
        if verdict is None:
            return None
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:  # then it is killed
        return verdict
    finally:
        if process.returncode is None:
            # Not yet waited for, so its number cannot be anyone else's group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return verdict


def _read_until(descriptor: int, deadline: float, stop: Event | None) -> bytes | None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    while len(data) < _MAX_VERDICT_BYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        if stop is not None and stop.is_set():
            return None
        if not poll.poll(min(left_s, _LOOK_S) * 1000):
            continue
        more = os.read(descriptor, _MAX_VERDICT_BYTES)
        if not more:
            break
        data += more
    return data
