"""What tests may do with what an answer returns, and what that must not earn."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qprobe.data.layouts import LAYOUTS
from qprobe.errors import RowError
from qprobe.rewards.code import TestsReward, read_program
from qprobe.rewards.judged import Judged
from qprobe.rewards.sandbox import FAILED, UNSUPPORTED, Limits

LIMITS = Limits(cpu_s=2, wall_s=30, memory_bytes=256 << 20)
VECTOR = """
class V:
    def __init__(self, x): self.x = x
    def __eq__(self, o): return isinstance(o, V) and self.x == o.x
    def __hash__(self): return hash(self.x)
    def __add__(self, o): return V(self.x + o.x)
    def __mul__(self, o): return self.x * o.x if isinstance(o, V) else V(self.x * o)
    __rmul__ = __mul__
    def __neg__(self): return V(-self.x)
    def __abs__(self): return abs(self.x)
    def __lt__(self, o): return self.x < o.x
    def __repr__(self): return f'V({self.x})'
    def __str__(self): return f'<{self.x}>'
    def __format__(self, how): return how + str(self.x)
    def __contains__(self, y): return self.x == y
    def __getitem__(self, i): return self.x + i
    def __delitem__(self, i): self.x -= i
    def __reversed__(self): return iter([self.x, 0])
    def __iadd__(self, o): self.x += o.x; return self
    def __enter__(self): self.x += 1; return self
    def __exit__(self, kind, error, trace): self.x -= 1; return kind is KeyError
    def __float__(self): return float(self.x)
    def __round__(self, n=0): return round(self.x, n)
