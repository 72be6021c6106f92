"""Runs what the samples of a dataset wrote, on all cores, and keeps what came of it in a file."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from qprobe.errors import DatasetError
from qprobe.rewards.behaviour import LIMITS
from qprobe.rewards.sandbox import Outcome, Program, Result, watch_program

__all__ = ["Execution", "run_programs"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How programs are run.

    Attributes:
        kept: File of a line for each program that was run, by all of its content: what it has is
            not run again. Made if it is not there; a run that is stopped has written what it came
            to. None keeps nothing.
        num_workers: Programs at a time, >= 1.
        progress: Called for each sample, also of those that need not be run.
    """

    kept: Path | None = None
    num_workers: int = 1
    progress: Callable[[], object] = lambda: None


def run_programs(programs: Sequence[Program], execution: Execution) -> list[Outcome]:
    """Return what came of each program; equal ones are run once. Blocks, for 60 ms a program.

    Args:
        programs: Of any number of prompts.
        execution: How.

    Raises:
        SandboxError: This machine cannot run code safely.
        DatasetError: The file cannot be read or written.
    """
    keys = [_name(each) for each in programs]
    kept = execution.kept
    found = {} if kept is None else _read(kept)
    to_run = {key: each for key, each in zip(keys, programs, strict=True) if key not in found}
    num_alike = Counter(keys)
    for _ in range(sum(num_alike[key] for key in num_alike.keys() & found)):
        execution.progress()
    pool = ThreadPoolExecutor(execution.num_workers)
    running = {pool.submit(watch_program, each, LIMITS): key for key, each in to_run.items()}
    try:
        with (kept or Path(os.devnull)).open("a", encoding="utf-8") as file:
            for done in as_completed(running):
                key = running[done]
                found[key] = done.result()
                file.write(f"\n{json.dumps([key, asdict(found[key])])}")
                file.flush()
                for _ in range(num_alike[key]):
                    execution.progress()
    except OSError as error:
        raise DatasetError("folder", f"{kept} cannot be written: {error}") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[key] for key in keys]


def _name(program: Program) -> str:
    content = [asdict(program), asdict(LIMITS)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Outcome]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DatasetError("folder", f"{path} cannot be read: {error}") from error
    found = {}
    for line in lines:
        try:
            key, made = json.loads(line)
            results = made["results"]
            found[key] = Outcome(
                made["verdict"],
                None if results is None else tuple(Result(**each) for each in results),
            )
        except (ValueError, TypeError, KeyError):  # cut when it was stopped: run again
            continue
    return found
