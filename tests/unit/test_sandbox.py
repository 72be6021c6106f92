"""The sandbox: what honest code gets, and what no code gets."""

import ast
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qprobe import QProbeError
from qprobe.errors import SandboxError
from qprobe.rewards import sandbox
from qprobe.rewards.sandbox import (
    FAILED,
    NO_CODE,
    PASSED,
    SYNTAX,
    TIMEOUT,
    Limits,
    Program,
    run_program,
)

# One second of CPU time ends a loop; it is far more than any honest program of these tests needs.
LIMITS = Limits(cpu_s=1, wall_s=30, memory_bytes=128 << 20)
HIDDEN = "f(3) == 9"


def judge(code: str, *tests: str, setup: str = "", entry_point: str | None = None) -> str:
    """Return the verdict; the tests may name whatever the code defines."""
    nodes = [node for test in (setup, *tests) for node in ast.walk(ast.parse(test))]
    replaced = [entry_point] if entry_point else []
    program = Program(
        setup=setup,
        answer=code,
        tests=tests,
        names=sorted({node.id for node in nodes if isinstance(node, ast.Name)} | {*replaced}),
        may_replace=replaced,
    )
    return run_program(program, LIMITS)


def passes(code: str, *tests: str, setup: str = "", entry_point: str | None = None) -> bool:
    return judge(code, *tests, setup=setup, entry_point=entry_point) == PASSED


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): return x ** 2", f"assert {HIDDEN}"),
        ("f = lambda *a, **k: (a, k)", "assert f(1, b={'c': {2}}) == ((1,), {'b': {'c': {2}}})"),
        (
            "def f(x): return x",
            "for v in (None, True, 2**5000, 1.5, float('inf'), 1j, 'é\\ud800', b'\\xff', [()],"
            " {1: {2}, (3,): frozenset({4})}, range(1, 9, 2), bytearray(b'a')):\n"
            " assert f(v) == v and type(f(v)) is type(v)",
        ),
        ("def f(x): x.sort(); x.append(9)", "a = [2, 1]\nf(a)\nassert a == [1, 2, 9]"),
        ("def f(x):\n while True:\n  yield x\n  x += 1", "g = f(1)\nassert next(g) + next(g) == 3"),
        ("def f(g, xs): return sorted(map(g, xs))", "assert f(lambda x: -x, (1, 2)) == [-2, -1]"),
        ("def f(g): return (g or len)('ab')", "assert f(lambda s: s + 'c') == 'abc'"),
        ("def f(g, x): return g(x)", "assert f(sum, [1, 2]) == 3"),
        (
            "import collections, enum\nclass E(enum.IntEnum):\n A = 2\n"
            "P = collections.namedtuple('P', 'x y')\n"
            "def f(): return [collections.Counter('aab'), P(1, 2), E.A]",
            "assert f() == [{'a': 2, 'b': 1}, (1, 2), 2]",
        ),
        (
            "def f(x):\n if x < 0: raise ValueError('negative')\n return x",
            "try:\n f(-1)\nexcept ValueError as e:\n assert str(e) == 'negative'\n"
            "else:\n assert False",
        ),
        (
            "class Stack:\n def __init__(self): self.items = []\n"
            " def push(self, x): self.items.append(x)\n def __len__(self): return len(self.items)",
            "s = Stack()\ns.push(4)\nassert len(s) == 1 and s.items == [4] and s.items[0] == 4",
        ),
        (
            "import dataclasses, functools, hashlib, itertools, json, math, re, typing, zlib\n"
            "@dataclasses.dataclass\nclass D:\n x: 'int' = 1\n"
            "def f(): return hashlib.sha256(b'').hexdigest()[:4], D().x, zlib.crc32(b'')",
            "assert f() == ('e3b0', 1, 0)",
        ),
        ("def f(a): a.sort(); return a", "a = [2, 1]\nassert f(a) is a and a == [1, 2]"),
        ("def f(xs): xs.append(3)", "a = [2]\nf(xs=a)\nassert a == [2, 3]"),
        (
            "def f(d): d.appendleft(0)",
            "import collections\nd = collections.deque([1])\nf(d)\nassert list(d) == [0, 1]",
        ),
        (
            "def f(function, xs): return [function(x) for x in xs]",
            "assert f(function=abs, xs=[-1])",
        ),
        ("f = max", "assert f([1, 2]) == 2"),
        ("def f(): return len", "assert f()('ab') == 2"),
        (
            "import collections\ndef f(s): return collections.Counter(s)",
            "c = f('aab')\nassert c['z'] == 0 and c.most_common(1) == [('a', 2)]",
        ),
        (
            "import collections\ndef f(o): o.move_to_end('a'); return o",
            "import collections\no = collections.OrderedDict(a=1, b=2)\n"
            "assert list(f(o)) == ['b', 'a'] and list(o) == ['b', 'a']",
        ),
        (
            "import datetime as d, decimal, fractions\ndef f(x): return [x + d.timedelta(days=1), "
            "d.date(2024, 2, 29), d.time(1, 2), decimal.Decimal('0.1'), fractions.Fraction(1, 3)]",
            "import datetime as d, decimal, fractions\nassert f(d.datetime(2024, 1, 1, 5)) == ["
            "d.datetime(2024, 1, 2, 5), d.date(2024, 2, 29), d.time(1, 2), decimal.Decimal('0.1'), "
            "fractions.Fraction(1, 3)]",
        ),
        (
            "import json\nclass Bad(ValueError): pass\n"
            "def f(x):\n if x: json.loads('{')\n raise Bad",
            "for x in (0, 1):\n try: f(x)\n except ValueError: continue\n assert False",
        ),
        (
            "def f(d): return d['gone']",
            "try: f({})\nexcept KeyError as e: assert str(e) == repr('gone')\nelse: assert False",
        ),
    ],
)
def test_honest_code_passes(code: str, test: str) -> None:
    assert passes(code, test)


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): return x + 1", f"assert {HIDDEN}"),
        ("def f(x): return 9", "assert f(1) == 9\nassert f(2) == 4"),
        ("def g(x): return 9", f"assert {HIDDEN}"),
        ("def f(x): return 9 if", f"assert {HIDDEN}"),
        ("def f(x): return 9\nraise ValueError", f"assert {HIDDEN}"),
        ("def f(x): raise AssertionError", f"assert {HIDDEN}"),
        ("def f(x): return 9 \x00", f"assert {HIDDEN}"),
        ("def f(x): return x", "a = [1]\nassert f(a) is not a"),
        ("def f(x): return x", "a = [[1]]\nf(a)[0].append(2)\nassert a == [[1]]"),
        ("def f(x): return float('nan')", f"assert {HIDDEN}"),
        # What ends a loop of the test's must not end it as if all had been seen.
        ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == 9, [3]))"),
        ("def f(x): raise StopIteration", "for g, w in zip(map(f, [3]), [9]): assert g == w"),
        # A check within a test's own function counts, whatever the answer does with its error.
        (
            "def f(check):\n try: check(1)\n except BaseException: pass",
            "def check(x): assert x == 9\nf(check)",
        ),
        (
            "import collections\ndef f(): return collections.OrderedDict([(2, 2), (1, 1)])",
            "import collections\nassert f() == collections.OrderedDict([(1, 1), (2, 2)])",
        ),
    ],
)
def test_wrong_code_fails(code: str, test: str) -> None:
    assert not passes(code, test)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("def f(x): return x * x", PASSED),
        ("def f(x): return x", FAILED),
        ("def f(x): raise ValueError", FAILED),
        ("def g(x): return 9", FAILED),
        ("import os\nos._exit(0)\ndef f(x): return 9", FAILED),
        ("I cannot.", NO_CODE),
        ("", NO_CODE),
        ("```python\ndef f(x) return 9\n```", SYNTAX),
        ("def f(x): return 9\nreturn", SYNTAX),
        ("def f(x):\n while True: pass", TIMEOUT),
        ("while True: pass\ndef f(x): return 9", TIMEOUT),
        ("def f(x):\n while True: yield 9", FAILED),
    ],
)
def test_every_failure_has_its_reason(code: str, verdict: str) -> None:
    assert judge(code, f"assert {HIDDEN}") == verdict


