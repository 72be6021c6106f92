"""A reward of the user's own: a Python function, by module or file.

Either ``function(row, completion)``, which is called for each completion, or as TRL has them,
``function(prompts, completions, **columns) -> list[float]``, which is called for many.
"""

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from qprobe.data.provenance import prompt_of
from qprobe.errors import RewardError, RowError

__all__ = ["FunctionReward", "find_source"]

Json = dict[str, Any]

_BATCH_SIZE = 32
_MAX_SHOWN = 300
_FORMS = "(row, completion) or, as in TRL, (prompts, completions, **columns)"
_NO_COLUMNS = ("prompt", "messages", "completions")
# Names that say of a parameter, by its place, that it is meant for something else.
_NEVER_FIRST = ("prompt", "completion", "answer", "response")
_NEVER_SECOND = {"row", "prompt"}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_MAIN_THREAD = (
    "; rewards run in threads, so it cannot do what needs the main thread: leave its own limit of "
    "time out (math_verify's by parsing_timeout=None and timeout_seconds=None) and set "
    "--reward-timeout"
)


class FunctionReward:
    """Calls a function of the user's own.

    Nothing is known of what it needs of a row, and it is run as it is, in no sandbox. One of the
    first form is called from several threads: by name if its parameters are named so, in any order,
    and else by their places. A parameter ``completions`` tells one of the second;
    of what TRL hands over it gets what it names, all columns if it takes ``**``. As in TRL, prompt
    and completion of a chat are lists of messages.

    Attributes:
        batch_size: How many completions a call is for: 1 of the first form.

    Args:
        where: ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``. Imported at once; modules are looked
            for in the current folder and beside the file too.
        batch_size: Of the second form, >= 1; None takes 32.

    Raises:
        RewardError: It cannot be imported, is no function, or takes something else.
    """

    def __init__(self, where: str, *, batch_size: int | None = None) -> None:
        self.name = f"python:{where}"
        source, colon, function = where.rpartition(":")
        if not colon or not source or not function:
            raise RewardError(
                f"reward {self.name!r} must be python:MODULE:FUNCTION or python:FILE.py:FUNCTION"
            )
        try:
            module = _import(source)
        except (Exception, SystemExit) as error:  # the user's module may raise anything
            raise RewardError(
                f"reward {self.name!r}: importing {source!r} {_tell(error)}"
            ) from error
        found = getattr(module, function, None)
        if not callable(found):
            kind = "nothing" if found is None else type(found).__name__
            raise RewardError(
                f"reward {self.name!r}: {function!r} must be a function of {source!r}, got {kind}"
            )
        self._file = getattr(module, "__file__", None)
        self._function: Callable[..., object] = found
        self._by_name = False
        self._columns = self._read_signature()
        if self._columns is None and batch_size is not None:
            raise RewardError(
                f"reward {self.name!r} takes one completion a call: a size of batches is for "
                "functions that take (prompts, completions, **columns)"
            )
        self.batch_size = 1 if self._columns is None else batch_size or _BATCH_SIZE

    def _read_signature(self) -> "_Columns | None":
        """Return which columns a function of TRL's form takes, None for one of the other."""
        function = self._function
        # An object is called by its class's own method.
        if any(inspect.iscoroutinefunction(each) for each in (function, type(function).__call__)):
            raise RewardError(f"reward {self.name!r} must not be async")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            return None
        try:
            if "completions" in signature.parameters:
                return _Columns(signature)
            self._by_name = _takes_names(signature)
        except TypeError as error:
            raise RewardError(
                f"reward {self.name!r} must take {_FORMS}, it takes {signature}"
            ) from error
        return None

    def check(self, fields: Json) -> None:
        """Check that a row has the columns that a function of TRL's form asks for.

        Raises:
            RowError: It has not.
        """
        if self._columns is not None:
            self._columns.check(fields)

    def __call__(self, fields: Json, completion: str) -> float:
        """Return what the function returns for one completion; see ``rate``."""
        return self.rate([(fields, completion)])[0]

    def rate(self, batch: Sequence[tuple[Json, str]]) -> list[float]:
        """Return a reward for each row and completion, ``batch_size`` of them at most.

        Raises:
            RewardError: The function raised, or returned something else than finite numbers. The
                message has the exception's own text and the line of the user's file.
        """
        if self._columns is None:
            return [self._to_number(self._call_for_one(*each)) for each in batch]
        values = _plain(self._call(**self._columns.make(batch)))
        if not isinstance(values, list | tuple) or len(values) != len(batch):
            raise RewardError(
                f"reward {self.name!r} must return a list of {len(batch)} numbers, one for each "
                f"completion, got {_show(values)}"
            )
        return [self._to_number(each) for each in values]

    def _call_for_one(self, fields: Json, text: str) -> object:
        if self._by_name:
            return self._call(row=fields, completion=text)
        return self._call(fields, text)

    def _call(self, *positional: object, **named: object) -> object:
        try:
            return self._function(*positional, **named)
        except (Exception, SystemExit) as error:  # the user's function may raise anything
            hint = _MAIN_THREAD if "main thread" in str(error) else ""
            told = _tell(error, self._file)
            raise RewardError(f"reward {self.name!r} {told}{hint}") from error

    def _to_number(self, value: object) -> float:
        value = _plain(value)
        try:
            number = float(value) if isinstance(value, Real) else math.nan
        except OverflowError:  # an integer beyond every float
            number = math.inf
        if not math.isfinite(number):
            raise RewardError(
                f"reward {self.name!r} must return a finite number, got {_show(value)}"
            )
        return number


