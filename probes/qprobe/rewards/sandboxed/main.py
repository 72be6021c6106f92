"""Three processes: one holds the answer's code, one judges it by the tests, one waits for them.

The judge has the tests and the pipe to whoever started it. The answer's process was forked before
the tests were read, holds two pipes to the judge and nothing else, and runs ``setup`` and the
answer. The judge runs ``setup`` and the tests; what the answer defines is a ``RemoteObject`` there.
The answer's code may do to its own process what it likes: the verdict is not made in it. Both are
confined; the third runs nothing but the lines below, and leaves no process behind.
"""

import builtins
import importlib
import io
import json
import os
import signal
import sys
import time
import types
from contextlib import suppress
from typing import Any, NoReturn

from .absent import Absent, take_imports_out
from .calls import SETUP_MODULE, evaluate
from .confinement import Refusal, confine
from .exchange import ROOT, Peer
from .extraction import extract_code
from .failures import is_of_sandbox
from .library import import_by_descriptor
from .loops import allow_loops
from .remote import RemoteObject, mark_class
from .statements import stored_attributes

__all__ = ["main"]

_READY, _PASSED, _FAILED, _REFUSED, _TIMEOUT = b"R", b"P", b"F", b"E", b"T"
_NO_CODE, _SYNTAX, _UNSUPPORTED = b"N", b"S", b"U"
# Exit status of the judge, so that it is looked at what the answer ended of, and for how long.
_ANSWER_IS_GONE = 1
_MAX_LOOKS, _LOOK_S = 100, 0.01
# How many characters the answer may print between two calls.
_MAX_OUTPUT = 1 << 20
_Limits = dict[str, int]


def main(*, wall_s: float, cpu_s: int, memory_bytes: int, numpy_folder: str) -> NoReturn:
    """Judge the program on standard input; write the verdict to standard output and exit.

    The input is a JSON object: a ``Program`` of ``qprobe.rewards.sandbox``. The output is R once
    both processes are confined, then, of calls that came to an end, a line of JSON: the fields of
    a ``Result`` for each. Then P if all tests passed, else F, or N for no code, S for code that is
    not Python, U for what the sandbox cannot carry; then T if time was up. Or it is E and a reason.
    """
    sys.path.pop(0)  # of this package
    import_by_descriptor()
    to_answer, to_judge = os.pipe(), os.pipe()
    program, verdict = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    limits = {"cpu_s": cpu_s, "memory_bytes": memory_bytes}
    answer = os.fork()
    if answer == 0:
        _keep(to_answer[0], to_judge[1])
        _hold_answer(to_answer[0], to_judge[1], limits)
    judge = os.fork()
    if judge == 0:
        _keep(to_judge[0], to_answer[1], program, verdict)
        if numpy_folder:
            _import_numpy(numpy_folder)
        _judge(to_judge[0], to_answer[1], program, verdict, limits)
    _keep(verdict)
    status = _wait(judge, wall_s)
    if _was_killed(status) or (status and _has_been_killed(answer)):
        os.write(verdict, _TIMEOUT)
    os.kill(answer, signal.SIGKILL)
    os.waitpid(answer, 0)
    os._exit(0)


def _wait(process: int, wall_s: float) -> int:
    """Wait for a process, and kill it when its time is up; return how it ended."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, wall_s, 1.0)
    _, status = os.waitpid(process, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return status


def _was_killed(status: int) -> bool:
    """Return whether the kernel ended a process, as it does when its CPU time is up."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)


def _has_been_killed(process: int) -> bool:
    """Return the same of a process that seems to have ended; it is left to be waited for."""
    for _ in range(_MAX_LOOKS):  # its pipes are closed a moment before it has ended
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            by = (signal.SIGKILL, signal.SIGXCPU)
            return ended.si_code == os.CLD_KILLED and ended.si_status in by
        time.sleep(_LOOK_S)
    return False


def _import_numpy(folder: str) -> None:
    """Import numpy, as tests ask for it, while its files can still be read."""
    sys.path.append(folder)
    for name in ("numpy", "numpy.testing", "numpy.random", "numpy.linalg"):
        importlib.import_module(name)
    sys.path.remove(folder)


def _keep(*descriptors: int) -> None:
    """Close all but the standard descriptors and these."""
    below = 3
    for each in sorted(descriptors):
        os.closerange(below, each)
        below = each + 1
    os.closerange(below, os.sysconf("SC_OPEN_MAX"))


def _make_namespace() -> dict[str, Any]:
    # dataclasses and typing look a class's module up by its name.
    module = types.ModuleType(SETUP_MODULE)
    sys.modules[SETUP_MODULE] = module
    return vars(module)


def _run_setup(source: str, peer: Peer, namespace: dict[str, Any]) -> None:
    """Run ``setup``, and note which classes it defines, and what these set on their instances."""
    exec(compile(source, "<setup>", "exec"), namespace)
    classes = {
        name: value
        for name, value in namespace.items()
        if isinstance(value, type) and value.__module__ == SETUP_MODULE and value.__name__ == name
    }
    peer.setup_classes = frozenset(classes)
    fields = [getattr(each, "__dataclass_fields__", {}) for each in classes.values()]
    peer.instance_attributes = frozenset(stored_attributes(source)).union(*fields)


