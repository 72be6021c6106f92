"""Votes by what candidates' code does: a few programs at a time, in a bounded queue.

Each program runs in the sandbox of the reward ``tests``. No code and nothing that it gives reaches
a log.
"""

import ast
import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from threading import Event

from qprobe.errors import RowError, SandboxError
from qprobe.rewards.behaviour import LIMITS, group_outcomes, read_behaviour
from qprobe.rewards.equal import Classes
from qprobe.rewards.sandbox import Outcome, Program, watch_program
from qprobe.rewards.sandboxed.statements import parse
from qprobe_server.choice.vote_schemas import VoteRequest
from qprobe_server.errors import RequestError
from qprobe_server.settings import Settings

__all__ = ["CodeRunner", "make_code_runner", "make_code_vote"]

logger = logging.getLogger(__name__)

_PARAM = "q_probe.vote"
# Of a prompt, from when its programs are in the queue, whatever is before them.
PROMPT_S = 30.0
MAX_CHARACTERS = 65_536
# Of Python's syntax trees: they are read on the event loop, 30 us each.
_MAX_NODES = 4_096
# Results of so many cross from the sandbox.
_MAX_CALLS = 256
_RETRY_AFTER_S = 2
_FIELDS = ("inputs", "tests", "setup", "entry_point")


class CodeRunner:
    """Runs programs for votes; one for a server.

    Args:
        num_workers: Programs at a time, >= 1.
        max_requests: That may vote by code at a time, >= 1.
    """

    def __init__(self, *, num_workers: int, max_requests: int) -> None:
        self.threads = ThreadPoolExecutor(num_workers, "vote-code")
        self._max_requests = max_requests
        self._num_requests = 0

    def begin(self) -> None:
        """Take a place for a request, before it is sampled.

        Raises:
            RequestError: 503; there is none left.
        """
        if self._num_requests >= self._max_requests:
            raise RequestError(
                f"{_PARAM}: {self._num_requests} requests vote by code already, as many as "
                "--code-queue allows: try again later",
                param=_PARAM,
                status=503,
                retry_after_s=_RETRY_AFTER_S,
            )
        self._num_requests += 1

    def end(self) -> None:
        """Give a place back."""
        self._num_requests -= 1


class _CodeVote:
    """A vote by what candidates' code does."""

    by = "code"

    def __init__(self, program: Program, runner: CodeRunner) -> None:
        self._program = program
        self._runner = runner

    def begin(self) -> None:
        """Take a place in the queue."""
        self._runner.begin()

    def end(self) -> None:
        """Give it back."""
        self._runner.end()

    async def group(self, completions: Sequence[str]) -> Classes:
        """Run a prompt's candidates and return their classes; a caller that leaves ends them."""
        run = _PromptRun(self._program)
        begin = self._runner.threads.submit
        futures = {
            each: asyncio.wrap_future(begin(run.watch, each)) for each in dict.fromkeys(completions)
        }
        try:
            # From now, not from the first program's start: others' may be before it.
            await asyncio.wait(futures.values(), timeout=PROMPT_S)
        finally:
            run.stop.set()
            for each in futures.values():  # those that are not done
                each.cancel()
        asked = [futures[each] for each in completions]
        outcomes = [None if each.cancelled() else each.result() for each in asked]
        classes = group_outcomes(outcomes, self._program)
        num_late = sum(each.cancelled() for each in asked)
        num_failed = outcomes.count(None) - num_late
        notices = [classes.notice] if classes.notice else []
        if num_late:
            notices.append(
                f"the {PROMPT_S:g} s of a vote were over before {num_late} candidates had been "
                "run: they have no answer"
            )
        if num_failed:
            notices.append(f"{num_failed} candidates could not be run: they have no answer")
        return replace(classes, notice="; ".join(notices) or None)


class _PromptRun:
    """The programs of one prompt, and when they are to end."""

    def __init__(self, program: Program) -> None:
        self.stop = Event()
        self._program = program

    def watch(self, completion: str) -> Outcome | None:
        """Run one; return None if it is not to be run any more, or could not be."""
        if self.stop.is_set():
            return None
        try:
            program = replace(self._program, answer=completion)
            return watch_program(program, LIMITS, stop=self.stop)
        except SandboxError as error:
            logger.warning("A candidate of a vote by code was not run: %s.", error)
            return None


def make_code_runner(settings: Settings) -> CodeRunner | None:
    """Return what the flags say, None if code is not to be run."""
    if not settings.allow_code_execution:
        return None
    return CodeRunner(num_workers=settings.code_workers, max_requests=settings.code_queue)


def make_code_vote(asked: VoteRequest, runner: CodeRunner | None) -> _CodeVote:
    """Return the vote by code that is asked for.

    Raises:
        RequestError: 400; code is not run here, or a field is missing, too long, no Python or
            too much of it.
    """
    if runner is None:
        raise RequestError(
            f"{_PARAM}.by: is 'code', which this server does not run: it wants the flag "
            "--allow-code-execution",
            param=f"{_PARAM}.by",
        )
    fields = {name: getattr(asked, name) for name in _FIELDS}
    _check_size([*(asked.inputs or ()), *(asked.tests or ()), asked.setup or ""])
    try:
        program = read_behaviour(fields)
    except RowError as error:
        # A row's tests[2] is a request's tests.2.
        param = f"{_PARAM}.{error.field.replace('[', '.').removesuffix(']')}"
        raise RequestError(f"{param}: {error.message}", param=param) from error
    if len(program.calls) > _MAX_CALLS:
        raise RequestError(
            f"{_PARAM}.tests: have {len(program.calls)} calls, more than {_MAX_CALLS}",
            param=f"{_PARAM}.tests",
        )
    return _CodeVote(program, runner)


def _check_size(sources: Sequence[str]) -> None:
    """Refuse what would take long to read; what is no Python is told by its reader."""
    num_characters = sum(map(len, sources))
    if num_characters > MAX_CHARACTERS:
        raise RequestError(
            f"{_PARAM}: inputs, tests and setup have {num_characters} characters, more than "
            f"{MAX_CHARACTERS}",
            param=_PARAM,
        )
    trees = filter(None, map(parse, sources))
    nodes = chain.from_iterable(map(ast.walk, trees))
    if next(islice(nodes, _MAX_NODES, None), None) is not None:
        raise RequestError(
            f"{_PARAM}: inputs, tests and setup have more than {_MAX_NODES} statements, "
            "operations, names and values",
            param=_PARAM,
        )
