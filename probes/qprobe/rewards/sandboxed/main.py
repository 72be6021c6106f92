"""Three processes: one holds the answer's code, one judges it by the tests, one waits for them.

The judge has the tests and the pipe to whoever started it. The answer's process was forked before
the tests were read, holds two pipes to the judge and nothing else, and runs ``setup`` and the
answer. The judge runs ``setup`` and the tests; what the answer defines is a ``RemoteObject`` there.
The answer's code may do to its own process what it likes: the verdict is not made in it. Both are
confined; the third runs nothing but the lines below, and leaves no process behind.
"""

import builtins
import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

from .confinement import Refusal, confine
from .exchange import ROOT, Peer

__all__ = ["main"]

_READY, _PASSED, _FAILED, _REFUSED = b"R", b"P", b"F", b"E"
_Limits = dict[str, int]


def main(*, wall_s: float, cpu_s: int, memory_bytes: int) -> NoReturn:
    """Judge the program on standard input; write the verdict to standard output and exit.

    The input is a JSON object of ``setup``, ``code``, ``tests``, ``names`` (that the tests use) and
    ``entry_point``. The output is R once both processes are confined, then P if all tests passed,
    else F; or E and a reason.
    """
    sys.path.pop(0)  # of this package
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
        _judge(to_judge[0], to_answer[1], program, verdict, limits)
    _keep()
    signal.signal(signal.SIGALRM, lambda *_: os.kill(judge, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, wall_s, 1.0)
    os.waitpid(judge, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.kill(answer, signal.SIGKILL)
    os.waitpid(answer, 0)
    os._exit(0)


def _keep(*descriptors: int) -> None:
    """Close all but the standard descriptors and these."""
    below = 3
    for each in sorted(descriptors):
        os.closerange(below, each)
        below = each + 1
    os.closerange(below, os.sysconf("SC_OPEN_MAX"))


def _make_namespace() -> dict[str, Any]:
    # dataclasses and typing look a class's module up by its name.
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    return vars(module)


def _run_setup(source: str, namespace: dict[str, Any]) -> frozenset[str]:
    """Run ``setup``; return the names of the classes that it defines."""
    exec(compile(source, "<setup>", "exec"), namespace)
    return frozenset(
        name
        for name, value in namespace.items()
        if isinstance(value, type) and value.__module__ == "answer" and value.__name__ == name
    )


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
    setup, code = peer.receive()
    try:
        peer.setup_classes = _run_setup(setup, namespace)
        exec(compile(code, "<answer>", "exec"), namespace)
        peer.serve()
    finally:
        os._exit(0)  # no atexit, no flush: nothing of the answer's runs on


def _judge(reader: int, writer: int, program: int, verdict: int, limits: _Limits) -> NoReturn:
    def tell(outcome: bytes) -> NoReturn:
        os.write(verdict, outcome)
        os._exit(0)

    def fail() -> NoReturn:
        tell(_FAILED)

    namespace = _make_namespace()
    peer = Peer(reader, writer, namespace=namespace, is_judge=True, at_end=fail)
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
        peer.send([asked["setup"], asked["code"]])
        peer.setup_classes = _run_setup(asked["setup"], namespace)
        _take_names(peer, namespace, asked["names"], asked["entry_point"])
        for test in asked["tests"]:
            exec(compile(test, "<test>", "exec"), namespace)
    except BaseException:  # noqa: BLE001 SystemExit and KeyboardInterrupt are no passes either
        fail()
    tell(_PASSED)


def _take_names(
    peer: Peer, namespace: dict[str, Any], names: list[str], entry_point: str | None
) -> None:
    """Put into the judge's namespace what the tests name and only the answer has.

    The answer must not replace a builtin, such as ``set``, or a helper of ``setup`` that the tests
    use: only the function under test may bear such a name.
    """
    known = namespace.keys() | vars(builtins).keys()
    for name in names:
        if name in known and name != entry_point:
            continue
        try:
            namespace[name] = peer.remote(ROOT)[name]
        except (KeyError, ImportError):
            continue
