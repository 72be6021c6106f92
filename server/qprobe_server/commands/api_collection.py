"""Makes a dataset of what an API samples: rewards and embeds the answers, writes shards.

While a shard is embedded the next one is sampled already.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from qprobe.data.prompts import PromptRow
from qprobe.data.sample import GREEDY
from qprobe.data.writer import DatasetWriter
from qprobe_server.commands.answer_shards import (
    Answer,
    Embedder,
    Unread,
    list_readable,
    write_shard,
)
from qprobe_server.commands.api_sampling import ApiSampler
from qprobe_server.commands.manifest import SEED_STRIDE
from qprobe_server.commands.refusals import Refusals
from qprobe_server.commands.rewarding import Rewarding
from qprobe_server.commands.wanted import Wanted, begin_reward, list_samples
from qprobe_server.errors import ServerError
from qprobe_server.proxy.chat_text import write_answer
from qprobe_server.proxy.reader import Written

__all__ = ["SamplingPlan", "collect_from_api"]

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """What each prompt is sampled with.

    Attributes:
        model: As the API calls it.
        params: Sampling parameters, as bodies of requests have them.
        n: Samples per prompt, 1 to SEED_STRIDE.
        seed: Of the whole collection.
        greedy: Whether every prompt also gets a greedy answer, rewarded but not embedded.
        logprobs: Whether to ask for log-probabilities.
    """

    model: str
    params: Body
    n: int
    seed: int
    greedy: bool
    logprobs: bool

    def ask(self, row: PromptRow, seed: int | None) -> Body:
        """Return the request for one answer; without a seed for the greedy one."""
        body = {"model": self.model, **self.params}
        if isinstance(row.prompt, str):
            body["prompt"] = row.prompt
        else:
            body["messages"] = row.prompt
        if seed is None:
            greedy = {name: body[name] for name in body if name not in _DRAWN}
            return {**greedy, "temperature": 0}
        if self.logprobs:
            body["logprobs"] = 1 if isinstance(row.prompt, str) else True
        return {**body, "seed": seed}


_DRAWN = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class _Coming:
    """What a shard wants, and what comes of it by its place."""

    wanted: Sequence[Wanted]
    arrivals: Iterator[tuple[int, Written | ServerError]]


def collect_from_api(
    sampler: ApiSampler,
    embedder: Embedder,
    writer: DatasetWriter,
    rows: Sequence[PromptRow],
    rewarding: Rewarding,
    *,
    plan: SamplingPlan,
    skip_refused: bool,
    progress: Callable[[int], object],
) -> None:
    """Write the shards that are missing.

    Args:
        sampler: Open.
        embedder: Of the answers.
        writer: Of the dataset.
        rows: All prompts of the dataset.
        rewarding: Open; goes on beside the rest.
        plan: How to sample.
        skip_refused: Whether a prompt has no samples of which the API refuses one for good, or what
            reads does; else that is an error.
        progress: Called with the number of samples that have come, or are refused.

    Raises:
        RewardError: A reward failed; what was written before stays, as with the others.
        StartupError: A sample cannot be had, or read.
        ServerError: Nothing can be read now.
    """

    def begin(shard: int) -> _Coming:
        prompts = writer.prompts_of(shard)
        wanted = list_samples(prompts, n=plan.n, seed=plan.seed, greedy=plan.greedy)
        bodies = [plan.ask(rows[each.prompt], each.seed) for each in wanted]
        return _Coming(wanted, sampler.begin(bodies))

    def ask(prompt: int) -> Written | ServerError:
        body = plan.ask(rows[prompt], plan.seed + prompt * SEED_STRIDE)
        return next(came for _, came in sampler.begin([body]))

    lines = [each.line for each in rows]
    refusals = Refusals(ask, lines, answered=writer.find_sampled(), skip=skip_refused)
    unread = Unread(skip=skip_refused)
    missing = writer.missing()
    coming = begin(missing[0]) if missing else None
    for shard, following in pairwise([*missing, None]):
        assert shard is not None
        assert coming is not None
        answers = _receive(coming, rows, rewarding, refusals, progress)
        refused = [each for each in writer.prompts_of(shard) if each in refusals.prompts]
        refusals.check([each.wanted.prompt for each in answers], refused)
        coming = None if following is None else begin(following)
        if not sampler.takes_seeds:
            answers = [replace(each, wanted=replace(each.wanted, seed=None)) for each in answers]
        embedded = embedder.embed(list_readable(answers))
        write_shard(writer, shard, embedder, unread.leave_out(answers, embedded))
    writer.finish()
    refusals.tell()
    unread.tell()


def _receive(
    coming: _Coming,
    rows: Sequence[PromptRow],
    rewarding: Rewarding,
    refusals: Refusals,
    progress: Callable[[int], object],
) -> list[Answer]:
    """Return the answers of a shard in their order, but for the prompts that are refused."""
    done: dict[int, Answer] = {}
    for place, written in coming.arrivals:
        wanted = coming.wanted[place]
        if isinstance(written, ServerError):
            is_greedy = wanted.index == GREEDY
            refusals.add(wanted.prompt, written, is_first=not done, is_greedy=is_greedy)
        else:
            rated = begin_reward(rewarding, rows, wanted, write_answer(written))
            done[place] = Answer(wanted, written, rated)
        progress(1)
    rewarding.flush()
    answers = [done[place] for place in sorted(done)]
    return [each for each in answers if each.wanted.prompt not in refusals.prompts]