class _Output(io.StringIO):
    """Keeps what the answer prints until the judge is told; what is too much is lost."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, _MAX_OUTPUT - self.tell())])
        return len(text)

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


def _hold_answer(reader: int, writer: int, limits: _Limits) -> NoReturn:
    def leave() -> NoReturn:
        os._exit(0)

    namespace = _make_namespace()
    peer = Peer(reader, writer, namespace=namespace, is_judge=False, at_end=leave)
    try:
        confine(**limits)
    except (Refusal, OSError, ValueError) as error:
        peer.send(["refused", str(error)])
        leave()
    peer.send(["ready"])
    setup, absent, answer, names, head = peer.receive()
    namespace.update({name: Absent() for name in absent})
    sys.stdout = output = _Output()
    peer.take_output = output.take
    peer.tested_names = frozenset(names)
    try:
        try:
            _run_setup(setup, peer, namespace)
        except Exception:  # whatever the row's own code raises here, though not with the judge
            peer.send(["no setup"])
            raise
        source = extract_code(answer, names=names, head=head)
        code = None
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            code = compile(source, "<answer>", "exec", dont_inherit=True)
        # Said before any of it is run, so that it is not the answer who says it.
        peer.send(["no code" if not source.strip() else "syntax" if code is None else "code"])
        if code is not None:
            _run_answer(peer, source, code, namespace)
        peer.serve()
    finally:
        os._exit(0)  # no atexit, no flush: nothing of the answer's runs on


def _run_answer(peer: Peer, source: str, code: types.CodeType, namespace: dict[str, Any]) -> None:
    if "asyncio" in source:
        allow_loops()
    try:
        exec(code, namespace)
    except Exception as error:  # the answer may raise anything
        if is_of_sandbox(error):  # the judge will ask, and hear of it
            peer.send(["error", *peer.failures.encode(error), ""])
        raise


def _judge(reader: int, writer: int, program: int, verdict: int, limits: _Limits) -> NoReturn:
    def tell(outcome: bytes, status: int = 0) -> NoReturn:
        os.write(verdict, outcome)
        os._exit(status)

    def fail(status: int = 0) -> NoReturn:
        tell(_UNSUPPORTED if peer.is_unsupported else _FAILED, status)

    def lose() -> NoReturn:
        fail(_ANSWER_IS_GONE)

    namespace = _make_namespace()
    peer = Peer(reader, writer, namespace=namespace, is_judge=True, at_end=lose)
    try:
        confine(**limits)
    except (Refusal, OSError, ValueError) as error:
        tell(_REFUSED + str(error).encode())
    kind, *reason = peer.receive()
    if kind != "ready":
        tell(_REFUSED + str(reason[0]).encode())
    os.write(verdict, _READY)
    try:
        with open(program, encoding="utf-8") as file:
            asked = json.load(file)
        peer.send(
            [*take_imports_out(asked["setup"]), asked["answer"], asked["names"], asked["head"]]
        )
        _run_setup(asked["setup"], peer, namespace)
        found, *_ = peer.receive()
        if found != "code":
            tell({"no code": _NO_CODE, "syntax": _SYNTAX}.get(found, _UNSUPPORTED))
        namespace.update({name: importlib.import_module(name) for name in asked["modules"]})
        _take_names(peer, namespace, asked["names"], asked["may_replace"])
        if any("asyncio" in each for each in (asked["setup"], *asked["tests"])):
            allow_loops()
        if asked["calls"]:
            _tell_results(peer, namespace, asked, verdict)
        _run_tests(peer, namespace, asked)
    except BaseException as error:  # noqa: BLE001 SystemExit is no pass either
        peer.is_unsupported |= is_of_sandbox(error)
        fail()
    tell(_PASSED)


def _tell_results(
    peer: Peer, namespace: dict[str, Any], asked: dict[str, Any], verdict: int
) -> None:
    results = evaluate(asked["calls"], namespace, names=asked["names"])
    if peer.is_unsupported:
        raise TypeError("not supported by the sandbox")
    os.write(verdict, json.dumps(results).encode() + b"\n")


def _run_tests(peer: Peer, namespace: dict[str, Any], asked: dict[str, Any]) -> None:
    named = peer.num_objects
    try:
        for test in asked["tests"]:
            exec(compile(test, "<test>", "exec"), namespace)
    finally:
        uncarried = asked["asks_type"] and peer.num_objects > named
        peer.is_unsupported |= uncarried or asked["looks_inside"]


def _take_names(
    peer: Peer, namespace: dict[str, Any], names: list[str], may_replace: list[str]
) -> None:
    """Put into the judge's namespace what the tests expect of the answer.

    The answer must not replace a builtin, such as ``set``, or a helper of ``setup`` that the tests
    use: only what the row names as the answer's may bear such a name.
    """
    known = namespace.keys() | vars(builtins).keys()
    for name in names:
        if name in known and name not in may_replace:
            continue
        with suppress(KeyError, ImportError):
            found = namespace[name] = peer.remote(ROOT)[name]
            if isinstance(found, RemoteObject) and name[:1].isupper():
                mark_class(found)