def _takes_names(signature: inspect.Signature) -> bool:
    """Whether a function of the first form has its parameters' names, so that no order matters.

    Raises:
        TypeError: It does not take two, or a name tells that they are others.
    """
    parameters = signature.parameters
    by_name = all(
        name in parameters and parameters[name].kind in _NAMED for name in ("row", "completion")
    )
    if by_name:
        signature.bind(row={}, completion="")
        return True
    signature.bind({}, "")
    first, *others = parameters
    if first in _NEVER_FIRST or _NEVER_SECOND.intersection(others[:1]):
        raise TypeError("its parameters are in another order, or others")
    return False


class _Columns:
    """What a function of TRL's form gets: prompts, completions and the columns that it takes."""

    def __init__(self, signature: inspect.Signature) -> None:
        parameters = signature.parameters.values()
        if signature.parameters["completions"].kind not in _NAMED:
            raise TypeError("it does not take completions by name")
        self._all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
        # Of ``*args`` nothing is known, and it gets nothing.
        named = [each for each in parameters if each.kind not in _VARIADIC]
        self._named = [each.name for each in named]
        self._needed = [
            each.name
            for each in named
            if each.default is inspect.Parameter.empty
            and each.name not in ("prompts", "completions")
        ]
        for each in named:
            is_needed = each.default is inspect.Parameter.empty
            if is_needed and (each.kind not in _NAMED or each.name in _NO_COLUMNS[:2]):
                raise TypeError(f"nothing is there for {each.name}")

    def check(self, fields: Json) -> None:
        for name in self._needed:
            if name not in fields:
                raise RowError(name, "is missing, and the reward's function takes it")

    def make(self, batch: Sequence[tuple[Json, str]]) -> Json:
        rows = [fields for fields, _ in batch]
        prompts = [prompt_of(row) for row in rows]
        texts = [text for _, text in batch]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        names = dict.fromkeys(name for row in rows for name in row if name not in _NO_COLUMNS)
        columns: Json = {name: [row.get(name) for row in rows] for name in names}
        columns |= {"prompts": prompts, "completions": completions}
        return {name: columns[name] for name in columns if self._all or name in self._named}


def _plain(value: Any) -> Any:  # noqa: ANN401  # whatever a user's function returns
    """Return what a NumPy value or a tensor holds, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _show(value: object) -> str:
    return f"{value!r:.80}"


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _tell(error: BaseException, file: str | None = None) -> str:
    """Return what was raised, and at which line of the user's file; None: the first that ran."""
    machinery = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen importlib")
    ]
    file = file or (frames[0].filename if frames else None)
    own = [frame for frame in frames if frame.filename == file]
    where = "".join(f" at {each.filename}:{each.lineno}" for each in (own or frames)[-1:])
    said = f": {_shorten(str(error))}" if str(error) else ""
    return f"raised {type(error).__name__}{said}{where}"


def find_source(source: str) -> Path | None:
    """Return the file of a module, named as in ``FunctionReward``; None if it has none."""
    if source.endswith(".py"):
        return Path(source)
    _look_in(Path.cwd())
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):  # no such package, or a module without a spec
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None


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
