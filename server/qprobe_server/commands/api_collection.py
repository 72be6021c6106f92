"""Makes a dataset of what an API samples: rewards and embeds the answers, writes shards.

While a shard is embedded the next one is sampled already.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from qprobe.data.prompts import PromptRow
from qprobe.data.sample import GREEDY, Sample
from qprobe.data.writer import DatasetWriter
from qprobe.rewards.rating import Rated
from qprobe_server.commands.api_sampling import ApiSampler
from qprobe_server.commands.manifest import SEED_STRIDE
from qprobe_server.commands.rewarding import Rewarding
from qprobe_server.errors import ServerError, StartupError
from qprobe_server.proxy.chat_text import write_answer
from qprobe_server.proxy.reader import Written
from qprobe_server.proxy.upstream import explain

__all__ = ["Embedded", "Embedder", "SamplingPlan", "collect_from_api"]

Body = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Embedded:
    """What came of reading an answer.

    Attributes:
        embeddings: Shape (readings, hidden), float16.
        token_ids: The reader's tokens of it, as if it had sampled them; empty where nobody tells.
        num_scored: How many of them, from the first, make the embedding.
    """

    embeddings: Tensor
    token_ids: Sequence[int] = ()
    num_scored: int = 0


class Embedder(Protocol):
    """Reads answers.

    Attributes:
        readings: What it gives, as datasets name it.
    """

    readings: list[str]

    def embed(self, answers: Sequence[tuple[int, Written]]) -> Sequence[Embedded]:
        """Embed answers, each with the index of its prompt.

        Raises:
            ServerError: One of them cannot be read, or none.
        """


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
class _Asked:
    prompt: int
    index: int
    seed: int | None


@dataclass(frozen=True)
class _Done:
    """An answer that came; its reward may be on its way."""

    asked: _Asked
    written: Written
    rated: Future[Rated]


def collect_from_api(
    sampler: ApiSampler,
    embedder: Embedder,
    writer: DatasetWriter,
    rows: Sequence[PromptRow],
    rewarding: Rewarding,
    *,
    plan: SamplingPlan,
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
        progress: Called with the number of samples that have come.

    Raises:
        RewardError: A reward failed; what was written before stays, as with the others.
        StartupError: A sample cannot be had.
        ServerError: An answer cannot be read.
    """

    def begin(shard: int) -> tuple[list[_Asked], Iterator[tuple[int, Written | ServerError]]]:
        asked = _list(writer.prompts_of(shard), plan)
        return asked, sampler.begin([plan.ask(rows[each.prompt], each.seed) for each in asked])

    missing = writer.missing()
    coming = begin(missing[0]) if missing else None
    for shard, following in pairwise([*missing, None]):
        assert shard is not None
        assert coming is not None
        asked, arrivals = coming
        done: dict[int, _Done] = {}
        for place, written in arrivals:
            what = asked[place]
            if isinstance(written, ServerError):
                line = rows[what.prompt].line
                raise StartupError(
                    f"--upstream: {explain(written)} for the prompt of line {line}; started again, "
                    "the collection goes on"
                ) from written
            done[place] = _Done(what, written, _reward(rewarding, rows, what, written))
            progress(1)
        rewarding.flush()
        coming = None if following is None else begin(following)
        _write(writer, shard, embedder, [done[place] for place in range(len(asked))])
    writer.finish()


def _list(prompts: range, plan: SamplingPlan) -> list[_Asked]:
    asked = []
    for prompt in prompts:
        if plan.greedy:
            asked.append(_Asked(prompt, GREEDY, None))
        first = plan.seed + prompt * SEED_STRIDE
        asked += [_Asked(prompt, index, first + index) for index in range(plan.n)]
    return asked


def _reward(
    rewarding: Rewarding, rows: Sequence[PromptRow], what: _Asked, written: Written
) -> Future[Rated]:
    row = rows[what.prompt]
    which = "the greedy answer" if what.index == GREEDY else f"sample {what.index}"
    return rewarding.add(row.fields, write_answer(written), f"prompt of line {row.line}, {which}")


def _write(writer: DatasetWriter, shard: int, embedder: Embedder, done: Sequence[_Done]) -> None:
    embedded = iter(
        embedder.embed(
            [(each.asked.prompt, each.written) for each in done if each.asked.index != GREEDY]
        )
    )
    samples, embeddings = [], []
    for each in done:
        read = None if each.asked.index == GREEDY else next(embedded)
        samples.append(_to_sample(each, read))
        if read is not None:
            embeddings.append(read.embeddings)
    stacked = torch.stack(embeddings)  # (samples, readings, hidden)
    writer.write(shard, samples, {name: stacked[:, i] for i, name in enumerate(embedder.readings)})


def _to_sample(done: _Done, read: Embedded | None) -> Sample:
    written, rated = done.written, done.rated.result()
    logprobs = written.logprobs
    return Sample(
        prompt=done.asked.prompt,
        index=done.asked.index,
        text=write_answer(written),
        token_ids=list(read.token_ids) if read else [],
        num_scored=read.num_scored if read else 0,
        logprob=None if logprobs is None else sum(logprobs),
        finish_reason=written.finish_reason or "unknown",
        seed=done.asked.seed,
        reward=rated.reward,
        reason=rated.reason,
    )
