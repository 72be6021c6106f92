"""Votes by what candidates' code does: a few programs at a time, in a bounded queue.

Each program runs in the sandbox of the reward ``tests``. No code and nothing that it gives reaches
a log.
"""

import ast
import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from threading import Event

from qprobe.errors import RowError, SandboxError
from qprobe.rewards.behaviour import LIMITS, group_outcomes, read_behaviour
from qprobe.rewards.equal import Classes
from qprobe.rewards.sandbox import Outcome, Program, watch_program
from qprobe.rewards.sandboxed.statements import parse
from qprobe_server.choice.fair_pool import FairPool, Share
from qprobe_server.choice.vote_queue import PROMPT_S, QueuedVote, VoteQueue
from qprobe_server.choice.vote_schemas import VoteRequest
from qprobe_server.errors import RequestError
from qprobe_server.settings import Settings

__all__ = ["CodeRunner", "make_code_runner", "make_code_vote"]

logger = logging.getLogger(__name__)

_PARAM = "q_probe.vote"
MAX_CHARACTERS = 65_536
# Of Python's syntax trees: they are read on the event loop, 30 us each.
_MAX_NODES = 4_096
# Results of so many cross from the sandbox.
_MAX_CALLS = 256
_FIELDS = ("inputs", "tests", "setup", "entry_point")


class CodeRunner:
    """Runs programs for votes; one for a server.

    Args:
        num_workers: Programs at a time, >= 1.
        max_prompts: That may vote by code at a time, >= 1.

    Attributes:
        queue: Of these prompts.
        programs: Threads that wait for programs.
    """

    def __init__(self, *, num_workers: int, max_prompts: int) -> None:
        self.queue = VoteQueue(_CodeVote.by, max_prompts=max_prompts, flag="--code-queue")
        self.programs = FairPool(num_workers, "vote-code")


class _CodeVote(QueuedVote):
    """A vote by what candidates' code does."""

    by = "code"

    def __init__(self, program: Program, runner: CodeRunner, num_prompts: int) -> None:
        super().__init__(runner.queue, num_prompts)
        self._program = program
        self._runner = runner
        self._share = Share()

    async def group(self, completions: Sequence[str]) -> Classes:
        """Run a prompt's candidates and return their classes; a caller that leaves ends them."""
        run = _PromptRun(self._program)
        begin = partial(self._runner.programs.submit, self._share)
        futures = {
            each: asyncio.wrap_future(begin(partial(run.watch, each)))
            for each in dict.fromkeys(completions)
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
    return CodeRunner(num_workers=settings.code_workers, max_prompts=settings.code_queue)


def make_code_vote(
    asked: VoteRequest, runner: CodeRunner | None, *, num_prompts: int, field: str
) -> _CodeVote:
    """Return the vote by code that is asked for; ``field`` has the request's prompts.

    Raises:
        RequestError: 400; code is not run here, or a field is missing, too long, no Python or
            too much of it; or there are too many prompts.
    """
    if runner is None:
        raise RequestError(
            f"{_PARAM}.by: is 'code', which this server does not run: it wants the flag "
            "--allow-code-execution",
            param=f"{_PARAM}.by",
        )
    runner.queue.check(num_prompts, field)
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
    return _CodeVote(program, runner, num_prompts)


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
