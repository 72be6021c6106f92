"""A reward of the user's own: a Python function, by module or file."""

import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qprobe.errors import RewardError

__all__ = ["FunctionReward"]

Json = dict[str, Any]


class FunctionReward:
    """Calls a function f(fields, completion) that returns a finite number or a bool.

    Nothing is known of what it needs of a row, and it is run as it is, in no sandbox. It is called
    from several threads.

    Args:
        where: ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``. Imported at once; modules are looked
            for in the current folder and beside the file too.

    Raises:
        RewardError: It cannot be imported, or is no function.
    """

    def __init__(self, where: str) -> None:
        self.name = f"python:{where}"
        source, colon, function = where.rpartition(":")
        if not colon or not source or not function:
            raise RewardError(
                f"reward {self.name!r} must be python:MODULE:FUNCTION or python:FILE.py:FUNCTION"
            )
        try:
            module = _import(source)
        except Exception as error:  # the user's module may raise anything
            raise RewardError(
                f"reward {self.name!r}: importing {source!r} raised {type(error).__name__}: {error}"
            ) from error
        found = getattr(module, function, None)
        if not callable(found):
            kind = "nothing" if found is None else type(found).__name__
            raise RewardError(
                f"reward {self.name!r}: {function!r} must be a function of {source!r}, got {kind}"
            )
        self._function: Callable[[Json, str], object] = found

    def check(self, fields: Json) -> None:
        """Accept every row."""

    def __call__(self, fields: Json, completion: str) -> float:
        """Return what the function returns.

        Raises:
            RewardError: It raised, or returned something else than a finite number.
        """
        try:
            value = self._function(fields, completion)
        except Exception as error:  # the user's function may raise anything
            # Not the error's own text, which may hold the user's.
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise RewardError(
                f"reward {self.name!r} raised {type(error).__name__} at {last.filename}:"
                f"{last.lineno}"
            ) from error
        try:
            number = float(value) if isinstance(value, Real | np.bool_) else math.nan
        except OverflowError:  # an integer beyond every float
            number = math.inf
        if not math.isfinite(number):
            raise RewardError(
                f"reward {self.name!r} must return a finite number, got {value!r:.80}"
            )
        return number


def _import(source: str) -> ModuleType:
    path = Path(source)
    if not source.endswith(".py"):
        _look_in(Path.cwd())
        return importlib.import_module(source)
    if not path.is_file():
        raise FileNotFoundError(f"no file {source!r}")
    _look_in(path.resolve().parent)
    name = f"qprobe_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:  # an exit in it too: no half of a module stays
        del sys.modules[name]
        raise
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: it must not hide an installed module
