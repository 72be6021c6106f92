"""Searches texts for a pattern, each for so long and no longer; ``qprobe.rewards.pattern`` runs it.

A program of its own for a bare interpreter, so that starting costs milliseconds: may import the
standard library only.
"""

import json
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

__all__ = ["NO_PATTERN", "main"]

# The status that it ends with where there is nothing to search for; stderr has the reason.
NO_PATTERN = 3


class _OverError(Exception):
    """The time of a text is up."""


def main() -> None:
    """Read what is asked, and write a line for each text as soon as it was searched.

    On stdin stands ``[pattern, [[text, ends], ...], text_s, all_s]``: matches behind the first of a
    text's ends that follows its first match do not count; a text may take ``text_s`` of CPU time,
    and all of them ``all_s``, a whole number, after which the kernel kills the process. A line on
    stdout is ``[is_found, value]``, as ``qprobe.rewards.pattern.Found`` has them.
    """
    import resource  # here, as Windows has none, and may import this module

    pattern, texts, text_s, all_s = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (all_s, all_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        sys.stderr.write(str(error))
        sys.exit(NO_PATTERN)
    # Python's matcher looks for signals as it goes; should it not, there is the process's limit.
    signal.signal(signal.SIGVTALRM, _end)
    for text, ends in texts:
        sys.stdout.write(f"{json.dumps(_search(compiled, text, ends, text_s))}\n")
        sys.stdout.flush()


def _search(
    pattern: re.Pattern[str], text: str, ends: Sequence[int], text_s: float
) -> tuple[bool, str | None]:
    is_found, value = False, None
    signal.setitimer(signal.ITIMER_VIRTUAL, text_s)
    try:
        last, stop = None, len(text)
        for match in pattern.finditer(text):
            if not is_found:
                is_found = True
                stop = min((each for each in ends if each >= match.end()), default=stop)
            if match.start() > stop:
                break
            last = match
        if last is not None:
            value = last[1 if pattern.groups else 0]
    except _OverError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return is_found, value


def _end(number: int, frame: FrameType | None) -> None:
    raise _OverError


if __name__ == "__main__":
    main()