def test_an_endless_test_is_out_of_time() -> None:
    code = "def f(x):\n while True: yield x"
    assert judge(code, "assert list(f(3)) == [9]") in (TIMEOUT, FAILED)
    assert judge("def f(x): return x", "while f(3): pass") == TIMEOUT


@pytest.mark.parametrize(
    "module",
    [
        *("asyncio", "sqlite3", "decimal", "hashlib", "email.mime.text", "zoneinfo", "unittest"),
        *("xml.etree.ElementTree", "ctypes", "statistics", "multiprocessing.pool", "csv", "zlib"),
    ],
)
def test_the_standard_library_can_be_imported(module: str) -> None:
    assert passes(
        f"def f():\n import {module} as m\n return m.__name__", f"assert f() == '{module}'"
    )


def test_every_test_must_pass() -> None:
    assert not passes("def f(x): return 9", "assert f(3) == 9", "assert f(1) == 1")


def test_setup_serves_the_code_and_the_tests() -> None:
    setup = (
        "import math\nclass Node:\n def __init__(self, x, next=None): self.x, self.next = x, next\n"
        " def __eq__(self, o): return (self.x, self.next) == (o.x, o.next)\n"
        "def half(x): return x / 2"
    )
    code = (
        "def f(n): return Node(half(math.floor(n.x)), n.next and f(n.next))\ndef grow(n): n.x += 1"
    )
    assert passes(code, "assert f(Node(2.5, Node(4))) == Node(1, Node(2))", setup=setup)
    assert passes(code, "n = Node(1)\ngrow(n)\nassert half(n.x) == 1", setup=setup)
    assert not passes(code, "assert f(Node(2.5, Node(4))) == Node(1, Node(3))", setup=setup)