def f(x): return V(x)
"""
ON_OBJECTS = [
    "assert V(1) == V(1) and not V(1) == V(2) and V(1) != V(2) and not V(1) != V(1)",
    "assert f(3) == V(3) and f(3) != V(4)",
    "assert [f(1), f(2)] == [V(1), V(2)] and {'a': f(1)} == {'a': V(1)}",
    "assert {V(1), V(1), V(2)} == {f(2), f(1)} and {V(1): 2}[f(1)] == 2 and f(1) in [V(1)]",
    "assert V(1) + V(2) == V(3) and V(2) * 3 == V(6) == 3 * V(2) and -V(1) == V(-1)",
    "assert V(2) * V(3) == 6 and abs(V(-2)) == 2",
    "assert sorted([V(2), V(1)]) == [V(1), V(2)] and V(1) < V(2) and V(2) > V(1)",
    "assert repr(f(1)) == 'V(1)' and str(f(1)) == '<1>' and f'{f(1):a}' == 'a1'",
    "assert str([f(1)]) == '[V(1)]' and '%r' % f(2) == 'V(2)' and format(V(1), 'b') == 'b1'",
    "assert 3 in V(3) and 4 not in V(3)",
    "assert isinstance(f(1), V) and not isinstance(1, V) and isinstance(f(1), (int, V))",
    "assert issubclass(V, V) and f(1) != None and not f(1) == None and f(1) is not None",
    "v = V(2)\ndel v[1]\nassert v[1] == 2 and list(reversed(v)) == [1, 0]",
    "v = w = V(2)\nv += V(3)\nassert w.x == 5 and v is w",
    "with f(2) as v: assert v.x == 3\nassert v.x == 2",
    "with V(2): raise KeyError('in')",
    "try:\n with V(2): raise ValueError('in')\nexcept ValueError as e: assert str(e) == 'in'",
    "assert float(f(2)) == 2.0 and round(f(2.26), 1) == 2.3",
    "import copy\nv = V([1])\nw = copy.deepcopy(v)\nw.x = 2\nassert v == V([1]) and w is not v",
    "assert V.__name__ == 'V' and f.__name__ == 'f'",
    "v = V(1)\nv.y = 2\nassert v.y == 2 and hasattr(v, 'y')\ndel v.y\nassert not hasattr(v, 'y')",
]
OTHERS: dict[str, tuple[str, str]] = {
    "a coroutine": (
        "import asyncio\nasync def f(x):\n await asyncio.sleep(0.001)\n return x * x",
        "import asyncio\nassert asyncio.run(f(3)) == 9\n"
        "async def both(): return await f(1), await asyncio.gather(f(2), f(3))\n"
        "assert asyncio.run(both()) == (1, [4, 9])",
    ),
    "a coroutine of its own loop": (
        "import asyncio\nasync def g(x): return x\n"
        "def f(x): return asyncio.run(asyncio.wait_for(g(x), 1))",
        "assert f(3) == 3",
    ),
    "a coroutine given a coroutine": (
        "async def f(g, x): return await g(x) + 1",
        "import asyncio\nasync def g(x):\n await asyncio.sleep(0)\n return x * 2\n"
        "assert asyncio.run(f(g, 3)) == 7",
    ),
    "an asynchronous generator": (
        "async def f(n):\n for i in range(n): yield i",
        "import asyncio\nasync def go(): return [x async for x in f(3)]\n"
        "assert asyncio.run(go()) == [0, 1, 2]",
    ),
    "an asynchronous context": (
        "class f:\n async def __aenter__(self): return 3\n"
        " async def __aexit__(self, *e): return True",
        "import asyncio\nasync def go():\n async with f() as x: assert x == 3; raise ValueError\n"
        "asyncio.run(go())",
    ),
    "an error of the library": (
        "import json\ndef f(x): return json.loads(x)",
        "import json\ntry: f('{')\nexcept json.JSONDecodeError as e: assert e.pos == 1\n"
        "else: assert False",
    ),
    "an error of another module": (
        "import decimal\ndef f(x): return decimal.Decimal(x) / 0",
        "from decimal import DivisionByZero\ntry: f(1)\nexcept DivisionByZero: pass\n"
        "else: assert False",
    ),
    "an error of its own": (
        "class TooLow(ValueError):\n def __init__(self, left): super().__init__('low'); "
        "self.left = left\ndef f(x): raise TooLow(x)",
        "try: f(3)\nexcept TooLow as e: assert e.left == 3 and str(e) == 'low'\n"
        "else: assert False\nassert issubclass(TooLow, ValueError)",
    ),
    "errors of its own, one below another": (
        "class A(Exception): pass\nclass B(A): pass\ndef f(x): raise B('b')",
        "for kind in (A, B, Exception):\n try: f(1)\n except kind as e: assert isinstance(e, A)\n"
        "try: f(1)\nexcept ValueError: assert False\nexcept B: pass",
    ),
    "an error by a name of Python's": (
        "class TimeoutError(Exception): pass\ndef f(x): raise TimeoutError(x)",
        "try: f(1)\nexcept TimeoutError as e: assert e.args == (1,)\nelse: assert False",
    ),
    "an exit": (
        "import sys\ndef f(x): sys.exit(x)",
        "try: f(3)\nexcept SystemExit as e: assert e.args == (3,)\nelse: assert False",
    ),
    "an error that is returned": (
        "def f(x): return ValueError(x)",
        "e = f('a')\nassert isinstance(e, ValueError) and e.args == ('a',)",
    ),
    "output": (
        "def f(x): print('n:', x); return x",
        "import contextlib, io\nout = io.StringIO()\nwith contextlib.redirect_stdout(out): f(3)\n"
        "assert out.getvalue() == 'n: 3\\n'",
    ),
    "output in another way": (
        "import sys\ndef f(x):\n for i in range(x): sys.stdout.write(str(i))",
        "import io, sys\nold, sys.stdout = sys.stdout, io.StringIO()\nf(3)\n"
        "assert sys.stdout.getvalue() == '012'\nsys.stdout = old\nf(2)",
    ),
    "a dictionary with defaults": (
        "def f(d, k): d[k] += 1; d['all'] += 1; return d",
        "from collections import defaultdict\nd = defaultdict(int, a=1)\ng = f(d, 'b')\n"
        "assert d == {'a': 1, 'b': 1, 'all': 1} and g is d and g['new'] == 0",
    ),
    "a dictionary with other defaults": (
        "import collections\ndef f(d): d['x'].append(1)\n"
        "def g(): return collections.defaultdict(list)",
        "from collections import defaultdict\nd = defaultdict(lambda: [0])\nf(d)\n"
        "assert d == {'x': [0, 1]} and g()['y'] == []",
    ),
    "a named tuple of its own": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return [P(1, 2)]",
        "assert f() == [(1, 2)] and f()[0].y == 2",
    ),
    "a list of its own": (
        "class Stack(list):\n def push(self, x): self.append(x)\ndef f(): return Stack([1])",
        "s = Stack()\ns.push(1)\nassert s == [1] and len(s) == 1 and s[0] == 1 and f() == [1] == s",
    ),
    "an enumeration of its own": (
        "import enum\nclass E(enum.IntEnum):\n A = 1\n B = 2\ndef f(x): return E(x)",
        "assert f(1) == E.A and f(1) is E.A and E.B == 2 and f(2) > 1 and E['A'].name == 'A'",
    ),
    "a context of contextlib": (
        "import contextlib\n@contextlib.contextmanager\ndef f(x):\n yield x",
        "with f(3) as x: assert x == 3",
    ),
    "numpy in the tests": (
        "def f(x): return [x / 3]",
        "import numpy as np\ndef check(g):\n assert np.allclose(g(1), [0.33333333333], atol=1e-6)\n"
        " np.testing.assert_allclose(g(2), [2 / 3])\n assert not isinstance(g(1), np.ndarray)\n"
        "check(f)",
    ),
}  # fmt: skip


def judge(code: str, test: str, names: list[str] | None = None, setup: str = "") -> Judged:
    defined = names or [n for n in ("V", "f", "g", "A", "B", "E", "Stack", "TooLow") if n in code]
    row: dict[str, Any] = {"tests": [test], "setup": setup, "entry_point": defined}
    return TestsReward(LIMITS).judge(row, code)


@pytest.mark.parametrize("test", ON_OBJECTS)
def test_objects_of_the_answer_are_asked(test: str) -> None:
    assert judge(VECTOR, test) == (1.0, None)


@pytest.mark.parametrize("name", OTHERS)
def test_tests_may_do_more(name: str) -> None:
    assert judge(*OTHERS[name]) == (1.0, None)


UNCARRIED = {
    "another package": ("import numpy\ndef f(x): return 9", "assert f(3) == 9"),
    "another package, later": ("def f(x):\n import pandas\n return 9", "assert f(3) == 9"),
    "a package of the tests": ("def f(x): return 9", "import pytest\nassert f(3) == 9"),
    "a thread": (
        "import threading\ndef f(x):\n t = threading.Thread(target=print)\n t.start()\n return 9",
        "assert f(3) == 9",
    ),
    "a file": ("def f(x):\n open('/tmp/x', 'w').close()\n return 9", "assert f(3) == 9"),
    "input": ("def f(x): return int(input())", "assert f(3) == 9"),
    "a file that is given": (
        "def f(file): return file.read()",
        "import io\nassert f(io.StringIO('a')) == 'a'",
    ),
    "an object of the test's own": (
        "def f(o): return o.x",
        "class O: x = 9\nassert f(O()) == 9",
    ),
    "an object and a plain value": (VECTOR.replace("isinstance(o, V) and", ""), "assert V(9) == 9"),
    "inheriting": (VECTOR, "class W(V): pass\nassert W(9).x == 9"),
    "a type": (VECTOR, "assert type(f(9)) is V"),
    "a class": (VECTOR, "assert f(9).__class__ is V"),
    "a patch": (
        "def g(): return 1\ndef f(x): return g()",
        "from unittest import mock\nwith mock.patch('builtins.print') as p: f(3)\n"
        "p.assert_called_once()",
    ),
    "a docstring": ("def f(x):\n 'Doc.'\n return x", "assert f.__doc__ == 'Doc.'"),
    "annotations": ("def f(x: int): return x", "assert f.__annotations__ == {'x': int}"),
    "a signature": (
        "def f(x, y=1): return x",
        "import inspect\nassert str(inspect.signature(f)) == '(x, y=1)'",
    ),
    "a signature, by its name": (
        "def f(x, y=1): return x",
        "from inspect import signature as s\nassert list(s(f).parameters) == ['x', 'y']",
    ),
    "a generator": (
        "def f(x): yield x",
        "import inspect\nassert inspect.isgenerator(f(1))",
    ),
    "a type of generators": (
        "def f(x): yield x",
        "import types\nassert isinstance(f(1), types.GeneratorType)",
    ),
    "a dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n x: int\ndef f(x): return A(x)",
        "import dataclasses\nassert dataclasses.asdict(f(1)) == {'x': 1}",
    ),
    "a temporary file": (
        "def f(x): return x",
        "import tempfile\nwith open(tempfile.mktemp(), 'w') as file: file.write(f('x'))",
    ),
    "too much": ("def f(x): return 'a' * (20 << 20)", "assert len(f(3)) == 20 << 20"),
}


@pytest.mark.parametrize("name", UNCARRIED)
def test_what_cannot_be_carried_is_not_silent(name: str) -> None:
    assert judge(*UNCARRIED[name]) == (0.0, UNSUPPORTED)


LIAR = """
class V:
    def __init__(self, *x): pass
    def __getattr__(self, name): return lambda *a: True
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = lambda s, *o: True
    __ne__ = lambda s, o: False
    __hash__ = lambda s: 9
    __abs__ = __float__ = __int__ = __round__ = lambda s, *a: 0
    __add__ = __radd__ = __mul__ = __rmul__ = __rsub__ = __mod__ = __neg__ = lambda s, *a: s
    __bool__ = lambda s: False
    def __sub__(s, o): return s if RETURN is None else RETURN
