"""Reads a command line at once: what a mistyped flag means, and vLLM's flags by their names.

vLLM's own parser, whose import takes seconds, reads those flags anew when all else is right. What
it does with a command line before argparse sees it (``FlexibleArgumentParser``) is done here too.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from qprobe_server.errors import StartupError

__all__ = ["Parser", "add_vllm_flags", "expand_config", "normalize", "refuse_flags"]

_TYPES = {"int": int, "float": float}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says which flag a mistyped one may have meant."""

    def parse_known_args(  # type: ignore[override]  # argparse's overloads say the same
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; a flag that is none is told before anything that is missing."""
        if self._subparsers is None:
            self._check_flags(args or ())
        return super().parse_known_args(args, namespace)

    def _check_flags(self, args: Sequence[str]) -> None:
        known = list(self._option_string_actions)
        for each in args:
            if each == "--":
                return
            flag = each.partition("=")[0]
            # What holds a space is a value, for argparse too; so is what one dash begins, if it is
            # no flag.
            if not flag.startswith("--") or " " in flag:
                continue
            if not any(name.startswith(flag) for name in known):
                close = get_close_matches(flag, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.error(f"unrecognized argument: {flag}{hint}")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.format_usage()}{self.prog}: error: {message}\n")


def add_vllm_flags(
    parser: argparse.ArgumentParser, *groups: str, shown: Mapping[str, str] | None = None
) -> None:
    """Add vLLM's flags, as ``qprobe_server.vllm_backend.flags`` has written them down.

    Args:
        parser: Gets the values as they are written, or None for each that is not there.
        groups: ``engine``, ``server``.
        shown: The help of the few that are shown, by flag.
    """
    shown = shown or {}
    text = (resources.files("qprobe_server.vllm_backend") / "flags.json").read_text("utf-8")
    recorded = json.loads(text)
    section = parser.add_argument_group("vLLM's", "All of vLLM's flags are taken; the usual ones:")
    places = {flag: place for place, flag in enumerate(shown)}
    flags = [each for group in groups for each in recorded[group]]
    for each in sorted(flags, key=lambda each: places.get(each["flags"][0], len(places))):
        options: dict[str, Any] = {"help": shown.get(each["flags"][0], argparse.SUPPRESS)}
        if each["nargs"] == 0:
            options["action"] = "store_true"
        else:
            options |= {"nargs": each["nargs"], "type": _TYPES.get(each.get("type", ""), str)}
            options["choices"] = each.get("choices")
        section.add_argument(*each["flags"], default=None, **options)


def expand_config(parser: argparse.ArgumentParser, args: Sequence[str]) -> list[str]:
    """Put what ``--config FILE`` says before the other flags, which win over it; as vLLM does."""
    args = [part for each in args for part in re.split(r"(?<=^--config)=", each, maxsplit=1)]
    if "--config" not in args:
        return args
    index = args.index("--config")
    rest = args[:index] + args[index + 2 :]
    if "--config" in rest or index + 1 == len(args):
        parser.error("argument --config: must be given once, with a file")
    try:
        config = _read_config(Path(args[index + 1]))
    except (OSError, ValueError) as error:
        parser.error(f"argument --config: {args[index + 1]!r}: {error}")
    num_first = 1 if rest and not rest[0].startswith("-") else 0  # the model, or the prompts
    if num_first or any(re.match("--model(=|$)", each) for each in rest):
        config.pop("model", None)
    found = [part for key, value in config.items() for part in _to_flags(parser, key, value)]
    return rest[:num_first] + found + rest[num_first:]


def _read_config(path: Path) -> dict[str, Any]:
    # Not at the top: it would cost every command its time.
    import yaml  # type: ignore[import-untyped]

    if path.suffix not in (".yaml", ".yml"):
        raise ValueError("must end in .yaml or .yml")
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError("must hold flags and their values, 'port: 8000'")
    return {str(key): value for key, value in config.items()}


def _to_flags(parser: argparse.ArgumentParser, key: str, value: object) -> list[str]:
    flag = f"--{key}"
    if isinstance(value, bool):
        off = f"--no-{key}"
        return [flag] if value else [off] if off in parser._option_string_actions else []
    if isinstance(value, list):
        return [flag, *map(str, value)] if value else []
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def normalize(args: Sequence[str]) -> list[str]:
    """Return the arguments as vLLM hands them to argparse.

    ``--a_b`` becomes ``--a-b``, ``-O3`` becomes ``--optimization-level 3``, and ``--a.b.c value``
    becomes ``--a {}``: what it says is vLLM's to read.
    """
    made: list[str] = []
    rest = iter(args)
    for each in rest:
        flag, equals, value = each.partition("=")
        if flag.startswith("--"):
            name, dot, path = flag.partition(".")
            flag = name.replace("_", "-") + dot + path
        if re.match(r"-(-|[A-Za-z])[^.]*\.", flag):
            if not equals:
                next(rest, None)
            made += [flag.partition(".")[0], "{}"]
        elif flag.startswith("-O"):
            level = each[2:].removeprefix("=")
            made += ["--optimization-level", level] if level else ["--optimization-level"]
        else:
            made.append(flag + equals + value)
    return made


def refuse_flags(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuse flags that would have no effect.

    Args:
        args: As ``Parser`` has read them: None or False where a flag is not there.
        names: Of the flags, in ``args``.
        why: What is said behind the flag.

    Raises:
        StartupError: One of them is there.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False:  # 0 and nothing are values
            raise StartupError(f"--{name.replace('_', '-')} {why}")