def test_classes_of_setup_cross_as_what_they_are() -> None:
    setup = (
        "import collections, enum\nclass C(enum.Enum):\n R = 1\n G = 2\n"
        "P = collections.namedtuple('P', 'x y')\nclass Bad(Exception): pass"
    )
    code = (
        "def swap(p): return P(p.y, p.x)\ndef other(c): return C.G if c is C.R else C.R\n"
        "def fail(): raise Bad('so')"
    )
    assert passes(code, "assert swap(P(1, 2)).x == 2", "assert other(C.R) is C.G", setup=setup)
    test = "try: fail()\nexcept Bad as e: assert str(e) == 'so'\nelse: assert False"
    assert passes(code, test, setup=setup)
    assert not passes(code, "assert other(C.R) is C.R", setup=setup)


def test_the_answer_cannot_lend_methods_to_a_class_of_setup() -> None:
    setup = (
        "class Node:\n def __init__(s, v): s.v = v\n def equals(s, o): return s.v == o.v\n"
        " def __eq__(s, o): return s.equals(o)"
    )
    code = "def f(x):\n n = Node(0)\n n.equals = lambda o: True\n return n"
    assert not passes(code, "assert f(3) == Node(9)", setup=setup)
    assert not passes(code, "assert f(3).equals(Node(9))", setup=setup)


def test_setup_may_call_the_function_under_test() -> None:
    setup = "def check(): assert f(3) == 9"
    assert passes("def f(x): return x * x", "check()", setup=setup, entry_point="f")
    assert not passes("def f(x): return x", "check()", setup=setup, entry_point="f")