RETURN = None
def f(x): return V()
"""
LIARS = {
    "equal": "assert f(3) == 9",
    "equal, swapped": "assert 9 == f(3)",
    "equal in a list": "assert [f(3)] == [9]",
    "equal in a tuple": "assert (1, f(3)) == (1, 9)",
    "not unequal": "assert not f(3) != 9",
    "in a set": "assert f(3) in {9, 16}",
    "in a list": "assert f(3) in [9]",
    "contains": "assert 9 in f(3)",
    "near": "assert abs(f(3) - 9) < 0.1",
    "near, swapped": "assert abs(9 - f(3)) < 0.1",
    "near, rounded": "assert round(f(3) - 9, 2) == 0",
    "near, as a float": "assert float(f(3) - 9) == 0.0",
    "no difference": "assert not f(3) - 9",
    "no rest": "assert not f(3) % 9",
    "less": "assert f(3) < 10",
    "between": "assert 8 < f(3) < 10",
    "greatest": "assert max(f(3), 9) == 9 and max(9, f(3)) == 9",
    "close": "import math\nassert math.isclose(f(3), 9)",
    "a sum": "assert sum([f(3), -9]) == 0",
    "a difference of differences": "assert abs((f(3) - 9) - (f(4) - 16)) < 0.1",
    "sorted": "assert sorted([f(3), 10]) == [f(3), 10] and sorted([f(3), 10])[0] == 9",
    "an index": "assert [0, 1][f(3) - 9] == 0 and f(3) == 9",
    "counted": "assert [f(3)].count(9) == 1",
    "a key": "assert {9: 1}[f(3)] == 1",
    "a method of a solution": "assert V().solve(3) == 9",
    "what a method gives": "assert abs(V().make(3) - 9) < 0.1",
}


@pytest.mark.parametrize("plain", ["None", "0", "0.0"])
def test_no_liar_passes(plain: str) -> None:
    """An object that says whatever is asked for, against tests that want a plain value."""
    code = LIAR.replace("RETURN = None", f"RETURN = {plain}")
    with ThreadPoolExecutor(2) as pool:
        judged = list(pool.map(lambda test: judge(code, test, ["f", "V"]).value, LIARS.values()))
    assert {name for name, value in zip(LIARS, judged, strict=True) if value} == set()


CHEATS: dict[str, tuple[str, str, str]] = {
    "another tolerance of the class": (
        "class Near:\n tol = 1e-6\n def __init__(s, v): s.v = v\n"
        " def __eq__(s, o): return abs(s.v - o.v) <= s.tol",
        "def f(x):\n n = Near(1)\n n.tol = 1e9\n return n",
        "assert f(3) == Near(9)",
    ),
    "another tolerance in a slot of no class": (
        "class Near:\n tol = 1e-6\n __slots__ = ('v', '__dict__')\n"
        " def __init__(s, v): s.v = v\n def __eq__(s, o): return abs(s.v - o.v) <= s.tol",
        "def f(x):\n n = Near(1)\n n.__dict__['tol'] = 1e9\n return n",
        "assert f(3) == Near(9)",
    ),
    "another class": (
        "class Near:\n def __init__(s, v): s.v = v\n def __eq__(s, o): return s.v == o.v",
        "class Fake(Near):\n __class__ = Near\n def __eq__(s, o): return True\n"
        "Fake.__name__ = 'Near'\ndef f(x): return Fake(1)",
        "assert f(3) == Near(9)",
    ),
    "an error that is none of the tests'": (
        "",
        "class AssertionError(Exception): pass\ndef f(x): raise AssertionError",
        "try: assert f(3) == 9\nexcept ValueError: pass",
    ),
    "a tuple with other fields": (
        "",
        "from collections import namedtuple\ndef f(x): return namedtuple('T', 'count')(9)",
        "assert f(3) == 9",
    ),
    "an error that says it is one of the judge's": (
        "",
        "import sys\ndef f(x):\n frame = sys._getframe()\n"
        " while 'self' not in frame.f_locals: frame = frame.f_back\n"
        " peer = frame.f_locals['self']\n"
        " peer.send(['error', ['yours', 0], [], [], '', 0, False, ''])",
        "assert f(3) == 9",
    ),
    "the end of a loop by a class of its own": (
        "",
        "class End(StopIteration): pass\ndef f(x): raise End",
        "for got, want in zip(map(f, [3]), [9]): assert got == want",
    ),
    "the end of a loop by the library's name": (
        "",
        "import sys\ndef f(x):\n frame = sys._getframe()\n"
        " while 'self' not in frame.f_locals: frame = frame.f_back\n"
        " peer = frame.f_locals['self']\n"
        " peer.send(['error', ['library', 'builtins', 'StopIteration', ['builtin', 'Exception']],"
        " [], [], '', 0, False, ''])",
        "for got, want in zip(map(f, [3]), [9]): assert got == want",
    ),
    "a field in place of a method": (
        "class Near:\n def __init__(s, v): s.v = v\n def near(s, o): return abs(s.v - o) < 1\n"
        " def __eq__(s, o): return s.near(o.v) and o.near(s.v)",
        "def f(x):\n n = Near(1)\n vars(n)['near'] = bool\n return n",
        "assert f(3) == Near(9)",
    ),
    "a property that is set": (
        "class Near:\n def __init__(s, v): s.v = v\n tol = property(lambda s: 0.1)\n"
        " def __eq__(s, o): return abs(s.v - o.v) < s.tol",
        "def f(x):\n n = Near(1)\n vars(n)['tol'] = 1e9\n return n",
        "assert f(3) == Near(9)",
    ),
    "a liar before numpy": (
        "import numpy as np",
        LIAR.replace("__eq__ =", "__array__ = __eq__ ="),
        "assert np.allclose(f(3), 9) or np.array_equal(f(3), 9)",
    ),
    "a liar among numbers before numpy": (
        "import numpy as np",
        LIAR + "def g(x): return [f(x), f(x)]\n",
        "np.testing.assert_allclose(g(3), [9, 9], atol=1e-6)",
    ),
    "a liar before a class of setup": (
        "class Near:\n def __init__(s, v): s.v = v\n"
        " def __eq__(s, o): return abs(s.v - o.v) < 1e-6",
        LIAR + "V.v = V()\n",
        "assert Near(9) == f(3)",
    ),
    "a helper of the tests": (
        "",
        "def close(*a): return True\ndef f(x): return 1",
        "def close(a, b): return abs(a - b) < 0.1\nassert close(f(3), 9)",
    ),
    "a printed verdict": (
        "",
        "import os, sys\ndef f(x):\n sys.stdout.write('P')\n os.write(1, b'P')\n return 1",
        "assert f(3) == 9",
    ),
    "a class that stands for a builtin": (
        "",
        "class ValueError(Exception): pass\nclass bool: __new__ = lambda *a: 9\n"
        "def f(x): return bool()",
        "assert f(3) == 9 and bool(f(3)) is not True",
    ),
    "an output that is no text": (
        "",
        "import sys\ndef f(x):\n frame = sys._getframe()\n"
        " while 'self' not in frame.f_locals: frame = frame.f_back\n"
        " frame.f_locals['self'].send(['value', 9, [], ['P']])",
        "assert f(3) == 9",
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_other_cheat_passes(name: str) -> None:
    setup, code, test = CHEATS[name]
    assert judge(code, test, ["f", "g"], setup).value == 0.0


def test_a_class_of_setup_may_have_slots_and_defaults() -> None:
    setup = (
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n x: int = 0\n"
        "class Q:\n __slots__ = ('y',)\n def __init__(s, y): s.y = y\n"
        " def __eq__(s, o): return s.y == o.y\n"
        "class R:\n z = None\n def __init__(s): s.z = 1\n def __eq__(s, o): return s.z == o.z"
    )
    code = "def f(p, q):\n q.y += 1\n return P(p.x + 1), Q(2)\ndef g(): return R()"
    test = "q = Q(1)\nassert f(P(1), q) == (P(2), Q(2)) and q == Q(2) and g() == R()"
    assert judge(code, test, ["f", "g"], setup) == (1.0, None)


def test_an_answer_that_returns_an_object_for_a_value_has_failed() -> None:
    assert judge("def f(x): yield 9", "assert f(3) == [9]") == (0.0, FAILED)
    assert judge("def f(x): return 9.0", "assert type(f(3)) is int") == (0.0, FAILED)


HALF = "def half(a): return np.array(a) / 2"


@pytest.mark.parametrize(
    "setup",
    [
        "import numpy as np",
        "import math, numpy.linalg, numpy as np",
        "from numpy import array\nimport numpy as np",
        "import numpy as np\ndef half(a: np.ndarray) -> np.ndarray: return np.array(a) / 2",
    ],
)
def test_setup_may_import_numpy(setup: str) -> None:
    """It is the tests' own: the answer's process has none."""
    test = "assert np.allclose(f(3), 9)"
    assert judge("def f(x): return 9", test, ["f"], setup) == (1.0, None)
    assert judge("def f(x): return 8", test, ["f"], setup) == (0.0, FAILED)
    for use in ("np.array(9)", "np.pi * 2", "half(9)", "__import__('numpy')"):
        assert judge(f"def f(x): return {use}", test, ["f"], setup + "\n" + HALF) == (
            0.0,
            UNSUPPORTED,
        )


def test_the_imports_of_mbpp_may_be_of_numpy() -> None:
    row = LAYOUTS["mbpp"](
        {
            "prompt": "Return nine.",
            "code": "def f(x): return 9",
            "test_list": ["assert np.allclose(f(3), 9)"],
            "test_imports": ["import numpy as np"],
        }
    )
    assert TestsReward(LIMITS).judge_solution(row) == (1.0, None)


def test_a_setup_that_the_answer_cannot_have_is_not_silent() -> None:
    setup = "import numpy as np\nN = np.arange(3).sum()"
    assert judge("def f(x): return 9", "assert f(3) == 9", ["f"], setup) == (0.0, UNSUPPORTED)


@pytest.mark.parametrize(
    "test",
    [
        "def test_a(): assert f(1) == 9",
        "async def test_a(): assert f(1) == 9",
        "def check(candidate): assert candidate(1) == 9",
        "import unittest\nclass T(unittest.TestCase):\n def test_a(self): assert f(1) == 9",
        "if __name__ == '__main__':\n assert f(1) == 9",
        "import unittest\nif __name__ == '__main__':\n unittest.main()",
        "f(1) == 9",
        "f(1) == 9 and f(2) == 8",
        "not f(1) == 9",
        "# nothing",
        "f",
        "'assert f(1) == 9'",
        "want = 9",
        "pass",
    ],
)
def test_tests_that_check_nothing_are_refused(test: str) -> None:
    row = {"tests": ["import math", test], "entry_point": "f"}
    with pytest.raises(RowError, match=r"tests: check nothing .* put an assert"):
        TestsReward(LIMITS).check(row)


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate): assert candidate(1) == 9\ncheck(f)",
        "import asyncio\nasync def check(): assert f(1) == 9\nasyncio.run(check())",
        "for x in [1]: assert f(x) == 9",
        "result = f(1)\nif result != 9: raise ValueError",
        "import numpy\nnumpy.testing.assert_allclose(f(1), 9)",
        "try: f(1)\nexcept ValueError: pass\nelse: assert False",
        "[check(x) for x in (1, 2)]",
        "import unittest\nunittest.TestCase().assertEqual(f(1), 9)",
    ],
)
def test_tests_that_may_fail_are_run_as_they_stand(test: str) -> None:
    program = read_program({"tests": [test], "entry_point": ["f", "check"]})
    assert list(program.tests) == [test]


@pytest.mark.parametrize("call", ["unittest.main()", "unittest.main(exit=False)"])
def test_unittest_main_is_refused_by_its_name(call: str) -> None:
    test = (
        "import unittest\nclass T(unittest.TestCase):\n"
        f" def test_a(self): self.assertEqual(f(1), 9)\n{call}"
    )
    with pytest.raises(RowError, match=r"tests: call unittest\.main"):
        TestsReward(LIMITS).check({"tests": [test], "entry_point": "f"})