# Each tries to pass `assert f(3) == 9` without knowing 9.
EQUAL = "class E:\n def __eq__(s, o): return True\n def __ne__(s, o): return False\n"
CHEATS = {
    "always equal": EQUAL + "def f(x): return E()",
    "always equal list": EQUAL + "class L(list): __eq__ = E.__eq__\ndef f(x): return L()",
    "always equal in a list": EQUAL + "def f(x): return [E()]",
    "always equal int": "class I(int):\n def __eq__(s, o): return True\ndef f(x): return I(1)",
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit at once": "import sys\nsys.exit(0)",
    "quit": "raise __import__('builtins').SystemExit(0)",
    "fork bomb": (
        "import os\ndef f(x):\n for _ in range(10**4):\n  try: os.fork()\n"
        "  except OSError: pass\n return 1"
    ),
    "endless loop": "def f(x):\n while True: pass",
    "growing memory": "def f(x):\n v = []\n while True: v.append('x' * 10**6)",
    "a lazy value larger than memory": "def f(x): return range(10**12)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "os._exit at once": "import os\nos._exit(0)",
    "raise SystemExit": "def f(x): raise SystemExit(0)",
    "atexit": "import atexit, os\natexit.register(lambda: os.write(1, b'RP'))\ndef f(x): return 1",
    "marker printed": "print('RP', flush=True)\ndef f(x): print('P', flush=True); return 1",
    "marker to every pipe": (
        "import os\ndef f(x):\n for d in range(64):\n  for s in (b'P', b'RP'):\n"
        "   try: os.write(d, s)\n   except OSError: pass\n return 1"
    ),
    "builtins patched": (
        "import builtins, sys\nbuiltins.AssertionError = Exception\nbuiltins.assertEqual = 1\n"
        "builtins.compile = builtins.exec = lambda *a, **k: None\nsys.exit = print\n"
        "def f(x): return 1"
    ),
    "AssertionError patched": (
        "import ctypes\nclass Never(Exception): pass\nAssertionError = Never\ndef f(x): raise Never"
    ),
    "equality of int patched by ctypes": (
        "import ctypes\ndef f(x):\n ctypes.memset(id(9) + 24, 1, 1)\n return 1"
    ),
    "frames": (
        "import sys, gc\ndef f(x):\n frame = sys._getframe()\n while frame:\n"
        "  frame.f_globals['_FAILED'] = b'P'\n  frame.f_globals['tell'] = print\n"
        "  for each in frame.f_locals.values():\n"
        "   if hasattr(each, '_is_judge'): each._is_judge = True; each._at_end = lambda: None\n"
        "  frame = frame.f_back\n return 1"
    ),
    "tests looked for in memory": (
        "import gc\ndef f(x):\n for o in gc.get_objects():\n  try:\n"
        "   if '9 == )3(f'[::-1] in str(vars(o) if hasattr(o, '__dict__') else o): return 9\n"
        "  except BaseException: pass\n return 1"
    ),
    "tests looked for in files": (
        "import glob\ndef f(x):\n"
        " for p in ['/proc/self/cmdline', *glob.glob('/proc/[0-9]*/cmdline'),"
        " *glob.glob('/proc/[0-9]*/fd/*'), '/proc/self/mem', '/dev/stdin']:\n"
        "  try:\n   if '== 9' in open(p).read(): return 9\n  except OSError: pass\n return 1"
    ),
    "modules of the runner patched": (
        "import sys\nfor m in list(sys.modules.values()):\n"
        " for n in ('_FAILED', '_read', 'fail', 'confine'):\n"
        "  try: setattr(m, n, b'P')\n  except Exception: pass\ndef f(x): return 1"
    ),
    "judge's function reached": (
        "import sys\nfrom sandboxed.remote import RemoteObject\n"
        "def f(x):\n p = sys._getframe(2).f_locals.get('self')\n"
        " return p.ask('getattr', 0, ('__builtins__',))"
    ),
    "judge's namespace called": (
        "import sys\ndef f(x):\n frame = sys._getframe()\n while 'self' not in frame.f_locals:\n"
        "  frame = frame.f_back\n peer = frame.f_locals['self']\n"
        " peer.send(['ask', 'getitem', 0, peer.encode(('f',)), ['dict', []]])\n return 9"
    ),
    "judge's name replaced": (
        "import sys\ndef f(x):\n frame = sys._getframe()\n while 'self' not in frame.f_locals:\n"
        "  frame = frame.f_back\n frame.f_locals['self'].send(['value', ['yours', 0], []])\n"
        " return 9"
    ),
    "shadowed helpers": "def f(x): return 9\ndef set(x): return 1\ndef abs(x): return 0",
    "endless loop that refuses to die": (
        "import signal\nfor n in range(1, 65):\n try: signal.signal(n, lambda *a: None)\n"
        " except (OSError, ValueError): pass\n"
        "while True:\n try:\n  while True: pass\n except BaseException: pass"
    ),
    "endless regular expression": "import re\ndef f(x): return re.match('(a*)*b', 'a' * 60)",
    "huge output": "def f(x):\n for _ in range(200): print('x' * 10**6)\n return 1",
    "huge value": "def f(x): return [0] * 10**8",
    "huge message": "def f(x): return 'x' * (20 << 20)",
    "deep recursion": "def f(x): return f(x)",
    "bottomless recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "deep value": "def f(x):\n v = []\n for _ in range(10**5): v = [v]\n return v",
    "cyclic value": "def f(x):\n v = []\n v.append(v)\n return v",
    "not a message": (
        "import os\ndef f(x):\n for d in range(3, 64):\n  try: os.write(d, b'x' * 99)\n"
        "  except OSError: pass\n return 1"
    ),
    "crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[bool, float]]:
    """Return of every cheat whether it passed, and after how many seconds; run side by side."""

    def one(name: str) -> tuple[bool, float]:
        tests = [f"assert {HIDDEN}"]
        if name == "shadowed helpers":
            tests = ["assert set(f(3) for _ in 'a') == {8}", "assert abs(f(3) - 8) < 0.1"]
        if name == "judge's name replaced":  # the second reads what the first left behind
            tests *= 2
        if name == "a lazy value larger than memory":
            tests = ["assert list(f(3)) == [9]"]
        start_s = time.monotonic()
        return passes(CHEATS[name], *tests), time.monotonic() - start_s

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(CHEATS, pool.map(one, CHEATS), strict=True))


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(name: str, outcomes: dict[str, tuple[bool, float]]) -> None:
    passed, took_s = outcomes[name]
    assert not passed
    # The limit of CPU time, not that of wall time, ended what did not end by itself.
    assert took_s < LIMITS.wall_s


def test_only_the_function_under_test_may_bear_the_name_of_a_builtin() -> None:
    code = "def sum(a, b): return a + b"
    assert passes(code, "assert sum(1, 2) == 3", entry_point="sum")
    assert not passes(code, "assert sum(1, 2) == 3")


def test_a_reply_changes_nothing_of_the_judges_but_containers() -> None:
    """A forged reply says that the argument, a module, was changed in place."""
    code = (
        "import sys\ndef f(module):\n frame = sys._getframe()\n"
        " while 'self' not in frame.f_locals: frame = frame.f_back\n"
        " peer = frame.f_locals['self']\n always = peer.encode(lambda *_: True)\n"
        " peer.send(['value', None, [[0, ['instance', 'N', [['isclose', always]]]]]])\n"
        " peer.send(['value', True, []])"
    )
    setup = "import math\nclass N: pass"
    assert not passes(code, "f(math)\nassert math.isclose(1, 2)", setup=setup)


# Each is Python that returns what it got hold of; all must raise PermissionError
# or RuntimeError instead. None does harm where it works: it aims at the test's own files only.
FORBIDDEN = {
    "read a file": "open('/etc/passwd').read()",
    "read the tests' file": "open({this!r}).read()",
    "read a package of others": "open({other!r}, 'rb').read()",
    "read the loader's list": "open('/etc/ld.so.cache', 'rb').read()",
    "status of a file": "os.stat('/etc/passwd')",
    "status of the library": "os.stat(os.__file__)",
    "status of a link": "os.lstat('/proc/self/exe')",
    "status by another call": "call(332 if x86 else 291, -100, b'/', 0, 0xfff, b' ' * 256)",
    "status by a descriptor and a name": (
        "call(262 if x86 else 79, -100, b'/etc/passwd', b' ' * 256, 0x1000)"
    ),
    "whether there is a file": "call(439, -100, b'/etc/passwd', 0, 0)",
    "list a folder": "os.listdir('/')",
    "list the library": "os.listdir(os.path.dirname(os.__file__))",
    "list shared libraries": "os.listdir('/usr/lib')",
    "read a link": "os.readlink('/proc/self/exe')",
    "read memory": "open('/proc/self/mem', 'rb')",
    "read the parent's memory": "open(f'/proc/{{os.getppid()}}/mem', 'rb')",
    "write a file": "open({target!r}, 'w')",
    "write a readable file": "open({readable!r}, 'r+')",
    "empty a readable file": "os.open({readable!r}, os.O_RDONLY | os.O_TRUNC)",
    "empty a readable file to write": "os.open({readable!r}, os.O_RDWR | os.O_TRUNC)",
    "truncate": "os.truncate({this!r}, 0)",
    "unlink": "os.unlink({this!r})",
    "rename": "os.rename({this!r}, {target!r})",
    "mkdir": "os.mkdir({target!r})",
    "chmod": "os.chmod({this!r}, 0)",
    "symlink": "os.symlink('/', {target!r})",
    "socket": "socket.socket()",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "socket pair": "socket.socketpair()",
    "connect": "socket.create_connection(('127.0.0.1', {port}))",
    "fork": "os.fork()",
    "fork server": "os.posix_spawn('/bin/true', ['true'], {{}})",
    "subprocess": "subprocess.run(['/bin/true'])",
    "execve": "os.execv('/bin/true', ['true'])",
    "thread": "threading.Thread(target=print).start()",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill itself": "os.kill(os.getpid(), 9)",
    "kill the group": "os.killpg(0, 9)",
    "leave the session": "os.setsid()",
    "become another user": "os.setuid(1)",
    "raise a limit": "call(302 if x86 else 261, 0, 0, 0, 0)",
    "signal by descriptor": "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "memory file": "os.memfd_create('x')",
    "change root": "os.chroot('/')",
    "priority": "os.nice(-5)",
    "ptrace": "call(101 if x86 else 117, 16, os.getppid(), 0, 0)",
    "process_vm_readv": "call(310 if x86 else 270, os.getppid(), 0, 0, 0, 0, 0)",
    "io_uring": "call(425, 1, 0)",
    "bpf": "call(321 if x86 else 280, 0, 0, 0)",
    "prctl": "call(157 if x86 else 167, 1, 0, 0, 0, 0)",
    "poisoned memory": "call(28 if x86 else 233, 0, 4096, 100)",
    "clone3": "call(435, 0, 0)",
    "mount": "call(165 if x86 else 40, 0, 0, 0, 0, 0)",
    "reboot": "call(169 if x86 else 142, 0, 0, 0, 0)",
}
ATTEMPTS = """
import ctypes, fcntl, os, resource, socket, subprocess, threading
x86 = os.uname().machine == 'x86_64'
def call(number, *args):
    if ctypes.CDLL(None, use_errno=True).syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), '')
attempts = [{attempts}]
def f():
    done = []
    for name, attempt in attempts:
        try:
            attempt()
        except (PermissionError, RuntimeError):
            continue
        except BaseException as error:
            done.append((name, repr(error)))
        else:
            done.append((name, 'worked'))
    return done
"""


@pytest.fixture
def readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that the sandbox may read, as it may Python's own.

    Those must not be risked: were the sandbox broken, an attempt would destroy this very Python.
    """
    folder = tmp_path / "library"
    folder.mkdir()
    file = folder / "module.py"
    file.write_text("content")
    widen = (
        "from sandboxed import confinement as c; old = c._readable; "
        f"c._readable = lambda: [*old(), ({str(folder)!r}, c._READ_FILE | c._READ_DIR)]"
    )
    start = sandbox._START.replace("from sandboxed.main", f"exec({widen!r}); from sandboxed.main")
    monkeypatch.setattr(sandbox, "_START", start)
    return file


def test_nothing_outside_can_be_touched(tmp_path: Path, readable: Path) -> None:
    """One run tries all, so that it also shows that none of them ends the process."""
    this = tmp_path / "secret"
    this.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        paths = {
            "this": str(this),
            "target": str(tmp_path / "new"),
            "readable": str(readable),
            "other": str(next(Path(os.__file__).parent.glob("site-packages/**/*.*"), this)),
            "port": server.getsockname()[1],
        }
        attempts = ", ".join(
            f"({name!r}, lambda: {expression.format(**paths)})"
            for name, expression in FORBIDDEN.items()
        )
        code = ATTEMPTS.format(attempts=attempts)
        assert passes(code, "assert len(f()) == 0")
    read = f"def f(): return open({str(readable)!r}).read()"
    assert passes(read, "assert f() == 'content'")  # it could be read, and is whole
    assert this.read_text() == "secret"
    assert this.stat().st_mode & 0o777
    assert sorted(each.name for each in tmp_path.iterdir()) == ["library", "secret"]


@pytest.mark.parametrize("missing", ["_restrict_files", "_WRITING"])
def test_two_locks_keep_files_from_being_emptied(
    missing: str, readable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Landlock seccomp does; without seccomp's rule Landlock does, from Linux 6.2 on."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if missing == "_WRITING" and release < (6, 2):
        pytest.skip(f"Landlock of Linux {os.uname().release} knows no truncating")
    value = {"_restrict_files": "lambda libc: None", "_WRITING": "0"}[missing]
    unlock = (
        f"from sandboxed import confinement as c; c._prove = lambda: None; c.{missing} = {value}"
    )
    start = sandbox._START.replace("from sandboxed.main", f"exec({unlock!r}); from sandboxed.main")
    monkeypatch.setattr(sandbox, "_START", start)
    code = (
        "import os\ndef f(flags):\n try:\n"
        f"  os.close(os.open({str(readable)!r}, flags))\n except PermissionError: return 'no'"
    )
    tests = [f"assert f({flags}) == 'no'" for flags in (os.O_TRUNC, os.O_RDWR, os.O_WRONLY)]
    assert passes(code, *tests)
    assert readable.read_text() == "content"


def test_the_attempts_are_possible_outside(tmp_path: Path) -> None:
    """The list above would also pass if every attempt failed everywhere, for a slip of ours."""
    harmless = [name for name in FORBIDDEN if name.startswith(("list", "socket", "unix"))]
    harmless += ["thread", "memory file", "subprocess", "mkdir"]
    this = tmp_path / "secret"
    this.write_text("secret")
    for name in harmless:
        expression = FORBIDDEN[name].format(this=str(this), target=str(tmp_path / name), port=0)
        modules = {"os": os, "socket": socket, "subprocess": subprocess, "threading": threading}
        found = eval(expression, modules)
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, socket.socket):
                each.close()
            elif name == "memory file":
                os.close(each)
    assert (tmp_path / "mkdir").is_dir()  # the others have raised nothing


def _descendants() -> set[int]:
    mine = {os.getpid()}
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return mine - {os.getpid()}


@pytest.mark.parametrize("code", ["def f(x): return 9", "def f(x):\n import time\n time.sleep(99)"])
def test_no_process_and_no_descriptor_is_left(code: str) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, open_before = _descendants(), descriptors()
    quick = Limits(cpu_s=1, wall_s=2)
    program = Program(answer=code, tests=[f"assert {HIDDEN}"], names=["f"])
    assert run_program(program, quick) == (TIMEOUT if "sleep" in code else PASSED)
    assert _descendants() == before
    assert descriptors() == open_before


def test_verdicts_of_threads_do_not_mix() -> None:
    def one(index: int) -> bool:
        return passes(f"def f(): return {index}", f"assert f() == {index // 2 * 2}")

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(one, range(12)))
    assert got == [index % 2 == 0 for index in range(12)]


def test_the_order_of_sets_is_the_same_every_time() -> None:
    code = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    script = f"{code.replace('return', 'print(').replace('})', '}))')}\nf()"
    environment = {"PYTHONHASHSEED": "0"}
    want = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=True
    )
    assert passes(code, f"assert f() == {want.stdout.decode().strip()}")


def test_the_answer_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    code = "import os\ndef f(): return sorted(os.environ)"
    assert passes(code, "assert 'SECRET_KEY' not in f() and 'PYTHONHASHSEED' in f()")


REFUSING = """
import ctypes
from sandboxed import confinement
confinement.{name} = {value}
"""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_CREATE_RULESET", "9999", "Landlock"),
        ("_PR_SET_SECCOMP", "9999", "seccomp"),
        ("_PR_SET_NO_NEW_PRIVS", "9999", "no_new_privs"),
        ("_MACHINES", "{}", "machine"),
        ("_restrict_files", "lambda libc: None", "Landlock is on but"),
        ("_restrict_calls", "lambda libc: None", "seccomp is on but"),
    ],
)
def test_a_machine_without_the_means_is_refused(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's part is broken in the processes themselves: a call's number is unknown to it."""
    broken = REFUSING.format(name=name, value=value)
    start = sandbox._START.replace("from sandboxed.main", f"exec({broken!r}); from sandboxed.main")
    monkeypatch.setattr(sandbox, "_START", start)
    with pytest.raises(SandboxError, match=message):
        passes("def f(x): return 9", f"assert {HIDDEN}")


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/false"])
def test_an_interpreter_that_does_not_start_is_no_wrong_answer(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(SandboxError) as caught:
        passes("def f(x): return 9", f"assert {HIDDEN}")
    assert isinstance(caught.value, QProbeError)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="'darwin'"):
        passes("a = 1", "assert True")
